//! `tokenize` and `detokenize`.

use test_support::tiny_model::TinyModel;

use crate::harness::{Files, error_of, run_with, stdout_of};
use crate::models;

const TEXT: &str = "<|im_start|>user\nGrüße, 世界! 🌍🏽 the thing\r\n\tin <|im_end|>\n\n";

#[test]
fn text_comes_back_whole() {
    let ids = stdout_of(&run_with(&["tokenize"], TEXT));
    assert!(ids.starts_with('[') && ids.ends_with("]\n"), "{ids}");
    assert_eq!(stdout_of(&run_with(&["detokenize"], &ids)), TEXT);
    assert_eq!(stdout_of(&run_with(&["tokenize"], "")), "[]\n");
    assert_eq!(stdout_of(&run_with(&["detokenize"], " [ ] ")), "");
}

#[test]
fn special_tokens_are_parsed_unless_told_otherwise() {
    let count = |args: &[&str]| {
        let ids: Vec<u32> = serde_json::from_str(&stdout_of(&run_with(args, "<|im_end|>"))).unwrap();
        ids.len()
    };
    assert_eq!(count(&["tokenize"]), 1);
    assert!(count(&["tokenize", "--no-parse-special"]) > 1);
}

#[test]
fn bos_is_added_only_when_asked_for() {
    let files = Files::new();
    let model = models::with_metadata(&TinyModel::default(), &[("tokenizer.ggml.add_bos_token", true.into())]);
    let with_bos = files.write("bos.gguf", &model);
    let ids = |args: &[&str]| -> Vec<u32> {
        serde_json::from_str(&stdout_of(&run_with(&[&["tokenize", "--model", &with_bos], args].concat(), "a"))).unwrap()
    };
    let (plain, added) = (ids(&[]), ids(&["--add-special"]));
    assert_eq!(plain.len(), 1);
    assert_eq!(added[1..], plain);
}

#[test]
fn says_what_is_wrong_with_its_input() {
    let wrong = |input: &str| error_of(&run_with(&["detokenize"], input));
    assert_eq!(wrong("[1, 2048]"), "error: standard input: element 1 is 2048, the vocabulary has ids 0 to 2047");
    for input in ["", "{}", "[1, -1]", "[1.5]", "[1", "1 2", "[4294967296]", "[\"a\"]"] {
        assert!(wrong(input).starts_with("error: standard input: needs one JSON array of token ids"), "{input}");
    }
}
