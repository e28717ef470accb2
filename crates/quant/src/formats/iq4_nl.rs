//! IQ4_NL: blocks of 32 four-bit numbers and a scale; an element is `scale * VALUES[number]`, values that lie closer to each
//! other around zero.
//!
//! Source: ggml `ggml-common.h`, `block_iq4_nl`, `kvalues_iq4nl`.
#![allow(unsafe_code)] // Says that the layout is bytes.

use super::packed::{Half, Packed, looked_up};
use crate::simd::Simd;

pub(crate) struct IQ4_NL;

/// What the numbers stand for.
pub(crate) const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

#[repr(C)]
pub(crate) struct Block {
    scale: Half,
    /// Element `i` in the lower half of byte `i`, element `i + 16` in the upper.
    quants: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == 18);

// SAFETY: bytes alone.
unsafe impl Packed for IQ4_NL {
    const NAME: &'static str = "IQ4_NL";
    type Block = Block;
    type Values = [f32; 32];
    const QUANTIZE: Option<fn(&[f32; 32], &mut Block)> = None;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [f32; 32]) {
        looked_up(simd, &VALUES, &block.quants, block.scale.widen(simd), out);
    }
}
