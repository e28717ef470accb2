//! Properties: any bytes and any mutation of a valid file give `Ok` or `Err` and never a panic, and what the writer
//! writes is what the parser reads.

use gguf_parser::writer::{GgufWriter, OwnedArray, OwnedValue};
use gguf_parser::{Gguf, MAX_ALIGNMENT, ParseError, TensorType, Value};
use proptest::prelude::*;
use test_support::gguf::{GgufBuilder, array};

/// Touches everything that a parsed directory offers, so that "never a panic" covers lazy decoding too.
fn use_everything(file: &[u8]) -> bool {
    let Ok(gguf) = Gguf::parse(file) else { return false };
    assert!(!gguf.listing().to_string().is_empty());
    for (key, value) in gguf.metadata.iter() {
        assert_eq!(gguf.metadata.get(key).map(Value::value_type), Some(value.value_type()));
        walk(value);
        let _ = (gguf.metadata.u32(key), gguf.metadata.f32(key), gguf.metadata.str(key), gguf.metadata.bool(key));
    }
    for tensor in &gguf.tensors {
        assert_eq!(tensor.bytes(file).len() as u64, tensor.n_bytes);
        assert!(tensor.offset.is_multiple_of(gguf.alignment));
        assert!(gguf.tensor(tensor.name).is_some());
    }
    true
}

fn walk(value: &Value<'_>) {
    if let Value::Array(array) = value {
        assert_eq!(array.values().count(), array.len());
        array.values().for_each(|element| walk(&element));
        if let Ok(strings) = array.strings() {
            assert_eq!(strings.count(), array.len());
        }
        let _ = (array.u32s().map(Iterator::count), array.i32s().map(Iterator::count));
        let _ = (array.f32s().map(Iterator::count), array.bools().map(Iterator::count));
    }
}

/// A file with every value type, nested arrays and some tensors: something for mutations to bite on.
fn valid_file() -> Vec<u8> {
    let file = GgufBuilder::new()
        .str("general.architecture", "qwen2")
        .alignment(32)
        .raw("u8", 0, &[1])
        .raw("i16", 3, &[1, 0])
        .u32("u32", 24)
        .u64("u64", 24)
        .f32("f32", 1e6)
        .bool("bool", true)
        .strs("strings", &["a", "Ġb", "", "ccc"])
        .i32s("i32s", &[1, -2, 3])
        .f32s("f32s", &[1.0, 2.0])
        .raw("nested", 9, &array(9, 2, [array(7, 2, [0, 1]), array(9, 1, array(8, 0, []))].concat()))
        .tensor_f16("token_embd.weight", &[8, 16], &[1.0; 128])
        .tensor("quantised", TensorType::Q8_0.id(), &[2, 64], vec![0; 136])
        .tensor_f32("output_norm.weight", &[16], &[1.0; 16])
        .build();
    assert!(use_everything(&file));
    file
}

#[derive(Debug, Clone)]
enum Mutation {
    Set { at: prop::sample::Index, byte: u8 },
    Flip { at: prop::sample::Index, bit: u8 },
    SetU64 { at: prop::sample::Index, value: u64 },
    Truncate { at: prop::sample::Index },
    Remove { at: prop::sample::Index, n: usize },
    Insert { at: prop::sample::Index, bytes: Vec<u8> },
    Splice { from: prop::sample::Index, to: prop::sample::Index, n: usize },
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<prop::sample::Index>;
    let nasty = prop_oneof![
        any::<u64>(),
        Just(0),
        Just(u64::MAX),
        Just(1 << 63),
        Just(1 << 61),
        Just((1 << 63) - 1),
        0..300u64,
    ];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set { at, byte }),
        (at(), 0..8u8).prop_map(|(at, bit)| Mutation::Flip { at, bit }),
        (at(), nasty).prop_map(|(at, value)| Mutation::SetU64 { at, value }),
        at().prop_map(|at| Mutation::Truncate { at }),
        (at(), 1..40usize).prop_map(|(at, n)| Mutation::Remove { at, n }),
        (at(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Mutation::Insert { at, bytes }),
        (at(), at(), 1..80usize).prop_map(|(from, to, n)| Mutation::Splice { from, to, n }),
    ]
}

fn mutate(file: &mut Vec<u8>, mutation: &Mutation) {
    if file.is_empty() {
        return;
    }
    let len = file.len();
    match mutation {
        Mutation::Set { at, byte } => file[at.index(len)] = *byte,
        Mutation::Flip { at, bit } => file[at.index(len)] ^= 1 << bit,
        Mutation::SetU64 { at, value } => {
            let at = at.index(len);
            for (target, byte) in file[at..].iter_mut().zip(value.to_le_bytes()) {
                *target = byte;
            }
        }
        Mutation::Truncate { at } => file.truncate(at.index(len)),
        Mutation::Remove { at, n } => {
            let at = at.index(len);
            file.drain(at..len.min(at + n));
        }
        Mutation::Insert { at, bytes } => {
            let at = at.index(len);
            file.splice(at..at, bytes.iter().copied());
        }
        Mutation::Splice { from, to, n } => {
            let from = from.index(len);
            let piece = file[from..len.min(from + n)].to_vec();
            let to = to.index(len);
            file.splice(to..to, piece);
        }
    }
}

fn array_strategy() -> impl Strategy<Value = OwnedArray> {
    let leaf = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..5).prop_map(OwnedArray::U8),
        prop::collection::vec(any::<i8>(), 0..5).prop_map(OwnedArray::I8),
        prop::collection::vec(any::<u16>(), 0..5).prop_map(OwnedArray::U16),
        prop::collection::vec(any::<i16>(), 0..5).prop_map(OwnedArray::I16),
        prop::collection::vec(any::<u32>(), 0..5).prop_map(OwnedArray::U32),
        prop::collection::vec(any::<i32>(), 0..5).prop_map(OwnedArray::I32),
        prop::collection::vec(any::<f32>(), 0..5).prop_map(OwnedArray::F32),
        prop::collection::vec(any::<bool>(), 0..5).prop_map(OwnedArray::Bool),
        prop::collection::vec(any::<String>(), 0..5).prop_map(OwnedArray::String),
        prop::collection::vec(any::<u64>(), 0..5).prop_map(OwnedArray::U64),
        prop::collection::vec(any::<i64>(), 0..5).prop_map(OwnedArray::I64),
        prop::collection::vec(any::<f64>(), 0..5).prop_map(OwnedArray::F64),
    ];
    leaf.prop_recursive(3, 16, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(OwnedArray::Array))
}

fn value_strategy() -> impl Strategy<Value = OwnedValue> {
    prop_oneof![
        any::<u8>().prop_map(OwnedValue::U8),
        any::<i8>().prop_map(OwnedValue::I8),
        any::<u16>().prop_map(OwnedValue::U16),
        any::<i16>().prop_map(OwnedValue::I16),
        any::<u32>().prop_map(OwnedValue::U32),
        any::<i32>().prop_map(OwnedValue::I32),
        any::<f32>().prop_map(OwnedValue::F32),
        any::<bool>().prop_map(OwnedValue::Bool),
        any::<String>().prop_map(OwnedValue::String),
        any::<u64>().prop_map(OwnedValue::U64),
        any::<i64>().prop_map(OwnedValue::I64),
        any::<f64>().prop_map(OwnedValue::F64),
        array_strategy().prop_map(OwnedValue::Array),
    ]
}

/// A type and a shape that fit each other, slowest dimension first.
fn tensor_strategy() -> impl Strategy<Value = (TensorType, Vec<u64>)> {
    (prop::sample::select(TensorType::ALL), prop::collection::vec(1..4u64, 0..=4)).prop_map(|(ty, mut shape)| {
        match shape.last_mut() {
            Some(row_len) => *row_len *= ty.block_len(),
            None if ty.block_len() > 1 => shape.push(ty.block_len()),
            None => {}
        }
        (ty, shape)
    })
}

proptest! {
    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        use_everything(&bytes);
    }

    #[test]
    fn any_bytes_behind_a_good_header_never_panic(
        version in 2..=3u32,
        n_tensors in 0..5u64,
        n_entries in 0..5u64,
        bytes in prop::collection::vec(prop_oneof![3 => Just(0u8), 2 => 0..16u8, 1 => any::<u8>()], 0..400),
    ) {
        let mut file = b"GGUF".to_vec();
        file.extend(version.to_le_bytes());
        file.extend(n_tensors.to_le_bytes());
        file.extend(n_entries.to_le_bytes());
        file.extend(bytes);
        use_everything(&file);
    }

    #[test]
    fn any_mutation_of_a_valid_file_never_panics(mutations in prop::collection::vec(mutation(), 1..6)) {
        let mut file = valid_file();
        mutations.iter().for_each(|mutation| mutate(&mut file, mutation));
        use_everything(&file);
    }

    #[test]
    fn what_is_written_is_what_is_read(
        version in 2..=3u32,
        alignment in prop::option::of((3..=MAX_ALIGNMENT.ilog2()).prop_map(|log| 1u32 << log.min(16))),
        entries in prop::collection::btree_map("[a-z.é]{1,12}", value_strategy(), 0..8),
        tensors in prop::collection::btree_map("[a-z.0-9é]{1,12}", tensor_strategy(), 0..8),
    ) {
        let mut writer = GgufWriter::new();
        writer.version(version);
        if let Some(alignment) = alignment {
            writer.kv("general.alignment", alignment);
        }
        for (key, value) in &entries {
            writer.kv(key, value.clone());
        }
        for (name, (ty, shape)) in &tensors {
            writer.tensor(name, *ty, shape);
        }
        let header = writer.finish().unwrap();
        let mut file = header.bytes.clone();
        for (i, range) in header.tensors.iter().enumerate() {
            file.resize(range.start as usize, 0);
            file.resize(range.end as usize, i as u8 + 1);
        }
        file.resize(header.file_len as usize, 0);

        prop_assert!(use_everything(&file));
        let gguf = Gguf::parse(&file).unwrap();
        prop_assert_eq!(gguf.version, version);
        prop_assert_eq!(gguf.alignment, alignment.map_or(32, u64::from));
        for (key, value) in &entries {
            let read = OwnedValue::from(gguf.metadata.get(key).unwrap());
            prop_assert_eq!(format!("{read:?}"), format!("{value:?}")); // as text, because NaN is not NaN
        }
        prop_assert_eq!(gguf.tensors.len(), tensors.len());
        for (i, (tensor, (name, (ty, shape)))) in gguf.tensors.iter().zip(&tensors).enumerate() {
            prop_assert_eq!((tensor.name, tensor.ty, &tensor.shape[..]), (name.as_str(), *ty, &shape[..]));
            prop_assert!(tensor.bytes(&file).iter().all(|&byte| byte == i as u8 + 1));
        }
    }
}

#[test]
fn both_writers_write_the_same_bytes() {
    let mut writer = GgufWriter::new();
    writer.kv("general.architecture", "llama").kv("tokens", vec!["a", "b"]).kv("types", vec![1i32, 3]);
    writer.tensor("a", TensorType::F32, &[2, 3]).tensor("b", TensorType::F16, &[5]);
    let header = writer.finish().unwrap();
    let file = GgufBuilder::new()
        .str("general.architecture", "llama")
        .strs("tokens", &["a", "b"])
        .i32s("types", &[1, 3])
        .tensor_f32("a", &[2, 3], &[0.0; 6])
        .tensor_f16("b", &[5], &[0.0; 5])
        .build();
    assert_eq!(header.bytes, file[..header.bytes.len()]);
    assert_eq!(header.file_len, file.len() as u64);
}

#[test]
fn the_writer_refuses_what_the_parser_would_refuse() {
    let mut twice = GgufWriter::new();
    twice.kv("k", 1u32).kv("k", 2u32);
    assert!(matches!(twice.finish(), Err(ParseError::DuplicateKey { .. })));
    let refused = |ty, shape: &[u64]| GgufWriter::new().tensor("t", ty, shape).finish().unwrap_err();
    assert!(matches!(refused(TensorType::Q8_0, &[33]), ParseError::RowNotWholeBlocks { .. }));
    assert!(matches!(refused(TensorType::F32, &[u64::MAX, 2]), ParseError::ElementCountOverflow { .. }));
    assert!(matches!(refused(TensorType::F32, &[u64::MAX / 4]), ParseError::SizeOverflow { .. }));
    assert!(matches!(refused(TensorType::F32, &[0]), ParseError::ZeroDim { .. }));
    assert!(matches!(refused(TensorType::F32, &[1; 5]), ParseError::TooManyDims { .. }));
    let mut alignment = GgufWriter::new();
    alignment.kv("general.alignment", 0u32).tensor("t", TensorType::F32, &[1]);
    assert!(matches!(alignment.finish(), Err(ParseError::Alignment { got: 0 })));
    assert!(matches!(GgufWriter::new().version(1).finish(), Err(ParseError::UnsupportedVersion { got: 1 })));
}

#[test]
fn versions_2_and_3_differ_in_their_number_only() {
    let model = |version| valid_with_version(version);
    let (v2, v3) = (model(2), model(3));
    let (two, three) = (Gguf::parse(&v2).unwrap(), Gguf::parse(&v3).unwrap());
    assert_eq!((two.version, three.version), (2, 3));
    assert_eq!(two.tensors, three.tensors);
    assert_eq!(two.metadata.len(), three.metadata.len());
}

fn valid_with_version(version: u32) -> Vec<u8> {
    let mut file = valid_file();
    file[4..8].copy_from_slice(&version.to_le_bytes());
    file
}
