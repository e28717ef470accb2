//! `inspect`: the listing, and verdicts on files of every kind.

use test_support::gguf::GgufBuilder;
use test_support::tiny_model::TinyModel;

use crate::harness::{Files, run, stdout_of};
use crate::models;

/// The verdict on a file: everything after the listing.
fn verdict(bytes: &[u8]) -> String {
    let files = Files::new();
    let path = files.write("model.gguf", bytes);
    let text = stdout_of(&run(&["inspect", &path]));
    let json: serde_json::Value = serde_json::from_str(&stdout_of(&run(&["inspect", "--json", &path]))).unwrap();
    assert_eq!(json["verdict"]["servable"], text.contains("verdict: this worker can serve it\n"), "{text}");
    text[text.rfind("\nweights: ").unwrap() + 1..].to_owned()
}

fn tiny() -> TinyModel {
    TinyModel { n_layers: 1, d_model: 32, n_heads: 2, n_kv_heads: 1, d_ff: 48, ..TinyModel::default() }
}

#[test]
fn lists_a_model_and_says_that_it_can_be_served() {
    let files = Files::new();
    let path = files.write("tiny.gguf", &tiny().build());
    insta::assert_snapshot!("inspect", stdout_of(&run(&["inspect", &path])));
    let json: serde_json::Value = serde_json::from_str(&stdout_of(&run(&["inspect", "--json", &path]))).unwrap();
    insta::assert_snapshot!("inspect_verdict_json", serde_json::to_string_pretty(&json["verdict"]).unwrap());
    assert_eq!(json["metadata"]["qwen2.block_count"], serde_json::json!({"type": "u32", "value": 1}));
    assert_eq!(json["tensors"].as_array().unwrap().len(), 15);
}

#[test]
fn says_why_not() {
    let mut all = String::new();
    let mut add = |name: &str, bytes: &[u8]| all += &format!("--- {name}\n{}", verdict(bytes));
    let builder = || tiny().builder();
    add("a vocabulary of a foreign architecture", &models::vocabulary(&tiny(), "phi3"));
    add("a vocabulary of a known architecture", &models::vocabulary(&tiny(), "qwen2"));
    add("a foreign model", &models::with_metadata(&tiny(), &[("general.architecture", "mamba".into())]));
    add("a foreign tokenizer", &models::with_metadata(&tiny(), &[("tokenizer.ggml.pre", "poro".into())]));
    add("another width", &models::with_metadata(&tiny(), &[("qwen2.feed_forward_length", 64u32.into())]));
    add("a matrix that cannot be computed with", &models::with_a_matrix_in_tq1_0("blk.0.attn_q.weight"));
    add("an empty directory", &GgufBuilder::new().build());
    add("a tensor too many", &builder().tensor_f32("blk.0.extra.weight", &[4], &[0.0; 4]).build());
    insta::assert_snapshot!("says_why_not", all);
}
