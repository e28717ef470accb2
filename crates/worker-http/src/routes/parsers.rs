//! The routes' own readers of bodies, for whoever wants to know what they say and not what they read.

use super::{cancel, execute, openai};
use crate::error::ApiError;

pub(crate) fn execute(body: &str) -> Result<(), ApiError> {
    execute::parse(body).map(drop)
}

pub(crate) fn cancel(body: &str) -> Result<(), ApiError> {
    cancel::parse(body).map(drop)
}

pub(crate) fn chat(body: &str, n_vocab: usize) -> Result<(), ApiError> {
    openai::check_chat(body, n_vocab)
}

pub(crate) fn completions(body: &str, n_vocab: usize) -> Result<(), ApiError> {
    openai::check_completions(body, n_vocab)
}
