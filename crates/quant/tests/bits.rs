//! The promise of one order of operations, and what it costs in accuracy.

use proptest::prelude::*;
use quant::{Format, Isa, OutView, Scratch, dequantize, dot, matmul, quantize};

/// Exactly-sized weights of a format, made from values.
fn blocks(format: Format, values: &[f32]) -> Box<[u8]> {
    let mut bytes = vec![0; format.row_bytes(values.len())].into_boxed_slice();
    quantize(format, values, &mut bytes);
    bytes
}

/// Values in -2..2 from a seed; shapes are what a case is about.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    };
    (0..n).map(|_| next()).collect()
}

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
    let (w, x) = (blocks(format, &values(n_rows * len, seed)), values(n_tokens * len, seed ^ 1));
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
    #![proptest_config(ProptestConfig::with_cases(64))]

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
    // of 8 or 16 lanes divide n by as much. A 2^-20 of it is generous up to n = 200 and far below a wrong element.
    #[test]
    fn a_dot_is_close_to_its_exact_value(format in formats(), isa in isas(), len in 0usize..200, seed: u64) {
        let len = len.next_multiple_of(format.block_len());
        let (w, x) = (blocks(format, &values(len, seed)), values(len, seed ^ 1));
        let mut wide = vec![0.0; len];
        dequantize(format, &w, &mut wide);
        let products = wide.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
        let (exact, magnitude) = products.fold((0.0, 0.0), |(sum, abs), p| (sum + p, abs + p.abs()));
        let got = f64::from(dot(isa, format, &w, &x));
        prop_assert!((got - exact).abs() <= magnitude * 2f64.powi(-20), "{} is not {}", got, exact);
    }
}
