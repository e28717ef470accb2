//! The block formats, one file each, and the one table that lists them.
//!
//! A file says how a block is laid out and how it becomes `f32`, in one of two ways. Where one vector of a row can be loaded by
//! itself, the file says how and kernels multiply straight from the blocks ([`BlockFormat::load`]). Where scales, minima and
//! high bits lie elsewhere in the block, the file unpacks a whole one ([`packed::Packed`]), and kernels multiply from a small
//! buffer. To add a format, write its file and add its line to the table below.
#![allow(unsafe_code)] // Declares the raw loads.
#![allow(non_camel_case_types)] // The spelling of GGUF.

mod bf16;
mod f16;
mod f32;
pub(crate) mod iq4_nl;
mod iq4_xs;
pub(crate) mod mxfp4;
mod packed;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod search;
mod sub_scales;

pub(crate) use f32::F32;

use crate::simd::Simd;
use gguf_parser::TensorType;

/// Defines [`Format`] and `with_format!` from the table of formats.
macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident => $ty:path,)*) => {
        /// How the elements of a row are laid out in bytes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Format {
            $($(#[$doc])* $name,)*
        }

        impl Format {
            /// Every format, in the order of the table.
            pub const ALL: &[Format] = &[$(Format::$name,)*];

            /// Calls `visitor` with the type that describes this format.
            #[inline(always)]
            pub(crate) fn visit<V: Visitor>(self, visitor: V) -> V::Output {
                match self {
                    $(Format::$name => visitor.visit::<$ty>(),)*
                }
            }
        }
    };
}

formats! {
    /// IEEE single precision.
    F32 => f32::F32,
    /// IEEE half precision.
    F16 => f16::F16,
    /// bfloat16: the upper half of an `f32`.
    BF16 => bf16::BF16,
    /// 32 signed bytes that share one half-precision scale.
    Q8_0 => q8_0::Q8_0,
    /// 32 four-bit numbers around zero that share one half-precision scale.
    Q4_0 => q4_0::Q4_0,
    /// 32 four-bit numbers that share a scale and a minimum.
    Q4_1 => q4_1::Q4_1,
    /// 32 five-bit numbers around zero that share one half-precision scale.
    Q5_0 => q5_0::Q5_0,
    /// 32 five-bit numbers that share a scale and a minimum.
    Q5_1 => q5_1::Q5_1,
    /// 256 two-bit numbers; sub-blocks of 16 have scales and minima. Only read.
    Q2_K => q2_k::Q2_K,
    /// 256 three-bit numbers around zero; sub-blocks of 16 have scales. Only read.
    Q3_K => q3_k::Q3_K,
    /// 256 four-bit numbers; sub-blocks of 32 have scales and minima.
    Q4_K => q4_k::Q4_K,
    /// 256 five-bit numbers; sub-blocks of 32 have scales and minima.
    Q5_K => q5_k::Q5_K,
    /// 256 six-bit numbers around zero; sub-blocks of 16 have scales.
    Q6_K => q6_k::Q6_K,
    /// 32 numbers of four bits that stand for unevenly spaced values, and a scale. Only read.
    IQ4_NL => iq4_nl::IQ4_NL,
    /// 256 numbers of the kind of IQ4_NL; sub-blocks of 32 have scales. Only read.
    IQ4_XS => iq4_xs::IQ4_XS,
    /// 32 four-bit floats that share a power of two. Only read.
    MXFP4 => mxfp4::MXFP4,
}

/// A computation written once over [`BlockFormat`]: see [`Format::visit`].
pub(crate) trait Visitor {
    type Output;
    fn visit<F: BlockFormat>(self) -> Self::Output;
}

/// Makes blocks of values.
type Quantize = fn(&[f32], &mut [u8]);

/// What a format's file says about it.
pub(crate) trait BlockFormat: 'static {
    /// The name ggml gives it.
    const NAME: &'static str;
    /// Elements of a block: 1, or a multiple of 32.
    const BLOCK_LEN: usize;
    /// Bytes of a block.
    const BLOCK_BYTES: usize;
    /// Whether kernels read it by `unpack`; else they do by `load` and `load_part`.
    const PACKED: bool = false;

    /// Turns whole blocks into `f32`. `bytes` holds exactly the blocks of `out`.
    fn dequantize(bytes: &[u8], out: &mut [f32]);

    /// Turns `f32` into whole blocks: `(from, bytes)`, where `bytes` holds exactly the blocks of `from`. `None` where the
    /// format is only read.
    const QUANTIZE: Option<Quantize>;

    /// One block as `f32`, equal in every bit to what `dequantize` gives.
    ///
    /// # Safety
    /// A block may be read from `block`, and its values be written to `out`, which nobody else refers to.
    unsafe fn unpack<S: Simd>(_simd: S, _block: *const u8, _out: *mut f32) {
        unreachable!("only a packed format is read by `unpack`")
    }

    /// The `part`-th vector of a step, as `f32`, equal in every bit to what `dequantize` gives.
    ///
    /// A step is what the kernels walk a row by: one block, or one vector where a block is a single element (`part` is
    /// then 0).
    ///
    /// # Safety
    /// A whole step may be read from `step`, and `part` lies within it.
    unsafe fn load<S: Simd>(simd: S, step: *const u8, part: usize) -> S::F;

    /// The last `n < S::LANES` elements of a row, zeros behind them. Called only where a block is a single element.
    ///
    /// # Safety
    /// `n` elements may be read from `from`.
    unsafe fn load_part<S: Simd>(simd: S, from: *const u8, n: usize) -> S::F;
}

impl Format {
    /// The format of a tensor type; `None` where there are no kernels for it.
    pub fn from_tensor_type(ty: TensorType) -> Option<Format> {
        Format::from_name(ty.name())
    }

    /// The format of that name, as ggml spells it (`"F16"`, `"Q8_0"`); `None` where there are no kernels for it.
    pub fn from_name(name: &str) -> Option<Format> {
        Format::ALL.iter().copied().find(|format| format.name() == name)
    }

    /// The name ggml gives it.
    pub fn name(self) -> &'static str {
        struct Name;
        impl Visitor for Name {
            type Output = &'static str;
            fn visit<F: BlockFormat>(self) -> &'static str {
                F::NAME
            }
        }
        self.visit(Name)
    }

    /// Elements of a block; a row holds whole blocks.
    pub fn block_len(self) -> usize {
        self.block().0
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.block().1
    }

    /// Bytes of a row of `row_len` elements.
    ///
    /// # Panics
    /// When `row_len` is no multiple of [`Format::block_len`].
    #[inline]
    pub fn row_bytes(self, row_len: usize) -> usize {
        let (len, bytes) = self.block();
        assert!(
            row_len.is_multiple_of(len),
            "{self:?}: a row of {row_len} elements does not hold whole blocks of {len}"
        );
        row_len / len * bytes
    }

    /// Whether [`quantize`] can make it; other formats are only read.
    pub fn can_quantize(self) -> bool {
        self.quantizer().is_some()
    }

    fn quantizer(self) -> Option<Quantize> {
        struct Quantizer;
        impl Visitor for Quantizer {
            type Output = Option<Quantize>;
            fn visit<F: BlockFormat>(self) -> Self::Output {
                F::QUANTIZE
            }
        }
        self.visit(Quantizer)
    }

    /// Whether kernels read it by [`BlockFormat::unpack`].
    #[inline]
    pub(crate) fn is_packed(self) -> bool {
        struct IsPacked;
        impl Visitor for IsPacked {
            type Output = bool;
            #[inline]
            fn visit<F: BlockFormat>(self) -> bool {
                F::PACKED
            }
        }
        self.visit(IsPacked)
    }

    #[inline]
    fn block(self) -> (usize, usize) {
        struct Block;
        impl Visitor for Block {
            type Output = (usize, usize);
            #[inline]
            fn visit<F: BlockFormat>(self) -> (usize, usize) {
                (F::BLOCK_LEN, F::BLOCK_BYTES)
            }
        }
        self.visit(Block)
    }
}

/// Turns blocks into `f32`.
///
/// # Panics
/// When `bytes` is not exactly the blocks of `out`.
pub fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
    struct Dequantize<'a>(&'a [u8], &'a mut [f32]);
    impl Visitor for Dequantize<'_> {
        type Output = ();
        fn visit<F: BlockFormat>(self) {
            F::dequantize(self.0, self.1);
        }
    }
    assert_eq!(bytes.len(), format.row_bytes(out.len()), "{format:?}: bytes of {} elements", out.len());
    format.visit(Dequantize(bytes, out));
}

/// Turns `f32` into blocks: scales are chosen for a small error, and each value is rounded to the nearest that they allow.
///
/// The bytes depend on the values alone, not on the processor.
///
/// # Panics
/// When `bytes` is not exactly the blocks of `from`, or the format is only read ([`Format::can_quantize`]).
pub fn quantize(format: Format, from: &[f32], bytes: &mut [u8]) {
    assert_eq!(bytes.len(), format.row_bytes(from.len()), "{format:?}: bytes of {} elements", from.len());
    match format.quantizer() {
        Some(quantize) => quantize(from, bytes),
        None => panic!("{format:?} is only read: Format::can_quantize says so"),
    }
}
