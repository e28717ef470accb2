//! Formats whose blocks are unpacked whole: what their files say, and how that makes a [`BlockFormat`].
//!
//! One vector of such a block is awkward to load by itself, because scales, minima and high bits lie elsewhere in the block.
//! The kernels unpack some rows into a small buffer instead, with one function per format and instruction set, and go on
//! with `f32` ([`crate::panel`]).
#![allow(unsafe_code)] // Sees bytes as blocks.

use super::BlockFormat;
use crate::simd::{Scalar, Simd};
use half::f16;
use std::slice::{from_raw_parts, from_raw_parts_mut};

/// What the file of a packed format says about it.
///
/// # Safety
/// `Block` is `repr(C)`, made of bytes alone: every value of those is a block, and its alignment is 1. `Values` is an array
/// of `f32`.
pub(crate) unsafe trait Packed: 'static {
    /// The name ggml gives it.
    const NAME: &'static str;
    /// The layout.
    type Block;
    /// A block's values: 32 of them, or 256.
    type Values;
    /// Makes a block of values; `None` where the format is only read.
    const QUANTIZE: Option<fn(&Self::Values, &mut Self::Block)>;

    /// A block's values, by the order of `f32` operations that ggml dequantizes with.
    ///
    /// Written over arrays of fixed size and without branches, for the compiler to turn into vectors of `S`.
    fn unpack<S: Simd>(simd: S, block: &Self::Block, out: &mut Self::Values);
}

impl<P: Packed> BlockFormat for P {
    const NAME: &'static str = <P as Packed>::NAME;
    const BLOCK_LEN: usize = size_of::<P::Values>() / size_of::<f32>();
    const BLOCK_BYTES: usize = size_of::<P::Block>();
    const PACKED: bool = true;
    const QUANTIZE: Option<fn(&[f32], &mut [u8])> = match <P as Packed>::QUANTIZE {
        Some(_) => Some(quantize::<P>),
        None => None,
    };

    fn dequantize(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(Self::BLOCK_BYTES).zip(out.chunks_exact_mut(Self::BLOCK_LEN)) {
            // SAFETY: a whole block, and room for its values.
            unsafe { <P as BlockFormat>::unpack(Scalar, block.as_ptr(), out.as_mut_ptr()) }
        }
    }

    #[inline(always)]
    unsafe fn unpack<S: Simd>(simd: S, block: *const u8, out: *mut f32) {
        const { assert!(align_of::<P::Block>() == 1) }
        // SAFETY: the caller vouches for a whole block, which any bytes are, and for as many values, which nobody else
        // refers to.
        unsafe { P::unpack(simd, &*block.cast(), &mut *out.cast()) }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(_simd: S, _step: *const u8, _part: usize) -> S::F {
        unreachable!("a packed format is read by `unpack`")
    }

    #[inline(always)]
    unsafe fn load_part<S: Simd>(_simd: S, _from: *const u8, _n: usize) -> S::F {
        unreachable!("a packed format is read by `unpack`")
    }
}

/// [`Packed::QUANTIZE`], block by block.
fn quantize<P: Packed>(from: &[f32], bytes: &mut [u8]) {
    const { assert!(align_of::<P::Block>() == 1) }
    let Some(quantize) = <P as Packed>::QUANTIZE else { unreachable!("only named where there is one") };
    let n_blocks = bytes.len() / size_of::<P::Block>();
    assert_eq!(size_of_val(from), n_blocks * size_of::<P::Values>());
    // SAFETY: as many whole blocks as there are bytes for, which any bytes are, and as many times their values.
    let (values, blocks) = unsafe {
        (from_raw_parts(from.as_ptr().cast(), n_blocks), from_raw_parts_mut(bytes.as_mut_ptr().cast(), n_blocks))
    };
    values.iter().zip(blocks).for_each(|(values, block)| quantize(values, block));
}

/// A number in half precision, little-endian, as it lies in a block.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Half([u8; 2]);

impl Half {
    /// The nearest half to `x`; infinity beyond 65,519.
    pub(super) fn nearest(x: f32) -> Half {
        Half(f16::from_f32(x).to_le_bytes())
    }

    /// Its value, exactly.
    #[inline(always)]
    pub(super) fn widen<S: Simd>(self, simd: S) -> f32 {
        simd.widen_half(u16::from_le_bytes(self.0))
    }

    /// Its value, exactly, outside kernels.
    pub(super) fn to_f32(self) -> f32 {
        f16::from_le_bytes(self.0).to_f32()
    }
}
