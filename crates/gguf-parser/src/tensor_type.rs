//! ggml's table of tensor types: number, name, block length and block bytes. The one place that lists them.

use std::fmt;

macro_rules! tensor_types {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $block_len:expr, $block_bytes:expr;)*) => {
        /// How a tensor's elements are stored: a block of [`block_len`](Self::block_len) elements takes
        /// [`block_bytes`](Self::block_bytes) bytes. Plain numbers are blocks of one element.
        ///
        /// The table is ggml's, whole: a type being listed here says that a file with it can be read and listed, not
        /// that anything can compute with it.
        ///
        /// # Source
        /// ggml `ggml.h` (`enum ggml_type`), `ggml-common.h` (`block_*`), as of mid-2026.
        #[allow(non_camel_case_types)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum TensorType {
            $($(#[$doc])* $name,)*
        }

        impl TensorType {
            /// Every type, by ascending number.
            pub const ALL: &[TensorType] = &[$(TensorType::$name,)*];

            /// The type's number in the file.
            pub const fn id(self) -> u32 {
                match self { $(TensorType::$name => $id,)* }
            }

            /// The type with this number; `None` for unknown and removed ones.
            pub const fn from_id(id: u32) -> Option<TensorType> {
                match id { $($id => Some(TensorType::$name),)* _ => None }
            }

            /// The type's name: `F16`, `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self { $(TensorType::$name => stringify!($name),)* }
            }

            /// Elements in a block. A row is a whole number of blocks.
            pub const fn block_len(self) -> u64 {
                match self { $(TensorType::$name => $block_len,)* }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> u64 {
                match self { $(TensorType::$name => $block_bytes,)* }
            }
        }
    };
}

// name = number, elements per block, bytes per block (the sum spells the block's fields in their order).
tensor_types! {
    /// 32-bit float.
    F32 = 0, 1, 4;
    /// 16-bit float.
    F16 = 1, 1, 2;
    /// 4 bits and a scale per 32.
    Q4_0 = 2, 32, 2 + 16;
    /// 4 bits, a scale and a minimum per 32.
    Q4_1 = 3, 32, 2 + 2 + 16;
    /// 5 bits and a scale per 32.
    Q5_0 = 6, 32, 2 + 4 + 16;
    /// 5 bits, a scale and a minimum per 32.
    Q5_1 = 7, 32, 2 + 2 + 4 + 16;
    /// 8 bits and a scale per 32.
    Q8_0 = 8, 32, 2 + 32;
    /// 8 bits, a scale and a sum per 32; an intermediate of dot products.
    Q8_1 = 9, 32, 2 + 2 + 32;
    /// 2 bits in super-blocks of 256.
    Q2_K = 10, 256, 16 + 64 + 2 + 2;
    /// 3 bits in super-blocks of 256.
    Q3_K = 11, 256, 32 + 64 + 12 + 2;
    /// 4 bits in super-blocks of 256.
    Q4_K = 12, 256, 2 + 2 + 12 + 128;
    /// 5 bits in super-blocks of 256.
    Q5_K = 13, 256, 2 + 2 + 12 + 32 + 128;
    /// 6 bits in super-blocks of 256.
    Q6_K = 14, 256, 128 + 64 + 16 + 2;
    /// 8 bits in super-blocks of 256; an intermediate of dot products.
    Q8_K = 15, 256, 4 + 256 + 32;
    /// 2.06 bits, codebook.
    IQ2_XXS = 16, 256, 2 + 64;
    /// 2.31 bits, codebook.
    IQ2_XS = 17, 256, 2 + 64 + 8;
    /// 3.06 bits, codebook.
    IQ3_XXS = 18, 256, 2 + 96;
    /// 1.56 bits, codebook.
    IQ1_S = 19, 256, 2 + 32 + 16;
    /// 4 bits, non-linear, per 32.
    IQ4_NL = 20, 32, 2 + 16;
    /// 3.44 bits, codebook.
    IQ3_S = 21, 256, 2 + 64 + 8 + 32 + 4;
    /// 2.5 bits, codebook.
    IQ2_S = 22, 256, 2 + 64 + 8 + 8;
    /// 4.25 bits, non-linear.
    IQ4_XS = 23, 256, 2 + 2 + 4 + 128;
    /// 8-bit integer.
    I8 = 24, 1, 1;
    /// 16-bit integer.
    I16 = 25, 1, 2;
    /// 32-bit integer.
    I32 = 26, 1, 4;
    /// 64-bit integer.
    I64 = 27, 1, 8;
    /// 64-bit float.
    F64 = 28, 1, 8;
    /// 1.75 bits, codebook.
    IQ1_M = 29, 256, 32 + 16 + 8;
    /// bfloat16: the upper half of a 32-bit float.
    BF16 = 30, 1, 2;
    /// Ternary, 1.69 bits.
    TQ1_0 = 34, 256, 48 + 4 + 2;
    /// Ternary, 2.06 bits.
    TQ2_0 = 35, 256, 64 + 2;
    /// Microscaling FP4: an E8M0 scale and 32 E2M1 values.
    MXFP4 = 39, 32, 1 + 16;
    /// NVIDIA FP4: four UE4M3 scales and 64 E2M1 values.
    NVFP4 = 40, 64, 4 + 32;
    /// 1 bit and a scale per 128.
    Q1_0 = 41, 128, 2 + 16;
    /// 2 bits and a scale per 64.
    Q2_0 = 42, 64, 2 + 16;
}

impl TensorType {
    /// The former name of a number that was in ggml's table once: such files exist, and their owners deserve to be told
    /// that the format is gone rather than that it is unknown.
    pub const fn removed_name(id: u32) -> Option<&'static str> {
        match id {
            4 => Some("Q4_2"),
            5 => Some("Q4_3"),
            31 => Some("Q4_0_4_4"),
            32 => Some("Q4_0_4_8"),
            33 => Some("Q4_0_8_8"),
            36 => Some("IQ4_NL_4_4"),
            37 => Some("IQ4_NL_4_8"),
            38 => Some("IQ4_NL_8_8"),
            _ => None,
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
