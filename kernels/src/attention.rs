//! Attention of a few query rows over panels of keys and rows of values.
//!
//! Keys come transposed, in panels of 32 positions, values as rows: the two layouts of the innermost loop.
//! The caller provides that layout: an encoder packs keys and values per call, a decoder keeps its cache in
//! it.

use super::element::ElementType;
use super::elementwise::{soft_cap, softmax};
use super::micro::{Tile, multiply};
use super::{Isa, matmul, pack};
use std::cell::RefCell;
use std::ops::Range;

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

/// Query rows, and the positions that each sees.
#[derive(Debug)]
pub struct Queries<'a> {
    /// All query rows, `width` elements each.
    pub rows: &'a [&'a [f32]],
    /// Positions that each row sees; at least one.
    pub seen: &'a [Range<usize>],
    /// Width of a head.
    pub width: usize,
    /// Factor applied to the scores.
    pub scale: f32,
    /// Limit that scaled scores approach by a hyperbolic tangent, if any.
    pub soft_cap: Option<f32>,
}

impl Queries<'_> {
    /// Turns one row's scores, from position `start` on, into weights; positions that it does not see get 0.
    /// The weights depend on the row alone: sums start at the first position that it sees.
    fn weigh(&self, isa: Isa, row: &mut [f32], start: usize, seen: &Range<usize>) {
        let (before, row) = row.split_at_mut(seen.start - start);
        before.fill(0.0);
        let count = seen.len();
        match self.soft_cap {
            None => softmax(isa, row, count, self.scale),
            Some(cap) => {
                soft_cap(isa, &mut row[..count], self.scale, cap);
                softmax(isa, row, count, 1.0);
            }
        }
    }
}

/// Computes attention for up to [`ROWS`] query rows over `panels`; passes each result row to `write`.
pub fn serve_worker<'p>(
    isa: Isa,
    queries: &Queries<'_>,
    panel: impl Fn(usize) -> KeysValues<'p>,
    mut write: impl FnMut(usize, &[f32]),
) {
    let rows = queries.rows.len();
    assert!(rows <= ROWS && rows == queries.seen.len(), "one block of rows");
    assert!(queries.seen.iter().all(|seen| seen.start < seen.end), "each row sees a position");
    let end = queries.seen.iter().map(|seen| seen.end).max().unwrap_or(0);
    let (width, wide) = (queries.width, padded(queries.width));
    // Panels before this one are in no row's window. They would add zeros, which change no bit.
    let first_panel = queries.seen.iter().map(|seen| seen.start).min().unwrap_or(0) / PANEL;
    let panels = first_panel..end.div_ceil(PANEL);
    let stride = panels.len() * PANEL;
    SCORES.with_borrow_mut(|scores| {
        RESULT.with_borrow_mut(|result| {
            scores.resize(scores.len().max(ROWS * (stride + width)), 0.0);
            result.resize(result.len().max(ROWS * wide), 0.0);
            let (query, scores) = scores.split_at_mut(ROWS * width);
            for (row, source) in queries.rows.iter().enumerate() {
                query[row * width..][..width].copy_from_slice(source);
            }
            let zero = [0.0_f32; PANEL];
            for index in panels.clone() {
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
                            c: scores[(index - first_panel) * PANEL..].as_mut_ptr(),
                            c_stride: stride,
                        },
                    );
                }
            }
            for (row, seen) in queries.seen.iter().enumerate() {
                queries.weigh(isa, &mut scores[row * stride..][..stride], first_panel * PANEL, seen);
            }
            result[..rows * wide].fill(0.0);
            for index in panels {
                let depth = (end - index * PANEL).min(PANEL);
                let scores = &scores[(index - first_panel) * PANEL..];
                weigh_values(isa, &panel(index), depth, rows, (scores, stride), (result, wide));
            }
            for row in 0..rows {
                write(row, &result[row * wide..][..width]);
            }
        });
    });
}

/// Adds the weighted values of one panel's first `depth` positions to all result rows. The scores start at
/// the panel's first position.
fn weigh_values(
    isa: Isa,
    source: &KeysValues<'_>,
    depth: usize,
    rows: usize,
    (scores, stride): (&[f32], usize),
    (result, wide): (&mut [f32], usize),
) {
    assert!(
        (1..=ROWS).contains(&rows) && (1..=PANEL).contains(&depth) && stride >= PANEL,
        "one panel of rows"
    );
    let last = (rows - 1) * stride;
    assert!(scores.len() >= last + depth && result.len() >= rows * wide, "rows exist");
    assert!(source.values.len() >= (depth - 1) * source.value_stride + wide);
    for column in (0..wide).step_by(PANEL) {
        let c = result[column..].as_mut_ptr();
        // SAFETY: `scores` has `depth` elements of `rows` rows, `stride` apart; the values were asserted to
        // reach `depth` rows; `result` has `rows` rows of `wide`.
        unsafe {
            multiply(
                isa,
                Tile {
                    depth,
                    rows,
                    a: scores.as_ptr(),
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

/// Computes attention of one head over one sequence, in both directions: every position sees those at most
/// `reach` before and after it, or all. Writes each position's result.
pub fn attend_all(
    isa: Isa,
    activations: &[f32],
    offsets: HeadOffsets,
    reach: Option<usize>,
    mut write: impl FnMut(usize, &[f32]),
) {
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
            let seen: Vec<Range<usize>> =
                positions.clone().map(|position| seen_around(position, reach, length)).collect();
            let queries = Queries { rows: &rows, seen: &seen, width, scale, soft_cap: None };
            let panel = |index: usize| KeysValues {
                keys: &keys[index * width * PANEL..][..width * PANEL],
                values: &values[index * PANEL * wide..],
                value_stride: wide,
            };
            serve_worker(isa, &queries, panel, |row, result| write(positions.start + row, result));
        }
    });
}

/// Returns the positions of a sequence that one sees, at most `reach` before and after it.
fn seen_around(position: usize, reach: Option<usize>, length: usize) -> Range<usize> {
    assert!(position < length, "a position of the sequence");
    match reach {
        None => 0..length,
        Some(reach) => position.saturating_sub(reach)..position.saturating_add(reach + 1).min(length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::uniform;

    /// Returns attention of the last of `visible` positions of one sequence, after a check of its definition.
    fn windowed(isa: Isa, visible: &[usize], window: Option<usize>, soft_cap: Option<f32>) -> Vec<Vec<f32>> {
        let (length, width) = (150_usize, 32_usize);
        let number = |seed, index: usize| uniform(seed, index as u64) as f32 * 4.0 - 2.0;
        let mut keys = vec![0.0; length.next_multiple_of(PANEL) * width];
        let values: Vec<f32> = (0..length.next_multiple_of(PANEL) * width).map(|i| number(2, i)).collect();
        for position in 0..length {
            for dimension in 0..width {
                let at = (position / PANEL * width + dimension) * PANEL + position % PANEL;
                keys[at] = number(1, position * width + dimension);
            }
        }
        let queries: Vec<Vec<f32>> =
            visible.iter().map(|at| (0..width).map(|i| number(3, at * width + i)).collect()).collect();
        let rows: Vec<&[f32]> = queries.iter().map(Vec::as_slice).collect();
        let panel = |index: usize| KeysValues {
            keys: &keys[index * width * PANEL..][..width * PANEL],
            values: &values[index * width * PANEL..][..width * PANEL],
            value_stride: width,
        };
        let first = |visible: usize| window.map_or(0, |window| visible.saturating_sub(window));
        let seen: Vec<Range<usize>> = visible.iter().map(|end| first(*end)..*end).collect();
        let queries = Queries { rows: &rows, seen: &seen, width, scale: 0.2, soft_cap };
        let mut found = vec![Vec::new(); visible.len()];
        serve_worker(isa, &queries, panel, |row, result| found[row] = result.to_vec());
        for (visible, found) in visible.iter().zip(&found) {
            let seen = visible - window.unwrap_or(*visible).min(*visible)..*visible;
            let product = |position: usize| -> f64 {
                let one =
                    |i: usize| f64::from(number(3, visible * width + i) * number(1, position * width + i));
                (0..width).map(one).sum::<f64>() * f64::from(0.2_f32)
            };
            let cap = soft_cap.map(f64::from);
            let capped = |score: f64| cap.map_or(score, |cap| cap * (score / cap).tanh());
            let weights: Vec<f64> = seen.clone().map(|position| capped(product(position)).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (dimension, found) in found.iter().enumerate() {
                let value = |position: usize| f64::from(values[position * width + dimension]);
                let sum: f64 =
                    seen.clone().zip(&weights).map(|(at, weight)| weight / total * value(at)).sum();
                assert!((f64::from(*found) - sum).abs() < 2e-5, "{found} {sum} at {visible} of {window:?}");
            }
        }
        found
    }

    #[test]
    fn a_windowed_row_is_the_definition_whatever_its_neighbours_and_the_instruction_set() {
        for (window, soft_cap) in
            [(Some(1), None), (Some(40), Some(1.5)), (Some(64), None), (None, Some(0.7))]
        {
            for visible in [vec![1, 2, 33], vec![64, 65, 96, 97], vec![150, 3], vec![150], vec![97]] {
                let expected = windowed(Isa::best(), &visible, window, soft_cap);
                for isa in Isa::available() {
                    let found = windowed(isa, &visible, window, soft_cap);
                    assert_eq!(found, expected, "{} {visible:?} {window:?}", isa.name());
                }
                for (visible, expected) in visible.iter().zip(&expected) {
                    let alone = windowed(Isa::best(), &[*visible], window, soft_cap);
                    assert_eq!(alone[0], *expected, "alone: {visible} {window:?}");
                }
            }
        }
    }

    #[test]
    fn attention_in_both_directions_is_the_definition() {
        for (length, width, reach) in [
            (1, 8, None),
            (5, 32, None),
            (33, 20, None),
            (70, 64, None),
            (1, 8, Some(0)),
            (40, 20, Some(0)),
            (100, 32, Some(3)),
            (100, 32, Some(33)),
            (33, 20, Some(200)),
        ] {
            let stride = 3 * width;
            let activations: Vec<f32> =
                (0..length * stride).map(|i| uniform(9, i as u64) as f32 * 4.0 - 2.0).collect();
            let offsets = HeadOffsets { stride, query: 0, key: width, value: 2 * width, width };
            let mut portable = vec![Vec::new(); length];
            for isa in Isa::available() {
                let mut found = vec![Vec::new(); length];
                attend_all(isa, &activations, offsets, reach, |at, row| found[at] = row.to_vec());
                for (position, row) in found.iter().enumerate() {
                    check(&activations, offsets, reach, position, row);
                }
                if portable[0].is_empty() {
                    portable = found;
                } else {
                    assert_eq!(portable, found, "{}", isa.name());
                }
            }
        }
    }

    fn check(
        activations: &[f32],
        offsets: HeadOffsets,
        reach: Option<usize>,
        position: usize,
        found: &[f32],
    ) {
        let at = |position: usize, offset: usize| -> Vec<f64> {
            let start = position * offsets.stride + offset;
            activations[start..start + offsets.width].iter().map(|x| f64::from(*x)).collect()
        };
        let length = activations.len() / offsets.stride;
        let query = at(position, offsets.query);
        let weights: Vec<f64> = (0..length)
            .map(|other| {
                if reach.is_some_and(|reach| other.abs_diff(position) > reach) {
                    return 0.0;
                }
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
