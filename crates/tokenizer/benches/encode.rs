//! How fast a vocabulary is ready and text becomes ids: median and least wall time, one JSON line a figure. Encoding is
//! single-threaded.
//!
//! `cargo bench -p tokenizer --bench encode -- VOCAB.gguf [TEXT_FILE…]`, or `WORKER_TEST_VOCAB_DIR` for the vocabulary.
//! The worst cases (a megabyte without a boundary) are made here. `checks/bench_vs_hf.py` runs this and Hugging Face's
//! `tokenizers` over the same texts in one run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gguf_parser::Gguf;
use tokenizer::{EncodeOptions, Tokenizer};

const MEGABYTE: usize = 1_000_000;

fn main() {
    // Cargo passes `--bench`.
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).map(PathBuf::from);
    let in_env = std::env::var_os("WORKER_TEST_VOCAB_DIR").map(|dir| Path::new(&dir).join("ggml-vocab-qwen2.gguf"));
    let Some(vocab) = args.next().or(in_env) else {
        println!("skipped: give a vocabulary file, or set WORKER_TEST_VOCAB_DIR");
        return;
    };
    let bytes = std::fs::read(&vocab).unwrap_or_else(|error| panic!("{}: {error}", vocab.display()));
    let parse = times(9, || Gguf::parse(&bytes).unwrap());
    let gguf = Gguf::parse(&bytes).unwrap();
    let build = times(9, || Tokenizer::from_gguf(&gguf).unwrap());
    report("parse GGUF", parse, 0, 0);
    report("build vocabulary", build, 0, 0);

    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    for (name, text) in args.map(text_file).chain(worst_cases()) {
        let options = EncodeOptions { parse_special: true, add_special: false };
        let n_ids = tokenizer.encode(&text, options).len();
        let took = times(7, || tokenizer.encode(&text, options));
        report(&name, took, text.len(), n_ids);
    }
    let first = times(7, || {
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        tokenizer.encode("The quick brown fox jumps over the lazy dog.", EncodeOptions::default())
    });
    report("build and encode one sentence", first, 0, 0);
}

fn text_file(path: PathBuf) -> (String, String) {
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), text)
}

/// A megabyte each of text that offers no boundary to cut at, or that merges as badly as can be.
fn worst_cases() -> impl Iterator<Item = (String, String)> {
    let mut state = 1u64;
    let mut letter = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        char::from(b'a' + (state >> 33) as u8 % 26)
    };
    [
        ("one letter", "a".repeat(MEGABYTE)),
        ("spaces", " ".repeat(MEGABYTE)),
        ("newlines", "\n".repeat(MEGABYTE)),
        ("one emoji", "\u{1F600}".repeat(MEGABYTE / 4)),
        ("emoji families", "\u{1F468}\u{200D}\u{1F469}\u{200D}\u{1F467}".repeat(MEGABYTE / 18)),
        ("random letters", (0..MEGABYTE).map(|_| letter()).collect()),
        ("symbols", "=-".repeat(MEGABYTE / 2)),
        ("combining marks", "e\u{301}\u{323}".repeat(MEGABYTE / 5)),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), text))
}

/// The median and the least time of `work`.
fn times<T>(n_runs: usize, mut work: impl FnMut() -> T) -> [Duration; 2] {
    let mut times: Vec<Duration> = (0..n_runs)
        .map(|_| {
            let begin = Instant::now();
            let result = work();
            let took = begin.elapsed();
            drop(result);
            took
        })
        .collect();
    times.sort_unstable();
    [times[n_runs / 2], times[0]]
}

fn report(name: &str, [median, least]: [Duration; 2], n_bytes: usize, n_ids: usize) {
    let [ms, least_ms] = [median, least].map(|took| took.as_secs_f64() * 1e3);
    let mb_per_s = n_bytes as f64 / 1e3 / ms;
    println!(
        r#"{{"what": "{name}", "ms": {ms:.3}, "least_ms": {least_ms:.3}, "bytes": {n_bytes}, "ids": {n_ids}, "mb_per_s": {mb_per_s:.1}}}"#
    );
}
