//! Q4_0: blocks of 32 four-bit numbers and a scale; an element is `scale * (number - 8)`.
//!
//! The product of an 11-bit and a four-bit significand fits in the 24 bits of an `f32`: dequantization is exact.
//!
//! Source: ggml `ggml-common.h`, `block_q4_0`; `quantize_row_q4_0_ref`.
#![allow(unsafe_code)] // Says that the layout is bytes.

use super::packed::{Half, Packed, halves, lower_halves, scaled, upper_halves};
use super::search::{greatest, inverse};
use crate::simd::Simd;

pub(crate) struct Q4_0;

#[repr(C)]
pub(crate) struct Block {
    scale: Half,
    /// Element `i` in the lower half of byte `i`, element `i + 16` in the upper.
    quants: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == 18);

// SAFETY: bytes alone.
unsafe impl Packed for Q4_0 {
    const NAME: &'static str = "Q4_0";
    type Block = Block;
    type Values = [f32; 32];
    const QUANTIZE: Option<fn(&[f32; 32], &mut Block)> = Some(quantize);

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [f32; 32]) {
        let scale = block.scale.widen(simd);
        let [low, high] = halves(out);
        let middle = simd.splat_int(8);
        scaled(simd, |at| simd.sub_int(lower_halves(simd, &block.quants[at..]), middle), scale, low);
        scaled(simd, |at| simd.sub_int(upper_halves(simd, &block.quants[at..]), middle), scale, high);
    }
}

/// Takes the value of the greatest magnitude to -8, the one number whose opposite there is not. The scale is kept in half
/// precision, but the numbers are rounded with the unrounded one, as ggml does.
fn quantize(from: &[f32; 32], block: &mut Block) {
    let scale = greatest(from) / -8.0;
    let inverse = inverse(scale);
    let number = |x: f32| ((x * inverse + 8.5) as u8).min(15);
    let quants = std::array::from_fn(|i| number(from[i]) | number(from[i + 16]) << 4);
    *block = Block { scale: Half::nearest(scale), quants };
}
