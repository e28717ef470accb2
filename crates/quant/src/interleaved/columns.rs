//! How the formats' interleaved blocks are read with AVX-512: layouts are those of [`super::layout`].

use std::arch::x86_64::*;

use super::GROUP;
use super::layout::{FOUR_BITS, Layout, Scaling, TWO_BITS};
use crate::formats::Format;

/// A format as the kernels see it.
pub(super) trait Columns {
    /// Where everything lies.
    const LAYOUT: Layout;

    /// Column `k` of 32 elements: elements `4 k` to `4 k + 3` of row `r` in lane `r`, unsigned.
    ///
    /// # Safety
    /// The columns may be read; the processor has the instructions.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn column(columns: *const u8, k: usize) -> __m512i {
        // SAFETY: planes that the columns have.
        unsafe {
            if Self::LAYOUT.bits == 8 {
                return _mm512_loadu_si512(columns.add(k * 64).cast());
            }
            let (mut plane, mut numbers) = (columns, _mm512_setzero_si512());
            if Self::LAYOUT.has_plane(4) {
                numbers = four_bits(plane, k);
                plane = plane.add(FOUR_BITS);
            }
            if Self::LAYOUT.has_plane(2) {
                numbers = _mm512_or_si512(numbers, two_bits(plane, k, Self::LAYOUT.two_bits_at()));
                plane = plane.add(TWO_BITS);
            }
            if Self::LAYOUT.has_plane(1) {
                let bits = plane.add(k * 8).cast::<u64>().read_unaligned();
                let bit = _mm512_set1_epi8(1 << Self::LAYOUT.one_bit_at());
                numbers = _mm512_mask_add_epi8(numbers, bits, numbers, bit);
            }
            let Some(values) = Self::LAYOUT.values else { return numbers };
            let values = _mm512_broadcast_i32x4(_mm_loadu_si128(values.as_ptr().cast()));
            let unsigned = _mm512_add_epi8(values, _mm512_set1_epi8(Self::LAYOUT.offset as u8 as i8));
            _mm512_shuffle_epi8(unsigned, numbers)
        }
    }

    /// Scales of block `b`, or of its `part`-th half where it has two.
    ///
    /// # Safety
    /// The heads of a group, which has that block, may be read; the processor has the instructions.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn scale(heads: *const u8, b: usize, part: usize) -> __m512 {
        let Layout { blocks_per_head, .. } = Self::LAYOUT;
        // SAFETY: within the block's head.
        unsafe {
            let head = heads.add(b / blocks_per_head * Self::LAYOUT.head_bytes());
            let bytes = |i: usize| _mm_loadu_si128(head.add(Self::LAYOUT.sub_scale_at(b % blocks_per_head, i)).cast());
            let sub_scale = match Self::LAYOUT.scaling {
                Scaling::Exponent => return half_scales(_mm_loadu_si128(head.cast())),
                Scaling::Head => return halves(head),
                Scaling::Signed(_) => _mm512_cvtepi8_epi32(bytes(part)),
                Scaling::WithMin => _mm512_cvtepu8_epi32(bytes(0)),
                Scaling::Nibbles => _mm512_cvtepu8_epi32(_mm_and_si128(bytes(part), _mm_set1_epi8(15))),
            };
            _mm512_mul_ps(halves(head), _mm512_cvtepi32_ps(sub_scale))
        }
    }

    /// Minima of block `b`, or of its `part`-th half where it has two: what each of its elements has besides.
    ///
    /// # Safety
    /// As [`Columns::scale`], of a format that has minima.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn min(heads: *const u8, b: usize, part: usize) -> __m512 {
        let Layout { blocks_per_head, .. } = Self::LAYOUT;
        // SAFETY: within the block's head.
        unsafe {
            let head = heads.add(b / blocks_per_head * Self::LAYOUT.head_bytes());
            let bytes = |i: usize| _mm_loadu_si128(head.add(Self::LAYOUT.sub_scale_at(b % blocks_per_head, i)).cast());
            let min = halves(head.add(2 * GROUP));
            let sub_min = match Self::LAYOUT.scaling {
                Scaling::WithMin => _mm512_cvtepu8_epi32(bytes(1)),
                Scaling::Nibbles => _mm512_srli_epi32::<4>(_mm512_cvtepu8_epi32(bytes(part))),
                Scaling::Head | Scaling::Exponent | Scaling::Signed(_) => return min,
            };
            _mm512_sub_ps(_mm512_set1_ps(-0.0), _mm512_mul_ps(min, _mm512_cvtepi32_ps(sub_min)))
        }
    }
}

/// Sixteen numbers in half precision.
///
/// # Safety
/// They may be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn halves(from: *const u8) -> __m512 {
    // SAFETY: as the caller vouches.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) })
}

/// Sixteen scales from their exponents: those of [`crate::formats::mxfp4::half_scale`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn half_scales(exponents: __m128i) -> __m512 {
    let exponents = _mm512_cvtepu8_epi32(exponents);
    let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponents, _mm512_set1_epi32(1)));
    let subnormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), exponents);
    let is_subnormal = _mm512_cmplt_epu32_mask(exponents, _mm512_set1_epi32(2));
    _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, is_subnormal, subnormal))
}

/// Lower halves of bytes for columns 0 to 3, upper ones for the others.
///
/// # Safety
/// The plane may be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn four_bits(plane: *const u8, k: usize) -> __m512i {
    // SAFETY: within the plane.
    let both = unsafe { _mm512_loadu_si512(plane.add(k % 4 * 64).cast()) };
    let at = if k < 4 { both } else { _mm512_srli_epi16::<4>(both) };
    _mm512_and_si512(at, _mm512_set1_epi8(15))
}

/// Two bits of each byte, in bit `to` and the one above it.
///
/// # Safety
/// The plane may be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn two_bits(plane: *const u8, k: usize, to: usize) -> __m512i {
    // SAFETY: within the plane.
    let of_four_columns = unsafe { _mm512_loadu_si512(plane.add(k / 4 * 64).cast()) };
    let (from, mask) = (2 * (k % 4), _mm512_set1_epi8(3 << to));
    let in_place = if from <= to {
        _mm512_sll_epi16(of_four_columns, _mm_cvtsi32_si128((to - from) as i32))
    } else {
        _mm512_srl_epi16(of_four_columns, _mm_cvtsi32_si128((from - to) as i32))
    };
    _mm512_and_si512(in_place, mask)
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
