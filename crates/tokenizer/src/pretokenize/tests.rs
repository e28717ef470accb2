//! Each splitter against its published expression, run by `fancy-regex`, on text made of what splitters disagree about.

use super::*;
use fancy_regex::Regex;
use proptest::prelude::*;

/// Text over a small alphabet of awkward characters (every class, case folding, white space of each kind), with any
/// other character now and then.
fn awkward_text() -> impl Strategy<Value = String> {
    let odd = prop::sample::select(
        [
            "'s",
            "'S",
            "'t",
            "'re",
            "'Ve",
            "'LL",
            "'ll",
            "'d",
            "'m",
            "'\u{17F}",
            "'",
            "a",
            "Z",
            "é",
            "ß",
            "中",
            "龥",
            "한",
            "あ",
            "ก",
            "ै",
            "\u{301}",
            "\u{200D}",
            "1",
            "٣",
            "Ⅷ",
            "½",
            " ",
            "  ",
            "\t",
            "\n",
            "\r",
            "\r\n",
            "\u{A0}",
            "\u{85}",
            "\u{2028}",
            "\u{3000}",
            "\u{1F600}",
            ".",
            ",",
            "!",
            "«",
            "、",
            "$",
            "+",
            "_",
            "-",
            "\0",
            "\u{FFFD}",
            "\u{E000}",
            "\u{7FF}",
            "\u{800}",
        ]
        .as_slice(),
    )
    .prop_map(str::to_owned);
    let any = any::<char>().prop_map(String::from);
    prop::collection::vec(prop_oneof![6 => odd, 1 => any], 0..40).prop_map(|parts| parts.concat())
}

fn pieces(pre: PreTokenizer, text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    pre.split(text, |piece| pieces.push(piece));
    pieces
}

/// The pieces that a chain of expressions cuts `text` into, each match and each gap a piece.
fn cut_by<'t>(patterns: &[Regex], text: &'t str) -> Vec<&'t str> {
    let mut pieces = vec![text];
    for pattern in patterns {
        let mut cut = Vec::new();
        for piece in pieces {
            let mut rest = 0;
            for found in pattern.find_iter(piece) {
                let found = found.unwrap();
                cut.extend([&piece[rest..found.start()], found.as_str()]);
                rest = found.end();
            }
            cut.push(&piece[rest..]);
        }
        pieces = cut.into_iter().filter(|piece| !piece.is_empty()).collect();
    }
    pieces
}

fn agrees(pre: PreTokenizer, patterns: &[&str]) {
    let patterns: Vec<Regex> = patterns.iter().map(|pattern| Regex::new(pattern).unwrap()).collect();
    let mut config = ProptestConfig::with_cases(4000);
    config.failure_persistence = None;
    proptest!(config, |(text in awkward_text())| {
        prop_assert_eq!(pieces(pre, &text), cut_by(&patterns, &text));
    });
}

#[test]
fn qwen2_splits_as_its_expression() {
    agrees(PreTokenizer::Qwen2, &[qwen2::PATTERN]);
}

#[test]
fn qwen35_splits_as_its_expression() {
    agrees(PreTokenizer::Qwen35, &[qwen35::PATTERN]);
}

#[test]
fn llama_bpe_splits_as_its_expression() {
    agrees(PreTokenizer::LlamaBpe, &[llama_bpe::PATTERN]);
}

#[test]
fn gpt2_splits_as_its_expression() {
    agrees(PreTokenizer::Gpt2, &[gpt2::PATTERN]);
}

#[test]
fn deepseek_coder_splits_as_its_expressions() {
    agrees(PreTokenizer::DeepseekCoder, &deepseek_coder::PATTERNS);
}

#[test]
fn qwen2_is_not_gpt2() {
    assert_eq!(
        pieces(PreTokenizer::Qwen2, "I'LL pay 1234\n\n  now"),
        ["I", "'LL", " pay", " ", "1", "2", "3", "4", "\n\n", " ", " now"]
    );
    assert_eq!(
        pieces(PreTokenizer::Gpt2, "I'LL pay 1234\n\n  now"),
        ["I", "'", "LL", " pay", " 1234", "\n\n ", " now"]
    );
}
