//! The product with AVX2, for processors without AVX-512 VNNI.
//!
//! There is no product of bytes here that cannot overflow, so numbers of 16 bits are multiplied: both bytes of an activation are
//! put together again, and a column's elements are taken in two steps, the even ones and the odd ones, which are halves of words
//! then.
#![allow(clippy::needless_range_loop)] // Indices of vectors, blocks and tokens, which address memory too.

use std::arch::x86_64::*;
use std::ops::Range;

use super::activations::scale_of;
use super::columns::{COLUMNS, Columns, avx2::column, min, scale};
use super::{Activations16, Activations16Parts, BLOCK, GROUP, Interleaved, PANEL_BYTES};
use crate::simd::avx2::Avx2;
use crate::tile::OutView;

/// Rows of a vector.
const LANES: usize = 8;
/// Vectors of a group.
const VECTORS: usize = GROUP / LANES;
/// Tokens of a tile.
const TILE_TOKENS: usize = 4;
/// Blocks of activations that are widened together, of all tokens of a tile: they stay in the first-level cache.
const WIDENED: usize = 128;

/// Some rows by all tokens.
///
/// # Safety
/// `rows` begin with a group; rows and tokens are those of the operands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn matmul<F: Columns>(
    simd: Avx2,
    weight: &Interleaved,
    rows: Range<usize>,
    x: &Activations16,
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
    let step = (PANEL_BYTES / weight.group_bytes().max(1)).max(1);
    for first in (0..n_groups).step_by(step) {
        let groups = first..(first + step).min(n_groups);
        for token in (0..out.n_tokens()).step_by(TILE_TOKENS) {
            let groups = groups.clone();
            // SAFETY: as the caller vouches.
            unsafe {
                match out.n_tokens() - token {
                    1 => product.groups::<F, 4, 1>(groups, token, out),
                    2 => product.groups::<F, 2, 2>(groups, token, out),
                    3 => product.groups::<F, 1, 3>(groups, token, out),
                    _ => product.groups::<F, 1, TILE_TOKENS>(groups, token, out),
                }
            }
        }
    }
}

/// Activations of a block in 16 bits: of each column the even elements, then of each the odd ones.
#[repr(C, align(32))]
#[derive(Clone, Copy)]
struct Widened {
    even: [i32; COLUMNS],
    odd: [i32; COLUMNS],
}

/// The operands of a product.
struct Product<'a> {
    simd: Avx2,
    weight: &'a Interleaved,
    x: &'a Activations16,
    /// Of a row.
    n_blocks: usize,
    /// Where the rows begin.
    first_group: usize,
    n_rows: usize,
}

impl Product<'_> {
    /// Some groups by `T` tokens, `V` vectors of rows at a time.
    ///
    /// # Safety
    /// Groups and tokens are those of the operands.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn groups<F: Columns, const V: usize, const T: usize>(
        &self,
        groups: Range<usize>,
        token: usize,
        out: &mut OutView<'_>,
    ) {
        let mut widened = [Widened { even: [0; COLUMNS], odd: [0; COLUMNS] }; WIDENED];
        let stretch = WIDENED / T;
        // Of more than one vector, tiles take whole groups.
        let n_tiles = if V == 1 { 0 } else { groups.len() * VECTORS / V };
        let others = groups.start * VECTORS + n_tiles * V..(groups.end * VECTORS).min(self.n_rows.div_ceil(LANES));
        // Without blocks, sums of nothing are written all the same.
        for start in (0..self.n_blocks.max(1)).step_by(stretch) {
            let blocks = start..(start + stretch).min(self.n_blocks);
            // SAFETY: as the caller vouches. Groups of a tile lie far apart: long streams.
            unsafe {
                for t in 0..T {
                    let quants = self.x.quants().as_ptr().add((token + t) * self.n_blocks * 2 * BLOCK);
                    for (i, b) in blocks.clone().enumerate() {
                        widened[t * stretch + i] = widen(quants.add(b * 2 * BLOCK));
                    }
                }
                for tile in 0..n_tiles {
                    let first = (groups.start + tile) * VECTORS;
                    self.tile::<F, V, T>(first, n_tiles, token, blocks.clone(), &widened, out);
                }
                for vector in others.clone() {
                    self.tile::<F, 1, T>(vector, 0, token, blocks.clone(), &widened, out);
                }
            }
        }
    }

    /// Carries the sums of a vector of rows, or of the groups from that on that are so many groups apart, `V` vectors in all, and of
    /// `T` tokens on along some blocks. They rest in `out` in between.
    ///
    /// # Safety
    /// As [`Product::groups`]; more than one vector begin with a group's first, and what is widened are the blocks.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile<F: Columns, const V: usize, const T: usize>(
        &self,
        vector: usize,
        apart: usize,
        token: usize,
        blocks: Range<usize>,
        widened: &[Widened; WIDENED],
        out: &mut OutView<'_>,
    ) {
        let Self { simd, weight, x, n_blocks, first_group, n_rows } = *self;
        let (n_scales, column_bytes, stretch) = (F::LAYOUT.n_scales, F::LAYOUT.column_bytes(), WIDENED / T);
        // Of each vector: the group, its first row in that, and how many of its rows there are.
        let group: [usize; V] = std::array::from_fn(|v| vector / VECTORS + v / VECTORS * apart);
        let row: [usize; V] = std::array::from_fn(|v| if V == 1 { vector % VECTORS } else { v % VECTORS } * LANES);
        let n_present: [usize; V] =
            std::array::from_fn(|v| n_rows.saturating_sub(group[v] * GROUP + row[v]).min(LANES));
        // SAFETY: blocks of the rows' groups and of the tokens.
        unsafe {
            let heads: [*const u8; V] =
                std::array::from_fn(|v| weight.bytes().as_ptr().add((first_group + group[v]) * weight.group_bytes()));
            let columns: [*const u8; V] = std::array::from_fn(|v| heads[v].add(F::LAYOUT.columns_at(n_blocks * BLOCK)));
            let mut acc = [[_mm256_setzero_ps(); T]; V];
            if blocks.start > 0 {
                for v in (0..V).filter(|v| n_present[*v] > 0) {
                    for t in 0..T {
                        acc[v][t] = load_part(out.at(token + t, group[v] * GROUP + row[v]), n_present[v]);
                    }
                }
            }
            for b in blocks.clone() {
                for part in 0..n_scales {
                    let mut dots = [[_mm256_setzero_si256(); T]; V];
                    for k in part * COLUMNS / n_scales..(part + 1) * COLUMNS / n_scales {
                        let (mut even, mut odd) = ([_mm256_setzero_si256(); V], [_mm256_setzero_si256(); V]);
                        for v in 0..V {
                            let block = columns[v].add(b * column_bytes);
                            if T == 1 && row[v] == 0 && k * 64 < column_bytes {
                                _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(k * 64 + PREFETCH_BYTES).cast());
                            }
                            let column = column::<F>(block, row[v], k);
                            even[v] = _mm256_and_si256(column, _mm256_set1_epi16(0xFF));
                            odd[v] = _mm256_srli_epi16::<8>(column);
                        }
                        for t in 0..T {
                            let x = widened.get_unchecked(t * stretch + b - blocks.start);
                            let (x_even, x_odd) = (_mm256_set1_epi32(x.even[k]), _mm256_set1_epi32(x.odd[k]));
                            for v in 0..V {
                                let products = _mm256_madd_epi16(even[v], x_even);
                                dots[v][t] = _mm256_add_epi32(dots[v][t], products);
                                let products = _mm256_madd_epi16(odd[v], x_odd);
                                dots[v][t] = _mm256_add_epi32(dots[v][t], products);
                            }
                        }
                    }
                    for t in 0..T {
                        let at = (token + t) * n_blocks + b;
                        let sum = match n_scales {
                            1 => *x.sums.get_unchecked(2 * at) + *x.sums.get_unchecked(2 * at + 1),
                            _ => *x.sums.get_unchecked(2 * at + part),
                        };
                        let x_scale = *x.scales.get_unchecked(at);
                        let offset = _mm256_set1_epi32(sum * F::LAYOUT.offset);
                        for v in 0..V {
                            let w_scale = scale::<_, F>(simd, heads[v], row[v], b, part);
                            let scale = _mm256_mul_ps(w_scale, _mm256_set1_ps(x_scale));
                            let dot = _mm256_cvtepi32_ps(_mm256_sub_epi32(dots[v][t], offset));
                            acc[v][t] = _mm256_fmadd_ps(dot, scale, acc[v][t]);
                            if F::LAYOUT.has_min {
                                let w_min = min::<_, F>(simd, heads[v], row[v], b, part);
                                acc[v][t] = _mm256_fmadd_ps(w_min, _mm256_set1_ps(x_scale * sum as f32), acc[v][t]);
                            }
                        }
                    }
                }
            }
            for v in (0..V).filter(|v| n_present[*v] > 0) {
                for t in 0..T {
                    store_part(acc[v][t], out.at(token + t, group[v] * GROUP + row[v]), n_present[v]);
                }
            }
        }
    }
}

/// How far ahead of its loads a stream asks for weights: at 1024 a product with one token is a fifth slower.
const PREFETCH_BYTES: usize = 2048;

/// The first `n` lanes, zeros behind them.
///
/// # Safety
/// They may be read.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_part(from: *const f32, n: usize) -> __m256 {
    // SAFETY: as the caller vouches; the others are not read.
    unsafe { _mm256_maskload_ps(from, first(n)) }
}

/// Writes the first `n` lanes.
///
/// # Safety
/// They may be written.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store_part(value: __m256, to: *mut f32, n: usize) {
    // SAFETY: as the caller vouches; the others are not written.
    unsafe { _mm256_maskstore_ps(to, first(n), value) };
}

/// The mask of the first `n` lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn first(n: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// Puts the bytes of a block of activations together.
///
/// # Safety
/// The block may be read.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen(quants: *const i8) -> Widened {
    let mut to = Widened { even: [0; COLUMNS], odd: [0; COLUMNS] };
    // SAFETY: 32 bytes of each plane.
    unsafe {
        let (high, low) = (_mm256_loadu_si256(quants.cast()), _mm256_loadu_si256(quants.add(BLOCK).cast()));
        let even_low = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(low));
        let even = _mm256_add_epi16(_mm256_slli_epi16::<8>(high), even_low);
        let odd_high = _mm256_andnot_si256(_mm256_set1_epi16(0xFF), high);
        let odd = _mm256_add_epi16(odd_high, _mm256_srai_epi16::<8>(low));
        _mm256_store_si256(to.even.as_mut_ptr().cast(), even);
        _mm256_store_si256(to.odd.as_mut_ptr().cast(), odd);
    }
    to
}

/// Rounds activations.
///
/// # Safety
/// The lengths fit, and the processor has the instructions.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn quantize(x: &[f32], to: Activations16Parts<'_>) {
    let Activations16Parts { quants, scales, sums, scaled_sums } = to;
    // SAFETY: as the caller vouches.
    unsafe {
        for b in 0..scales.len() {
            let x: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(x.as_ptr().add(b * BLOCK + i * LANES)));
            // As integers, so that what is no number is the greatest.
            let magnitudes = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX)));
            let [m0, m1, m2, m3] = magnitudes;
            let max = _mm256_max_epu32(_mm256_max_epu32(m0, m1), _mm256_max_epu32(m2, m3));
            let max = _mm_max_epu32(_mm256_castsi256_si128(max), _mm256_extracti128_si256::<1>(max));
            let max = _mm_max_epu32(max, _mm_shuffle_epi32::<0b01_00_11_10>(max));
            let max = _mm_max_epu32(max, _mm_shuffle_epi32::<0b10_11_00_01>(max));
            let (scale, inverse) = scale_of(f32::from_bits(_mm_cvtsi128_si32(max) as u32));
            let inverse = _mm256_set1_ps(inverse);
            let x = x.map(|x| rounded(_mm256_mul_ps(x, inverse)));
            let high = x.map(|x| _mm256_srai_epi32::<8>(_mm256_add_epi32(x, _mm256_set1_epi32(128))));
            let low: [__m256i; 4] = std::array::from_fn(|i| _mm256_sub_epi32(x[i], _mm256_slli_epi32::<8>(high[i])));
            let to = quants.as_mut_ptr().add(b * 2 * BLOCK);
            _mm256_storeu_si256(to.cast(), bytes_of(high));
            _mm256_storeu_si256(to.add(BLOCK).cast(), bytes_of(low));
            (sums[2 * b], sums[2 * b + 1]) = (sum_of(x[0], x[1]), sum_of(x[2], x[3]));
            scales[b] = scale;
            scaled_sums[b] = scale * (sums[2 * b] + sums[2 * b + 1]) as f32;
        }
    }
}

/// The nearest whole numbers; zero for what is no number.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn rounded(x: __m256) -> __m256i {
    let is_number = _mm256_cmp_ps::<_CMP_ORD_Q>(x, x);
    _mm256_and_si256(_mm256_cvtps_epi32(x), _mm256_castps_si256(is_number))
}

/// Numbers that fit a signed byte, as such, in order.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bytes_of([a, b, c, d]: [__m256i; 4]) -> __m256i {
    // Packing goes by halves of vectors: four bytes of each in turn.
    let packed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

/// Of all lanes of both.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_of(a: __m256i, b: __m256i) -> i32 {
    let sum = _mm256_add_epi32(a, b);
    let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
    _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum)))
}
