//! The tokenizer: a checked vocabulary with its tables, and encoding and decoding over them.

use std::sync::Arc;

use gguf_parser::Gguf;

use crate::TokenId;
use crate::bpe::Bpe;
use crate::error::TokenizerError;
use crate::pretokenize::PreTokenizer;
use crate::special::{Part, SpecialTokens};
use crate::spm::Spm;
use crate::stream::StreamDecoder;
use crate::table::TokenTable;
use crate::vocab::{SpecialIds, Spelling, TokenType, Vocab};

/// Turns text into token ids and back.
///
/// Cheap to clone: clones share one vocabulary.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tokens: TokenTable,
    kind: Kind,
    pre: String,
    special_tokens: SpecialTokens,
    special: SpecialIds,
    end_tokens: Vec<TokenId>,
    add_bos: bool,
    add_eos: bool,
}

#[derive(Debug)]
enum Kind {
    Bpe(Box<Bpe>),
    Spm(Box<Spm>),
}

/// What [`Tokenizer::encode`] does beside merging.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// The text of a CONTROL token becomes that token. Leave it off for text from outside that must stay text.
    pub parse_special: bool,
    /// BOS and EOS are added where the metadata says so; never a second one.
    pub add_special: bool,
}

/// The names by which CONTROL tokens end generation, whatever the metadata calls eos.
const END_TOKEN_NAMES: [&str; 7] =
    ["<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "</s>"];

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes.
    ///
    /// # Errors
    /// [`TokenizerError`] names the metadata key at fault, what was expected and what was found.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::new(&Vocab::from_gguf(gguf)?)
    }

    /// Builds the tokenizer of `vocab`.
    ///
    /// # Errors
    /// [`TokenizerError`] names the metadata key at fault, what was expected and what was found.
    pub fn new(vocab: &Vocab<'_>) -> Result<Tokenizer, TokenizerError> {
        let spelling = match vocab.model {
            "gpt2" => Spelling::ByteAlphabet,
            "llama" => Spelling::SentencePiece,
            got => {
                return Err(TokenizerError::UnknownModel {
                    got: got.to_owned(),
                    known: "\"gpt2\", \"llama\"".to_owned(),
                });
            }
        };
        vocab.check()?;
        let pre = if spelling == Spelling::ByteAlphabet { Some(pre_tokenizer(vocab)?) } else { None };
        let tokens = vocab.token_table(spelling)?;
        let special = match pre {
            Some(_) => vocab.special,
            None => with_sentencepiece_defaults(vocab),
        };
        let (kind, adds_bos) = match pre {
            Some(pre) => (Kind::Bpe(Box::new(Bpe::new(vocab, &tokens, pre)?)), pre.adds_bos()),
            None => (Kind::Spm(Box::new(Spm::new(vocab, special.unknown, &tokens)?)), true),
        };
        let inner = Inner {
            tokens,
            kind,
            pre: vocab.pre.unwrap_or("default").to_owned(),
            special_tokens: SpecialTokens::new(vocab)?,
            special,
            end_tokens: end_tokens(vocab, special),
            add_bos: is_added(ADD_BOS, vocab.add_bos, special.bos, adds_bos)?,
            add_eos: is_added(ADD_EOS, vocab.add_eos, special.eos, false)?,
        };
        Ok(Tokenizer { inner: Arc::new(inner) })
    }

    /// The ids of `text`.
    ///
    /// Any text has ids; equal texts have equal ids. The text of a USER_DEFINED token always becomes that token.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Vec<TokenId> {
        let inner = &*self.inner;
        // Prose comes to about four bytes a token.
        let mut out = Vec::with_capacity(text.len() / 4 + 2);
        // A piece at the beginning or behind a special token begins a text of its own.
        let mut begins = true;
        inner.special_tokens.split(text, options.parse_special, |part| match (part, &inner.kind) {
            (Part::Token(id), _) => {
                out.push(id);
                begins = true;
            }
            (Part::Text(text), Kind::Bpe(bpe)) => bpe.encode(&inner.tokens, text, &mut out),
            (Part::Text(text), Kind::Spm(spm)) => {
                spm.encode(&inner.tokens, text, begins, &mut out);
                begins = false;
            }
        });
        if options.add_special {
            if let Some(bos) = self.added_bos().filter(|bos| out.first() != Some(bos)) {
                out.insert(0, bos);
            }
            if let Some(eos) = self.added_eos().filter(|eos| out.last() != Some(eos)) {
                out.push(eos);
            }
        }
        out
    }

    /// The text of `ids`, without that of control tokens. Bytes that are not UTF-8 become U+FFFD; an id outside the
    /// vocabulary has no text.
    ///
    /// Where the vocabulary puts a space in front of every text, one space in front is taken off.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        self.decode_with(ids, false)
    }

    /// [`decode`](Self::decode), with control tokens written out if `show_special`.
    pub fn decode_with(&self, ids: &[TokenId], show_special: bool) -> String {
        self.stream_with(show_special).push_all(ids)
    }

    /// A decoder that takes ids one at a time; what it gives, joined, is [`decode`](Self::decode) of all of them.
    pub fn stream(&self) -> StreamDecoder {
        self.stream_with(false)
    }

    /// [`stream`](Self::stream), with control tokens written out if `show_special`.
    pub fn stream_with(&self, show_special: bool) -> StreamDecoder {
        self.decoder(show_special, true)
    }

    /// [`stream`](Self::stream) for ids that continue a text: a space in front belongs to the text and stays.
    pub fn stream_continuation(&self) -> StreamDecoder {
        self.decoder(false, false)
    }

    fn decoder(&self, show_special: bool, begins: bool) -> StreamDecoder {
        let strips = matches!(&self.inner.kind, Kind::Spm(spm) if begins && spm.adds_space_prefix());
        StreamDecoder::new(self.clone(), show_special, strips)
    }

    /// The bytes that token `id` stands for (the text of a control token, as it would be parsed); none outside the
    /// vocabulary. They need not be UTF-8 by themselves.
    pub fn token_bytes(&self, id: TokenId) -> Option<&[u8]> {
        self.contains(id).then(|| self.inner.tokens.bytes(id))
    }

    /// What token `id` is for; none outside the vocabulary.
    pub fn token_type(&self, id: TokenId) -> Option<TokenType> {
        self.contains(id).then(|| self.inner.tokens.ty(id))
    }

    /// Whether token `id` is structure without a text of its own (CONTROL or UNKNOWN). Not so outside the vocabulary.
    pub fn is_special(&self, id: TokenId) -> bool {
        matches!(self.token_type(id), Some(TokenType::Control | TokenType::Unknown))
    }

    /// The number of tokens.
    pub fn n_vocab(&self) -> usize {
        self.inner.tokens.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<TokenId> {
        self.inner.special.bos
    }

    /// The token that ends a text. Generation ends at others too: [`end_tokens`](Self::end_tokens).
    pub fn eos(&self) -> Option<TokenId> {
        self.inner.special.eos
    }

    /// The tokens at which generation ends, ascending: eos, eot and eom, and the CONTROL tokens that are named as one
    /// of the usual ends.
    pub fn end_tokens(&self) -> &[TokenId] {
        &self.inner.end_tokens
    }

    /// BOS, where texts begin with it: `tokenizer.ggml.add_bos_token`, or without that key for SentencePiece and
    /// `llama-bpe`.
    pub fn added_bos(&self) -> Option<TokenId> {
        self.bos().filter(|_| self.inner.add_bos)
    }

    /// EOS, where `tokenizer.ggml.add_eos_token` says that texts end with it.
    pub fn added_eos(&self) -> Option<TokenId> {
        self.eos().filter(|_| self.inner.add_eos)
    }

    /// `tokenizer.ggml.model`: `gpt2` or `llama`.
    pub fn kind(&self) -> &'static str {
        match self.inner.kind {
            Kind::Bpe(_) => "gpt2",
            Kind::Spm(_) => "llama",
        }
    }

    /// `tokenizer.ggml.pre`, or `default` where the file has none.
    pub fn pre(&self) -> &str {
        &self.inner.pre
    }

    fn contains(&self, id: TokenId) -> bool {
        (id as usize) < self.n_vocab()
    }
}

fn pre_tokenizer(vocab: &Vocab<'_>) -> Result<PreTokenizer, TokenizerError> {
    let known = || {
        let names: Vec<String> = PreTokenizer::TABLE.iter().map(|(name, _)| format!("{name:?}")).collect();
        names.join(", ")
    };
    let got = vocab.pre.unwrap_or_default();
    PreTokenizer::named(got).ok_or_else(|| TokenizerError::UnknownPreTokenizer { got: got.to_owned(), known: known() })
}

/// The ids that SentencePiece gives by default, where the file names none and the token in that place is of that kind.
fn with_sentencepiece_defaults(vocab: &Vocab<'_>) -> SpecialIds {
    let default = |id: TokenId, ty: TokenType| {
        let is_there = (id as usize) < vocab.tokens.len() && vocab.type_of(id as usize) == ty;
        is_there.then_some(id)
    };
    let named = vocab.special;
    SpecialIds {
        unknown: named.unknown.or(default(0, TokenType::Unknown)),
        bos: named.bos.or(default(1, TokenType::Control)),
        eos: named.eos.or(default(2, TokenType::Control)),
        ..named
    }
}

fn end_tokens(vocab: &Vocab<'_>, special: SpecialIds) -> Vec<TokenId> {
    let is_end = |id: &usize| vocab.type_of(*id) == TokenType::Control && END_TOKEN_NAMES.contains(&vocab.tokens[*id]);
    let named = (0..vocab.tokens.len()).filter(is_end).map(|id| id as TokenId);
    let mut ids: Vec<TokenId> = [special.eos, special.eot, special.eom].into_iter().flatten().chain(named).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

const ADD_BOS: (&str, &str) = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id");
const ADD_EOS: (&str, &str) = ("tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id");

/// Whether a special token is added: as the file says, else `by_default` if there is one to add.
fn is_added(
    (flag, key): (&'static str, &'static str),
    asked: Option<bool>,
    id: Option<TokenId>,
    by_default: bool,
) -> Result<bool, TokenizerError> {
    match (asked, id) {
        (Some(true), None) => Err(TokenizerError::MissingId { key, flag }),
        (asked, id) => Ok(asked.unwrap_or(by_default && id.is_some())),
    }
}
