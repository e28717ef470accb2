//! Block formats of GGUF tensors: layout, dequantization and dot products, scalar and SIMD.

mod formats;
mod isa;
mod matmul;
pub mod simd;
mod tile;

pub use formats::{Format, dequantize, quantize};
pub use isa::{Isa, Kernel};
pub use matmul::{Scratch, dot, matmul};
pub use tile::OutView;
