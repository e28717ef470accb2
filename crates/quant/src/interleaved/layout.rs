//! Where a format's numbers, scales and minima lie in interleaved memory; in plain Rust.
//!
//! A group of sixteen rows is its heads, one for each of the file's blocks (of 32 elements or 256), which hold scales and minima;
//! and then its columns, one set for each 32 elements, which hold the numbers. In both, what belongs to the sixteen rows stands
//! side by side.
//!
//! | head of | `[16]` each, in half precision | then for each 32 elements, bytes `[16]` each |
//! |---|---|---|
//! | `Q8_0`, `Q4_0`, `Q5_0`, `IQ4_NL` | scale | |
//! | `Q4_1`, `Q5_1` | scale, minimum | |
//! | `MXFP4` | none, but a byte: the scale's exponent | |
//! | `IQ4_XS` | scale | sub-scale |
//! | `Q3_K`, `Q6_K` | scale | sub-scale of the first 16, of the others |
//! | `Q4_K`, `Q5_K` | scale, minimum | sub-scale, sub-minimum |
//! | `Q2_K` | scale, minimum | sub-scale and, in the upper half, sub-minimum of the first 16, of the others |
//!
//! Column `k` is elements `4 k` to `4 k + 3` of each row, `[16, 4]` bytes. Numbers of eight bits are eight columns. Those of fewer
//! are the sum of planes, the lowest bits in the first:
//!
//! | plane | of numbers of | |
//! |---|---|---|
//! | four bits, `[4, 16, 4]` | 4, 5 and 6 bits | columns `k` and `k + 4` share bytes, lower and upper halves |
//! | two bits, `[2, 16, 4]` | 2, 3 and 6 | those of column `k` in byte vector `k / 4` from bit `2 (k % 4)` on |
//! | one bit, `[8]` words of 64 bits | 3 and 5 | bit `4 r + j` for element `4 k + j` of row `r` |

use half::f16;

use super::{BLOCK, GROUP};
use crate::formats::{Format, iq4_nl, mxfp4};
use crate::parts::Parts;
use crate::simd::Simd;

/// Bytes of the plane of four bits.
pub(super) const FOUR_BITS: usize = GROUP * BLOCK / 2;
/// Bytes of the plane of two bits.
pub(super) const TWO_BITS: usize = GROUP * BLOCK / 4;

/// How 32 elements come by their scales and minima.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scaling {
    /// They have the head's.
    Head,
    /// The head's is a power of two.
    Exponent,
    /// The head's, times signed bytes; in the file they have this added.
    Signed(u8),
    /// The head's scale and minimum, each times a byte.
    WithMin,
    /// The head's scale and minimum, each times half a byte.
    Nibbles,
}

/// What a format is made of.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Of a number.
    pub(super) bits: usize,
    /// Sets of columns, of 32 elements each, to a head.
    pub(super) blocks_per_head: usize,
    pub(super) scaling: Scaling,
    /// Whether a minimum, times a block's sum of activations, is added.
    pub(super) has_min: bool,
    /// Scales of 32 elements: one, or one for each 16. As many minima, if any.
    pub(super) n_scales: usize,
    /// What an element's number stands for, where it is not itself less the offset.
    pub(super) values: Option<&'static [i8; 16]>,
    /// What kernels have a number greater by, to be unsigned.
    pub(super) offset: i32,
}

/// Of numbers that stand for themselves, with one scale for 32.
const fn even(bits: usize, offset: i32, blocks_per_head: usize, scaling: Scaling) -> Layout {
    Layout { bits, blocks_per_head, scaling, has_min: false, n_scales: 1, values: None, offset }
}

/// Of numbers that stand for signed bytes.
const fn looked_up(values: &'static [i8; 16], blocks_per_head: usize, scaling: Scaling) -> Layout {
    Layout { values: Some(values), ..even(4, 128, blocks_per_head, scaling) }
}

impl Layout {
    /// Of a format; `None` where it cannot be interleaved.
    pub(super) const fn of(format: Format) -> Option<Layout> {
        Some(match format {
            Format::F32 | Format::F16 | Format::BF16 => return None,
            Format::Q8_0 => even(8, 128, 1, Scaling::Head),
            Format::Q4_0 => even(4, 8, 1, Scaling::Head),
            Format::Q5_0 => even(5, 16, 1, Scaling::Head),
            Format::Q4_1 => Layout { has_min: true, ..even(4, 0, 1, Scaling::Head) },
            Format::Q5_1 => Layout { has_min: true, ..even(5, 0, 1, Scaling::Head) },
            Format::Q2_K => Layout { has_min: true, n_scales: 2, ..even(2, 0, 8, Scaling::Nibbles) },
            Format::Q3_K => Layout { n_scales: 2, ..even(3, 4, 8, Scaling::Signed(32)) },
            Format::Q4_K => Layout { has_min: true, ..even(4, 0, 8, Scaling::WithMin) },
            Format::Q5_K => Layout { has_min: true, ..even(5, 0, 8, Scaling::WithMin) },
            // The file's are signed: the parts have them with 128 added.
            Format::Q6_K => Layout { n_scales: 2, ..even(6, 32, 8, Scaling::Signed(128)) },
            Format::IQ4_NL => looked_up(&iq4_nl::VALUES, 1, Scaling::Head),
            Format::IQ4_XS => looked_up(&iq4_nl::VALUES, 8, Scaling::Signed(32)),
            Format::MXFP4 => looked_up(&mxfp4::VALUES, 1, Scaling::Exponent),
        })
    }

    /// Whether there is a plane of so many bits.
    pub(super) const fn has_plane(&self, bits: usize) -> bool {
        // Of eight bits, columns are no planes.
        self.bits < 8 && self.bits & bits != 0
    }

    /// Where the plane of two bits is on top: the bit that it begins with.
    pub(super) const fn two_bits_at(&self) -> usize {
        self.bits & 4
    }

    /// Where the plane of one bit is on top: the bit that it is.
    pub(super) const fn one_bit_at(&self) -> usize {
        self.bits & 6
    }

    /// Of 32 elements of a group.
    pub(super) const fn column_bytes(&self) -> usize {
        GROUP * BLOCK * self.bits / 8
    }

    /// Where a head's bytes for each 32 elements begin.
    const fn sub_scales(&self) -> usize {
        2 * GROUP * if self.has_min { 2 } else { 1 }
    }

    /// Bytes for each 32 elements of a row.
    const fn n_sub_scales(&self) -> usize {
        match self.scaling {
            Scaling::Head | Scaling::Exponent => 0,
            Scaling::Signed(_) | Scaling::Nibbles => self.n_scales,
            Scaling::WithMin => 2,
        }
    }

    /// Where byte `i` of block `sub` of a head is, of the first of the rows.
    pub(super) const fn sub_scale_at(&self, sub: usize, i: usize) -> usize {
        self.sub_scales() + GROUP * (sub * self.n_sub_scales() + i)
    }

    /// Of a group's head.
    pub(super) const fn head_bytes(&self) -> usize {
        match self.scaling {
            Scaling::Exponent => GROUP,
            _ => self.sub_scale_at(self.blocks_per_head, 0),
        }
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
    pub(super) fn put_numbers<S: Simd>(&self, simd: S, mut columns: &mut [u8], rows: [&[u8; BLOCK]; GROUP]) {
        let words = simd.transpose(rows);
        if self.bits == 8 {
            columns.as_chunks_mut().0.iter_mut().zip(&words).for_each(|(to, column)| put_column(to, column));
        }
        if self.has_plane(4) {
            let (to, rest) = columns.split_at_mut(FOUR_BITS);
            for (k, to) in to.as_chunks_mut().0.iter_mut().enumerate() {
                put_column(to, &halves_together(&words[k], &words[k + 4]));
            }
            columns = rest;
        }
        if self.has_plane(2) {
            let (to, rest) = columns.split_at_mut(TWO_BITS);
            for (to, columns) in to.as_chunks_mut().0.iter_mut().zip(words.as_chunks().0) {
                put_column(to, &two_bits_together(columns, self.two_bits_at()));
            }
            columns = rest;
        }
        if self.has_plane(1) {
            for (to, column) in columns.as_chunks_mut().0.iter_mut().zip(&words) {
                *to = one_bit_together(column, self.one_bit_at()).to_le_bytes();
            }
        }
    }

    /// A row's number `i` among its group's.
    pub(super) fn number(&self, mut columns: &[u8], r: usize, i: usize) -> u8 {
        let (k, j) = (i / 4, i % 4);
        let in_column = |columns: &[u8], k: usize| columns[(k * GROUP + r) * 4 + j];
        if self.bits == 8 {
            return in_column(columns, k);
        }
        let mut number = 0;
        if self.has_plane(4) {
            number |= in_column(columns, k % 4) >> (k / 4 * 4) & 15;
            columns = &columns[FOUR_BITS..];
        }
        if self.has_plane(2) {
            number |= (in_column(columns, k / 4) >> (k % 4 * 2) & 3) << self.two_bits_at();
            columns = &columns[TWO_BITS..];
        }
        if self.has_plane(1) {
            number |= (columns[k * 8 + r / 2] >> (r % 2 * 4 + j) & 1) << self.one_bit_at();
        }
        number
    }

    /// What a number stands for.
    pub(super) fn value(&self, number: u8) -> i32 {
        match self.values {
            Some(values) => i32::from(values[usize::from(number)]),
            None => i32::from(number) - self.offset,
        }
    }

    /// Puts a row's part of a head among its group's.
    #[inline(always)]
    pub(super) fn put_head(&self, head: &mut [u8], r: usize, parts: &Parts) {
        let mut put = |at: usize, bytes: &[u8]| head[at..][..bytes.len()].copy_from_slice(bytes);
        let halves = match self.scaling {
            Scaling::Exponent => return put(r, &parts.scales[..1]),
            Scaling::Head => &parts.scales[..4],
            Scaling::Signed(_) | Scaling::WithMin | Scaling::Nibbles => &parts.supers[..],
        };
        put(2 * r, &halves[..2]);
        if self.has_min {
            put(2 * (GROUP + r), &halves[2..]);
        }
        let added = if let Scaling::Signed(added) = self.scaling { added } else { 0 };
        for (i, byte) in parts.scales[..self.blocks_per_head * self.n_sub_scales()].iter().enumerate() {
            put(self.sub_scale_at(0, i) + r, &[byte.wrapping_sub(added)]);
        }
    }

    /// A row's scales and minima of 32 elements, those of the first 16 and of the others, from its group's head.
    pub(super) fn scales(&self, head: &[u8], r: usize, sub: usize) -> [Scales; 2] {
        if self.scaling == Scaling::Exponent {
            return [Scales { scale: mxfp4::half_scale(head[r]), min: 0.0 }; 2];
        }
        let half = |i: usize| f16::from_le_bytes([head[2 * (i * GROUP + r)], head[2 * (i * GROUP + r) + 1]]).to_f32();
        let (scale, min) = (half(0), if self.has_min { half(1) } else { 0.0 });
        let byte = |i: usize| head[self.sub_scale_at(sub, i) + r];
        [0, self.n_scales - 1].map(|part| match self.scaling {
            Scaling::Head | Scaling::Exponent => Scales { scale, min },
            Scaling::Signed(_) => Scales { scale: scale * f32::from(byte(part) as i8), min },
            Scaling::WithMin => Scales { scale: scale * f32::from(byte(0)), min: -(min * f32::from(byte(1))) },
            Scaling::Nibbles => {
                Scales { scale: scale * f32::from(byte(part) & 15), min: -(min * f32::from(byte(part) >> 4)) }
            }
        })
    }
}

/// An element is `scale * value + min`.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    pub(super) scale: f32,
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

/// Two bits of four columns, one above the other.
#[inline(always)]
fn two_bits_together(columns: &[Column; 4], at: usize) -> Column {
    let mut bits = [0; GROUP];
    for (k, column) in columns.iter().enumerate() {
        for (bits, word) in bits.iter_mut().zip(column) {
            *bits |= (word >> at & 0x0303_0303) << (2 * k);
        }
    }
    bits
}

/// One bit of a column, those of row `r` from bit `4 r` on.
#[inline(always)]
fn one_bit_together(column: &Column, at: usize) -> u64 {
    let mut bits = 0;
    for (r, word) in column.iter().enumerate() {
        // The product brings a row's four bits, which are eight apart, together in its highest byte.
        bits |= u64::from((word >> at & 0x0101_0101).wrapping_mul(0x0102_0408) >> 24) << (4 * r);
    }
    bits
}
