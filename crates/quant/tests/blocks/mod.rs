//! Random blocks of any format, those without a quantizer too.
#![allow(dead_code)] // Not every test file uses all of it.

use half::f16;
use quant::{Format, quantize};

/// A stream of pseudo-random numbers: the upper bits of a linear congruential generator.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// 24 bits.
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as u32
    }

    /// A multiple of 2^-22 in -2..2.
    pub(crate) fn value(&mut self) -> f32 {
        self.bits() as f32 / (1u64 << 22) as f32 - 2.0
    }

    /// About normally distributed, with a standard deviation of 1: twelve values of variance 1/12.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.value() / 4.0).sum()
    }
}

/// Values in -2..2 from a seed.
pub(crate) fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.value()).collect()
}

/// Where a block's half-precision numbers lie.
fn halves(format: Format) -> &'static [usize] {
    match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::IQ4_NL | Format::IQ4_XS => &[0],
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        Format::Q6_K => &[208],
        Format::F32 | Format::F16 | Format::BF16 | Format::MXFP4 => &[],
    }
}

/// The blocks of `n` elements, exactly-sized: random bytes, but scales and minima are in -2..2.
pub(crate) fn blocks(format: Format, n: usize, seed: u64) -> Box<[u8]> {
    let mut bytes = vec![0; format.row_bytes(n)].into_boxed_slice();
    if format.block_len() == 1 {
        quantize(format, &values(n, seed), &mut bytes);
        return bytes;
    }
    let mut random = Random::new(seed);
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        block.fill_with(|| random.bits() as u8);
        for &at in halves(format) {
            block[at..at + 2].copy_from_slice(&f16::from_f32(random.value()).to_le_bytes());
        }
        if format == Format::MXFP4 {
            block[0] = 120 + block[0] % 8; // 2^-8 to 2^-1
        }
    }
    bytes
}
