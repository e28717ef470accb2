//! IQ4_XS: 256 four-bit numbers in sub-blocks of 32, each with a six-bit scale in units of the block's; an element is
//! `(scale * (sub_scale - 32)) * VALUES[number]`, with the values of IQ4_NL.
//!
//! Source: ggml `ggml-common.h`, `block_iq4_xs`.
#![allow(unsafe_code)] // Says that the layout is bytes.

use super::iq4_nl::VALUES;
use super::packed::{Half, Packed, looked_up};
use crate::simd::Simd;

pub(crate) struct IQ4_XS;

#[repr(C)]
pub(crate) struct Block {
    scale: Half,
    /// Upper two bits of the scales, from the lowest bits up; little-endian.
    scales_high: [u8; 2],
    /// Lower four bits of scales `2 * i` and `2 * i + 1` in byte `i`.
    scales_low: [u8; 4],
    /// Of each sub-block: element `i` in the lower half of byte `i`, element `i + 16` in the upper.
    quants: [[u8; 16]; 8],
}

const _: () = assert!(size_of::<Block>() == 136);

// SAFETY: bytes alone.
unsafe impl Packed for IQ4_XS {
    const NAME: &'static str = "IQ4_XS";
    type Block = Block;
    type Values = [f32; 256];
    const QUANTIZE: Option<fn(&[f32; 256], &mut Block)> = None;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [f32; 256]) {
        let scale = block.scale.widen(simd);
        let scales_high = u16::from_le_bytes(block.scales_high);
        for (sub, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = block.scales_low[sub / 2] >> (sub % 2 * 4) & 0xF;
            let high = scales_high >> (2 * sub) & 3;
            let scale = scale * (i32::from(u16::from(low) | high << 4) - 32) as f32;
            looked_up(simd, &VALUES, &block.quants[sub], scale, out);
        }
    }
}
