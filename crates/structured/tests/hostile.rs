//! Shapes as nobody in good faith would send them: refused or followed, in time, without a panic and without an overrun stack.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use engine::{Progress, TokenMask};
use gguf_parser::Gguf;
use proptest::prelude::*;
use serde_json::{Value, json};
use structured::{Grammars, Shape};
use test_support::tiny_model::TinyModel;
use tokenizer::{EncodeOptions, Tokenizer};

/// Far above what any of it takes; below what it would take to try all ways through.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a thread has by default, and the engine's does.
const STACK_BYTES: usize = 2 << 20;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let file = TinyModel::default().build();
    Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap()
});
static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| Grammars::new(&TOKENIZER).unwrap());

/// Compiles a shape and goes some way with it, on a stack like the engine's.
fn survive(what: &str, shape: &Shape) {
    let begin = Instant::now();
    let outcome = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        thread.spawn_scoped(scope, || follow(shape)).unwrap().join().expect("no panic")
    });
    let took = begin.elapsed();
    println!("{what}: {outcome} in {took:?}");
    assert!(took < PATIENCE, "{what} took {took:?}");
}

fn follow(shape: &Shape) -> String {
    let compiled = match GRAMMARS.compile(shape) {
        Ok(compiled) => compiled,
        Err(error) => return format!("refused, {}", error.message.chars().take(60).collect::<String>()),
    };
    let mut constraint = compiled.constraint();
    let mut mask = TokenMask::new(TOKENIZER.n_vocab());
    let mut longest = Duration::ZERO;
    for step in 0..40u32 {
        mask.clear();
        let begin = Instant::now();
        let progress = match constraint.allowed(&mut mask) {
            Ok(progress) => progress,
            Err(error) => return format!("given up after {step} tokens, {error}, longest mask {longest:?}"),
        };
        longest = longest.max(begin.elapsed());
        let allowed: Vec<u32> = (0..mask.n_vocab() as u32).filter(|&id| mask.allows(id)).collect();
        if progress == Progress::Finished || allowed.is_empty() {
            return format!("complete after {step} tokens, longest mask {longest:?}");
        }
        // Some way through it, not always the same kind of token.
        let id = allowed[(step as usize * 7 + 3) % allowed.len()];
        if TOKENIZER.end_tokens().contains(&id) || constraint.accept(id).is_err() {
            return format!("ended after {step} tokens, longest mask {longest:?}");
        }
    }
    format!("followed, longest mask {longest:?}")
}

#[test]
fn hostile_shapes() {
    let schema = |schema: Value| Shape::JsonSchema(schema);
    let string = |pattern: &str| schema(json!({ "type": "string", "pattern": pattern }));
    let chain: String = (0..4000).map(|i| format!("r{i} ::= r{}\n", i + 1)).collect();
    let doubling: String = (0..60).map(|i| format!("a{i} ::= a{0} a{0}\n", i + 1)).collect();
    let properties: Value = (0..1500).map(|i| (format!("p{i}"), json!({ "type": "integer" }))).collect();
    let branches: Vec<Value> = (0..12)
        .map(|i| json!({ "anyOf": [{ "required": [format!("a{i}")] }, { "required": [format!("b{i}")] }] }))
        .collect();
    let many: Value = (0..1500).map(|i| (format!("p{i}"), json!({ "type": "integer" }))).collect();
    let slow = json!({ "type": "object", "properties": many });
    let mut parts: Value = (0..64).map(|i| (format!("p{i}"), json!({ "$ref": "#/$defs/slow" }))).collect();
    parts["last"] = json!({ "type": "string", "format": "colour" });
    // The deepest are tried first.
    let parts = (0..3).fold(parts, |inner, _| json!({ "a": { "properties": inner } }));
    for (what, shape) in [
        ("a repetition of repetitions", Shape::Regex("((a{1000}){1000}){1000}".into())),
        ("many ways through", Shape::Regex("(a|a)*(a|aa)*b".into())),
        ("a large automaton", Shape::Regex("[ab]*a[ab]{200}".into())),
        ("an intersection-like pattern", string("^(.*a.{50}b.*|.*c.{50}d.*)$")),
        ("a long expression", Shape::Regex("[ab]".repeat(15_000))),
        ("a long alternation", Shape::Regex(vec!["[ab]c"; 10_000].join("|"))),
        ("many signs behind each other", Shape::Regex(format!("a{}", "?".repeat(60_000)))),
        ("many options", Shape::Regex("a?".repeat(3000) + &"a".repeat(3000))),
        ("brackets at the limit", Shape::Regex(format!("{}a{}", "(".repeat(64), ")*".repeat(64)))),
        (
            "brackets in quotes",
            Shape::Gbnf(format!("root ::= {}root?{}", "(\")\" ".repeat(10_000), ")".repeat(10_000))),
        ),
        (
            "brackets in Lark's quotes",
            Shape::Lark(format!("start: {}\"a\"{}", "(\")\" ".repeat(9_000), ")".repeat(9_000))),
        ),
        ("brackets in classes", Shape::Regex(format!("{}a{}", "([)]".repeat(10_000), ")".repeat(10_000)))),
        ("a long chain of rules", Shape::Gbnf(format!("root ::= r0\n{chain}r4000 ::= \"a\""))),
        ("rules that double", Shape::Gbnf(format!("root ::= a0\n{doubling}a60 ::= \"a\""))),
        ("a rule of itself", Shape::Gbnf("root ::= root".into())),
        ("rules in a circle", Shape::Gbnf("root ::= a | b\na ::= b root?\nb ::= a root*".into())),
        ("much ambiguity", Shape::Gbnf("root ::= root root | \"a\" | \"a\" root | \"\"".into())),
        ("nothing, repeated", Shape::Gbnf("root ::= (\"\"*){0,2000} root?".into())),
        ("repetitions of recursion", Shape::Gbnf("root ::= (\"a\" root?){2000}{1}".replace("{1}", ""))),
        ("nested repetitions of recursion", Shape::Gbnf("root ::= (((\"a\" root?){2000}){2000}){2000}".into())),
        ("Lark of itself", Shape::Lark("start: start start | \"a\" | \"\"".into())),
        ("Lark of nothing", Shape::Lark("start: A\nA: /(?P<x>/".into())),
        ("a nested Lark", Shape::Lark(format!("start: {}", "%lark { start: \"a\" } ".repeat(50)))),
        ("a schema of itself", schema(json!({ "$ref": "#" }))),
        (
            "definitions in a circle",
            schema(
                json!({ "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "allOf": [{ "$ref": "#/$defs/a" }] } } }),
            ),
        ),
        (
            "a circle of unions",
            schema(
                json!({ "$ref": "#/$defs/a", "$defs": { "a": { "anyOf": [{ "$ref": "#/$defs/a" }, { "$ref": "#/$defs/a" }] } } }),
            ),
        ),
        ("a product of unions", schema(json!({ "type": "object", "allOf": branches }))),
        ("slow parts of a faulty whole", schema(json!({ "properties": parts, "$defs": { "slow": slow } }))),
        ("many properties", schema(json!({ "type": "object", "properties": properties }))),
        ("a long list", schema(json!({ "type": "array", "items": {}, "minItems": 1_000_000_000u64 }))),
        ("a long text", schema(json!({ "type": "string", "minLength": 1_000_000_000u64 }))),
        ("multiples", schema(json!({ "type": "number", "multipleOf": 1e-300 }))),
        ("limits of numbers", schema(json!({ "type": "integer", "minimum": -1e308, "maximum": 1e308 }))),
        (
            "patterns of names",
            schema(json!({ "type": "object", "patternProperties": { "(a|b)*c{500}": {}, "((((": {} } })),
        ),
    ] {
        survive(what, &shape);
    }
}

/// Every text so far is a state of its own to this automaton, which would take all memory in time.
#[test]
fn an_automaton_that_grows_with_every_token_ends_its_answer() {
    let compiled = GRAMMARS.compile(&Shape::Regex("([ab]*a[ab]{30}c)*".into())).unwrap();
    let mut constraint = compiled.constraint();
    let mut mask = TokenMask::new(TOKENIZER.n_vocab());
    let id = |text: &str| TOKENIZER.encode(text, EncodeOptions::default())[0];
    let (a, b) = (id("a"), id("b"));
    let mut bits = 1u32;
    for step in 0..25_000 {
        mask.clear();
        if let Err(error) = constraint.allowed(&mut mask) {
            println!("after {step} tokens: {error}");
            return;
        }
        // A linear shift register, which repeats no sequence of 31 bits.
        bits = bits >> 1 ^ if bits & 1 == 1 { 0xA300_0000 } else { 0 };
        let chosen = if bits & 1 == 1 { a } else { b };
        if let Err(error) = constraint.accept(chosen) {
            println!("after {step} tokens: {error}");
            return;
        }
    }
    panic!("it has states for 25,000 tokens");
}

fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(true)),
        Just(json!({})),
        Just(json!({ "$ref": "#" })),
        Just(json!({ "$ref": "#/$defs/a" })),
        Just(json!(null)),
        Just(json!(-3)),
        Just(json!(1e300)),
        Just(json!("string")),
        Just(json!({ "type": "string" })),
        Just(json!({ "type": ["integer", "null"] })),
        "[a-c(){}*+?|.\\\\]{0,6}".prop_map(Value::from),
    ];
    let names = vec![
        "type",
        "properties",
        "required",
        "items",
        "prefixItems",
        "anyOf",
        "oneOf",
        "allOf",
        "enum",
        "const",
        "pattern",
        "format",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minimum",
        "maximum",
        "multipleOf",
        "$defs",
        "$ref",
        "additionalProperties",
        "patternProperties",
        "minProperties",
        "maxProperties",
        "$id",
        "$schema",
        "a",
        "not",
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        let name = prop::sample::select(names.clone());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name, inner), 0..5)
                .prop_map(|all| all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ]
    })
}

fn any_grammar() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "root",
        " ::= ",
        "start",
        ": ",
        "a",
        "B",
        "\"x\"",
        "\"",
        "[a-z]",
        "[^",
        "/",
        "/a+/",
        "(",
        ")",
        "|",
        "*",
        "+",
        "?",
        "{2}",
        "{0,",
        "}",
        ".",
        "\n",
        " ",
        "#",
        "%json {}",
        "%ignore / /",
        "%lark {",
        "<[3]>",
        "\\",
        "é",
        "~",
        "&",
        "::",
    ]);
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_schema_makes_it_fail(schema in any_schema()) {
        follow(&Shape::JsonSchema(schema));
    }

    #[test]
    fn no_grammar_makes_it_fail(text in any_grammar(), kind in 0usize..3) {
        follow(&[Shape::Lark, Shape::Gbnf, Shape::Regex][kind](text));
    }
}
