//! Calls out of text: found whatever the pieces it comes in, and no text lost.

use proptest::prelude::*;
use structured::{CallParser, Piece};

fn parse(pieces: &[&str]) -> (String, Vec<(String, String)>) {
    let mut parser = CallParser::new(vec!["f".into(), "g".into()]);
    let mut all: Vec<Piece> = pieces.iter().flat_map(|text| parser.push(text)).collect();
    all.extend(parser.finish());
    let (mut text, mut calls) = (String::new(), Vec::new());
    for piece in all {
        match piece {
            Piece::Text(piece) => text.push_str(&piece),
            Piece::Call(call) => calls.push((call.name, call.arguments)),
        }
    }
    (text, calls)
}

#[track_caller]
fn check(answer: &str, text: &str, calls: &[(&str, &str)]) {
    let calls: Vec<_> = calls.iter().map(|(name, arguments)| (name.to_string(), arguments.to_string())).collect();
    assert_eq!(parse(&[answer]), (text.into(), calls), "{answer:?}");
}

#[test]
fn tagged_calls_anywhere_in_a_text() {
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}</tool_call>\"}}\n</tool_call>";
    let f = ("f", "{\"a\": \"}</tool_call>\"}");
    check(call, "", &[f]);
    check(&format!("Let me see.\n\n{call}\n{call}\n"), "Let me see.", &[f, f]);
    check(&format!("{call} and {call} done \n"), "and\ndone \n", &[f, f]);
    check("<tool_call>{\"name\": \"unknown\"}</tool_call>", "", &[("unknown", "{}")]);
    check("<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}", "", &[("f", "{\"a\": 1}")]);
}

#[test]
fn bare_calls_where_an_answer_begins() {
    check("{\"name\": \"f\", \"parameters\": {\"a\": 1}}", "", &[("f", "{\"a\": 1}")]);
    check("<|python_tag|>{\"type\": \"function\", \"name\": \"g\", \"parameters\": {}}", "", &[("g", "{}")]);
    check(
        "\n{\"name\": \"f\", \"arguments\": {}}; {\"name\": \"g\", \"parameters\": {}}\n",
        "",
        &[("f", "{}"), ("g", "{}")],
    );
    check("{\"name\": \"f\", \"parameters\": {}} That is it.", "That is it.", &[("f", "{}")]);
}

#[test]
fn what_is_no_call_is_text() {
    for text in [
        "",
        "  ",
        "plain",
        "{\"name\": \"h\", \"parameters\": {}}",
        "{\"name\": \"f\"}",
        "{\"name\": \"f\", \"parameters\": [1]}",
        "Say {\"name\": \"f\", \"parameters\": {}}",
        "<tool_call>\n{\"name\": \"f\", \"argum",
        "<tool_call>\nf()\n</tool_call>",
        "<tool_call>{\"name\": \"f\",}</tool_call> x",
        "<tool_call>{\"name\": \"\", \"arguments\": {}}",
        "a < b <tool_",
        "<|python_tag|>f.call(1)",
        "{{{{",
        "}}",
    ] {
        check(text, text, &[]);
    }
    check("{\"name\": \"f\", \"parameters\": {}};", ";", &[("f", "{}")]);
}

fn any_text() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "<|python_tag|>",
        "<",
        "{",
        "}",
        "\"",
        "\\",
        ";",
        " ",
        "\n",
        "x",
        "é",
        "name",
        "{\"name\": \"f\", \"arguments\": {}}",
        "{\"name\": \"h\", \"arguments\": {}}",
        "<tool_call>\n{\"name\": \"f\", \"parameters\": {}}",
    ]);
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn the_pieces_a_text_comes_in_make_no_difference(text in prop_oneof![any_text(), ".{0,40}"], cuts in prop::collection::vec(0usize..400, 0..8)) {
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|&at| at <= text.len() && text.is_char_boundary(at)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        prop_assert_eq!(parse(&pieces), parse(&[&text]));
    }

    #[test]
    fn no_text_is_lost(text in prop_oneof![any_text(), ".{0,40}"]) {
        let (left, calls) = parse(&[&text]);
        if calls.is_empty() {
            prop_assert_eq!(left, text);
        } else {
            // Of each call its object is gone, of its surroundings no more than tags, whitespace and one `;`.
            let solid = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<Vec<char>>();
            let objects = calls.iter().map(|(name, arguments)| solid(&format!("{{\"name\":\"{name}\",\"arguments\":{arguments}}}")).len());
            let n_taken = solid(&text).len() - solid(&left).len();
            let n_objects: usize = objects.sum();
            prop_assert!(n_taken >= n_objects && n_taken <= n_objects + calls.len() * 28, "{n_taken} for {n_objects}: {left:?}");
            let mut all = solid(&text).into_iter();
            prop_assert!(solid(&left).into_iter().all(|c| all.any(|other| other == c)), "another order: {left:?}");
        }
    }
}
