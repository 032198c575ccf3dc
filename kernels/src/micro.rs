//! The innermost loop of matrix multiplication: a few rows times a panel of 32 columns.
//!
//! `c[r][j] = start[r][j] + sum over i of a[r][i] * b[i][j]`, as one chain of fused multiply-adds over
//! ascending `i`. All three instruction sets give the same bits.

use super::{Isa, Level};

/// Columns of a panel: two AVX-512 vectors. With 14 rows that makes 28 accumulators, 2 panel vectors and one
/// broadcast: 31 of 32 registers. The 28 multiply-adds for 16 loads make arithmetic the bottleneck.
pub(super) const COLUMNS: usize = 32;
/// Maximum rows per call.
pub(super) const ROWS: usize = 14;

/// The operands of one call, all as f32. Strides are in elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    /// Inner dimension.
    pub(super) depth: usize,
    /// From 1 to [`ROWS`].
    pub(super) rows: usize,
    /// First element of the left rows; each has `depth` elements.
    pub(super) a: *const f32,
    pub(super) a_stride: usize,
    /// First element of the panel: `depth` rows of [`COLUMNS`] elements.
    pub(super) b: *const f32,
    pub(super) b_stride: usize,
    /// Starting values: `rows` rows of [`COLUMNS`] elements; with stride 0 all rows start from the same
    /// values.
    pub(super) start: *const f32,
    pub(super) start_stride: usize,
    /// Results: `rows` rows of [`COLUMNS`] elements. May alias the starting values.
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
}

/// Computes a tile.
///
/// # Safety
/// All rows that the description of `tile` implies must be readable, and no other thread may write
/// those of `c`.
pub(super) unsafe fn multiply(isa: Isa, tile: Tile) {
    debug_assert!((1..=ROWS).contains(&tile.rows) && tile.b_stride >= COLUMNS, "rows of a panel");
    debug_assert!(tile.rows == 1 || tile.c_stride >= COLUMNS, "rows of the result do not overlap");
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected; the caller guarantees the operands.
        Level::Avx512 => unsafe { avx512::multiply(tile) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { avx2::multiply(tile) },
        // SAFETY: the caller guarantees the operands.
        Level::Portable => unsafe { portable(tile) },
    }
}

/// Computes a tile with plain code.
///
/// # Safety
/// As [`multiply`].
unsafe fn portable(tile: Tile) {
    for row in 0..tile.rows {
        // SAFETY: offsets stay inside the rows that the caller guarantees.
        unsafe {
            let mut sums = tile.start.add(row * tile.start_stride).cast::<[f32; COLUMNS]>().read_unaligned();
            for inner in 0..tile.depth {
                let left = tile.a.add(row * tile.a_stride + inner).read_unaligned();
                let right = tile.b.add(inner * tile.b_stride).cast::<[f32; COLUMNS]>().read_unaligned();
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = left.mul_add(right, *sum);
                }
            }
            tile.c.add(row * tile.c_stride).cast::<[f32; COLUMNS]>().write_unaligned(sums);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::Tile;
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps};

    /// Computes a tile with AVX-512.
    ///
    /// # Safety
    /// As [`super::multiply`], on a machine with AVX-512F.
    pub(super) unsafe fn multiply(tile: Tile) {
        // SAFETY: the caller's guarantee is passed on; `R` is the number of rows.
        unsafe {
            match tile.rows {
                1 => rows::<1>(tile),
                2 => rows::<2>(tile),
                3 => rows::<3>(tile),
                4 => rows::<4>(tile),
                5 => rows::<5>(tile),
                6 => rows::<6>(tile),
                7 => rows::<7>(tile),
                8 => rows::<8>(tile),
                9 => rows::<9>(tile),
                10 => rows::<10>(tile),
                11 => rows::<11>(tile),
                12 => rows::<12>(tile),
                13 => rows::<13>(tile),
                _ => rows::<14>(tile),
            }
        }
    }

    /// Computes a tile of `R` rows, in registers.
    ///
    /// # Safety
    /// As [`multiply`], with `R` rows.
    #[target_feature(enable = "avx512f,avx2,fma")]
    unsafe fn rows<const R: usize>(tile: Tile) {
        // SAFETY: offsets stay inside the rows that the caller guarantees.
        unsafe {
            let mut low = [_mm512_set1_ps(0.0); R];
            let mut high = [_mm512_set1_ps(0.0); R];
            for row in 0..R {
                let start = tile.start.add(row * tile.start_stride);
                low[row] = _mm512_loadu_ps(start);
                high[row] = _mm512_loadu_ps(start.add(16));
            }
            let mut b = tile.b;
            for inner in 0..tile.depth {
                let b_low = _mm512_loadu_ps(b);
                let b_high = _mm512_loadu_ps(b.add(16));
                let a = tile.a.add(inner);
                for row in 0..R {
                    let left = _mm512_set1_ps(*a.add(row * tile.a_stride));
                    low[row] = _mm512_fmadd_ps(left, b_low, low[row]);
                    high[row] = _mm512_fmadd_ps(left, b_high, high[row]);
                }
                b = b.add(tile.b_stride);
            }
            for row in 0..R {
                let c = tile.c.add(row * tile.c_stride);
                _mm512_storeu_ps(c, low[row]);
                _mm512_storeu_ps(c.add(16), high[row]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{COLUMNS, Tile};
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps};

    /// Rows computed together: 3 rows of 4 vectors are 12 of 16 registers.
    const ROWS_AT_ONCE: usize = 3;
    const VECTORS: usize = COLUMNS / 8;

    /// Computes a tile with AVX2, three rows at a time.
    ///
    /// # Safety
    /// As [`super::multiply`], on a machine with AVX2 and FMA.
    pub(super) unsafe fn multiply(tile: Tile) {
        let mut row = 0;
        while row < tile.rows {
            let rows = (tile.rows - row).min(ROWS_AT_ONCE);
            // SAFETY: a part of the rows that the caller guarantees.
            unsafe {
                let part = Tile {
                    a: tile.a.add(row * tile.a_stride),
                    start: tile.start.add(row * tile.start_stride),
                    c: tile.c.add(row * tile.c_stride),
                    ..tile
                };
                match rows {
                    1 => some_rows::<1>(part),
                    2 => some_rows::<2>(part),
                    _ => some_rows::<3>(part),
                }
            }
            row += rows;
        }
    }

    /// Computes a tile of `R` rows, in registers.
    ///
    /// # Safety
    /// As [`multiply`], with `R` rows.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn some_rows<const R: usize>(tile: Tile) {
        // SAFETY: offsets stay inside the rows that the caller guarantees.
        unsafe {
            let mut sums = [[_mm256_set1_ps(0.0); VECTORS]; R];
            for (row, sums) in sums.iter_mut().enumerate() {
                for (index, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_loadu_ps(tile.start.add(row * tile.start_stride + index * 8));
                }
            }
            for inner in 0..tile.depth {
                let b = tile.b.add(inner * tile.b_stride);
                let mut right = [_mm256_set1_ps(0.0); VECTORS];
                for (index, right) in right.iter_mut().enumerate() {
                    *right = _mm256_loadu_ps(b.add(index * 8));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let left = _mm256_set1_ps(*tile.a.add(row * tile.a_stride + inner));
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = _mm256_fmadd_ps(left, right, *sum);
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (index, sum) in sums.iter().enumerate() {
                    _mm256_storeu_ps(tile.c.add(row * tile.c_stride + index * 8), *sum);
                }
            }
        }
    }
}
