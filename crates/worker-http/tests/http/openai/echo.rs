//! Prompts sent back, with the log-probabilities of their tokens.

use serde_json::{Value, json};
use test_support::fake_executor::FakeConfig;

use super::{COMPLETIONS, ask, completion, data, stream, text_of};
use crate::worker::{Config, Stream, Worker};

const LISTS: [&str; 5] = ["tokens", "token_logprobs", "top_logprobs", "text_offset", "bytes"];

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|string| string.as_str().unwrap()).collect()
}

/// The lists of a choice, put together from chunks.
fn lists_of(chunks: &[Value], index: usize) -> Value {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    let logprobs: Vec<&Value> = choices
        .filter(|choice| choice["index"] == index && !choice["logprobs"].is_null())
        .map(|choice| &choice["logprobs"])
        .collect();
    let all = |list| logprobs.iter().flat_map(|lists| lists[list].as_array().unwrap().clone()).collect::<Vec<_>>();
    json!({ "tokens": all("tokens"), "token_logprobs": all("token_logprobs"), "top_logprobs": all("top_logprobs"),
            "text_offset": all("text_offset"), "bytes": all("bytes") })
}

/// What a prompt's beginnings say of the token that follows each: log-probabilities of the vocabulary's likeliest 20, by name.
async fn of_beginnings(worker: &Worker, ids: &[u32]) -> Vec<Value> {
    let mut all = Vec::new();
    for n in 1..ids.len() {
        let body = completion(
            &json!({ "prompt": ids[..n], "max_tokens": 1, "logprobs": 20, "temperature": 0, "ignore_eos": true }),
        );
        all.push(ask(worker, COMPLETIONS, &body).await["choices"][0]["logprobs"]["top_logprobs"][0].clone());
    }
    all
}

#[tokio::test]
async fn the_prompts_tokens_come_first_and_the_answers_behind() {
    let worker = Worker::start().await;
    worker.script("xy");
    let prompt = "<|im_start|>a語b";
    let body = completion(&json!({ "prompt": prompt, "echo": true, "logprobs": 2 }));
    let answer = ask(&worker, COMPLETIONS, &body).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "<|im_start|>a語bxy");
    let logprobs = &choice["logprobs"];
    let names = ["<|im_start|>", "a", "bytes:\\xe8", "bytes:\\xaa", "bytes:\\x9e", "b", "x", "y", "<|endoftext|>"];
    let n_prompt = 6;
    assert_eq!(strings(&logprobs["tokens"])[..8], names[..8]);
    assert_eq!(logprobs["text_offset"], json!([0, 12, 13, 13, 13, 14, 15, 16, 17]));
    assert_eq!(logprobs["bytes"][0], json!("<|im_start|>".as_bytes()));
    assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
    for (i, token) in strings(&logprobs["tokens"]).into_iter().enumerate().skip(1) {
        let (top, logprob) = (&logprobs["top_logprobs"][i], &logprobs["token_logprobs"][i]);
        assert_eq!(&top[token], logprob, "token {i}");
        assert!((2..=3).contains(&top.as_object().unwrap().len()) && logprob.as_f64().unwrap() <= 0.0, "{top}");
    }
    // The end token has its entry, and is no token of the answer.
    assert!(LISTS.iter().all(|list| logprobs[list].as_array().unwrap().len() == n_prompt + 3));
    assert_eq!(choice["finish_reason"], "stop");
    let usage = &answer["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(n_prompt), &json!(2)));
    // Streamed: the same, the text in front.
    let chunks = stream(&worker, COMPLETIONS, &body).await;
    assert_eq!(text_of(&chunks, 0), "<|im_start|>a語bxy");
    assert_eq!(&lists_of(&chunks, 0), logprobs);
    assert_eq!(chunks[0]["choices"][0]["text"], prompt);
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!((&last["finish_reason"], &last["logprobs"], &last["text"]), (&json!("stop"), &Value::Null, &json!("")));
}

#[tokio::test]
async fn each_value_is_that_of_the_prompts_beginning() {
    let worker = Worker::start().await;
    let ids = worker.ids("the cat sat on the mat.");
    let expected = of_beginnings(&worker, &ids).await;
    let body = completion(&json!({ "prompt": ids, "echo": true, "logprobs": 20, "max_tokens": 0 }));
    let logprobs = ask(&worker, COMPLETIONS, &body).await["choices"][0]["logprobs"].clone();
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), ids.len());
    for (i, expected) in expected.iter().enumerate() {
        let top = logprobs["top_logprobs"][i + 1].as_object().unwrap();
        let token = logprobs["tokens"][i + 1].as_str().unwrap();
        // The 20 likeliest are there, and the prompt's own token beside them.
        for (name, logprob) in expected.as_object().unwrap() {
            assert_eq!(&top[name], logprob, "token {i}");
        }
        assert!(top.len() - expected.as_object().unwrap().len() <= 1 && top.contains_key(token));
    }
}

#[tokio::test]
async fn nothing_is_generated_where_nothing_is_asked_for() {
    let worker = Worker::start().await;
    for (extra, n_listed) in [(json!({}), None), (json!({ "logprobs": 0 }), Some(2)), (json!({ "n": 2 }), None)] {
        let mut body = completion(&extra);
        (body["echo"], body["max_tokens"]) = (json!(true), json!(0));
        let before = worker.metric("vllm:prompt_tokens_total").await;
        let answer = ask(&worker, COMPLETIONS, &body).await;
        for choice in answer["choices"].as_array().unwrap() {
            assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("hi"), &json!("length")));
            assert_eq!(choice["logprobs"]["tokens"].as_array().map(Vec::len), n_listed);
        }
        let usage = &answer["usage"];
        assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(2), &json!(0)));
        assert_eq!(worker.metric("vllm:prompt_tokens_total").await - before, 2.0, "counted once");
        assert_eq!(worker.metric("vllm:generation_tokens_total").await, 0.0);
        let chunks = stream(&worker, COMPLETIONS, &body).await;
        assert_eq!(text_of(&chunks, 0), "hi");
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    }
    // A prompt of one token, and one as long as the context.
    let worker =
        Worker::start_with(Config { fake: FakeConfig { n_ctx: 64, ..FakeConfig::default() }, ..Config::default() })
            .await;
    for n in [1, 64] {
        let body = completion(&json!({ "prompt": vec![70; n], "echo": true, "logprobs": 1, "max_tokens": 0 }));
        let logprobs = ask(&worker, COMPLETIONS, &body).await["choices"][0]["logprobs"].clone();
        assert_eq!(logprobs["tokens"].as_array().unwrap().len(), n);
        assert_eq!(logprobs["token_logprobs"].as_array().unwrap().iter().filter(|value| value.is_null()).count(), 1);
    }
}

#[tokio::test]
async fn several_prompts_and_several_answers_have_lists_of_their_own() {
    let worker = Worker::start_with(Config {
        engine: engine::EngineConfig { max_seqs: 4, ..engine::EngineConfig::default() },
        ..Config::default()
    })
    .await;
    let settings = json!({ "echo": true, "logprobs": 1, "max_tokens": 3, "seed": 5, "ignore_eos": true });
    let with = |prompt: Value, n: usize| {
        let mut body = completion(&settings);
        (body["prompt"], body["n"]) = (prompt, json!(n));
        body
    };
    let body = with(json!(["the first", "second"]), 2);
    let answer = ask(&worker, COMPLETIONS, &body).await;
    let chunks = stream(&worker, COMPLETIONS, &body).await;
    for (i, prompt) in ["the first", "the first", "second", "second"].into_iter().enumerate() {
        let choice = &answer["choices"][i];
        assert_eq!(choice["index"], i);
        let n_prompt = worker.ids(prompt).len();
        assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), n_prompt + 3);
        assert_eq!(lists_of(&chunks, i), choice["logprobs"], "choice {i}");
        assert_eq!(text_of(&chunks, i), choice["text"].as_str().unwrap());
        if i % 2 == 0 {
            let alone = ask(&worker, COMPLETIONS, &with(json!(prompt), 1)).await;
            assert_eq!(alone["choices"][0]["logprobs"], choice["logprobs"]);
        } else {
            let own =
                |i: usize| answer["choices"][i]["logprobs"]["token_logprobs"].as_array().unwrap()[..n_prompt].to_vec();
            assert_eq!(own(i), own(i - 1), "one prompt, one opinion of it");
        }
    }
    let n_prompt = worker.ids("the first").len() + worker.ids("second").len();
    let usage = &answer["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(n_prompt), &json!(12)));
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0, "what is scored is not taken from the cache");
}

#[tokio::test]
async fn an_answer_that_ends_at_once_has_the_end_tokens_entry_and_no_text() {
    let worker = Worker::start().await;
    worker.script("");
    let body = completion(&json!({ "prompt": "abc", "echo": true, "logprobs": 1, "max_tokens": 1, "temperature": 0 }));
    let answer = ask(&worker, COMPLETIONS, &body).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    // What evaluation harnesses do: all but the last entry are the prompt's.
    let tokens = strings(&logprobs["tokens"]);
    assert_eq!(tokens[..tokens.len() - 1], ["a", "b", "c"]);
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3]));
    assert_eq!((&answer["choices"][0]["text"], &answer["usage"]["completion_tokens"]), (&json!("abc"), &json!(0)));
    assert_eq!(&lists_of(&stream(&worker, COMPLETIONS, &body).await, 0), logprobs);
}

#[tokio::test]
async fn a_client_that_leaves_while_its_prompt_is_scored_frees_it() {
    let worker = Worker::start().await;
    worker.control.hold_after(3);
    let body = completion(&json!({ "prompt": "x".repeat(3000), "echo": true, "logprobs": 5, "stream": true }));
    let mut stream = Stream::new(worker.post(COMPLETIONS, &body).await).await;
    let first = data(&stream.frame().await.unwrap());
    assert_eq!(first["choices"][0]["logprobs"]["token_logprobs"], json!([null]));
    let second = data(&stream.frame().await.unwrap());
    assert_eq!(
        second["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(),
        8,
        "as many as a step has outputs"
    );
    worker.control.wait_until_held();
    drop(stream);
    worker.control.release();
    worker.wait_until_free().await;
    assert_eq!(worker.metric("vllm:prompt_tokens_total").await, 0.0, "it was not read");
}

#[tokio::test]
async fn no_more_values_are_given_than_a_whole_answer_can_hold() {
    let worker = Worker::start_with(Config {
        engine: engine::EngineConfig { queue_limit: 64, ..engine::EngineConfig::default() },
        ..Config::default()
    })
    .await;
    let body = |n_logprobs: usize| {
        let prompts = vec![vec![70; 4000]; 8];
        completion(&json!({ "prompt": prompts, "echo": true, "logprobs": n_logprobs, "max_tokens": 0 }))
    };
    let response = worker.post(COMPLETIONS, &body(16)).await;
    assert_eq!(response.status(), 400);
    let error: Value = response.json().await.unwrap();
    let message = "logprobs: expected at most 524288 for the tokens of all prompts, those of alternatives among them; \
                   32000 tokens, 1 times, with 16 alternatives are 544000";
    assert_eq!((&error["error"]["message"], &error["error"]["param"]), (&json!(message), &json!("logprobs")));
    assert_eq!(worker.state.n_live_jobs(), 0);
}
