//! Attention of a few query rows over panels of keys and rows of values.
//!
//! Keys come transposed, in panels of 32 positions, values as rows: the two layouts of the innermost loop.
//! The caller provides that layout: an encoder packs keys and values per call, a decoder keeps its cache in
//! it.

use super::element::ElementType;
use super::elementwise::softmax;
use super::micro::{Tile, multiply};
use super::{Isa, matmul, pack};
use std::cell::RefCell;

/// Positions of one panel of keys.
pub const PANEL: usize = super::micro::COLUMNS;
/// Maximum query rows per call.
pub const ROWS: usize = super::micro::ROWS;

/// One panel's keys and values.
#[derive(Debug, Clone, Copy)]
pub struct KeysValues<'a> {
    /// `width` rows of 32 positions.
    pub keys: &'a [f32],
    /// 32 rows (fewer in the last panel) of `value_stride` elements, of which the first `padded(width)` are
    /// used.
    pub values: &'a [f32],
    /// Distance from one position's values to the next, in elements.
    pub value_stride: usize,
}

/// Returns the width of a head, rounded up to whole panels.
#[must_use]
pub fn padded(width: usize) -> usize {
    width.next_multiple_of(PANEL)
}

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static RESULT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static PACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Query rows, and the number of positions visible to each.
#[derive(Debug)]
pub struct Queries<'a> {
    /// All query rows, `width` elements each.
    pub rows: &'a [&'a [f32]],
    /// Positions visible to each row, from 0 on; at least 1.
    pub visible: &'a [usize],
    /// Width of a head.
    pub width: usize,
    /// Factor applied to the scores.
    pub scale: f32,
}

/// Computes attention for up to [`ROWS`] query rows over `panels`; passes each result row to `write`.
pub fn serve_worker<'p>(
    isa: Isa,
    queries: &Queries<'_>,
    panel: impl Fn(usize) -> KeysValues<'p>,
    mut write: impl FnMut(usize, &[f32]),
) {
    let rows = queries.rows.len();
    assert!(rows <= ROWS && rows == queries.visible.len(), "one block of rows");
    assert!(queries.visible.iter().all(|visible| *visible > 0), "each row sees a position");
    let seen = queries.visible.iter().copied().max().unwrap_or(0);
    let (width, wide) = (queries.width, padded(queries.width));
    let panels = seen.div_ceil(PANEL);
    let stride = panels * PANEL;
    SCORES.with_borrow_mut(|scores| {
        RESULT.with_borrow_mut(|result| {
            scores.resize(scores.len().max(ROWS * (stride + width)), 0.0);
            result.resize(result.len().max(ROWS * wide), 0.0);
            let (query, scores) = scores.split_at_mut(ROWS * width);
            for (row, source) in queries.rows.iter().enumerate() {
                query[row * width..][..width].copy_from_slice(source);
            }
            let zero = [0.0_f32; PANEL];
            for index in 0..panels {
                let keys = panel(index).keys;
                assert!(keys.len() >= width * PANEL);
                // SAFETY: `query` has `rows` rows of `width`; the panel was asserted; `scores` has
                // `rows` rows of `stride`, in which this panel has its 32 columns.
                unsafe {
                    multiply(
                        isa,
                        Tile {
                            depth: width,
                            rows,
                            a: query.as_ptr(),
                            a_stride: width,
                            b: keys.as_ptr(),
                            b_stride: PANEL,
                            start: zero.as_ptr(),
                            start_stride: 0,
                            c: scores[index * PANEL..].as_mut_ptr(),
                            c_stride: stride,
                        },
                    );
                }
            }
            for (row, visible) in queries.visible.iter().enumerate() {
                softmax(isa, &mut scores[row * stride..][..stride], *visible, queries.scale);
            }
            result[..rows * wide].fill(0.0);
            for index in 0..panels {
                weigh_values(isa, &panel(index), index, seen, rows, (scores, stride), (result, wide));
            }
            for row in 0..rows {
                write(row, &result[row * wide..][..width]);
            }
        });
    });
}

/// Adds one panel's weighted values to all result rows.
fn weigh_values(
    isa: Isa,
    source: &KeysValues<'_>,
    index: usize,
    seen: usize,
    rows: usize,
    (scores, stride): (&[f32], usize),
    (result, wide): (&mut [f32], usize),
) {
    let depth = (seen - index * PANEL).min(PANEL);
    assert!(rows <= ROWS && scores.len() >= rows * stride && result.len() >= rows * wide, "rows exist");
    assert!(source.values.len() >= (depth - 1) * source.value_stride + wide);
    for column in (0..wide).step_by(PANEL) {
        let c = result[column..].as_mut_ptr();
        // SAFETY: `scores` has `rows` rows of `stride`; the values were asserted to reach `depth` rows;
        // `result` has `rows` rows of `wide`.
        unsafe {
            multiply(
                isa,
                Tile {
                    depth,
                    rows,
                    a: scores[index * PANEL..].as_ptr(),
                    a_stride: stride,
                    b: source.values[column..].as_ptr(),
                    b_stride: source.value_stride,
                    start: c.cast_const(),
                    start_stride: wide,
                    c,
                    c_stride: wide,
                },
            );
        }
    }
}

/// Offsets of one head's queries, keys and values in rows of activations.
#[derive(Debug, Clone, Copy)]
pub struct HeadOffsets {
    /// Distance from one position to the next, in elements.
    pub stride: usize,
    /// Offset of the first query element in a row.
    pub query: usize,
    /// Offset of the first key element in a row.
    pub key: usize,
    /// Offset of the first value element in a row.
    pub value: usize,
    pub width: usize,
}

/// Computes full attention of one head over one sequence: every position sees all. Writes each position's
/// result.
pub fn attend_all(isa: Isa, activations: &[f32], offsets: HeadOffsets, mut write: impl FnMut(usize, &[f32])) {
    let HeadOffsets { stride, query, key, value, width } = offsets;
    assert!(query.max(key).max(value) + width <= stride, "the head lies within a row");
    assert!(activations.len().is_multiple_of(stride), "whole rows");
    let length = activations.len() / stride;
    let (panels, wide) = (length.div_ceil(PANEL), padded(width));
    let bytes = matmul::bytes_of(activations);
    PACKED.with_borrow_mut(|packed| {
        let keys = panels * width * PANEL;
        packed.resize(packed.len().max(keys + length * wide), 0.0);
        let (keys, values) = packed.split_at_mut(keys);
        for (index, panel) in keys.chunks_exact_mut(width * PANEL).enumerate() {
            let positions = index * PANEL..length.min((index + 1) * PANEL);
            pack::pack(isa, bytes, ElementType::F32, stride, positions, key..key + width, panel);
        }
        for (position, row) in values.chunks_exact_mut(wide).take(length).enumerate() {
            row[..width].copy_from_slice(&activations[position * stride + value..][..width]);
            row[width..].fill(0.0);
        }
        let (keys, values) = (&*keys, &*values);
        let scale = 1.0 / (width as f32).sqrt();
        let blocks = length.div_ceil(ROWS);
        for block in 0..blocks {
            let positions = block * length / blocks..(block + 1) * length / blocks;
            let rows: Vec<&[f32]> = positions
                .clone()
                .map(|position| &activations[position * stride + query..][..width])
                .collect();
            let visible = [length; ROWS];
            let queries = Queries { rows: &rows, visible: &visible[..rows.len()], width, scale };
            let panel = |index: usize| KeysValues {
                keys: &keys[index * width * PANEL..][..width * PANEL],
                values: &values[index * PANEL * wide..],
                value_stride: wide,
            };
            serve_worker(isa, &queries, panel, |row, result| write(positions.start + row, result));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::uniform;

    #[test]
    fn full_attention_is_the_definition() {
        for (length, width) in [(1, 8), (5, 32), (33, 20), (70, 64)] {
            let stride = 3 * width;
            let activations: Vec<f32> =
                (0..length * stride).map(|i| uniform(9, i as u64) as f32 * 4.0 - 2.0).collect();
            let offsets = HeadOffsets { stride, query: 0, key: width, value: 2 * width, width };
            let mut portable = vec![Vec::new(); length];
            for isa in Isa::available() {
                let mut found = vec![Vec::new(); length];
                attend_all(isa, &activations, offsets, |position, row| found[position] = row.to_vec());
                for (position, row) in found.iter().enumerate() {
                    check(&activations, offsets, position, row);
                }
                if portable[0].is_empty() {
                    portable = found;
                } else {
                    assert_eq!(portable, found, "{}", isa.name());
                }
            }
        }
    }

    fn check(activations: &[f32], offsets: HeadOffsets, position: usize, found: &[f32]) {
        let at = |position: usize, offset: usize| -> Vec<f64> {
            let start = position * offsets.stride + offset;
            activations[start..start + offsets.width].iter().map(|x| f64::from(*x)).collect()
        };
        let length = activations.len() / offsets.stride;
        let query = at(position, offsets.query);
        let weights: Vec<f64> = (0..length)
            .map(|other| {
                let key = at(other, offsets.key);
                let score: f64 = query.iter().zip(&key).map(|(a, b)| a * b).sum();
                (score / (offsets.width as f64).sqrt()).exp()
            })
            .collect();
        let total: f64 = weights.iter().sum();
        for (dimension, found) in found.iter().enumerate() {
            let expected: f64 =
                (0..length).map(|other| weights[other] / total * at(other, offsets.value)[dimension]).sum();
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
        }
    }
}
