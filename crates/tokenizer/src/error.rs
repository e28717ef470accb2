//! What can be wrong with a vocabulary. Each error names the metadata key, what was expected and what was found.

use gguf_parser::ValueError;

/// Why a vocabulary is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A key is missing, or its value has another type than the tokenizer needs.
    #[error(transparent)]
    Metadata(#[from] ValueError),
    /// `tokenizer.ggml.model` names a kind of tokenizer that is not implemented.
    #[error("tokenizer.ggml.model: expected one of {known}, got {got:?}")]
    UnknownModel {
        /// The value in the file.
        got: String,
        /// Every known value.
        known: String,
    },
    /// `tokenizer.ggml.pre` names a pre-tokenizer that is not implemented; guessing one would give worse answers.
    #[error("tokenizer.ggml.pre: expected one of {known}, got {got:?}")]
    UnknownPreTokenizer {
        /// The value in the file.
        got: String,
        /// Every known value.
        known: String,
    },
    /// A list that a vocabulary of this kind needs is absent.
    #[error("{key}: expected {expected}, got nothing")]
    Missing {
        /// The metadata key.
        key: &'static str,
        /// What should be there.
        expected: &'static str,
    },
    /// There are no tokens at all.
    #[error("{key}: expected at least one token, got an empty list")]
    Empty {
        /// The metadata key.
        key: &'static str,
    },
    /// There are more tokens than [`MAX_TOKENS`](crate::MAX_TOKENS).
    #[error("{key}: expected at most {limit} tokens, got {got}")]
    TooManyTokens {
        /// The metadata key.
        key: &'static str,
        /// The most tokens a vocabulary may have.
        limit: usize,
        /// How many there are.
        got: usize,
    },
    /// A list that runs parallel to the tokens has another length.
    #[error("{key}: expected {expected} entries, as many as tokens, got {got}")]
    UnequalLength {
        /// The metadata key.
        key: &'static str,
        /// The number of tokens.
        expected: usize,
        /// The length of the list.
        got: usize,
    },
    /// Two ids have the same text.
    #[error("tokenizer.ggml.tokens: expected distinct tokens, got {token:?} at {first} and at {second}")]
    DuplicateToken {
        /// The text.
        token: String,
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
    },
    /// A token's type is not one that the format defines.
    #[error("tokenizer.ggml.token_type[{id}]: expected a type from 0 to 6, got {got}")]
    UnknownTokenType {
        /// The token.
        id: u32,
        /// The number in the file.
        got: i64,
    },
    /// A token of type BYTE does not name a byte.
    #[error("tokenizer.ggml.tokens[{id}]: expected a byte token such as <0x0A>, got {got:?}")]
    BadByteToken {
        /// The token.
        id: u32,
        /// Its text.
        got: String,
    },
    /// A token's score is not a number, so that merges have no order.
    #[error("tokenizer.ggml.scores[{id}]: expected a number, got NaN")]
    BadScore {
        /// The token.
        id: u32,
    },
    /// A merge is not two parts with a space between.
    #[error("tokenizer.ggml.merges[{index}]: expected two parts with a space between, got {got:?}")]
    BadMerge {
        /// The place in the list.
        index: usize,
        /// The merge.
        got: String,
    },
    /// A merge's part or result is not a token.
    #[error(
        "tokenizer.ggml.merges[{index}]: expected parts and result to be tokens, got {got:?}, and {unknown:?} is none"
    )]
    UnknownInMerge {
        /// The place in the list.
        index: usize,
        /// The merge.
        got: String,
        /// The part, or the result, that is no token.
        unknown: String,
    },
    /// A byte that can occur in text has no token, so that some texts have no encoding.
    #[error("tokenizer.ggml.tokens: expected a token for each byte of UTF-8, got none for 0x{byte:02X}")]
    MissingByteToken {
        /// The first such byte.
        byte: u8,
    },
    /// A special id is no token of the vocabulary.
    #[error("{key}: expected an id below {n_vocab}, got {got}")]
    IdOutsideVocabulary {
        /// The metadata key.
        key: &'static str,
        /// The number of tokens.
        n_vocab: usize,
        /// The id in the file.
        got: u64,
    },
    /// A special token is to be added to every text, but the file does not say which.
    #[error("{key}: expected an id because {flag} is true, got nothing")]
    MissingId {
        /// The key of the id.
        key: &'static str,
        /// The key that asks for it.
        flag: &'static str,
    },
    /// A token is too long, or all are, or all special ones.
    #[error("{key}: expected at most {limit} bytes {what}, got {got}")]
    TooLong {
        /// The metadata key.
        key: &'static str,
        /// What is too long: `in all`, `of special tokens`, `in a token`.
        what: &'static str,
        /// The most bytes it may have.
        limit: usize,
        /// How many it has.
        got: usize,
    },
}
