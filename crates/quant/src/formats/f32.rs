//! F32: IEEE single precision, little-endian.
#![allow(unsafe_code)] // Raw loads inside the tiles.

use super::BlockFormat;
use crate::simd::Simd;

pub(crate) struct F32;

impl BlockFormat for F32 {
    const NAME: &'static str = "F32";
    const BLOCK_LEN: usize = 1;
    const BLOCK_BYTES: usize = 4;
    const QUANTIZE: Option<fn(&[f32], &mut [u8])> = Some(quantize);

    fn dequantize(bytes: &[u8], out: &mut [f32]) {
        for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
            *out = f32::from_le_bytes(bytes.try_into().expect("4 bytes"));
        }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, step: *const u8, _part: usize) -> S::F {
        // SAFETY: the caller vouches for a whole step, which is one vector.
        unsafe { simd.load_ptr(step.cast()) }
    }

    #[inline(always)]
    unsafe fn load_part<S: Simd>(simd: S, from: *const u8, n: usize) -> S::F {
        // SAFETY: the caller vouches for `n` elements.
        unsafe { simd.load_ptr_part(from.cast(), n) }
    }
}

fn quantize(from: &[f32], bytes: &mut [u8]) {
    for (bytes, from) in bytes.chunks_exact_mut(4).zip(from) {
        bytes.copy_from_slice(&from.to_le_bytes());
    }
}
