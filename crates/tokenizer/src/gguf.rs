//! GGUF metadata to [`Vocab`]: which key holds what. Strings are borrowed from the file; nothing is judged here beyond
//! the types of values.

use gguf_parser::{Array, Gguf, ValueError};

use crate::error::TokenizerError;
use crate::vocab::{KEY_MERGES, KEY_SCORES, KEY_TOKENS, KEY_TYPES, MAX_TOKENS, SpecialIds, TokenType, Vocab};

impl<'a> Vocab<'a> {
    /// Reads the `tokenizer.ggml.*` keys.
    ///
    /// # Errors
    /// A required key is missing, or a value or a list's elements have the wrong type; the error names the key.
    ///
    /// # Source
    /// ggml `docs/gguf.md`, "Tokenizer".
    pub fn from_gguf(gguf: &Gguf<'a>) -> Result<Vocab<'a>, TokenizerError> {
        let metadata = &gguf.metadata;
        let id = |key| metadata.u32(key);
        let tokens = bounded(metadata.require_array(KEY_TOKENS)?)?;
        let merges = metadata.array(KEY_MERGES)?;
        // The two long lists, each on a core.
        let (tokens, merges) = rayon::join(|| strings(tokens), || merges.map(strings).transpose());
        Ok(Vocab {
            model: metadata.require_str("tokenizer.ggml.model")?,
            pre: metadata.str("tokenizer.ggml.pre")?,
            name: metadata.str("general.name")?.unwrap_or(""),
            tokens: tokens?,
            types: metadata.array(KEY_TYPES)?.map(types).transpose()?,
            scores: metadata
                .array(KEY_SCORES)?
                .map(|array| Ok::<_, ValueError>(array.f32s()?.collect()))
                .transpose()?,
            merges: merges?,
            special: SpecialIds {
                bos: id("tokenizer.ggml.bos_token_id")?,
                eos: id("tokenizer.ggml.eos_token_id")?,
                eot: id("tokenizer.ggml.eot_token_id")?,
                eom: id("tokenizer.ggml.eom_token_id")?,
                unknown: id("tokenizer.ggml.unknown_token_id")?,
            },
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
        })
    }
}

/// Refuses a list of tokens that is too long before anything is made of it.
fn bounded(array: Array<'_>) -> Result<Array<'_>, TokenizerError> {
    match array.len() {
        got if got > MAX_TOKENS => Err(TokenizerError::TooManyTokens { key: KEY_TOKENS, limit: MAX_TOKENS, got }),
        _ => Ok(array),
    }
}

fn strings<'a>(array: Array<'a>) -> Result<Vec<&'a str>, ValueError> {
    Ok(array.strings()?.collect())
}

fn types(array: Array<'_>) -> Result<Vec<TokenType>, TokenizerError> {
    let to_type = |(id, number): (usize, i32)| {
        TokenType::from_number(number.into())
            .ok_or(TokenizerError::UnknownTokenType { id: id as u32, got: number.into() })
    };
    array.i32s()?.enumerate().map(to_type).collect()
}
