//! Products of weights with activations, on one thread.
#![allow(unsafe_code)] // Checks the shapes that the tiles take for granted.

use crate::formats::Format;
use crate::isa::Isa;
use crate::tile::{Direct, Operands, OutView};

/// Memory that one thread's [`matmul`] works in: allocated once, of a fixed size.
#[derive(Debug, Default)]
pub struct Scratch {}

impl Scratch {
    /// Memory for one thread.
    pub fn new() -> Scratch {
        Scratch {}
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        0
    }
}

/// The dot product of one weight row with one activation row.
///
/// # Panics
/// When `row` is not exactly the blocks of `x.len()` elements, or the processor lacks `isa`.
pub fn dot(isa: Isa, format: Format, row: &[u8], x: &[f32]) -> f32 {
    let mut out = [0.0];
    matmul(isa, format, row, x.len(), x, OutView::new(&mut out, 1, 1), &mut Scratch::new());
    out[0]
}

/// `out[t, r] = dot(weight[r], x[t])` on the calling thread: weight `[n_rows, row_len]`, x `[n_tokens, row_len]`.
///
/// Every element of `out` equals, bit for bit, the [`dot`] of its row and token, whatever the numbers of rows and tokens.
///
/// # Panics
/// When `weight` or `x` does not have the rows and tokens of `out`, or the processor lacks `isa`.
pub fn matmul(
    isa: Isa,
    format: Format,
    weight: &[u8],
    row_len: usize,
    x: &[f32],
    out: OutView<'_>,
    _scratch: &mut Scratch,
) {
    let row_bytes = format.row_bytes(row_len);
    assert_eq!(weight.len(), out.n_rows() * row_bytes, "weight is [{}, {row_len}] of {format:?}", out.n_rows());
    assert_eq!(x.len(), out.n_tokens() * row_len, "x is [{}, {row_len}]", out.n_tokens());
    let ops = Operands { weight: weight.as_ptr(), row_bytes, x: x.as_ptr(), x_stride: row_len, row_len };
    // SAFETY: the operands have all rows and tokens of `out`, as just checked.
    unsafe { Direct { format, ops, out }.run(isa) }
}
