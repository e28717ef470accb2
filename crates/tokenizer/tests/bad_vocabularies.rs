//! Vocabularies that are wrong, each refused with the error that names the key, what was expected and what was found.

use gguf_parser::Gguf;
use test_support::gguf::{GgufBuilder, array, string};
use tokenizer::{ChatTemplate, TokenType, Tokenizer, TokenizerError, Vocab};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";

/// The 256 bytes in GPT-2's alphabet, `ab`, and a control token: a whole byte-level vocabulary.
fn bpe_tokens() -> Vec<String> {
    let (mut next, mut tokens) = (0x100, Vec::new());
    for byte in 0..256u32 {
        let prints = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        tokens.push(char::from_u32(if prints { byte } else { next }).unwrap().to_string());
        next += u32::from(!prints);
    }
    tokens.extend(["ab", "<|im_end|>"].map(str::to_owned));
    tokens
}

/// A byte-level vocabulary without those keys.
fn bpe_without(keys: &[&str]) -> GgufBuilder {
    let tokens = bpe_tokens();
    let mut types = vec![1; tokens.len()];
    *types.last_mut().unwrap() = 3;
    let mut builder = GgufBuilder::new();
    let mut add = |key: &str, value: &dyn Fn(GgufBuilder) -> GgufBuilder| {
        if !keys.contains(&key) {
            builder = value(builder.clone());
        }
    };
    add(MODEL, &|builder| builder.str(MODEL, "gpt2"));
    add(PRE, &|builder| builder.str(PRE, "qwen2"));
    add(TOKENS, &|builder| builder.strs(TOKENS, &tokens));
    add(TYPES, &|builder| builder.i32s(TYPES, &types));
    add(MERGES, &|builder| builder.strs(MERGES, &["a b"]));
    builder
}

/// A SentencePiece vocabulary without those keys: `<unk>`, `<s>`, `</s>`, `a`, `<0x0A>`.
fn spm_without(keys: &[&str]) -> GgufBuilder {
    let mut builder = GgufBuilder::new().str(MODEL, "llama");
    let mut add = |key: &str, value: &dyn Fn(GgufBuilder) -> GgufBuilder| {
        if !keys.contains(&key) {
            builder = value(builder.clone());
        }
    };
    add(TOKENS, &|builder| builder.strs(TOKENS, &["<unk>", "<s>", "</s>", "a", "<0x0A>"]));
    add(TYPES, &|builder| builder.i32s(TYPES, &[2, 3, 3, 1, 6]));
    add(SCORES, &|builder| builder.f32s(SCORES, &[0.0, 0.0, 0.0, -1.0, 0.0]));
    builder
}

fn load(builder: GgufBuilder) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_gguf(&Gguf::parse(&builder.build()).unwrap())
}

#[track_caller]
fn check(builder: GgufBuilder, expected: &str) {
    let error = load(builder).expect_err("accepted").to_string();
    assert_eq!(error, expected);
}

#[test]
fn accepts_the_vocabularies_that_the_others_are_made_from() {
    assert_eq!(load(bpe_without(&[])).unwrap().n_vocab(), 258);
    let spm = load(spm_without(&[])).unwrap();
    assert_eq!((spm.bos(), spm.eos(), spm.end_tokens()), (Some(1), Some(2), &[2][..]));
    assert_eq!(load(bpe_without(&[TYPES])).unwrap().token_type(257), Some(TokenType::Normal));
}

#[test]
fn rejects_a_missing_or_unknown_kind() {
    check(bpe_without(&[MODEL]), r#"key "tokenizer.ggml.model": missing, expected string"#);
    check(bpe_without(&[MODEL]).u32(MODEL, 1), r#"key "tokenizer.ggml.model": expected string, got u32 1"#);
    check(
        bpe_without(&[MODEL]).str(MODEL, "bert"),
        r#"tokenizer.ggml.model: expected one of "gpt2", "llama", got "bert""#,
    );
}

#[test]
fn rejects_a_missing_or_unknown_pre_tokenizer() {
    let known = r#""qwen2", "qwen35", "llama-bpe", "llama3", "llama-v3", "gpt-2", "gpt2", "deepseek-coder""#;
    check(bpe_without(&[PRE]), &format!(r#"tokenizer.ggml.pre: expected one of {known}, got """#));
    check(
        bpe_without(&[PRE]).str(PRE, "tekken"),
        &format!(r#"tokenizer.ggml.pre: expected one of {known}, got "tekken""#),
    );
}

#[test]
fn rejects_missing_lists() {
    check(bpe_without(&[TOKENS]), r#"key "tokenizer.ggml.tokens": missing, expected array"#);
    check(
        bpe_without(&[MERGES]),
        "tokenizer.ggml.merges: expected a list of merges for a gpt2 vocabulary, got nothing",
    );
    check(
        spm_without(&[SCORES]),
        "tokenizer.ggml.scores: expected a list of scores for a llama vocabulary, got nothing",
    );
}

#[test]
fn rejects_lists_of_the_wrong_type() {
    check(bpe_without(&[TOKENS]).u32(TOKENS, 7), r#"key "tokenizer.ggml.tokens": expected array, got u32 7"#);
    check(
        bpe_without(&[TOKENS]).i32s(TOKENS, &[1, 2]),
        r#"key "tokenizer.ggml.tokens": expected array of string, got array of i32"#,
    );
    check(
        bpe_without(&[TYPES]).strs(TYPES, &["1"]),
        r#"key "tokenizer.ggml.token_type": expected array of i32, got array of string"#,
    );
    check(
        spm_without(&[SCORES]).strs(SCORES, &["1"]),
        r#"key "tokenizer.ggml.scores": expected array of f32, got array of string"#,
    );
    check(
        bpe_without(&[MERGES]).f32s(MERGES, &[1.0]),
        r#"key "tokenizer.ggml.merges": expected array of string, got array of f32"#,
    );
    let nested = array(9, 1, array(8, 1, string(b"a")));
    check(
        bpe_without(&[TOKENS]).raw(TOKENS, 9, &nested),
        r#"key "tokenizer.ggml.tokens": expected array of string, got array of array"#,
    );
}

#[test]
fn rejects_an_empty_vocabulary() {
    check(
        bpe_without(&[TOKENS, TYPES]).strs::<&str>(TOKENS, &[]),
        "tokenizer.ggml.tokens: expected at least one token, got an empty list",
    );
}

#[test]
fn rejects_lists_of_unequal_length() {
    check(
        bpe_without(&[TYPES]).i32s(TYPES, &[1]),
        "tokenizer.ggml.token_type: expected 258 entries, as many as tokens, got 1",
    );
    check(
        spm_without(&[SCORES]).f32s(SCORES, &[0.0; 6]),
        "tokenizer.ggml.scores: expected 5 entries, as many as tokens, got 6",
    );
}

#[test]
fn rejects_two_tokens_of_the_same_text() {
    let with = |more: &[&str], types: &[i32]| {
        let mut tokens = bpe_tokens();
        let n_before = tokens.len();
        tokens.extend(more.iter().map(|token| (*token).to_owned()));
        let types: Vec<i32> = (0..n_before - 1).map(|_| 1).chain([3]).chain(types.iter().copied()).collect();
        bpe_without(&[TOKENS, TYPES]).strs(TOKENS, &tokens).i32s(TYPES, &types)
    };
    let refused = |token: &str, first: u32, second: u32| {
        format!("tokenizer.ggml.tokens: expected distinct tokens, got {token:?} at {first} and at {second}")
    };
    check(with(&["ab"], &[1]), &refused("ab", 256, 258));
    check(with(&["ab"], &[3]), &refused("ab", 256, 258));
    check(with(&["<|im_end|>"], &[4]), &refused("<|im_end|>", 257, 258));
    check(with(&["<|im_end|>"], &[1]), &refused("<|im_end|>", 257, 258));
    assert!(load(with(&["", ""], &[5, 5])).is_ok(), "places kept free have no text");
}

#[test]
fn rejects_types_that_the_format_does_not_define() {
    let mut types = [1; 258];
    types[7] = 9;
    check(
        bpe_without(&[TYPES]).i32s(TYPES, &types),
        "tokenizer.ggml.token_type[7]: expected a type from 0 to 6, got 9",
    );
    types[7] = -1;
    check(
        bpe_without(&[TYPES]).i32s(TYPES, &types),
        "tokenizer.ggml.token_type[7]: expected a type from 0 to 6, got -1",
    );
}

#[test]
fn rejects_merges_that_are_no_pairs() {
    for merge in ["ab", "", " ", "a ", " a"] {
        check(
            bpe_without(&[MERGES]).strs(MERGES, &["a b", merge]),
            &format!("tokenizer.ggml.merges[1]: expected two parts with a space between, got {merge:?}"),
        );
    }
}

#[test]
fn rejects_merges_of_or_to_unknown_tokens() {
    for (merge, unknown) in [("a c", "ac"), ("ac b", "ac"), ("a bc", "bc"), ("a b c", "b c"), ("<|im_ end|>", "<|im_")]
    {
        check(
            bpe_without(&[MERGES]).strs(MERGES, &["a b", merge]),
            &format!(
                "tokenizer.ggml.merges[1]: expected parts and result to be tokens, got {merge:?}, and {unknown:?} is none"
            ),
        );
    }
}

#[test]
fn rejects_a_vocabulary_that_cannot_spell_every_text() {
    let mut tokens = bpe_tokens();
    tokens[0x0A] = "no newline".to_owned();
    check(
        bpe_without(&[TOKENS]).strs(TOKENS, &tokens),
        "tokenizer.ggml.tokens: expected a token for each byte of UTF-8, got none for 0x0A",
    );
    check(
        spm_without(&[TYPES]).i32s(TYPES, &[1, 3, 3, 1, 6]),
        "tokenizer.ggml.tokens: expected a token for each byte of UTF-8, got none for 0x00",
    );
}

#[test]
fn rejects_byte_tokens_that_name_no_byte() {
    for token in ["<0x0G>", "<0x100>", "0x0A", "<0x+A>", "<0x>", "é"] {
        check(
            spm_without(&[TOKENS]).strs(TOKENS, &["<unk>", "<s>", "</s>", "a", token]),
            &format!("tokenizer.ggml.tokens[4]: expected a byte token such as <0x0A>, got {token:?}"),
        );
    }
}

#[test]
fn rejects_a_piece_that_is_too_long_to_take_apart() {
    let long = "a".repeat(300);
    check(
        spm_without(&[TOKENS]).strs(TOKENS, &["<unk>", "<s>", "</s>", &long, "<0x0A>"]),
        "tokenizer.ggml.tokens: expected at most 256 bytes in a token, got 300",
    );
}

#[test]
fn rejects_scores_without_an_order() {
    check(
        spm_without(&[SCORES]).f32s(SCORES, &[0.0, 0.0, 0.0, f32::NAN, 0.0]),
        "tokenizer.ggml.scores[3]: expected a number, got NaN",
    );
}

#[test]
fn rejects_special_ids_outside_the_vocabulary() {
    for name in ["bos", "eos", "eot", "eom", "unknown"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        check(bpe_without(&[]).u32(&key, 258), &format!("{key}: expected an id below 258, got 258"));
        check(bpe_without(&[]).i32(&key, -1), &format!(r#"key "{key}": expected u32, got -1"#));
        check(bpe_without(&[]).u64(&key, 1 << 40), &format!(r#"key "{key}": expected u32, got 1099511627776"#));
        check(bpe_without(&[]).str(&key, "1"), &format!(r#"key "{key}": expected u32, got string "1""#));
        assert!(load(bpe_without(&[]).u32(&key, 257)).is_ok());
    }
}

#[test]
fn rejects_a_special_token_that_is_to_be_added_but_not_named() {
    for name in ["bos", "eos"] {
        let flag = format!("tokenizer.ggml.add_{name}_token");
        check(
            bpe_without(&[]).bool(&flag, true),
            &format!("tokenizer.ggml.{name}_token_id: expected an id because {flag} is true, got nothing"),
        );
        check(bpe_without(&[]).str(&flag, "yes"), &format!(r#"key "{flag}": expected bool, got string "yes""#));
    }
}

#[test]
fn rejects_special_tokens_that_are_too_long_to_search_for() {
    let vocab = |len: usize| {
        let long = "x".repeat(len);
        let mut tokens = bpe_tokens();
        tokens.push(long);
        let mut types = vec![1; tokens.len()];
        types[258] = 4;
        bpe_without(&[TOKENS, TYPES]).strs(TOKENS, &tokens).i32s(TYPES, &types)
    };
    check(vocab(5 << 20), "tokenizer.ggml.tokens: expected at most 4194304 bytes of special tokens, got 5242880");
}

#[test]
fn rejects_a_template_that_is_no_template() {
    let error = |builder: GgufBuilder| {
        let bytes = builder.build();
        let gguf = Gguf::parse(&bytes).unwrap();
        ChatTemplate::from_gguf(&gguf, &Tokenizer::from_gguf(&gguf).unwrap()).unwrap_err().to_string()
    };
    let key = "tokenizer.chat_template";
    assert_eq!(error(bpe_without(&[]).u32(key, 1)), r#"key "tokenizer.chat_template": expected string, got u32 1"#);
    assert_eq!(
        error(bpe_without(&[]).str(key, "{% if %}")),
        "key tokenizer.chat_template: chat template: syntax error: unexpected end of block, line 1"
    );
    let bytes = bpe_without(&[]).build();
    let gguf = Gguf::parse(&bytes).unwrap();
    assert!(ChatTemplate::from_gguf(&gguf, &Tokenizer::from_gguf(&gguf).unwrap()).unwrap().is_none());
}

#[test]
fn rejects_an_unknown_kind_before_it_looks_at_the_rest() {
    let vocab = Vocab { model: "rwkv", ..Vocab::default() };
    assert!(matches!(Tokenizer::new(&vocab), Err(TokenizerError::UnknownModel { .. })));
}
