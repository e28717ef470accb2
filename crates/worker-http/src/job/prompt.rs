//! What a job continues, and its way to token ids.

use std::fmt;
use std::sync::Arc;

use tokenizer::{EncodeOptions, TokenId, Tokenizer};

use crate::error::{ApiError, ErrorCode};
use crate::state::AppState;

/// Prompts longer than this are encoded off the threads that serve connections. At 5 MB/s and more, shorter ones take
/// under a millisecond.
const INLINE_ENCODE_BYTES: usize = 4096;

/// What is to be continued.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prompt {
    /// Text, to be encoded.
    Text {
        /// As it came, or as a chat template wrote it.
        text: String,
        /// Whether special tokens in it count as such, and whether BOS is added where the model wants it.
        options: EncodeOptions,
    },
    /// Tokens of the vocabulary.
    Ids(Arc<[TokenId]>),
}

impl Prompt {
    /// Text by the contract's rule: raw, special tokens in it count as such, and BOS is added where the model wants it.
    pub(crate) fn raw(text: String) -> Self {
        Self::Text { text, options: EncodeOptions { parse_special: true, add_special: true } }
    }

    fn text_bytes(&self) -> usize {
        match self {
            Self::Text { text, .. } => text.len(),
            Self::Ids(_) => 0,
        }
    }

    fn into_ids(self, tokenizer: &Tokenizer) -> Arc<[TokenId]> {
        match self {
            Self::Text { text, options } => tokenizer.encode(&text, options).into(),
            Self::Ids(ids) => ids,
        }
    }
}

/// For the log, where it is wanted there.
impl fmt::Display for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { text, .. } => f.write_str(text),
            Self::Ids(ids) => write!(f, "{ids:?}"),
        }
    }
}

/// The ids of each prompt.
pub(super) async fn encode(
    state: &AppState,
    tokenizer: &Arc<Tokenizer>,
    prompts: Vec<Prompt>,
) -> Result<Vec<Arc<[TokenId]>>, ApiError> {
    let tokenizer = Arc::clone(tokenizer);
    let n_bytes: usize = prompts.iter().map(Prompt::text_bytes).sum();
    let work = move || prompts.into_iter().map(|prompt| prompt.into_ids(&tokenizer)).collect();
    if n_bytes <= INLINE_ENCODE_BYTES { Ok(work()) } else { on_encoder(state, work).await }
}

/// Runs work on a prompt that may take long, off the threads that serve connections and with few others at a time.
///
/// # Errors
/// [`ErrorCode::Internal`] when the work panics.
pub(crate) async fn on_encoder<T: Send + 'static>(
    state: &AppState,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let lost = || ApiError::new(ErrorCode::Internal, "the prompt could not be encoded");
    let permit = state.encoders().acquire_owned().await.map_err(|_| lost())?;
    let span = tracing::Span::current();
    let done = tokio::task::spawn_blocking(move || {
        let _of_the_request = span.enter();
        // Held until the work is done, also where the client has left meanwhile.
        let _permit = permit;
        work()
    });
    done.await.map_err(|_| lost())
}
