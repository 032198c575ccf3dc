//! Matrix multiplication: activations times weights, with the weights used in place.
//!
//! The output is divided into panels of 32 columns. For each, a thread transposes the panel's weights into
//! its own scratch memory, then runs the innermost loop over all rows. Transposing is a percent or two of the
//! work from a hundred rows on, and about as fast as memory for a single row.

use super::element::ElementType;
use super::elementwise::gelu;
use super::micro::{COLUMNS, ROWS, Tile, multiply};
use super::pack::pack;
use super::pool::{ComputePool, Parts};
use super::{Isa, math};
use std::cell::RefCell;

/// Inputs per panel in one pass: 2048 rows of 32 f32 are 256 KiB, a quarter of a core's second-level cache.
const DEPTH_MAX: usize = 2048;
/// Products with fewer multiply-adds run on one thread: about 10 microseconds, the cost of waking another.
const PARALLEL_MIN: usize = 1 << 18;

thread_local! {
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A weight matrix as a checkpoint stores it: `outputs` rows of `inputs` elements.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// Little-endian elements; no alignment is assumed.
    pub bytes: &'a [u8],
    /// Type of the stored elements.
    pub element: ElementType,
    /// Number of rows.
    pub outputs: usize,
    /// Elements per row.
    pub inputs: usize,
}

impl<'a> Matrix<'a> {
    /// Builds a matrix over f32 in memory.
    #[must_use]
    pub fn from_f32(values: &'a [f32], outputs: usize, inputs: usize) -> Self {
        assert_eq!(values.len(), outputs * inputs, "one element per output and input");
        Self { bytes: bytes_of(values), element: ElementType::F32, outputs, inputs }
    }

    /// Returns the matrix of these rows alone.
    #[must_use]
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.outputs, "rows of the matrix");
        let row_bytes = self.inputs * self.element.size();
        let bytes = &self.bytes[rows.start * row_bytes..rows.end * row_bytes];
        Self { bytes, outputs: rows.len(), ..*self }
    }
}

/// Returns the bytes of f32 in memory. Little-endian machines only, like all engine code.
pub(super) fn bytes_of(values: &[f32]) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "checkpoints are little-endian") };
    // SAFETY: f32 has no padding and every byte of it may be read; same memory, same lifetime.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Activation function applied to each output element after its sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The identity.
    None,
    /// [`math::gelu`].
    Gelu,
}

/// Destination of results: columns `offset..offset + outputs` of rows that are `stride` long.
#[derive(Debug)]
pub struct OutputColumns<'a> {
    /// All rows.
    pub values: &'a mut [f32],
    /// Elements from one row to the next.
    pub stride: usize,
    /// Index of the first column written.
    pub offset: usize,
}

/// Operands of one multiplication by a matrix, stored in any form.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a, W = Matrix<'a>> {
    /// Rows of as many elements as the matrix has inputs, one after another.
    pub input: &'a [f32],
    /// Number of input rows.
    pub rows: usize,
    /// Weights to multiply by.
    pub weight: W,
    /// Initial value of each output's sum; `None` means zero.
    pub bias: Option<&'a [f32]>,
    /// Function applied to each sum.
    pub activation: Activation,
}

/// Computes `target[r] = activation(bias + weight * input[r])` for each row of `input`.
pub fn matmul(isa: Isa, pool: &ComputePool, product: &Product<'_>, target: OutputColumns<'_>) {
    let OutputColumns { values, stride, offset } = target;
    let Product { input, rows, weight, bias, .. } = *product;
    assert!(input.len() >= rows * weight.inputs, "input has these rows");
    assert!(offset + weight.outputs <= stride && values.len() >= rows * stride, "target has these rows");
    assert!(bias.is_none_or(|bias| bias.len() == weight.outputs), "one bias per output");
    if rows == 0 {
        return;
    }
    let job = MatmulTask { isa, product: *product, values: Parts::new(values), stride, offset };
    let panels = weight.outputs.div_ceil(COLUMNS);
    if rows * weight.outputs * weight.inputs < PARALLEL_MIN {
        (0..panels).for_each(|panel| job.compute_panel(panel));
    } else {
        pool.each(panels, |panel| job.compute_panel(panel));
    }
}

struct MatmulTask<'a> {
    isa: Isa,
    product: Product<'a>,
    values: Parts<'a>,
    stride: usize,
    offset: usize,
}

impl MatmulTask<'_> {
    fn compute_panel(&self, panel: usize) {
        let first = panel * COLUMNS;
        let columns = first..self.product.weight.outputs.min(first + COLUMNS);
        let mut bias = [0.0; COLUMNS];
        if let Some(all) = self.product.bias {
            bias[..columns.len()].copy_from_slice(&all[columns.clone()]);
        }
        PANEL.with_borrow_mut(|scratch| {
            let depth_max = self.product.weight.inputs.min(DEPTH_MAX);
            scratch.resize(scratch.len().max(depth_max * COLUMNS), 0.0);
            let mut depth_start = 0;
            while depth_start < self.product.weight.inputs {
                let inner = depth_start..self.product.weight.inputs.min(depth_start + DEPTH_MAX);
                let Matrix { bytes, element, inputs, .. } = self.product.weight;
                pack(self.isa, bytes, element, inputs, columns.clone(), inner.clone(), scratch);
                self.compute_rows(&columns, &inner, scratch, &bias);
                depth_start = inner.end;
            }
        });
    }

    /// Computes all rows of one panel, over a part of the inner dimension.
    fn compute_rows(
        &self,
        columns: &std::ops::Range<usize>,
        inner: &std::ops::Range<usize>,
        panel: &[f32],
        bias: &[f32; COLUMNS],
    ) {
        let is_first = inner.start == 0;
        let is_last = inner.end == self.product.weight.inputs;
        let is_whole = columns.len() == COLUMNS;
        let blocks = self.product.rows.div_ceil(ROWS);
        for block in 0..blocks {
            // Blocks of nearly equal height: 16 rows as 8 and 8, not 14 and 2.
            let row = block * self.product.rows / blocks;
            let rows = (block + 1) * self.product.rows / blocks - row;
            let at = row * self.stride + self.offset + columns.start;
            let last = at + (rows - 1) * self.stride + columns.len();
            assert!(
                (1..=ROWS).contains(&rows) && last <= self.values.length(),
                "the block lies in the target"
            );
            assert!(panel.len() >= inner.len() * COLUMNS, "the panel holds these inputs");
            let mut edge = [0.0; ROWS * COLUMNS];
            if !is_whole && !is_first {
                self.copy_edge(&mut edge, at, rows, columns.len(), false);
            }
            let (c, c_stride) =
                if is_whole { (self.values.address(at), self.stride) } else { (edge.as_mut_ptr(), COLUMNS) };
            let (start, start_stride) =
                if is_first { (bias.as_ptr(), 0) } else { (c.cast_const(), c_stride) };
            let a = self.product.input[row * self.product.weight.inputs + inner.start..].as_ptr();
            let tile = Tile {
                depth: inner.len(),
                rows,
                a,
                a_stride: self.product.weight.inputs,
                b: panel.as_ptr(),
                b_stride: COLUMNS,
                start,
                start_stride,
                c,
                c_stride,
            };
            // SAFETY: input and target rows were asserted to exist; the panel holds `inner.len()` rows of 32;
            // a whole panel is 32 columns of the target, written by no other task, else `edge` has room.
            unsafe { multiply(self.isa, tile) };
            if is_last && self.product.activation == Activation::Gelu {
                for row in 0..rows {
                    // SAFETY: `multiply` has just written these 32 elements of `edge` or of the target, which
                    // belong to this task alone; no other reference to them lives here.
                    let row = unsafe { std::slice::from_raw_parts_mut(c.add(row * c_stride), COLUMNS) };
                    gelu(self.isa, row);
                }
            }
            if !is_whole {
                self.copy_edge(&mut edge, at, rows, columns.len(), true);
            }
        }
    }

    /// Copies between the scratch tile and the last, narrower panel of the target.
    fn copy_edge(&self, edge: &mut [f32], at: usize, rows: usize, width: usize, out: bool) {
        for row in 0..rows {
            let start = at + row * self.stride;
            // SAFETY: this panel's columns of this row, written by this task alone.
            let part = unsafe { self.values.part(start..start + width) };
            let tile = &mut edge[row * COLUMNS..][..width];
            if out { part.copy_from_slice(tile) } else { tile.copy_from_slice(part) }
        }
    }
}

/// Copies one row of a matrix as f32: an embedding.
pub fn copy_row(matrix: &Matrix<'_>, row: usize, into: &mut [f32]) {
    assert!(row < matrix.outputs && into.len() == matrix.inputs, "the row exists and fits");
    let size = matrix.element.size();
    let stored = &matrix.bytes[row * matrix.inputs * size..][..matrix.inputs * size];
    match matrix.element {
        ElementType::F32 => into.iter_mut().zip(stored.chunks_exact(4)).for_each(|(out, b)| {
            *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        }),
        ElementType::F16 => into.iter_mut().zip(stored.chunks_exact(2)).for_each(|(out, b)| {
            *out = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
        }),
        ElementType::Bf16 => into.iter_mut().zip(stored.chunks_exact(2)).for_each(|(out, b)| {
            *out = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
        }),
    }
}

/// Returns the reference result that every path must equal bit for bit; for tests.
#[must_use]
pub fn reference(input: &[f32], weight: &[f32], inputs: usize, bias: f32, activation: Activation) -> f32 {
    let sum = input[..inputs].iter().zip(weight).fold(bias, |sum, (a, b)| a.mul_add(*b, sum));
    if activation == Activation::Gelu { math::gelu(sum) } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        (0..count).map(|i| crate::sampling::uniform(seed, i as u64) as f32 - 0.5).collect()
    }

    #[test]
    fn every_instruction_set_thread_count_and_batch_gives_the_same_bits() {
        for (rows, outputs, inputs) in [
            (1, 32, 16),
            (1, 33, 7),
            (2, 100, 40),
            (14, 64, 33),
            (15, 31, 129),
            (40, 70, 2100),
            (100, 96, 64),
        ] {
            let input = numbers(rows * inputs, 1);
            let weight = numbers(outputs * inputs, 2);
            let bias = numbers(outputs, 3);
            let matrix = Matrix::from_f32(&weight, outputs, inputs);
            for activation in [Activation::None, Activation::Gelu] {
                let mut expected = Vec::new();
                for row in 0..rows {
                    for output in 0..outputs {
                        let row = &input[row * inputs..];
                        let weight = &weight[output * inputs..][..inputs];
                        expected.push(reference(row, weight, inputs, bias[output], activation).to_bits());
                    }
                }
                for isa in Isa::available() {
                    for threads in [1, 3] {
                        let mut found = vec![0.0; rows * outputs];
                        let target = OutputColumns { values: &mut found, stride: outputs, offset: 0 };
                        let pool = ComputePool::new(threads);
                        let bias = Some(bias.as_slice());
                        matmul(
                            isa,
                            &pool,
                            &Product { input: &input, rows, weight: matrix, bias, activation },
                            target,
                        );
                        let found: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
                        assert!(found == expected, "{} {rows}x{outputs}x{inputs} {activation:?}", isa.name());
                    }
                }
            }
        }
    }

    #[test]
    fn a_part_of_a_matrix_computes_its_own_rows() {
        let (input, weight) = (numbers(2 * 8, 1), numbers(40 * 8, 2));
        let whole = Matrix::from_f32(&weight, 40, 8);
        let compute = |weight: Matrix<'_>| {
            let mut found = vec![0.0; 2 * weight.outputs];
            let product =
                Product { input: &input, rows: 2, weight, bias: None, activation: Activation::None };
            let target = OutputColumns { values: &mut found, stride: weight.outputs, offset: 0 };
            matmul(Isa::best(), &ComputePool::new(1), &product, target);
            found
        };
        let (all, part) = (compute(whole), compute(whole.rows(7..39)));
        assert_eq!(part[..32], all[7..39]);
        assert_eq!(part[32..], all[47..79]);
    }

    #[test]
    fn results_go_to_their_columns_and_nowhere_else() {
        let (input, weight) = (numbers(3 * 8, 1), numbers(40 * 8, 2));
        let mut wide = vec![7.0; 3 * 50];
        let target = OutputColumns { values: &mut wide, stride: 50, offset: 5 };
        let matrix = Matrix::from_f32(&weight, 40, 8);
        let product =
            Product { input: &input, rows: 3, weight: matrix, bias: None, activation: Activation::None };
        matmul(Isa::best(), &ComputePool::new(1), &product, target);
        for (index, value) in wide.iter().enumerate() {
            let (row, column) = (index / 50, index % 50);
            let expected = if (5..45).contains(&column) {
                reference(&input[row * 8..], &weight[(column - 5) * 8..][..8], 8, 0.0, Activation::None)
            } else {
                7.0
            };
            assert_eq!(*value, expected, "{row} {column}");
        }
    }
}
