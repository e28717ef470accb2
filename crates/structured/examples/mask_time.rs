//! What constraints cost with the vocabulary of a GGUF file: `cargo run --release -p structured --example mask_time -- FILE`
//!
//! Each shape is followed along a text that it allows, token by token, three times over.

use std::time::{Duration, Instant};

use engine::TokenMask;
use gguf_parser::Gguf;
use serde_json::json;
use structured::{Grammars, Shape};
use tokenizer::{EncodeOptions, Tokenizer};

fn resident_mib() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or_default();
    pages * 4096.0 / (1 << 20) as f64
}

fn main() {
    let path = std::env::args().nth(1).expect("a GGUF file");
    let file = std::fs::read(path).expect("the file");
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&file).expect("GGUF")).expect("a vocabulary");
    let (before, begin) = (resident_mib(), Instant::now());
    let grammars = Grammars::new(&tokenizer).expect("a trie");
    let (took, grown) = (begin.elapsed(), resident_mib() - before);
    println!("{} tokens: trie in {took:.0?}, {grown:.0} MiB more resident", tokenizer.n_vocab());
    let person = json!({ "type": "object", "additionalProperties": false, "required": ["name", "age", "tags"], "properties": {
        "name": { "type": "string", "maxLength": 40 }, "age": { "type": "integer", "minimum": 0, "maximum": 150 },
        "tags": { "type": "array", "items": { "enum": ["red", "green", "blue"] } } } });
    let answer = "{\"name\": \"Ada Lovelace, of London\", \"age\": 36, \"tags\": [\"red\", \"blue\"]}";
    let gbnf = "root ::= value\nvalue ::= object | string | [0-9]+\nobject ::= \"{\" ws pair (\",\" ws pair)* \"}\"\n\
        pair ::= string \":\" ws value\nstring ::= \"\\\"\" [^\"\\\\]* \"\\\"\"\nws ::= \" \"?";
    let nested = "{\"a\": \"some text, long enough\", \"b\": {\"c\": 12, \"d\": \"e\"}}";
    for (what, shape, text) in [
        ("any JSON object", Shape::JsonObject, answer),
        ("a schema", Shape::JsonSchema(person), answer),
        ("a regular expression", Shape::Regex("(.|\\n)*".into()), answer),
        ("GBNF with recursion", Shape::Gbnf(gbnf.into()), nested),
    ] {
        let begin = Instant::now();
        let compiled = grammars.compile(&shape).expect("the shape");
        let compile_time = begin.elapsed();
        let ids = tokenizer.encode(text, EncodeOptions::default());
        let mut times: Vec<Duration> = Vec::new();
        let mut begin_time = Duration::ZERO;
        for _ in 0..3 {
            let begin = Instant::now();
            let mut constraint = compiled.constraint();
            begin_time = begin.elapsed();
            let mut mask = TokenMask::new(tokenizer.n_vocab());
            for &id in &ids {
                let begin = Instant::now();
                mask.clear();
                constraint.allowed(&mut mask).expect("a mask");
                times.push(begin.elapsed());
                assert!(mask.allows(id), "{what}: {text}");
                constraint.accept(id).expect("an allowed token");
            }
        }
        times.sort_unstable();
        let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
        let mean = times.iter().sum::<Duration>() / times.len() as u32;
        println!(
            "{what}: compiled in {compile_time:.1?}, begun in {begin_time:.1?}; masks: median {median:.1?}, mean {mean:.1?}, longest {longest:.1?}"
        );
    }
}
