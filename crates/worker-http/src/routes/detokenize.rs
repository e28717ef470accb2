//! `POST /detokenize`: token ids to text, in llama-server's form.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde::Serialize;
use tokenizer::{TokenId, Tokenizer};

use crate::body::read_json;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::job::on_encoder;
use crate::state::AppState;

/// The longest text, in bytes: a token may stand for hundreds, so that a body of ids could ask for a hundred MB.
const MAX_TEXT_BYTES: usize = 8 << 20;

/// What `POST /detokenize` answers.
#[derive(Serialize)]
pub(crate) struct Detokenized {
    content: String,
}

/// Special tokens are written out: what `POST /tokenize` read comes back.
pub(crate) async fn detokenize(State(state): State<AppState>, request: Request) -> Result<Json<Detokenized>, ApiError> {
    let body = read_json(request).await?;
    let tokenizer = Arc::clone(&state.loaded()?.tokenizer);
    let ids = parse(&body, tokenizer.n_vocab())?;
    check_text_len(&tokenizer, ids.iter().copied(), "tokens")?;
    let content = on_encoder(&state, move || tokenizer.decode_with(&ids, true)).await?;
    Ok(Json(Detokenized { content }))
}

/// Whether these ids stand for no more text than is written out; `field` is theirs.
///
/// # Errors
/// A fault of `field`.
pub(super) fn check_text_len(
    tokenizer: &Tokenizer,
    ids: impl Iterator<Item = TokenId>,
    field: &'static str,
) -> Result<(), ApiError> {
    let n_bytes: usize = ids.map(|id| tokenizer.token_bytes(id).map_or(0, <[u8]>::len)).sum();
    if n_bytes > MAX_TEXT_BYTES {
        let message = format!("{field}: expected at most {MAX_TEXT_BYTES} bytes of text, got {n_bytes}");
        return Err(ApiError::field(field, "length", message));
    }
    Ok(())
}

/// Reads the ids, for a vocabulary of `n_vocab` tokens, which is at least 1.
///
/// # Errors
/// Every fault at once.
pub(super) fn parse(body: &str, n_vocab: usize) -> Result<Vec<TokenId>, ApiError> {
    let mut fields = Fields::parse(body, &["tokens"])?;
    let ids = read_ids(&mut fields, n_vocab);
    fields.finish()?;
    // There, or `finish` would have said so.
    Ok(ids.unwrap_or_default())
}

/// `tokens`; `None` with a fault.
fn read_ids(fields: &mut Fields<'_>, n_vocab: usize) -> Option<Vec<TokenId>> {
    let Some(raw) = fields.raw("tokens") else {
        fields.fault("tokens", "required", "expected a list of token ids, got nothing", None);
        return None;
    };
    let ids: Option<Vec<TokenId>> = serde_json::from_str(raw.get()).ok();
    let ids = ids.filter(|ids| ids.iter().all(|&id| (id as usize) < n_vocab));
    if ids.is_none() {
        let message = format!("expected a list of token ids: integers from 0 to {}", n_vocab - 1);
        fields.fault("tokens", "value", &message, None);
    }
    ids
}
