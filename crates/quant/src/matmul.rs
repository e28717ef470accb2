//! Products of weights with activations, on one thread.
#![allow(unsafe_code)] // Checks the shapes that the tiles take for granted.

use crate::direct::Direct;
use crate::formats::Format;
use crate::isa::Isa;
use crate::panel::{OneRow, Panels, Scratch};
use crate::tile::{Operands, OutView};

/// The most tokens whose weights are read straight from their blocks; with more, widening the weights first is faster.
const MAX_DIRECT_TOKENS: usize = 24;

/// The dot product of one weight row with one activation row.
///
/// # Panics
/// When `row` is not exactly the blocks of `x.len()` elements, or the processor lacks `isa`.
pub fn dot(isa: Isa, format: Format, row: &[u8], x: &[f32]) -> f32 {
    let mut out = [0.0];
    let ops = operands(format, row, x.len(), x, 1, 1);
    let view = OutView::new(&mut out, 1, 1);
    // SAFETY: one row and one token, as just checked.
    unsafe {
        if format.is_packed() {
            Panels::new(format, ops, view, OneRow::new().memory()).run(isa);
        } else {
            Direct::new(format, ops, view).run(isa);
        }
    }
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
    scratch: &mut Scratch,
) {
    let ops = operands(format, weight, row_len, x, out.n_rows(), out.n_tokens());
    // SAFETY: the operands have all rows and tokens of `out`, as just checked.
    unsafe {
        if format.is_packed() || out.n_tokens() > MAX_DIRECT_TOKENS {
            Panels::new(format, ops, out, scratch.memory()).run(isa);
        } else {
            Direct::new(format, ops, out).run(isa);
        }
    }
}

fn operands(format: Format, weight: &[u8], len: usize, x: &[f32], n_rows: usize, n_tokens: usize) -> Operands {
    let row_bytes = format.row_bytes(len);
    assert_eq!(weight.len(), n_rows * row_bytes, "weight is [{n_rows}, {len}] of {format:?}");
    assert_eq!(x.len(), n_tokens * len, "x is [{n_tokens}, {len}]");
    Operands { weight: weight.as_ptr(), row_stride: row_bytes, x: x.as_ptr(), x_stride: len, len }
}
