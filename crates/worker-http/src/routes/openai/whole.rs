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

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;
    use crate::error::ApiError;
    use crate::routes::openai::form::FinishReason;
    use crate::state::{AppState, KEEP_ALIVE, Settings};

    /// A form that says nothing.
    struct Mute;

    impl Form for Mute {
        const OBJECT: &'static str = "";
        const CHUNK_OBJECT: &'static str = "";
        type Chunk = ();
        type Choice = ();

        fn first(&self, _: usize) -> Option<()> {
            None
        }

        fn next(&mut self, _: usize, _: &TokenEvent) -> Option<()> {
            None
        }

        fn last(&self, _: usize, _: FinishReason) {}

        fn whole(&self, _: usize, _: &[TokenEvent], _: FinishReason) {}
    }

    #[tokio::test]
    async fn what_ends_a_choice_is_the_status_of_all() {
        let settings = Settings {
            worker_id: "w".into(),
            model: "m".into(),
            model_file: "m.gguf".into(),
            inference_timeout: None,
            keep_alive: KEEP_ALIVE,
            log_prompts: false,
            body_read_timeout: crate::BODY_READ_TIMEOUT,
            access: crate::Access::default(),
        };
        let state = AppState::new(settings);
        for (code, status) in [(ErrorCode::Cancelled, 499), (ErrorCode::InferenceTimeout, 504)] {
            let error = Event::Error(ApiError::new(code, "so it ends").into());
            let answers = Answers::of_events(vec![vec![], vec![error]]);
            let (envelope, usage) = (Envelope::new(&state, "id".into()), Usage::of_prompts(&[1], 2));
            let error = collect(envelope, Mute, answers, usage).await.unwrap_err();
            assert_eq!(error, ApiError::new(code, "so it ends"));
            assert_eq!(error.into_response().status().as_u16(), status);
        }
    }
}
