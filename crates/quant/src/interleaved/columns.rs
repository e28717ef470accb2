//! How the formats' interleaved blocks are read into vectors: layouts are those of [`super::layout`].

use std::arch::x86_64::*;

use super::layout::{FOUR_BITS, Layout, Scaling, TWO_BITS};
use super::{BLOCK, GROUP};
use crate::formats::Format;
use crate::simd::Simd;

/// Columns of a block.
pub(super) const COLUMNS: usize = BLOCK / 4;

/// A format as the kernels see it.
pub(super) trait Columns {
    /// Where everything lies.
    const LAYOUT: Layout;
}

/// The types that stand for formats, each with its layout.
macro_rules! columns {
    ($($name:ident)*) => {
        $(
            pub(super) struct $name;
            impl Columns for $name {
                const LAYOUT: Layout = Layout::of(Format::$name).unwrap();
            }
        )*
    };
}

with_formats!(columns);

/// Scales of block `b`, or of its `part`-th half where it has two, of a vector's rows.
///
/// # Safety
/// The heads of a group, which has that block, may be read; the vector's rows are from `row` on.
#[inline(always)]
pub(super) unsafe fn scale<S: Simd, F: Columns>(simd: S, heads: *const u8, row: usize, b: usize, part: usize) -> S::F {
    let Layout { blocks_per_head, .. } = F::LAYOUT;
    // SAFETY: within the block's head.
    unsafe {
        let head = heads.add(b / blocks_per_head * F::LAYOUT.head_bytes());
        let bytes = |i: usize| head.add(F::LAYOUT.sub_scale_at(b % blocks_per_head, i) + row);
        let sub_scale = match F::LAYOUT.scaling {
            Scaling::Head => return simd.load_f16(head.add(2 * row)),
            Scaling::Exponent => return half_scale(simd, unsigned_bytes(simd, head.add(row))),
            Scaling::Signed(_) => simd.load_i8(bytes(part)),
            Scaling::WithMin => simd.int_to_f32(unsigned_bytes(simd, bytes(0))),
            Scaling::Nibbles => simd.int_to_f32(simd.and_int(unsigned_bytes(simd, bytes(part)), simd.splat_int(15))),
        };
        simd.mul(simd.load_f16(head.add(2 * row)), sub_scale)
    }
}

/// Minima of block `b`, or of its `part`-th half where it has two: what each of its elements has besides.
///
/// # Safety
/// As [`scale`], of a format that has minima.
#[inline(always)]
pub(super) unsafe fn min<S: Simd, F: Columns>(simd: S, heads: *const u8, row: usize, b: usize, part: usize) -> S::F {
    let Layout { blocks_per_head, .. } = F::LAYOUT;
    // SAFETY: within the block's head.
    unsafe {
        let head = heads.add(b / blocks_per_head * F::LAYOUT.head_bytes());
        let bytes = |i: usize| unsigned_bytes(simd, head.add(F::LAYOUT.sub_scale_at(b % blocks_per_head, i) + row));
        let min = simd.load_f16(head.add(2 * (GROUP + row)));
        let sub_min = match F::LAYOUT.scaling {
            Scaling::WithMin => bytes(1),
            Scaling::Nibbles => simd.shr_int::<4>(bytes(part)),
            Scaling::Head | Scaling::Exponent | Scaling::Signed(_) => return min,
        };
        simd.sub(simd.splat(-0.0), simd.mul(min, simd.int_to_f32(sub_min)))
    }
}

/// As many as a vector has lanes.
///
/// # Safety
/// They may be read.
#[inline(always)]
unsafe fn unsigned_bytes<S: Simd>(simd: S, from: *const u8) -> S::I {
    // SAFETY: as the caller vouches.
    simd.load_bytes(unsafe { std::slice::from_raw_parts(from, S::LANES) })
}

/// Scales from their exponents, as [`crate::formats::mxfp4::half_scale`] makes one: `2^(exponent - 128)`.
#[inline(always)]
fn half_scale<S: Simd>(simd: S, exponents: S::I) -> S::F {
    // The least exponent makes zero, the greatest infinity.
    let halved = simd.mul(simd.with_bits(simd.shl_int::<23>(exponents)), simd.splat(0.5));
    simd.max(simd.min(halved, simd.splat(2.0f32.powi(127))), simd.splat(f32::from_bits(0x0020_0000)))
}

/// Columns with AVX-512: sixteen rows, a lane each.
pub(super) mod avx512 {
    use super::*;

    /// Column `k` of 32 elements: elements `4 k` to `4 k + 3` of row `r` in lane `r`, unsigned.
    ///
    /// # Safety
    /// The columns may be read; the processor has the instructions.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    pub(in super::super) unsafe fn column<F: Columns>(columns: *const u8, k: usize) -> __m512i {
        // SAFETY: planes that the columns have.
        unsafe {
            let vector = |plane: *const u8, i: usize| _mm512_loadu_si512(plane.add(i * 64).cast());
            if F::LAYOUT.bits == 8 {
                return vector(columns, k);
            }
            let (mut plane, mut numbers) = (columns, _mm512_setzero_si512());
            if F::LAYOUT.has_plane(4) {
                let both = vector(plane, k % 4);
                let at = if k < 4 { both } else { _mm512_srli_epi16::<4>(both) };
                numbers = _mm512_and_si512(at, _mm512_set1_epi8(15));
                plane = plane.add(FOUR_BITS);
            }
            if F::LAYOUT.has_plane(2) {
                let (of_four_columns, to) = (vector(plane, k / 4), F::LAYOUT.two_bits_at());
                // Written out, for the instructions that have the distance in them.
                let in_place = match to as i32 - 2 * (k % 4) as i32 {
                    4 => _mm512_slli_epi16::<4>(of_four_columns),
                    2 => _mm512_slli_epi16::<2>(of_four_columns),
                    0 => of_four_columns,
                    -2 => _mm512_srli_epi16::<2>(of_four_columns),
                    -4 => _mm512_srli_epi16::<4>(of_four_columns),
                    _ => _mm512_srli_epi16::<6>(of_four_columns),
                };
                numbers = _mm512_or_si512(numbers, _mm512_and_si512(in_place, _mm512_set1_epi8(3 << to)));
                plane = plane.add(TWO_BITS);
            }
            if F::LAYOUT.has_plane(1) {
                let bits = plane.add(k * 8).cast::<u64>().read_unaligned();
                let bit = _mm512_set1_epi8(1 << F::LAYOUT.one_bit_at());
                numbers = _mm512_mask_add_epi8(numbers, bits, numbers, bit);
            }
            let Some(values) = F::LAYOUT.values else { return numbers };
            let values = _mm512_broadcast_i32x4(_mm_loadu_si128(values.as_ptr().cast()));
            let unsigned = _mm512_add_epi8(values, _mm512_set1_epi8(F::LAYOUT.offset as u8 as i8));
            _mm512_shuffle_epi8(unsigned, numbers)
        }
    }
}

/// Columns with AVX2: eight rows, a lane each.
pub(super) mod avx2 {
    use super::*;

    /// Column `k` of 32 elements, as with AVX-512, of the rows from `row` on, which is 0 or 8.
    ///
    /// # Safety
    /// The columns may be read; the processor has the instructions.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in super::super) unsafe fn column<F: Columns>(columns: *const u8, row: usize, k: usize) -> __m256i {
        // SAFETY: planes that the columns have.
        unsafe {
            let vector = |plane: *const u8, i: usize| _mm256_loadu_si256(plane.add(i * 64 + row * 4).cast());
            if F::LAYOUT.bits == 8 {
                return vector(columns, k);
            }
            let (mut plane, mut numbers) = (columns, _mm256_setzero_si256());
            if F::LAYOUT.has_plane(4) {
                let both = vector(plane, k % 4);
                let at = if k < 4 { both } else { _mm256_srli_epi16::<4>(both) };
                numbers = _mm256_and_si256(at, _mm256_set1_epi8(15));
                plane = plane.add(FOUR_BITS);
            }
            if F::LAYOUT.has_plane(2) {
                let (of_four_columns, to) = (vector(plane, k / 4), F::LAYOUT.two_bits_at());
                // Written out, for the instructions that have the distance in them.
                let in_place = match to as i32 - 2 * (k % 4) as i32 {
                    4 => _mm256_slli_epi16::<4>(of_four_columns),
                    2 => _mm256_slli_epi16::<2>(of_four_columns),
                    0 => of_four_columns,
                    -2 => _mm256_srli_epi16::<2>(of_four_columns),
                    -4 => _mm256_srli_epi16::<4>(of_four_columns),
                    _ => _mm256_srli_epi16::<6>(of_four_columns),
                };
                numbers = _mm256_or_si256(numbers, _mm256_and_si256(in_place, _mm256_set1_epi8(3 << to)));
                plane = plane.add(TWO_BITS);
            }
            if F::LAYOUT.has_plane(1) {
                let bits = plane.add(k * 8 + row / 2).cast::<i32>().read_unaligned();
                // Byte `i` gets byte `i / 8` of the bits, and of that its bit `i % 8`.
                let bytes = _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
                let own = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
                let bits = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), bytes), own);
                let bit = _mm256_set1_epi8(1 << F::LAYOUT.one_bit_at());
                numbers = _mm256_or_si256(numbers, _mm256_and_si256(_mm256_cmpeq_epi8(bits, own), bit));
            }
            let Some(values) = F::LAYOUT.values else { return numbers };
            let values = _mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast()));
            let unsigned = _mm256_add_epi8(values, _mm256_set1_epi8(F::LAYOUT.offset as u8 as i8));
            _mm256_shuffle_epi8(unsigned, numbers)
        }
    }
}
