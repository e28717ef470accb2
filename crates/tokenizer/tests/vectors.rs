//! Real vocabularies and the ids that a reference gave for awkward texts.
//!
//! The files are llama.cpp's `models/ggml-vocab-*.gguf` with `.inp` and `.out`; they are too large for the repository.
//! `WORKER_TEST_VOCAB_DIR` names the folder that holds them. Without it the tests say that they skip; with it a missing
//! file is a failure.

use std::path::PathBuf;

use gguf_parser::Gguf;
use tokenizer::{EncodeOptions, Tokenizer};

/// As the reference ids were made: special tokens in the text stay text, and none is added.
const PLAIN: EncodeOptions = EncodeOptions { parse_special: false, add_special: false };

fn vocab_dir() -> Option<PathBuf> {
    let dir = std::env::var_os("WORKER_TEST_VOCAB_DIR").map(PathBuf::from);
    if dir.is_none() {
        eprintln!("skipped: WORKER_TEST_VOCAB_DIR is not set");
    }
    dir
}

fn read(path: PathBuf) -> Vec<u8> {
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A text and its ids.
type Vector = (String, Vec<u32>);

/// The tokenizer of that vocabulary, and the reference texts with their ids.
fn load(name: &str) -> Option<(Tokenizer, Vec<Vector>)> {
    let dir = vocab_dir()?;
    let file = |end: &str| read(dir.join(format!("ggml-vocab-{name}.gguf{end}")));
    let gguf = file("");
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&gguf).unwrap()).unwrap();
    let texts = String::from_utf8(file(".inp")).unwrap();
    let ids = String::from_utf8(file(".out")).unwrap();
    let texts = texts.split("\n__ggml_vocab_test__\n").map(str::to_owned);
    let ids = ids.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect());
    let vectors: Vec<_> = texts.zip(ids).collect();
    assert!(vectors.len() > 40, "{name}: only {} vectors", vectors.len());
    Some((tokenizer, vectors))
}

fn gives_the_reference_ids(name: &str) {
    let Some((tokenizer, vectors)) = load(name) else { return };
    for (text, expected) in &vectors {
        assert_eq!(&tokenizer.encode(text, PLAIN), expected, "{name}: {text:?}");
        assert_eq!(&tokenizer.decode(expected), text, "{name}");
        let mut stream = tokenizer.stream();
        let streamed: String = expected.iter().map(|id| stream.push(*id)).collect();
        assert_eq!(&(streamed + &stream.finish()), text, "{name}, streamed");
    }
}

#[test]
fn qwen2_gives_the_reference_ids() {
    gives_the_reference_ids("qwen2");
}

#[test]
fn llama_bpe_gives_the_reference_ids() {
    gives_the_reference_ids("llama-bpe");
}

#[test]
fn gpt_2_gives_the_reference_ids() {
    gives_the_reference_ids("gpt-2");
}

#[test]
fn llama_spm_gives_the_reference_ids() {
    gives_the_reference_ids("llama-spm");
}

#[test]
fn phi_3_gives_the_reference_ids() {
    gives_the_reference_ids("phi-3");
}

#[test]
fn special_tokens_are_parsed_only_where_asked() {
    let Some((tokenizer, _)) = load("qwen2") else { return };
    let text = "<|im_start|>user\nHi<|im_end|>";
    let parsed = tokenizer.encode(text, EncodeOptions { parse_special: true, add_special: false });
    assert_eq!(parsed, [151644, 872, 198, 13048, 151645]);
    assert_eq!(tokenizer.decode(&parsed), "user\nHi");
    assert_eq!(tokenizer.decode_with(&parsed, true), text);
    let plain = tokenizer.encode(text, PLAIN);
    assert!(plain.iter().all(|id| !tokenizer.is_special(*id)));
    assert_eq!(tokenizer.decode(&plain), text);
}

#[test]
fn each_vocabulary_ends_generation_where_it_should() {
    let end_tokens = |name: &str| load(name).map(|(tokenizer, _)| tokenizer.end_tokens().to_vec());
    let Some(qwen2) = end_tokens("qwen2") else { return };
    assert_eq!(qwen2, [151643, 151645], "<|endoftext|> and <|im_end|>");
    assert_eq!(end_tokens("llama-bpe").unwrap(), [128001, 128009], "<|end_of_text|> and <|eot_id|>");
    assert_eq!(end_tokens("gpt-2").unwrap(), [50256]);
    assert_eq!(end_tokens("llama-spm").unwrap(), [2]);
    assert_eq!(end_tokens("phi-3").unwrap(), [32000, 32007], "<|endoftext|> and <|end|>");
}

#[test]
fn bos_is_added_where_the_vocabulary_wants_it_and_never_twice() {
    let with_special = EncodeOptions { parse_special: true, add_special: true };
    for (name, bos, text) in [
        ("llama-bpe", Some(128000), "<|begin_of_text|>a"),
        ("llama-spm", Some(1), "<s>a"),
        ("phi-3", Some(1), "<s>a"),
        ("qwen2", None, "a"),
        ("gpt-2", None, "a"),
    ] {
        let Some((tokenizer, _)) = load(name) else { return };
        assert_eq!(tokenizer.added_bos(), bos, "{name}");
        let once: Vec<u32> = bos.into_iter().chain(tokenizer.encode("a", PLAIN)).collect();
        assert_eq!(tokenizer.encode("a", with_special), once, "{name}");
        assert_eq!(tokenizer.encode(text, with_special), once, "{name}");
    }
}

/// A megabyte that offers no boundary to cut at, with the number of ids that Hugging Face gives. Merging such text pair by
/// pair would take hours; the limit is far from what it takes and far from that.
#[test]
fn a_megabyte_without_a_boundary_is_no_trouble() {
    let Some((qwen2, _)) = load("qwen2") else { return };
    let Some((spm, _)) = load("llama-spm") else { return };
    for (text, n_ids) in
        [("a".repeat(1_000_000), 125_000), (" ".repeat(1_000_000), 7_813), ("\u{1F600}".repeat(250_000), 250_000)]
    {
        let begin = std::time::Instant::now();
        let ids = qwen2.encode(&text, PLAIN);
        assert_eq!(ids.len(), n_ids);
        assert_eq!(qwen2.decode(&ids), text);
        assert_eq!(spm.decode(&spm.encode(&text, PLAIN)), text);
        assert!(begin.elapsed().as_secs() < 10, "{:?} took {:?}", &text[..4], begin.elapsed());
    }
}
