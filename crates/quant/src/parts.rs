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
pub(crate) fn take_apart(format: Format, block: &[u8], parts: &mut Parts) {
    let Parts { numbers, scales, supers } = parts;
    match format {
        Format::F32 | Format::F16 | Format::BF16 => unreachable!("formats without blocks have no layout"),
        Format::Q8_0 => {
            scales[..2].copy_from_slice(&block[..2]);
            numbers.iter_mut().zip(&block[2..]).for_each(|(number, byte)| *number = byte ^ 0x80);
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
            scales.iter_mut().zip(&block[192..208]).for_each(|(scale, byte)| *scale = byte ^ 0x80);
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

/// 16 bytes: numbers 0 to 15 in the lower halves, 16 to 31 in the upper ones.
fn two_halves(bytes: &[u8], numbers: &mut [u8]) {
    for (i, byte) in bytes[..16].iter().enumerate() {
        numbers[i] = byte & 0xF;
        numbers[i + 16] = byte >> 4;
    }
}

/// Bit `i` of four bytes is the fifth of number `i`.
fn fifth_bits(bytes: &[u8], numbers: &mut [u8]) {
    for (i, number) in numbers[..32].iter_mut().enumerate() {
        *number |= (bytes[i / 8] >> (i % 8) & 1) << 4;
    }
}

/// Of each 32 bytes: numbers `i`, `i + 32`, `i + 64` and `i + 96` in byte `i`.
fn two_bits(bytes: &[u8], numbers: &mut [u8; 256]) {
    for (bytes, numbers) in bytes.as_chunks::<32>().0.iter().zip(numbers.as_chunks_mut::<128>().0) {
        for (j, numbers) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            numbers.iter_mut().zip(bytes).for_each(|(number, byte)| *number = byte >> (2 * j) & 3);
        }
    }
}

/// Bit `n` of byte `i` is bit `to` of number `32 n + i`.
fn one_bit(bytes: &[u8], to: usize, numbers: &mut [u8; 256]) {
    for (n, numbers) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        numbers.iter_mut().zip(bytes).for_each(|(number, byte)| *number |= (byte >> n & 1) << to);
    }
}

/// Of each 32 bytes: 32 numbers in the lower halves, then 32 in the upper ones.
fn in_turn(bytes: &[u8], numbers: &mut [u8; 256]) {
    for (bytes, numbers) in bytes.as_chunks::<32>().0.iter().zip(numbers.as_chunks_mut::<64>().0) {
        for (i, byte) in bytes.iter().enumerate() {
            numbers[i] = byte & 0xF;
            numbers[i + 32] = byte >> 4;
        }
    }
}

/// Of each half of a block: four bits of numbers `i` and `i + 64` in byte `i` of 64, two of numbers `i`, `i + 32`, `i + 64` and
/// `i + 96` in byte `i` of 32.
fn six_bits(low: &[u8], high: &[u8], numbers: &mut [u8; 256]) {
    two_bits(high, numbers);
    for (low, numbers) in low.as_chunks::<64>().0.iter().zip(numbers.as_chunks_mut::<128>().0) {
        let (first, second) = numbers.split_at_mut(64);
        for (i, byte) in low.iter().enumerate() {
            first[i] = first[i] << 4 | byte & 0xF;
            second[i] = second[i] << 4 | byte >> 4;
        }
    }
}

/// Q3_K's: lower four bits of scales `i` and `i + 8` in byte `i`, upper two of `i`, `i + 4`, `i + 8` and `i + 12` in byte `8 + i`.
fn six_bit_scales(bytes: &[u8], scales: &mut [u8; 16]) {
    for (sub, scale) in scales.iter_mut().enumerate() {
        *scale = bytes[sub % 8] >> (sub / 8 * 4) & 0xF | (bytes[8 + sub % 4] >> (sub / 4 * 2) & 3) << 4;
    }
}

/// Q4_K's and Q5_K's eight scales and minima, in turn: see `formats/sub_scales.rs`.
fn scales_and_mins(p: &[u8], scales: &mut [u8; 16]) {
    for i in 0..4 {
        scales[2 * i] = p[i] & 63;
        scales[2 * i + 1] = p[i + 4] & 63;
        scales[2 * (i + 4)] = p[i + 8] & 0xF | p[i] >> 6 << 4;
        scales[2 * (i + 4) + 1] = p[i + 8] >> 4 | p[i + 4] >> 6 << 4;
    }
}
