//! The events of an answer, and their form on the wire of `POST /execute`: server-sent events.
//!
//! A frame names its event twice, as `event:` for readers of server-sent events and as `"type"` inside the JSON for those
//! who only look at `data:`.

use bytes::Bytes;
use serde::Serialize;

use crate::error::{ApiError, ErrorCode};
use crate::sse;

/// What a job's client is told, in order: one `Started`, any number of `Token`s with a `Metrics` here and there, then
/// exactly one `End` or `Error`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Event {
    Started(Started),
    /// Log-probabilities of the prompt's next tokens, from its second on; they come before the first `Token`. For routes that
    /// ask for them, which write them in their own forms.
    #[serde(skip)]
    PromptLogprobs(Vec<engine::TokenLogprobs>),
    Token(TokenEvent),
    Metrics(JobMetrics),
    End(End),
    Error(ErrorEvent),
}

/// The job is accepted: it runs, or waits for its turn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Started {
    pub(crate) job_id: String,
    pub(crate) model: String,
    /// RFC 3339, UTC, milliseconds.
    pub(crate) started_at: String,
    pub(crate) seed: u64,
    pub(crate) prompt_tokens: usize,
}

/// One generated id.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct TokenEvent {
    /// The text that this id completes; empty while it is held back.
    pub(crate) t: String,
    /// Counts token events from 0.
    pub(crate) i: usize,
    pub(crate) id: u32,
    #[serde(flatten)]
    pub(crate) logprobs: Option<TokenLogprobs>,
}

/// Natural logarithms of the model's own probabilities, before any sampling rule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct TokenLogprobs {
    pub(crate) logprob: f32,
    pub(crate) top: Vec<TopLogprob>,
}

/// One of the most likely tokens at a position, best first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct TopLogprob {
    pub(crate) id: u32,
    /// The token by itself; bytes that are no complete character show as U+FFFD.
    pub(crate) text: String,
    pub(crate) logprob: f32,
}

/// How a running job is doing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct JobMetrics {
    pub(crate) tokens_out: usize,
    pub(crate) tokens_per_sec: f64,
    pub(crate) vram_bytes: u64,
    pub(crate) memory_bytes: u64,
}

/// The answer is complete.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct End {
    /// Token events sent.
    pub(crate) tokens_out: usize,
    /// From the first token to the last.
    pub(crate) decode_time_ms: u64,
    pub(crate) stop_reason: StopReason,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_sequence_matched: Option<String>,
    /// Prompt tokens found in the cache, for routes that report it. Where a stop string ended the answer: when the answer
    /// was begun.
    #[serde(skip)]
    pub(crate) n_cached: usize,
    /// The end token that the model chose, where its log-probabilities were asked for; for routes that report it.
    #[serde(skip)]
    pub(crate) end_token: Option<(u32, engine::TokenLogprobs)>,
}

/// Why an answer is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum StopReason {
    /// `max_tokens`, or the context, is used up.
    MaxTokens,
    /// The model ended it.
    Eos,
    /// A stop string came up.
    StopSequence,
}

/// The answer was cut off.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ErrorEvent {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    pub(crate) retriable: bool,
}

impl From<ApiError> for ErrorEvent {
    fn from(error: ApiError) -> Self {
        Self { code: error.code, retriable: error.code.retriable(), message: error.message }
    }
}

impl Event {
    /// Whether nothing follows.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Self::End(_) | Self::Error(_))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Started(_) => "started",
            Self::PromptLogprobs(_) => "prompt_logprobs",
            Self::Token(_) => "token",
            Self::Metrics(_) => "metrics",
            Self::End(_) => "end",
            Self::Error(_) => "error",
        }
    }

    /// The event as one server-sent event.
    pub(crate) fn frame(&self) -> Bytes {
        sse::frame(Some(self.name()), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(events: &[Event]) -> String {
        events.iter().map(|event| String::from_utf8(event.frame().to_vec()).unwrap()).collect()
    }

    #[test]
    fn frames_name_the_event_twice() {
        let top = vec![TopLogprob { id: 7, text: "a\nb".into(), logprob: -0.25 }];
        let events = [
            Event::Started(Started {
                job_id: "job \"1\"".into(),
                model: "haiku".into(),
                started_at: "2025-01-02T03:04:05.678Z".into(),
                seed: u64::MAX,
                prompt_tokens: 3,
            }),
            Event::Token(TokenEvent { t: "\n\n".into(), i: 0, id: 7, logprobs: None }),
            Event::Token(TokenEvent {
                t: String::new(),
                i: 1,
                id: 8,
                logprobs: Some(TokenLogprobs { logprob: -1.5, top }),
            }),
            Event::Metrics(JobMetrics { tokens_out: 2, tokens_per_sec: 12.5, vram_bytes: 0, memory_bytes: 4096 }),
            Event::End(End {
                tokens_out: 2,
                decode_time_ms: 17,
                stop_reason: StopReason::StopSequence,
                stop_sequence_matched: Some("\n\n".into()),
                n_cached: 1,
                end_token: None,
            }),
            Event::Error(ApiError::new(ErrorCode::VramOom, "out of device memory").into()),
        ];
        insta::assert_snapshot!(transcript(&events));
    }
}
