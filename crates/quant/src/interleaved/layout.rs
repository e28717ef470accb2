//! Where a format's numbers, scales and minima lie in interleaved memory; in plain Rust.
//!
//! A group of sixteen rows is its heads, one for each of the file's blocks (of 32 elements or 256), which hold scales and minima;
//! and then its columns, one set for each 32 elements, which hold the numbers. In both, what belongs to the sixteen rows stands
//! side by side.
//!
//! | head of | half precision `[16]` each | then for each 32 elements, bytes `[16]` each |
//! |---|---|---|
//! | `Q8_0`, `Q4_0`, `Q5_0` | scale | |
//! | `Q4_1`, `Q5_1` | scale, minimum | |
//! | `Q4_K`, `Q5_K` | scale, minimum | sub-scale, sub-minimum |
//! | `Q6_K` | scale | sub-scale of the first 16, of the others |
//!
//! Column `k` is elements `4 k` to `4 k + 3` of each row, `[16, 4]` bytes. Numbers of eight bits are eight columns. Of fewer,
//! columns `k` and `k + 4` share bytes, lower and upper halves; `[4, 16, 4]`. A fifth bit is in `[8]` words of 64 bits, bit
//! `4 r + j` for element `4 k + j` of row `r`. Fifth and sixth bits together are in `[2, 16, 4]` bytes, those of column `k` in byte
//! vector `k / 4` from bit `2 (k % 4)` on.

use half::f16;

use super::{BLOCK, GROUP};
use crate::formats::Format;
use crate::parts::Parts;
use crate::simd::Simd;

/// Bits that lie apart from the lower four.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum High {
    /// There are none.
    None,
    /// One.
    Fifth,
    /// Two.
    FifthAndSixth,
    /// All eight bits lie together.
    Together,
}

/// What a format is made of.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    high: High,
    /// Sets of columns, of 32 elements each, to a head.
    pub(super) blocks_per_head: usize,
    /// Whether a minimum, times a block's sum of activations, is added.
    pub(super) has_min: bool,
    /// Scales of 32 elements: one, or one for each 16.
    pub(super) n_scales: usize,
    /// What a number has been made greater by, to be unsigned.
    pub(super) offset: i32,
}

const fn layout(high: High, blocks_per_head: usize, has_min: bool, n_scales: usize, offset: i32) -> Option<Layout> {
    Some(Layout { high, blocks_per_head, has_min, n_scales, offset })
}

impl Layout {
    /// Of a format; `None` where it cannot be interleaved.
    pub(super) const fn of(format: Format) -> Option<Layout> {
        match format {
            Format::Q8_0 => layout(High::Together, 1, false, 1, 128),
            Format::Q4_0 => layout(High::None, 1, false, 1, 8),
            Format::Q4_1 => layout(High::None, 1, true, 1, 0),
            Format::Q5_0 => layout(High::Fifth, 1, false, 1, 16),
            Format::Q5_1 => layout(High::Fifth, 1, true, 1, 0),
            Format::Q4_K => layout(High::None, 8, true, 1, 0),
            Format::Q5_K => layout(High::Fifth, 8, true, 1, 0),
            Format::Q6_K => layout(High::FifthAndSixth, 8, false, 2, 32),
            _ => None,
        }
    }

    /// Of 32 elements of a group.
    pub(super) const fn column_bytes(&self) -> usize {
        GROUP
            * match self.high {
                High::None => BLOCK / 2,
                High::Fifth => BLOCK / 2 + BLOCK / 8,
                High::FifthAndSixth => BLOCK / 2 + BLOCK / 4,
                High::Together => BLOCK,
            }
    }

    /// Of a group's head.
    pub(super) const fn head_bytes(&self) -> usize {
        let halves = if self.has_min { 2 } else { 1 };
        let sub_scales = if self.blocks_per_head == 1 { 0 } else { 2 * self.blocks_per_head };
        GROUP * (2 * halves + sub_scales)
    }

    /// Of a group.
    pub(super) const fn group_bytes(&self, n_cols: usize) -> usize {
        let n_blocks = n_cols / BLOCK;
        n_blocks * self.column_bytes() + n_blocks / self.blocks_per_head * self.head_bytes()
    }

    /// Where columns begin in a group.
    pub(super) const fn columns_at(&self, n_cols: usize) -> usize {
        n_cols / BLOCK / self.blocks_per_head * self.head_bytes()
    }

    /// Writes the columns of 32 elements of a group.
    #[inline(always)]
    pub(super) fn put_numbers<S: Simd>(&self, simd: S, columns: &mut [u8], rows: [&[u8; BLOCK]; GROUP]) {
        let words = simd.transpose(rows);
        let (to, high) = columns.split_at_mut(GROUP * if self.high == High::Together { BLOCK } else { BLOCK / 2 });
        for (k, to) in to.as_chunks_mut().0.iter_mut().enumerate() {
            match self.high {
                High::Together => put_column(to, &words[k]),
                _ => put_column(to, &halves_together(&words[k], &words[k + 4])),
            }
        }
        match self.high {
            High::None | High::Together => {}
            High::Fifth => {
                for (to, column) in high.as_chunks_mut().0.iter_mut().zip(&words) {
                    *to = fifth_bits(column).to_le_bytes();
                }
            }
            High::FifthAndSixth => {
                for (to, columns) in high.as_chunks_mut().0.iter_mut().zip(words.as_chunks().0) {
                    put_column(to, &fifth_and_sixth_bits(columns));
                }
            }
        }
    }

    /// A row's number `i` among its group's.
    pub(super) fn number(&self, columns: &[u8], r: usize, i: usize) -> u8 {
        let (k, j) = (i / 4, i % 4);
        if self.high == High::Together {
            return columns[(k * GROUP + r) * 4 + j];
        }
        let four = columns[(k % 4 * GROUP + r) * 4 + j] >> (k / 4 * 4) & 15;
        let high = &columns[GROUP * BLOCK / 2..];
        match self.high {
            High::Fifth => four | (high[k * 8 + r / 2] >> (r % 2 * 4 + j) & 1) << 4,
            High::FifthAndSixth => four | (high[(k / 4 * GROUP + r) * 4 + j] >> (k % 4 * 2) & 3) << 4,
            High::None | High::Together => four,
        }
    }

    /// Puts a row's part of a head among its group's.
    #[inline(always)]
    pub(super) fn put_head(&self, head: &mut [u8], r: usize, parts: &Parts) {
        let mut put = |at: usize, bytes: &[u8]| head[at..][..bytes.len()].copy_from_slice(bytes);
        let has_subs = self.blocks_per_head > 1;
        let halves = if has_subs { &parts.supers[..] } else { &parts.scales[..4] };
        put(2 * r, &halves[..2]);
        if self.has_min {
            put(2 * (GROUP + r), &halves[2..]);
        }
        if has_subs {
            // Of Q6_K signed: the parts have them with 128 added.
            let offset = if self.n_scales == 2 { 0x80 } else { 0 };
            for (i, byte) in parts.scales.iter().enumerate() {
                put(GROUP * (2 + 2 * usize::from(self.has_min) + i) + r, &[byte ^ offset]);
            }
        }
    }

    /// A row's scales (both of 32 elements, or the same twice) and minimum, from its group's head.
    pub(super) fn scales(&self, head: &[u8], r: usize, sub: usize) -> Scales {
        let half = |i: usize| f16::from_le_bytes([head[2 * (i * GROUP + r)], head[2 * (i * GROUP + r) + 1]]).to_f32();
        let (scale, min) = (half(0), if self.has_min { half(1) } else { 0.0 });
        if self.blocks_per_head == 1 {
            return Scales { scales: [scale; 2], min };
        }
        let byte = |i: usize| head[GROUP * (2 + 2 * usize::from(self.has_min) + 2 * sub + i) + r];
        if self.n_scales == 2 {
            return Scales { scales: [0, 1].map(|i| scale * f32::from(byte(i) as i8)), min };
        }
        Scales { scales: [scale * f32::from(byte(0)); 2], min: -(min * f32::from(byte(1))) }
    }
}

/// Of 32 elements: an element is `scale * (number - offset) + min`.
pub(super) struct Scales {
    /// Of the first 16, and of the others.
    pub(super) scales: [f32; 2],
    pub(super) min: f32,
}

/// Four numbers of each row of a group, a byte each.
type Column = [u32; GROUP];

#[inline(always)]
fn put_column(to: &mut [u8; 4 * GROUP], column: &Column) {
    for (to, word) in to.as_chunks_mut().0.iter_mut().zip(column) {
        *to = word.to_le_bytes();
    }
}

/// The lower four bits of one column in the lower halves of bytes, of another in the upper ones.
#[inline(always)]
fn halves_together(lower: &Column, upper: &Column) -> Column {
    let mut both = [0; GROUP];
    for (both, (lower, upper)) in both.iter_mut().zip(lower.iter().zip(upper)) {
        *both = lower & 0x0F0F_0F0F | (upper & 0x0F0F_0F0F) << 4;
    }
    both
}

/// The fifth bits, those of row `r` from bit `4 r` on.
#[inline(always)]
fn fifth_bits(column: &Column) -> u64 {
    let mut bits = 0;
    for (r, word) in column.iter().enumerate() {
        // The product brings a row's four bits, which are eight apart, together in its highest byte.
        bits |= u64::from((word >> 4 & 0x0101_0101).wrapping_mul(0x0102_0408) >> 24) << (4 * r);
    }
    bits
}

/// The fifth and sixth bits of four columns, one above the other.
#[inline(always)]
fn fifth_and_sixth_bits(columns: &[Column; 4]) -> Column {
    let mut bits = [0; GROUP];
    for (k, column) in columns.iter().enumerate() {
        for (bits, word) in bits.iter_mut().zip(column) {
            *bits |= (word >> 4 & 0x0303_0303) << (2 * k);
        }
    }
    bits
}
