//! Sampling: chooses the next token from logits.
//!
//! Stop conditions are elsewhere. There is no generator state: the random number for a position is a function
//! of (seed, position). A stream that is continued on another worker, or replayed, therefore draws the same
//! tokens.
//!
//! The definition is a sort: tokens by descending weight, ties by ascending id, cut after `top_p` of the
//! mass, and of the rest the token at which the sum of weights passes the random number. The computation
//! sorts one bucket of similar weights at most, in time linear in the vocabulary. Weights are summed as
//! integers, so no sum depends on its order.

use super::{Isa, LANES, elementwise};
use std::cell::RefCell;

/// Sampling parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token; 1 samples from the model's own distribution. Finite, not negative.
    pub temperature: f32,
    /// Probability mass of the smallest set of most likely tokens to sample from. Within (0, 1].
    pub top_p: f32,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// Bits of a weight below those that name its bucket: a bucket spans a thirty-second of an octave.
const BUCKET_SHIFT: u32 = 18;
/// Buckets of weights from 0 to 1.
const BUCKETS: usize = (1.0_f32.to_bits() >> BUCKET_SHIFT) as usize + 1;
/// Bits of a random number.
const RANDOM_BITS: u32 = 53;

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        const { RefCell::new(Scratch { weights: Vec::new(), mass: Vec::new(), members: Vec::new() }) };
}

/// Reused memory of one thread.
#[derive(Debug)]
struct Scratch {
    weights: Vec<f32>,
    /// Sum of the weights in each bucket.
    mass: Vec<u64>,
    /// Weights, as bits, and tokens of one bucket.
    members: Vec<(u32, u32)>,
}

/// Samples the token for `position` of a sequence from one row of logits. A row with a NaN, or whose highest
/// logit is infinite, has no distribution: `None`.
///
/// # Panics
/// If `logits` is empty.
#[must_use]
pub fn sample(isa: Isa, logits: &[f32], sampling: &Sampling, position: u64) -> Option<u32> {
    assert!(!logits.is_empty(), "a vocabulary has tokens");
    assert!(
        sampling.temperature.is_finite() && !sampling.top_p.is_nan(),
        "checked when the request was parsed"
    );
    let highest = highest(logits)?;
    if sampling.temperature <= 0.0 {
        return logits.iter().position(|logit| *logit == highest).map(|token| token as u32);
    }
    let random = random(sampling.seed, position);
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.weigh(isa, logits, highest, sampling.temperature);
        let total: u64 = scratch.mass.iter().sum();
        let kept = match sampling.top_p {
            whole if whole >= 1.0 => total,
            share => scratch.at_mass(share_of(total, share)).1,
        };
        let below = (u128::from(kept) * u128::from(random)) >> RANDOM_BITS;
        Some(scratch.at_mass(below as u64 + 1).0)
    })
}

/// Returns the smallest mass that is `share` of the total, at least 1.
fn share_of(total: u64, share: f32) -> u64 {
    let one = 1_u128 << RANDOM_BITS;
    let share = (f64::from(share.max(0.0)) * one as f64) as u128;
    ((u128::from(total) * share).div_ceil(one) as u64).max(1)
}

/// Returns the highest logit; `None` where one is NaN or the highest is infinite.
fn highest(logits: &[f32]) -> Option<f32> {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut are_nan = [false; LANES];
    for chunk in logits.chunks(LANES) {
        for ((highest, is_nan), logit) in lanes.iter_mut().zip(&mut are_nan).zip(chunk) {
            *highest = if *logit > *highest { *logit } else { *highest };
            *is_nan |= logit.is_nan();
        }
    }
    let highest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    (highest.is_finite() && !are_nan.contains(&true)).then_some(highest)
}

/// Returns a weight of at most 1 as an integer. A vocabulary of such integers sums to less than 2^62.
fn mass_of(weight: f32, vocabulary: usize) -> u64 {
    let bits = usize::BITS - vocabulary.leading_zeros();
    (f64::from(weight) * (1_u64 << (62 - bits)) as f64) as u64
}

impl Scratch {
    /// Computes the weight of each token and the mass of each bucket.
    fn weigh(&mut self, isa: Isa, logits: &[f32], highest: f32, temperature: f32) {
        self.weights.clear();
        self.weights.resize(logits.len(), 0.0);
        elementwise::exponentials(isa, logits, highest, temperature, &mut self.weights);
        self.mass.clear();
        self.mass.resize(BUCKETS, 0);
        for weight in &self.weights {
            self.mass[(weight.to_bits() >> BUCKET_SHIFT) as usize] += mass_of(*weight, logits.len());
        }
    }

    /// Returns the first token, by descending weight and ascending id, at which the sum of masses reaches
    /// `wanted`, and that sum. `wanted` is at least 1 and at most the total.
    fn at_mass(&mut self, wanted: u64) -> (u32, u64) {
        let mut sum = 0;
        let mut index = BUCKETS - 1;
        while sum + self.mass[index] < wanted {
            sum += self.mass[index];
            index -= 1;
        }
        let members = self.weights.iter().enumerate().filter_map(|(token, weight)| {
            let bits = weight.to_bits();
            ((bits >> BUCKET_SHIFT) as usize == index).then_some((bits, token as u32))
        });
        self.members.clear();
        self.members.extend(members);
        // Ties are broken by token id, so that the order is the same on every machine.
        self.members.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        for (bits, token) in &self.members {
            sum += mass_of(f32::from_bits(*bits), self.weights.len());
            if sum >= wanted {
                return (*token, sum);
            }
        }
        unreachable!("the masses of a bucket's members are its mass");
    }
}

/// Returns [`RANDOM_BITS`] bits that depend only on the arguments. It applies two rounds of SplitMix64's
/// finaliser (Steele, Lea, Flood 2014), whose output passes the usual test batteries for counters.
fn random(seed: u64, position: u64) -> u64 {
    mix(mix(seed).wrapping_add(position.wrapping_mul(0x9e37_79b9_7f4a_7c15))) >> (64 - RANDOM_BITS)
}

/// Returns a number in [0, 1) that depends only on its arguments.
#[must_use]
pub fn uniform(seed: u64, position: u64) -> f64 {
    random(seed, position) as f64 / (1_u64 << RANDOM_BITS) as f64
}

fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::exp;
    use proptest::prelude::*;

    fn draw(logits: &[f32], temperature: f32, top_p: f32, count: u64) -> Vec<u32> {
        let sampling = Sampling { temperature, top_p, seed: 7 };
        (0..count).map(|position| sampled(logits, &sampling, position)).collect()
    }

    fn sampled(logits: &[f32], sampling: &Sampling, position: u64) -> u32 {
        sample(Isa::best(), logits, sampling, position).expect("numbers")
    }

    /// Samples by the definition: sorts the vocabulary, in double precision.
    fn sorted(logits: &[f32], sampling: &Sampling, position: u64) -> u32 {
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if sampling.temperature <= 0.0 {
            return logits.iter().position(|logit| *logit == highest).expect("one is the highest") as u32;
        }
        let mut weights: Vec<(f32, u32)> = (0_u32..)
            .zip(logits)
            .map(|(token, logit)| (exp((logit - highest) / sampling.temperature), token))
            .collect();
        let total: f64 = weights.iter().map(|(weight, _)| f64::from(*weight)).sum();
        let wanted = total * f64::from(sampling.top_p.clamp(0.0, 1.0));
        weights.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut kept = 0.0;
        let mut count = 0;
        for (weight, _) in &weights {
            kept += f64::from(*weight);
            count += 1;
            if kept >= wanted {
                break;
            }
        }
        let mut threshold = uniform(sampling.seed, position) * kept;
        for (weight, token) in &weights[..count] {
            threshold -= f64::from(*weight);
            if threshold < 0.0 {
                return *token;
            }
        }
        weights[count - 1].1
    }

    fn rows_of_logits() -> impl Strategy<Value = Vec<f32>> {
        prop_oneof![
            prop::collection::vec(-20.0_f32..20.0, 1..600),
            // Many ties, of which the lowest ids win.
            prop::collection::vec((-3_i8..3).prop_map(f32::from), 1..600),
            // Nearly flat, as random weights produce: the token is deep in the order.
            prop::collection::vec(0.0_f32..0.01, 500..3000),
        ]
    }

    proptest! {
        #[test]
        fn a_token_is_that_of_the_plain_sort(
            logits in rows_of_logits(),
            temperature in prop_oneof![Just(0.0_f32), Just(1.0), 0.05_f32..2.0],
            top_p in prop_oneof![Just(1.0_f32), Just(f32::MIN_POSITIVE), 0.01_f32..1.0],
            seed in any::<u64>(),
        ) {
            let sampling = Sampling { temperature, top_p, seed };
            for position in 0..20 {
                let expected = sorted(&logits, &sampling, position);
                for isa in Isa::available() {
                    prop_assert_eq!(sample(isa, &logits, &sampling, position), Some(expected));
                }
            }
        }
    }

    #[test]
    fn a_draw_sorts_a_small_part_of_the_vocabulary() {
        let logits: Vec<f32> = (0..128_256).map(|token| uniform(9, token) as f32 * 12.0).collect();
        for (position, top_p) in [(0, 1.0), (1, 1.0), (2, 0.9), (3, 0.5)] {
            let sampling = Sampling { temperature: 1.0, top_p, seed: 5 };
            assert_eq!(sampled(&logits, &sampling, position), sorted(&logits, &sampling, position));
            let members = SCRATCH.with_borrow(|scratch| scratch.members.len());
            assert!(members < logits.len() / 50, "{members} tokens are sorted at {top_p}");
        }
    }

    #[test]
    fn a_row_without_a_distribution_has_no_token() {
        let greedy = Sampling { temperature: 0.0, top_p: 1.0, seed: 0 };
        for sampling in [greedy, Sampling { temperature: 1.0, ..greedy }] {
            for bad in [f32::NAN, f32::INFINITY] {
                assert_eq!(sample(Isa::best(), &[1.0, bad, 3.0], &sampling, 0), None, "{bad}");
            }
            assert_eq!(sample(Isa::best(), &[f32::NEG_INFINITY; 3], &sampling, 0), None);
            assert_eq!(sample(Isa::best(), &[f32::NEG_INFINITY, 2.0], &sampling, 0), Some(1));
        }
    }

    #[test]
    fn zero_temperature_takes_the_highest_logit_and_the_lowest_id_among_equals() {
        assert_eq!(draw(&[0.0, 3.0, 3.0, 1.0], 0.0, 1.0, 1), [1]);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let drawn = draw(&[0.0, 1.0_f32.ln() + 2.0_f32.ln(), 0.0], 1.0, 1.0, 20_000);
        let share = drawn.iter().filter(|token| **token == 1).count() as f64 / 20_000.0;
        assert!((share - 0.5).abs() < 0.02, "{share}");
    }

    #[test]
    fn top_p_keeps_the_smallest_sufficient_set() {
        // Probabilities 0.5, 0.3, 0.2.
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        assert!(draw(&logits, 1.0, 0.4, 500).iter().all(|token| *token == 0));
        assert!(draw(&logits, 1.0, 0.7, 500).iter().all(|token| *token <= 1));
        assert!(draw(&logits, 1.0, 1.0, 500).contains(&2));
    }

    #[test]
    fn the_same_seed_and_position_draw_the_same() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.37).sin()).collect();
        assert_eq!(draw(&logits, 1.0, 0.9, 100), draw(&logits, 1.0, 0.9, 100));
        let other = Sampling { temperature: 1.0, top_p: 0.9, seed: 8 };
        let others: Vec<u32> = (0..100).map(|position| sampled(&logits, &other, position)).collect();
        assert_ne!(draw(&logits, 1.0, 0.9, 100), others);
    }

    #[test]
    fn uniform_is_uniform() {
        let numbers: Vec<f64> = (0..10_000).map(|position| uniform(1, position)).collect();
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        let mean = numbers.iter().sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }
}
