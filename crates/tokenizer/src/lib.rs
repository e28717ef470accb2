//! Text to token ids and back, streaming decoder and chat templates, from GGUF metadata.
//!
//! # Nouns
//! A [`Vocab`] is what a file says: tokens, types, scores, merges, special ids. [`Tokenizer::new`] checks it (every
//! fault is a [`TokenizerError`] that names the metadata key, what was expected and what was found) and builds the
//! tables; the result is cheap to clone and safe to share between threads. [`Tokenizer::encode`] turns text into ids,
//! [`Tokenizer::decode`] ids into text, and a [`StreamDecoder`] does that one id at a time without ever showing half a
//! character. A [`ChatTemplate`] turns messages into the text that the model was trained to continue.
//!
//! # Kinds of vocabulary
//! | `tokenizer.ggml.model` | what | `tokenizer.ggml.pre` |
//! |---|---|---|
//! | `gpt2` | byte-level BPE: any text has ids, any ids are bytes | `qwen2`, `qwen35`, `llama-bpe` (`llama3`, `llama-v3`), `gpt-2` (`gpt2`), `deepseek-coder` |
//! | `llama` | SentencePiece: characters merge by score, bytes for what is left | not used |
//!
//! Anything else is refused by name: a wrong guess of the pre-tokenizer costs a fifth more tokens and worse answers, and
//! nothing tells the user.
//!
//! # Which ids are right
//! Those of the published Hugging Face tokenizer. So text for the Qwen families is normalised to NFC first, although
//! llama.cpp does not; and CONTROL tokens never come out of plain text, although in llama.cpp a SentencePiece vocabulary
//! may merge its way to one.
//!
//! # Speed
//! Splitters are written by hand over a table of character classes, without a regex engine. A word that is itself a
//! token costs one look-up, a repeated word another. Merging a long run without a boundary (a megabyte of one letter)
//! takes near-linear time.
//!
//! # Example
//! ```
//! use tokenizer::{EncodeOptions, SpecialIds, TokenType, Tokenizer, Vocab};
//!
//! // The 256 bytes in the alphabet of byte-level vocabularies, two merges, and a special token.
//! let byte = |b: u32| match b { 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => b, 0..=0x20 => 0x100 + b, 0x7F..=0xA0 => 0xA2 + b, _ => 0x143 };
//! let mut tokens: Vec<String> = (0..256).map(|b| char::from_u32(byte(b)).unwrap().to_string()).collect();
//! tokens.extend(["hi", "Ġhi", "<|end|>"].map(String::from));
//! let mut types = vec![TokenType::Normal; tokens.len()];
//! types[258] = TokenType::Control;
//!
//! let tokenizer = Tokenizer::new(&Vocab {
//!     model: "gpt2",
//!     pre: Some("qwen2"),
//!     tokens: tokens.iter().map(String::as_str).collect(),
//!     types: Some(types),
//!     merges: Some(vec!["h i", "Ġ hi"]),
//!     special: SpecialIds { eos: Some(258), ..SpecialIds::default() },
//!     ..Vocab::default()
//! })?;
//!
//! let options = EncodeOptions { parse_special: true, add_special: false };
//! assert_eq!(tokenizer.encode("hi hi<|end|>", options), [256, 257, 258]);
//! assert_eq!(tokenizer.decode(&[256, 257, 258]), "hi hi");
//! assert_eq!(tokenizer.end_tokens(), [258]);
//!
//! let mut stream = tokenizer.stream();
//! let text: Vec<String> = tokenizer.encode("é", options).into_iter().map(|id| stream.push(id)).collect();
//! assert_eq!(text, ["", "é"]);
//! # Ok::<(), tokenizer::TokenizerError>(())
//! ```

mod bpe;
mod byte_alphabet;
mod error;
mod gguf;
mod hash;
mod merge;
mod normalize;
mod pretokenize;
mod special;
mod spm;
mod stream;
mod table;
mod template;
mod tokenizer;
mod unicode;
mod vocab;
mod words;

pub use error::TokenizerError;
pub use stream::StreamDecoder;
pub use template::{
    ChatInput, ChatTemplate, ChatTemplateError, Clock, MAX_RENDERED_BYTES, MAX_TEMPLATE_BYTES, TemplateError,
};
pub use tokenizer::{EncodeOptions, Tokenizer};
pub use vocab::{MAX_TOKENS, SpecialIds, TokenType, Vocab};

/// The number of a token in its vocabulary.
pub type TokenId = u32;
