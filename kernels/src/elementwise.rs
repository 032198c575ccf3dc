//! Elementwise and row kernels, everything but matrix products: norms, activations, softmax, rotation.
//!
//! Sums run over sixteen lanes (element index modulo sixteen) and are then added as a fixed tree. A row's
//! result therefore depends on the row alone.

use super::{LANES, kernel, math};

/// Returns the sum of a row: sixteen lanes, then a tree.
#[inline(always)]
fn sum(row: &[f32], value: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let mut chunks = row.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += value(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += value(*x);
    }
    tree(lanes)
}

#[inline(always)]
fn tree(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

kernel! {
    /// Computes `rows[r] = norm(rows[r] + residual[r]) * scale + shift`, each row as wide as `scale`. An
    /// empty residual counts as zeros.
    pub fn layer_norm(rows: &mut [f32], residual: &[f32], scale: &[f32], shift: &[f32], epsilon: f32) {
        let width = scale.len();
        assert!(shift.len() == width && rows.len().is_multiple_of(width), "whole rows, one shift per column");
        assert!(residual.is_empty() || residual.len() == rows.len(), "a residual for each element");
        for (index, row) in rows.chunks_exact_mut(width).enumerate() {
            if !residual.is_empty() {
                for (x, r) in row.iter_mut().zip(&residual[index * width..][..width]) {
                    *x += r;
                }
            }
            let mean = sum(row, |x| x) / width as f32;
            let variance = sum(row, |x| (x - mean) * (x - mean)) / width as f32;
            let inverse = 1.0 / (variance + epsilon).sqrt();
            for ((x, scale), shift) in row.iter_mut().zip(scale).zip(shift) {
                *x = ((*x - mean) * inverse).mul_add(*scale, *shift);
            }
        }
    }
}

kernel! {
    /// Computes `out[r] = rows[r] / root_mean_square(rows[r]) * scale`.
    pub fn rms_norm(rows: &[f32], scale: &[f32], epsilon: f32, out: &mut [f32]) {
        let width = scale.len();
        assert!(rows.len() == out.len() && rows.len().is_multiple_of(width), "whole rows, and results");
        for (row, out) in rows.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let mean = sum(row, |x| x * x) / width as f32;
            let inverse = 1.0 / (mean + epsilon).sqrt();
            for ((out, x), scale) in out.iter_mut().zip(row).zip(scale) {
                *out = x * inverse * scale;
            }
        }
    }
}

kernel! {
    /// Adds element by element: `to += from`.
    pub fn add(to: &mut [f32], from: &[f32]) {
        assert_eq!(to.len(), from.len(), "one summand per element");
        for (to, from) in to.iter_mut().zip(from) {
            *to += from;
        }
    }
}

kernel! {
    /// Computes `gate = silu(gate) * up`.
    pub fn silu_multiply(gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "one factor per gate");
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = math::silu(*gate) * up;
        }
    }
}

kernel! {
    /// Computes `gate = gelu(gate) * up`.
    pub fn gelu_multiply(gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "one factor per gate");
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = math::gelu(*gate) * up;
        }
    }
}

kernel! {
    /// Computes `gate = gelu_tanh(gate) * up`.
    pub fn gelu_tanh_multiply(gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "one factor per gate");
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = math::gelu_tanh(*gate) * up;
        }
    }
}

kernel! {
    /// Computes `to += from * factor`, element by element.
    pub fn add_scaled(to: &mut [f32], from: &[f32], factor: f32) {
        assert_eq!(to.len(), from.len(), "one summand per element");
        for (to, from) in to.iter_mut().zip(from) {
            *to += from * factor;
        }
    }
}

kernel! {
    /// Computes `row = cap * tanh(row * scale / cap)`, element by element: values stay between `-cap` and
    /// `cap`.
    pub fn soft_cap(row: &mut [f32], scale: f32, cap: f32) {
        for x in row.iter_mut() {
            *x = math::tanh(*x * scale / cap) * cap;
        }
    }
}

kernel! {
    /// Computes `row = softmax(row * scale)` over the first `valid` elements; the rest become 0.
    pub fn softmax(row: &mut [f32], valid: usize, scale: f32) {
        assert!((1..=row.len()).contains(&valid), "at least one element counts");
        let (row, masked) = row.split_at_mut(valid);
        masked.fill(0.0);
        let mut highest = [f32::NEG_INFINITY; LANES];
        let mut chunks = row.chunks_exact(LANES);
        for chunk in &mut chunks {
            for (highest, x) in highest.iter_mut().zip(chunk) {
                *highest = if *x > *highest { *x } else { *highest };
            }
        }
        for (highest, x) in highest.iter_mut().zip(chunks.remainder()) {
            *highest = if *x > *highest { *x } else { *highest };
        }
        let highest = highest.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
        for x in row.iter_mut() {
            *x = math::exp((*x - highest) * scale);
        }
        let inverse = 1.0 / sum(row, |x| x);
        for x in row.iter_mut() {
            *x *= inverse;
        }
    }
}

kernel! {
    /// Rotates one head by its position's angles: pairs are (i, i + half), as Llama checkpoints are stored.
    pub fn rotate(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
        debug_assert!(head.len() == 2 * cosines.len() && sines.len() == cosines.len(), "one angle per pair");
        let (low, high) = head.split_at_mut(cosines.len());
        for (((low, high), cosine), sine) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
            let (a, b) = (*low, *high);
            *low = a * cosine - b * sine;
            *high = b * cosine + a * sine;
        }
    }
}

kernel! {
    /// Scales a row to length 1; a row of zeros stays.
    pub fn normalize(row: &mut [f32]) {
        let length = sum(row, |x| x * x).sqrt();
        // The same floor as in sentence-transformers.
        let inverse = 1.0 / length.max(1e-12);
        for x in row.iter_mut() {
            *x *= inverse;
        }
    }
}

kernel! {
    /// Computes `out = exp((row - highest) / temperature)`, element by element.
    pub fn exponentials(row: &[f32], highest: f32, temperature: f32, out: &mut [f32]) {
        assert_eq!(row.len(), out.len(), "one result per element");
        for (out, x) in out.iter_mut().zip(row) {
            *out = math::exp((*x - highest) / temperature);
        }
    }
}

kernel! {
    /// Computes the mean of `rows`, each as wide as `out`.
    pub fn mean_rows(rows: &[f32], out: &mut [f32]) {
        let width = out.len();
        assert!(!rows.is_empty() && rows.len().is_multiple_of(width), "at least one row, and whole rows");
        out.fill(0.0);
        for row in rows.chunks_exact(width) {
            for (out, x) in out.iter_mut().zip(row) {
                *out += x;
            }
        }
        let inverse = 1.0 / (rows.len() / width) as f32;
        for x in out.iter_mut() {
            *x *= inverse;
        }
    }
}

kernel! {
    /// Applies [`math::gelu`] to every element.
    pub(super) fn gelu(row: &mut [f32]) {
        for x in row.iter_mut() {
            *x = math::gelu(*x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::*;
    use crate::sampling::uniform;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        (0..count).map(|i| uniform(seed, i as u64) as f32 * 8.0 - 4.0).collect()
    }

    /// Runs `compute` on every instruction set; asserts that all agree to the bit and returns the result.
    fn agreed(width: usize, compute: impl Fn(Isa, &mut [f32])) -> Vec<f32> {
        let mut results = Isa::available().into_iter().map(|isa| {
            let mut row = numbers(width, 5);
            compute(isa, &mut row);
            (isa.name(), row)
        });
        let (_, first) = results.next().expect("at least the portable one");
        for (name, other) in results {
            assert!(
                first.iter().zip(&other).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{name} at width {width}"
            );
        }
        first
    }

    #[test]
    fn all_instruction_sets_agree_and_match_double_precision() {
        for width in [1, 5, 16, 17, 96, 384] {
            let (scale, shift) = (numbers(width, 6), numbers(width, 7));
            let input: Vec<f64> = numbers(width, 5).into_iter().map(f64::from).collect();
            let close = |found: &[f32], expected: &[f64]| {
                for (found, expected) in found.iter().zip(expected) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error < 1e-5 * expected.abs().max(1.0), "{found} {expected} at width {width}");
                }
            };
            let mean = input.iter().sum::<f64>() / width as f64;
            let variance = input.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
            let expected: Vec<f64> = (0..width)
                .map(|i| {
                    (input[i] - mean) / (variance + 1e-3).sqrt() * f64::from(scale[i]) + f64::from(shift[i])
                })
                .collect();
            close(&agreed(width, |isa, row| layer_norm(isa, row, &[], &scale, &shift, 1e-3)), &expected);

            let square = input.iter().map(|x| x * x).sum::<f64>() / width as f64;
            let expected: Vec<f64> =
                (0..width).map(|i| input[i] / (square + 1e-5).sqrt() * f64::from(scale[i])).collect();
            close(
                &agreed(width, |isa, row| {
                    let input = row.to_vec();
                    rms_norm(isa, &input, &scale, 1e-5, row);
                }),
                &expected,
            );

            let total: f64 = input.iter().map(|x| (x * 0.5).exp()).sum();
            let expected: Vec<f64> = input.iter().map(|x| (x * 0.5).exp() / total).collect();
            close(&agreed(width, |isa, row| softmax(isa, row, row.len(), 0.5)), &expected);

            let expected: Vec<f64> = input.iter().map(|x| 3.0 * (x * 0.5 / 3.0).tanh()).collect();
            close(&agreed(width, |isa, row| soft_cap(isa, row, 0.5, 3.0)), &expected);

            let expected: Vec<f64> = (0..width).map(|i| input[i] + f64::from(scale[i]) * 0.75).collect();
            close(&agreed(width, |isa, row| add_scaled(isa, row, &scale, 0.75)), &expected);

            let root = (2.0 / std::f64::consts::PI).sqrt();
            let gelu = |x: f64| 0.5 * x * (1.0 + (root * (x + 0.044_715 * x.powi(3))).tanh());
            let expected: Vec<f64> = (0..width).map(|i| gelu(input[i]) * f64::from(scale[i])).collect();
            close(&agreed(width, |isa, row| gelu_tanh_multiply(isa, row, &scale)), &expected);

            let expected: Vec<f64> =
                (0..width).map(|i| f64::from(math::gelu(input[i] as f32)) * f64::from(scale[i])).collect();
            close(&agreed(width, |isa, row| gelu_multiply(isa, row, &scale)), &expected);
        }
    }

    #[test]
    fn masked_elements_do_not_touch_a_softmax() {
        let mut short = numbers(21, 5);
        softmax(Isa::best(), &mut short, 21, 1.0);
        let mut long = numbers(64, 5);
        softmax(Isa::best(), &mut long, 21, 1.0);
        assert!(short.iter().zip(&long).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert!(long[21..].iter().all(|x| *x == 0.0));
    }
}
