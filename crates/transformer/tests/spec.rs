//! Metadata in, spec or a named fault out.

use gguf_parser::writer::{GgufWriter, OwnedArray, OwnedValue};
use gguf_parser::{Gguf, TensorType, ValueError};
use proptest::prelude::*;
use transformer::{ModelSpec, RopePairs, SpecError};

use OwnedValue::{Bool, F32, I32, U32, U64};

fn string(text: &str) -> OwnedValue {
    OwnedValue::String(text.into())
}

/// Metadata and tensors of a small `qwen2` file: a spec reads no tensor's data.
#[derive(Clone)]
struct File {
    architecture: &'static str,
    entries: Vec<(String, OwnedValue)>,
    tensors: Vec<(String, Vec<u64>)>,
}

impl File {
    fn qwen2() -> File {
        let entries: [(&str, OwnedValue); 10] = [
            ("general.architecture", string("qwen2")),
            ("general.name", string("a test")),
            ("qwen2.block_count", U32(2)),
            ("qwen2.context_length", U32(512)),
            ("qwen2.embedding_length", U32(64)),
            ("qwen2.feed_forward_length", U32(96)),
            ("qwen2.attention.head_count", U32(4)),
            ("qwen2.attention.head_count_kv", U32(2)),
            ("qwen2.attention.layer_norm_rms_epsilon", F32(1e-6)),
            ("qwen2.rope.freq_base", F32(1e6)),
        ];
        File {
            architecture: "qwen2",
            entries: entries.map(|(key, value)| (key.to_owned(), value)).into(),
            tensors: vec![("token_embd.weight".into(), vec![100, 64]), ("output.weight".into(), vec![100, 64])],
        }
    }

    fn llama() -> File {
        let mut file = File::qwen2();
        file.architecture = "llama";
        for (key, _) in &mut file.entries {
            *key = key.replace("qwen2.", "llama.");
        }
        file.set("general.architecture", string("llama"))
    }

    /// Sets a key; one that begins with a dot belongs to the architecture.
    fn set(mut self, key: &str, value: OwnedValue) -> File {
        let key = self.key(key);
        self.entries.retain(|(k, _)| *k != key);
        self.entries.push((key, value));
        self
    }

    fn without(mut self, key: &str) -> File {
        let key = self.key(key);
        self.entries.retain(|(k, _)| *k != key);
        self
    }

    fn tensor(mut self, name: &str, shape: &[u64]) -> File {
        self.tensors.retain(|(n, _)| n != name);
        self.tensors.push((name.into(), shape.into()));
        self
    }

    fn without_tensor(mut self, name: &str) -> File {
        self.tensors.retain(|(n, _)| n != name);
        self
    }

    fn key(&self, key: &str) -> String {
        if key.starts_with('.') { format!("{}{key}", self.architecture) } else { key.to_owned() }
    }

    fn read(&self) -> Result<ModelSpec, SpecError> {
        let mut writer = GgufWriter::new();
        for (key, value) in &self.entries {
            writer.kv(key, value.clone());
        }
        for (name, shape) in &self.tensors {
            writer.tensor(name, TensorType::F16, shape);
        }
        let header = writer.finish().unwrap();
        let mut bytes = header.bytes;
        bytes.resize(header.file_len as usize, 0);
        ModelSpec::from_gguf(&Gguf::parse(&bytes).unwrap())
    }
}

#[test]
fn reads_a_qwen2_file() {
    insta::assert_debug_snapshot!(File::qwen2().read().unwrap());
}

#[test]
fn reads_a_llama_file_with_all_its_options() {
    let file = File::llama()
        .set(".attention.key_length", U32(24))
        .set(".attention.value_length", U32(24))
        .set(".rope.dimension_count", U32(16))
        .set(".rope.scaling.type", string("linear"))
        .set(".rope.scaling.factor", F32(4.0))
        .set(".vocab_size", U32(100))
        .without(".rope.freq_base")
        .tensor("rope_freqs.weight", &[8])
        .tensor("blk.0.attn_q.bias", &[96])
        .without_tensor("output.weight");
    insta::assert_debug_snapshot!(file.read().unwrap());
}

#[test]
fn lists_the_tensors_of_a_qwen2_model() {
    insta::assert_snapshot!(tensor_list(&File::qwen2().read().unwrap()));
}

#[test]
fn lists_the_tensors_of_a_tied_llama_model_with_rope_freqs() {
    let file = File::llama().tensor("rope_freqs.weight", &[8]).without_tensor("output.weight");
    insta::assert_snapshot!(tensor_list(&file.read().unwrap()));
}

fn tensor_list(spec: &ModelSpec) -> String {
    spec.tensors().iter().map(|t| format!("{:26} {:?}\n", t.name, t.shape)).collect()
}

/// The reference model: 291 tensors, 494 million parameters and 136 million in a separate output matrix.
#[test]
fn counts_what_the_reference_model_holds() {
    let spec = File::qwen2()
        .set(".block_count", U32(24))
        .set(".context_length", U32(32_768))
        .set(".embedding_length", U32(896))
        .set(".feed_forward_length", U32(4864))
        .set(".attention.head_count", U32(14))
        .tensor("token_embd.weight", &[151_936, 896])
        .tensor("output.weight", &[151_936, 896])
        .read()
        .unwrap();
    assert_eq!(spec.tensors().len(), 291);
    assert_eq!(spec.n_params(), 630_167_424);
    assert_eq!(spec.kv_bytes_per_token(2), 12_288);
    assert_eq!((spec.d_head, spec.group()), (64, 7));
}

#[test]
fn one_head_count_serves_both_where_the_file_names_one() {
    let spec = File::llama().without(".attention.head_count_kv").read().unwrap();
    assert_eq!((spec.n_heads, spec.n_kv_heads), (4, 4));
    assert_eq!(spec.rope.pairs, RopePairs::Adjacent);
}

#[test]
fn linear_scaling_is_read_under_both_its_names_and_off_with_none() {
    let scale = |file: File| file.read().unwrap().rope.scale;
    assert_eq!(scale(File::qwen2().set(".rope.scaling.factor", F32(2.0))), 2.0);
    assert_eq!(scale(File::qwen2().set(".rope.scale_linear", F32(8.0))), 8.0);
    assert_eq!(
        scale(File::qwen2().set(".rope.scaling.factor", F32(2.0)).set(".rope.scaling.type", string("none"))),
        1.0
    );
}

#[test]
fn features_that_are_present_but_off_are_no_fault() {
    let file = File::llama()
        .set("split.count", U32(1))
        .set(".expert_count", U32(0))
        .set(".attention.causal", Bool(true))
        .set(".attention.sliding_window", U32(512));
    assert!(file.read().is_ok());
}

#[test]
fn each_fault_names_key_expected_and_got() {
    let qwen2 = File::qwen2;
    let huge = U64(u64::MAX);
    let tokens = OwnedValue::Array(OwnedArray::String(vec!["a".into(), "b".into()]));
    let files = [
        qwen2().set("general.architecture", string("qwen2moe")),
        qwen2().set("general.architecture", U32(2)),
        qwen2().without("general.architecture"),
        qwen2().without(".block_count"),
        qwen2().set(".block_count", U32(0)),
        qwen2().set(".block_count", I32(-1)),
        qwen2().set(".block_count", huge.clone()),
        qwen2().set(".block_count", F32(2.0)),
        qwen2().without(".context_length"),
        qwen2().set(".context_length", U32(0)),
        qwen2().set(".context_length", huge.clone()),
        qwen2().without(".embedding_length"),
        qwen2().set(".embedding_length", U32(0)),
        qwen2().set(".embedding_length", U32(66)),
        qwen2().without(".feed_forward_length"),
        qwen2().set(".feed_forward_length", U32(u32::MAX)),
        qwen2().without(".attention.head_count"),
        qwen2().set(".attention.head_count", U32(0)),
        qwen2().set(".attention.head_count", U32(6)),
        qwen2().set(".attention.head_count", OwnedValue::Array(OwnedArray::U32(vec![4, 4]))),
        qwen2().set(".attention.head_count_kv", U32(0)),
        qwen2().set(".attention.head_count_kv", U32(3)),
        qwen2().set(".attention.head_count_kv", I32(-2)),
        qwen2().set(".attention.key_length", U32(0)),
        qwen2().set(".attention.key_length", U32(15)),
        qwen2().set(".attention.key_length", U32(100_000)),
        qwen2().set(".attention.value_length", U32(32)),
        qwen2().without(".attention.layer_norm_rms_epsilon"),
        qwen2().set(".attention.layer_norm_rms_epsilon", F32(0.0)),
        qwen2().set(".attention.layer_norm_rms_epsilon", F32(-1e-6)),
        qwen2().set(".attention.layer_norm_rms_epsilon", F32(f32::NAN)),
        qwen2().set(".attention.layer_norm_rms_epsilon", F32(1.0)),
        qwen2().set(".attention.layer_norm_rms_epsilon", U32(1)),
        qwen2().without(".rope.freq_base"),
        qwen2().set(".rope.freq_base", F32(0.0)),
        qwen2().set(".rope.freq_base", F32(f32::INFINITY)),
        qwen2().set(".rope.dimension_count", U32(0)),
        qwen2().set(".rope.dimension_count", U32(7)),
        qwen2().set(".rope.dimension_count", U32(18)),
        qwen2().set(".rope.scaling.factor", F32(0.0)),
        qwen2().set(".rope.scaling.factor", F32(f32::NAN)),
        qwen2().set(".rope.scaling.type", string("yarn")),
        qwen2().set(".expert_count", U32(8)),
        qwen2().set("split.count", U32(3)),
        qwen2().set(".attention.causal", Bool(false)),
        qwen2().set(".attention.sliding_window", U32(128)),
        qwen2().set(".vocab_size", U32(99)),
        qwen2().set("tokenizer.ggml.tokens", tokens),
        qwen2().without_tensor("token_embd.weight"),
        qwen2().tensor("token_embd.weight", &[64, 100]),
        qwen2().tensor("token_embd.weight", &[6400]),
    ];
    let texts: Vec<String> = files.iter().map(|file| file.read().expect_err("a fault").to_string()).collect();
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn errors_are_typed_by_what_can_be_done_about_them() {
    let error = |file: File| file.read().unwrap_err();
    let missing = error(File::qwen2().without(".block_count"));
    assert!(matches!(missing, SpecError::Value(ValueError::Missing { key, .. }) if key == "qwen2.block_count"));
    let unknown = error(File::qwen2().set("general.architecture", string("gpt-oss")));
    assert!(matches!(unknown, SpecError::UnknownArchitecture { got, .. } if got == "gpt-oss"));
    let experts = error(File::llama().set(".expert_count", U32(8)));
    assert!(matches!(experts, SpecError::Unsupported { key, .. } if key == "llama.expert_count"));
    let zero = error(File::qwen2().set(".block_count", U32(0)));
    assert!(matches!(zero, SpecError::Invalid { key, .. } if key == "qwen2.block_count"));
    let no_embedding = error(File::qwen2().without_tensor("token_embd.weight"));
    assert!(matches!(no_embedding, SpecError::Tensor { name: "token_embd.weight", .. }));
}

/// Every key that a spec reads.
const KEYS: [&str; 22] = [
    "general.architecture",
    "general.name",
    "split.count",
    "tokenizer.ggml.tokens",
    ".block_count",
    ".context_length",
    ".embedding_length",
    ".feed_forward_length",
    ".vocab_size",
    ".expert_count",
    ".attention.head_count",
    ".attention.head_count_kv",
    ".attention.key_length",
    ".attention.value_length",
    ".attention.layer_norm_rms_epsilon",
    ".attention.causal",
    ".attention.sliding_window",
    ".rope.freq_base",
    ".rope.dimension_count",
    ".rope.scale_linear",
    ".rope.scaling.type",
    ".rope.scaling.factor",
];

fn any_value() -> impl Strategy<Value = OwnedValue> {
    prop_oneof![
        (0..200u32).prop_map(U32),
        any::<u32>().prop_map(U32),
        any::<i32>().prop_map(I32),
        any::<u64>().prop_map(U64),
        any::<f32>().prop_map(F32),
        any::<bool>().prop_map(Bool),
        prop_oneof![Just("linear"), Just("none"), Just("qwen2"), Just("llama"), Just("")].prop_map(string),
        proptest::collection::vec(any::<u32>(), 0..4).prop_map(|v| OwnedValue::Array(OwnedArray::U32(v))),
    ]
}

proptest! {
    #[test]
    fn any_metadata_gives_a_spec_within_the_limits_or_an_error(
        llama in any::<bool>(),
        edits in proptest::collection::vec((0..KEYS.len(), proptest::option::of(any_value())), 0..6),
        rows in 1..300u64,
        columns in 1..300u64,
    ) {
        let mut file = if llama { File::llama() } else { File::qwen2() };
        for (key, value) in edits {
            file = match value {
                Some(value) => file.set(KEYS[key], value),
                None => file.without(KEYS[key]),
            };
        }
        if rows % 2 == 0 {
            file = file.tensor("token_embd.weight", &[rows, columns]);
        }
        if let Ok(spec) = file.read() {
            prop_assert!(spec.n_layers > 0 && spec.d_head > 0 && spec.n_heads.is_multiple_of(spec.n_kv_heads));
            prop_assert!(spec.rope.n_dims <= spec.d_head && spec.rope.base.is_finite() && spec.rms_eps > 0.0);
            prop_assert!(!spec.tensors().is_empty() && spec.n_params() > 0 && spec.kv_bytes_per_token(4) > 0);
        }
    }
}
