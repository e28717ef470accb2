//! Q2_K: 256 two-bit numbers in sub-blocks of 16, each with a four-bit scale and a four-bit minimum in units of the block's;
//! an element is `(scale * sub_scale) * number - min * sub_min`.
//!
//! Source: ggml `ggml-common.h`, `block_q2_K`.
#![allow(unsafe_code)] // Says that the layout is bytes.

use super::packed::{Half, Packed, bits, scaled_from};
use crate::simd::Simd;

pub(crate) struct Q2_K;

#[repr(C)]
pub(crate) struct Block {
    /// Of each sub-block: the scale in the lower half, the minimum in the upper.
    scales: [u8; 16],
    /// Of each half of the block: elements `i`, `i + 32`, `i + 64` and `i + 96` in byte `i`, from the lowest bits up.
    quants: [[u8; 32]; 2],
    scale: Half,
    min: Half,
}

const _: () = assert!(size_of::<Block>() == 84);

// SAFETY: bytes alone.
unsafe impl Packed for Q2_K {
    const NAME: &'static str = "Q2_K";
    type Block = Block;
    type Values = [f32; 256];
    const QUANTIZE: Option<fn(&[f32; 256], &mut Block)> = None;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [f32; 256]) {
        let (scale, min) = (block.scale.widen(simd), block.min.widen(simd));
        for (sub, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = scale * f32::from(block.scales[sub] & 0xF);
            let min = min * f32::from(block.scales[sub] >> 4);
            let (quants, shift) = (&block.quants[sub / 8].as_chunks::<16>().0[sub % 2], sub % 8 / 2 * 2);
            scaled_from(simd, |at| bits(simd, &quants[at..], shift, 3), scale, -min, out);
        }
    }
}
