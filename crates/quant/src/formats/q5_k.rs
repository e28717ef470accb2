//! Q5_K: 256 five-bit numbers in sub-blocks of 32, each with a six-bit scale and a six-bit minimum.
//!
//! Source: ggml `ggml-common.h`, `block_q5_K`.
#![allow(unsafe_code)] // Says that the layout is bytes.

use super::packed::Packed;
use super::search::Search;
use super::sub_scales::{self, SubScales};
use crate::simd::Simd;

pub(crate) struct Q5_K;

#[repr(C)]
pub(crate) struct Block {
    scales: SubScales,
    /// Bit `sub` of byte `i` is the fifth bit of element `i` of that sub-block.
    high: [u8; 32],
    /// Of each two sub-blocks: element `i` of the first in the lower half of byte `i`, of the second in the upper.
    quants: [[u8; 32]; 4],
}

const _: () = assert!(size_of::<Block>() == 176);

// SAFETY: bytes alone.
unsafe impl Packed for Q5_K {
    const NAME: &'static str = "Q5_K";
    type Block = Block;
    type Values = [f32; 256];
    const QUANTIZE: Option<fn(&[f32; 256], &mut Block)> = Some(quantize);

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [f32; 256]) {
        let (scales, mins) = block.scales.widen(simd);
        for (pair, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            let (quants, sub) = (&block.quants[pair], 2 * pair);
            for i in 0..32 {
                let number = quants[i] & 0xF | (block.high[i] >> sub & 1) << 4;
                out[i] = scales[sub] * f32::from(number) - mins[sub];
            }
            for i in 0..32 {
                let number = quants[i] >> 4 | (block.high[i] >> (sub + 1) & 1) << 4;
                out[i + 32] = scales[sub + 1] * f32::from(number) - mins[sub + 1];
            }
        }
    }
}

fn quantize(from: &[f32; 256], block: &mut Block) {
    let search = Search { max: 31.0, first: -1.0, n_steps: 21 };
    let (scales, numbers) = sub_scales::quantize(from, 31.0, |x| search.scale_and_min(x));
    let quants =
        std::array::from_fn(|pair| std::array::from_fn(|i| numbers[2 * pair][i] & 0xF | numbers[2 * pair + 1][i] << 4));
    let high = std::array::from_fn(|i| (0..8).fold(0, |high, sub| high | numbers[sub][i] >> 4 << sub));
    *block = Block { scales, high, quants };
}
