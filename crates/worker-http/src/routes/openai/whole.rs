//! Answers that are sent when all of their choices are complete.

use axum::Json;
use serde_json::value::RawValue;

use super::form::{Complete, Envelope, Form, Usage};
use crate::error::{ApiError, ErrorCode};
use crate::event::Event;
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
    let n_choices = answers.n_open();
    let (mut prompt_logprobs, mut tokens) = (vec![Vec::new(); n_choices], vec![Vec::new(); n_choices]);
    let mut ends = vec![None; n_choices];
    while let Some((index, event)) = answers.next().await {
        match event {
            Event::PromptLogprobs(logprobs) => prompt_logprobs[index].extend(logprobs),
            Event::Token(token) => {
                usage.count_token();
                tokens[index].push(token);
            }
            Event::End(end) => {
                usage.count_end(index, &end);
                ends[index] = Some(end);
            }
            Event::Error(error) => return Err(ApiError::new(error.code, error.message)),
            Event::Started(_) | Event::Metrics(_) => {}
        }
    }
    let parts = prompt_logprobs.into_iter().zip(tokens).zip(ends).enumerate();
    let choices = parts.filter_map(|(index, ((prompt_logprobs, tokens), end))| {
        // Each has its end: `next` goes on until then.
        end.map(|end| form.whole(index, &Complete { prompt_logprobs, tokens, end }))
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
    use crate::event::TokenEvent;
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

        fn whole(&self, _: usize, _: &Complete) {}
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
            let (envelope, usage) = (Envelope::new(&state, "id".into()), Usage::of_prompts(1, 2));
            let error = collect(envelope, Mute, answers, usage).await.unwrap_err();
            assert_eq!(error, ApiError::new(code, "so it ends"));
            assert_eq!(error.into_response().status().as_u16(), status);
        }
    }
}
