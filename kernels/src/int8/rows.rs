//! Quantised activations: rows of groups of 32 integers from -127 to 127, each group with its scale.

use super::{GROUP, MOST, ZERO};
use crate::pool::{ComputePool, Parts};
use crate::{Isa, kernel};
use std::ops::Range;

/// Added to a number of at most 2^22, this leaves its nearest integer, ties to even, in the lowest bits:
/// 1.5 * 2^23 has a step of 1.
const ROUNDING: f32 = 12_582_912.0;
/// Bits of an f32 without its sign.
const MAGNITUDE: u32 = 0x7fff_ffff;
/// Rows of fewer elements are quantised on one thread.
const PARALLEL_MIN: usize = 1 << 16;

/// Rows of activations.
#[derive(Debug, Default)]
pub(super) struct QuantizedRows {
    rows: usize,
    /// Groups of a row.
    groups: usize,
    /// The integers; those beyond the last input of a row are zero.
    values: Vec<i8>,
    /// Of each group: its scale.
    scales: Vec<f32>,
    /// Of each group: the sum of its integers, times the stored value of a weight of zero, negated.
    starts: Vec<i32>,
}

/// Some of the rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowBlock<'a> {
    pub(super) groups: usize,
    pub(super) values: &'a [i8],
    pub(super) scales: &'a [f32],
    pub(super) starts: &'a [i32],
}

impl RowBlock<'_> {
    /// Checks that there are so many rows.
    pub(super) fn check(&self, rows: usize) {
        let all = rows * self.groups;
        assert!(rows > 0, "rows of these groups");
        assert_eq!(self.values.len(), all * GROUP, "integers of each group");
        assert!(self.scales.len() == all && self.starts.len() == all, "a scale of each group");
    }
}

impl QuantizedRows {
    pub(super) const fn new() -> Self {
        Self { rows: 0, groups: 0, values: Vec::new(), scales: Vec::new(), starts: Vec::new() }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn part(&self, rows: Range<usize>) -> RowBlock<'_> {
        let groups = rows.start * self.groups..rows.end * self.groups;
        RowBlock {
            groups: self.groups,
            values: &self.values[groups.start * GROUP..groups.end * GROUP],
            scales: &self.scales[groups.clone()],
            starts: &self.starts[groups],
        }
    }

    /// Quantises these rows of `inputs` elements in place of those before.
    pub(super) fn fill(&mut self, isa: Isa, pool: &ComputePool, input: &[f32], rows: usize, inputs: usize) {
        let groups = inputs.div_ceil(GROUP);
        (self.rows, self.groups) = (rows, groups);
        self.values.resize(rows * groups * GROUP, 0);
        self.scales.resize(rows * groups, 0.0);
        self.starts.resize(rows * groups, 0);
        if groups == 0 {
            return;
        }
        let (values, scales) = (Parts::new(&mut self.values), Parts::new(&mut self.scales));
        let starts = Parts::new(&mut self.starts);
        let one = |row: usize| {
            let of_row = row * groups..(row + 1) * groups;
            // SAFETY: one task has this row.
            let parts = unsafe {
                let values = values.part(of_row.start * GROUP..of_row.end * GROUP);
                (values, scales.part(of_row.clone()), starts.part(of_row))
            };
            quantize_row(isa, &input[row * inputs..][..inputs], parts.0, parts.1, parts.2);
        };
        if rows * inputs < PARALLEL_MIN {
            (0..rows).for_each(one);
        } else {
            pool.each(rows, one);
        }
    }
}

kernel! {
    /// Quantises one row. A group with a number that is not finite gets a scale that is not.
    fn quantize_row(input: &[f32], values: &mut [i8], scales: &mut [f32], starts: &mut [i32]) {
        let (whole, rest) = input.as_chunks::<GROUP>();
        let mut last = [0.0; GROUP];
        last[..rest.len()].copy_from_slice(rest);
        let groups = whole.iter().chain(std::iter::once(&last));
        let values = values.as_chunks_mut::<GROUP>().0.iter_mut();
        for (((group, values), scale), start) in groups.zip(values).zip(scales).zip(starts) {
            (*scale, *start) = quantize_group(group, values);
        }
    }
}

/// Lanes in which a group is computed.
const LANES: usize = 16;

/// Quantises a group; returns its scale, and its sum times the stored value of a weight of zero, negated.
#[inline(always)]
fn quantize_group(group: &[f32; GROUP], values: &mut [i8; GROUP]) -> (f32, i32) {
    // The bits of non-negative numbers are ordered as they are, with infinity and then NaN last.
    let mut most = [0_u32; LANES];
    for half in group.as_chunks::<LANES>().0 {
        most.iter_mut().zip(half).for_each(|(most, value)| *most = (value.to_bits() & MAGNITUDE).max(*most));
    }
    let most = f32::from_bits(fold(most, u32::max));
    let steps = MOST / most;
    // Of numbers that are as good as zero the quotient is infinite, and not to be multiplied by.
    let steps = if steps.is_finite() { steps } else { 0.0 };
    let mut sums = [0_i32; LANES];
    for (half, values) in group.as_chunks::<LANES>().0.iter().zip(values.as_chunks_mut::<LANES>().0) {
        let mut rounded = [0_i32; LANES];
        for (rounded, value) in rounded.iter_mut().zip(half) {
            *rounded = (value * steps + ROUNDING).to_bits().wrapping_sub(ROUNDING.to_bits()) as i32;
        }
        values.iter_mut().zip(&rounded).for_each(|(value, rounded)| *value = *rounded as i8);
        sums.iter_mut().zip(&rounded).for_each(|(sum, rounded)| *sum = sum.wrapping_add(*rounded));
    }
    (most / MOST, fold(sums, i32::wrapping_add).wrapping_mul(-i32::from(ZERO)))
}

/// Folds lanes as a tree.
#[inline(always)]
fn fold<T: Copy>(mut lanes: [T; LANES], with: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = with(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}
