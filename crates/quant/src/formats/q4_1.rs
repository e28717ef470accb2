//! Q4_1: blocks of 32 four-bit numbers, a scale and a minimum; an element is `scale * number + min`.
//!
//! Source: ggml `ggml-common.h`, `block_q4_1`; `quantize_row_q4_1_ref`.
#![allow(unsafe_code)] // Says that the layout is bytes.

use super::packed::{Half, Packed, halves, lower_halves, scaled_from, upper_halves};
use super::search::{bounds, inverse};
use crate::simd::Simd;

pub(crate) struct Q4_1;

#[repr(C)]
pub(crate) struct Block {
    scale: Half,
    min: Half,
    /// Element `i` in the lower half of byte `i`, element `i + 16` in the upper.
    quants: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == 20);

// SAFETY: bytes alone.
unsafe impl Packed for Q4_1 {
    const NAME: &'static str = "Q4_1";
    type Block = Block;
    type Values = [f32; 32];
    const QUANTIZE: Option<fn(&[f32; 32], &mut Block)> = Some(quantize);

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [f32; 32]) {
        let (scale, min) = (block.scale.widen(simd), block.min.widen(simd));
        let [low, high] = halves(out);
        scaled_from(simd, |at| lower_halves(simd, &block.quants[at..]), scale, min, low);
        scaled_from(simd, |at| upper_halves(simd, &block.quants[at..]), scale, min, high);
    }
}

/// Takes the least value to 0 and the greatest to 15. Both are kept in half precision, but the numbers are rounded with the
/// unrounded ones, as ggml does.
fn quantize(from: &[f32; 32], block: &mut Block) {
    let (min, max) = bounds(from);
    let scale = (max - min) / 15.0;
    let inverse = inverse(scale);
    let number = |x: f32| (((x - min) * inverse + 0.5) as u8).min(15);
    let quants = std::array::from_fn(|i| number(from[i]) | number(from[i + 16]) << 4);
    *block = Block { scale: Half::nearest(scale), min: Half::nearest(min), quants };
}
