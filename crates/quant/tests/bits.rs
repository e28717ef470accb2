//! The promise of one order of operations, and what it costs in accuracy.

mod blocks;

use blocks::{blocks, values};
use proptest::prelude::*;
use quant::{Format, Isa, OutView, Scratch, dequantize, dot, matmul};

fn formats() -> impl Strategy<Value = Format> {
    proptest::sample::select(Format::ALL)
}

fn isas() -> impl Strategy<Value = Isa> {
    proptest::sample::select(Isa::available())
}

/// Compares every `stride`-th element of a product with the dot product of its row and token.
fn check_bits(
    format: Format,
    isa: Isa,
    n_rows: usize,
    n_tokens: usize,
    len: usize,
    seed: u64,
    stride: usize,
) -> Result<(), TestCaseError> {
    let len = len.next_multiple_of(format.block_len());
    let row_bytes = format.row_bytes(len);
    let (w, x) = (blocks(format, n_rows * len, seed), values(n_tokens * len, seed ^ 1));
    let mut out = vec![f32::NAN; n_tokens * n_rows];
    matmul(isa, format, &w, len, &x, OutView::new(&mut out, n_tokens, n_rows), &mut Scratch::new());
    for i in (0..out.len()).step_by(stride) {
        let (t, r) = (i / n_rows, i % n_rows);
        let one = dot(isa, format, &w[r * row_bytes..][..row_bytes], &x[t * len..][..len]);
        prop_assert_eq!(out[i].to_bits(), one.to_bits(), "row {} token {}", r, t);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    // Some rows are longer than a panel, so that accumulators rest in memory between its stretches; some products have
    // more rows and tokens than a panel.
    #[test]
    fn a_large_product_has_the_bits_of_its_dots(
        format in formats(), isa in isas(), n_rows in 30usize..70, n_tokens in 5usize..130, len in 1000usize..2200,
        seed: u64,
    ) {
        check_bits(format, isa, n_rows, n_tokens, len, seed, 7)?;
    }

    #[test]
    fn every_element_of_a_product_has_the_bits_of_its_dot(
        format in formats(), isa in isas(), n_rows in 0usize..40, n_tokens in 0usize..20, len in 0usize..200, seed: u64,
    ) {
        check_bits(format, isa, n_rows, n_tokens, len, seed, 1)?;
    }

    // A sum of n products in f32, in any order, is off by at most about n * 2^-24 of the sum of their magnitudes; vectors
    // of 8 or 16 lanes divide n by as much. A 2^-20 of it is generous up to n = 256 and far below a wrong element.
    #[test]
    fn a_dot_is_close_to_its_exact_value(format in formats(), isa in isas(), len in 0usize..200, seed: u64) {
        let len = len.next_multiple_of(format.block_len());
        let (w, x) = (blocks(format, len, seed), values(len, seed ^ 1));
        let mut wide = vec![0.0; len];
        dequantize(format, &w, &mut wide);
        let products = wide.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
        let (exact, magnitude) = products.fold((0.0, 0.0), |(sum, abs), p| (sum + p, abs + p.abs()));
        let got = f64::from(dot(isa, format, &w, &x));
        prop_assert!((got - exact).abs() <= magnitude * 2f64.powi(-20), "{} is not {}", got, exact);
    }

    // However a format is read, its product is that of the values: kernels that load vectors from blocks and kernels that
    // unpack blocks have one order of operations.
    #[test]
    fn a_dot_has_the_bits_of_the_dot_of_its_dequantized_row(
        format in formats(), isa in isas(), len in 0usize..3000, seed: u64,
    ) {
        let len = len.next_multiple_of(format.block_len());
        let (w, x) = (blocks(format, len, seed), values(len, seed ^ 1));
        let mut wide = vec![0.0; len];
        dequantize(format, &w, &mut wide);
        let wide: Vec<u8> = wide.into_iter().flat_map(f32::to_le_bytes).collect();
        prop_assert_eq!(dot(isa, format, &w, &x).to_bits(), dot(isa, Format::F32, &wide, &x).to_bits());
    }
}
