//! Products of quantised weights with activations of 16 bits, in integers, on processors with AVX2, AVX-512 VNNI or AMX: for
//! formats whose elements are small whole numbers, or stand for such, with scales and minima.
//!
//! Activations are rounded, in blocks of 32 with a scale each, to 16 bits and not to 8: eight are off by up to 0.4 % of a
//! block's greatest, which moves logits by some percent; sixteen move them by less than a key rounded to F16 does.
//!
//! # One order of operations
//! A block's product is an integer and has no rounding: `i = sum(w[k] * a[k])`, where the weight is `scale * w + min`. An output
//! element goes through its row's blocks of 32 from the first to the last, or through the halves of each where it has two scales,
//! in one `f32`: `acc = fma(i as f32, weight_scale * activation_scale, acc)`, and then, where the format has minima,
//! `acc = fma(min, activation_scale * sum(a), acc)`. That order depends on nothing: not on how many rows or tokens are computed
//! together, nor on the instruction set. [`dot16`] is the same in plain Rust.
//!
//! # How
//! Sixteen rows are kept interleaved ([`Interleaved`]): a vector holds four neighbouring weights of each of them, and a lane is a
//! row, so that no sum across lanes is ever needed. It takes about as many bytes as before. An activation is `256 high + low`, two
//! signed bytes, and each plane of bytes has its own sum. VNNI multiplies unsigned with signed bytes, so weights are kept with an
//! offset, whose share of the product, the offset times the sum of the block's activations, is where the sum begins. AVX2 has no
//! such instruction, and multiplies whole activations.
//!
//! Where everything lies, and how a format is added, is in `layout`; `columns` reads it into vectors.
#![allow(unsafe_code)] // Intrinsics, and checks the shapes that they take for granted.

/// Calls a macro with the names of the formats that can be interleaved.
macro_rules! with_formats {
    ($then:ident) => {
        $then! { Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 }
    };
}

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
#[allow(non_camel_case_types)] // The spelling of GGUF.
mod columns;
mod isa;
mod layout;
mod reference;
mod weights;

pub use activations::{Activations16, Activations16Parts};
pub use isa::IntegerIsa;
pub use reference::dot16;
pub use weights::Interleaved;

use crate::formats::Format;
use crate::panel::Scratch;
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx512::Avx512};
use crate::tile::OutView;
use std::ops::Range;

/// Elements of a block of activations, and of weights.
pub(crate) const BLOCK: usize = 32;
/// Rows that are interleaved together: lanes of a vector.
pub const GROUP: usize = 16;

/// Bytes of interleaved weights that stay in the second-level cache while tokens go by.
#[cfg(target_arch = "x86_64")]
const PANEL_BYTES: usize = 256 << 10;

/// Whether weights of this format can be interleaved.
pub fn can_interleave(format: Format) -> bool {
    layout::Layout::of(format).is_some()
}

/// `out[t, r] = dot16(weight[rows.start + r], x[t])` on the calling thread: x `[n_tokens, n_cols]`.
///
/// Every element of `out` equals, bit for bit, the [`dot16`] of its row and token.
///
/// # Panics
/// When `rows` are not those of `out` or begin within a group, `x` does not have the tokens of `out` and the length of a row,
/// or the processor lacks `isa`.
pub fn matmul16(
    isa: IntegerIsa,
    weight: &Interleaved,
    rows: Range<usize>,
    x: &Activations16,
    mut out: OutView<'_>,
    scratch: &mut Scratch,
) {
    assert!(rows.start.is_multiple_of(GROUP) && rows.end <= weight.n_rows(), "rows {rows:?} of {}", weight.n_rows());
    assert_eq!(rows.len(), out.n_rows(), "rows of out");
    assert_eq!((x.n_rows(), x.row_len()), (out.n_tokens(), weight.n_cols()), "x is [{}, n_cols]", out.n_tokens());
    assert!(isa.is_available(), "this processor lacks {}", isa.name());
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! run_for {
            ($($name:ident)*) => {
                match weight.format() {
                    $(Format::$name => run::<columns::$name>(isa, weight, rows, x, &mut out, scratch),)*
                    other => unreachable!("{other:?} is never interleaved"),
                }
            };
        }
        with_formats!(run_for);
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (&mut out, scratch);
        unreachable!("no instructions are available elsewhere");
    }
}

#[cfg(target_arch = "x86_64")]
fn run<F: columns::Columns>(
    isa: IntegerIsa,
    weight: &Interleaved,
    rows: Range<usize>,
    x: &Activations16,
    out: &mut OutView<'_>,
    scratch: &mut Scratch,
) {
    const CHECKED: &str = "the caller has asked the processor";
    match isa {
        IntegerIsa::Avx2 => {
            let simd = Avx2::detect().expect(CHECKED);
            // SAFETY: the caller has checked the shapes.
            unsafe { avx2::matmul::<F>(simd, weight, rows, x, out) };
        }
        IntegerIsa::Vnni | IntegerIsa::Amx => {
            let simd = Avx512::detect().expect(CHECKED);
            let n_tokens = out.n_tokens();
            // No tile is written where there is nothing to add up.
            let has_tiles = isa == IntegerIsa::Amx && x.row_len() > 0;
            let in_tiles = if has_tiles { n_tokens / amx::TILE_TOKENS * amx::TILE_TOKENS } else { 0 };
            // SAFETY: the caller has checked the shapes, and that the processor has the other instructions.
            unsafe {
                if in_tiles > 0 {
                    amx::matmul::<F>(simd, weight, rows.clone(), x, out, scratch);
                }
                avx512::matmul::<F>(simd, weight, rows, x, in_tiles..n_tokens, out);
            }
        }
    }
}

#[cfg(all(test, unix))]
mod tests;
