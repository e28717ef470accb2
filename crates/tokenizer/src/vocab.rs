//! A vocabulary as the file states it ([`Vocab`]), and the checked table of its tokens.

use crate::TokenId;
use crate::byte_alphabet;
use crate::error::TokenizerError;
use crate::table::{Insert, TokenTable};

/// The most tokens a vocabulary may have. The largest published ones hold about a million.
pub const MAX_TOKENS: usize = 1 << 24;

/// The most bytes that all tokens may have together, so that an offset fits 32 bits. Published vocabularies have a few
/// million.
const MAX_TOKEN_BYTES: usize = 1 << 30;

/// `tokenizer.ggml.tokens`.
pub(crate) const KEY_TOKENS: &str = "tokenizer.ggml.tokens";
/// `tokenizer.ggml.token_type`.
pub(crate) const KEY_TYPES: &str = "tokenizer.ggml.token_type";
/// `tokenizer.ggml.scores`.
pub(crate) const KEY_SCORES: &str = "tokenizer.ggml.scores";
/// `tokenizer.ggml.merges`.
pub(crate) const KEY_MERGES: &str = "tokenizer.ggml.merges";

/// What a token is for, as `tokenizer.ggml.token_type` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TokenType {
    /// 0: the file does not say; used as a normal token.
    Undefined = 0,
    /// 1: a piece of text.
    Normal = 1,
    /// 2: stands for what the vocabulary cannot spell; no text.
    Unknown = 2,
    /// 3: structure (`<|im_end|>`): no text, and never made from text unless special tokens are parsed.
    Control = 3,
    /// 4: text that is always one token, wherever it stands.
    UserDefined = 4,
    /// 5: a place kept free; no text.
    Unused = 5,
    /// 6: one byte, written `<0x0A>`.
    Byte = 6,
}

impl TokenType {
    /// The type of that number.
    pub fn from_number(number: i64) -> Option<TokenType> {
        use TokenType::*;
        [Undefined, Normal, Unknown, Control, UserDefined, Unused, Byte].get(usize::try_from(number).ok()?).copied()
    }

    /// Whether the token has no text of its own, and is left out when ids are decoded for a reader.
    pub(crate) fn is_hidden(self) -> bool {
        matches!(self, TokenType::Unknown | TokenType::Control | TokenType::Unused)
    }

    /// Whether ordinary text may become this token by merging.
    ///
    /// CONTROL, UNKNOWN and BYTE tokens are left out, so that no text a user types turns into structure. (llama.cpp
    /// lets a SentencePiece vocabulary merge its way to `</s>`; SentencePiece itself does not.)
    pub(crate) fn is_made_by_merging(self) -> bool {
        matches!(self, TokenType::Undefined | TokenType::Normal | TokenType::UserDefined | TokenType::Unused)
    }
}

/// A vocabulary as a GGUF file states it, before any check.
///
/// [`Tokenizer::new`](crate::Tokenizer::new) checks it. The lists that do not apply to the model's kind are ignored.
#[derive(Clone, Debug, Default)]
pub struct Vocab<'a> {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: &'a str,
    /// `tokenizer.ggml.pre`; needed for `gpt2`.
    pub pre: Option<&'a str>,
    /// `general.name`; a few models are known by it to strip white space around their special tokens.
    pub name: &'a str,
    /// `tokenizer.ggml.tokens`: the text of each id.
    pub tokens: Vec<&'a str>,
    /// `tokenizer.ggml.token_type`; none means all normal.
    pub types: Option<Vec<TokenType>>,
    /// `tokenizer.ggml.scores`; needed for `llama`.
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.merges`: `"left right"`, the first is done first; needed for `gpt2`.
    pub merges: Option<Vec<&'a str>>,
    /// The special ids.
    pub special: SpecialIds,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`; used by `llama`.
    pub add_space_prefix: Option<bool>,
}

/// The special ids that the metadata names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// `tokenizer.ggml.bos_token_id`: begins a text.
    pub bos: Option<TokenId>,
    /// `tokenizer.ggml.eos_token_id`: ends a text.
    pub eos: Option<TokenId>,
    /// `tokenizer.ggml.eot_token_id`: ends a turn.
    pub eot: Option<TokenId>,
    /// `tokenizer.ggml.eom_token_id`: ends a message that a tool is to answer.
    pub eom: Option<TokenId>,
    /// `tokenizer.ggml.unknown_token_id`: stands for what cannot be spelt.
    pub unknown: Option<TokenId>,
}

impl SpecialIds {
    /// Each id with its key.
    fn named(&self) -> [(&'static str, Option<TokenId>); 5] {
        [
            ("tokenizer.ggml.bos_token_id", self.bos),
            ("tokenizer.ggml.eos_token_id", self.eos),
            ("tokenizer.ggml.eot_token_id", self.eot),
            ("tokenizer.ggml.eom_token_id", self.eom),
            ("tokenizer.ggml.unknown_token_id", self.unknown),
        ]
    }
}

/// How the vocabulary spells bytes in its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// In GPT-2's [byte alphabet](crate::byte_alphabet).
    ByteAlphabet,
    /// As text, with U+2581 for a space, and `<0x0A>` for a byte.
    SentencePiece,
}

impl Vocab<'_> {
    /// Checks what holds for vocabularies of every kind.
    pub(crate) fn check(&self) -> Result<(), TokenizerError> {
        let n_vocab = self.tokens.len();
        if n_vocab == 0 {
            return Err(TokenizerError::Empty { key: KEY_TOKENS });
        }
        if n_vocab > MAX_TOKENS {
            return Err(TokenizerError::TooManyTokens { key: KEY_TOKENS, limit: MAX_TOKENS, got: n_vocab });
        }
        let got = self.tokens.iter().map(|token| token.len()).sum();
        if got > MAX_TOKEN_BYTES {
            return Err(TokenizerError::TooLong { key: KEY_TOKENS, what: "in all", limit: MAX_TOKEN_BYTES, got });
        }
        let lengths =
            [(KEY_TYPES, self.types.as_ref().map(Vec::len)), (KEY_SCORES, self.scores.as_ref().map(Vec::len))];
        for (key, len) in lengths {
            if let Some(got) = len.filter(|len| *len != n_vocab) {
                return Err(TokenizerError::UnequalLength { key, expected: n_vocab, got });
            }
        }
        for (key, id) in self.special.named() {
            if let Some(id) = id.filter(|id| *id as usize >= n_vocab) {
                return Err(TokenizerError::IdOutsideVocabulary { key, n_vocab, got: u64::from(id) });
            }
        }
        Ok(())
    }

    /// The type of token `id`.
    pub(crate) fn type_of(&self, id: usize) -> TokenType {
        self.types.as_ref().map_or(TokenType::Normal, |types| types[id])
    }

    /// The bytes of every token, and the look-up from bytes to the id of a token that text can become.
    pub(crate) fn token_table(&self, spelling: Spelling) -> Result<TokenTable, TokenizerError> {
        let text_bytes = self.tokens.iter().map(|token| token.len()).sum();
        let mut table = TokenTable::with_capacity(self.tokens.len(), text_bytes);
        for (id, token) in self.tokens.iter().enumerate() {
            let ty = self.type_of(id);
            if !table.push(ty, |bytes| spell(token, ty, spelling, bytes)) {
                return Err(TokenizerError::BadByteToken { id: id as u32, got: (*token).to_owned() });
            }
        }
        self.fill_lookup(&mut table)?;
        Ok(table)
    }

    /// Enters the mergeable tokens into the look-up, normal ones first, and refuses two tokens of the same text.
    fn fill_lookup(&self, table: &mut TokenTable) -> Result<(), TokenizerError> {
        let mut others = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if token.is_empty() {
                continue;
            }
            if matches!(self.type_of(id), TokenType::Normal | TokenType::Undefined) {
                self.insert(table, id)?;
            } else {
                others.push(id);
            }
        }
        let mut seen = rustc_hash::FxHashMap::default();
        for id in others {
            if let Some(first) = seen.insert(self.tokens[id], id) {
                return Err(self.duplicate(first, id));
            }
            if self.type_of(id).is_made_by_merging() {
                self.insert(table, id)?;
            } else if let Some(first) = table.find(table.bytes(id as TokenId)) {
                self.check_distinct(first as usize, id)?;
            }
        }
        Ok(())
    }

    fn insert(&self, table: &mut TokenTable, id: usize) -> Result<(), TokenizerError> {
        match table.insert(id as TokenId) {
            Insert::New => Ok(()),
            // The same bytes in another spelling: the first keeps them.
            Insert::Present(first) => self.check_distinct(first as usize, id),
        }
    }

    fn check_distinct(&self, first: usize, second: usize) -> Result<(), TokenizerError> {
        if self.tokens[first] == self.tokens[second] { Err(self.duplicate(first, second)) } else { Ok(()) }
    }

    fn duplicate(&self, first: usize, second: usize) -> TokenizerError {
        let (first, second) = (first.min(second), first.max(second));
        TokenizerError::DuplicateToken {
            token: self.tokens[first].to_owned(),
            first: first as u32,
            second: second as u32,
        }
    }
}

/// Appends the bytes that `token` stands for. False if it is a byte token that names no byte.
fn spell(token: &str, ty: TokenType, spelling: Spelling, out: &mut Vec<u8>) -> bool {
    match (ty, spelling) {
        (TokenType::Byte, _) => match byte_of(token) {
            Some(byte) => out.push(byte),
            None => return false,
        },
        (TokenType::Normal | TokenType::Undefined, Spelling::ByteAlphabet) => {
            // A token with a character outside the alphabet stands for its own UTF-8, as in Hugging Face's decoder.
            if !byte_alphabet::decode_into(token, out) {
                out.extend_from_slice(token.as_bytes());
            }
        }
        (TokenType::Normal | TokenType::Undefined, Spelling::SentencePiece) => {
            let mut parts = token.split('\u{2581}');
            out.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
            for part in parts {
                out.push(b' ');
                out.extend_from_slice(part.as_bytes());
            }
        }
        _ => out.extend_from_slice(token.as_bytes()),
    }
    true
}

/// The byte that `<0xHH>` names.
fn byte_of(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 && hex.bytes().all(|c| c.is_ascii_hexdigit()) { u8::from_str_radix(hex, 16).ok() } else { None }
}
