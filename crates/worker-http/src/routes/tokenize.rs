//! `POST /tokenize`: text to token ids, in llama-server's form.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde::Serialize;
use tokenizer::{EncodeOptions, TokenId, Tokenizer};

use crate::body::read_json;
use crate::error::ApiError;
use crate::fields::{Fields, TextRule, Unit};
use crate::job::on_encoder;
use crate::state::AppState;

/// The longest text: half a body. Pieces make up to fifty bytes of answer from each of its bytes.
const MAX_CONTENT_BYTES: usize = 512 << 10;
const CONTENT: TextRule = TextRule { len: 0..=MAX_CONTENT_BYTES, unit: Unit::Bytes, echo: false };
const FIELDS: &[&str] = &["content", "add_special", "parse_special", "with_pieces"];

/// What `POST /tokenize` answers.
#[derive(Serialize)]
pub(crate) struct Tokenized {
    tokens: Tokens,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Tokens {
    Ids(Vec<TokenId>),
    WithPieces(Vec<Token>),
}

#[derive(Serialize)]
struct Token {
    id: TokenId,
    piece: Piece,
}

/// What a token stands for: text, or its bytes where they are no whole characters.
#[derive(Serialize)]
#[serde(untagged)]
enum Piece {
    Text(String),
    Bytes(Vec<u8>),
}

impl Token {
    fn new(tokenizer: &Tokenizer, id: TokenId) -> Self {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default().to_vec();
        let piece = String::from_utf8(bytes).map_or_else(|error| Piece::Bytes(error.into_bytes()), Piece::Text);
        Self { id, piece }
    }
}

/// As soon as there is a model, and also while the worker drains: it costs the device nothing.
pub(crate) async fn tokenize(State(state): State<AppState>, request: Request) -> Result<Json<Tokenized>, ApiError> {
    let body = read_json(request).await?;
    let tokenizer = Arc::clone(&state.loaded()?.tokenizer);
    let Asked { content, options, with_pieces } = parse(&body)?;
    let tokens = on_encoder(&state, move || {
        let ids = tokenizer.encode(&content, options);
        if with_pieces {
            Tokens::WithPieces(ids.into_iter().map(|id| Token::new(&tokenizer, id)).collect())
        } else {
            Tokens::Ids(ids)
        }
    });
    Ok(Json(Tokenized { tokens: tokens.await? }))
}

/// A text to split, checked.
pub(super) struct Asked {
    content: String,
    options: EncodeOptions,
    with_pieces: bool,
}

/// Reads what is asked.
///
/// # Errors
/// Every fault at once.
pub(super) fn parse(body: &str) -> Result<Asked, ApiError> {
    let mut fields = Fields::parse(body, FIELDS)?;
    let content = fields.required_text("content", &CONTENT);
    let options = EncodeOptions {
        add_special: fields.boolean("add_special").unwrap_or(false),
        parse_special: fields.boolean("parse_special").unwrap_or(true),
    };
    let with_pieces = fields.boolean("with_pieces").unwrap_or(false);
    fields.finish()?;
    // There, or `finish` would have said so.
    Ok(Asked { content: content.unwrap_or_default(), options, with_pieces })
}
