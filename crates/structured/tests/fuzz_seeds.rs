//! The seeds of the fuzz target `answer_shape`, under `fuzz/seeds/answer_shape/`: `ok_` shapes are understood, `bad_` shapes
//! are refused. A byte for the kind, a byte that the target follows answers by, the text.

use std::path::PathBuf;

use gguf_parser::Gguf;
use structured::{Grammars, Shape};
use test_support::tiny_model::TinyModel;
use tokenizer::Tokenizer;

#[test]
fn seeds_are_as_named() {
    let file = TinyModel::default().build();
    let grammars = Grammars::new(&Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap()).unwrap();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/answer_shape");
    let mut kinds = [0; 4];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let seed = std::fs::read(&path).unwrap();
        let text = String::from_utf8(seed[2..].to_vec()).unwrap();
        let kind = usize::from(seed[0] % 4);
        let shape = match kind {
            0 => Shape::JsonSchema(serde_json::from_str(&text).unwrap()),
            1 => Shape::Regex(text),
            2 => Shape::Lark(text),
            _ => Shape::Gbnf(text),
        };
        kinds[kind] += 1;
        let name = path.file_name().unwrap().to_str().unwrap();
        let outcome = grammars.compile(&shape);
        assert_eq!(outcome.is_ok(), name.starts_with("ok_"), "{name}: {outcome:?}");
    }
    assert!(kinds.iter().all(|&n| n > 0), "{kinds:?}");
}
