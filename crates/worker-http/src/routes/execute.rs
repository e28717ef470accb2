//! `POST /execute`: one job, streamed.

use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;

use super::sampling::{self, MAX_LOGPROBS, MAX_STOPS, STOP};
use crate::body::read_json;
use crate::error::ApiError;
use crate::event::{Event, Started};
use crate::fields::{Fields, TextRule, Unit};
use crate::job::{self, Answers, Generation, Job, JobRequest, MAX_TOKENS, Prompt, Received};
use crate::sse::{self, Frames};
use crate::state::AppState;

pub(super) const PATH: &str = "/execute";
/// The longest prompt, in Unicode scalar values.
const MAX_PROMPT_CHARS: usize = 32_768;
/// The longest job name: it is kept, logged and sent back.
const MAX_JOB_ID_CHARS: usize = 1024;

pub(super) const JOB_ID: TextRule = TextRule { len: 1..=MAX_JOB_ID_CHARS, unit: Unit::Characters, echo: true };
const PROMPT: TextRule = TextRule { len: 1..=MAX_PROMPT_CHARS, unit: Unit::Characters, echo: false };

const FIELDS: &[&str] = &[
    "job_id",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "min_p",
    "top_k",
    "repetition_penalty",
    "stop",
    "seed",
    "logprobs",
];

/// Reads a job; fields it does not know are ignored.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`] with every fault at once.
pub(super) fn parse(body: &str) -> Result<JobRequest, ApiError> {
    let mut fields = Fields::parse(body, FIELDS)?;
    let job_id = fields.required_text("job_id", &JOB_ID);
    let prompt = fields.required_text("prompt", &PROMPT);
    let max_tokens = fields.integer("max_tokens", 1..=MAX_TOKENS).unwrap_or(MAX_TOKENS);
    let sampling = sampling::read(&mut fields, 0);
    let stop = fields.texts("stop", MAX_STOPS, &STOP).unwrap_or_default();
    let seed = fields.integer("seed", 0..=u64::MAX);
    let n_logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS).map(|n| n as usize);
    fields.finish()?;
    Ok(JobRequest {
        // Both are there, or `finish` would have said so.
        job_id: job_id.unwrap_or_default(),
        prompts: vec![Prompt::raw(prompt.unwrap_or_default())],
        n: 1,
        generation: Generation {
            max_tokens: Some(max_tokens as usize),
            sampling,
            stop,
            seed,
            n_logprobs,
            reports_metrics: true,
            ..Generation::default()
        },
    })
}

/// Starts the job and streams its events.
pub(crate) async fn execute(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let received = Received::now();
    let body = read_json(request).await?;
    // Before the faults: what a worker that is not ready says about a request helps nobody.
    state.ready()?;
    let request = parse(&body)?;
    drop(body);
    let job_id = request.job_id.clone();
    let Job { prompts, seeds, answers } = job::start(&state, received, request).await?;
    let started = Event::Started(Started {
        job_id,
        model: state.settings().model.clone(),
        started_at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        seed: seeds[0],
        prompt_tokens: prompts[0].len(),
    });
    Ok(sse::response(state.settings().keep_alive, Transcript { started: Some(started), answers }))
}

/// The job's frames: `started`, then those of its one answer up to the terminal one.
struct Transcript {
    started: Option<Event>,
    answers: Answers,
}

impl Frames for Transcript {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(started) = self.started.take() {
            return Some(started.frame());
        }
        self.answers.next().await.map(|(_, event)| event.frame())
    }
}

#[cfg(test)]
mod tests {
    use engine::Sampling;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::error::ErrorCode;

    /// A valid body with one field replaced, or added.
    fn body_with(field: &str, value: Value) -> String {
        let mut body = json!({ "job_id": "a", "prompt": "b" });
        body[field] = value;
        body.to_string()
    }

    fn error(body: &str) -> ApiError {
        parse(body).expect_err(body)
    }

    /// One fault, as `field constraint: message (value)`.
    fn fault(body: &str) -> String {
        let error = error(body);
        let [fault] = error.errors.as_slice() else { panic!("{body}: {error:?}") };
        let value = fault.value.as_ref().map_or(String::new(), |value| format!(" ({value})"));
        format!("{} {}: {}{value}", fault.field, fault.constraint, fault.message)
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let request = parse(r#"{"job_id": "a", "prompt": "b"}"#).unwrap();
        let sampling = Sampling {
            temperature: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        };
        let expected = JobRequest {
            job_id: "a".into(),
            prompts: vec![Prompt::raw("b".into())],
            n: 1,
            generation: Generation { max_tokens: Some(2048), sampling, reports_metrics: true, ..Generation::default() },
        };
        assert_eq!(request, expected);
        let all_null = FIELDS[2..].iter().fold(json!({ "job_id": "a", "prompt": "b" }), |mut body, field| {
            body[field] = Value::Null;
            body
        });
        assert_eq!(parse(&all_null.to_string()).unwrap(), expected);
    }

    #[test]
    fn takes_every_field_up_to_its_limits() {
        let body = json!({
            "job_id": "é".repeat(1024), "prompt": "語".repeat(32_768), "max_tokens": 2048, "temperature": 2,
            "top_p": 0, "min_p": 1.0, "top_k": 4_294_967_295u32, "repetition_penalty": 2e0, "stop": ["a", "b", "c", "d".repeat(100)],
            "seed": u64::MAX, "logprobs": 20,
        });
        let request = parse(&body.to_string()).unwrap().generation;
        assert_eq!(request.seed, Some(u64::MAX));
        assert_eq!(request.sampling.top_k, u32::MAX);
        assert_eq!(request.n_logprobs, Some(20));
        assert_eq!(request.stop.len(), 4);
        assert_eq!(parse(&body_with("max_tokens", json!(1))).unwrap().generation.max_tokens, Some(1));
        assert_eq!(parse(&body_with("max_tokens", json!(16.0))).unwrap().generation.max_tokens, Some(16));
        assert_eq!(parse(&body_with("temperature", json!(0))).unwrap().generation.sampling.temperature, 0.0);
    }

    #[test]
    fn ignores_unknown_fields_whatever_they_hold() {
        let deep = "[".repeat(50_000) + &"]".repeat(50_000);
        let body = format!(r#"{{"x": {deep}, "job_id": "a", "y": 1e999, "prompt": "b", "z": "\ud800"}}"#);
        assert_eq!(parse(&body).unwrap().prompts, [Prompt::raw("b".into())]);
    }

    #[test]
    fn of_a_field_given_twice_the_last_counts() {
        assert_eq!(parse(r#"{"job_id": "a", "prompt": 1, "prompt": "b"}"#).unwrap().prompts, [Prompt::raw("b".into())]);
    }

    #[test]
    fn every_rule_has_its_fault() {
        let long_prompt = body_with("prompt", json!("語".repeat(32_769)));
        let long_stop = body_with("stop", json!(["d".repeat(101)]));
        let long_id = body_with("job_id", json!("a".repeat(1025)));
        let huge = format!(r#"{{"job_id": "a", "prompt": "b", "seed": {}}}"#, "9".repeat(100_000));
        let raw = |field: &str, value: &str| format!(r#"{{"job_id": "a", "prompt": "b", "{field}": {value}}}"#);
        let faults = [
            fault(r#"{"prompt": "b"}"#),
            fault(r#"{"job_id": null, "prompt": "b"}"#),
            fault(r#"{"job_id": "a"}"#),
            fault(&body_with("job_id", json!(""))),
            fault(&body_with("job_id", json!(7))),
            fault(&long_id),
            fault(&body_with("prompt", json!(""))),
            fault(&body_with("prompt", json!(["secret"]))),
            fault(&long_prompt),
            fault(&raw("prompt", r#""\ud800""#)),
            fault(&body_with("max_tokens", json!(0))),
            fault(&body_with("max_tokens", json!(2049))),
            fault(&body_with("max_tokens", json!(-1))),
            fault(&body_with("max_tokens", json!(1.5))),
            fault(&body_with("max_tokens", json!("10"))),
            fault(&raw("max_tokens", "1e999")),
            fault(&body_with("temperature", json!(2.1))),
            fault(&body_with("temperature", json!(-0.1))),
            fault(&body_with("temperature", json!("NaN"))),
            fault(&raw("temperature", "1e999")),
            fault(&raw("temperature", "2.0000000001")),
            fault(&body_with("top_p", json!(1.01))),
            fault(&body_with("top_p", json!(true))),
            fault(&body_with("min_p", json!(-1))),
            fault(&body_with("top_k", json!(-1))),
            fault(&body_with("top_k", json!(4_294_967_296u64))),
            fault(&body_with("repetition_penalty", json!(0))),
            fault(&raw("repetition_penalty", "1e-60")),
            fault(&body_with("repetition_penalty", json!(2.5))),
            fault(&body_with("stop", json!("\n"))),
            fault(&body_with("stop", json!(["a", "b", "c", "d", "e"]))),
            fault(&body_with("stop", json!(vec![0; 1000]))),
            fault(&body_with("stop", json!(["a", ""]))),
            fault(&body_with("stop", json!(["a", 5]))),
            fault(&long_stop),
            fault(&body_with("seed", json!(-1))),
            fault(&raw("seed", "18446744073709551616")),
            fault(&huge),
            fault(&body_with("seed", json!({ "a": 1 }))),
            fault(&body_with("logprobs", json!(21))),
            fault(&body_with("logprobs", json!(true))),
        ];
        insta::assert_snapshot!(faults.join("\n"));
    }

    #[test]
    fn names_every_fault_at_once_and_never_the_prompt() {
        let body = json!({ "prompt": { "text": "secret" }, "temperature": 9, "top_k": "all", "stop": [] });
        insta::assert_json_snapshot!(error(&body.to_string()).errors);
        let body = json!({ "job_id": "a", "prompt": "secret".repeat(10_000), "seed": "x" });
        assert!(!format!("{:?}", error(&body.to_string())).contains("secret"));
    }

    #[test]
    fn names_every_fault_of_a_list() {
        let faults = error(&body_with("stop", json!(["fine", "", 5]))).errors;
        let messages: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
        assert_eq!(messages, ["stop[1]: expected 1 to 100 bytes, got 0", "stop[2]: expected a string, got a number"]);
    }

    #[test]
    fn says_where_the_json_breaks_off_and_never_quotes_it() {
        let check = |body: &str| error(body).message;
        let messages = [
            check(""),
            check("{"),
            check("{\n  \"prompt\": secret}"),
            check("{\"prompt\": \"secret}"),
            check("{\"prompt\": \"secret\"} x"),
            check("{\"prompt\": \"sec\nret\"}"),
            check("\"secret\""),
            check("[\"secret\"]"),
            check("7"),
            check("null"),
            check("{\"temperature\": NaN}"),
            check("{\"temperature\": Infinity}"),
            check("{\"temperature\": .5}"),
        ];
        assert!(messages.iter().all(|message| !message.contains("secret")));
        insta::assert_snapshot!(messages.join("\n"));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map("[a-z_]{1,6}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_values_are_taken_or_refused_by_name(
            values in prop::collection::vec((prop::sample::select(FIELDS), any_json()), 0..12),
        ) {
            let body: Value = values.into_iter().map(|(field, value)| (field.to_string(), value)).collect();
            if let Err(error) = parse(&body.to_string()) {
                prop_assert_eq!(error.code, ErrorCode::InvalidRequest);
                prop_assert!(!error.errors.is_empty());
            }
        }

        #[test]
        fn any_text_is_taken_or_refused(body in "[{}\\[\\]:,\"a-z0-9.eE\\\\ +-]{0,64}") {
            let _ = parse(&body);
        }
    }
}
