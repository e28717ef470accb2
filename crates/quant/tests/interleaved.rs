//! Products of interleaved weights: the kernels equal the plain product bit for bit, and that is close to the product of the values.

mod blocks;

use std::sync::Once;

use blocks::{blocks, values};
use proptest::prelude::*;
use quant::{
    Activations16, Format, GROUP, IntegerIsa, Interleaved, OutView, Scratch, can_interleave, dequantize, dot16,
    matmul16,
};

fn formats() -> impl Strategy<Value = Format> {
    proptest::sample::select(Format::ALL.iter().copied().filter(|format| can_interleave(*format)).collect::<Vec<_>>())
}

/// The instruction sets whose products are compared with the plain one. Says, once and not in each case, that there are none.
fn integer_isas() -> Vec<IntegerIsa> {
    static SAID: Once = Once::new();
    let isas = IntegerIsa::available();
    if isas.is_empty() {
        SAID.call_once(|| println!("SKIPPED: products of interleaved weights need a processor with AVX2"));
    }
    isas
}

proptest! {
    #[test]
    fn every_element_is_the_dot_of_its_row_and_token(
        format in formats(), n_rows in 0usize..70, n_tokens in 0usize..36, n_blocks in 0usize..140, first_group in 0usize..3, seed: u64,
    ) {
        let len = n_blocks * 32 / format.block_len() * format.block_len();
        let (weight, x) = (blocks(format, n_rows * len, seed), values(n_tokens * len, seed));
        let quantized_with = |isa| {
            let mut quantized = Activations16::default();
            quantized.resize(n_tokens, len);
            quantized.parts().quantize_with(isa, &x);
            quantized
        };
        let plain = quantized_with(None);
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
        for isa in integer_isas() {
            let first = (n_rows / GROUP).min(first_group) * GROUP;
            let mut out = vec![f32::NAN; n_tokens * (n_rows - first)];
            let view = OutView::new(&mut out, n_tokens, n_rows - first);
            matmul16(isa, &interleaved, first..n_rows, &quantized_with(Some(isa)), view, &mut Scratch::new());
            for (i, out) in out.iter().enumerate() {
                let (t, r) = (i / (n_rows - first), first + i % (n_rows - first));
                let want = dot16(format, &weight[r * row_bytes..][..row_bytes], &plain, t);
                prop_assert_eq!(out.to_bits(), want.to_bits(), "{:?}: row {}, token {}", isa, r, t);
            }
        }
    }

    #[test]
    fn a_dot_is_close_to_the_product_of_the_values(format in formats(), n_blocks in 1usize..30, seed: u64) {
        let len = n_blocks * format.block_len();
        let (row, x) = (blocks(format, len, seed), values(len, seed));
        let mut quantized = Activations16::default();
        quantized.resize(1, len);
        quantized.parts().quantize_with(None, &x);
        let mut w = vec![0.0; len];
        dequantize(format, &row, &mut w);
        let exact: f64 = w.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
        // Half of one of an activation's 32,512 steps, whose largest is 2, for each weight.
        let bound: f64 = w.iter().map(|w| f64::from(w.abs()) * 1.02 / 32_512.0).sum();
        let got = f64::from(dot16(format, &row, &quantized, 0));
        prop_assert!((got - exact).abs() <= bound + 1e-4, "{got} for {exact}, at most {bound} off");
    }
}

#[test]
fn what_is_no_number_makes_its_token_s_products_none_and_no_other() {
    let (n_rows, len, n_tokens) = (33, 64, 20);
    for format in [Format::Q8_0, Format::Q4_1, Format::IQ4_NL] {
        let weight = blocks(format, n_rows * len, 1);
        let mut interleaved = Interleaved::new(format, n_rows, len).unwrap();
        let n_groups = interleaved.n_groups();
        Interleaved::interleave_groups(format, len, &weight, 0..n_groups, interleaved.groups_mut().0);
        for not_finite in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            // One value of the first token, all of the third, one of each half of a block of the fifth.
            let mut x = values(n_tokens * len, 2);
            x[..1].fill(not_finite);
            x[2 * len..3 * len].fill(not_finite);
            (x[4 * len + 35], x[4 * len + 60]) = (not_finite, not_finite);
            for isa in std::iter::once(None).chain(integer_isas().into_iter().map(Some)) {
                let mut quantized = Activations16::default();
                quantized.resize(n_tokens, len);
                quantized.parts().quantize_with(isa, &x);
                let mut out = vec![0.0; n_tokens * n_rows];
                match isa {
                    Some(isa) => {
                        let view = OutView::new(&mut out, n_tokens, n_rows);
                        matmul16(isa, &interleaved, 0..n_rows, &quantized, view, &mut Scratch::new());
                    }
                    None => {
                        for (i, out) in out.iter_mut().enumerate() {
                            let row = &weight[i % n_rows * format.row_bytes(len)..][..format.row_bytes(len)];
                            *out = dot16(format, row, &quantized, i / n_rows);
                        }
                    }
                }
                for (i, out) in out.iter().enumerate() {
                    let is_none = [0, 2, 4].contains(&(i / n_rows));
                    assert_eq!(out.is_nan(), is_none, "{format:?} {isa:?} {not_finite}: token {}", i / n_rows);
                }
            }
        }
    }
}

#[test]
fn weights_are_the_same_in_huge_pages() {
    let (format, n_rows, len) = (Format::Q8_0, 1000, 4096);
    let weights: Vec<Box<[u8]>> = (0..3).map(|seed| blocks(format, n_rows * len, seed)).collect();
    let interleaved: Vec<Interleaved> = (weights.iter())
        .map(|rows| {
            let mut to = Interleaved::new(format, n_rows, len).unwrap();
            let n_groups = to.n_groups();
            Interleaved::interleave_groups(format, len, rows, 0..n_groups, to.groups_mut().0);
            to
        })
        .collect();
    Interleaved::gather_in_huge_pages(interleaved.iter());
    let (mut from_file, mut from_packed) = (vec![0.0; len], vec![0.0; len]);
    for (rows, interleaved) in weights.iter().zip(&interleaved) {
        for (r, row) in rows.chunks_exact(format.row_bytes(len)).enumerate() {
            dequantize(format, row, &mut from_file);
            interleaved.row(r, &mut from_packed);
            assert_eq!(from_file, from_packed, "row {r}");
        }
    }
}
