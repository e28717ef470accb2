//! Blocks taken apart: the same numbers and scales, each kind by itself, as a GPU reads them in aligned pieces.
//!
//! A block keeps scales, lower and upper bits together, in pieces of 2 to 256 bytes that start anywhere. [`pack`] sorts them into
//! four planes, of which a format leaves out those that it does not need. Every plane is one array over the elements of a
//! matrix in order, by chunks of 32 columns, so that any whole number of blocks can be packed by itself. Nothing is rounded:
//! [`unpack`] gives the bits of [`dequantize`](crate::dequantize()).
//!
//! # The planes
//! A chunk is read by four lanes; lane `t` has columns `4t` to `4t+3` and `16+4t` to `16+4t+3`, in four pairs of neighbours. So
//! the first two pairs of all lanes are the first 16 columns, which have a scale of their own in some formats. Words are
//! little-endian.
//!
//! | plane | bits a number | of a chunk |
//! |---|---|---|
//! | low | 8 | lane `t`'s eight bytes from byte `8t` on, pair by pair |
//! | | 4 | word `t`: pair `p`'s first number from bit `4p` on, its second from bit `16+4p` on |
//! | | 2 | word `t/2`: pair `p`'s first number from bit `8(t%2)+2p` on, its second 16 bits higher |
//! | high | 2 | as the two bits of low |
//! | | 1 | one word: pair `p`'s first number in bit `4t+p`, its second 16 bits higher |
//! | scales | | one byte to four: see [`Scales`] |
//! | supers | | of eight chunks: one half-precision number or two, which the scales are units of |
//!
//! Numbers are not negative: those of Q8_0, and the sub-blocks' scales of Q6_K, are stored plus 128, the others as in the file.
//! Six-bit scales take a byte each; a matrix of Q4_K is 2.8 % larger than its file, of Q3_K 3.6 %, of IQ4_XS 1.5 %, and others
//! not at all.

use crate::Format;
use crate::formats::{iq4_nl, mxfp4};
use crate::parts::{Parts, take_apart};
use half::f16;

/// Columns of a chunk.
pub const CHUNK: usize = 32;

/// How many planes there are: low bits, high bits, scales, and what scales are units of.
pub const N_PLANES: usize = 4;

/// What a chunk's bytes in the plane of scales are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    /// A half-precision scale.
    Half,
    /// A half-precision scale, and one that is added.
    HalfAndOffset,
    /// A power of two, by its exponent as in MXFP4.
    Exponent,
    /// A scale in units of the super-block's, minus the number given.
    Byte(u8),
    /// The same for each 16 columns.
    TwoBytes(u8),
    /// A scale and what is subtracted, in units of the super-block's two.
    ByteAndMin,
    /// The same in four bits each, for each 16 columns.
    TwoNibblesAndMins,
}

impl Scales {
    /// Bytes of a chunk, and of a super-block of eight.
    fn n_bytes(self) -> (usize, usize) {
        match self {
            Scales::Half => (2, 0),
            Scales::HalfAndOffset => (4, 0),
            Scales::Exponent => (1, 0),
            Scales::Byte(_) => (1, 2),
            Scales::TwoBytes(_) => (2, 2),
            Scales::ByteAndMin | Scales::TwoNibblesAndMins => (2, 4),
        }
    }
}

/// How a format's blocks lie in planes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bits of a number in the plane of low bits: 2, 4 or 8.
    pub low_bits: usize,
    /// Bits of a number in the plane of high bits: 0, 1 or 2.
    pub high_bits: usize,
    /// What is subtracted from a number.
    pub center: u8,
    /// What the numbers stand for, where that is not themselves.
    pub table: Option<&'static [i8; 16]>,
    /// What they are multiplied by.
    pub scales: Scales,
}

impl Layout {
    /// Of a format; `None` for those without blocks.
    pub fn of(format: Format) -> Option<Layout> {
        let of =
            |low_bits, high_bits, center, scales| Some(Layout { low_bits, high_bits, center, table: None, scales });
        let looked_up =
            |table, scales| Some(Layout { low_bits: 4, high_bits: 0, center: 0, table: Some(table), scales });
        match format {
            Format::F32 | Format::F16 | Format::BF16 => None,
            Format::Q8_0 => of(8, 0, 128, Scales::Half),
            Format::Q4_0 => of(4, 0, 8, Scales::Half),
            Format::Q4_1 => of(4, 0, 0, Scales::HalfAndOffset),
            Format::Q5_0 => of(4, 1, 16, Scales::Half),
            Format::Q5_1 => of(4, 1, 0, Scales::HalfAndOffset),
            Format::Q2_K => of(2, 0, 0, Scales::TwoNibblesAndMins),
            Format::Q3_K => of(2, 1, 4, Scales::TwoBytes(32)),
            Format::Q4_K => of(4, 0, 0, Scales::ByteAndMin),
            Format::Q5_K => of(4, 1, 0, Scales::ByteAndMin),
            Format::Q6_K => of(4, 2, 32, Scales::TwoBytes(128)),
            Format::IQ4_NL => looked_up(&iq4_nl::VALUES, Scales::Half),
            Format::IQ4_XS => looked_up(&iq4_nl::VALUES, Scales::Byte(32)),
            Format::MXFP4 => looked_up(&mxfp4::VALUES, Scales::Exponent),
        }
    }

    /// Bytes that `n_elements` take in each plane, in the order of the table above.
    ///
    /// # Panics
    /// When they are no whole chunks, or no whole super-blocks in a format that has those.
    pub fn n_bytes(&self, n_elements: usize) -> [usize; N_PLANES] {
        let (of_chunk, of_super) = self.scales.n_bytes();
        let whole = if of_super > 0 { 8 * CHUNK } else { CHUNK };
        assert!(n_elements.is_multiple_of(whole), "{n_elements} elements are no whole blocks of {whole}");
        let n_chunks = n_elements / CHUNK;
        [n_chunks * 4 * self.low_bits, n_chunks * 4 * self.high_bits, n_chunks * of_chunk, n_chunks / 8 * of_super]
    }
}

/// Sorts blocks into planes.
///
/// # Panics
/// When `blocks` is not whole blocks of a format that has a [`Layout`], or a plane is not exactly as long as
/// [`Layout::n_bytes`] says.
pub fn pack(format: Format, blocks: &[u8], planes: [&mut [u8]; N_PLANES]) {
    let layout = layout_of(format);
    let (len, n_bytes) = (format.block_len(), format.block_bytes());
    assert!(blocks.len().is_multiple_of(n_bytes), "{} bytes are no whole blocks of {n_bytes}", blocks.len());
    let n_bytes_of = layout.n_bytes(blocks.len() / n_bytes * len);
    assert_eq!(planes.each_ref().map(|plane| plane.len()), n_bytes_of, "{format:?}: bytes of planes");
    let [low, high, scales, supers] = planes;
    let [low_step, high_step, scale_step, super_step] = layout.n_bytes(len);
    let mut parts = Parts::default();
    for (i, block) in blocks.chunks_exact(n_bytes).enumerate() {
        take_apart(format, block, &mut parts);
        let low = &mut low[i * low_step..][..low_step];
        let high = &mut high[i * high_step..][..high_step];
        for (chunk, numbers) in parts.numbers[..len].as_chunks::<CHUNK>().0.iter().enumerate() {
            let low = &mut low[chunk * 4 * layout.low_bits..][..4 * layout.low_bits];
            let high = &mut high[chunk * 4 * layout.high_bits..][..4 * layout.high_bits];
            match layout.low_bits {
                8 => pack_bytes(numbers, low),
                4 => pack_nibbles(numbers, low),
                _ => pack_two_bits(numbers, 0, low),
            }
            match layout.high_bits {
                0 => {}
                1 => pack_one_bit(numbers, layout.low_bits, high),
                _ => pack_two_bits(numbers, layout.low_bits, high),
            }
        }
        scales[i * scale_step..][..scale_step].copy_from_slice(&parts.scales[..scale_step]);
        supers[i * super_step..][..super_step].copy_from_slice(&parts.supers[..super_step]);
    }
}

fn layout_of(format: Format) -> Layout {
    Layout::of(format).unwrap_or_else(|| panic!("{format:?} has no blocks to take apart"))
}

/// The column of lane `t`'s pair `p`'s first number; the second is its neighbour.
const fn column(t: usize, p: usize) -> usize {
    16 * (p / 2) + 4 * t + 2 * (p % 2)
}

fn pack_bytes(numbers: &[u8; CHUNK], low: &mut [u8]) {
    for t in 0..4 {
        for p in 0..4 {
            low[8 * t + 2 * p] = numbers[column(t, p)];
            low[8 * t + 2 * p + 1] = numbers[column(t, p) + 1];
        }
    }
}

fn pack_nibbles(numbers: &[u8; CHUNK], low: &mut [u8]) {
    for t in 0..4 {
        let both = |p| pair(numbers, t, p, 0, 0xF);
        let word = both(0) | both(1) << 4 | both(2) << 8 | both(3) << 12;
        low[4 * t..4 * t + 4].copy_from_slice(&word.to_le_bytes());
    }
}

/// The two bits of each number from bit `first` on.
fn pack_two_bits(numbers: &[u8; CHUNK], first: usize, plane: &mut [u8]) {
    for word_of in 0..2 {
        let mut word = 0;
        for t in [2 * word_of, 2 * word_of + 1] {
            for p in 0..4 {
                word |= pair(numbers, t, p, first, 3) << (8 * (t % 2) + 2 * p);
            }
        }
        plane[4 * word_of..4 * word_of + 4].copy_from_slice(&word.to_le_bytes());
    }
}

/// Bit `first` of each number.
fn pack_one_bit(numbers: &[u8; CHUNK], first: usize, high: &mut [u8]) {
    let mut word = 0;
    for t in 0..4 {
        for p in 0..4 {
            word |= pair(numbers, t, p, first, 1) << (4 * t + p);
        }
    }
    high.copy_from_slice(&word.to_le_bytes());
}

/// Some bits of a pair's numbers, the second's 16 higher.
#[inline(always)]
fn pair(numbers: &[u8; CHUNK], t: usize, p: usize, first: usize, mask: u32) -> u32 {
    let bits = |at: usize| u32::from(numbers[at]) >> first & mask;
    bits(column(t, p)) | bits(column(t, p) + 1) << 16
}

/// The values of planes, one by one: for tests and for comparing a few rows with a file.
///
/// # Panics
/// As [`pack`], for `out.len()` elements.
pub fn unpack(format: Format, planes: [&[u8]; N_PLANES], out: &mut [f32]) {
    let layout = layout_of(format);
    assert_eq!(planes.map(<[u8]>::len), layout.n_bytes(out.len()), "{format:?}: bytes of planes");
    for (i, out) in out.iter_mut().enumerate() {
        let number = layout.number(planes, i);
        let wide = match layout.table {
            Some(table) => f32::from(table[usize::from(number)]),
            None => f32::from(i16::from(number) - i16::from(layout.center)),
        };
        let (scale, offset) = layout.scale(planes, i);
        *out = match offset {
            Some(offset) => scale * wide + offset,
            None => scale * wide,
        };
    }
}

impl Layout {
    /// Element `i`'s number.
    fn number(&self, planes: [&[u8]; N_PLANES], i: usize) -> u8 {
        let (chunk, column) = (i / CHUNK, i % CHUNK);
        let (t, pair, second) = (column % 16 / 4, column / 16 * 2 + column % 4 / 2, column % 2);
        let bits = |plane: &[u8], n_bits: usize| {
            let bit = match n_bits {
                8 => return plane[chunk * 32 + 8 * t + 2 * pair + second],
                4 => 32 * t + 4 * pair,
                2 => 32 * (t / 2) + 8 * (t % 2) + 2 * pair,
                _ => 4 * t + pair,
            } + 16 * second;
            plane[chunk * 4 * n_bits + bit / 8] >> (bit % 8) & ((1 << n_bits) - 1)
        };
        let [low, high, ..] = planes;
        let upper = if self.high_bits > 0 { bits(high, self.high_bits) << self.low_bits } else { 0 };
        bits(low, self.low_bits) | upper
    }

    /// What element `i`'s number is multiplied by, and what is then added.
    fn scale(&self, [_, _, scales, supers]: [&[u8]; N_PLANES], i: usize) -> (f32, Option<f32>) {
        let (chunk, group) = (i / CHUNK, i / (CHUNK / 2) % 2);
        let half = |bytes: &[u8], at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        let byte = |at: usize| f32::from(scales[at]);
        let of_super = |n: usize| half(supers, chunk / 8 * 4 + 2 * n);
        match self.scales {
            Scales::Half => (half(scales, 2 * chunk), None),
            Scales::HalfAndOffset => (half(scales, 4 * chunk), Some(half(scales, 4 * chunk + 2))),
            Scales::Exponent => (mxfp4::half_scale(scales[chunk]), None),
            Scales::Byte(center) => (half(supers, chunk / 8 * 2) * (byte(chunk) - f32::from(center)), None),
            Scales::TwoBytes(center) => {
                (half(supers, chunk / 8 * 2) * (byte(2 * chunk + group) - f32::from(center)), None)
            }
            Scales::ByteAndMin => (of_super(0) * byte(2 * chunk), Some(-(of_super(1) * byte(2 * chunk + 1)))),
            Scales::TwoNibblesAndMins => {
                let both = scales[2 * chunk + group];
                (of_super(0) * f32::from(both & 0xF), Some(-(of_super(1) * f32::from(both >> 4))))
            }
        }
    }
}
