//! Layouts, by their bytes.

use gguf_parser::TensorType;
use proptest::prelude::*;
use quant::{Format, Isa, dequantize, dot, quantize};

#[test]
fn formats_have_the_blocks_of_their_tensor_types() {
    for format in Format::ALL {
        let ty = TensorType::ALL.iter().find(|ty| ty.name() == format.name()).expect("a type of that name");
        assert_eq!(Format::from_tensor_type(*ty), Some(*format));
        assert_eq!(format.block_len() as u64, ty.block_len(), "{format:?}");
        assert_eq!(format.block_bytes() as u64, ty.block_bytes(), "{format:?}");
    }
    assert_eq!(Format::from_tensor_type(TensorType::I32), None);
}

fn check(format: Format, bytes: &[u8], expected: &[f32]) {
    let mut got = vec![f32::NAN; expected.len()];
    dequantize(format, bytes, &mut got);
    assert_eq!(got, expected, "{format:?}");
    let mut again = vec![0; bytes.len()];
    quantize(format, expected, &mut again);
    assert_eq!(again, bytes, "{format:?}");
}

#[test]
fn elements_of_one_value_each_are_little_endian() {
    check(Format::F32, &[0, 0, 0x80, 0x3F, 0, 0, 0x20, 0xC0], &[1.0, -2.5]);
    check(Format::F16, &[0x00, 0x3C, 0x00, 0xC1, 0xFF, 0x7B, 0x01, 0x00], &[1.0, -2.5, 65504.0, 5.960_464_5e-8]);
    check(Format::BF16, &[0x80, 0x3F, 0x20, 0xC0], &[1.0, -2.5]);
}

#[test]
fn a_q8_0_block_is_a_scale_and_32_bytes() {
    let mut bytes = vec![0x00, 0x38]; // 0.5
    bytes.extend((0..32).map(|i| if i == 0 { 127 } else { (i * 5 - 80) as i8 as u8 }));
    let expected: Vec<f32> = (0..32).map(|i| if i == 0 { 63.5 } else { (i * 5 - 80) as f32 / 2.0 }).collect();
    check(Format::Q8_0, &bytes, &expected);
    check(Format::Q8_0, &[0; 34], &[0.0; 32]);
}

#[test]
fn narrowing_rounds_to_nearest_even_and_overflows_to_infinity() {
    let mut bytes = [0; 8];
    quantize(Format::F16, &[1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 65519.0, 65520.0], &mut bytes);
    assert_eq!(bytes, [0x00, 0x3C, 0x02, 0x3C, 0xFF, 0x7B, 0x00, 0x7C]);
    quantize(Format::BF16, &[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX, f32::NEG_INFINITY], &mut bytes);
    assert_eq!(bytes, [0x80, 0x3F, 0x82, 0x3F, 0x80, 0x7F, 0x80, 0xFF]);
}

#[test]
#[should_panic(expected = "does not hold whole blocks of 32")]
fn refuses_rows_that_end_inside_a_block() {
    Format::Q8_0.row_bytes(48);
}

#[test]
fn every_half_precision_number_is_widened_as_the_scalar_code_does() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for format in [Format::F16, Format::BF16] {
        for isa in Isa::available() {
            for row in all.chunks_exact(2) {
                let mut expected = [0.0];
                dequantize(format, row, &mut expected);
                // Added to the accumulator's +0, so that the sign of a zero is not seen here.
                let got = dot(isa, format, row, &[1.0]);
                assert!(got == expected[0] || got.is_nan() && expected[0].is_nan(), "{format:?} {row:?} {got}");
            }
        }
    }
}

#[test]
fn the_formats_that_can_be_made_are_these() {
    let made: Vec<_> = Format::ALL.iter().filter(|format| format.can_quantize()).map(|format| format.name()).collect();
    assert_eq!(made, ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]);
}

#[test]
#[should_panic(expected = "Q3_K is only read")]
fn refuses_to_make_a_format_that_is_only_read() {
    quantize(Format::Q3_K, &[0.0; 256], &mut [0; 110]);
}

proptest! {
    // Half a step of the scale, and what rounding the scale to half precision adds at most: 127 steps of 2^-12.
    #[test]
    fn q8_0_is_off_by_little_more_than_half_a_step(x in proptest::collection::vec(-1e3f32..1e3, 32)) {
        let mut bytes = [0; 34];
        quantize(Format::Q8_0, &x, &mut bytes);
        let mut back = [0.0; 32];
        dequantize(Format::Q8_0, &bytes, &mut back);
        let step = x.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0;
        for (x, back) in x.iter().zip(back) {
            prop_assert!((x - back).abs() <= step * (0.5 + 127.0 / 4096.0) + 1e-6, "{} became {}", x, back);
        }
    }
}
