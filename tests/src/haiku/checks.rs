//! What is asserted of one streamed answer: pure functions from what arrived to verdicts.

use serde::Serialize;
use serde_json::Value;

use super::words::count_word;
use crate::harness::{Answer, TimedEvent};

/// The longest time from request to terminal event.
pub(crate) const TIME_LIMIT_MS: f64 = 30_000.0;

/// One verdict.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// What is claimed.
    pub claim: String,
    /// Whether it holds.
    pub passed: bool,
    /// What was found: figures, or what is wrong.
    pub found: String,
}

impl Check {
    /// A verdict with what was found.
    pub fn new(claim: impl Into<String>, passed: bool, found: impl Into<String>) -> Self {
        Self { claim: claim.into(), passed, found: found.into() }
    }

    /// A verdict from an outcome: what was found, or what is wrong.
    pub fn from_outcome(claim: impl Into<String>, outcome: Result<String, String>) -> Self {
        let passed = outcome.is_ok();
        Self::new(claim, passed, outcome.unwrap_or_else(|wrong| wrong))
    }
}

/// The events come in order: `started`, then `token`s counted from 0 (and `metrics` anywhere among them), then exactly
/// one terminal event, which is `end`, and nothing after it. Each repeats its name and agrees with the request.
pub(super) fn events_in_order(answer: &Answer) -> Result<String, String> {
    if let Some(broken) = &answer.broken {
        return Err(broken.clone());
    }
    let Some((started, rest)) = answer.events.split_first() else { return Err("no event came".into()) };
    let Some((end, middle)) = rest.split_last() else { return Err(format!("only {:?} came", started.event)) };
    if let Some(event) = answer.events.iter().find(|event| event.data["type"] != event.event.as_str()) {
        return Err(format!("event {:?} has type {}", event.event, event.data["type"]));
    }
    check_started(started, &answer.request)?;
    let mut n_tokens = 0_u64;
    for event in middle {
        match event.event.as_str() {
            "token" if event.data["i"] == n_tokens => n_tokens += 1,
            "token" => return Err(format!("token {n_tokens} says i = {}", event.data["i"])),
            "metrics" => {}
            other => return Err(format!("event {other:?} among the tokens")),
        }
    }
    if answer.tokens().iter().any(Option::is_none) {
        return Err("a token event lacks its id or its text".into());
    }
    check_end(end, n_tokens)?;
    Ok(format!("started, {n_tokens} tokens, end"))
}

fn check_started(event: &TimedEvent, request: &Value) -> Result<(), String> {
    let data = &event.data;
    if event.event != "started" {
        return Err(format!("the first event is {:?}: {data}", event.event));
    }
    for field in ["job_id", "seed"] {
        if data[field] != request[field] {
            return Err(format!("started has {field} {}, the request {}", data[field], request[field]));
        }
    }
    match data["prompt_tokens"].as_u64() {
        Some(n) if n > 0 => Ok(()),
        _ => Err(format!("started has prompt_tokens {}", data["prompt_tokens"])),
    }
}

fn check_end(event: &TimedEvent, n_tokens: u64) -> Result<(), String> {
    let data = &event.data;
    if event.event != "end" {
        return Err(format!("the last event is {:?}: {data}", event.event));
    }
    if data["tokens_out"] != n_tokens {
        return Err(format!("end has tokens_out {}, {n_tokens} tokens came", data["tokens_out"]));
    }
    match data["stop_reason"].as_str() {
        Some("MAX_TOKENS" | "EOS") => Ok(()),
        _ => Err(format!("end has stop_reason {}", data["stop_reason"])),
    }
}

/// The word stands in the text exactly once.
pub(super) fn word_once(text: &str, word: &str) -> Result<String, String> {
    match count_word(text, word) {
        1 => Ok(format!("{word:?} once")),
        n => Err(format!("{word:?} {n} times in {text:?}")),
    }
}

/// The terminal event came in time.
pub(super) fn in_time(answer: &Answer) -> Result<String, String> {
    let found = format!("{:.2} s of {:.0} s", answer.total_ms / 1e3, TIME_LIMIT_MS / 1e3);
    if answer.total_ms <= TIME_LIMIT_MS { Ok(found) } else { Err(found) }
}

/// The token counters moved by exactly what was streamed.
pub(super) fn counters_moved(answer: &Answer, prompt: Option<f64>, generated: Option<f64>) -> Result<String, String> {
    let n_prompt = answer.first("started").and_then(|started| started["prompt_tokens"].as_f64());
    let n_generated = answer.tokens().len() as f64;
    let show = |n: Option<f64>| n.map_or_else(|| "nothing".to_owned(), |n| n.to_string());
    let found =
        format!("prompt {} of {}, generated {} of {n_generated}", show(prompt), show(n_prompt), show(generated));
    if prompt.is_some() && prompt == n_prompt && generated == Some(n_generated) { Ok(found) } else { Err(found) }
}

/// The streamed ids decode to exactly the streamed text.
pub(super) fn ids_decode_to_text(answer: &Answer, decode: impl FnOnce(&[u32]) -> String) -> Result<String, String> {
    let (ids, text) = (answer.ids(), answer.text());
    let decoded = decode(&ids);
    if ids.is_empty() {
        return Err("no token came".into());
    }
    if decoded == text {
        Ok(format!("{} ids, {} bytes", ids.len(), text.len()))
    } else {
        Err(format!("the ids are {decoded:?}, the text is {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(events: &[Value]) -> Answer {
        let timed = |data: &Value| TimedEvent {
            at_ms: 1.0,
            event: data["type"].as_str().unwrap_or_default().to_owned(),
            data: data.clone(),
        };
        Answer {
            request: json!({"job_id": "j", "seed": 7}),
            status: 200,
            events: events.iter().map(timed).collect(),
            total_ms: 2.0,
            broken: None,
        }
    }

    fn right() -> Vec<Value> {
        vec![
            json!({"type": "started", "job_id": "j", "seed": 7, "prompt_tokens": 4, "model": "m"}),
            json!({"type": "token", "i": 0, "id": 5, "t": "forty"}),
            json!({"type": "metrics", "tokens_per_sec": 10.0}),
            json!({"type": "token", "i": 1, "id": 6, "t": "-two"}),
            json!({"type": "end", "tokens_out": 2, "decode_time_ms": 3, "stop_reason": "EOS"}),
        ]
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Vec<Value>)) {
        let mut events = right();
        change(&mut events);
        assert!(events_in_order(&answer(&events)).is_err(), "{events:?}");
    }

    #[test]
    fn accepts_a_right_stream() {
        assert_eq!(events_in_order(&answer(&right())), Ok("started, 2 tokens, end".to_owned()));
    }

    #[test]
    fn refuses_events_out_of_order_missing_or_doubled() {
        refused(|events| events.swap(0, 1));
        refused(|events| events.swap(1, 3));
        refused(|events| events.truncate(4));
        refused(|events| events.truncate(1));
        refused(Vec::clear);
        refused(|events| events.push(events[4].clone()));
        refused(|events| events.insert(1, events[0].clone()));
        refused(|events| events.insert(2, events[4].clone()));
        refused(|events| events[4] = json!({"type": "error", "code": "CANCELLED", "message": "", "retriable": false}));
    }

    #[test]
    fn refuses_events_that_disagree_with_the_request_or_each_other() {
        refused(|events| events[0]["job_id"] = json!("another"));
        refused(|events| events[0]["seed"] = json!(8));
        refused(|events| events[0]["prompt_tokens"] = json!(0));
        refused(|events| events[3]["i"] = json!(2));
        refused(|events| events[3]["id"] = json!(null));
        refused(|events| events[4]["tokens_out"] = json!(3));
        refused(|events| events[4]["stop_reason"] = json!("STOP_SEQUENCE"));
        let mut misnamed = answer(&right());
        misnamed.events[1].event = "tokens".into();
        assert!(events_in_order(&misnamed).is_err());
        let broken = Answer { broken: Some("reset".into()), ..answer(&right()) };
        assert_eq!(events_in_order(&broken), Err("reset".to_owned()));
    }

    #[test]
    fn wants_the_word_once() {
        assert!(word_once("Forty-Two chips", "forty-two").is_ok());
        assert!(word_once("forty-two forty-two", "forty-two").is_err());
        assert!(word_once("forty two", "forty-two").is_err());
    }

    #[test]
    fn wants_the_counters_to_move_by_exactly_what_came() {
        let answer = answer(&right());
        assert!(counters_moved(&answer, Some(4.0), Some(2.0)).is_ok());
        for (prompt, generated) in [(Some(4.0), Some(3.0)), (Some(0.0), Some(2.0)), (None, None), (Some(4.0), None)] {
            assert!(counters_moved(&answer, prompt, generated).is_err(), "{prompt:?} {generated:?}");
        }
    }

    #[test]
    fn wants_ids_and_text_to_be_the_same_answer() {
        let answer = answer(&right());
        assert!(ids_decode_to_text(&answer, |_| "forty-two".into()).is_ok());
        assert!(ids_decode_to_text(&answer, |_| "forty two".into()).is_err());
        assert!(ids_decode_to_text(&Answer { events: vec![], ..answer }, |_| String::new()).is_err());
    }
}
