//! Typed getters: what they take, and what they say of what they do not take.

use gguf_parser::{Array, Gguf, Value, ValueError, ValueType};
use insta::assert_snapshot;
use test_support::gguf::{GgufBuilder, array};

/// Runs `test` on the metadata of a file with one key, `k`.
fn with<T>(build: impl FnOnce(GgufBuilder) -> GgufBuilder, test: impl FnOnce(&gguf_parser::Metadata<'_>) -> T) -> T {
    let file = build(GgufBuilder::new()).build();
    test(&Gguf::parse(&file).unwrap().metadata)
}

#[test]
fn integers_are_taken_at_any_width_that_fits() {
    for (type_id, value) in [(0, &[7u8] as &[u8]), (1, &[7]), (2, &[7, 0]), (3, &[7, 0]), (4, &[7, 0, 0, 0])] {
        with(|b| b.raw("k", type_id, value), |m| assert_eq!(m.u32("k"), Ok(Some(7))));
    }
    for type_id in [10, 11] {
        with(|b| b.raw("k", type_id, &7u64.to_le_bytes()), |m| assert_eq!(m.require_u32("k"), Ok(7)));
    }
    with(|b| b.i32("k", -7), |m| assert_eq!(m.i64("k"), Ok(Some(-7))));
    with(|b| b.u64("k", u64::MAX), |m| assert_eq!(m.u64("k"), Ok(Some(u64::MAX))));
}

#[test]
fn an_integer_that_does_not_fit_is_an_error() {
    let error = with(|b| b.i32("k", -1), |m| m.u32("k").unwrap_err());
    assert_snapshot!(error, @r#"key "k": expected u32, got -1"#);
    let error = with(|b| b.u64("k", 1 << 32), |m| m.u32("k").unwrap_err());
    assert_snapshot!(error, @r#"key "k": expected u32, got 4294967296"#);
    let error = with(|b| b.u64("k", 1 << 63), |m| m.i64("k").unwrap_err());
    assert_snapshot!(error, @r#"key "k": expected i64, got 9223372036854775808"#);
}

#[test]
fn a_value_of_another_type_is_an_error() {
    let error = with(|b| b.str("k", "24"), |m| m.u32("k").unwrap_err());
    assert!(matches!(error, ValueError::WrongType { .. }));
    assert_snapshot!(error, @r#"key "k": expected u32, got string "24""#);
    let error = with(|b| b.f32("k", 24.0), |m| m.u64("k").unwrap_err());
    assert_snapshot!(error, @r#"key "k": expected u64, got f32 24.0"#);
    let error = with(|b| b.u32("k", 1), |m| m.f32("k").unwrap_err());
    assert_snapshot!(error, @r#"key "k": expected f32, got u32 1"#);
    let error = with(|b| b.u32("k", 1), |m| m.bool("k").unwrap_err());
    assert_snapshot!(error, @r#"key "k": expected bool, got u32 1"#);
    let error = with(|b| b.i32s("k", &[1]), |m| m.str("k").unwrap_err());
    assert_snapshot!(error, @r#"key "k": expected string, got array of i32"#);
    let error = with(|b| b.bool("k", true), |m| m.array("k").unwrap_err());
    assert_snapshot!(error, @r#"key "k": expected array, got bool true"#);
}

#[test]
fn an_absent_key_is_none_or_an_error() {
    with(
        |b| b,
        |m| {
            assert_eq!(m.u32("k"), Ok(None));
            assert_eq!(m.str("k"), Ok(None));
            assert_snapshot!(m.require_u32("k").unwrap_err(), @r#"key "k": missing, expected u32"#);
            assert_snapshot!(m.require_str("k").unwrap_err(), @r#"key "k": missing, expected string"#);
            assert_snapshot!(m.require_array("k").unwrap_err(), @r#"key "k": missing, expected array"#);
        },
    );
}

#[test]
fn floats_are_taken_at_both_widths() {
    with(|b| b.f32("k", 1e-6), |m| assert_eq!(m.f32("k"), Ok(Some(1e-6))));
    with(|b| b.raw("k", 12, &1e-6f64.to_le_bytes()), |m| assert_eq!(m.f32("k"), Ok(Some(1e-6))));
}

fn elements<T>(
    build: impl FnOnce(GgufBuilder) -> GgufBuilder,
    get: impl FnOnce(Array<'_>) -> Result<T, ValueError>,
) -> Result<T, ValueError> {
    with(build, |m| get(m.require_array("k").unwrap()))
}

#[test]
fn arrays_give_their_elements() {
    let strings = |a: Array<'_>| Ok(a.strings()?.map(str::to_owned).collect::<Vec<_>>());
    assert_eq!(elements(|b| b.strs("k", &["a", "", "é"]), strings).unwrap(), ["a", "", "é"]);
    assert_eq!(elements(|b| b.i32s("k", &[1, 3]), |a| Ok(a.u32s()?.collect::<Vec<_>>())).unwrap(), [1, 3]);
    assert_eq!(elements(|b| b.i32s("k", &[-1]), |a| Ok(a.i32s()?.collect::<Vec<_>>())).unwrap(), [-1]);
    assert_eq!(elements(|b| b.u32s("k", &[1, 3]), |a| Ok(a.u64s()?.collect::<Vec<_>>())).unwrap(), [1, 3]);
    assert_eq!(elements(|b| b.f32s("k", &[0.5]), |a| Ok(a.f32s()?.collect::<Vec<_>>())).unwrap(), [0.5]);
    let bools = elements(|b| b.raw("k", 9, &array(7, 2, [1, 0])), |a| Ok(a.bools()?.collect::<Vec<_>>()));
    assert_eq!(bools.unwrap(), [true, false]);
}

#[test]
fn array_iterators_know_their_length() {
    assert_eq!(elements(|b| b.strs("k", &["a", "b"]), |a| Ok(a.strings()?.len())), Ok(2));
    assert_eq!(elements(|b| b.i32s("k", &[1, 2, 3]), |a| Ok(a.u32s()?.len())), Ok(3));
}

#[test]
fn an_array_of_the_wrong_element_type_is_an_error() {
    let error = elements(|b| b.i32s("k", &[1]), |a| a.strings().map(drop)).unwrap_err();
    assert_snapshot!(error, @r#"key "k": expected array of string, got array of i32"#);
    // An empty array has an element type too.
    let error = elements(|b| b.i32s("k", &[]), |a| a.strings().map(drop)).unwrap_err();
    assert_snapshot!(error, @r#"key "k": expected array of string, got array of i32"#);
    let error = elements(|b| b.strs("k", &["1"]), |a| a.u32s().map(drop)).unwrap_err();
    assert_snapshot!(error, @r#"key "k": expected array of u32, got array of string"#);
    let error = elements(|b| b.f32s("k", &[1.0]), |a| a.i32s().map(drop)).unwrap_err();
    assert_snapshot!(error, @r#"key "k": expected array of i32, got array of f32"#);
    let error = elements(|b| b.i32s("k", &[1]), |a| a.f32s().map(drop)).unwrap_err();
    assert_snapshot!(error, @r#"key "k": expected array of f32, got array of i32"#);
    let error = elements(|b| b.i32s("k", &[1]), |a| a.bools().map(drop)).unwrap_err();
    assert_snapshot!(error, @r#"key "k": expected array of bool, got array of i32"#);
}

#[test]
fn an_array_element_that_does_not_fit_is_an_error() {
    let error = elements(|b| b.i32s("k", &[5, -6]), |a| a.u32s().map(drop)).unwrap_err();
    assert_snapshot!(error, @r#"key "k": expected array of u32, got -6 at index 1"#);
}

#[test]
fn nested_arrays_can_be_walked() {
    let nested = array(9, 2, [array(0, 1, [7]), array(7, 2, [0, 1])].concat());
    with(
        |b| b.raw("k", 9, &nested),
        |m| {
            let outer = m.require_array("k").unwrap();
            assert_eq!((outer.len(), outer.elem_type(), outer.key()), (2, ValueType::Array, "k"));
            let inner: Vec<Array<'_>> = outer
                .values()
                .filter_map(|value| if let Value::Array(array) = value { Some(array) } else { None })
                .collect();
            assert_eq!(inner[0].u32s().unwrap().collect::<Vec<_>>(), [7]);
            assert_eq!(inner[1].bools().unwrap().collect::<Vec<_>>(), [false, true]);
        },
    );
}
