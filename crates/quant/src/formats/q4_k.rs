//! Q4_K: 256 four-bit numbers in sub-blocks of 32, each with a six-bit scale and a six-bit minimum.
//!
//! Source: ggml `ggml-common.h`, `block_q4_K`.
#![allow(unsafe_code)] // Says that the layout is bytes.

use super::packed::{Packed, bits, scaled_from};
use super::search::Search;
use super::sub_scales::{self, SubScales};
use crate::simd::Simd;

pub(crate) struct Q4_K;

#[repr(C)]
pub(crate) struct Block {
    scales: SubScales,
    /// Of each two sub-blocks: element `i` of the first in the lower half of byte `i`, of the second in the upper.
    quants: [[u8; 32]; 4],
}

const _: () = assert!(size_of::<Block>() == 144);

// SAFETY: bytes alone.
unsafe impl Packed for Q4_K {
    const NAME: &'static str = "Q4_K";
    type Block = Block;
    type Values = [f32; 256];
    const QUANTIZE: Option<fn(&[f32; 256], &mut Block)> = Some(quantize);

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [f32; 256]) {
        let (scales, mins) = block.scales.widen(simd);
        for (sub, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (quants, shift) = (&block.quants[sub / 2], sub % 2 * 4);
            scaled_from(simd, |at| bits(simd, &quants[at..], shift, 0xF), scales[sub], -mins[sub], out);
        }
    }
}

fn quantize(from: &[f32; 256], block: &mut Block) {
    let (scales, numbers) = sub_scales::quantize(from, Search { max: 15.0, first: -1.0, n_steps: 21 });
    let quants =
        std::array::from_fn(|pair| std::array::from_fn(|i| numbers[2 * pair][i] | numbers[2 * pair + 1][i] << 4));
    *block = Block { scales, quants };
}
