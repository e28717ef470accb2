//! What holds for any text, any ids and any vocabulary.

use proptest::prelude::*;
use test_support::gguf::GgufBuilder;
use tokenizer::{EncodeOptions, SpecialIds, TokenType, Tokenizer, Vocab};
use unicode_normalization::UnicodeNormalization;

const PLAIN: EncodeOptions = EncodeOptions { parse_special: false, add_special: false };
const PARSED: EncodeOptions = EncodeOptions { parse_special: true, add_special: true };

fn alphabet() -> Vec<String> {
    let (mut next, mut tokens) = (0x100, Vec::new());
    for byte in 0..256u32 {
        let prints = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        tokens.push(char::from_u32(if prints { byte } else { next }).unwrap().to_string());
        next += u32::from(!prints);
    }
    tokens
}

/// A byte-level vocabulary whose merges are drawn at random from pairs of earlier tokens.
fn bpe(pre: &str, picks: &[(usize, usize)]) -> Tokenizer {
    let mut tokens = alphabet();
    let mut merges = Vec::new();
    for (left, right) in picks {
        // Mostly letters, so that merges meet the text.
        let pick = |at: usize| if at.is_multiple_of(3) { at % tokens.len() } else { 97 + at % 8 };
        let (left, right) = (&tokens[pick(*left)], &tokens[pick(*right)]);
        let (merge, result) = (format!("{left} {right}"), format!("{left}{right}"));
        if !tokens.contains(&result) {
            tokens.push(result);
            merges.push(merge);
        }
    }
    let n_ordinary = tokens.len();
    tokens.extend(["<|s|>", "<|e|>", "\u{1F600}!"].map(str::to_owned));
    let mut types = vec![TokenType::Normal; tokens.len()];
    types[n_ordinary..].copy_from_slice(&[TokenType::Control, TokenType::Control, TokenType::UserDefined]);
    Tokenizer::new(&Vocab {
        model: "gpt2",
        pre: Some(pre),
        tokens: tokens.iter().map(String::as_str).collect(),
        types: Some(types),
        merges: Some(merges.iter().map(String::as_str).collect()),
        special: SpecialIds { bos: Some(n_ordinary as u32), eos: Some(n_ordinary as u32 + 1), ..SpecialIds::default() },
        add_bos: Some(true),
        add_eos: Some(true),
        ..Vocab::default()
    })
    .unwrap()
}

/// A SentencePiece vocabulary with those scores for a few pieces, and all bytes.
fn spm(scores: &[f32], add_space_prefix: bool) -> Tokenizer {
    let pieces = ["▁", "a", "b", "▁a", "ab", "ba", "▁ab", "▁▁", "aa", "é", "a▁", "abab", "bé", "▁▁a"];
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    let mut types = vec![TokenType::Unknown, TokenType::Control, TokenType::Control];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    types.resize(259, TokenType::Byte);
    tokens.extend(pieces.map(str::to_owned));
    types.resize(tokens.len(), TokenType::Normal);
    let scores = (0..tokens.len()).map(|id| id.checked_sub(259).map_or(0.0, |at| scores[at % scores.len()])).collect();
    Tokenizer::new(&Vocab {
        model: "llama",
        tokens: tokens.iter().map(String::as_str).collect(),
        types: Some(types),
        scores: Some(scores),
        add_space_prefix: Some(add_space_prefix),
        ..Vocab::default()
    })
    .unwrap()
}

/// Text that merges a lot, with any character now and then, and special tokens.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => "[a-h ]{0,12}",
        1 => any::<String>(),
        1 => "[ab]{60,200}",
        1 => prop::sample::select(["<|s|>", "<|e|>", "</s>", "<s>", "\u{1F600}!", "e\u{301}", "  ", "\n", "▁", "é"].as_slice()).prop_map(String::from),
    ];
    prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

const PRES: [&str; 5] = ["qwen2", "qwen35", "llama-bpe", "gpt-2", "deepseek-coder"];

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let text: String = ids.iter().map(|id| stream.push(*id)).collect();
    text + &stream.finish()
}

proptest! {
    #[test]
    fn byte_level_ids_decode_to_the_text(
        text in text(),
        pre in prop::sample::select(PRES.as_slice()),
        picks in prop::collection::vec(any::<(usize, usize)>(), 0..60),
    ) {
        let tokenizer = bpe(pre, &picks);
        let ids = tokenizer.encode(&text, PLAIN);
        // Characters since Unicode 9 are left alone by the published normalisation: compare up to that.
        let decoded = tokenizer.decode(&ids);
        if pre.starts_with("qwen") {
            prop_assert_eq!(decoded.nfc().collect::<String>(), text.nfc().collect::<String>());
        } else {
            prop_assert_eq!(&decoded, &text);
        }
        prop_assert_eq!(streamed(&tokenizer, &ids), decoded);
        prop_assert!(ids.iter().all(|id| !tokenizer.is_special(*id)), "plain text gives no control token");
        prop_assert_eq!(tokenizer.encode(&text, PLAIN), ids, "what was remembered changes nothing");
    }

    #[test]
    fn special_tokens_are_added_once(text in text(), picks in prop::collection::vec(any::<(usize, usize)>(), 0..20)) {
        let tokenizer = bpe("llama-bpe", &picks);
        let (bos, eos) = (tokenizer.bos().unwrap(), tokenizer.eos().unwrap());
        let ids = tokenizer.encode(&text, PARSED);
        let bare = tokenizer.encode(&text, EncodeOptions { add_special: false, ..PARSED });
        prop_assert_eq!(ids.first(), Some(&bos));
        prop_assert_eq!(ids.last(), Some(&eos));
        let added = usize::from(bare.first() != Some(&bos)) + usize::from(bare.last() != Some(&eos));
        prop_assert_eq!(ids.len(), bare.len() + added);
        prop_assert_eq!(tokenizer.decode_with(&bare, true), text);
    }

    #[test]
    fn sentencepiece_ids_decode_to_the_text(
        text in text(),
        scores in prop::collection::vec(-9.0..9.0f32, 1..14),
        prefix: bool,
    ) {
        let tokenizer = spm(&scores, prefix);
        let ids = tokenizer.encode(&text, PLAIN);
        // U+2581 is how the file writes a space.
        prop_assert_eq!(tokenizer.decode(&ids), text.replace('▁', " "));
        prop_assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids));
        prop_assert!(ids.iter().all(|id| !tokenizer.is_special(*id)));
    }

    #[test]
    fn a_stream_gives_what_the_whole_gives(ids in prop::collection::vec(0..400u32, 0..60), show: bool, prefix: bool) {
        for tokenizer in [bpe("qwen2", &[]), spm(&[1.0], prefix)] {
            let mut stream = tokenizer.stream();
            let mut text = String::new();
            for id in &ids {
                let more = stream.push(*id);
                prop_assert!(std::str::from_utf8(more.as_bytes()).is_ok());
                text += &more;
            }
            text += &stream.finish();
            prop_assert_eq!(&text, &tokenizer.decode(&ids));
            // And that is the bytes of the tokens, as the standard library reads them.
            let bytes: Vec<u8> = ids
                .iter()
                .filter(|id| show || !tokenizer.is_special(**id))
                .flat_map(|id| tokenizer.token_bytes(*id).unwrap_or_default().to_vec())
                .collect();
            let expected = String::from_utf8_lossy(&bytes).into_owned();
            let decoded = tokenizer.decode_with(&ids, show);
            if tokenizer.kind() == "gpt2" {
                prop_assert_eq!(decoded, expected);
            } else {
                let stripped = expected.strip_prefix(' ').unwrap_or(&expected);
                prop_assert!(decoded == expected || decoded == stripped);
            }
        }
    }

    #[test]
    fn any_metadata_gives_a_tokenizer_or_an_error(
        model in prop::sample::select(["gpt2", "llama", "?"].as_slice()),
        mut tokens in prop::collection::vec("[abĠ▁ <>0x1A|]{0,5}", 0..12),
        types in prop::option::of(prop::collection::vec(-1..8i32, 0..14)),
        scores in prop::option::of(prop::collection::vec(any::<f32>(), 0..14)),
        merges in prop::option::of(prop::collection::vec("[ab Ġ]{0,4}", 0..6)),
        bos in prop::option::of(0..300u32),
        with_bytes: bool,
        text in text(),
    ) {
        if with_bytes {
            tokens.splice(0..0, alphabet());
        }
        let pad = |mut types: Vec<i32>| { if with_bytes { types.splice(0..0, [1; 256]); } types };
        let mut builder = GgufBuilder::new().str("tokenizer.ggml.model", model).str("tokenizer.ggml.pre", "gpt2");
        builder = builder.strs("tokenizer.ggml.tokens", &tokens);
        if let Some(types) = types {
            builder = builder.i32s("tokenizer.ggml.token_type", &pad(types));
        }
        if let Some(scores) = scores {
            builder = builder.f32s("tokenizer.ggml.scores", &scores);
        }
        if let Some(merges) = merges {
            builder = builder.strs("tokenizer.ggml.merges", &merges);
        }
        if let Some(bos) = bos {
            builder = builder.u32("tokenizer.ggml.bos_token_id", bos);
        }
        let bytes = builder.build();
        if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf_parser::Gguf::parse(&bytes).unwrap()) {
            let ids = tokenizer.encode(&text, PARSED);
            prop_assert!(ids.iter().all(|id| (*id as usize) < tokenizer.n_vocab()));
            tokenizer.decode(&ids);
        }
    }
}

#[test]
fn ids_outside_the_vocabulary_have_no_text() {
    let tokenizer = bpe("qwen2", &[]);
    assert_eq!(tokenizer.decode(&[97, 4_000_000_000, u32::MAX, 98]), "ab");
    assert_eq!(tokenizer.token_bytes(u32::MAX), None);
    assert!(!tokenizer.is_special(u32::MAX));
}

#[test]
fn a_character_spread_over_tokens_comes_with_the_last() {
    let tokenizer = bpe("qwen2", &[]);
    let ids = tokenizer.encode("a\u{1F600}b", PLAIN);
    let mut stream = tokenizer.stream();
    let parts: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
    assert_eq!(parts, ["a", "", "", "", "\u{1F600}", "b"]);
    assert_eq!(stream.finish(), "");

    let mut stream = tokenizer.stream();
    // Two bytes of an emoji, then a letter: one U+FFFD for the unfinished character, at once.
    assert_eq!([0xF0, 0x9F].map(|byte| stream.push(byte)), ["", ""]);
    assert_eq!(stream.push(u32::from(b'x')), "\u{FFFD}x");
    assert_eq!(stream.push(0xE4), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
}

#[test]
fn a_continued_text_keeps_its_leading_space() {
    let tokenizer = spm(&[1.0], true);
    let ids = tokenizer.encode("a", PLAIN);
    let text = |mut stream: tokenizer::StreamDecoder| ids.iter().map(|id| stream.push(*id)).collect::<String>();
    assert_eq!(text(tokenizer.stream()), "a");
    assert_eq!(text(tokenizer.stream_continuation()), " a");
}
