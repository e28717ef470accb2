//! One block's numbers and scales, by the layouts that `formats/` describes.

use crate::Format;

/// What a block of up to 256 elements is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Numbers in the order of columns.
    pub(crate) numbers: [u8; 256],
    /// Scales: halves, or bytes of sub-blocks, with their minima in turn. As they lie in the plane of scales.
    pub(crate) scales: [u8; 16],
    /// As they lie in the plane of supers.
    pub(crate) supers: [u8; 4],
}

impl Default for Parts {
    fn default() -> Self {
        Self { numbers: [0; 256], scales: [0; 16], supers: [0; 4] }
    }
}

/// Takes one block apart.
#[inline(always)] // Into callers that are compiled for an instruction set.
pub(crate) fn take_apart(format: Format, block: &[u8], parts: &mut Parts) {
    let Parts { numbers, scales, supers } = parts;
    match format {
        Format::F32 | Format::F16 | Format::BF16 => unreachable!("formats without blocks have no layout"),
        Format::Q8_0 => {
            scales[..2].copy_from_slice(&block[..2]);
            eight_by_eight(&mut numbers[..32], &block[2..], |_, bytes| bytes ^ each(0x80));
        }
        Format::Q4_0 | Format::IQ4_NL => {
            scales[..2].copy_from_slice(&block[..2]);
            two_halves(&block[2..], numbers);
        }
        Format::Q4_1 => {
            scales[..4].copy_from_slice(&block[..4]);
            two_halves(&block[4..], numbers);
        }
        Format::MXFP4 => {
            scales[0] = block[0];
            two_halves(&block[1..], numbers);
        }
        Format::Q5_0 => {
            scales[..2].copy_from_slice(&block[..2]);
            two_halves(&block[6..], numbers);
            fifth_bits(&block[2..6], numbers);
        }
        Format::Q5_1 => {
            scales[..4].copy_from_slice(&block[..4]);
            two_halves(&block[8..], numbers);
            fifth_bits(&block[4..8], numbers);
        }
        Format::Q2_K => {
            scales.copy_from_slice(&block[..16]);
            two_bits(&block[16..80], numbers);
            supers.copy_from_slice(&block[80..84]);
        }
        Format::Q3_K => {
            two_bits(&block[32..96], numbers);
            one_bit(&block[..32], 2, numbers);
            six_bit_scales(&block[96..108], scales);
            supers[..2].copy_from_slice(&block[108..110]);
        }
        Format::Q4_K | Format::Q5_K => {
            supers.copy_from_slice(&block[..4]);
            scales_and_mins(&block[4..16], scales);
            let fifth = if format == Format::Q5_K { 32 } else { 0 };
            in_turn(&block[16 + fifth..], numbers);
            if fifth > 0 {
                one_bit(&block[16..48], 4, numbers);
            }
        }
        Format::Q6_K => {
            six_bits(&block[..128], &block[128..192], numbers);
            eight_by_eight(scales, &block[192..208], |_, bytes| bytes ^ each(0x80));
            supers[..2].copy_from_slice(&block[208..210]);
        }
        Format::IQ4_XS => {
            supers[..2].copy_from_slice(&block[..2]);
            let high = u16::from_le_bytes([block[2], block[3]]);
            for (sub, scale) in scales[..8].iter_mut().enumerate() {
                *scale = block[4 + sub / 2] >> (sub % 2 * 4) & 0xF | ((high >> (2 * sub) & 3) as u8) << 4;
            }
            for (sub, numbers) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                two_halves(&block[8 + 16 * sub..][..16], numbers);
            }
        }
    }
}

/// Eight bytes with the same value.
const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Sets eight numbers at a time to what becomes of them and of as many bytes.
#[inline(always)]
fn eight_by_eight(numbers: &mut [u8], bytes: &[u8], of: impl Fn(u64, u64) -> u64) {
    for (numbers, bytes) in numbers.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
        *numbers = of(u64::from_le_bytes(*numbers), u64::from_le_bytes(*bytes)).to_le_bytes();
    }
}

/// 16 bytes: numbers 0 to 15 in the lower halves, 16 to 31 in the upper ones.
#[inline(always)]
fn two_halves(bytes: &[u8], numbers: &mut [u8]) {
    eight_by_eight(&mut numbers[..16], bytes, |_, bytes| bytes & each(0xF));
    eight_by_eight(&mut numbers[16..32], bytes, |_, bytes| bytes >> 4 & each(0xF));
}

/// Bit `i` of four bytes is the fifth of number `i`.
#[inline(always)]
fn fifth_bits(bytes: &[u8], numbers: &mut [u8]) {
    for (numbers, byte) in numbers.as_chunks_mut().0.iter_mut().zip(bytes) {
        // The product has bit `i` at 7 times all of 0 to 7 besides: at `8 i` too.
        let [low, high] = [byte & 0xF, byte >> 4].map(|four| (u32::from(four) * 0x0020_4081) & 0x0101_0101);
        let fifth = u64::from(low) | u64::from(high) << 32;
        *numbers = (u64::from_le_bytes(*numbers) | fifth << 4).to_le_bytes();
    }
}

/// Of each 32 bytes: numbers `i`, `i + 32`, `i + 64` and `i + 96` in byte `i`.
#[inline(always)]
fn two_bits(bytes: &[u8], numbers: &mut [u8; 256]) {
    for (bytes, numbers) in bytes.as_chunks::<32>().0.iter().zip(numbers.as_chunks_mut::<128>().0) {
        for (j, numbers) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            eight_by_eight(numbers, bytes, |_, bytes| bytes >> (2 * j) & each(3));
        }
    }
}

/// Bit `n` of byte `i` is bit `to` of number `32 n + i`.
#[inline(always)]
fn one_bit(bytes: &[u8], to: usize, numbers: &mut [u8; 256]) {
    for (n, numbers) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        eight_by_eight(numbers, bytes, |numbers, bytes| numbers | (bytes >> n & each(1)) << to);
    }
}

/// Of each 32 bytes: 32 numbers in the lower halves, then 32 in the upper ones.
#[inline(always)]
fn in_turn(bytes: &[u8], numbers: &mut [u8; 256]) {
    for (bytes, numbers) in bytes.as_chunks::<32>().0.iter().zip(numbers.as_chunks_mut::<64>().0) {
        eight_by_eight(&mut numbers[..32], bytes, |_, bytes| bytes & each(0xF));
        eight_by_eight(&mut numbers[32..], bytes, |_, bytes| bytes >> 4 & each(0xF));
    }
}

/// Of each half of a block: four bits of numbers `i` and `i + 64` in byte `i` of 64, two of numbers `i`, `i + 32`, `i + 64` and
/// `i + 96` in byte `i` of 32.
#[inline(always)]
fn six_bits(low: &[u8], high: &[u8], numbers: &mut [u8; 256]) {
    two_bits(high, numbers);
    for (low, numbers) in low.as_chunks::<64>().0.iter().zip(numbers.as_chunks_mut::<128>().0) {
        eight_by_eight(&mut numbers[..64], low, |numbers, bytes| numbers << 4 | bytes & each(0xF));
        eight_by_eight(&mut numbers[64..], low, |numbers, bytes| numbers << 4 | bytes >> 4 & each(0xF));
    }
}

/// Q3_K's: lower four bits of scales `i` and `i + 8` in byte `i`, upper two of `i`, `i + 4`, `i + 8` and `i + 12` in byte `8 + i`.
#[inline(always)]
fn six_bit_scales(bytes: &[u8], scales: &mut [u8; 16]) {
    for (sub, scale) in scales.iter_mut().enumerate() {
        *scale = bytes[sub % 8] >> (sub / 8 * 4) & 0xF | (bytes[8 + sub % 4] >> (sub / 4 * 2) & 3) << 4;
    }
}

/// Q4_K's and Q5_K's eight scales and minima, in turn: see `formats/sub_scales.rs`.
#[inline(always)]
fn scales_and_mins(p: &[u8], scales: &mut [u8; 16]) {
    for i in 0..4 {
        scales[2 * i] = p[i] & 63;
        scales[2 * i + 1] = p[i + 4] & 63;
        scales[2 * (i + 4)] = p[i + 8] & 0xF | p[i] >> 6 << 4;
        scales[2 * (i + 4) + 1] = p[i + 8] >> 4 | p[i + 4] >> 6 << 4;
    }
}
