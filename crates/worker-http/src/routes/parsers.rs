//! The routes' own readers of bodies, for whoever wants to know what they say and not what they read.

use super::{apply_template, cancel, detokenize, execute, openai, tokenize};
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

pub(crate) fn tokenize(body: &str) -> Result<(), ApiError> {
    tokenize::parse(body).map(drop)
}

pub(crate) fn detokenize(body: &str, n_vocab: usize) -> Result<(), ApiError> {
    detokenize::parse(body, n_vocab).map(drop)
}

pub(crate) fn apply_template(body: &str) -> Result<(), ApiError> {
    apply_template::parse(body).map(drop)
}
