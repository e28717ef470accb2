//! Q3_K: 256 three-bit numbers in sub-blocks of 16, each with a six-bit scale in units of the block's; an element is
//! `(scale * (sub_scale - 32)) * (number - 4)`.
//!
//! Source: ggml `ggml-common.h`, `block_q3_K`.
#![allow(unsafe_code)] // Says that the layout is bytes.

use super::packed::{Half, Packed, bits, scaled};
use crate::simd::Simd;

pub(crate) struct Q3_K;

#[repr(C)]
pub(crate) struct Block {
    /// Bit `n` of byte `i` is the third bit of element `32 * n + i`.
    high: [u8; 32],
    /// Of each half of the block: elements `i`, `i + 32`, `i + 64` and `i + 96` in byte `i`, from the lowest bits up.
    quants: [[u8; 32]; 2],
    /// Lower four bits of sub-blocks `i` and `i + 8` in byte `i < 8`; upper two of `i`, `i + 4`, `i + 8` and `i + 12` in byte
    /// `8 + i`.
    scales: [u8; 12],
    scale: Half,
}

const _: () = assert!(size_of::<Block>() == 110);

// SAFETY: bytes alone.
unsafe impl Packed for Q3_K {
    const NAME: &'static str = "Q3_K";
    type Block = Block;
    type Values = [f32; 256];
    const QUANTIZE: Option<fn(&[f32; 256], &mut Block)> = None;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [f32; 256]) {
        let scale = block.scale.widen(simd);
        for (sub, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let low = block.scales[sub % 8] >> (sub / 8 * 4) & 0xF;
            let high = block.scales[8 + sub % 4] >> (sub / 4 * 2) & 3;
            let scale = scale * (i32::from(low | high << 4) - 32) as f32;
            let (quants, shift) = (&block.quants[sub / 8].as_chunks::<16>().0[sub % 2], sub % 8 / 2 * 2);
            let (high, bit) = (&block.high.as_chunks::<16>().0[sub % 2], sub / 2);
            let number = |at: usize| {
                let high = simd.shl_int::<2>(bits(simd, &high[at..], bit, 1));
                simd.sub_int(simd.or_int(bits(simd, &quants[at..], shift, 3), high), simd.splat_int(4))
            };
            scaled(simd, number, scale, out);
        }
    }
}
