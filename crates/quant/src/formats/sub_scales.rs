//! The scales of Q4_K and Q5_K: eight sub-blocks of 32, each with a six-bit scale and a six-bit minimum in units of the
//! block's; an element is `(scale * sub_scale) * number - min * sub_min`.
//!
//! Source: ggml `ggml-common.h`, `block_q4_K`, `block_q5_K`.

use super::packed::Half;
use super::search::{ScaleAndMin, inverse, nearest};
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
        self.of(self.scale.widen(simd), self.min.widen(simd))
    }

    #[inline(always)]
    fn of(&self, scale: f32, min: f32) -> ([f32; 8], [f32; 8]) {
        let p = &self.packed;
        let (mut scales, mut mins) = ([0.0; 8], [0.0; 8]);
        for i in 0..4 {
            scales[i] = scale * f32::from(p[i] & 63);
            mins[i] = min * f32::from(p[i + 4] & 63);
            scales[i + 4] = scale * f32::from(p[i + 8] & 0xF | p[i] >> 6 << 4);
            mins[i + 4] = min * f32::from(p[i + 8] >> 4 | p[i + 4] >> 6 << 4);
        }
        (scales, mins)
    }

    /// Rounds sub-blocks' scales and minima to six bits, so that the greatest of each takes all of them.
    fn nearest(fits: &[ScaleAndMin; 8]) -> SubScales {
        let scale = fits.iter().fold(0.0f32, |max, fit| max.max(fit.scale)) / MAX;
        let min = fits.iter().fold(0.0f32, |max, fit| max.max(fit.min)) / MAX;
        let six_bits = |x: f32, inverse: f32| nearest(x * inverse).clamp(0.0, MAX) as u8;
        let scale_of = |sub: usize| six_bits(fits[sub].scale, inverse(scale));
        let min_of = |sub: usize| six_bits(fits[sub].min, inverse(min));
        let packed = std::array::from_fn(|i| match i {
            0..4 => scale_of(i) | scale_of(i + 4) >> 4 << 6,
            4..8 => min_of(i - 4) | min_of(i) >> 4 << 6,
            _ => scale_of(i - 4) & 0xF | min_of(i - 4) << 4,
        });
        SubScales { scale: Half::nearest(scale), min: Half::nearest(min), packed }
    }
}

/// Scales for 256 values, and their numbers up to `max`: `search` finds each sub-block's scale and minimum, which are then
/// rounded, and the numbers are the nearest that the rounded ones allow.
pub(super) fn quantize(
    from: &[f32; 256],
    max: f32,
    search: impl Fn(&[f32; 32]) -> ScaleAndMin,
) -> (SubScales, [[u8; 32]; 8]) {
    let sub_blocks = from.as_chunks::<32>().0;
    let head = SubScales::nearest(&std::array::from_fn(|sub| search(&sub_blocks[sub])));
    let (scales, mins) = head.of(head.scale.to_f32(), head.min.to_f32());
    let numbers = std::array::from_fn(|sub| {
        let inverse = inverse(scales[sub]);
        sub_blocks[sub].map(|x| nearest((x + mins[sub]) * inverse).clamp(0.0, max) as u8)
    });
    (head, numbers)
}
