//! F16: IEEE half precision, little-endian. Widening is exact; narrowing rounds to nearest even, to infinity beyond 65,519.
#![allow(unsafe_code)] // Raw loads inside the tiles.

use super::BlockFormat;
use crate::simd::Simd;
use half::f16;

pub(crate) struct F16;

impl BlockFormat for F16 {
    const NAME: &'static str = "F16";
    const BLOCK_LEN: usize = 1;
    const BLOCK_BYTES: usize = 2;
    const QUANTIZE: Option<fn(&[f32], &mut [u8])> = Some(quantize);

    fn dequantize(bytes: &[u8], out: &mut [f32]) {
        for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            *out = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, step: *const u8, _part: usize) -> S::F {
        // SAFETY: the caller vouches for a whole step, which is one vector.
        unsafe { simd.load_f16(step) }
    }

    #[inline(always)]
    unsafe fn load_part<S: Simd>(simd: S, from: *const u8, n: usize) -> S::F {
        // SAFETY: the caller vouches for `n` elements.
        unsafe { simd.load_f16_part(from, n) }
    }
}

fn quantize(from: &[f32], bytes: &mut [u8]) {
    for (bytes, from) in bytes.chunks_exact_mut(2).zip(from) {
        bytes.copy_from_slice(&f16::from_f32(*from).to_le_bytes());
    }
}
