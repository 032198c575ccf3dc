//! Sampling of a step: one token for each row of logits, by the rules of its request.

use super::logits::logprobs;
use super::{Draw, Drawn};
use kernels::sampling::sample;
use kernels::{ComputePool, Isa};
use protocol::Digest;
use std::sync::OnceLock;

/// Logits below which one thread samples all rows: about 20 microseconds, the cost of waking another.
const PARALLEL_MIN: usize = 1 << 15;

/// Samples one token for each row of `logits`, on all threads of `pool`. Each draw has the parameters and the
/// position of its token in the sequence. A row without a token, see [`sample`], yields `None`.
///
/// # Panics
/// If the logits are not one row for each draw.
#[must_use]
pub fn sample_rows(pool: &ComputePool, logits: &[f32], draws: &[(Draw<'_>, u64)]) -> Vec<Option<Drawn>> {
    if draws.is_empty() {
        return Vec::new();
    }
    assert!(!logits.is_empty() && logits.len().is_multiple_of(draws.len()), "one row for each draw");
    let (isa, width) = (Isa::best(), logits.len() / draws.len());
    let drawn: Vec<OnceLock<Option<Drawn>>> = draws.iter().map(|_| OnceLock::new()).collect();
    let one = |row: usize| {
        let (draw, position) = &draws[row];
        let token = draw.choose(isa, &logits[row * width..][..width], *position);
        drawn[row].set(token).expect("each row is one task");
    };
    if logits.len() < PARALLEL_MIN {
        (0..draws.len()).for_each(one);
    } else {
        pool.enter(|| pool.each(draws.len(), one));
    }
    drawn.into_iter().map(|token| token.into_inner().expect("all tasks are done")).collect()
}

/// Returns the seed of one of several answers to a prompt: the first 8 bytes of the BLAKE3 digest of a tag,
/// the request's seed and the answer's index. Without a digest, answer 1 of one seed would be answer 0 of the
/// next. The index counts candidates, so an answer does not depend on their number.
#[must_use]
pub fn choice_seed(seed: u64, index: u64) -> u64 {
    let bytes = [b"quorate choice 1".as_slice(), &seed.to_le_bytes(), &index.to_le_bytes()].concat();
    let digest = Digest::of(&bytes).0;
    u64::from_le_bytes(*digest.first_chunk().expect("a digest has 32 bytes"))
}

impl Draw<'_> {
    /// Draws the token for `position` from one row of logits, by the rules of the request; see [`sample`].
    #[must_use]
    pub fn choose(&self, isa: Isa, logits: &[f32], position: u64) -> Option<Drawn> {
        let token = match self.rules {
            None => sample(isa, logits, &self.sampling, position)?,
            Some(rules) => {
                let mut row = logits.to_vec();
                rules.apply(&mut row);
                sample(isa, &row, &self.sampling, position)?
            }
        };
        Some(Drawn { token, logprobs: self.logprobs.map(|top| logprobs(logits, token, top)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::sampling::{Sampling, uniform};

    const GOLDEN: [u64; 4] = [
        10_543_958_579_394_287_895,
        7_804_361_919_361_940_550,
        2_120_060_723_773_874_535,
        9_975_014_045_077_066_458,
    ];

    /// A change of these numbers changes every seeded answer: it belongs in the changelog.
    #[test]
    fn seeds_of_choices_are_fixed_and_their_own() {
        assert_eq!(
            [(0, 0), (0, 1), (1, 0), (u64::MAX, 127)].map(|(seed, index)| choice_seed(seed, index)),
            GOLDEN
        );
        let mut seeds = std::collections::BTreeSet::new();
        for seed in (0..500).chain(u64::MAX - 500..=u64::MAX) {
            (0..128).for_each(|index| assert!(seeds.insert(choice_seed(seed, index)), "{seed} {index}"));
        }
    }

    #[test]
    fn rows_are_sampled_alike_on_any_number_of_threads() {
        let (rows, width) = (7, 6000);
        let logits: Vec<f32> = (0..rows * width).map(|index| uniform(3, index as u64) as f32 * 9.0).collect();
        let draws: Vec<(Draw<'_>, u64)> = (0..rows as u64)
            .map(|row| {
                let sampling = Sampling { temperature: row as f32 / 3.0, top_p: 0.95, seed: row };
                (Draw { sampling, rules: None, logprobs: None, prompt: 1 }, 40 + row)
            })
            .collect();
        let expected: Vec<Option<Drawn>> = draws
            .iter()
            .zip(logits.chunks_exact(width))
            .map(|((draw, position), row)| sample(Isa::best(), row, &draw.sampling, *position))
            .map(|token| Some(Drawn { token: token?, logprobs: None }))
            .collect();
        assert!(logits.len() >= PARALLEL_MIN, "more than one thread has work");
        for threads in [1, 2, 5] {
            assert_eq!(
                sample_rows(&ComputePool::new(threads), &logits, &draws),
                expected,
                "{threads} threads"
            );
        }
        assert_eq!(sample_rows(&ComputePool::new(2), &[], &[]), []);
    }
}
