//! Sampling: chooses the next token from logits.
//!
//! Stop conditions are elsewhere. There is no generator state: the random number for a position is a function
//! of (seed, position). A stream that is continued on another worker, or replayed, therefore draws the same
//! tokens.

use super::kernels::math::exp;

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

/// Samples the token for `position` of a sequence from one row of logits.
///
/// # Panics
/// If `logits` is empty.
#[must_use]
pub fn sample(logits: &[f32], sampling: &Sampling, position: u64) -> u32 {
    assert!(!logits.is_empty(), "a vocabulary has tokens");
    assert!(
        sampling.temperature.is_finite() && !sampling.top_p.is_nan(),
        "checked when the request was parsed"
    );
    if sampling.temperature <= 0.0 {
        return argmax(logits);
    }
    let highest = logits[argmax(logits) as usize];
    let mut weights: Vec<(f32, u32)> = logits
        .iter()
        .enumerate()
        .map(|(token, logit)| (exp((logit - highest) / sampling.temperature), token as u32))
        .collect();
    let total: f64 = weights.iter().map(|(weight, _)| f64::from(*weight)).sum();
    let wanted = total * f64::from(sampling.top_p.clamp(0.0, 1.0));
    // Ties are broken by token id, so that the order is the same on every machine.
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

/// Returns the token with the highest logit, the lowest id among equals. NaN never wins.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] || logits[best].is_nan() {
            best = token;
        }
    }
    best as u32
}

/// Returns a number in [0, 1) that depends only on its arguments. It applies two rounds of SplitMix64's
/// finaliser (Steele, Lea, Flood 2014), whose output passes the usual test batteries for counters.
#[must_use]
pub fn uniform(seed: u64, position: u64) -> f64 {
    let word = mix(mix(seed).wrapping_add(position.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (word >> 11) as f64 / (1_u64 << 53) as f64
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

    fn draw(logits: &[f32], temperature: f32, top_p: f32, count: u64) -> Vec<u32> {
        let sampling = Sampling { temperature, top_p, seed: 7 };
        (0..count).map(|position| sample(logits, &sampling, position)).collect()
    }

    #[test]
    fn zero_temperature_takes_the_highest_logit_and_the_lowest_id_among_equals() {
        assert_eq!(draw(&[0.0, 3.0, 3.0, 1.0], 0.0, 1.0, 1), [1]);
        assert_eq!(draw(&[f32::NAN, -2.0, -1.0], 0.0, 1.0, 1), [2]);
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
        let others: Vec<u32> = (0..100).map(|position| sample(&logits, &other, position)).collect();
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
