//! Block formats of GGUF tensors: layout, dequantization and dot products, scalar and SIMD.

mod aligned;
mod direct;
mod formats;
mod isa;
mod matmul;
mod panel;
pub mod simd;
mod tile;

pub use aligned::Aligned;
pub use formats::{Format, dequantize, quantize};
pub use isa::{Isa, Kernel};
pub use matmul::{dot, matmul};
pub use panel::Scratch;
pub use tile::OutView;
