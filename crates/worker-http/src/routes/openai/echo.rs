//! Prompts that stand before their answers, with what is known of their tokens.

use std::sync::Arc;

use engine::TokenLogprobs;
use tokenizer::{TokenId, Tokenizer};

use super::logprobs::CompletionLogprobs;

/// A prompt as it is sent back.
#[derive(Debug)]
pub(super) struct Echo {
    pub(super) text: String,
    /// Where its log-probabilities are wanted.
    scored: Option<Scored>,
}

#[derive(Debug)]
struct Scored {
    ids: Arc<[TokenId]>,
    /// Where each begins in the text, in Unicode scalar values.
    offsets: Vec<usize>,
    /// Where the answer does.
    end: usize,
}

impl Echo {
    /// Without log-probabilities.
    pub(super) fn of_text(text: String) -> Self {
        Self { text, scored: None }
    }

    /// With those of `ids`, which `text` was made into, or from which it was made.
    pub(super) fn scored(tokenizer: &Tokenizer, text: String, ids: Arc<[TokenId]>) -> Self {
        let end = text.chars().count();
        let offsets = offsets(tokenizer, &text, &ids);
        Self { text, scored: Some(Scored { ids, offsets, end }) }
    }

    /// Where an answer begins whose tokens are counted from the prompt's start; 0 for one that is counted for itself.
    pub(super) fn answer_offset(&self) -> usize {
        self.scored.as_ref().map_or(0, |scored| scored.end)
    }

    /// The first token, which comes after nothing; `None` without log-probabilities.
    pub(super) fn first(&self, tokenizer: &Tokenizer) -> Option<CompletionLogprobs> {
        let scored = self.scored.as_ref()?;
        let mut lists = CompletionLogprobs::default();
        if let Some(&id) = scored.ids.first() {
            lists.push_first(tokenizer, id, 0);
        }
        Some(lists)
    }

    /// The tokens from `start` on, as far as `logprobs` go.
    pub(super) fn rest(
        &self,
        tokenizer: &Tokenizer,
        start: usize,
        logprobs: &[TokenLogprobs],
    ) -> Option<CompletionLogprobs> {
        let scored = self.scored.as_ref()?;
        let mut lists = CompletionLogprobs::default();
        let tokens = scored.ids.iter().zip(&scored.offsets).skip(start);
        for ((&id, &offset), logprobs) in tokens.zip(logprobs) {
            lists.push(tokenizer, id, logprobs, offset);
        }
        Some(lists)
    }
}

/// Where each token of a prompt begins in its text, in Unicode scalar values, special tokens written out. Those that were added
/// to the text, and a space that the vocabulary puts in front of a word, have no part of it. A character of several tokens
/// belongs to the last.
fn offsets(tokenizer: &Tokenizer, text: &str, ids: &[TokenId]) -> Vec<usize> {
    let mut decoder = tokenizer.stream_with(true);
    let (mut rest, mut n_chars) = (text, 0);
    let of = |&id: &TokenId| {
        let begins = n_chars;
        let piece = decoder.push(id);
        let in_text = [piece.as_str(), piece.strip_prefix(' ').unwrap_or(&piece)].into_iter();
        let n = match in_text.filter(|piece| rest.starts_with(*piece)).map(|piece| piece.chars().count()).next() {
            Some(n) => n,
            None if tokenizer.is_special(id) => 0,
            // A vocabulary may write a text down in another form than it came in.
            None => rest.chars().take(piece.chars().count()).count(),
        };
        rest = rest.char_indices().nth(n).map_or("", |(at, _)| &rest[at..]);
        n_chars += n;
        begins
    };
    ids.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use gguf_parser::Gguf;
    use test_support::gguf::GgufBuilder;
    use tokenizer::EncodeOptions;

    use super::*;

    fn spm() -> Tokenizer {
        let tokens = ["<unk>", "<s>", "</s>", "\u{2581}a", "\u{2581}b", "\u{2581}", "a", "b"];
        let file = GgufBuilder::new()
            .str("tokenizer.ggml.model", "llama")
            .strs("tokenizer.ggml.tokens", &tokens)
            .f32s("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, -1.0, -1.0, -2.0, -3.0, -3.0])
            .i32s("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 1, 1, 1])
            .u32("tokenizer.ggml.bos_token_id", 1)
            .u32("tokenizer.ggml.eos_token_id", 2)
            .bool("tokenizer.ggml.add_bos_token", true)
            .bool("tokenizer.ggml.add_eos_token", true)
            .build();
        Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap()
    }

    #[test]
    fn what_was_added_to_a_prompt_has_no_part_of_its_text() {
        let tokenizer = spm();
        let of = |text: &str| {
            let ids = tokenizer.encode(text, EncodeOptions { parse_special: true, add_special: true });
            let offsets = offsets(&tokenizer, text, &ids);
            (ids, offsets)
        };
        // The space in front of the first word is the vocabulary's own.
        assert_eq!(of("a b"), (vec![1, 3, 4, 2], vec![0, 0, 1, 3]));
        assert_eq!(of("<s>a b"), (vec![1, 3, 4, 2], vec![0, 3, 4, 6]), "it was there");
        let (ids, offsets) = of("a b</s>");
        assert_eq!((ids, offsets), (vec![1, 3, 4, 2], vec![0, 0, 1, 3]));
        assert_eq!(Echo::scored(&tokenizer, "a b".into(), [1, 3, 4].into()).answer_offset(), 3);
    }
}
