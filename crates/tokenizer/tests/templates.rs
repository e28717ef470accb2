//! Published chat templates, rendered: what comes out is compared with committed snapshots, which
//! `checks/templates_vs_hf.py` compares with what Python's `transformers` makes of the same conversations.
//!
//! The templates themselves are not in the repository: see `vectors.rs` for `WORKER_TEST_VOCAB_DIR`.

use std::path::PathBuf;

use gguf_parser::Gguf;
use serde_json::Value;
use tokenizer::{ChatInput, ChatTemplate, Tokenizer};

fn vocab_dir() -> Option<PathBuf> {
    let dir = std::env::var_os("WORKER_TEST_VOCAB_DIR").map(PathBuf::from);
    if dir.is_none() {
        eprintln!("skipped: WORKER_TEST_VOCAB_DIR is not set");
    }
    dir
}

/// Every conversation through that template; an error is part of the outcome.
fn rendered(template: &ChatTemplate) -> String {
    let conversations: Value = serde_json::from_str(include_str!("data/conversations.json")).unwrap();
    let mut out = String::new();
    for (name, case) in conversations.as_object().unwrap() {
        let input = ChatInput {
            messages: case["messages"].as_array().unwrap(),
            tools: case.get("tools"),
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            extra: case.get("extra").and_then(Value::as_object).cloned().unwrap_or_default(),
        };
        let text = template.render(&input).unwrap_or_else(|error| format!("ERROR {error}"));
        out.push_str(&format!("=== {name}\n{text}\n"));
    }
    out
}

fn check(file: &str, bos: &str, eos: &str) {
    let Some(dir) = vocab_dir() else { return };
    let path = dir.join(format!("{file}.jinja"));
    let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let template = ChatTemplate::new(&source, bos, eos).unwrap();
    insta::assert_snapshot!(file, rendered(&template));
}

#[test]
fn renders_qwen2_5() {
    check("Qwen-Qwen2.5-7B-Instruct", "", "<|im_end|>");
}

#[test]
fn renders_qwen3() {
    check("Qwen-Qwen3-0.6B", "", "<|im_end|>");
}

#[test]
fn renders_llama_3_1() {
    check("meta-llama-Llama-3.1-8B-Instruct", "<|begin_of_text|>", "<|eot_id|>");
}

#[test]
fn renders_gemma_2() {
    check("google-gemma-2-2b-it", "<bos>", "<eos>");
}

#[test]
fn renders_phi_3_5() {
    check("microsoft-Phi-3.5-mini-instruct", "<s>", "<|endoftext|>");
}

#[test]
fn a_template_comes_with_its_vocabulary() {
    let Some(dir) = vocab_dir() else { return };
    for (name, expected) in [
        (
            "qwen2",
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("phi-3", "<s><|user|>\nHi<|end|>\n<|assistant|>\n"),
    ] {
        let bytes = std::fs::read(dir.join(format!("ggml-vocab-{name}.gguf"))).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let template = ChatTemplate::from_gguf(&gguf, &tokenizer).unwrap().unwrap();
        let messages = [serde_json::json!({"role": "user", "content": "Hi"})];
        let input = ChatInput { messages: &messages, add_generation_prompt: true, ..ChatInput::default() };
        assert_eq!(template.render(&input).unwrap(), expected, "{name}");
    }
}
