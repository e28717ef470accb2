//! Products of interleaved weights: the kernels equal the plain product bit for bit, and that is close to the product of the values.

use proptest::prelude::*;
use quant::{
    Activations16, Format, IntegerIsa, Interleaved, OutView, Scratch, can_interleave, dequantize, dot16, matmul16,
};

fn formats() -> impl Strategy<Value = Format> {
    proptest::sample::select(Format::ALL.iter().copied().filter(|format| can_interleave(*format)).collect::<Vec<_>>())
}

/// Bytes of rows: any quants, scales that are ordinary numbers.
fn rows(format: Format, n_values: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let mut bytes = vec![0u8; format.row_bytes(n_values)];
    for block in bytes.chunks_mut(format.block_bytes()) {
        block.iter_mut().for_each(|byte| *byte = next() as u8);
        let scale = half::f16::from_f32((next() % 2000) as f32 / 1000.0 - 1.0);
        block[..2].copy_from_slice(&scale.to_le_bytes());
    }
    bytes
}

fn values(n: usize, seed: u64) -> Vec<f32> {
    (0..n).map(|i| (((i as u64 + 1) * (seed % 9973 + 7)) % 4001) as f32 / 2000.0 - 1.0).collect()
}

proptest! {
    #[test]
    fn every_element_is_the_dot_of_its_row_and_token(
        format in formats(), n_rows in 0usize..70, n_tokens in 0usize..36, n_blocks in 0usize..70, seed: u64,
    ) {
        let len = n_blocks * 32;
        let (weight, x) = (rows(format, n_rows * len, seed), values(n_tokens * len, seed));
        let mut quantized = Activations16::default();
        quantized.resize(n_tokens, len);
        quantized.parts().quantize(&x);
        let mut plain = Activations16::default();
        plain.resize(n_tokens, len);
        plain.parts().quantize_plainly(&x);
        let mut interleaved = Interleaved::new(format, n_rows, len).unwrap();
        let n_groups = interleaved.n_groups();
        Interleaved::interleave_groups(format, len, &weight, 0..n_groups, interleaved.groups_mut().0);
        let row_bytes = format.row_bytes(len);
        let (mut from_file, mut from_packed) = (vec![0.0; len], vec![0.0; len]);
        for (r, row) in weight.chunks_exact(row_bytes.max(1)).enumerate() {
            dequantize(format, row, &mut from_file);
            interleaved.row(r, &mut from_packed);
            prop_assert_eq!(&from_file, &from_packed, "row {}", r);
        }
        for isa in IntegerIsa::available() {
            let mut out = vec![f32::NAN; n_tokens * n_rows];
            let view = OutView::new(&mut out, n_tokens, n_rows);
            matmul16(isa, &interleaved, 0..n_rows, &quantized, view, &mut Scratch::new());
            for (i, out) in out.iter().enumerate() {
                let (t, r) = (i / n_rows, i % n_rows);
                let want = dot16(format, &weight[r * row_bytes..][..row_bytes], &plain, t);
                prop_assert_eq!(out.to_bits(), want.to_bits(), "{:?}: row {}, token {}", isa, r, t);
            }
        }
    }

    #[test]
    fn a_dot_is_close_to_the_product_of_the_values(format in formats(), n_blocks in 1usize..30, seed: u64) {
        let len = n_blocks * 32;
        let (row, x) = (rows(format, len, seed), values(len, seed));
        let mut quantized = Activations16::default();
        quantized.resize(1, len);
        quantized.parts().quantize_plainly(&x);
        let mut w = vec![0.0; len];
        dequantize(format, &row, &mut w);
        let exact: f64 = w.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
        // Half of one of an activation's 32,512 steps, whose largest is 1, for each weight.
        let bound: f64 = w.iter().map(|w| f64::from(w.abs()) * 0.51 / 32_512.0).sum();
        let got = f64::from(dot16(format, &row, &quantized, 0));
        prop_assert!((got - exact).abs() <= bound + 1e-4, "{got} for {exact}, at most {bound} off");
    }
}
