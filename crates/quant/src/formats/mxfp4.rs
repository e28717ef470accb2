//! MXFP4: blocks of 32 four-bit floats (sign, two bits of exponent, one of mantissa) that share a power of two.
//!
//! Source: OCP Microscaling Formats (MX) 1.0; ggml `ggml-common.h`, `block_mxfp4`, `kvalues_mxfp4`: the values are kept
//! doubled and the scale halved, so that the values are whole.
#![allow(unsafe_code)] // Says that the layout is bytes.

use super::packed::{Packed, looked_up};
use crate::simd::Simd;

pub(crate) struct MXFP4;

/// Twice what the numbers stand for. ggml's table holds integers: the zero of number 8 has no sign.
pub(crate) const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

#[repr(C)]
pub(crate) struct Block {
    /// E8M0: the exponent of the scale, plus 127.
    exponent: u8,
    /// Element `i` in the lower half of byte `i`, element `i + 16` in the upper.
    quants: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == 17);

/// `2^(exponent - 128)`, of which the two least are no normal numbers. 255 stands for NaN in the specification and for
/// 2^127 here, as in ggml.
#[inline(always)]
pub(crate) fn half_scale(exponent: u8) -> f32 {
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { u32::from(exponent - 1) << 23 })
}

// SAFETY: bytes alone.
unsafe impl Packed for MXFP4 {
    const NAME: &'static str = "MXFP4";
    type Block = Block;
    type Values = [f32; 32];
    const QUANTIZE: Option<fn(&[f32; 32], &mut Block)> = None;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [f32; 32]) {
        looked_up(simd, &VALUES, &block.quants, half_scale(block.exponent), out);
    }
}
