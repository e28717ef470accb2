//! What each route says to a body, without a worker behind it: what is fuzzed.

use crate::body;
use crate::error::ApiError;
use crate::routes::parsers;

/// A route that reads a JSON body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestBody {
    /// `POST /execute`.
    Execute,
    /// `POST /cancel`.
    Cancel,
    /// `POST /v1/chat/completions`.
    Chat,
    /// `POST /v1/completions`.
    Completions,
    /// `POST /tokenize`.
    Tokenize,
    /// `POST /detokenize`.
    Detokenize,
    /// `POST /apply-template`.
    ApplyTemplate,
}

impl RequestBody {
    /// Every one of them.
    pub const ALL: [Self; 7] = [
        Self::Execute,
        Self::Cancel,
        Self::Chat,
        Self::Completions,
        Self::Tokenize,
        Self::Detokenize,
        Self::ApplyTemplate,
    ];

    /// The name of its fuzz target, and of the folder with the target's seeds.
    pub fn name(self) -> &'static str {
        match self {
            Self::Execute => "execute_body",
            Self::Cancel => "cancel_body",
            Self::Chat => "chat_body",
            Self::Completions => "completions_body",
            Self::Tokenize => "tokenize_body",
            Self::Detokenize => "detokenize_body",
            Self::ApplyTemplate => "apply_template_body",
        }
    }

    /// Reads a body as the route does that takes it, for a model with `n_vocab` tokens, which is at least 1.
    ///
    /// # Errors
    /// [`crate::ErrorCode::InvalidRequest`] with every fault at once.
    pub fn check(self, bytes: &[u8], n_vocab: usize) -> Result<(), ApiError> {
        let body = body::utf8(bytes.to_vec())?;
        match self {
            Self::Execute => parsers::execute(&body),
            Self::Cancel => parsers::cancel(&body),
            Self::Chat => parsers::chat(&body, n_vocab),
            Self::Completions => parsers::completions(&body, n_vocab),
            Self::Tokenize => parsers::tokenize(&body),
            Self::Detokenize => parsers::detokenize(&body, n_vocab),
            Self::ApplyTemplate => parsers::apply_template(&body),
        }
    }
}
