//! The built-in model, which knows nothing but haiku, made to call a tool.

use serde_json::{Value, json};

use crate::harness::Worker;

fn request(tool_choice: &Value, stream: bool) -> String {
    let parameters = json!({ "type": "object", "additionalProperties": false, "required": ["place", "days"], "properties": {
        "place": { "type": "string", "minLength": 3, "maxLength": 12 }, "days": { "type": "integer", "minimum": 1, "maximum": 9 },
        "unit": { "enum": ["C", "F"] } } });
    let function = json!({ "name": "get_weather", "description": "The weather of a place.", "parameters": parameters });
    let body = json!({
        "messages": [{ "role": "user", "content": "What will the weather be in Rome?" }],
        "tools": [{ "type": "function", "function": function }], "tool_choice": tool_choice,
        "parallel_tool_calls": false, "temperature": 1, "seed": 11, "max_tokens": 300, "stream": stream,
    });
    body.to_string()
}

/// The one call of an answer, which must be valid; its arguments.
fn valid_call(calls: &Value) -> String {
    let [call] = calls.as_array().expect("calls").as_slice() else { panic!("{calls}") };
    assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("get_weather")));
    assert!(call["id"].as_str().is_some_and(|id| id.starts_with("call_")));
    let arguments = call["function"]["arguments"].as_str().expect("a string").to_owned();
    let told: Value = serde_json::from_str(&arguments).expect("JSON");
    let names: Vec<&str> = told.as_object().expect("an object").keys().map(String::as_str).collect();
    assert!(names == ["place", "days"] || names == ["place", "days", "unit"], "{told}");
    assert!((3..=12).contains(&told["place"].as_str().expect("a text").chars().count()), "{told}");
    assert!((1..=9).contains(&told["days"].as_i64().expect("an integer")), "{told}");
    assert!(told.get("unit").is_none_or(|unit| ["C", "F"].contains(&unit.as_str().expect("a text"))), "{told}");
    arguments
}

#[test]
fn a_model_that_knows_no_tools_makes_a_valid_call_where_it_has_to() {
    let worker = Worker::ready(&[]);
    let named = json!({ "type": "function", "function": { "name": "get_weather" } });
    for tool_choice in [json!("required"), named] {
        let ask = |stream| worker.request("POST", "/v1/chat/completions", &request(&tool_choice, stream));
        let (status, body) = ask(false);
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        let choice = &answer["choices"][0];
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &Value::Null),
            "{body}"
        );
        let arguments = valid_call(&choice["message"]["tool_calls"]);

        let (status, body) = ask(true);
        assert_eq!(status, 200, "{body}");
        let data = body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
        let chunks: Vec<Value> = data.map(|data| serde_json::from_str(data).expect("JSON")).collect();
        let calls: Vec<Value> = chunks
            .iter()
            .flat_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array().cloned().unwrap_or_default())
            .collect();
        assert_eq!(valid_call(&calls.into()), arguments, "the streamed call is the whole one");
        assert_eq!(chunks.last().expect("chunks")["choices"][0]["finish_reason"], "tool_calls");
    }
}
