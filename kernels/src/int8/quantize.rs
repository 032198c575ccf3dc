//! Quantisation of weights: the nearest multiple of a group's scale, ties to even.

use super::{GROUP, GROUP_BYTES, MOST, PANEL, QUAD, QuantizedMatrix, WEIGHT_BYTES, ZERO};
use crate::matmul::{Matrix, copy_row};
use half::f16;

/// Quantises a matrix. Rows and inputs that fill the last panel and group up are zero.
///
/// The scale of an output in a group is its largest absolute weight over 127, rounded to an f16. A group
/// whose weights are too small for that is zero.
#[must_use]
pub fn quantize(matrix: &Matrix<'_>) -> Vec<u8> {
    let mut bytes = vec![0; QuantizedMatrix::size(matrix.outputs, matrix.inputs)];
    let mut row = vec![0.0; matrix.inputs];
    let panel_bytes = matrix.inputs.div_ceil(GROUP) * GROUP_BYTES;
    for (panel, bytes) in bytes.chunks_exact_mut(panel_bytes.max(1)).enumerate() {
        bytes.chunks_exact_mut(GROUP_BYTES).for_each(|group| group[..WEIGHT_BYTES].fill(ZERO));
        for output in panel * PANEL..matrix.outputs.min((panel + 1) * PANEL) {
            copy_row(matrix, output, &mut row);
            for (group, weights) in bytes.chunks_exact_mut(GROUP_BYTES).zip(row.chunks(GROUP)) {
                quantize_group(weights, output % PANEL, group);
            }
        }
    }
    bytes
}

/// Quantises the weights of one output in one group.
fn quantize_group(weights: &[f32], lane: usize, group: &mut [u8]) {
    let most = weights.iter().fold(0.0_f32, |most, weight| most.max(weight.abs()));
    let scale = f16::from_f32(most / MOST);
    let at = WEIGHT_BYTES + 2 * lane;
    group[at..at + 2].copy_from_slice(&scale.to_le_bytes());
    let scale = scale.to_f32();
    for (at, weight) in weights.iter().enumerate() {
        let steps = if scale > 0.0 { (weight / scale).round_ties_even().clamp(-MOST, MOST) } else { 0.0 };
        let stored = steps as i32 + i32::from(ZERO);
        group[at / QUAD * PANEL * QUAD + lane * QUAD + at % QUAD] = stored as u8;
    }
}
