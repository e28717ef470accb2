//! The seed corpus of the fuzz target: made here, committed under `fuzz/seeds/`, so that it can neither rot nor be a
//! mystery. `UPDATE_SEEDS=1` writes it anew.

use std::fs;
use std::path::PathBuf;

use gguf_parser::{Gguf, TensorType};
use test_support::gguf::{GgufBuilder, array};

/// Name and bytes of every seed. `ok_` files parse, `bad_` files do not.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let values = || {
        GgufBuilder::new()
            .str("general.architecture", "qwen2")
            .raw("u8", 0, &[1])
            .raw("i16", 3, &[1, 0])
            .u32("u32", 24)
            .u64("u64", 24)
            .f32("f32", 1e6)
            .raw("f64", 12, &1e6f64.to_le_bytes())
            .bool("bool", true)
    };
    let arrays = || {
        GgufBuilder::new()
            .strs("tokenizer.ggml.tokens", &["a", "Ġb", "", "ccc"])
            .i32s("tokenizer.ggml.token_type", &[1, 1, 3, 6])
            .f32s("tokenizer.ggml.scores", &[1.0, 2.0])
            .raw("nested", 9, &array(9, 2, [array(7, 2, [0, 1]), array(9, 1, array(8, 0, []))].concat()))
    };
    let tensors = || {
        GgufBuilder::new()
            .tensor_f32("output_norm.weight", &[4], &[1.0; 4])
            .tensor("output.weight", TensorType::Q8_0.id(), &[2, 32], vec![0; 68])
            .tensor_f16("token_embd.weight", &[2, 4], &[1.0; 8])
    };
    vec![
        ("ok_empty", GgufBuilder::new().build()),
        ("ok_values", values().build()),
        ("ok_values_v2", values().version(2).build()),
        ("ok_arrays", arrays().build()),
        ("ok_tensors", tensors().build()),
        ("ok_tensors_align_64", GgufBuilder::new().alignment(64).tensor_f32("t", &[2, 2], &[0.0; 4]).build()),
        ("bad_big_endian", values().version(3 << 24).build()),
        ("bad_n_tensors", tensors().lie_n_tensors(u64::MAX).build()),
        ("bad_n_entries", values().lie_n_entries(1 << 60).build()),
        ("bad_offset", tensors().lie_offset(u64::MAX - 31).build()),
        ("bad_n_dims", tensors().lie_n_dims(u32::MAX).build()),
        ("bad_array_len", GgufBuilder::new().raw("k", 9, &array(10, 1 << 61, [0; 8])).build()),
        ("bad_truncated", tensors().build()[..100].to_vec()),
    ]
}

#[test]
fn seeds_are_as_committed_and_as_named() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/gguf_parse");
    for (name, bytes) in seeds() {
        assert_eq!(Gguf::parse(&bytes).is_ok(), name.starts_with("ok_"), "{name}: {:?}", Gguf::parse(&bytes).err());
        let path = dir.join(name);
        if std::env::var_os("UPDATE_SEEDS").is_some() {
            fs::create_dir_all(&dir).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        let committed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(committed == bytes, "{name} differs from what is committed; UPDATE_SEEDS=1 writes it anew");
    }
    let n_committed = fs::read_dir(&dir).unwrap().count();
    assert_eq!(n_committed, seeds().len(), "{} holds a file that is no seed", dir.display());
}
