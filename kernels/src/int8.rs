//! Products with weights of 8 bits.
//!
//! A matrix is divided into panels of 16 outputs, and a panel into groups of 32 inputs. Each output of a
//! group has a scale, an f16, and each weight is an integer from -127 to 127 times that scale. A panel is one
//! contiguous stream, in the order in which the innermost loop reads it.
//!
//! Activations are quantised in the same way, group by group, with f32 scales. The sum of products of a group
//! is an exact integer. Groups are added in ascending order, each by one fused multiply-add, so an output has
//! the same bits on every instruction set, alone or in a batch, on one thread or many.

mod dot;
mod quantize;
mod rows;

use crate::Isa;
use crate::elementwise::gelu;
use crate::matmul::{Activation, OutputColumns, Product};
use crate::pool::{ComputePool, Parts};
use dot::{PanelRows, ROWS, multiply, multiply_pair};
use rows::QuantizedRows;
use std::cell::RefCell;
use std::ops::Range;

pub use dot::IntegerIsa;
pub use quantize::quantize;

/// Outputs of a panel.
pub const PANEL: usize = 16;
/// Inputs that share a scale.
pub const GROUP: usize = 32;
/// Inputs whose products one instruction adds up.
const QUAD: usize = 4;
/// Bytes of the weights of a group of a panel: for each four inputs, those of all outputs in turn.
const WEIGHT_BYTES: usize = PANEL * GROUP;
/// Bytes of a group of a panel: its weights, each increased by 128, then its 16 scales.
pub const GROUP_BYTES: usize = WEIGHT_BYTES + 2 * PANEL;
/// Largest absolute value of a quantised number.
const MOST: f32 = 127.0;
/// Weight 0 as it is stored.
const ZERO: u8 = 128;
/// Weights of a task in bytes: enough that claiming it costs nothing, little enough that no thread waits.
const TASK_BYTES: usize = 64 * 1024;
/// Products with fewer multiply-adds run on one thread.
const PARALLEL_MIN: usize = 1 << 19;

thread_local! {
    static INPUT: RefCell<QuantizedRows> = const { RefCell::new(QuantizedRows::new()) };
}

/// A weight matrix of 8 bits in its panels.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedMatrix<'a> {
    bytes: &'a [u8],
    outputs: usize,
    inputs: usize,
}

impl<'a> QuantizedMatrix<'a> {
    /// Returns the matrix of so many outputs and inputs that these bytes hold.
    ///
    /// # Panics
    /// If the bytes are not as many as [`Self::size`] says.
    #[must_use]
    pub fn new(bytes: &'a [u8], outputs: usize, inputs: usize) -> Self {
        assert_eq!(bytes.len(), Self::size(outputs, inputs), "one group for each panel and 32 inputs");
        Self { bytes, outputs, inputs }
    }

    /// Returns the size of a matrix in bytes: 8.5 bits a weight, where panels and groups are full.
    #[must_use]
    pub fn size(outputs: usize, inputs: usize) -> usize {
        let [panels, groups, bytes] = Self::dimensions(outputs, inputs);
        panels * groups * bytes
    }

    /// Returns panels, groups of a panel, and bytes of a group: the shape of the stored tensor.
    #[must_use]
    pub fn dimensions(outputs: usize, inputs: usize) -> [usize; 3] {
        [outputs.div_ceil(PANEL), inputs.div_ceil(GROUP), GROUP_BYTES]
    }

    /// Returns the number of outputs.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Returns the number of inputs.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Returns the matrix of these outputs alone.
    ///
    /// # Panics
    /// If they are not outputs of the matrix, do not begin with a panel, or end within one that has more.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.outputs, "outputs of the matrix");
        let is_whole = rows.end.is_multiple_of(PANEL) || rows.end == self.outputs;
        assert!(rows.start.is_multiple_of(PANEL) && is_whole, "whole panels");
        let bytes = self.panel_bytes();
        let bytes = &self.bytes[rows.start / PANEL * bytes..rows.end.div_ceil(PANEL) * bytes];
        Self { bytes, outputs: rows.len(), ..*self }
    }

    /// Copies the weights of one output as f32: an embedding.
    pub fn copy_row(&self, output: usize, into: &mut [f32]) {
        assert!(output < self.outputs && into.len() == self.inputs, "the row exists and fits");
        let lane = output % PANEL;
        for (group, into) in self.panel(output / PANEL).chunks_exact(GROUP_BYTES).zip(into.chunks_mut(GROUP))
        {
            let scale = scale_of(group, lane);
            for (at, into) in into.iter_mut().enumerate() {
                let stored = group[at / QUAD * PANEL * QUAD + lane * QUAD + at % QUAD];
                *into = (i32::from(stored) - i32::from(ZERO)) as f32 * scale;
            }
        }
    }

    fn panel_bytes(&self) -> usize {
        self.inputs.div_ceil(GROUP) * GROUP_BYTES
    }

    fn panel(&self, panel: usize) -> &'a [u8] {
        let bytes = self.panel_bytes();
        &self.bytes[panel * bytes..][..bytes]
    }
}

/// Returns the index of the first group that has a scale which is no finite number, in the bytes of a matrix.
#[must_use]
pub fn first_not_finite(bytes: &[u8]) -> Option<usize> {
    let is_finite = |group: &[u8]| (0..PANEL).all(|lane| scale_of(group, lane).is_finite());
    bytes.chunks_exact(GROUP_BYTES).position(|group| !is_finite(group))
}

/// Returns the scale of an output in a group.
fn scale_of(group: &[u8], lane: usize) -> f32 {
    let at = WEIGHT_BYTES + 2 * lane;
    half::f16::from_le_bytes([group[at], group[at + 1]]).to_f32()
}

/// Operands of one product with a quantised matrix.
pub type QuantizedProduct<'a> = Product<'a, QuantizedMatrix<'a>>;

/// A matrix, and the columns of its results, among several that multiply the same rows.
#[derive(Debug, Clone, Copy)]
pub struct ProductPart<'a> {
    /// Weights to multiply by.
    pub weight: QuantizedMatrix<'a>,
    /// Initial value of each output's sum; `None` means zero.
    pub bias: Option<&'a [f32]>,
    /// All rows of the results, maybe those of several matrices side by side.
    pub values: Parts<'a>,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Index of the first column written.
    pub offset: usize,
}

/// Computes `target[r] = activation(bias + weight * input[r])` for each row of `input`, which is quantised
/// first.
pub fn matmul(isa: Isa, pool: &ComputePool, product: &QuantizedProduct<'_>, target: OutputColumns<'_>) {
    matmul_with((isa, IntegerIsa::within(isa)), pool, product, target);
}

fn matmul_with(
    isa: (Isa, IntegerIsa),
    pool: &ComputePool,
    product: &QuantizedProduct<'_>,
    OutputColumns { values, stride, offset }: OutputColumns<'_>,
) {
    let Product { input, rows, weight, bias, activation } = *product;
    let part = ProductPart { weight, bias, values: Parts::new(values), stride, offset };
    multiply_all(isa, pool, (input, rows), activation, &[part]);
}

/// Computes the products of the same rows and several matrices at once: the rows are quantised once, and
/// threads are woken once.
///
/// # Panics
/// If the matrices differ in their inputs, or columns of their results overlap.
pub fn matmul_all(isa: Isa, pool: &ComputePool, rows: (&[f32], usize), parts: &[ProductPart<'_>]) {
    multiply_all((isa, IntegerIsa::within(isa)), pool, rows, Activation::None, parts);
}

fn multiply_all(
    (isa, integers): (Isa, IntegerIsa),
    pool: &ComputePool,
    (input, rows): (&[f32], usize),
    activation: Activation,
    parts: &[ProductPart<'_>],
) {
    let Some(first) = parts.first() else { return };
    let inputs = first.weight.inputs;
    assert!(input.len() >= rows * inputs, "input has these rows");
    parts.iter().for_each(|part| part.check(rows, inputs));
    for (index, part) in parts.iter().enumerate() {
        assert!(parts[..index].iter().all(|other| part.is_apart_from(other)), "columns of their own");
    }
    let mut quantized = INPUT.take();
    quantized.fill(isa, pool, input, rows, inputs);
    let task = |part: &ProductPart<'_>, panels: Range<usize>| {
        let input = &quantized;
        ProductTask { isa, integers, part: *part, activation, input }.compute(panels);
    };
    let outputs: usize = parts.iter().map(|part| part.weight.outputs).sum();
    if rows * outputs * inputs < PARALLEL_MIN {
        parts.iter().for_each(|part| task(part, 0..part.panels()));
    } else {
        let at_once = (TASK_BYTES / first.weight.panel_bytes().max(1))
            .clamp(1, outputs.div_ceil(PANEL).div_ceil(4 * pool.count()));
        let ranges = |part: &ProductPart<'_>| {
            let panels = part.panels();
            (0..panels).step_by(at_once).map(move |first| first..panels.min(first + at_once))
        };
        let tasks: Vec<_> =
            parts.iter().flat_map(|part| ranges(part).map(move |panels| (part, panels))).collect();
        pool.each(tasks.len(), |index| task(tasks[index].0, tasks[index].1.clone()));
    }
    INPUT.set(quantized);
}

impl ProductPart<'_> {
    fn panels(&self) -> usize {
        self.weight.outputs.div_ceil(PANEL)
    }

    fn columns(&self) -> Range<usize> {
        self.offset..self.offset + self.weight.outputs
    }

    fn check(&self, rows: usize, inputs: usize) {
        assert_eq!(self.weight.inputs, inputs, "the same inputs");
        let has_rows = self.columns().end <= self.stride && self.values.length() >= rows * self.stride;
        assert!(has_rows, "target has these rows");
        assert!(self.bias.is_none_or(|bias| bias.len() == self.weight.outputs), "one bias per output");
    }

    /// Returns whether no element belongs to the results of both.
    fn is_apart_from(&self, other: &Self) -> bool {
        let (own, theirs) = (self.columns(), other.columns());
        let is_beside = self.values.is_same(&other.values) && self.stride == other.stride;
        (is_beside && (own.end <= theirs.start || theirs.end <= own.start))
            || self.values.is_apart_from(&other.values)
    }
}

struct ProductTask<'a> {
    isa: Isa,
    integers: IntegerIsa,
    part: ProductPart<'a>,
    activation: Activation,
    input: &'a QuantizedRows,
}

impl ProductTask<'_> {
    fn compute(&self, mut panels: Range<usize>) {
        if self.input.rows() >= ROWS {
            while panels.len() >= 2 {
                self.compute_pair(panels.start);
                panels.start += 2;
            }
        }
        panels.for_each(|panel| self.compute_panel(panel));
    }

    fn compute_panel(&self, panel: usize) {
        let (start, bytes) = (self.start_of(panel), self.part.weight.panel(panel));
        for rows in blocks(self.input.rows(), ROWS) {
            let mut sums = [start; ROWS];
            let sums = &mut sums[..rows.len()];
            let input = self.input.part(rows.clone());
            multiply(self.integers, PanelRows { panel: bytes, input }, sums);
            rows.zip(sums).for_each(|(row, sums)| self.store(panel, row, sums));
        }
    }

    /// Computes a panel and the next one, which read the activations once.
    fn compute_pair(&self, panel: usize) {
        let panels = [panel, panel + 1];
        let start = panels.map(|panel| self.start_of(panel));
        let bytes = panels.map(|panel| self.part.weight.panel(panel));
        for rows in blocks(self.input.rows(), ROWS) {
            let mut sums = [start; ROWS];
            let sums = &mut sums[..rows.len()];
            multiply_pair(self.integers, bytes, self.input.part(rows.clone()), sums);
            for (row, sums) in rows.zip(sums) {
                panels.into_iter().zip(sums).for_each(|(panel, sums)| self.store(panel, row, sums));
            }
        }
    }

    fn outputs_of(&self, panel: usize) -> Range<usize> {
        panel * PANEL..self.part.weight.outputs.min((panel + 1) * PANEL)
    }

    /// Returns the initial values of a panel's sums.
    fn start_of(&self, panel: usize) -> [f32; PANEL] {
        let (mut start, outputs) = ([0.0; PANEL], self.outputs_of(panel));
        if let Some(bias) = self.part.bias {
            start[..outputs.len()].copy_from_slice(&bias[outputs]);
        }
        start
    }

    fn store(&self, panel: usize, row: usize, sums: &mut [f32; PANEL]) {
        if self.activation == Activation::Gelu {
            gelu(self.isa, sums);
        }
        let outputs = self.outputs_of(panel);
        let at = row * self.part.stride + self.part.offset + outputs.start;
        // SAFETY: one task alone has this panel, whose columns of this row these are.
        let target = unsafe { self.part.values.part(at..at + outputs.len()) };
        match target.as_mut_array::<PANEL>() {
            // A copy of a length that the compiler knows is one instruction.
            Some(whole) => *whole = *sums,
            None => target.copy_from_slice(&sums[..outputs.len()]),
        }
    }
}

/// Returns blocks of at most `most` rows, of nearly equal height.
fn blocks(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = rows.div_ceil(most);
    (0..count).map(move |block| block * rows / count..(block + 1) * rows / count)
}

#[cfg(test)]
mod tests;
