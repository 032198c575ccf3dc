//! Weight packing: transposes stored weights into the panels that the innermost loop reads.
//!
//! Checkpoints store output rows of inputs, of any of three types; a panel holds inputs by 32 outputs, f32. A
//! panel exists in a thread's scratch memory for one use; the weights themselves stay in the read-only map.

use super::element::ElementType;
use super::micro::COLUMNS;
use super::{Isa, Level};

/// Fills `panel` with the inputs `columns` of the output rows `rows` of a matrix of `width` inputs:
/// `panel[i][j] = weight[rows.start + j][columns.start + i]`, zero where there is no such output.
pub(super) fn pack(
    isa: Isa,
    bytes: &[u8],
    element: ElementType,
    width: usize,
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
    panel: &mut [f32],
) {
    assert!(rows.len() <= COLUMNS && columns.start <= columns.end && columns.end <= width, "one panel");
    assert!(rows.end * width * element.size() <= bytes.len(), "the matrix holds these rows");
    assert!(panel.len() >= columns.len() * COLUMNS, "the panel holds these columns");
    if rows.len() < COLUMNS {
        panel[..columns.len() * COLUMNS].fill(0.0);
    }
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa.0 == Level::Avx512 {
        while done + 16 <= rows.len() {
            let source =
                WeightBlock { bytes, element, width, row: rows.start + done, columns: columns.clone() };
            // SAFETY: the level was detected. The sixteen rows from `done` on are within `rows`, whose bytes
            // were asserted to exist. `panel` was asserted to hold `columns.len()` rows of 32, of which
            // sixteen lanes from `done` on are written.
            unsafe { avx512::pack_sixteen(&source, &mut panel[done..]) };
            done += 16;
        }
    }
    let _ = (isa, Level::Portable);
    for (lane, row) in rows.enumerate().skip(done) {
        let start = (row * width + columns.start) * element.size();
        let stored = &bytes[start..start + columns.len() * element.size()];
        let lanes = panel[lane..].iter_mut().step_by(COLUMNS);
        match element {
            ElementType::F32 => {
                lanes.zip(stored.chunks_exact(4)).for_each(|(out, b)| {
                    *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                });
            }
            ElementType::F16 => lanes.zip(stored.chunks_exact(2)).for_each(|(out, b)| {
                *out = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
            }),
            ElementType::Bf16 => lanes.zip(stored.chunks_exact(2)).for_each(|(out, b)| {
                *out = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }),
        }
    }
}

#[cfg(target_arch = "x86_64")]
struct WeightBlock<'a> {
    bytes: &'a [u8],
    element: ElementType,
    width: usize,
    row: usize,
    columns: std::ops::Range<usize>,
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{COLUMNS, ElementType, WeightBlock};
    use std::arch::x86_64::{
        __m512, __m512i, _mm256_loadu_si256, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castsi512_ps,
        _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_shuffle_f32x4,
        _mm512_slli_epi32, _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd,
        _mm512_unpacklo_ps,
    };

    /// Transposes sixteen rows into the first sixteen lanes of each panel row.
    ///
    /// # Safety
    /// Requires AVX-512F. The sixteen rows must be inside the bytes, and `panel` must reach sixteen
    /// lanes into the panel row of the last column.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn pack_sixteen(source: &WeightBlock<'_>, panel: &mut [f32]) {
        let size = source.element.size();
        let depth = source.columns.len();
        let first = (source.row * source.width + source.columns.start) * size;
        let row_bytes = source.width * size;
        let whole = depth / 16 * 16;
        let from = source.bytes[first..].as_ptr();
        let to = panel.as_mut_ptr();
        // SAFETY: whole blocks of sixteen columns of the sixteen rows, inside the bytes by the caller's
        // guarantee; sixteen lanes of a panel row each, likewise.
        unsafe {
            match source.element {
                ElementType::F32 => {
                    blocks(from, row_bytes, whole, to, 4, |from| _mm512_loadu_ps(from.cast()));
                }
                ElementType::F16 => {
                    blocks(from, row_bytes, whole, to, 2, |from| {
                        _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
                    });
                }
                ElementType::Bf16 => blocks(from, row_bytes, whole, to, 2, |from| {
                    let wide: __m512i = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
                }),
            }
        }
        for column in whole..depth {
            for lane in 0..16 {
                let at = first + (lane * source.width + column) * size;
                let stored = &source.bytes[at..at + size];
                panel[column * COLUMNS + lane] = match source.element {
                    ElementType::F32 => f32::from_le_bytes([stored[0], stored[1], stored[2], stored[3]]),
                    ElementType::F16 => half::f16::from_le_bytes([stored[0], stored[1]]).to_f32(),
                    ElementType::Bf16 => half::bf16::from_le_bytes([stored[0], stored[1]]).to_f32(),
                };
            }
        }
    }

    /// Transposes blocks of sixteen columns. Pointers step without overflow checks, which would keep the
    /// sixteen rows out of registers.
    ///
    /// # Safety
    /// Requires AVX-512F. Sixteen rows, `row_bytes` apart from `from` on, must hold `columns` elements of
    /// `size` bytes that `load` reads sixteen at a time. `to` must reach sixteen lanes into `columns` panel
    /// rows.
    #[inline(always)]
    unsafe fn blocks(
        mut from: *const u8,
        row_bytes: usize,
        columns: usize,
        mut to: *mut f32,
        size: usize,
        load: impl Fn(*const u8) -> __m512,
    ) {
        for _ in 0..columns / 16 {
            // SAFETY: the caller guarantees these rows, these lanes, and the instructions.
            unsafe {
                let mut rows = [_mm512_set1_ps(0.0); 16];
                let mut at = from;
                for row in &mut rows {
                    *row = load(at);
                    at = at.wrapping_add(row_bytes);
                }
                for lanes in transpose(rows) {
                    _mm512_storeu_ps(to, lanes);
                    to = to.wrapping_add(COLUMNS);
                }
            }
            from = from.wrapping_add(16 * size);
        }
    }

    /// Transposes a 16 by 16 matrix in registers: pairs, quads, then 128-bit blocks twice.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transpose(rows: [__m512; 16]) -> [__m512; 16] {
        let mut pairs = rows;
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
        }
        let mut quads = pairs;
        for i in 0..4 {
            for half in 0..2 {
                let (a, b) =
                    (_mm512_castps_pd(pairs[4 * i + half]), _mm512_castps_pd(pairs[4 * i + 2 + half]));
                quads[4 * i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                quads[4 * i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
            }
        }
        // quads[4 g + c] holds, in its 128-bit block k, column 4 k + c of rows 4 g to 4 g + 3.
        let mut columns = rows;
        for c in 0..4 {
            let even_low = _mm512_shuffle_f32x4::<0x88>(quads[c], quads[4 + c]);
            let odd_low = _mm512_shuffle_f32x4::<0xdd>(quads[c], quads[4 + c]);
            let even_high = _mm512_shuffle_f32x4::<0x88>(quads[8 + c], quads[12 + c]);
            let odd_high = _mm512_shuffle_f32x4::<0xdd>(quads[8 + c], quads[12 + c]);
            columns[c] = _mm512_shuffle_f32x4::<0x88>(even_low, even_high);
            columns[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even_low, even_high);
            columns[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd_low, odd_high);
            columns[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd_low, odd_high);
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_hold_the_transposed_weights_for_every_shape_type_and_instruction_set() {
        for element in [ElementType::F32, ElementType::F16, ElementType::Bf16] {
            for (outputs, width) in [(64, 48), (40, 17), (5, 3), (33, 100)] {
                // Small integers are exact in all three types.
                let value = |row: usize, column: usize| ((row * 31 + column * 7) % 64) as f32 - 32.0;
                let mut bytes = Vec::new();
                for row in 0..outputs {
                    for column in 0..width {
                        match element {
                            ElementType::F32 => bytes.extend(value(row, column).to_le_bytes()),
                            ElementType::F16 => {
                                bytes.extend(half::f16::from_f32(value(row, column)).to_le_bytes());
                            }
                            ElementType::Bf16 => {
                                bytes.extend(half::bf16::from_f32(value(row, column)).to_le_bytes());
                            }
                        }
                    }
                }
                for isa in Isa::available() {
                    for start in (0..outputs).step_by(COLUMNS) {
                        let rows = start..outputs.min(start + COLUMNS);
                        for columns in [0..width, width / 3..width] {
                            let mut panel = vec![f32::NAN; columns.len() * COLUMNS];
                            pack(isa, &bytes, element, width, rows.clone(), columns.clone(), &mut panel);
                            for (index, found) in panel.iter().enumerate() {
                                let (inner, lane) = (index / COLUMNS, index % COLUMNS);
                                let row = start + lane;
                                let expected =
                                    if row < outputs { value(row, columns.start + inner) } else { 0.0 };
                                assert_eq!(*found, expected, "{element:?} {} {row} {inner}", isa.name());
                            }
                        }
                    }
                }
            }
        }
    }
}
