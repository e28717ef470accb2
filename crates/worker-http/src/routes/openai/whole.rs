//! Answers that are sent when all of their choices are complete.

use axum::Json;
use serde_json::value::RawValue;

use super::form::{Envelope, Form, Usage};
use crate::error::{ApiError, ErrorCode};
use crate::event::{End, Event, TokenEvent};
use crate::job::Answers;

/// Collects every choice. The client's leaving drops the future, and with it the job.
///
/// # Errors
/// The first that ends a choice; the others are then cancelled.
pub(super) async fn collect<F: Form>(
    envelope: Envelope,
    form: F,
    mut answers: Answers,
    mut usage: Usage,
) -> Result<Json<Box<RawValue>>, ApiError> {
    let mut choices: Vec<(Vec<TokenEvent>, Option<End>)> = Vec::new();
    choices.resize_with(answers.n_open(), Default::default);
    while let Some((index, event)) = answers.next().await {
        match event {
            Event::Token(token) => {
                usage.count_token();
                choices[index].0.push(token);
            }
            Event::End(end) => {
                usage.count_end(index, &end);
                choices[index].1 = Some(end);
            }
            Event::Error(error) => return Err(ApiError::new(error.code, error.message)),
            Event::Started(_) | Event::Metrics(_) => {}
        }
    }
    let choices = choices.into_iter().enumerate().filter_map(|(index, (tokens, end))| {
        // Each has its end: `next` goes on until then.
        end.map(|end| form.whole(index, &tokens, end.stop_reason.into()))
    });
    let choices: Vec<F::Choice> = choices.collect();
    let filled = envelope.fill(F::OBJECT, &choices, Some(Some(&usage)));
    let json = serde_json::value::to_raw_value(&filled);
    json.map(Json).map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))
}
