//! The directory listing, as exact text.

use gguf_parser::Gguf;
use insta::assert_snapshot;
use test_support::gguf::{GgufBuilder, array};
use test_support::tiny_model::TinyModel;

fn listing(file: &[u8]) -> String {
    Gguf::parse(file).unwrap().listing().to_string()
}

#[test]
fn lists_a_model() {
    let model = TinyModel { n_layers: 1, ..TinyModel::default() };
    assert_snapshot!(listing(&model.build()));
}

#[test]
fn lists_every_value_type_and_every_tensor_type() {
    let mut builder = GgufBuilder::new()
        .version(2)
        .alignment(8)
        .raw("a.u8", 0, &[255])
        .raw("a.i8", 1, &[255])
        .raw("a.u16", 2, &[255, 255])
        .raw("a.i16", 3, &[255, 255])
        .u32("a.u32", u32::MAX)
        .i32("a.i32", -1)
        .f32("a.f32", 1e-6)
        .f32("a.f32.nan", f32::NAN)
        .bool("a.bool", true)
        .str("a.string", "line\nbreak \u{1b}[31m \"quoted\" 俳句 🍁")
        .str("a.string.long", &"0123456789".repeat(10))
        .i32s("a.array", &[1, 2, 3, 4, 5, 6, 7])
        .strs("a.array.string", &["Ġ", "\u{0}", ""])
        .strs::<&str>("a.array.empty", &[])
        .raw("a.array.nested", 9, &array(9, 2, [array(0, 1, [7]), array(7, 2, [0, 1])].concat()))
        .u64("a.u64", u64::MAX)
        .raw("a.i64", 11, &[255; 8])
        .raw("a.f64", 12, &0.1f64.to_le_bytes());
    for ty in gguf_parser::TensorType::ALL {
        let data = vec![0; 2 * ty.block_bytes() as usize];
        builder = builder.tensor(ty.name().to_lowercase(), ty.id(), &[2, ty.block_len()], data);
    }
    builder = builder.tensor("scalar", 0, &[], vec![0; 4]).tensor("four\tdims", 0, &[1, 2, 1, 2], vec![0; 16]);
    assert_snapshot!(listing(&builder.build()));
}

#[test]
fn lists_an_empty_file() {
    assert_snapshot!(
        listing(&GgufBuilder::new().build()),
        @"GGUF version 3, alignment 32, 0 keys, 0 tensors of 0 bytes from offset 32"
    );
}
