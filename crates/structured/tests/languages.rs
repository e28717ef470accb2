//! Which texts a shape allows: each token of a text must be allowed in its turn, and the end where the text is complete.

use std::sync::LazyLock;

use engine::{Progress, TokenMask};
use gguf_parser::Gguf;
use serde::Serialize as _;
use serde_json::ser::PrettyFormatter;
use serde_json::{Value, json};
use structured::{CallForm, Compiled, Grammars, Shape, Tool};
use test_support::tiny_model::TinyModel;
use tokenizer::{EncodeOptions, Tokenizer};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let file = TinyModel::default().build();
    Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap()
});
static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| Grammars::new(&TOKENIZER).unwrap());

fn compile(shape: &Shape) -> Compiled {
    GRAMMARS.compile(shape).unwrap_or_else(|error| panic!("{shape:?}: {error}"))
}

/// How much of the text is allowed, in bytes, and whether the answer may end there.
fn follow(compiled: &Compiled, text: &str) -> (usize, bool) {
    let mut constraint = compiled.constraint();
    let mut mask = TokenMask::new(TOKENIZER.n_vocab());
    let mut n_bytes = 0;
    for id in TOKENIZER.encode(text, EncodeOptions::default()) {
        mask.clear();
        let progress = constraint.allowed(&mut mask).unwrap();
        if progress == Progress::Finished || !mask.allows(id) {
            return (n_bytes, progress != Progress::Unfinished);
        }
        constraint.accept(id).unwrap();
        n_bytes += TOKENIZER.token_bytes(id).unwrap().len();
    }
    mask.clear();
    (n_bytes, constraint.allowed(&mut mask).unwrap() != Progress::Unfinished)
}

fn allows(compiled: &Compiled, text: &str) -> bool {
    follow(compiled, text) == (text.len(), true)
}

fn check(shape: Shape, inside: &[&str], outside: &[&str]) {
    let compiled = compile(&shape);
    for text in inside {
        assert!(allows(&compiled, text), "{shape:?} does not allow {text:?}: {:?}", follow(&compiled, text));
    }
    for text in outside {
        assert!(!allows(&compiled, text), "{shape:?} allows {text:?}");
    }
}

#[test]
fn any_json_object_and_nothing_else() {
    check(
        Shape::JsonObject,
        &["{}", "{\"a\": [1, null, {\"b\": \"c\\n\"}]}", "{\n  \"a\" : 1.5e3\n}"],
        &["[]", "{", "1", "{}{}", "{\"a\": }", "", "x{}"],
    );
}

#[test]
fn what_a_schema_allows() {
    let schema = json!({
        "type": "object",
        "properties": {
            "n": { "type": "integer", "minimum": 3, "maximum": 12 },
            "of": { "enum": ["a", "bc"] },
            "list": { "type": "array", "items": { "$ref": "#/$defs/flag" }, "maxItems": 2 },
        },
        "required": ["n"],
        "additionalProperties": false,
        "$defs": { "flag": { "type": "boolean" } },
    });
    check(
        Shape::JsonSchema(schema),
        &["{\"n\": 3}", "{\"n\":12,\"of\":\"bc\"}", "{\"n\": 7, \"list\": [true, false]}"],
        &[
            "{}",
            "{\"n\": 2}",
            "{\"n\": 3, \"x\": 1}",
            "{\"n\": 3, \"of\": \"b\"}",
            "{\"n\": 3, \"list\": [true,true,true]}",
        ],
    );
    check(Shape::JsonSchema(json!(true)), &["1", "{}"], &["x"]);
}

#[test]
fn a_text_may_be_written_on_one_line_or_on_indented_lines_but_not_be_filled_up_with_whitespace() {
    let compiled = compile(&Shape::JsonObject);
    let value = json!({ "a": [1, { "b": "c" }], "d": {} });
    for text in [value.to_string(), format!("{value:#}"), format!("{value:#}").replace('\n', "\r\n")] {
        assert!(allows(&compiled, &text), "{text}");
    }
    let mut with_tabs = serde_json::Serializer::with_formatter(Vec::new(), PrettyFormatter::with_indent(b"\t"));
    value.serialize(&mut with_tabs).unwrap();
    assert!(allows(&compiled, std::str::from_utf8(&with_tabs.into_inner()).unwrap()));
    for filled in ["{  }", "{\n\n}", "{ \n}", &format!("{{\n{}}}", " ".repeat(17))] {
        assert!(!allows(&compiled, filled), "{filled:?}");
    }
}

#[test]
fn choices_expressions_and_lark() {
    let choices = ["yes", "yes, but", "a/b.c+\"\n"].map(String::from).to_vec();
    check(Shape::Choice(choices), &["yes", "yes, but", "a/b.c+\"\n"], &["", "ye", "yesyes", "a/bxc+\"\n"]);
    check(Shape::Regex(r"\d{3}-[a-c]+/".into()), &["123-abc/"], &["12-abc/", "123-abd/", "123-abc/x"]);
    let lark = "start: item (\",\" item)*\nitem: NAME \"=\" INT\nNAME: /[a-z]+/\nINT: /[0-9]+/";
    check(Shape::Lark(lark.into()), &["a=1", "ab=12,c=3"], &["a=", "a=1,", "=1"]);
}

#[test]
fn gbnf_without_recursion_has_exactly_its_language() {
    let gbnf = r##"
        # greetings
        root ::= greeting ", " name{1,2} [.!]? # the end
        greeting ::= "hello" |
            "h" "e"* "llo"
            | "\x68i\t"
        name ::= [^a-z\]"] ( "x" | "xy" | "" ) "y" "-"{2}
    "##;
    check(
        Shape::Gbnf(gbnf.into()),
        &["hello, Axy--", "heeello, Axyy--!", "hi\t, \u{e9}y--By--.", "hllo, 1xy--"],
        &["hi, Ay--", "hello, ay--", "hello, ]y--", "hello, Ay-", "hello, Ay--By--Cy--", "hello, Ay--?"],
    );
    // Each needs the shorter of two ways through.
    check(Shape::Gbnf("root ::= a \"b\"\na ::= \"a\" | \"ab\"".into()), &["ab", "abb"], &["a", "abbb"]);
    check(Shape::Gbnf("root ::= .* \"x\"".into()), &["x", "xx\nx"], &["", "xy"]);
}

#[test]
fn gbnf_with_recursion() {
    let json = r##"
        root   ::= object
        value  ::= object | array | string | number | ("true" | "false" | "null") ws
        object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
        array  ::= "[" ws ( value ("," ws value)* )? "]" ws
        string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
        number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
        ws ::= | " " | "\n" [ \t]{0,20}
    "##;
    check(
        Shape::Gbnf(json.into()),
        &["{}", "{\"a\": [1, -2.5e+3, \"x\\u00e9\"], \"b\": {\"c\": null}} ", "{\n  \"a\":[]\n}"],
        &["{", "[]", "{\"a\": 01}", "{\"a\": \"\\x\"}", "{}}"],
    );
    check(Shape::Gbnf("root ::= \"(\" root? \")\" root?".into()), &["()", "(())()", "((()())())"], &["", "(", "())"]);
    // It can be left at once: an alternative of nothing beside a recursive one.
    check(Shape::Gbnf("root ::= \"\"".into()), &[""], &["a"]);
    check(Shape::Gbnf("root ::= | \"a\" root \"b\"".into()), &["", "ab", "aabb"], &["a", "aab"]);
}

/// Groups within each other, each with an alternative, repeated, and recursive at the innermost.
fn in_groups(n: usize) -> String {
    format!("root ::=\n {} root?{}", "(\"a\" | ".repeat(n), "){1,2}".repeat(n))
}

#[test]
fn groups_may_be_nested_up_to_the_limit() {
    check(Shape::Gbnf(in_groups(28)), &["a", "aa"], &["b"]);
    let regular = format!("root ::= {}\"b\"{}", "(\"a\" | ".repeat(28), ")*".repeat(28));
    check(Shape::Gbnf(regular), &["", "b", "abab"], &["c"]);
    let quoted = format!("root ::= {}root?{}", "(\")\" ".repeat(28), ")".repeat(28));
    check(Shape::Gbnf(quoted), &[&")".repeat(28)], &[")"]);
    check(Shape::Regex("a\\\\".into()), &["a\\"], &["a"]);
}

fn tools() -> Vec<Tool> {
    let place = json!({ "type": "object", "properties": { "place": { "enum": ["Rome", "Oslo"] } }, "required": ["place"],
        "additionalProperties": false });
    vec![
        Tool { name: "weather".into(), parameters: place, is_strict: true },
        Tool { name: "time \"now\"".into(), parameters: json!({}), is_strict: false },
    ]
}

#[test]
fn calls_in_both_forms() {
    let calls = |form, max_calls| Shape::Calls { tools: tools(), form, max_calls };
    let tagged = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"Rome\"}}\n</tool_call>";
    let other = "<tool_call>\n{\"name\": \"time \\\"now\\\"\", \"arguments\": {}}\n</tool_call>";
    let two = format!("{tagged}\n{other}");
    check(calls(CallForm::Tagged, 1), &[tagged, other], &[&two, "", "no"]);
    check(calls(CallForm::Tagged, 2), &[tagged, &two], &[&format!("{two}\n{tagged}")]);
    let bare = "{\"name\": \"weather\", \"parameters\": {\"place\": \"Oslo\"}}";
    check(calls(CallForm::Bare, 2), &[bare, &format!("{bare}; {bare}")], &[&format!("{bare};"), tagged]);
}

#[test]
fn every_answer_has_a_constraint_of_its_own() {
    let compiled = compile(&Shape::Regex("ab|cd".into()));
    let mut first = compiled.constraint();
    let mut mask = TokenMask::new(TOKENIZER.n_vocab());
    let id = |text: &str| TOKENIZER.encode(text, EncodeOptions::default())[0];
    first.allowed(&mut mask).unwrap();
    first.accept(id("a")).unwrap();
    assert!(allows(&compiled, "cd"));
    mask.clear();
    first.allowed(&mut mask).unwrap();
    assert!(mask.allows(id("b")) && !mask.allows(id("d")));
}

fn fault(shape: Shape) -> String {
    let Err(error) = GRAMMARS.compile(&shape) else { return format!("ACCEPTED {shape:?}") };
    let tool = error.tool.map(|tool| format!("tool {tool}: ")).unwrap_or_default();
    format!("{tool}{error}")
}

#[test]
fn faults_say_what_and_where() {
    let schema = |schema: Value| Shape::JsonSchema(schema);
    let calls = |parameters: Value| {
        let tools = [tools(), vec![Tool { name: "bad".into(), parameters, is_strict: true }]].concat();
        Shape::Calls { tools, form: CallForm::Bare, max_calls: 1 }
    };
    let deep = (0..70).fold(json!({}), |inner, _| json!({ "items": inner }));
    let faults = [
        schema(json!([])),
        schema(json!({ "type": "object", "properties": { "a/b": { "not": {} }, "c": { "if": {}, "then": {} } } })),
        schema(json!({ "items": { "anyOf": [{ "type": "string" }, { "uniqueItems": true }] } })),
        schema(json!({ "properties": { "a": { "type": "text" } } })),
        schema(json!({ "properties": { "a": { "type": "string", "pattern": "(" } } })),
        schema(json!({ "properties": { "a": { "type": "string", "format": "colour" } } })),
        schema(json!({ "properties": { "a": { "$ref": "#/$defs/b" } } })),
        schema(json!({ "properties": { "a": { "$ref": "https://example.com/b.json" } } })),
        schema(json!({ "type": "object", "properties": { "a": { "type": "integer", "minimum": 5, "maximum": 4 } },
            "required": ["a"] })),
        schema(json!({ "oneOf": [{ "minLength": 1 }, { "maxLength": 5 }] })),
        schema(json!({ "enum": [] })),
        schema(json!({ "x-guidance": { "lenient": true } })),
        schema(deep),
        schema(json!({ "enum": ["x".repeat(70_000)] })),
        calls(json!({ "properties": { "a": { "not": {} } } })),
        calls(json!({ "properties": { "a": { "type": "string", "pattern": "(" } } })),
        calls(json!({ "type": "array" })),
        Shape::Choice(Vec::new()),
        Shape::Choice(vec![String::new()]),
        Shape::Regex("a(b".into()),
        Shape::Regex("(".repeat(65)),
        Shape::Regex(String::new()),
        Shape::Lark("start: other".into()),
        Shape::Lark("start: \"a\"\nfoo bar".into()),
        Shape::Gbnf("object ::= \"a\"".into()),
        Shape::Gbnf("root ::= \"a\" other\n".into()),
        Shape::Gbnf("root ::= \"a\"\nroot ::= \"b\"".into()),
        Shape::Gbnf("root ::= (\"a\"".into()),
        Shape::Gbnf("root ::= \"a".into()),
        Shape::Gbnf("root ::= [b-a]".into()),
        Shape::Gbnf("root ::= \"\\q\"".into()),
        Shape::Gbnf("root ::= \"a\"{3,2}".into()),
        Shape::Gbnf("root ::= \"a\"{5000}".into()),
        Shape::Gbnf("root ::= <think> \"a\"".into()),
        Shape::Gbnf("root = \"a\"".into()),
        Shape::Gbnf("root ::= root".into()),
        schema(json!({ "$ref": "#" })),
        Shape::Regex("a\\".into()),
        Shape::Gbnf(in_groups(29)),
    ];
    insta::assert_snapshot!(faults.map(fault).join("\n"));
}
