//! The innermost loop: a panel of 16 outputs, or two, times up to 6 rows of activations.
//!
//! Every way to compute it gives the same bits: the products of a group are added exactly, and the groups by
//! the same fused multiply-adds.

use super::rows::RowBlock;
use super::{GROUP, GROUP_BYTES, PANEL, QUAD, WEIGHT_BYTES, scale_of};
use crate::{Isa, Level};

/// Rows computed together: with two panels, their sums, of a group and of all, are 24 vectors of 32.
pub(super) const ROWS: usize = 6;
/// Quads of a group.
const QUADS: usize = GROUP / QUAD;

/// Instructions that multiply integers. A value exists only for those of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntegerIsa(IntegerLevel);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IntegerLevel {
    /// `vpdpbusd` on 512 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// `vpdpbusd` on 256 bits.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// `vpmaddubsw` and `vpmaddwd` on 256 bits.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl IntegerIsa {
    /// Returns all that this machine has, the fastest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let has_avx2 = has!("avx2") && has!("fma") && has!("f16c");
            if has_avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512vnni") {
                found.push(Self(IntegerLevel::Avx512Vnni));
            }
            if has_avx2 && has!("avxvnni") {
                found.push(Self(IntegerLevel::AvxVnni));
            }
            if has_avx2 {
                found.push(Self(IntegerLevel::Avx2));
            }
        }
        found.push(Self(IntegerLevel::Portable));
        found
    }

    /// Returns the fastest that is no wider than an instruction set.
    #[must_use]
    pub fn within(isa: Isa) -> Self {
        let is_within = |level: &Self| match level.0 {
            #[cfg(target_arch = "x86_64")]
            IntegerLevel::Avx512Vnni => isa.0 == Level::Avx512,
            IntegerLevel::Portable => true,
            #[cfg(target_arch = "x86_64")]
            _ => isa.0 != Level::Portable,
        };
        let portable = Self(IntegerLevel::Portable);
        Self::available().into_iter().find(is_within).unwrap_or(portable)
    }

    /// Returns a human-readable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            IntegerLevel::Avx512Vnni => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            IntegerLevel::AvxVnni => "AVX-VNNI",
            #[cfg(target_arch = "x86_64")]
            IntegerLevel::Avx2 => "AVX2",
            IntegerLevel::Portable => "portable",
        }
    }
}

/// A panel, and the rows that it is multiplied by.
#[derive(Debug, Clone, Copy)]
pub(super) struct PanelRows<'a> {
    pub(super) panel: &'a [u8],
    pub(super) input: RowBlock<'a>,
}

/// Adds the products of a panel and rows to their sums.
pub(super) fn multiply(isa: IntegerIsa, tile: PanelRows<'_>, sums: &mut [[f32; PANEL]]) {
    assert_eq!(tile.panel.len(), tile.input.groups * GROUP_BYTES, "the panel has these groups");
    assert!((1..=ROWS).contains(&sums.len()), "1 to {ROWS} rows");
    tile.input.check(sums.len());
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a value of this level exists only where the features were detected; the lengths were
        // asserted.
        IntegerLevel::Avx512Vnni => unsafe { vnni512::multiply(tile, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        IntegerLevel::AvxVnni => unsafe { vnni256::multiply(tile, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        IntegerLevel::Avx2 => unsafe { avx2::multiply(tile, sums) },
        IntegerLevel::Portable => portable(tile, sums),
    }
}

/// Adds the products of two panels and rows to their sums.
pub(super) fn multiply_pair(
    isa: IntegerIsa,
    panels: [&[u8]; 2],
    input: RowBlock<'_>,
    sums: &mut [[[f32; PANEL]; 2]],
) {
    let bytes = input.groups * GROUP_BYTES;
    assert!(panels.iter().all(|panel| panel.len() == bytes), "the panels have these groups");
    assert!((1..=ROWS).contains(&sums.len()), "1 to {ROWS} rows");
    input.check(sums.len());
    #[cfg(target_arch = "x86_64")]
    if isa.0 == IntegerLevel::Avx512Vnni {
        // SAFETY: a value of this level exists only where the features were detected; the lengths were
        // asserted.
        return unsafe { vnni512::multiply_pair(panels, input, sums) };
    }
    for (index, panel) in panels.into_iter().enumerate() {
        let mut part: [[f32; PANEL]; ROWS] = [[0.0; PANEL]; ROWS];
        let part = &mut part[..sums.len()];
        part.iter_mut().zip(&*sums).for_each(|(part, sums)| *part = sums[index]);
        multiply(isa, PanelRows { panel, input }, part);
        sums.iter_mut().zip(part).for_each(|(sums, part)| sums[index] = *part);
    }
}

/// Computes what every other way must equal bit for bit.
fn portable(tile: PanelRows<'_>, sums: &mut [[f32; PANEL]]) {
    let RowBlock { groups, values, scales, starts } = tile.input;
    for (row, sums) in sums.iter_mut().enumerate() {
        let values = values[row * groups * GROUP..].chunks_exact(GROUP);
        for (at, (group, values)) in tile.panel.chunks_exact(GROUP_BYTES).zip(values).enumerate() {
            let mut exact = [starts[row * groups + at]; PANEL];
            let quads = group[..WEIGHT_BYTES].chunks_exact(PANEL * QUAD).zip(values.chunks_exact(QUAD));
            for (weights, values) in quads {
                for (exact, weights) in exact.iter_mut().zip(weights.chunks_exact(QUAD)) {
                    let products = weights.iter().zip(values).map(|(w, v)| i32::from(*w) * i32::from(*v));
                    *exact += products.sum::<i32>();
                }
            }
            let scale = scales[row * groups + at];
            for (lane, (sum, exact)) in sums.iter_mut().zip(exact).enumerate() {
                *sum = (exact as f32).mul_add(scale_of(group, lane) * scale, *sum);
            }
        }
    }
}

/// Dispatches a number of rows to a function for it.
#[cfg(target_arch = "x86_64")]
macro_rules! by_rows {
    ($tile:expr, $sums:expr, $function:ident: $($rows:literal)+) => {
        match $sums.len() {
            $($rows => $function::<$rows>($tile, $sums),)+
            _ => unreachable!("asserted by `multiply`"),
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod vnni512 {
    use super::{GROUP, GROUP_BYTES, PANEL, PanelRows, QUADS, RowBlock, WEIGHT_BYTES};
    use std::arch::x86_64::{
        _mm256_loadu_si256, _mm512_add_epi32, _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_dpbusd_epi32,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi32,
        _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps,
    };

    /// # Safety
    /// As [`super::multiply`], with AVX-512F, BW and VNNI.
    pub(super) unsafe fn multiply(tile: PanelRows<'_>, sums: &mut [[f32; PANEL]]) {
        // SAFETY: the caller's guarantees.
        unsafe { by_rows!(tile, sums, rows: 1 2 3 4 5 6) }
    }

    /// # Safety
    /// As [`super::multiply_pair`], with AVX-512F, BW and VNNI.
    pub(super) unsafe fn multiply_pair(
        panels: [&[u8]; 2],
        input: RowBlock<'_>,
        sums: &mut [[[f32; PANEL]; 2]],
    ) {
        // SAFETY: the caller's guarantees.
        unsafe {
            match sums.len() {
                1 => pair::<1>(panels, input, sums),
                2 => pair::<2>(panels, input, sums),
                3 => pair::<3>(panels, input, sums),
                4 => pair::<4>(panels, input, sums),
                5 => pair::<5>(panels, input, sums),
                6 => pair::<6>(panels, input, sums),
                _ => unreachable!("asserted by `multiply_pair`"),
            }
        }
    }

    /// # Safety
    /// As [`multiply_pair`], for `R` rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,f16c")]
    unsafe fn pair<const R: usize>(panels: [&[u8]; 2], input: RowBlock<'_>, sums: &mut [[[f32; PANEL]; 2]]) {
        let RowBlock { groups, values, scales, starts } = input;
        // SAFETY: all offsets stay inside the panels and the rows, whose lengths the caller guarantees.
        unsafe {
            let mut total = [[_mm512_setzero_ps(); 2]; R];
            for (total, sums) in total.iter_mut().zip(&*sums) {
                for (total, sums) in total.iter_mut().zip(sums) {
                    *total = _mm512_loadu_ps(sums.as_ptr());
                }
            }
            let (mut first, mut second) = (panels[0].as_ptr(), panels[1].as_ptr());
            for group in 0..groups {
                let mut exact = [[_mm512_setzero_si512(); 2]; R];
                for (row, exact) in exact.iter_mut().enumerate() {
                    *exact = [_mm512_set1_epi32(*starts.get_unchecked(row * groups + group)); 2];
                }
                let input = values.as_ptr().add(group * GROUP).cast::<i32>();
                for quad in 0..QUADS {
                    let weights =
                        [first, second].map(|panel| _mm512_loadu_si512(panel.add(quad * 64).cast()));
                    for (row, exact) in exact.iter_mut().enumerate() {
                        let given = input.add(row * groups * QUADS + quad).read_unaligned();
                        let given = _mm512_set1_epi32(given);
                        exact[0] = _mm512_dpbusd_epi32(exact[0], weights[0], given);
                        exact[1] = _mm512_dpbusd_epi32(exact[1], weights[1], given);
                    }
                }
                let scale = [first, second]
                    .map(|panel| _mm512_cvtph_ps(_mm256_loadu_si256(panel.add(WEIGHT_BYTES).cast())));
                for (row, (total, exact)) in total.iter_mut().zip(exact).enumerate() {
                    let given = _mm512_set1_ps(*scales.get_unchecked(row * groups + group));
                    for panel in 0..2 {
                        let both = _mm512_mul_ps(scale[panel], given);
                        total[panel] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact[panel]), both, total[panel]);
                    }
                }
                first = first.add(GROUP_BYTES);
                second = second.add(GROUP_BYTES);
            }
            for (total, sums) in total.iter().zip(sums) {
                for (total, sums) in total.iter().zip(sums) {
                    _mm512_storeu_ps(sums.as_mut_ptr(), *total);
                }
            }
        }
    }

    /// # Safety
    /// As [`multiply`], for `R` rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,f16c")]
    unsafe fn rows<const R: usize>(tile: PanelRows<'_>, sums: &mut [[f32; PANEL]]) {
        let RowBlock { groups, values, scales, starts } = tile.input;
        // SAFETY: all offsets stay inside the panel and the rows, whose lengths the caller guarantees.
        unsafe {
            let mut total = [_mm512_setzero_ps(); R];
            for (total, sums) in total.iter_mut().zip(&*sums) {
                *total = _mm512_loadu_ps(sums.as_ptr());
            }
            let mut panel = tile.panel.as_ptr();
            for group in 0..groups {
                let mut weights = [_mm512_setzero_si512(); QUADS];
                for (quad, weights) in weights.iter_mut().enumerate() {
                    *weights = _mm512_loadu_si512(panel.add(quad * 64).cast());
                }
                let scale = _mm512_cvtph_ps(_mm256_loadu_si256(panel.add(WEIGHT_BYTES).cast()));
                for (row, total) in total.iter_mut().enumerate() {
                    let at = row * groups + group;
                    let input = values.as_ptr().add(at * GROUP).cast::<i32>();
                    let given = |quad: usize| _mm512_set1_epi32(input.add(quad).read_unaligned());
                    // Two chains: a single row would wait for each instruction before it.
                    let mut even = _mm512_set1_epi32(*starts.get_unchecked(at));
                    let mut odd = _mm512_setzero_si512();
                    for (pair, weights) in weights.as_chunks::<2>().0.iter().enumerate() {
                        even = _mm512_dpbusd_epi32(even, weights[0], given(2 * pair));
                        odd = _mm512_dpbusd_epi32(odd, weights[1], given(2 * pair + 1));
                    }
                    let exact = _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
                    let both = _mm512_mul_ps(scale, _mm512_set1_ps(*scales.get_unchecked(at)));
                    *total = _mm512_fmadd_ps(exact, both, *total);
                }
                panel = panel.add(GROUP_BYTES);
            }
            for (total, sums) in total.iter().zip(sums) {
                _mm512_storeu_ps(sums.as_mut_ptr(), *total);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod wide256 {
    use super::{GROUP, GROUP_BYTES, PANEL, PanelRows, RowBlock, WEIGHT_BYTES};
    use std::arch::x86_64::{
        __m256i, _mm_loadu_si128, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
        _mm256_mul_ps, _mm256_set1_ps, _mm256_storeu_ps,
    };

    /// Multiplies a panel and rows in halves of 8 outputs. `exact` returns the sums of a group's products,
    /// of its weights and activations, and the start of the sums of weights that are 128 too large.
    ///
    /// # Safety
    /// As [`super::multiply`]; the caller has AVX2, FMA and F16C, and is compiled for them.
    #[inline(always)]
    pub(super) unsafe fn multiply_with(
        tile: PanelRows<'_>,
        sums: &mut [[f32; PANEL]],
        exact: impl Fn(*const u8, *const i32, i32) -> [__m256i; 2],
    ) {
        let RowBlock { groups, values, scales, starts } = tile.input;
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: all offsets stay inside the panel and the rows, whose lengths the caller guarantees.
            unsafe {
                let low_sums = sums.as_mut_ptr();
                let high_sums = low_sums.add(8);
                let (mut low, mut high) = (_mm256_loadu_ps(low_sums), _mm256_loadu_ps(high_sums));
                let mut panel = tile.panel.as_ptr();
                for group in 0..groups {
                    let at = row * groups + group;
                    let input = values.as_ptr().add(at * GROUP).cast::<i32>();
                    let exact = exact(panel, input, *starts.get_unchecked(at));
                    let given = _mm256_set1_ps(*scales.get_unchecked(at));
                    let scale = |half: usize| {
                        let stored = _mm_loadu_si128(panel.add(WEIGHT_BYTES + half * 16).cast());
                        _mm256_mul_ps(_mm256_cvtph_ps(stored), given)
                    };
                    low = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact[0]), scale(0), low);
                    high = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact[1]), scale(1), high);
                    panel = panel.add(GROUP_BYTES);
                }
                _mm256_storeu_ps(low_sums, low);
                _mm256_storeu_ps(high_sums, high);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod vnni256 {
    use super::{PANEL, PanelRows, QUADS, wide256};
    use std::arch::x86_64::{_mm256_dpbusd_avx_epi32, _mm256_loadu_si256, _mm256_set1_epi32};

    /// # Safety
    /// As [`super::multiply`], with AVX2, FMA, F16C and AVX-VNNI.
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    pub(super) unsafe fn multiply(tile: PanelRows<'_>, sums: &mut [[f32; PANEL]]) {
        let exact = |panel: *const u8, input: *const i32, start: i32| {
            let mut exact = [_mm256_set1_epi32(start); 2];
            for quad in 0..QUADS {
                // SAFETY: a group of the panel and of the row.
                unsafe {
                    let given = _mm256_set1_epi32(input.add(quad).read_unaligned());
                    for (half, exact) in exact.iter_mut().enumerate() {
                        let weights = _mm256_loadu_si256(panel.add(quad * 64 + half * 32).cast());
                        *exact = _mm256_dpbusd_avx_epi32(*exact, weights, given);
                    }
                }
            }
            exact
        };
        // SAFETY: the caller's guarantees.
        unsafe { wide256::multiply_with(tile, sums, exact) };
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{PANEL, PanelRows, QUADS, wide256};
    use std::arch::x86_64::{
        _mm256_abs_epi8, _mm256_add_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
        _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_sign_epi8,
        _mm256_xor_si256,
    };

    /// The instruction multiplies unsigned by signed bytes, and adds pairs into 16 bits. A weight of 128 at
    /// most, its sign given to the activation, keeps each pair below 2^15.
    ///
    /// # Safety
    /// As [`super::multiply`], with AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn multiply(tile: PanelRows<'_>, sums: &mut [[f32; PANEL]]) {
        let (sign, ones) = (_mm256_set1_epi8(-128), _mm256_set1_epi16(1));
        let exact = |panel: *const u8, input: *const i32, _: i32| {
            let mut exact = [_mm256_setzero_si256(); 2];
            for quad in 0..QUADS {
                // SAFETY: a group of the panel and of the row.
                unsafe {
                    let given = _mm256_set1_epi32(input.add(quad).read_unaligned());
                    for (half, exact) in exact.iter_mut().enumerate() {
                        let stored = _mm256_loadu_si256(panel.add(quad * 64 + half * 32).cast());
                        let weights = _mm256_xor_si256(stored, sign);
                        let signed = _mm256_sign_epi8(given, weights);
                        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed);
                        *exact = _mm256_add_epi32(*exact, _mm256_madd_epi16(pairs, ones));
                    }
                }
            }
            exact
        };
        // SAFETY: the caller's guarantees.
        unsafe { wide256::multiply_with(tile, sums, exact) };
    }
}
