//! Q6_K: 256 six-bit numbers in sub-blocks of 16, each with a scale of one signed byte in units of the block's; an element is
//! `(scale * sub_scale) * (number - 32)`.
//!
//! Source: ggml `ggml-common.h`, `block_q6_K`.
#![allow(unsafe_code)] // Says that the layout is bytes.

use super::packed::{Half, Packed, bits, scaled};
use super::search::{inverse, nearest, symmetric_scale};
use crate::simd::Simd;

pub(crate) struct Q6_K;

#[repr(C)]
pub(crate) struct Block {
    /// Lower four bits. Of each half of the block: elements `i` and `i + 64` in byte `i`, lower half first.
    low: [[u8; 64]; 2],
    /// Upper two bits. Of each half: elements `i`, `i + 32`, `i + 64` and `i + 96` in byte `i`, from the lowest bits up.
    high: [[u8; 32]; 2],
    scales: [i8; 16],
    scale: Half,
}

const _: () = assert!(size_of::<Block>() == 210);

// SAFETY: bytes alone.
unsafe impl Packed for Q6_K {
    const NAME: &'static str = "Q6_K";
    type Block = Block;
    type Values = [f32; 256];
    const QUANTIZE: Option<fn(&[f32; 256], &mut Block)> = Some(quantize);

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [f32; 256]) {
        let scale = block.scale.widen(simd);
        for (sub, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = scale * f32::from(block.scales[sub]);
            let (low, low_shift) = (&block.low[sub / 8].as_chunks::<16>().0[sub % 4], sub % 8 / 4 * 4);
            let (high, high_shift) = (&block.high[sub / 8].as_chunks::<16>().0[sub % 2], sub % 8 / 2 * 2);
            let number = |at: usize| {
                let high = simd.shl_int::<4>(bits(simd, &high[at..], high_shift, 3));
                simd.sub_int(simd.or_int(bits(simd, &low[at..], low_shift, 0xF), high), simd.splat_int(32))
            };
            scaled(simd, number, scale, out);
        }
    }
}

/// The sub-blocks' scales are searched for, and rounded so that the one of greatest magnitude becomes -128. Numbers are the
/// nearest that the rounded scales allow.
fn quantize(from: &[f32; 256], block: &mut Block) {
    let sub_blocks = from.as_chunks::<16>().0;
    let fits: [f32; 16] = std::array::from_fn(|sub| symmetric_scale(&sub_blocks[sub]));
    let greatest = fits.iter().fold(0.0f32, |max, fit| if fit.abs() > max.abs() { *fit } else { max });
    let scale = Half::nearest(greatest / -128.0);
    let to_byte = inverse(greatest / -128.0);
    let scales = fits.map(|fit| nearest(fit * to_byte).clamp(-128.0, 127.0) as i8);
    let number = |at: usize| {
        let inverse = inverse(scale.to_f32() * f32::from(scales[at / 16]));
        (nearest(from[at] * inverse).clamp(-32.0, 31.0) + 32.0) as u8
    };
    let low = std::array::from_fn(|half| {
        std::array::from_fn(|i| number(128 * half + i) & 0xF | number(128 * half + i + 64) << 4)
    });
    let high = std::array::from_fn(|half| {
        std::array::from_fn(|i| (0..4).fold(0, |high, j| high | number(128 * half + 32 * j + i) >> 4 << (2 * j)))
    });
    *block = Block { low, high, scales, scale };
}
