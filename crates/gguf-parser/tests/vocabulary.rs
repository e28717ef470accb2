//! Real vocabularies: files without tensors, with long arrays. They are read from `WORKER_TEST_VOCAB_DIR`; without it
//! the tests pass without having looked at anything, and say so.

use std::path::PathBuf;
use std::time::Instant;

use gguf_parser::Gguf;

fn vocabulary(name: &str) -> Option<Vec<u8>> {
    let Some(dir) = std::env::var_os("WORKER_TEST_VOCAB_DIR") else {
        eprintln!("skipped: WORKER_TEST_VOCAB_DIR is not set");
        return None;
    };
    let path = PathBuf::from(dir).join(name);
    Some(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

#[test]
fn reads_the_qwen2_vocabulary() {
    let Some(file) = vocabulary("ggml-vocab-qwen2.gguf") else { return };
    let start = Instant::now();
    let gguf = Gguf::parse(&file).unwrap();
    eprintln!("parsed {} bytes in {:?}", file.len(), start.elapsed());
    assert!(gguf.tensors.is_empty());
    let tokens = gguf.metadata.require_array("tokenizer.ggml.tokens").unwrap();
    assert_eq!(tokens.strings().unwrap().nth(151_643), Some("<|endoftext|>"));
    assert_eq!(tokens.len(), 151_936);
    assert_eq!(gguf.metadata.require_array("tokenizer.ggml.merges").unwrap().strings().unwrap().count(), 151_387);
}

#[test]
fn reads_the_other_vocabularies() {
    for (name, n_tokens) in [("gpt-2", 50_257), ("llama-bpe", 128_256), ("llama-spm", 32_000), ("phi-3", 32_064)] {
        let Some(file) = vocabulary(&format!("ggml-vocab-{name}.gguf")) else { return };
        let gguf = Gguf::parse(&file).unwrap();
        let tokens = gguf.metadata.require_array("tokenizer.ggml.tokens").unwrap();
        assert_eq!(tokens.strings().unwrap().count(), n_tokens, "{name}");
    }
}
