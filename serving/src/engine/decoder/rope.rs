//! Tables of rotary embeddings: cosines and sines of every position's angles.

use super::super::config::{Rotary, RotaryScaling, RotaryStretch, Yarn};
use std::f64::consts::PI;

/// Computes cosines and sines of every position's angles in double precision, rounded once: rows of half a
/// head.
pub(in crate::engine) fn rope(rotary: &Rotary, head_width: usize, positions: usize) -> (Vec<f32>, Vec<f32>) {
    let half = head_width / 2;
    let frequencies: Vec<f64> = (0..half).map(|index| frequency(rotary, head_width, index)).collect();
    let magnitude = match rotary.scaling {
        RotaryScaling::Yarn(yarn) => yarn.magnitude,
        _ => 1.0,
    };
    let angle = |index: usize| (index / half) as f64 * frequencies[index % half];
    let cosines = (0..positions * half).map(|index| (angle(index).cos() * magnitude) as f32).collect();
    let sines = (0..positions * half).map(|index| (angle(index).sin() * magnitude) as f32).collect();
    (cosines, sines)
}

/// Returns the angle by which a pair of elements turns from one position to the next.
fn frequency(rotary: &Rotary, head_width: usize, index: usize) -> f64 {
    let frequency = rotary.theta.powf(-(2.0 * index as f64) / head_width as f64);
    match &rotary.scaling {
        RotaryScaling::None => frequency,
        RotaryScaling::Linear { factor } => frequency / factor,
        RotaryScaling::Llama3(stretch) => {
            let kept = kept_of_llama(stretch, frequency);
            frequency * (kept + (1.0 - kept) / stretch.factor)
        }
        RotaryScaling::Yarn(yarn) => {
            let kept = kept_of_yarn(yarn, rotary.theta, head_width, index);
            frequency * (kept + (1.0 - kept) / yarn.factor)
        }
    }
}

/// Returns the share of a frequency that Llama 3's scaling keeps.
fn kept_of_llama(stretch: &RotaryStretch, frequency: f64) -> f64 {
    let wave = 2.0 * PI / frequency;
    let turns = stretch.original_context / wave;
    let span = stretch.high_frequency_factor - stretch.low_frequency_factor;
    ((turns - stretch.low_frequency_factor) / span).clamp(0.0, 1.0)
}

/// Returns the share of a pair's frequency that YaRN keeps.
fn kept_of_yarn(yarn: &Yarn, theta: f64, head_width: usize, index: usize) -> f64 {
    let width = head_width as f64;
    // The index of the pair that turns this many times within the original context.
    let index_of =
        |turns: f64| width * (yarn.original_context / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (index_of(yarn.turns_fast), index_of(yarn.turns_slow));
    if yarn.is_truncated {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(width - 1.0));
    if low == high {
        // As in the published code: a step instead of a division by zero.
        high += 0.001;
    }
    1.0 - ((index as f64 - low) / (high - low)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(scaling: RotaryScaling) -> Vec<f64> {
        let rotary = Rotary { theta: 10_000.0, scaling };
        (0..8).map(|index| frequency(&rotary, 16, index)).collect()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found / expected - 1.0).abs() < 1e-9, "{found} {expected}");
        }
    }

    #[test]
    fn each_scaling_stretches_its_wavelengths() {
        let plain = frequencies(RotaryScaling::None);
        let powers: Vec<f64> = (0..8).map(|index| 10.0_f64.powf(-f64::from(index) / 2.0)).collect();
        assert_close(&plain, &powers);
        let linear = frequencies(RotaryScaling::Linear { factor: 4.0 });
        assert_close(&linear, &plain.iter().map(|x| x / 4.0).collect::<Vec<_>>());
        let llama = frequencies(RotaryScaling::Llama3(RotaryStretch {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 64.0,
        }));
        // Turns within 64 positions: 10.2 and 3.2 of the first two pairs, and 1.02 of the third.
        let turns = |index: usize| 64.0 * plain[index] / (2.0 * PI);
        let share = |index: usize| (turns(index) - 1.0) / 3.0;
        let stretched = |index: usize| plain[index] * (share(index) + (1.0 - share(index)) / 8.0);
        assert_close(&llama[..3], &[plain[0], stretched(1), stretched(2)]);
        assert_close(&llama[3..], &plain[3..].iter().map(|x| x / 8.0).collect::<Vec<_>>());
    }

    fn yarn(is_truncated: bool) -> Yarn {
        Yarn {
            factor: 4.0,
            turns_fast: 32.0,
            turns_slow: 1.0,
            original_context: 2048.0,
            magnitude: 1.5,
            is_truncated,
        }
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_stretches_slow_ones() {
        let plain = frequencies(RotaryScaling::None);
        // 16 * ln(2048 / (32 * 2 pi)) / (2 * ln 10000) is 2.016, and for one turn 5.026.
        let found = frequencies(RotaryScaling::Yarn(yarn(true)));
        let ramp = |kept: f64| kept + (1.0 - kept) / 4.0;
        let expected: Vec<f64> = [1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
            .into_iter()
            .zip(&plain)
            .map(|(kept, plain)| plain * ramp(kept))
            .collect();
        assert_close(&found, &expected);
        let exact = frequencies(RotaryScaling::Yarn(yarn(false)));
        assert!(exact[3] < found[3] && exact[5] < found[5], "the range is not rounded outwards");
        assert_close(&exact[..2], &plain[..2]);
    }

    #[test]
    fn tables_hold_the_angles_of_all_positions() {
        let rotary = Rotary { theta: 10_000.0, scaling: RotaryScaling::Yarn(yarn(true)) };
        let (cosines, sines) = rope(&rotary, 16, 5);
        assert_eq!((cosines.len(), sines.len()), (40, 40));
        assert_eq!(cosines[..8], [1.5; 8]);
        let angle = 4.0 * frequency(&rotary, 16, 3);
        assert_eq!(cosines[4 * 8 + 3], (angle.cos() * 1.5) as f32);
        assert_eq!(sines[4 * 8 + 3], (angle.sin() * 1.5) as f32);
    }
}
