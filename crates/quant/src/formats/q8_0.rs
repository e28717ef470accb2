//! Q8_0: blocks of 32 signed bytes that share one half-precision scale; an element is `scale * byte`.
//!
//! The product of an 11-bit and an 8-bit significand fits in the 24 bits of an `f32`: dequantization is exact.
//!
//! Source: ggml `ggml-common.h`, `block_q8_0`; `quantize_row_q8_0_ref`.
#![allow(unsafe_code)] // Raw loads inside the tiles.

use super::BlockFormat;
use crate::simd::Simd;
use half::f16;
use std::mem::{offset_of, size_of};

pub(crate) struct Q8_0;

const LEN: usize = 32;

#[repr(C)]
struct Block {
    /// Half precision, little-endian.
    scale: [u8; 2],
    quants: [i8; LEN],
}

const _: () = assert!(size_of::<Block>() == 34 && align_of::<Block>() == 1);

impl BlockFormat for Q8_0 {
    const NAME: &'static str = "Q8_0";
    const BLOCK_LEN: usize = LEN;
    const BLOCK_BYTES: usize = size_of::<Block>();
    const QUANTIZE: Option<fn(&[f32], &mut [u8])> = Some(quantize);

    fn dequantize(bytes: &[u8], out: &mut [f32]) {
        for (out, block) in out.chunks_exact_mut(LEN).zip(bytes.chunks_exact(Self::BLOCK_BYTES)) {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            for (out, quant) in out.iter_mut().zip(&block[offset_of!(Block, quants)..]) {
                *out = scale * f32::from(*quant as i8);
            }
        }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, step: *const u8, part: usize) -> S::F {
        // SAFETY: the caller vouches for a whole block and for a part within it.
        unsafe {
            let quants = simd.load_i8(step.add(offset_of!(Block, quants) + part * S::LANES));
            simd.mul(simd.splat_f16(step), quants)
        }
    }

    #[inline(always)]
    unsafe fn load_part<S: Simd>(_simd: S, _from: *const u8, _n: usize) -> S::F {
        unreachable!("a row of Q8_0 holds whole blocks of 32, which every vector length divides")
    }
}

/// The scale takes the greatest magnitude to 127. It is kept in half precision, but the bytes are rounded with the
/// unrounded one, as ggml does.
fn quantize(from: &[f32], bytes: &mut [u8]) {
    for (from, block) in from.chunks_exact(LEN).zip(bytes.chunks_exact_mut(Q8_0::BLOCK_BYTES)) {
        let max = from.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let scale = max / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let (head, quants) = block.split_at_mut(offset_of!(Block, quants));
        head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        for (quant, x) in quants.iter_mut().zip(from) {
            *quant = (x * inverse).round() as i8 as u8;
        }
    }
}
