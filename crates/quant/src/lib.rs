//! Block formats of GGUF tensors: layout, dequantization, and products with activations, scalar and SIMD.
//!
//! Three nouns. A [`Format`] says how a row of weights lies in bytes: `F16`, `Q8_0`, `Q4_K`. An [`Isa`] is an
//! instruction set that this processor has, asked at run time, so that a default build uses AVX-512 where there is
//! AVX-512. A product, [`matmul()`], multiplies rows of weights, as they lie in the file, with `f32` activations, on the
//! calling thread.
//!
//! # One order of operations
//! An output element is one accumulator as wide as a vector, carried along the row from its first element to its last, a
//! multiply-add a vector, and then summed as a tree. The order is fixed by the instruction set: not by how many rows or
//! tokens are computed together, how weights are blocked for the caches, or who computes the neighbours. So
//! **every element of a product equals, bit for bit, the [`dot()`] of its row and its token**: a prompt read in one step,
//! in chunks, or token by token gives the same logits, and nobody's answer depends on whose requests share the step.
//!
//! What may differ is how fast. With few tokens (`direct`), rows are read once as long streams: a matrix-vector product of
//! F16 weights takes as long as reading them. With many (`panel`), a panel of rows is widened to `f32` once and serves all
//! tokens from the cache. Formats with scales, minima and high bits apart (all but `F32`, `F16`, `BF16` and `Q8_0`) are
//! always unpacked to a panel, one in the first-level cache where there are few tokens: with those, unpacking takes longer
//! than reading.
//!
//! # Interleaved weights
//! On processors with AVX2 there is a second product, [`matmul16()`]: of weights that have been copied, sixteen rows
//! interleaved ([`Interleaved`]), with activations rounded to 16 bits ([`Activations16`]), in integers. It has its own order of
//! operations, that of [`dot16()`], and the same promise; and with AVX-512 VNNI or AMX the same bits.
//!
//! # Adding a format
//! One file in `formats/` with the block's layout, and one line in `formats/mod.rs`. The file says either how one vector is
//! loaded (`BlockFormat`: every kernel is generic over that load and over [`simd::Simd`]), or how a block is unpacked
//! (`Packed`: one function more per instruction set, and the kernels are those of `F32`). Offsets of its scales go into
//! `golden/make_blocks.py` and `tests/blocks`, and the tests then hold it to the values of another implementation, to its
//! dot product's bits on every path, and to the bytes that it may read.
//!
//! A format whose elements are whole numbers, or stand for such, can be interleaved too: how its blocks are taken apart in
//! `parts.rs`, what it is made of in `interleaved/layout.rs`, and its name in `interleaved/mod.rs`.
//!
//! A quantizer is optional: [`Format::can_quantize`] says whether there is one. It rounds as ggml's reference does, or
//! loses less, without a matrix of importance, and gives the same bytes on every machine.
//!
//! # On a GPU
//! A GPU reads the same numbers in another arrangement, [`planes`], that is made from the blocks when a file is loaded.
//!
//! # Limits
//! Activations and sums are `f32`; a row's sum of `n` products is off by at most about `n / lanes` roundings of its
//! magnitude. Rows hold whole blocks. Only read, not made: `Q2_K`, `Q3_K`, `IQ4_NL`, `IQ4_XS`, `MXFP4`. Formats of ggml's
//! other codebooks (`IQ1_S` to `IQ3_S`), ternary ones and `NVFP4` are not here. Values beyond half precision make a block's
//! scale infinite.
//!
//! # Example
//! ```
//! use quant::{Format, Isa, OutView, Scratch};
//!
//! // Two rows of 32 weights, in the bytes of a Q8_0 tensor.
//! let weights: Vec<f32> = (0..64).map(|i| i as f32 / 8.0).collect();
//! let mut bytes = vec![0; 2 * Format::Q8_0.row_bytes(32)];
//! quant::quantize(Format::Q8_0, &weights, &mut bytes);
//!
//! // Three tokens of 32 activations: out is [3, 2].
//! let (isa, x, mut out) = (Isa::detect(), vec![0.5; 3 * 32], [0.0; 3 * 2]);
//! quant::matmul(isa, Format::Q8_0, &bytes, 32, &x, OutView::new(&mut out, 3, 2), &mut Scratch::new());
//!
//! let row_1 = &bytes[Format::Q8_0.row_bytes(32)..];
//! assert_eq!(out[1].to_bits(), quant::dot(isa, Format::Q8_0, row_1, &x[..32]).to_bits());
//! assert!((out[1] - 95.0).abs() < 0.5);
//! ```

#[cfg(test)]
extern crate self as quant; // What tests inside and outside share speaks of it by its name.

mod aligned;
mod checksum;
mod direct;
mod formats;
#[cfg(all(test, unix))]
mod guarded;
mod interleaved;
mod isa;
mod matmul;
mod panel;
mod parts;
pub mod planes;
pub mod simd;
mod tile;

pub use aligned::Aligned;
pub use checksum::checksum;
pub use formats::{Format, dequantize, quantize};
pub use interleaved::{
    Activations16, Activations16Parts, GROUP, IntegerIsa, Interleaved, can_interleave, dot16, matmul16,
};
pub use isa::{Isa, Kernel};
pub use matmul::{dot, matmul};
pub use panel::Scratch;
pub use tile::OutView;
