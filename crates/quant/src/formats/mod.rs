//! The block formats, one file each, and the one table that lists them.
//!
//! A file says how a block is laid out, how it is dequantized and how one vector of it is loaded as `f32`; every kernel is
//! generic over that. To add a format, write its file and add its line to the table below.
#![allow(unsafe_code)] // Declares the raw loads.

mod bf16;
mod f16;
mod f32;
mod q8_0;

pub(crate) use f32::F32;

use crate::simd::Simd;
use gguf_parser::TensorType;

/// Defines [`Format`] and `with_format!` from the table of formats.
macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident => $ty:path,)*) => {
        /// How the elements of a row are laid out in bytes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types)] // The spelling of GGUF.
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
}

/// A computation written once over [`BlockFormat`]: see [`Format::visit`].
pub(crate) trait Visitor {
    type Output;
    fn visit<F: BlockFormat>(self) -> Self::Output;
}

/// What a format's file says about it.
pub(crate) trait BlockFormat: 'static {
    /// The name ggml gives it.
    const NAME: &'static str;
    /// Elements of a block: 1, or a multiple of 32.
    const BLOCK_LEN: usize;
    /// Bytes of a block.
    const BLOCK_BYTES: usize;

    /// Turns whole blocks into `f32`. `bytes` holds exactly the blocks of `out`.
    fn dequantize(bytes: &[u8], out: &mut [f32]);

    /// Turns `f32` into whole blocks: `(from, bytes)`, where `bytes` holds exactly the blocks of `from`. `None` where the
    /// format is only read.
    const QUANTIZE: Option<fn(&[f32], &mut [u8])>;

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

    fn quantizer(self) -> Option<fn(&[f32], &mut [u8])> {
        struct Quantizer;
        impl Visitor for Quantizer {
            type Output = Option<fn(&[f32], &mut [u8])>;
            fn visit<F: BlockFormat>(self) -> Self::Output {
                F::QUANTIZE
            }
        }
        self.visit(Quantizer)
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

/// Turns `f32` into blocks, each value rounded to the nearest that the block can hold.
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
