//! What is answered: forms, order, text, usage.

use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, ask, assert_redacted_snapshot, chat, completion, stream, text_of};
use crate::worker::{Config, Stream, Worker};

async fn transcript(worker: &Worker, path: &str, body: &Value) -> String {
    let mut stream = Stream::new(worker.post(path, body).await).await;
    while stream.frame().await.is_some() {}
    stream.transcript
}

#[tokio::test]
async fn chat_streams_role_deltas_reason_usage_and_done_in_this_order() {
    let worker = Worker::start().await;
    worker.script("Hé!");
    let body = chat(&json!({ "stream": true, "stream_options": { "include_usage": true } }));
    assert_redacted_snapshot!(transcript(&worker, CHAT, &body).await);
}

#[tokio::test]
async fn chat_without_usage_says_nothing_of_it() {
    let worker = Worker::start().await;
    worker.script("ab");
    let body = chat(&json!({ "stream": true, "stop": "b", "max_tokens": 7 }));
    assert_redacted_snapshot!(transcript(&worker, CHAT, &body).await);
}

#[tokio::test]
async fn completions_stream_texts_reason_usage_and_done_in_this_order() {
    let worker = Worker::start().await;
    worker.script("abc");
    let extra = json!({ "stream": true, "stream_options": { "include_usage": true }, "max_tokens": 2, "echo": true });
    assert_redacted_snapshot!(transcript(&worker, COMPLETIONS, &completion(&extra)).await);
}

#[tokio::test]
async fn whole_answers_have_openais_form() {
    let worker = Worker::start().await;
    worker.script("Hello");
    let answers =
        [ask(&worker, CHAT, &chat(&json!({}))).await, ask(&worker, COMPLETIONS, &completion(&json!({}))).await];
    let models = worker.get("/v1/models").await.json::<Value>().await.unwrap();
    assert_redacted_snapshot!(serde_json::to_string_pretty(&json!([answers, models])).unwrap());
}

#[tokio::test]
async fn every_route_answers_without_the_prefix_too() {
    let worker = Worker::start().await;
    worker.script("a");
    assert_eq!(ask(&worker, "/chat/completions", &chat(&json!({}))).await["object"], "chat.completion");
    assert_eq!(ask(&worker, "/completions", &completion(&json!({}))).await["object"], "text_completion");
    for path in ["/models", "/v1/models"] {
        let models: Value = worker.get(path).await.json().await.unwrap();
        assert_eq!((&models["data"][0]["id"], &models["data"][0]["max_model_len"]), (&json!("tiny"), &json!(4096)));
        assert_eq!(worker.get(&format!("{path}/tiny")).await.json::<Value>().await.unwrap(), models["data"][0]);
        assert_eq!(worker.get(&format!("{path}/some/other")).await.status(), 404);
    }
}

#[tokio::test]
async fn the_conversation_goes_through_the_models_template() {
    let worker = Worker::start().await;
    let written = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n\
                   <|im_start|>assistant\nyes<|im_end|>\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n";
    worker.control.script(&worker.ids(written), &worker.ids("found<|im_end|>"));
    let messages = json!([
        { "role": "developer", "content": "Be brief." },
        { "role": "user", "content": [{ "type": "text", "text": "one" }, { "type": "text", "text": "two" }], "name": "a" },
        { "role": "assistant", "content": "yes", "refusal": null, "tool_calls": null },
        { "role": "tool", "content": "7", "tool_call_id": "call_1" },
    ]);
    let answer = ask(&worker, CHAT, &json!({ "messages": messages })).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "found");
    assert_eq!(answer["usage"]["prompt_tokens"], worker.ids(written).len());
    // A template's own variables win over those it is given otherwise.
    let body = chat(&json!({ "chat_template_kwargs": { "add_generation_prompt": false } }));
    let shorter = ask(
        &worker,
        CHAT,
        &json!({ "max_tokens": 1, "messages": body["messages"], "chat_template_kwargs": body["chat_template_kwargs"] }),
    )
    .await;
    assert_eq!(shorter["usage"]["prompt_tokens"], worker.ids("<|im_start|>user\nhi<|im_end|>\n").len());
}

#[tokio::test]
async fn prompts_are_texts_or_token_ids_alone_or_in_lists() {
    let worker = Worker::start().await;
    for (prompt, answer) in [("fst", "1"), ("snd", "2")] {
        worker.control.script(&worker.ids(prompt), &worker.ids(&format!("{answer}<|im_end|>")));
    }
    let (one, two) = (worker.ids("fst"), worker.ids("snd"));
    for (prompt, texts) in [
        (json!("fst"), vec!["1"]),
        (json!(["fst"]), vec!["1"]),
        (json!(["snd", "fst"]), vec!["2", "1"]),
        (json!(one), vec!["1"]),
        (json!([one]), vec!["1"]),
        (json!([two, one, two]), vec!["2", "1", "2"]),
    ] {
        let answer = ask(&worker, COMPLETIONS, &completion(&json!({ "prompt": prompt, "temperature": 0 }))).await;
        let choices = answer["choices"].as_array().unwrap();
        let given: Vec<&str> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(given, texts, "{prompt}");
        assert!(choices.iter().enumerate().all(|(i, choice)| choice["index"] == i));
        assert_eq!(answer["usage"]["completion_tokens"], texts.len());
        let n_prompt = 3 * texts.len();
        assert_eq!(
            (&answer["usage"]["prompt_tokens"], &answer["usage"]["total_tokens"]),
            (&json!(n_prompt), &json!(n_prompt + texts.len()))
        );
        let echoed = json!({ "prompt": prompt, "temperature": 0, "echo": true });
        let echoed = ask(&worker, COMPLETIONS, &completion(&echoed)).await;
        for (choice, text) in echoed["choices"].as_array().unwrap().iter().zip(&texts) {
            assert_eq!(choice["text"], if *text == "1" { "fst1" } else { "snd2" });
        }
    }
}

#[tokio::test]
async fn a_prompt_of_ids_is_echoed_as_it_would_be_written() {
    let worker = Worker::start().await;
    worker.script("a");
    let text = "<|im_start|>x<|im_end|>";
    for prompt in [json!(text), json!(worker.ids(text))] {
        let body = completion(&json!({ "prompt": prompt, "temperature": 0, "echo": true }));
        assert_eq!(ask(&worker, COMPLETIONS, &body).await["choices"][0]["text"], format!("{text}a"), "{prompt}");
    }
}

#[tokio::test]
async fn the_first_choice_is_the_answer_to_a_request_for_one_and_the_others_differ() {
    let worker = Worker::start().await;
    let ask_for = |n: usize, seed: i64| {
        let body = completion(&json!({ "n": n, "seed": seed, "max_tokens": 12, "ignore_eos": true, "logprobs": 0 }));
        let worker = &worker;
        async move { ask(worker, COMPLETIONS, &body).await }
    };
    let tokens = |answer: &Value, i: usize| answer["choices"][i]["logprobs"]["bytes"].clone();
    let (one, three) = (ask_for(1, 7).await, ask_for(3, 7).await);
    assert_eq!(tokens(&one, 0), tokens(&three, 0));
    assert!(tokens(&three, 0) != tokens(&three, 1) && tokens(&three, 1) != tokens(&three, 2), "{three}");
    assert_eq!(ask_for(3, 7).await["choices"], three["choices"], "a seed repeats all of it");
    assert_ne!(ask_for(1, -8).await["choices"], one["choices"]);
    assert_eq!(three["usage"]["prompt_tokens"], 2, "the prompt counts once");
    assert_eq!(three["usage"]["completion_tokens"], 36);
    // The counters moved by the same.
    let before = (worker.metric("vllm:prompt_tokens_total").await, worker.metric("vllm:generation_tokens_total").await);
    ask_for(3, 7).await;
    let after = (worker.metric("vllm:prompt_tokens_total").await, worker.metric("vllm:generation_tokens_total").await);
    assert_eq!((after.0 - before.0, after.1 - before.1), (2.0, 36.0));
}

#[tokio::test]
async fn without_a_seed_equal_prompts_have_different_answers() {
    let worker = Worker::start().await;
    let body = completion(&json!({ "prompt": ["hi", "hi"], "max_tokens": 12, "ignore_eos": true, "logprobs": 0 }));
    let answer = ask(&worker, COMPLETIONS, &body).await;
    assert_ne!(answer["choices"][0]["logprobs"], answer["choices"][1]["logprobs"]);
    // -1 is no seed either.
    let body = completion(&json!({ "seed": -1, "max_tokens": 12, "ignore_eos": true, "logprobs": 0 }));
    assert_ne!(ask(&worker, COMPLETIONS, &body).await["choices"], ask(&worker, COMPLETIONS, &body).await["choices"]);
}

#[tokio::test]
async fn streamed_choices_are_the_whole_ones() {
    let mut config = Config::default();
    config.engine.max_seqs = 3;
    let worker = Worker::start_with(config).await;
    let extra = json!({ "n": 3, "seed": 5, "max_tokens": 20, "temperature": 1.5 });
    for (path, body) in [(CHAT, chat(&extra)), (COMPLETIONS, completion(&extra))] {
        let whole = ask(&worker, path, &body).await;
        let chunks = stream(&worker, path, &body).await;
        for i in 0..3 {
            let choice = &whole["choices"][i];
            let text = choice["text"].as_str().or(choice["message"]["content"].as_str()).unwrap();
            assert_eq!(text_of(&chunks, i), text);
            let of_choice = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == i);
            let reasons: Vec<&Value> = of_choice.map(|choice| &choice["finish_reason"]).collect();
            let (last, before) = reasons.split_last().unwrap();
            assert_eq!(**last, choice["finish_reason"]);
            assert!(before.iter().all(|reason| reason.is_null()));
        }
    }
}

#[tokio::test]
async fn a_stop_string_may_straddle_tokens_and_characters_are_cut_nowhere() {
    let worker = Worker::start().await;
    worker.script("語é say STSTOP now");
    for stop in [json!("STOP"), json!(["never", "STOP"])] {
        let body = chat(&json!({ "stop": stop }));
        let answer = ask(&worker, CHAT, &body).await;
        let choice = &answer["choices"][0];
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("語é say ST"), &json!("stop")));
        assert_eq!(answer["usage"]["completion_tokens"], worker.ids("語é say STSTOP").len());
        let chunks = stream(&worker, CHAT, &body).await;
        assert_eq!(text_of(&chunks, 0), "語é say ST");
    }
    worker.script("a語");
    let cut = ask(&worker, COMPLETIONS, &completion(&json!({ "max_completion_tokens": 3 }))).await;
    assert_eq!(
        (&cut["choices"][0]["text"], &cut["choices"][0]["finish_reason"]),
        (&json!("a\u{fffd}"), &json!("length"))
    );
}

#[tokio::test]
async fn max_tokens_is_what_the_context_leaves_unless_somebody_says_less() {
    let mut config = Config::default();
    config.fake.n_ctx = 32;
    let worker = Worker::start_with(config).await;
    worker.control.script_all(&worker.ids(&"a".repeat(64)));
    for (asked, n) in [(Value::Null, 30), (json!(100), 30), (json!(3), 3)] {
        let answer = ask(&worker, COMPLETIONS, &completion(&json!({ "max_tokens": asked }))).await;
        assert_eq!(
            answer["usage"],
            json!({
                "prompt_tokens": 2, "completion_tokens": n, "total_tokens": 2 + n, "prompt_tokens_details": { "cached_tokens": 0 },
            })
        );
    }
}

#[tokio::test]
async fn ignore_eos_goes_on_to_the_end() {
    let worker = Worker::start().await;
    worker.script("a");
    let answer = ask(&worker, COMPLETIONS, &completion(&json!({ "ignore_eos": true, "max_tokens": 5 }))).await;
    assert_eq!(
        (&answer["usage"]["completion_tokens"], &answer["choices"][0]["finish_reason"]),
        (&json!(5), &json!("length"))
    );
}

#[tokio::test]
async fn a_models_turn_may_be_without_text_and_has_its_reasoning() {
    let worker = Worker::start().await;
    worker.script("a");
    for turn in [
        json!({ "role": "assistant", "content": null, "reasoning_content": "because" }),
        json!({ "role": "assistant", "content": "so", "reasoning": "because", "refusal": null }),
        json!({ "role": "assistant" }),
    ] {
        let body = chat(&json!({ "messages": [{ "role": "user", "content": "hi" }, turn] }));
        assert_eq!(worker.post(CHAT, &body).await.status(), 200, "{body}");
    }
}

#[tokio::test]
async fn biases_force_and_forbid_tokens() {
    let worker = Worker::start().await;
    worker.script("ab");
    let (a, z) = (worker.ids("a")[0].to_string(), worker.ids("z")[0].to_string());
    let ask_with = async |bias: Value| {
        let body = json!({ "logit_bias": bias, "temperature": 0, "max_tokens": 4, "ignore_eos": true });
        ask(&worker, COMPLETIONS, &completion(&body)).await["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    assert!(ask_with(json!({})).await.starts_with("ab"));
    assert_eq!(ask_with(json!({ z: 100 })).await, "zzzz");
    assert!(!ask_with(json!({ a: -100 })).await.starts_with('a'));
}

#[tokio::test]
async fn usage_tells_what_the_cache_had() {
    let worker = Worker::start().await;
    worker.script("a");
    let body = completion(&json!({ "prompt": "x".repeat(40) }));
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!(cached(&ask(&worker, COMPLETIONS, &body).await), 0);
    // Two whole blocks of 16.
    assert_eq!(cached(&ask(&worker, COMPLETIONS, &body).await), 32);
    let body = completion(&json!({ "prompt": ["x".repeat(40), "x".repeat(40)], "n": 2 }));
    assert_eq!(cached(&ask(&worker, COMPLETIONS, &body).await), 64, "each prompt's first answer counts");
}

#[tokio::test]
async fn usage_so_far_comes_with_every_chunk_where_asked_for() {
    let worker = Worker::start().await;
    worker.script("abc");
    let options = json!({ "include_usage": true, "continuous_usage_stats": true });
    let chunks = stream(&worker, COMPLETIONS, &completion(&json!({ "stream_options": options }))).await;
    let so_far: Vec<&Value> = chunks.iter().map(|chunk| &chunk["usage"]["completion_tokens"]).collect();
    assert_eq!(so_far, [&json!(1), &json!(2), &json!(3), &json!(3), &json!(3)]);
}
