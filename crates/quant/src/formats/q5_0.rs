//! Q5_0: blocks of 32 five-bit numbers and a scale; an element is `scale * (number - 16)`.
//!
//! The product of an 11-bit and a five-bit significand fits in the 24 bits of an `f32`: dequantization is exact.
//!
//! Source: ggml `ggml-common.h`, `block_q5_0`; `quantize_row_q5_0_ref`.
#![allow(unsafe_code)] // Says that the layout is bytes.

use super::packed::{FifthBits, Half, Packed, halves, lower_halves, scaled, upper_halves};
use super::search::{greatest, inverse};
use crate::simd::Simd;

pub(crate) struct Q5_0;

#[repr(C)]
pub(crate) struct Block {
    scale: Half,
    high: FifthBits,
    /// Element `i` in the lower half of byte `i`, element `i + 16` in the upper.
    quants: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == 22);

// SAFETY: bytes alone.
unsafe impl Packed for Q5_0 {
    const NAME: &'static str = "Q5_0";
    type Block = Block;
    type Values = [f32; 32];
    const QUANTIZE: Option<fn(&[f32; 32], &mut Block)> = Some(quantize);

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [f32; 32]) {
        let scale = block.scale.widen(simd);
        let [low, high] = halves(out);
        let with_fifth = |four: S::I, first: usize| block.high.on_top_of(simd, four, first);
        let middle = simd.splat_int(16);
        scaled(simd, |at| simd.sub_int(with_fifth(lower_halves(simd, &block.quants[at..]), at), middle), scale, low);
        scaled(
            simd,
            |at| simd.sub_int(with_fifth(upper_halves(simd, &block.quants[at..]), at + 16), middle),
            scale,
            high,
        );
    }
}

/// Takes the value of the greatest magnitude to -16, the one number whose opposite there is not. The scale is kept in half
/// precision, but the numbers are rounded with the unrounded one, as ggml does.
fn quantize(from: &[f32; 32], block: &mut Block) {
    let scale = greatest(from) / -16.0;
    let inverse = inverse(scale);
    let number = |x: f32| ((x * inverse + 16.5) as u8).min(31);
    let quants = std::array::from_fn(|i| number(from[i]) & 0xF | number(from[i + 16]) << 4);
    let high = FifthBits::of(|i| number(from[i]));
    *block = Block { scale: Half::nearest(scale), high, quants };
}
