//! The scales of Q4_K and Q5_K: eight sub-blocks of 32, each with a six-bit scale and a six-bit minimum in units of the
//! block's; an element is `(scale * sub_scale) * number - min * sub_min`.
//!
//! Source: ggml `ggml-common.h`, `block_q4_K`, `block_q5_K`.

use super::packed::Half;
use super::search::{ScaleAndMin, Search, error, inverse, nearest, weights};
use crate::simd::Simd;

/// The greatest six-bit number.
const MAX: f32 = 63.0;

/// The first 16 bytes of a block.
#[repr(C)]
pub(super) struct SubScales {
    scale: Half,
    min: Half,
    /// Of sub-blocks 0 to 3, the lower six bits of byte `sub` are the scale, and of byte `4 + sub` the minimum. Byte `8 + i`
    /// holds four bits of the scale (lower half) and of the minimum (upper) of sub-block `4 + i`, whose other two bits are the
    /// upper bits of bytes `i` and `4 + i`.
    packed: [u8; 12],
}

const _: () = assert!(size_of::<SubScales>() == 16);

impl SubScales {
    /// What each sub-block's numbers are multiplied by, and what is then subtracted.
    #[inline(always)]
    pub(super) fn widen<S: Simd>(&self, simd: S) -> ([f32; 8], [f32; 8]) {
        let (scale, min, p) = (self.scale.widen(simd), self.min.widen(simd), &self.packed);
        let (mut scales, mut mins) = ([0.0; 8], [0.0; 8]);
        for i in 0..4 {
            scales[i] = scale * f32::from(p[i] & 63);
            mins[i] = min * f32::from(p[i + 4] & 63);
            scales[i + 4] = scale * f32::from(p[i + 8] & 0xF | p[i] >> 6 << 4);
            mins[i + 4] = min * f32::from(p[i + 8] >> 4 | p[i + 4] >> 6 << 4);
        }
        (scales, mins)
    }

    fn pack(scale: Half, min: Half, sub_scales: &[u8; 8], sub_mins: &[u8; 8]) -> SubScales {
        let packed = std::array::from_fn(|i| match i {
            0..4 => sub_scales[i] | sub_scales[i + 4] >> 4 << 6,
            4..8 => sub_mins[i - 4] | sub_mins[i] >> 4 << 6,
            _ => sub_scales[i - 4] & 0xF | sub_mins[i - 4] << 4,
        });
        SubScales { scale, min, packed }
    }
}

/// Scales for 256 values, and their numbers.
///
/// Each sub-block's scale and minimum are searched for, and the greatest of each takes all six bits. Rounding to six bits costs
/// as much as the search gains, and the errors of scale and minimum add or cancel: so the neighbours are tried too.
pub(super) fn quantize(from: &[f32; 256], search: Search) -> (SubScales, [[u8; 32]; 8]) {
    let sub_blocks = from.as_chunks::<32>().0;
    let weights: [[f32; 32]; 8] = std::array::from_fn(|sub| weights(&sub_blocks[sub]));
    let fits: [ScaleAndMin; 8] = std::array::from_fn(|sub| search.scale_and_min(&sub_blocks[sub], &weights[sub]));
    let scale = fits.iter().fold(0.0f32, |max, fit| max.max(fit.scale)) / MAX;
    let min = fits.iter().fold(0.0f32, |max, fit| max.max(fit.min)) / MAX;
    let (to_sub_scale, to_sub_min) = (inverse(scale), inverse(min));
    let (scale, min) = (Half::nearest(scale), Half::nearest(min));
    let (mut sub_scales, mut sub_mins, mut numbers) = ([0; 8], [0; 8], [[0; 32]; 8]);
    for sub in 0..8 {
        let (near_scale, near_min) = (nearest(fits[sub].scale * to_sub_scale), nearest(fits[sub].min * to_sub_min));
        let mut least = f32::INFINITY;
        for (up, up_min) in [(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (1, 1), (-1, 1), (1, -1)] {
            let sub_scale = (near_scale + up as f32).clamp(0.0, MAX);
            let sub_min = (near_min + up_min as f32).clamp(0.0, MAX);
            let fit = ScaleAndMin { scale: scale.to_f32() * sub_scale, min: min.to_f32() * sub_min };
            let trial = search.numbers(&sub_blocks[sub], fit.min, inverse(fit.scale));
            let error = error(&sub_blocks[sub], &weights[sub], &trial, fit);
            if error < least {
                least = error;
                (sub_scales[sub], sub_mins[sub]) = (sub_scale as u8, sub_min as u8);
                numbers[sub] = trial.map(|number| number as u8);
            }
        }
    }
    (SubScales::pack(scale, min, &sub_scales, &sub_mins), numbers)
}
