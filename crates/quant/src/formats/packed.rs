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

/// Makes a block of values.
type QuantizeBlock<Values, Block> = fn(&Values, &mut Block);

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
    const QUANTIZE: Option<QuantizeBlock<Self::Values, Self::Block>>;

    /// A block's values, by the order of `f32` operations that ggml dequantizes with.
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

/// `out[i] = scale * number[i]`; `numbers` is asked for those from an index on.
#[inline(always)]
pub(super) fn scaled<S: Simd, const N: usize>(
    simd: S,
    numbers: impl Fn(usize) -> S::I,
    scale: f32,
    out: &mut [f32; N],
) {
    let scale = simd.splat(scale);
    for at in (0..N).step_by(S::LANES) {
        simd.store(simd.mul(scale, simd.int_to_f32(numbers(at))), &mut out[at..]);
    }
}

/// `out[i] = scale * number[i] + offset`, the product rounded first.
#[inline(always)]
pub(super) fn scaled_from<S: Simd, const N: usize>(
    simd: S,
    numbers: impl Fn(usize) -> S::I,
    scale: f32,
    offset: f32,
    out: &mut [f32; N],
) {
    let (scale, offset) = (simd.splat(scale), simd.splat(offset));
    for at in (0..N).step_by(S::LANES) {
        let product = simd.mul(scale, simd.int_to_f32(numbers(at)));
        simd.store(simd.add(product, offset), &mut out[at..]);
    }
}

/// `out[i] = scale * table[number[i]]`, of 32 numbers: the lower halves of 16 bytes, then the upper ones.
#[inline(always)]
pub(super) fn looked_up<S: Simd>(simd: S, table: &[i8; 16], quants: &[u8; 16], scale: f32, out: &mut [f32; 32]) {
    let low = simd.look_up(table, quants.map(|byte| byte & 0xF));
    let high = simd.look_up(table, quants.map(|byte| byte >> 4));
    let scale = simd.splat(scale);
    for at in (0..16).step_by(S::LANES) {
        // SAFETY: 16 values, of which a whole vector is left at each multiple of its length.
        let (low, high) =
            unsafe { (simd.load_i8(low.as_ptr().add(at).cast()), simd.load_i8(high.as_ptr().add(at).cast())) };
        simd.store(simd.mul(scale, low), &mut out[at..]);
        simd.store(simd.mul(scale, high), &mut out[at + 16..]);
    }
}

/// The two halves of 32 values.
#[inline(always)]
pub(super) fn halves(out: &mut [f32; 32]) -> [&mut [f32; 16]; 2] {
    match out.as_chunks_mut::<16>().0 {
        [low, high] => [low, high],
        _ => unreachable!("32 are two times 16"),
    }
}

/// The lower halves of bytes.
#[inline(always)]
pub(super) fn lower_halves<S: Simd>(simd: S, bytes: &[u8]) -> S::I {
    simd.and_int(simd.load_bytes(bytes), simd.splat_int(0xF))
}

/// The upper halves of bytes.
#[inline(always)]
pub(super) fn upper_halves<S: Simd>(simd: S, bytes: &[u8]) -> S::I {
    simd.shr_int::<4>(simd.load_bytes(bytes))
}

/// The fifth bits of 32 five-bit numbers, as Q5_0 and Q5_1 keep them: bit `i` is that of number `i`; little-endian.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct FifthBits([u8; 4]);

impl FifthBits {
    /// Those of `numbers`.
    pub(super) fn of(numbers: impl Fn(usize) -> u8) -> FifthBits {
        FifthBits((0..32).fold(0, |bits, i| bits | u32::from(numbers(i) >> 4) << i).to_le_bytes())
    }

    /// Numbers from `first` on, whose lower four bits are `four`.
    #[inline(always)]
    pub(super) fn on_top_of<S: Simd>(self, simd: S, four: S::I, first: usize) -> S::I {
        let bit = simd.and_int(simd.shr_lanes(u32::from_le_bytes(self.0), first as u32), simd.splat_int(1));
        simd.or_int(four, simd.shl_int::<4>(bit))
    }
}

/// `mask` of bytes from bit `shift` on.
#[inline(always)]
pub(super) fn bits<S: Simd>(simd: S, bytes: &[u8], shift: usize, mask: i32) -> S::I {
    simd.and_int(simd.shr_int_by(simd.load_bytes(bytes), shift as u32), simd.splat_int(mask))
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
