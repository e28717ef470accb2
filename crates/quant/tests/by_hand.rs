//! Blocks put together bit by bit from the description of their layout, with the values that they stand for.

use half::f16;
use quant::{Format, dequantize};

fn half(x: f32) -> [u8; 2] {
    f16::from_f32(x).to_le_bytes()
}

/// The four-bit numbers of a block of 32: `i` in the lower half of byte `i`, `15 - i` in the upper.
fn up_and_down() -> [u8; 16] {
    std::array::from_fn(|i| (i | (15 - i) << 4) as u8)
}

fn check(format: Format, parts: &[&[u8]], expected: impl Fn(usize) -> f32) {
    let block = parts.concat();
    assert_eq!(block.len(), format.block_bytes(), "{format:?}");
    let mut got = vec![f32::NAN; format.block_len()];
    dequantize(format, &block, &mut got);
    let expected: Vec<f32> = (0..got.len()).map(expected).collect();
    assert_eq!(got, expected, "{format:?}");
}

#[test]
fn a_q4_0_block_is_a_scale_and_32_halves_of_bytes_around_8() {
    check(Format::Q4_0, &[&half(0.5), &up_and_down()], |i| {
        if i < 16 { 0.5 * (i as f32 - 8.0) } else { 0.5 * ((31 - i) as f32 - 8.0) }
    });
}

#[test]
fn a_q4_1_block_is_a_scale_a_minimum_and_32_halves_of_bytes() {
    check(Format::Q4_1, &[&half(0.5), &half(-1.0), &up_and_down()], |i| {
        if i < 16 { 0.5 * i as f32 - 1.0 } else { 0.5 * (31 - i) as f32 - 1.0 }
    });
}

#[test]
fn a_q5_0_block_has_the_fifth_bits_between_scale_and_halves_of_bytes() {
    // The first half has the fifth bit, but for element 2; the second has not, but for element 31.
    check(Format::Q5_0, &[&half(2.0), &0x8000_FFFBu32.to_le_bytes(), &up_and_down()], |i| match i {
        2 => 2.0 * (2.0 - 16.0),
        31 => 2.0 * (0.0 + 16.0 - 16.0),
        0..16 => 2.0 * i as f32,
        _ => 2.0 * ((31 - i) as f32 - 16.0),
    });
}

#[test]
fn a_q5_1_block_has_a_minimum_before_the_fifth_bits() {
    check(Format::Q5_1, &[&half(2.0), &half(0.5), &0xFFFF_0001u32.to_le_bytes(), &up_and_down()], |i| match i {
        0 => 2.0 * 16.0 + 0.5,
        1..16 => 2.0 * i as f32 + 0.5,
        _ => 2.0 * (31 - i + 16) as f32 + 0.5,
    });
}

/// Some number for an element, below `1 << n_bits`: neighbours, and elements that share a byte, differ.
fn number(i: usize, n_bits: u32) -> usize {
    (i * 5 + i / 32 * 3 + i / 128) % (1 << n_bits)
}

/// Two bits of each number from bit `shift` on: elements `i`, `i + 32`, `i + 64`, `i + 96` of each 128 share a byte.
fn pairs_of_bits(n_bits: u32, shift: usize) -> [u8; 64] {
    let mut bytes = [0; 64];
    for i in 0..256 {
        bytes[i / 128 * 32 + i % 32] |= (number(i, n_bits) >> shift & 3) << (i % 128 / 32 * 2);
    }
    bytes.map(|byte| byte as u8)
}

/// Elements `i` and `i + 32` of each 64 share a byte.
fn halves_of_bytes(n_bits: u32) -> [u8; 128] {
    let mut bytes = [0; 128];
    for i in 0..256 {
        bytes[i / 64 * 32 + i % 32] |= (number(i, n_bits) & 0xF) << (i % 64 / 32 * 4);
    }
    bytes.map(|byte| byte as u8)
}

/// One bit of each number: bit `n` of byte `i` belongs to element `32 * n + i`.
fn single_bits(n_bits: u32, shift: usize) -> [u8; 32] {
    let mut bytes = [0; 32];
    for i in 0..256 {
        bytes[i % 32] |= (number(i, n_bits) >> shift & 1) << (i / 32);
    }
    bytes.map(|byte| byte as u8)
}

#[test]
fn a_q2_k_block_has_a_scale_and_a_minimum_of_four_bits_for_each_16() {
    let scales: [u8; 16] = std::array::from_fn(|sub| (sub | (15 - sub) << 4) as u8);
    check(Format::Q2_K, &[&scales, &pairs_of_bits(2, 0), &half(0.5), &half(0.25)], |i| {
        let sub = i / 16;
        0.5 * sub as f32 * number(i, 2) as f32 - 0.25 * (15 - sub) as f32
    });
}

#[test]
fn a_q3_k_block_has_a_scale_of_six_bits_for_each_16() {
    let scale = |sub: usize| (sub * 11 + 3) % 64;
    let mut scales = [0; 12];
    for sub in 0..16 {
        scales[sub % 8] |= (scale(sub) & 0xF) << (sub / 8 * 4);
        scales[8 + sub % 4] |= (scale(sub) >> 4) << (sub / 4 * 2);
    }
    let scales = scales.map(|byte| byte as u8);
    check(Format::Q3_K, &[&single_bits(3, 2), &pairs_of_bits(3, 0), &scales, &half(0.5)], |i| {
        0.5 * (scale(i / 16) as f32 - 32.0) * (number(i, 3) as f32 - 4.0)
    });
}

/// Scales and minima of Q4_K and Q5_K: two numbers of six bits for each 32.
fn sub_scale(sub: usize) -> usize {
    (sub * 9 + 5) % 64
}
fn sub_min(sub: usize) -> usize {
    (sub * 23 + 17) % 64
}
fn sub_scales() -> [u8; 12] {
    let mut bytes = [0; 12];
    for i in 0..4 {
        bytes[i] = sub_scale(i) | sub_scale(i + 4) >> 4 << 6;
        bytes[i + 4] = sub_min(i) | sub_min(i + 4) >> 4 << 6;
        bytes[i + 8] = sub_scale(i + 4) & 0xF | (sub_min(i + 4) & 0xF) << 4;
    }
    bytes.map(|byte| byte as u8)
}

#[test]
fn a_q4_k_block_has_a_scale_and_a_minimum_of_six_bits_for_each_32() {
    check(Format::Q4_K, &[&half(0.5), &half(0.25), &sub_scales(), &halves_of_bytes(4)], |i| {
        0.5 * sub_scale(i / 32) as f32 * number(i, 4) as f32 - 0.25 * sub_min(i / 32) as f32
    });
}

#[test]
fn a_q5_k_block_has_the_fifth_bits_between_scales_and_halves_of_bytes() {
    check(Format::Q5_K, &[&half(0.5), &half(0.25), &sub_scales(), &single_bits(5, 4), &halves_of_bytes(5)], |i| {
        0.5 * sub_scale(i / 32) as f32 * number(i, 5) as f32 - 0.25 * sub_min(i / 32) as f32
    });
}

#[test]
fn a_q6_k_block_has_a_signed_byte_for_each_16_and_its_scale_last() {
    let mut low = [0; 128];
    for i in 0..256 {
        low[i / 128 * 64 + i % 64] |= (number(i, 6) & 0xF) << (i % 128 / 64 * 4);
    }
    let scale = |sub: usize| sub as i32 * 16 - 128;
    let scales: [u8; 16] = std::array::from_fn(|sub| scale(sub) as i8 as u8);
    check(Format::Q6_K, &[&low.map(|byte| byte as u8), &pairs_of_bits(6, 4), &scales, &half(0.25)], |i| {
        0.25 * scale(i / 16) as f32 * (number(i, 6) as f32 - 32.0)
    });
}

const UNEVEN: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

#[test]
fn an_iq4_nl_block_is_a_scale_and_32_places_in_a_table() {
    check(Format::IQ4_NL, &[&half(0.5), &up_and_down()], |i| 0.5 * UNEVEN[if i < 16 { i } else { 31 - i }]);
}

#[test]
fn an_iq4_xs_block_has_a_scale_of_six_bits_for_each_32() {
    let scale = |sub: usize| (sub * 11 + 3) % 64;
    let low: [u8; 4] = std::array::from_fn(|i| (scale(2 * i) & 0xF | (scale(2 * i + 1) & 0xF) << 4) as u8);
    let high = (0..8).fold(0u16, |high, sub| high | ((scale(sub) >> 4) << (2 * sub)) as u16);
    let quants = [up_and_down(); 8].concat();
    check(Format::IQ4_XS, &[&half(0.5), &high.to_le_bytes(), &low, &quants], |i| {
        let at = if i % 32 < 16 { i % 32 } else { 31 - i % 32 };
        0.5 * (scale(i / 32) as f32 - 32.0) * UNEVEN[at]
    });
}

#[test]
fn an_mxfp4_block_is_an_exponent_and_32_small_floats() {
    let e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let value = |at: usize| if at < 8 { e2m1[at] } else { -e2m1[at - 8] };
    for (exponent, scale) in [(127, 1.0), (130, 8.0), (1, f32::MIN_POSITIVE), (0, f32::MIN_POSITIVE / 2.0)] {
        check(Format::MXFP4, &[&[exponent], &up_and_down()], |i| scale * value(if i < 16 { i } else { 31 - i }));
    }
}
