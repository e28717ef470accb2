//! How the formats' interleaved blocks are read with AVX-512: layouts are those of [`super::layout`].

use std::arch::x86_64::*;

use super::layout::Layout;
use super::{BLOCK, GROUP};
use crate::formats::Format;

/// A format as the kernels see it.
pub(super) trait Columns {
    /// Where everything lies.
    const LAYOUT: Layout;

    /// Column `k` of 32 elements: elements `4 k` to `4 k + 3` of row `r` in lane `r`, unsigned.
    ///
    /// # Safety
    /// The columns may be read; the processor has the instructions.
    unsafe fn column(columns: *const u8, k: usize) -> __m512i;

    /// Scales of block `b`, or of its `part`-th half where it has two.
    ///
    /// # Safety
    /// The heads of a group, which has that block, may be read; the processor has the instructions.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn scale(heads: *const u8, b: usize, part: usize) -> __m512 {
        // SAFETY: within the block's head.
        unsafe {
            let head = heads.add(b / Self::LAYOUT.blocks_per_head * Self::LAYOUT.head_bytes());
            let scale = halves(head);
            if Self::LAYOUT.blocks_per_head == 1 {
                return scale;
            }
            let bytes = _mm_loadu_si128(head.add(sub_scales_at(Self::LAYOUT, b) + part * GROUP).cast());
            let sub_scale =
                if Self::LAYOUT.n_scales == 2 { _mm512_cvtepi8_epi32(bytes) } else { _mm512_cvtepu8_epi32(bytes) };
            _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sub_scale))
        }
    }

    /// Minima of block `b`: what each of its elements has besides.
    ///
    /// # Safety
    /// As [`Columns::scale`], of a format that has minima.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn min(heads: *const u8, b: usize) -> __m512 {
        // SAFETY: within the block's head.
        unsafe {
            let head = heads.add(b / Self::LAYOUT.blocks_per_head * Self::LAYOUT.head_bytes());
            let min = halves(head.add(2 * GROUP));
            if Self::LAYOUT.blocks_per_head == 1 {
                return min;
            }
            let bytes = _mm_loadu_si128(head.add(sub_scales_at(Self::LAYOUT, b) + GROUP).cast());
            let min = _mm512_mul_ps(min, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
            _mm512_sub_ps(_mm512_set1_ps(-0.0), min)
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

/// Where the bytes of block `b` are in its head.
#[inline(always)]
const fn sub_scales_at(layout: Layout, b: usize) -> usize {
    let halves = if layout.has_min { 2 } else { 1 };
    GROUP * (2 * halves + b % layout.blocks_per_head * 2)
}

/// Lower halves of bytes for columns 0 to 3, upper ones for the others.
///
/// # Safety
/// As [`Columns::column`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn four_bits(columns: *const u8, k: usize) -> __m512i {
    // SAFETY: within the columns.
    let both = unsafe { _mm512_loadu_si512(columns.add(k % 4 * 64).cast()) };
    let at = if k < 4 { both } else { _mm512_srli_epi16::<4>(both) };
    _mm512_and_si512(at, _mm512_set1_epi8(15))
}

/// With the fifth bit.
///
/// # Safety
/// As [`Columns::column`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn five_bits(columns: *const u8, k: usize) -> __m512i {
    // SAFETY: within the columns.
    unsafe {
        let four = four_bits(columns, k);
        let fifth = columns.add(GROUP * BLOCK / 2 + k * 8).cast::<u64>().read_unaligned();
        _mm512_mask_add_epi8(four, fifth, four, _mm512_set1_epi8(16))
    }
}

/// With the fifth and the sixth bit.
///
/// # Safety
/// As [`Columns::column`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn six_bits(columns: *const u8, k: usize) -> __m512i {
    // SAFETY: within the columns.
    unsafe {
        let four = four_bits(columns, k);
        let of_four_columns = _mm512_loadu_si512(columns.add(GROUP * BLOCK / 2 + k / 4 * 64).cast());
        let in_place = match k % 4 {
            0 => _mm512_slli_epi16::<4>(of_four_columns),
            1 => _mm512_slli_epi16::<2>(of_four_columns),
            2 => of_four_columns,
            _ => _mm512_srli_epi16::<2>(of_four_columns),
        };
        _mm512_or_si512(four, _mm512_and_si512(in_place, _mm512_set1_epi8(0x30)))
    }
}

/// All eight.
///
/// # Safety
/// As [`Columns::column`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn eight_bits(columns: *const u8, k: usize) -> __m512i {
    // SAFETY: within the columns.
    unsafe { _mm512_loadu_si512(columns.add(k * 64).cast()) }
}

macro_rules! columns {
    ($($name:ident: $read:path,)*) => {
        $(
            pub(super) struct $name;
            impl Columns for $name {
                const LAYOUT: Layout = Layout::of(Format::$name).unwrap();
                #[inline]
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
                unsafe fn column(columns: *const u8, k: usize) -> __m512i {
                    // SAFETY: as the caller vouches.
                    unsafe { $read(columns, k) }
                }
            }
        )*
    };
}

columns! {
    Q8_0: eight_bits,
    Q4_0: four_bits,
    Q4_1: four_bits,
    Q5_0: five_bits,
    Q5_1: five_bits,
    Q4_K: four_bits,
    Q5_K: five_bits,
    Q6_K: six_bits,
}
