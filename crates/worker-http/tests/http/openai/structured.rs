//! Answers of a given structure. What the scripted model would like to say is not allowed to it.

use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, ask, chat, completion, stream, text_of};
use crate::worker::Worker;

fn person() -> Value {
    json!({ "type": "object", "additionalProperties": false, "required": ["name", "age"], "properties": {
        "name": { "enum": ["Ada", "Alan"] }, "age": { "type": "integer", "minimum": 0, "maximum": 150 } } })
}

fn is_person(text: &str) -> bool {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    let is_age = value["age"].as_u64().is_some_and(|age| age <= 150);
    ["Ada", "Alan"].contains(&value["name"].as_str().unwrap()) && is_age && value.as_object().unwrap().len() == 2
}

#[tokio::test]
async fn a_schema_holds_whichever_field_it_stands_in() {
    let worker = Worker::start().await;
    worker.script("No JSON at all");
    let schema = person();
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "person", "strict": true, "schema": schema } });
    for extra in [
        json!({ "response_format": format }),
        json!({ "response_format": { "type": "json_object", "schema": schema } }),
        json!({ "json_schema": schema }),
        json!({ "guided_json": schema }),
        json!({ "guided_json": schema.to_string() }),
        json!({ "structured_outputs": { "json": schema } }),
    ] {
        let answer = ask(&worker, CHAT, &chat(&extra)).await;
        let choice = &answer["choices"][0];
        assert!(is_person(choice["message"]["content"].as_str().unwrap()), "{extra}: {answer}");
        assert_eq!(choice["finish_reason"], "stop");
        let answer = ask(&worker, COMPLETIONS, &completion(&extra)).await;
        assert!(is_person(answer["choices"][0]["text"].as_str().unwrap()), "{extra}: {answer}");
    }
    worker.wait_until_free().await;
}

#[tokio::test]
async fn what_fits_is_said_as_the_model_says_it() {
    let worker = Worker::start().await;
    for (extra, says) in [
        (json!({ "response_format": { "type": "json_object" } }), "{\"a\": [1, \"b\"]}"),
        (json!({ "guided_regex": "[a-z]+ [0-9]{2}" }), "abc 12"),
        (json!({ "structured_outputs": { "regex": "[a-z]+ [0-9]{2}" } }), "abc 12"),
        (json!({ "guided_choice": ["yes", "no"] }), "no"),
        (json!({ "structured_outputs": { "choice": ["yes", "no"] } }), "no"),
        (json!({ "grammar": "root ::= \"(\" root? \")\"" }), "((()))"),
        (json!({ "guided_grammar": "root ::= \"(\" root? \")\"" }), "((()))"),
        (json!({ "structured_outputs": { "grammar": "start: \"a\" start | \"b\"" } }), "aab"),
        (json!({ "grammar": "%llguidance {}\nstart: \"a\" start | \"b\"" }), "aab"),
        (json!({ "grammar": "start: \"a\" start | \"b\"" }), "aab"),
        (json!({ "grammar": "/[a-z]+ [0-9]{2}/" }), "abc 12"),
        (json!({ "guided_grammar": "start: \"a\" start | \"b\"" }), "aab"),
    ] {
        worker.script(says);
        let answer = ask(&worker, CHAT, &chat(&extra)).await;
        assert_eq!(answer["choices"][0]["message"]["content"], says, "{extra}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{extra}");
    }
}

#[tokio::test]
async fn streams_choices_log_probabilities_stops_and_limits_go_on_as_without() {
    let worker = Worker::start().await;
    worker.script("nonsense");
    let format = json!({ "guided_regex": "(ab){4}c", "n": 2, "logprobs": true, "top_logprobs": 1, "temperature": 1.0 });
    let streamed = stream(&worker, CHAT, &chat(&format)).await;
    for index in 0..2 {
        assert_eq!(text_of(&streamed, index), "ababababc");
    }
    let answer = ask(&worker, CHAT, &chat(&format)).await;
    for choice in answer["choices"].as_array().unwrap() {
        let told = choice["logprobs"]["content"].as_array().unwrap();
        let text: String = told.iter().map(|token| token["token"].as_str().unwrap()).collect();
        assert_eq!((text.as_str(), &choice["finish_reason"]), ("ababababc", &json!("stop")));
    }
    let short = ask(&worker, CHAT, &chat(&json!({ "guided_regex": "(ab){4}c", "max_tokens": 3 }))).await;
    assert_eq!(short["choices"][0]["finish_reason"], "length");
    let stopped = ask(&worker, CHAT, &chat(&json!({ "guided_regex": "(ab){4}c", "stop": "ba" }))).await;
    let choice = &stopped["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("a"), &json!("stop")));
}

#[tokio::test]
async fn an_answer_beside_a_constrained_one_is_what_it_is_alone() {
    let worker = Worker::start().await;
    worker.script("the very same text");
    let body = completion(&json!({ "seed": 5, "logprobs": 2 }));
    let alone = ask(&worker, COMPLETIONS, &body).await;
    let constrained = completion(&json!({ "guided_regex": "[a-f]{60}" }));
    let (_, beside) = tokio::join!(ask(&worker, COMPLETIONS, &constrained), ask(&worker, COMPLETIONS, &body));
    assert_eq!(alone["choices"], beside["choices"]);
}

#[tokio::test]
async fn faults_name_the_field_and_the_place() {
    let worker = Worker::start().await;
    let format =
        |schema: Value| json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": schema } } });
    let mut lines = Vec::new();
    for extra in [
        json!({ "response_format": "text" }),
        json!({ "response_format": {} }),
        json!({ "response_format": { "type": "xml" } }),
        json!({ "response_format": { "type": "json_schema" } }),
        json!({ "response_format": { "type": "json_schema", "json_schema": {} } }),
        json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": [], "name": "", "strict": 1 } } }),
        format(json!({ "properties": { "a": { "not": {} } } })),
        format(json!({ "properties": { "a": { "type": "string", "pattern": "(" } } })),
        json!({ "guided_json": "{" }),
        json!({ "guided_regex": "(" }),
        json!({ "guided_regex": "" }),
        json!({ "guided_choice": [] }),
        json!({ "guided_choice": ["a", 7] }),
        json!({ "grammar": "root ::= x" }),
        json!({ "guided_grammar": "start: x" }),
        json!({ "structured_outputs": { "regex": "a", "choice": ["b"] } }),
        json!({ "structured_outputs": {} }),
        json!({ "structured_outputs": { "structural_tag": {} } }),
        json!({ "structured_outputs": { "regex": "a", "whitespace_pattern": " ", "disable_any_whitespace": true } }),
        json!({ "guided_regex": "a", "grammar": "root ::= \"a\"" }),
        json!({ "guided_regex": "a", "ignore_eos": true }),
    ] {
        let response = worker.post(COMPLETIONS, &completion(&extra)).await;
        let status = response.status().as_u16();
        let body: Value = response.json().await.unwrap();
        lines.push(format!("{status} {}: {}", body["error"]["param"], body["error"]["message"].as_str().unwrap()));
    }
    insta::assert_snapshot!(lines.join("\n"));
}
