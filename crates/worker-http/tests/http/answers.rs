//! What is streamed: order, text, stop strings, log-probabilities.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::worker::{Answer, Config, Worker};

/// One answer to "hi" with `script`, greedily.
async fn answer(script: &str, extra: Value) -> Answer {
    let worker = Worker::start().await;
    worker.script(script);
    let answer = worker.execute("job-1", "hi", extra).await.rest().await;
    check(&worker, &answer);
    answer
}

/// What is true of every answer that was not cut by a stop string.
fn check(worker: &Worker, answer: &Answer) {
    for (i, token) in answer.tokens.iter().enumerate() {
        assert_eq!(token["i"], i);
    }
    if answer.last["type"] == "end" {
        assert_eq!(answer.last["tokens_out"], answer.ids.len());
    }
    if answer.last["stop_reason"] != "STOP_SEQUENCE" {
        assert_eq!(answer.text(), worker.tokenizer.decode(&answer.ids));
    }
}

#[tokio::test]
async fn events_come_in_order_with_one_terminal() {
    let worker = Worker::start().await;
    worker.script("Hello");
    let mut stream = worker.execute("job-1", "hi", json!({ "seed": 7, "temperature": 0 })).await;
    stream.rest().await;
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "[time]");
    settings.add_filter(r#""decode_time_ms":\d+"#, r#""decode_time_ms":[ms]"#);
    settings.bind(|| insta::assert_snapshot!(stream.transcript));
}

#[tokio::test]
async fn streaming_is_streaming() {
    let worker = Worker::start().await;
    worker.script("ab");
    worker.control.hold_after(1);
    let mut stream = worker.execute("job-1", "hi", json!({})).await;
    stream.expect("started").await;
    // The executor is held with step 2 in its hands: token 1 is here although nothing after it has been computed.
    assert_eq!(stream.expect("token").await["t"], "a");
    worker.control.wait_until_held();
    worker.control.hold_after(1);
    assert_eq!(stream.expect("token").await["t"], "b");
    worker.control.release();
    assert_eq!(stream.expect("end").await["stop_reason"], "EOS");
    assert!(stream.event().await.is_none());
}

#[tokio::test]
async fn characters_are_cut_nowhere() {
    let answer = answer("a😀b语é", json!({})).await;
    assert_eq!(answer.text(), "a😀b语é");
    // One id a byte: a character goes out with its last.
    assert_eq!(answer.texts, ["a", "", "", "", "😀", "b", "", "", "语", "", "é"]);
    assert_eq!(answer.last["stop_reason"], "EOS");
}

#[tokio::test]
async fn what_is_unfinished_at_the_end_becomes_a_replacement_character() {
    let answer = answer("a😀", json!({ "max_tokens": 3 })).await;
    assert_eq!(answer.texts, ["a", "", "\u{fffd}"]);
    assert_eq!(answer.last["stop_reason"], "MAX_TOKENS");
}

#[tokio::test]
async fn text_before_a_stop_string_is_sent_and_nothing_of_it() {
    let answer = answer("one\n\ntwo", json!({ "stop": ["xyz", "\n\n"] })).await;
    assert_eq!(answer.texts, ["on", "e", "", ""]);
    assert_eq!(answer.last["stop_reason"], "STOP_SEQUENCE");
    assert_eq!(answer.last["stop_sequence_matched"], "\n\n");
    assert_eq!(answer.last["tokens_out"], 4);
}

#[tokio::test]
async fn a_stop_string_may_straddle_any_number_of_tokens() {
    for (script, stop, text) in [
        ("say STOP now", "STOP", "say "),
        ("say STSTOP now", "STOP", "say ST"),
        ("语😀语", "😀", "语"),
        ("STOP", "STOP", ""),
        ("aaab", "aab", "a"),
    ] {
        let answer = answer(script, json!({ "stop": [stop] })).await;
        assert_eq!((answer.text().as_str(), &answer.last["stop_sequence_matched"]), (text, &json!(stop)), "{script}");
    }
}

#[tokio::test]
async fn text_that_did_not_become_a_stop_string_goes_out_with_the_token_that_shows_it() {
    let answer = answer("xSTx", json!({ "stop": ["STOP"] })).await;
    assert_eq!(answer.texts, ["x", "", "", "STx"]);
}

#[tokio::test]
async fn text_still_held_back_at_the_end_goes_out_with_the_last_token() {
    let answer = answer("xST", json!({ "stop": ["STOP"] })).await;
    assert_eq!(answer.texts, ["x", "", "ST"]);
    assert_eq!(answer.last["stop_reason"], "EOS");
    assert_eq!(answer.last.get("stop_sequence_matched"), None);
}

#[tokio::test]
async fn a_stop_string_ends_the_job_in_the_engine_too() {
    let worker = Worker::start().await;
    worker.script(&"a.".repeat(500));
    // The engine stands still behind the stop string until its answer has ended.
    worker.control.hold_after(3);
    let answer = worker.execute("job-1", "hi", json!({ "stop": ["."] })).await.rest().await;
    assert_eq!(answer.text(), "a");
    worker.control.release();
    worker.wait_until_free().await;
    assert!(worker.control.n_steps() < 20, "{}", worker.control.n_steps());
}

#[tokio::test]
async fn counts_no_end_token() {
    let answer = answer("", json!({})).await;
    assert_eq!((answer.ids.len(), &answer.last["tokens_out"]), (0, &json!(0)));
    assert_eq!(answer.last["stop_reason"], "EOS");
}

#[tokio::test]
async fn log_probabilities_come_when_asked_for() {
    let with = answer("ab", json!({ "logprobs": 3 })).await;
    for token in &with.tokens {
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        let top = token["top"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!((&top[0]["id"], &top[0]["text"]), (&token["id"], &token["t"]));
        assert_eq!(top[0]["logprob"], token["logprob"]);
    }
    let none = answer("ab", json!({ "logprobs": 0 })).await;
    assert_eq!(none.tokens[0]["top"], json!([]));
    assert!(none.tokens[0]["logprob"].is_number());
    let without = answer("ab", json!({})).await;
    assert_eq!(without.tokens[0].as_object().unwrap().len(), 4);
}

#[tokio::test]
async fn a_seed_that_was_drawn_is_reported_and_repeats_the_answer() {
    let worker = Worker::start().await;
    let mut first = worker.execute("job-1", "hi", json!({ "max_tokens": 20 })).await;
    let seed = first.expect("started").await["seed"].as_u64().unwrap();
    let first = first.rest().await;
    let again = worker.execute("job-2", "hi", json!({ "max_tokens": 20, "seed": seed })).await.rest().await;
    assert_eq!(first.ids, again.ids);
    let mut others = Vec::new();
    for i in 1..6 {
        let extra = json!({ "max_tokens": 20, "seed": seed.wrapping_add(i) });
        others.push(worker.execute(&format!("other-{i}"), "hi", extra).await.rest().await.ids);
    }
    assert!(others.iter().any(|other| *other != first.ids));
}

#[tokio::test]
async fn max_tokens_is_capped_by_the_context() {
    let mut config = Config::default();
    config.fake.n_ctx = 32;
    let worker = Worker::start_with(config).await;
    worker.control.script_all(&worker.ids(&"a".repeat(64)));
    let answer = worker.execute("job-1", "0123456789", json!({ "max_tokens": 2048 })).await.rest().await;
    assert_eq!(answer.last["stop_reason"], "MAX_TOKENS");
    assert_eq!(answer.ids.len(), 22);
}

#[tokio::test]
async fn special_tokens_in_a_prompt_are_parsed() {
    let worker = Worker::start().await;
    worker.script("a");
    let mut stream = worker.execute("job-1", "<|im_start|>x<|im_end|>", json!({})).await;
    assert_eq!(stream.expect("started").await["prompt_tokens"], 3);
}

#[tokio::test]
async fn comments_keep_a_silent_stream_alive() {
    let worker = Worker::start_with(Config { keep_alive: Duration::from_millis(20), ..Config::default() }).await;
    worker.script("a");
    worker.control.hold_after(0);
    let mut stream = worker.execute("job-1", "hi", json!({})).await;
    stream.expect("started").await;
    assert_eq!(stream.frame().await.unwrap(), ": keep-alive");
    assert_eq!(stream.frame().await.unwrap(), ": keep-alive");
    worker.control.release();
    stream.expect("token").await;
    stream.expect("end").await;
}

#[tokio::test]
async fn a_long_job_reports_how_it_is_doing() {
    let worker = Worker::start().await;
    let n_tokens = 20;
    worker.script(&"a".repeat(n_tokens));
    worker.control.set_delay(Duration::from_millis(150));
    let mut stream = worker.execute("job-1", "hi", json!({})).await;
    loop {
        let event = stream.event().await.unwrap();
        assert_ne!(event["type"], "end");
        if event["type"] == "metrics" {
            assert!(event["tokens_per_sec"].as_f64().unwrap() > 0.0, "{event}");
            assert!(event["vram_bytes"].is_u64() && event["tokens_out"].as_u64().unwrap() > 0, "{event}");
            break;
        }
    }
    assert_eq!(stream.rest().await.last["tokens_out"], n_tokens);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_text_is_what_the_ids_decode_to(ids in prop::collection::vec(0u32..265, 1..40), stop in "[a-z]{2,3}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let worker = Worker::start().await;
            worker.control.script_all(&ids);
            let extra = json!({ "max_tokens": ids.len(), "stop": [stop] });
            let answer = worker.execute("job-1", "hi", extra).await.rest().await;
            check(&worker, &answer);
            let whole = worker.tokenizer.decode(&ids);
            match whole.find(&stop) {
                None => assert_eq!(answer.ids, ids),
                Some(at) => assert_eq!(answer.text(), whole[..at]),
            }
        });
    }
}
