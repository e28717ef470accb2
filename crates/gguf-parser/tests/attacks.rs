//! A written list of attacks: every way to break the structure of a GGUF file that has been tried on parsers
//! (CVE-2024-21802, CVE-2024-23605, CVE-2025-53630 and their later bypasses, candle issue 3533, mistral.rs issue 2282)
//! or that we could think of, as literal bytes, with the error that must come of it.

use gguf_parser::{Gguf, MAX_ALIGNMENT, ParseError, Shape, TensorType, ValueType};
use insta::assert_snapshot;
use test_support::gguf::{GgufBuilder, array};

// The pieces that most attacks begin with.
const V3: &[u8] = b"GGUF\x03\0\0\0";
const NONE: &[u8] = b"\0\0\0\0\0\0\0\0";
const ONE: &[u8] = b"\x01\0\0\0\0\0\0\0";
const TWO: &[u8] = b"\x02\0\0\0\0\0\0\0";
const HUGE: &[u8] = b"\xff\xff\xff\xff\xff\xff\xff\xff";
const KEY_K: &[u8] = b"\x01\0\0\0\0\0\0\0k";
const TENSOR_T: &[u8] = b"\x01\0\0\0\0\0\0\0t";
const ONE_DIM: &[u8] = b"\x01\0\0\0";
const F32: &[u8] = b"\0\0\0\0";
const ENOUGH: &[u8] = &[0; 64];

/// What the parser says of these bytes; it must not be "fine".
fn refusal(pieces: &[&[u8]]) -> ParseError {
    let bytes = pieces.concat();
    Gguf::parse(&bytes).expect_err("parsed")
}

#[test]
fn rejects_what_is_no_gguf_file() {
    let error = refusal(&[b""]);
    assert_eq!(error, ParseError::NotGguf { got: vec![] });
    assert_snapshot!(error, @r#"not a GGUF file: begins with "", expected "GGUF""#);

    assert_snapshot!(refusal(&[b"GGU"]), @r#"not a GGUF file: begins with "GGU", expected "GGUF""#);
    assert_snapshot!(refusal(&[b"tjgg\x01\0\0\0"]), @r#"not a GGUF file: begins with "tjgg", expected "GGUF""#);
    assert_snapshot!(refusal(&[b"PK\x03\x04\x14"]), @r#"not a GGUF file: begins with "PK\x03\x04", expected "GGUF""#);
    assert_snapshot!(refusal(&[b"\xf8\x01\0\0\0\0\0\0{\"__metadata__"]), @r#"not a GGUF file: begins with "\xf8\x01\x00\x00", expected "GGUF""#);
}

#[test]
fn rejects_a_big_endian_file_by_name() {
    let error = refusal(&[b"GGUF\0\0\0\x03\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02"]);
    assert_eq!(error, ParseError::BigEndian { version: 3 });
    assert_snapshot!(error, @"big-endian GGUF version 3: only little-endian files are supported; convert it with gguf-convert-endian");
}

#[test]
fn rejects_other_versions() {
    for (got, literal) in [(0, b"GGUF\0\0\0\0"), (1, b"GGUF\x01\0\0\0"), (4, b"GGUF\x04\0\0\0")] {
        assert_eq!(refusal(&[literal, NONE, NONE]), ParseError::UnsupportedVersion { got });
    }
    assert_snapshot!(refusal(&[b"GGUF\xff\xff\xff\xff"]), @"GGUF version 4294967295: expected 2 or 3");
}

#[test]
fn rejects_a_header_that_ends_early() {
    let error = refusal(&[V3, NONE, b"\0\0\0"]);
    assert_eq!(error, ParseError::Truncated { subject: "header".into(), offset: 16, need: 8, file_len: 19 });
    assert_snapshot!(error, @"header: needs 8 bytes at offset 16, file has 19");
    assert_snapshot!(refusal(&[b"GGUF\x03\0"]), @"header: needs 4 bytes at offset 4, file has 6");
}

#[test]
fn rejects_more_tensors_than_the_file_can_hold() {
    let error = refusal(&[V3, HUGE, NONE]);
    assert_eq!(error, ParseError::TooManyTensors { offset: 8, count: u64::MAX, need: u64::MAX, remaining: 0 });
    assert_snapshot!(refusal(&[V3, TWO, NONE, &[0; 49]]), @"header: 2 tensors at offset 8 need at least 50 bytes, 49 remain");
    // 2^63 / 25 + 1: the product overflows a signed number, and with another factor wraps to something small.
    assert!(matches!(
        refusal(&[V3, b"\x52\xb8\x1e\x85\xeb\x51\xb8\x0a", NONE, ENOUGH]),
        ParseError::TooManyTensors { count: 0x0ab8_51eb_851e_b852, need: u64::MAX, .. }
    ));
}

#[test]
fn rejects_more_keys_than_the_file_can_hold() {
    let error = refusal(&[V3, NONE, HUGE]);
    assert_eq!(error, ParseError::TooManyKeys { offset: 16, count: u64::MAX, need: u64::MAX, remaining: 0 });
    assert_snapshot!(refusal(&[V3, NONE, TWO, &[0; 27]]), @"header: 2 metadata entries at offset 16 need at least 28 bytes, 27 remain");
}

#[test]
fn rejects_a_key_longer_than_the_file() {
    let error = refusal(&[V3, NONE, ONE, HUGE, ENOUGH]);
    assert_eq!(
        error,
        ParseError::StringTooLong { subject: "metadata entry 0".into(), offset: 24, len: u64::MAX, remaining: 64 }
    );
    let error = refusal(&[V3, NONE, ONE, b"\x41\0\0\0\0\0\0\0", ENOUGH]);
    assert_snapshot!(error, @"metadata entry 0: string of 65 bytes at offset 24, 64 remain");
}

#[test]
fn rejects_an_empty_key() {
    let error = refusal(&[V3, NONE, ONE, NONE, F32, ENOUGH]);
    assert_eq!(error, ParseError::EmptyKey { index: 0, offset: 24 });
    assert_snapshot!(error, @"metadata entry 0: empty key at offset 24");
}

#[test]
fn rejects_a_key_longer_than_the_limit() {
    let key = [b'k'; 65_536];
    let error = refusal(&[V3, NONE, ONE, b"\0\0\x01\0\0\0\0\0", &key, b"\0\0\0\0\x01"]);
    assert_eq!(error, ParseError::KeyTooLong { index: 0, offset: 24, len: 65_536 });
    assert_snapshot!(error, @"metadata entry 0: key of 65536 bytes at offset 24, expected at most 65535");

    let longest = [V3, NONE, ONE, b"\xff\xff\0\0\0\0\0\0", &key[1..], b"\0\0\0\0\x01"].concat();
    assert_eq!(Gguf::parse(&longest).unwrap().metadata.len(), 1);
}

#[test]
fn rejects_text_that_is_not_utf8() {
    let error = refusal(&[V3, NONE, ONE, b"\x02\0\0\0\0\0\0\0k\xff", F32, ENOUGH]);
    assert_eq!(error, ParseError::InvalidUtf8 { subject: "metadata entry 0".into(), offset: 33 });
    assert_snapshot!(error, @"metadata entry 0: byte at offset 33 is not valid UTF-8");

    let error = refusal(&[V3, NONE, ONE, KEY_K, b"\x08\0\0\0", b"\x03\0\0\0\0\0\0\0a\xc3\x28"]);
    assert_snapshot!(error, @r#"key "k": byte at offset 46 is not valid UTF-8"#);

    let strings = [b"\x09\0\0\0\x08\0\0\0" as &[u8], TWO, b"\x01\0\0\0\0\0\0\0a", b"\x01\0\0\0\0\0\0\0\x80"].concat();
    assert_snapshot!(refusal(&[V3, NONE, ONE, KEY_K, &strings]), @r#"key "k": byte at offset 66 is not valid UTF-8"#);

    let error = refusal(&[V3, ONE, NONE, b"\x02\0\0\0\0\0\0\0\xed\xa0", ENOUGH]);
    assert_snapshot!(error, @"tensor 0: byte at offset 32 is not valid UTF-8");
}

#[test]
fn rejects_a_string_value_longer_than_the_file() {
    let error = refusal(&[V3, NONE, ONE, KEY_K, b"\x08\0\0\0", HUGE]);
    assert_eq!(
        error,
        ParseError::StringTooLong { subject: "key \"k\"".into(), offset: 37, len: u64::MAX, remaining: 0 }
    );
    let error = refusal(&[V3, NONE, ONE, KEY_K, b"\x08\0\0\0", b"\x04\0\0\0\0\0\0\0abc"]);
    assert_snapshot!(error, @r#"key "k": string of 4 bytes at offset 37, 3 remain"#);
}

#[test]
fn rejects_a_value_that_ends_early() {
    let error = refusal(&[V3, NONE, ONE, KEY_K, b"\x0a\0\0\0", b"\x01\x02\x03\x04"]);
    assert_eq!(error, ParseError::Truncated { subject: "key \"k\"".into(), offset: 37, need: 8, file_len: 41 });
    assert_snapshot!(error, @r#"key "k": needs 8 bytes at offset 37, file has 41"#);
}

#[test]
fn rejects_an_unknown_value_type() {
    let error = refusal(&[V3, NONE, ONE, KEY_K, b"\x0d\0\0\0", ENOUGH]);
    assert_eq!(error, ParseError::UnknownValueType { key: "k".into(), offset: 33, got: 13 });
    assert_snapshot!(error, @r#"key "k": value type 13 at offset 33, expected 0 to 12"#);

    let error = refusal(&[V3, NONE, ONE, KEY_K, b"\x09\0\0\0", b"\xff\xff\xff\xff", ENOUGH]);
    assert_snapshot!(error, @r#"key "k": value type 4294967295 at offset 37, expected 0 to 12"#);
}

#[test]
fn rejects_a_boolean_that_is_neither() {
    let error = refusal(&[V3, NONE, ONE, KEY_K, b"\x07\0\0\0", b"\x02"]);
    assert_eq!(error, ParseError::InvalidBool { key: "k".into(), offset: 37, got: 2 });
    assert_snapshot!(error, @r#"key "k": boolean is 2 at offset 37, expected 0 or 1"#);

    let error = refusal(&[V3, NONE, ONE, KEY_K, b"\x09\0\0\0\x07\0\0\0", TWO, b"\x01\xff"]);
    assert_snapshot!(error, @r#"key "k": boolean is 255 at offset 50, expected 0 or 1"#);
}

#[test]
fn rejects_an_array_longer_than_the_file() {
    // 2^61 elements of 8 bytes: the product wraps to 0.
    let wraps = b"\0\0\0\0\0\0\0\x20";
    let error = refusal(&[V3, NONE, ONE, KEY_K, b"\x09\0\0\0\x0a\0\0\0", wraps, ENOUGH]);
    assert_eq!(
        error,
        ParseError::ArrayTooLong {
            key: "k".into(),
            offset: 41,
            elem_type: ValueType::U64,
            len: 1 << 61,
            need: u64::MAX,
            remaining: 64
        }
    );
    let error = refusal(&[V3, NONE, ONE, KEY_K, b"\x09\0\0\0\x05\0\0\0", TWO, &[0; 7]]);
    assert_snapshot!(error, @r#"key "k": array of 2 x i32 at offset 41 needs at least 8 bytes, 7 remain"#);

    // A thousand million empty strings: refused by their lengths alone, before the first is looked at.
    let billion = b"\0\xca\x9a\x3b\0\0\0\0";
    let error = refusal(&[V3, NONE, ONE, KEY_K, b"\x09\0\0\0\x08\0\0\0", billion, ENOUGH]);
    assert_snapshot!(error, @r#"key "k": array of 1000000000 x string at offset 41 needs at least 8000000000 bytes, 64 remain"#);

    let error = refusal(&[V3, NONE, ONE, KEY_K, b"\x09\0\0\0\x09\0\0\0", HUGE, ENOUGH]);
    assert!(matches!(error, ParseError::ArrayTooLong { elem_type: ValueType::Array, .. }), "{error}");
}

#[test]
fn rejects_arrays_nested_too_deep() {
    const ARRAY_OF_ONE_ARRAY: &[u8] = b"\x09\0\0\0\x01\0\0\0\0\0\0\0";
    const ARRAY_OF_NO_U8: &[u8] = b"\0\0\0\0\0\0\0\0\0\0\0\0";
    let nested = |n: usize| [&ARRAY_OF_ONE_ARRAY.repeat(n), ARRAY_OF_NO_U8].concat();

    let error = refusal(&[V3, NONE, ONE, KEY_K, b"\x09\0\0\0", &nested(4)]);
    assert_eq!(error, ParseError::ArrayTooDeep { key: "k".into(), offset: 85 });
    assert_snapshot!(error, @r#"key "k": array at offset 85 is nested deeper than 4"#);
    // Deep enough to end any stack that recursion without a limit would use.
    let error = refusal(&[V3, NONE, ONE, KEY_K, b"\x09\0\0\0", &nested(1_000_000)]);
    assert!(matches!(error, ParseError::ArrayTooDeep { .. }), "{error}");

    let deepest = [V3, NONE, ONE, KEY_K, b"\x09\0\0\0", &nested(3)].concat();
    let gguf = Gguf::parse(&deepest).unwrap();
    assert_snapshot!(gguf.metadata.get("k").unwrap(), @"1 x array [1 x array [1 x array [0 x u8 []]]]");
}

#[test]
fn rejects_a_key_that_occurs_twice() {
    let error = refusal(&[V3, NONE, TWO, KEY_K, b"\0\0\0\0\x01", KEY_K, b"\0\0\0\0\x02", ENOUGH]);
    assert_eq!(error, ParseError::DuplicateKey { key: "k".into(), offset: 38 });
    assert_snapshot!(error, @r#"key "k": occurs a second time at offset 38"#);
}

#[test]
fn rejects_an_alignment_that_is_none() {
    let with = |alignment: u32| GgufBuilder::new().u32("general.alignment", alignment).build();
    for got in [0, 1, 3, 4, 24, 33, MAX_ALIGNMENT as u32 + 1, 1 << 22, 1 << 31, u32::MAX] {
        assert_eq!(Gguf::parse(&with(got)).unwrap_err(), ParseError::Alignment { got: got.into() });
    }
    let literal: &[u8] = b"\x11\0\0\0\0\0\0\0general.alignment\x04\0\0\0\0\0\0\0";
    let error = refusal(&[V3, NONE, ONE, literal]);
    assert_snapshot!(error, @r#"key "general.alignment": expected a power of two from 8 to 2097152, got 0"#);
    for good in [8, 16, 32, 64, 4096, MAX_ALIGNMENT as u32] {
        assert_eq!(Gguf::parse(&with(good)).unwrap().alignment, u64::from(good));
    }
}

#[test]
fn rejects_an_alignment_of_the_wrong_type() {
    let literal: &[u8] = b"\x11\0\0\0\0\0\0\0general.alignment\x0a\0\0\0\x20\0\0\0\0\0\0\0";
    let error = refusal(&[V3, NONE, ONE, literal]);
    assert_eq!(error, ParseError::AlignmentType { got: ValueType::U64 });
    assert_snapshot!(error, @r#"key "general.alignment": expected u32, got u64"#);
}

#[test]
fn rejects_an_empty_tensor_name() {
    let error = refusal(&[V3, ONE, NONE, NONE, ENOUGH]);
    assert_eq!(error, ParseError::EmptyTensorName { index: 0, offset: 24 });
    assert_snapshot!(error, @"tensor 0: empty name at offset 24");
}

#[test]
fn rejects_a_tensor_name_longer_than_the_limit() {
    let error = refusal(&[V3, ONE, NONE, b"\x41\0\0\0\0\0\0\0", &[b't'; 65], ENOUGH]);
    assert_eq!(error, ParseError::TensorNameTooLong { index: 0, offset: 24, len: 65 });
    assert_snapshot!(error, @"tensor 0: name of 65 bytes at offset 24, expected at most 64");
    let error = refusal(&[V3, ONE, NONE, HUGE, ENOUGH]);
    assert_snapshot!(error, @"tensor 0: string of 18446744073709551615 bytes at offset 24, 64 remain");
}

#[test]
fn rejects_a_tensor_described_twice() {
    let error = GgufBuilder::new().tensor_f32("t", &[1], &[0.0]).tensor_f32("t", &[1], &[0.0]).build();
    let error = Gguf::parse(&error).unwrap_err();
    assert_eq!(error, ParseError::DuplicateTensor { tensor: "t".into(), offset: 57 });
    assert_snapshot!(error, @r#"tensor "t": described a second time at offset 57"#);
}

#[test]
fn rejects_more_than_four_dimensions() {
    let error = refusal(&[V3, ONE, NONE, TENSOR_T, b"\x05\0\0\0", ENOUGH]);
    assert_eq!(error, ParseError::TooManyDims { tensor: "t".into(), offset: 33, got: 5 });
    assert_snapshot!(error, @r#"tensor "t": 5 dimensions at offset 33, expected at most 4"#);
    let error = refusal(&[V3, ONE, NONE, TENSOR_T, b"\xff\xff\xff\xff", ENOUGH]);
    assert_snapshot!(error, @r#"tensor "t": 4294967295 dimensions at offset 33, expected at most 4"#);
}

#[test]
fn rejects_a_dimension_of_zero() {
    let error = refusal(&[V3, ONE, NONE, TENSOR_T, b"\x02\0\0\0", NONE, TWO, F32, NONE]);
    assert_eq!(error, ParseError::ZeroDim { tensor: "t".into(), dim: 1, shape: vec![2, 0] });
    assert_snapshot!(error, @r#"tensor "t": dimension 1 of [2, 0] is 0, expected at least 1"#);
}

#[test]
fn rejects_dimensions_whose_product_overflows() {
    // 2^32 x 2^32 wraps to 0, and 2^63 x 2 too.
    let two_32: &[u8] = b"\0\0\0\0\x01\0\0\0";
    let error = refusal(&[V3, ONE, NONE, TENSOR_T, b"\x02\0\0\0", two_32, two_32, F32, NONE]);
    assert_eq!(error, ParseError::ElementCountOverflow { tensor: "t".into(), shape: vec![1 << 32, 1 << 32] });
    assert_snapshot!(error, @r#"tensor "t": the number of elements of [4294967296, 4294967296] exceeds 64 bits"#);
    let error = refusal(&[V3, ONE, NONE, TENSOR_T, b"\x04\0\0\0", HUGE, HUGE, HUGE, HUGE, F32, NONE]);
    assert!(matches!(error, ParseError::ElementCountOverflow { .. }), "{error}");
}

#[test]
fn rejects_a_size_in_bytes_that_overflows() {
    // 2^62 + 8 elements fit; times 4 bytes they wrap to 32.
    let error = refusal(&[V3, ONE, NONE, TENSOR_T, ONE_DIM, b"\x08\0\0\0\0\0\0\x40", F32, NONE, ENOUGH]);
    let shape = Shape::new(&[(1 << 62) + 8]).unwrap();
    assert_eq!(error, ParseError::SizeOverflow { tensor: "t".into(), ty: TensorType::F32, shape, offset: 0 });
    assert_snapshot!(error, @r#"tensor "t": size of F32 [4611686018427387912] at offset 0 exceeds 64 bits"#);
}

#[test]
fn rejects_an_end_that_overflows() {
    // The offset is aligned, and offset + size wraps to the beginning of the file.
    let last = b"\xe0\xff\xff\xff\xff\xff\xff\xff";
    let error = refusal(&[V3, ONE, NONE, TENSOR_T, ONE_DIM, b"\x20\0\0\0\0\0\0\0", F32, last, ENOUGH]);
    let shape = Shape::new(&[32]).unwrap();
    let offset = u64::MAX - 31;
    assert_eq!(error, ParseError::SizeOverflow { tensor: "t".into(), ty: TensorType::F32, shape, offset });
    assert_snapshot!(error, @r#"tensor "t": size of F32 [32] at offset 18446744073709551584 exceeds 64 bits"#);
}

#[test]
fn rejects_an_unknown_tensor_type() {
    let error = refusal(&[V3, ONE, NONE, TENSOR_T, ONE_DIM, ONE, b"\x2b\0\0\0", NONE, ENOUGH]);
    assert_eq!(error, ParseError::UnknownTensorType { tensor: "t".into(), offset: 45, got: 43 });
    assert_snapshot!(error, @r#"tensor "t": unknown type 43 at offset 45"#);
    let error = refusal(&[V3, ONE, NONE, TENSOR_T, ONE_DIM, ONE, b"\xff\xff\xff\xff", NONE, ENOUGH]);
    assert_snapshot!(error, @r#"tensor "t": unknown type 4294967295 at offset 45"#);
}

#[test]
fn rejects_a_removed_tensor_type_by_name() {
    let error = refusal(&[V3, ONE, NONE, TENSOR_T, ONE_DIM, ONE, b"\x1f\0\0\0", NONE, ENOUGH]);
    assert_eq!(error, ParseError::RemovedTensorType { tensor: "t".into(), offset: 45, got: 31, name: "Q4_0_4_4" });
    assert_snapshot!(error, @r#"tensor "t": type Q4_0_4_4 (31) at offset 45 has been removed from GGUF; convert the model again"#);
    for got in [4u8, 5, 31, 32, 33, 36, 37, 38] {
        let error = refusal(&[V3, ONE, NONE, TENSOR_T, ONE_DIM, ONE, &[got, 0, 0, 0], NONE, ENOUGH]);
        assert!(matches!(error, ParseError::RemovedTensorType { .. }), "{error}");
    }
}

#[test]
fn rejects_rows_that_are_no_whole_number_of_blocks() {
    // 896 = 3.5 x 256: the reference model's width.
    let error = refusal(&[V3, ONE, NONE, TENSOR_T, ONE_DIM, b"\x80\x03\0\0\0\0\0\0", b"\x0c\0\0\0", NONE, ENOUGH]);
    assert_eq!(error, ParseError::RowNotWholeBlocks { tensor: "t".into(), ty: TensorType::Q4_K, row_len: 896 });
    assert_snapshot!(error, @r#"tensor "t": rows of 896 elements, expected a multiple of 256 (Q4_K block)"#);

    // The elements are a whole number of blocks, the rows are not: [2, 16] of blocks of 32.
    let error =
        refusal(&[V3, ONE, NONE, TENSOR_T, b"\x02\0\0\0", b"\x10\0\0\0\0\0\0\0", TWO, b"\x08\0\0\0", NONE, ENOUGH]);
    assert_snapshot!(error, @r#"tensor "t": rows of 16 elements, expected a multiple of 32 (Q8_0 block)"#);

    // A scalar has a row of one.
    let error = refusal(&[V3, ONE, NONE, TENSOR_T, b"\0\0\0\0", b"\x08\0\0\0", NONE, ENOUGH]);
    assert_snapshot!(error, @r#"tensor "t": rows of 1 elements, expected a multiple of 32 (Q8_0 block)"#);
}

#[test]
fn rejects_a_description_that_ends_early() {
    let whole = [V3, ONE, NONE, TENSOR_T, ONE_DIM, ONE, F32, NONE].concat();
    assert_snapshot!(refusal(&[&whole[..56]]), @r#"tensor "t": needs 8 bytes at offset 49, file has 56"#);
    let error = refusal(&[V3, TWO, NONE, &whole[24..], TENSOR_T]);
    assert_snapshot!(error, @"header: 2 tensors at offset 8 need at least 50 bytes, 42 remain");
    let error = refusal(&[V3, TWO, NONE, &whole[24..], b"\x01\0\0\0\0\0\0\0u\x01\0\0\0\x01\0\0\0"]);
    assert_snapshot!(error, @r#"tensor "u": needs 8 bytes at offset 70, file has 74"#);
}

#[test]
fn rejects_a_tensor_that_ends_past_the_file() {
    let whole = [V3, ONE, NONE, TENSOR_T, ONE_DIM, TWO, F32, NONE, &[0; 7], &[0; 8]].concat();
    assert_eq!(Gguf::parse(&whole).unwrap().tensors[0].offset, 64);
    let error = refusal(&[&whole[..71]]);
    assert_eq!(error, ParseError::TensorPastEnd { tensor: "t".into(), offset: 64, need: 8, file_len: 71 });
    assert_snapshot!(error, @r#"tensor "t": needs 8 bytes at offset 64, file has 71"#);

    // The directory is whole, and even the padding before the data is missing.
    assert_snapshot!(refusal(&[&whole[..57]]), @r#"tensor "t": needs 8 bytes at offset 64, file has 57"#);
}

#[test]
fn rejects_an_offset_past_the_file() {
    let file = GgufBuilder::new().tensor_f32("blk.0.attn_q.weight", &[4], &[0.0; 4]).lie_offset(1 << 40).build();
    let error = Gguf::parse(&file).unwrap_err();
    assert_snapshot!(error, @r#"tensor "blk.0.attn_q.weight": needs 16 bytes at offset 1099511627872, file has 128"#);
}

#[test]
fn rejects_a_misaligned_tensor() {
    let file = GgufBuilder::new().tensor_f32("t", &[32], &[0.0; 32]).lie_offset(4).build();
    let error = Gguf::parse(&file).unwrap_err();
    assert_eq!(error, ParseError::MisalignedTensor { tensor: "t".into(), offset: 4, alignment: 32 });
    assert_snapshot!(error, @r#"tensor "t": offset 4 in the data section, expected a multiple of 32"#);
}

#[test]
fn rejects_tensors_that_share_bytes() {
    let file =
        GgufBuilder::new().tensor_f32("a", &[16], &[0.0; 16]).tensor_f32("b", &[16], &[0.0; 16]).lie_offset(32).build();
    let error = Gguf::parse(&file).unwrap_err();
    assert_eq!(
        error,
        ParseError::OverlappingTensors { tensor: "b".into(), offset: 128, previous: "a".into(), expected: 160 }
    );
    assert_snapshot!(error, @r#"tensor "b": begins at offset 128, expected at least 160, the end of tensor "a""#);
}

#[test]
fn accepts_gaps_and_any_order() {
    let mut file = GgufBuilder::new()
        .tensor_f32("second", &[8], &[2.0; 8])
        .lie_offset(64)
        .tensor_f32("first", &[8], &[1.0; 8])
        .lie_offset(0)
        .build();
    file.resize(file.len() + 32, 0);
    let gguf = Gguf::parse(&file).unwrap();
    assert_eq!(gguf.tensors.iter().map(|tensor| tensor.offset - gguf.data_offset).collect::<Vec<_>>(), [64, 0]);
}

#[test]
fn a_hostile_name_is_cut_and_escaped_in_messages() {
    let key = format!("\u{1b}[2J\n{}", "k".repeat(1000));
    let file = GgufBuilder::new().raw(&key, 99, &[]).build();
    let shown = Gguf::parse(&file).unwrap_err().to_string();
    assert!(!shown.contains(['\u{1b}', '\n']), "{shown:?}");
    assert!(shown.len() < 200, "{shown}");
}

#[test]
fn many_keys_and_tensors_take_linear_time() {
    // 100,000 of each: quadratic look-ups would take minutes.
    let n = 100_000;
    let mut builder = GgufBuilder::new();
    for i in 0..n {
        builder = builder.u32(&format!("k{i}"), i).tensor_f32(&format!("t{i}"), &[], &[0.0]);
    }
    let file = builder.build();
    let gguf = Gguf::parse(&file).unwrap();
    for i in 0..n {
        assert_eq!(gguf.metadata.u32(&format!("k{i}")), Ok(Some(i)));
        assert!(gguf.tensor(&format!("t{i}")).is_some());
    }
}

#[test]
fn every_prefix_of_a_file_is_refused() {
    let file = GgufBuilder::new()
        .str("general.architecture", "llama")
        .strs("tokens", &["a", "b", "é"])
        .raw("nested", 9, &array(9, 1, array(7, 2, [0, 1])))
        .tensor_f32("output_norm.weight", &[2], &[1.0; 2])
        .tensor_f16("output.weight", &[4, 2], &[1.0; 8])
        .build();
    let last_byte = Gguf::parse(&file).unwrap().tensors[1].bytes(&file).as_ptr_range().end;
    let end = last_byte as usize - file.as_ptr() as usize;
    for n in 0..end {
        assert!(Gguf::parse(&file[..n]).is_err(), "{n} of {} bytes", file.len());
    }
    assert!(Gguf::parse(&file[..end]).is_ok());
}
