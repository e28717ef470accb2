//! Pre-tokenizers: where text may be cut before merging, chosen by `tokenizer.ggml.pre`.
//!
//! Each is published as a regular expression (or a chain of them). Here each is a splitter written by hand over the
//! [character classes](crate::unicode), one file each, with the expression it stands for at its head; a property test
//! compares it with that expression run by a regex engine. The pieces of a text, joined, are the text.
//!
//! To add one: a file with `split` and its expression, a variant here, and a line in [`PreTokenizer::TABLE`].

mod cl100k;
mod deepseek_coder;
mod gpt2;
mod llama_bpe;
mod qwen2;
mod qwen35;
#[cfg(test)]
mod tests;

/// A known pre-tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PreTokenizer {
    Qwen2,
    Qwen35,
    LlamaBpe,
    Gpt2,
    DeepseekCoder,
}

impl PreTokenizer {
    /// Every accepted value of `tokenizer.ggml.pre` and what it names. `llama3`, `llama-v3` and `gpt2` are other
    /// spellings of the same thing.
    pub(crate) const TABLE: &[(&str, PreTokenizer)] = &[
        ("qwen2", PreTokenizer::Qwen2),
        ("qwen35", PreTokenizer::Qwen35),
        ("llama-bpe", PreTokenizer::LlamaBpe),
        ("llama3", PreTokenizer::LlamaBpe),
        ("llama-v3", PreTokenizer::LlamaBpe),
        ("gpt-2", PreTokenizer::Gpt2),
        ("gpt2", PreTokenizer::Gpt2),
        ("deepseek-coder", PreTokenizer::DeepseekCoder),
    ];

    /// The pre-tokenizer of that name.
    pub(crate) fn named(name: &str) -> Option<PreTokenizer> {
        Self::TABLE.iter().find(|(known, _)| *known == name).map(|(_, pre)| *pre)
    }

    /// Whether the model's text is normalised to NFC before it is split.
    ///
    /// GGUF does not say and llama.cpp never does; the published tokenizers of the Qwen families do, and their ids
    /// are the reference.
    pub(crate) fn normalises_to_nfc(self) -> bool {
        matches!(self, PreTokenizer::Qwen2 | PreTokenizer::Qwen35)
    }

    /// Whether a piece that is itself a token is taken as that token, even where its merges lead elsewhere
    /// (`ignore_merges` in the published tokenizer).
    pub(crate) fn ignores_merges(self) -> bool {
        matches!(self, PreTokenizer::LlamaBpe)
    }

    /// Whether BOS is added where `tokenizer.ggml.add_bos_token` is absent.
    pub(crate) fn adds_bos(self) -> bool {
        matches!(self, PreTokenizer::LlamaBpe)
    }

    /// Calls `emit` with each piece of `text`, in order.
    pub(crate) fn split<'t>(self, text: &'t str, emit: impl FnMut(&'t str)) {
        match self {
            PreTokenizer::Qwen2 => qwen2::split(text, emit),
            PreTokenizer::Qwen35 => qwen35::split(text, emit),
            PreTokenizer::LlamaBpe => llama_bpe::split(text, emit),
            PreTokenizer::Gpt2 => gpt2::split(text, emit),
            PreTokenizer::DeepseekCoder => deepseek_coder::split(text, emit),
        }
    }
}
