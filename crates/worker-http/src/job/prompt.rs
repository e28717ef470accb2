//! What a job continues, and its way to token ids.

use std::fmt;
use std::sync::Arc;

use tokenizer::{EncodeOptions, TokenId, Tokenizer};

use crate::error::{ApiError, ErrorCode};
use crate::state::{AppState, TURN_TIMEOUT};

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
        /// Whether special tokens in it count as such, and whether BOS and EOS are added where the model's file says so. (One
        /// that wants EOS behind every prompt was made for something else than going on.)
        options: EncodeOptions,
    },
    /// Tokens of the vocabulary.
    Ids(Arc<[TokenId]>),
}

impl Prompt {
    /// Text by the contract's rule: raw, special tokens in it count as such, and BOS and EOS are added where the model's file
    /// says so.
    pub(crate) fn raw(text: String) -> Self {
        Self::Text { text, options: EncodeOptions { parse_special: true, add_special: true } }
    }

    /// Whether these prompts take so little time that any thread may encode them.
    pub(super) fn are_short(prompts: &[Self]) -> bool {
        prompts.iter().map(Self::text_bytes).sum::<usize>() <= INLINE_ENCODE_BYTES
    }

    fn text_bytes(&self) -> usize {
        match self {
            Self::Text { text, .. } => text.len(),
            Self::Ids(_) => 0,
        }
    }

    pub(super) fn into_ids(self, tokenizer: &Tokenizer) -> Arc<[TokenId]> {
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

/// Runs work on a prompt that may take long, off the threads that serve connections and with few others at a time.
///
/// # Errors
/// [`ErrorCode::QueueFull`] when its turn does not come, and [`ErrorCode::Internal`] when the work panics.
pub(crate) async fn on_encoder<T: Send + 'static>(
    state: &AppState,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let lost = || ApiError::new(ErrorCode::Internal, "the prompt could not be encoded");
    let Ok(turn) = tokio::time::timeout(TURN_TIMEOUT, state.encoders().acquire_owned()).await else {
        return Err(ApiError::new(ErrorCode::QueueFull, "too many other prompts are waiting to be encoded"));
    };
    let permit = turn.map_err(|_| lost())?;
    let span = tracing::Span::current();
    let done = tokio::task::spawn_blocking(move || {
        let _of_the_request = span.enter();
        // Held until the work is done, also where the client has left meanwhile.
        let _permit = permit;
        work()
    });
    done.await.map_err(|_| lost())
}
