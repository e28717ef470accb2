//! Q5_1: blocks of 32 five-bit numbers, a scale and a minimum; an element is `scale * number + min`.
//!
//! Source: ggml `ggml-common.h`, `block_q5_1`; `quantize_row_q5_1_ref`.
#![allow(unsafe_code)] // Says that the layout is bytes.

use super::packed::{FifthBits, Half, Packed, halves, lower_halves, scaled_from, upper_halves};
use super::search::{bounds, inverse};
use crate::simd::Simd;

pub(crate) struct Q5_1;

#[repr(C)]
pub(crate) struct Block {
    scale: Half,
    min: Half,
    high: FifthBits,
    /// Element `i` in the lower half of byte `i`, element `i + 16` in the upper.
    quants: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == 24);

// SAFETY: bytes alone.
unsafe impl Packed for Q5_1 {
    const NAME: &'static str = "Q5_1";
    type Block = Block;
    type Values = [f32; 32];
    const QUANTIZE: Option<fn(&[f32; 32], &mut Block)> = Some(quantize);

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [f32; 32]) {
        let (scale, min) = (block.scale.widen(simd), block.min.widen(simd));
        let [low, high] = halves(out);
        let with_fifth = |four: S::I, first: usize| block.high.on_top_of(simd, four, first);
        scaled_from(simd, |at| with_fifth(lower_halves(simd, &block.quants[at..]), at), scale, min, low);
        scaled_from(simd, |at| with_fifth(upper_halves(simd, &block.quants[at..]), at + 16), scale, min, high);
    }
}

/// Takes the least value to 0 and the greatest to 31. Both are kept in half precision, but the numbers are rounded with the
/// unrounded ones, as ggml does.
fn quantize(from: &[f32; 32], block: &mut Block) {
    let (min, max) = bounds(from);
    let scale = (max - min) / 31.0;
    let inverse = inverse(scale);
    let number = |x: f32| (((x - min) * inverse + 0.5) as u8).min(31);
    let quants = std::array::from_fn(|i| number(from[i]) & 0xF | number(from[i + 16]) << 4);
    let high = FifthBits::of(|i| number(from[i]));
    *block = Block { scale: Half::nearest(scale), min: Half::nearest(min), high, quants };
}
