//! The product with AVX-512 VNNI.
#![allow(clippy::needless_range_loop)] // Indices of groups, blocks and tokens, which address memory too.

use std::arch::x86_64::*;
use std::ops::Range;

use super::activations::scale_of;
use super::columns::{COLUMNS, Columns, avx512::column, min, scale};
use super::{Activations16, Activations16Parts, BLOCK, GROUP, Interleaved, PANEL_BYTES};
use crate::simd::avx512::Avx512;
use crate::tile::OutView;

/// Tokens of a tile: with two groups, 16 sums of integers and 8 of floats fill the registers.
const TILE_TOKENS: usize = 4;

/// Some rows by some tokens.
///
/// # Safety
/// `rows` begin with a group; rows and tokens are those of the operands; the processor has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn matmul<F: Columns>(
    simd: Avx512,
    weight: &Interleaved,
    rows: Range<usize>,
    x: &Activations16,
    tokens: Range<usize>,
    out: &mut OutView<'_>,
) {
    let product = Product {
        simd,
        weight,
        x,
        n_blocks: weight.n_cols() / BLOCK,
        first_group: rows.start / GROUP,
        n_rows: rows.len(),
    };
    let n_groups = rows.len().div_ceil(GROUP);
    // SAFETY: as the caller vouches.
    unsafe {
        match tokens.len() {
            0 => {}
            1 => product.groups::<F, 4, 1>(0..n_groups, tokens.start, out),
            2 => product.groups::<F, 4, 2>(0..n_groups, tokens.start, out),
            3 => product.groups::<F, 2, 3>(0..n_groups, tokens.start, out),
            _ => {
                let step = (PANEL_BYTES / weight.group_bytes().max(1)).max(2);
                for first in (0..n_groups).step_by(step) {
                    let groups = first..(first + step).min(n_groups);
                    for token in tokens.clone().step_by(TILE_TOKENS) {
                        let groups = groups.clone();
                        match tokens.end - token {
                            1 => product.groups::<F, 2, 1>(groups, token, out),
                            2 => product.groups::<F, 2, 2>(groups, token, out),
                            3 => product.groups::<F, 2, 3>(groups, token, out),
                            _ => product.groups::<F, 2, 4>(groups, token, out),
                        }
                    }
                }
            }
        }
    }
}

/// The operands of a product.
struct Product<'a> {
    simd: Avx512,
    weight: &'a Interleaved,
    x: &'a Activations16,
    /// Of a row.
    n_blocks: usize,
    /// Where the rows begin.
    first_group: usize,
    n_rows: usize,
}

impl Product<'_> {
    /// Some groups by `T` tokens, `G` groups at a time.
    ///
    /// # Safety
    /// Groups and tokens are those of the operands.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn groups<F: Columns, const G: usize, const T: usize>(
        &self,
        groups: Range<usize>,
        token: usize,
        out: &mut OutView<'_>,
    ) {
        let n_tiles = groups.len() / G;
        // SAFETY: as the caller vouches. Groups of a tile lie far apart: `G` long streams.
        unsafe {
            for tile in 0..n_tiles {
                self.tile::<F, G, T>(groups.start + tile, n_tiles, token, out);
            }
            for group in groups.start + n_tiles * G..groups.end {
                self.tile::<F, 1, T>(group, 0, token, out);
            }
        }
    }

    /// Groups `group`, `group + apart` and so on by `T` tokens.
    ///
    /// # Safety
    /// As [`Product::groups`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn tile<F: Columns, const G: usize, const T: usize>(
        &self,
        group: usize,
        apart: usize,
        token: usize,
        out: &mut OutView<'_>,
    ) {
        let Self { simd, weight, x, n_blocks, first_group, n_rows } = *self;
        let group_bytes = weight.group_bytes();
        // SAFETY: blocks of the groups and of the tokens.
        unsafe {
            let first = weight.bytes().as_ptr().add((first_group + group) * group_bytes);
            let heads: [*const u8; G] = std::array::from_fn(|g| first.add(g * apart * group_bytes));
            let columns: [*const u8; G] = std::array::from_fn(|g| heads[g].add(F::LAYOUT.columns_at(n_blocks * BLOCK)));
            let at = |t: usize| (token + t) * n_blocks;
            let quants: [*const i32; T] = std::array::from_fn(|t| x.quants().as_ptr().add(at(t) * 2 * BLOCK).cast());
            let scales: [*const f32; T] = std::array::from_fn(|t| x.scales.as_ptr().add(at(t)));
            let sums: [*const i32; T] = std::array::from_fn(|t| x.sums.as_ptr().add(at(t) * 2));
            let scaled_sums: [*const f32; T] = std::array::from_fn(|t| x.scaled_sums.as_ptr().add(at(t)));
            let (n_scales, column_bytes) = (F::LAYOUT.n_scales, F::LAYOUT.column_bytes());
            let mut acc = [[_mm512_setzero_ps(); T]; G];
            for b in 0..n_blocks {
                for part in 0..n_scales {
                    let mut high = [[_mm512_setzero_si512(); T]; G];
                    let mut low = [[_mm512_setzero_si512(); T]; G];
                    // Of a token's activations.
                    let sum = |t: usize| {
                        if n_scales == 1 {
                            *sums[t].add(2 * b) + *sums[t].add(2 * b + 1)
                        } else {
                            *sums[t].add(2 * b + part)
                        }
                    };
                    for t in 0..T {
                        let offset = _mm512_set1_epi32(-sum(t) * F::LAYOUT.offset);
                        for g in 0..G {
                            low[g][t] = offset;
                        }
                    }
                    for k in part * COLUMNS / n_scales..(part + 1) * COLUMNS / n_scales {
                        let mut w = [_mm512_setzero_si512(); G];
                        for g in 0..G {
                            let block = columns[g].add(b * column_bytes);
                            if T == 1 && k * 64 < column_bytes {
                                _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(k * 64 + PREFETCH_BYTES).cast());
                            }
                            w[g] = column::<F>(block, k);
                        }
                        for t in 0..T {
                            let block = quants[t].add(b * 2 * COLUMNS);
                            let a_high = _mm512_set1_epi32(block.add(k).read_unaligned());
                            let a_low = _mm512_set1_epi32(block.add(COLUMNS + k).read_unaligned());
                            for g in 0..G {
                                high[g][t] = _mm512_dpbusd_epi32(high[g][t], w[g], a_high);
                                low[g][t] = _mm512_dpbusd_epi32(low[g][t], w[g], a_low);
                            }
                        }
                    }
                    for g in 0..G {
                        let w_scale = scale::<_, F>(simd, heads[g], 0, b, part);
                        for t in 0..T {
                            let scale = _mm512_mul_ps(w_scale, _mm512_set1_ps(*scales[t].add(b)));
                            let dot = _mm512_add_epi32(_mm512_slli_epi32::<8>(high[g][t]), low[g][t]);
                            acc[g][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, acc[g][t]);
                        }
                    }
                    if F::LAYOUT.has_min {
                        let scaled_sum = |t: usize| {
                            if n_scales == 1 { *scaled_sums[t].add(b) } else { *scales[t].add(b) * sum(t) as f32 }
                        };
                        for g in 0..G {
                            let w_min = min::<_, F>(simd, heads[g], 0, b, part);
                            for t in 0..T {
                                acc[g][t] = _mm512_fmadd_ps(w_min, _mm512_set1_ps(scaled_sum(t)), acc[g][t]);
                            }
                        }
                    }
                }
            }
            for g in 0..G {
                let row = (group + g * apart) * GROUP;
                let present = u16::MAX >> (GROUP - (n_rows - row).min(GROUP));
                for t in 0..T {
                    _mm512_mask_storeu_ps(out.at(token + t, row), present, acc[g][t]);
                }
            }
        }
    }
}

/// How far ahead of its loads a stream asks for weights.
const PREFETCH_BYTES: usize = 1024;

/// Rounds activations.
///
/// # Safety
/// The lengths fit, and the processor has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn quantize(x: &[f32], to: Activations16Parts<'_>) {
    let Activations16Parts { quants, scales, sums, scaled_sums } = to;
    // SAFETY: as the caller vouches.
    unsafe {
        for b in 0..scales.len() {
            let from = x.as_ptr().add(b * BLOCK);
            let (low, high) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
            // As integers, so that what is no number is the greatest.
            let magnitude = |v: __m512| _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(i32::MAX));
            let max = _mm512_reduce_max_epu32(_mm512_max_epu32(magnitude(low), magnitude(high)));
            let (scale, inverse) = scale_of(f32::from_bits(max));
            let inverse = _mm512_set1_ps(inverse);
            let to = quants.as_mut_ptr().add(b * 2 * BLOCK);
            for (i, x) in [low, high].into_iter().enumerate() {
                let scaled = _mm512_mul_ps(x, inverse);
                // Zero for what is no number.
                let quants = _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask::<_CMP_ORD_Q>(scaled, scaled), scaled);
                let upper = _mm512_srai_epi32::<8>(_mm512_add_epi32(quants, _mm512_set1_epi32(128)));
                let lower = _mm512_sub_epi32(quants, _mm512_slli_epi32::<8>(upper));
                _mm_storeu_si128(to.add(16 * i).cast(), _mm512_cvtepi32_epi8(upper));
                _mm_storeu_si128(to.add(BLOCK + 16 * i).cast(), _mm512_cvtepi32_epi8(lower));
                sums[2 * b + i] = _mm512_reduce_add_epi32(quants);
            }
            scales[b] = scale;
            scaled_sums[b] = scale * (sums[2 * b] + sums[2 * b + 1]) as f32;
        }
    }
}
