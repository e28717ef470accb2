//! Dividing the rows changes nothing.

use super::*;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn products_have_the_bits_of_dot_plus_bias_whatever_the_threads(
        n_threads in 1usize..5, shapes in proptest::collection::vec((1usize..100, any::<bool>()), 1..5),
        n_tokens in 0usize..12, n_cols in 1usize..70, isa in proptest::sample::select(Isa::available()),
    ) {
        let value = |i: usize| ((i * 7919) % 1009) as f32 / 500.0 - 1.0;
        let x: Vec<f32> = (0..n_tokens * n_cols).map(value).collect();
        let weights: Vec<Vec<u8>> = shapes.iter().enumerate().map(|(i, (n_rows, _))| {
            let values: Vec<f32> = (0..n_rows * n_cols).map(|j| value(j + 31 * i)).collect();
            let mut bytes = vec![0; Format::F16.row_bytes(values.len())];
            quant::quantize(Format::F16, &values, &mut bytes);
            bytes
        }).collect();
        let bias: Vec<f32> = (0..100).map(|i| value(i + 5) * 30.0).collect();
        let mut outs: Vec<Vec<f32>> = shapes.iter().map(|(n_rows, _)| vec![f32::NAN; n_tokens * n_rows]).collect();
        let mut products: Vec<Product<'_>> = shapes.iter().zip(&weights).zip(&mut outs).map(|(((n_rows, biased), w), out)| {
            Product {
                weight: Matrix::new(Format::F16, *n_rows, n_cols, w),
                bias: biased.then_some(&bias[..*n_rows]),
                out,
            }
        }).collect();
        let pool = Pool::new(n_threads).expect("threads");
        matmul(&pool, isa, &x, n_tokens, &mut products, &mut MatmulScratch::new(n_threads, 0));
        let row_bytes = Format::F16.row_bytes(n_cols);
        for (((n_rows, biased), w), out) in shapes.iter().zip(&weights).zip(&outs) {
            for (i, out) in out.iter().enumerate() {
                let (t, r) = (i / n_rows, i % n_rows);
                let mut expected = quant::dot(isa, Format::F16, &w[r * row_bytes..][..row_bytes], &x[t * n_cols..][..n_cols]);
                if *biased {
                    expected += bias[r];
                }
                prop_assert_eq!(out.to_bits(), expected.to_bits());
            }
        }
    }
}

#[test]
fn a_row_of_a_matrix_is_widened() {
    let bytes = [0x00, 0x3C, 0x00, 0x40, 0x00, 0x42, 0x00, 0x44];
    let mut row = [0.0; 2];
    Matrix::new(Format::F16, 2, 2, &bytes).row(1, &mut row);
    assert_eq!(row, [3.0, 4.0]);
}

#[test]
#[should_panic(expected = "bytes of [3, 2] in F16")]
fn refuses_a_matrix_that_its_bytes_do_not_hold() {
    Matrix::new(Format::F16, 3, 2, &[0; 8]);
}
