//! Calls among free text: whatever tokens are chosen, what the parser finds is a call of a tool, with arguments that fit the
//! schema of one that is strict; and text that begins no call is as free as without.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use engine::{Progress, TokenMask};
use gguf_parser::Gguf;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use serde_json::value::RawValue;
use structured::{Call, CallForm, CallParser, Compiled, Grammars, Piece, Shape, Tool, hidden_tags};
use test_support::tiny_model::{TagKind, TinyModel};
use tokenizer::{EncodeOptions, TokenId, Tokenizer};

struct Vocabulary {
    tokenizer: Tokenizer,
    grammars: Grammars,
}

impl Vocabulary {
    fn with(tags: &'static [(&'static str, TagKind)]) -> Self {
        let file = TinyModel { tags, ..TinyModel::default() }.build();
        let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap();
        let grammars = Grammars::new(&tokenizer).unwrap();
        Self { tokenizer, grammars }
    }

    fn ids(&self, text: &str) -> Vec<TokenId> {
        self.tokenizer.encode(text, EncodeOptions { parse_special: true, add_special: false })
    }

    /// What a parser is given of an answer.
    fn text(&self, ids: &[TokenId]) -> String {
        let mut decoder = self.tokenizer.stream_continuation().showing(&hidden_tags(&self.tokenizer));
        let text: String = ids.iter().map(|&id| decoder.push(id)).collect();
        text + &decoder.finish()
    }
}

/// Tags that the vocabulary has to spell, that are a token with text, and that are a token without.
static VOCABULARIES: LazyLock<[Vocabulary; 3]> = LazyLock::new(|| {
    use TagKind::{Control, UserDefined};
    [
        Vocabulary::with(&[]),
        Vocabulary::with(&[
            ("<tool_call>", UserDefined),
            ("</tool_call>", UserDefined),
            ("<|python_tag|>", UserDefined),
        ]),
        Vocabulary::with(&[("<tool_call>", Control), ("</tool_call>", Control), ("<|python_tag|>", Control)]),
    ]
});

fn tools() -> Vec<Tool> {
    let place = json!({ "type": "object", "properties": { "place": { "enum": ["Rome", "Oslo"] }, "days": { "type": "integer" } },
        "required": ["place"] });
    vec![
        Tool { name: "weather".into(), parameters: place.clone(), is_strict: true },
        Tool { name: "free".into(), parameters: place, is_strict: false },
    ]
}

fn compiled(vocabulary: &Vocabulary, form: CallForm, is_parallel: bool) -> Compiled {
    vocabulary.grammars.compile(&Shape::TextAndCalls { tools: tools(), form, is_parallel }).unwrap()
}

/// How much of the text is allowed, and whether the answer may end there.
fn follow(vocabulary: &Vocabulary, compiled: &Compiled, text: &str) -> (String, bool) {
    let mut constraint = compiled.constraint();
    let mut mask = TokenMask::new(vocabulary.tokenizer.n_vocab());
    let mut taken = Vec::new();
    for id in vocabulary.ids(text) {
        mask.clear();
        let progress = constraint.allowed(&mut mask).unwrap();
        if progress == Progress::Finished || !mask.allows(id) {
            return (vocabulary.text(&taken), progress != Progress::Unfinished);
        }
        constraint.accept(id).unwrap();
        taken.push(id);
    }
    mask.clear();
    (vocabulary.text(&taken), constraint.allowed(&mut mask).unwrap() != Progress::Unfinished)
}

/// `outside`: what is allowed, and what may not follow it.
#[track_caller]
fn check(form: CallForm, is_parallel: bool, inside: &[&str], outside: &[(&str, &str)]) {
    for (at, vocabulary) in VOCABULARIES.iter().enumerate() {
        let compiled = compiled(vocabulary, form, is_parallel);
        for text in inside {
            let all = vocabulary.text(&vocabulary.ids(text));
            assert_eq!(follow(vocabulary, &compiled, text), (all, true), "vocabulary {at}, {text:?}");
        }
        for (begin, rest) in outside {
            let (taken, may_end) = follow(vocabulary, &compiled, &format!("{begin}{rest}"));
            let begin = vocabulary.text(&vocabulary.ids(begin));
            // A merged token that reaches into what is not allowed is not taken.
            let is_all = begin.starts_with(&taken) && begin.len() - taken.len() <= 2;
            assert!(is_all, "vocabulary {at}, {begin:?}, not followed by {rest:?}: {taken:?}");
            assert!(!may_end, "vocabulary {at}, {begin:?}, not followed by {rest:?}");
        }
    }
}

const ROME: &str = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"Rome\"}}\n</tool_call>";
const FREE: &str =
    "<tool_call>\n{\"name\": \"free\", \"arguments\": {\"place\": [1, {\"x\": null}], \"<tool_\": -1.5}}\n</tool_call>";

#[test]
fn tagged_calls_anywhere_in_a_text() {
    let two = format!("I look.\n{ROME}\n{FREE}");
    let inside = [
        "",
        "Just <b>text</b>, {}, é, <tool_",
        "{\"name\": \"weather\", \"arguments\": {}}",
        "</tool alone",
        ROME,
        FREE,
        &format!("{ROME} and more <tool"),
    ];
    check(CallForm::Tagged, true, &[&inside[..], &[&two]].concat(), &[]);
    check(CallForm::Tagged, false, &inside, &[]);
    let begin = "Now <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"";
    let outside = [
        (begin, "Paris"),
        ("<tool_call>", "f()"),
        ("<tool_call>\n{\"name\": \"", "other"),
        ("<tool_call>\n{\"name\": \"free\", \"arguments\": ", "[1]"),
        ("<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"Rome\", \"", "other\": 1}"),
        ("<tool_call>\n{\"name\": \"weather\", \"arguments\": {", "}"),
        (&format!("{ROME}\n<tool_call>\n{{\"name\": \""), "x"),
    ];
    check(CallForm::Tagged, true, &[], &outside);
}

#[test]
fn where_only_one_call_is_wanted_none_begins_behind_it() {
    for vocabulary in &*VOCABULARIES {
        let compiled = compiled(vocabulary, CallForm::Tagged, false);
        let (taken, may_end) = follow(vocabulary, &compiled, &format!("{ROME}\n{ROME}"));
        assert!(
            taken.starts_with(&format!("{ROME}\n")) && !taken[ROME.len()..].contains("<tool_call>") && may_end,
            "{taken}"
        );
        let bare = "{\"name\": \"free\", \"parameters\": {}}";
        let compiled = self::compiled(vocabulary, CallForm::Bare, false);
        assert_eq!(follow(vocabulary, &compiled, &format!("{bare}; {bare}")), (bare.to_owned(), true));
    }
}

#[test]
fn bare_calls_where_an_answer_begins() {
    let rome = "{\"name\": \"weather\", \"parameters\": {\"place\": \"Rome\"}}";
    let free = "{\"name\": \"free\", \"parameters\": {\"a\": [{}]}}";
    let texts = ["", " \n", "Say {\"name\": 1}", "<b>", "\n x {", "<|python", "12", "a <|", "<tool_"];
    let calls = [rome, free, &format!("\n{free}"), &format!("<|python_tag|>{rome}"), &format!(" <|python_tag|>{free}")];
    check(CallForm::Bare, true, &[&texts[..], &calls, &[&format!("{rome}; {free}; {rome}")]].concat(), &[]);
    check(CallForm::Bare, false, &[&texts[..], &calls].concat(), &[]);
    let outside = [
        ("{\"", "a\""),
        ("{\"name\": \"", "other"),
        ("\n{\"name\": \"weather\", \"parameters\": {\"place\": \"", "x"),
        ("<|python_tag|>", "f.call(1)"),
        (&format!("{rome}; {{\"name\": \"weather\", \"parameters\": {{"), "}"),
    ];
    check(CallForm::Bare, true, &[], &outside);
}

/// Whether the arguments are an object of the tool's. Its numbers may be larger than any that a program would read.
fn is_valid(call: &Call) -> bool {
    let members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&call.arguments).expect("an object");
    let value = |name: &str| members.get(name).map(|value| value.get());
    match call.name.as_str() {
        "weather" => {
            members.keys().all(|name| ["place", "days"].contains(&name.as_str()))
                && value("place").is_some_and(|place| ["\"Rome\"", "\"Oslo\""].contains(&place))
                && value("days")
                    .is_none_or(|days| days.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit()))
        }
        "free" => true,
        _ => false,
    }
}

/// An answer of a model that would like to say `wish`, and says whatever else is allowed where that is not. Whether it came
/// to its end.
fn answer(vocabulary: &Vocabulary, compiled: &Compiled, wish: &str, seed: u64) -> (Vec<TokenId>, bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut constraint = compiled.constraint();
    let mut mask = TokenMask::new(vocabulary.tokenizer.n_vocab());
    let mut wish = vocabulary.ids(wish).into_iter().peekable();
    let mut taken = Vec::new();
    while taken.len() < 400 {
        mask.clear();
        let progress = constraint.allowed(&mut mask).unwrap();
        let is_end = |id: &TokenId| vocabulary.tokenizer.end_tokens().contains(id);
        let allowed: Vec<TokenId> =
            (0..mask.n_vocab() as TokenId).filter(|id| mask.allows(*id) && !is_end(id)).collect();
        let may_end = progress != Progress::Unfinished;
        if allowed.is_empty() || may_end && wish.peek().is_none() {
            assert!(may_end, "a dead end behind {:?}", vocabulary.text(&taken));
            return (taken, true);
        }
        let wished = wish.next().filter(|id| mask.allows(*id) && !is_end(id));
        let id = wished.unwrap_or_else(|| allowed[random.random_range(0..allowed.len())]);
        constraint.accept(id).unwrap();
        taken.push(id);
    }
    (taken, false)
}

fn any_wish() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        ROME,
        FREE,
        "<tool_call>",
        "</tool_call>",
        "<|python_tag|>",
        "<tool_",
        "\n{\"name\": \"weather\", \"arguments\": {\"place\": \"Paris\"}}\n",
        "{\"name\": \"weather\", \"parameters\": {\"place\": \"Oslo\", \"days\": 1",
        "{\"name\": \"free\", \"parameters\": {\"a\": [\"b\"]}}",
        "{\"name\": \"",
        "; ",
        "\"",
        "}",
        "\n",
        "Let me see. ",
        "é",
    ]);
    prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn every_call_is_valid_whatever_the_model_would_say(
        wish in any_wish(), seed: u64, at in 0usize..3, is_tagged: bool, is_parallel: bool,
    ) {
        let vocabulary = &VOCABULARIES[at];
        let form = if is_tagged { CallForm::Tagged } else { CallForm::Bare };
        let (ids, is_over) = answer(vocabulary, &compiled(vocabulary, form, is_parallel), &wish, seed);
        let answer = vocabulary.text(&ids);
        let mut parser = CallParser::new(tools().into_iter().map(|tool| tool.name).collect()).only(form);
        let pieces = [parser.push(&answer), parser.finish()].concat();
        let (mut n_calls, mut text) = (0, String::new());
        for piece in pieces {
            match piece {
                Piece::Call(call) => {
                    prop_assert!(is_valid(&call), "{call:?} in {answer:?}");
                    n_calls += 1;
                }
                Piece::Text(piece) => text.push_str(&piece),
            }
        }
        prop_assert!(is_parallel || n_calls <= 1, "{answer:?}");
        if is_over {
            // Nothing that begins a call is left over as text.
            let begins = match form {
                CallForm::Tagged => text.contains("<tool_call>"),
                CallForm::Bare => text.trim_start().starts_with('{') || n_calls > 0 && !text.is_empty(),
            };
            prop_assert!(!begins, "{text:?} of {answer:?}");
        }
    }

    #[test]
    fn text_without_a_call_is_untouched(
        text in "[^{<]{0,30}|([a-z {}\"\n]|<b>|</tool_call>|<tool_cal |é|\u{1F600}){0,20}", at in 0usize..3, is_tagged: bool,
    ) {
        let form = if is_tagged { CallForm::Tagged } else { CallForm::Bare };
        prop_assume!(is_tagged || !text.trim_start().starts_with('{'));
        let vocabulary = &VOCABULARIES[at];
        let ids = vocabulary.ids(&text);
        prop_assume!(!ids.iter().any(|&id| vocabulary.tokenizer.is_special(id)));
        let compiled = compiled(vocabulary, form, true);
        // As the vocabulary spells it: composed.
        prop_assert_eq!(follow(vocabulary, &compiled, &text), (vocabulary.text(&ids), true));
    }
}
