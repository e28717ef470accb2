//! Special tokens in text: found before anything else looks at it.
//!
//! USER_DEFINED tokens are always one token wherever their text stands; CONTROL and UNKNOWN tokens only where the caller
//! asks for special tokens to be parsed. Of several that match, the leftmost wins, and of those the longest, as in
//! Hugging Face's `tokenizers`. The search is one pass of an Aho-Corasick automaton, however many tokens there are.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::TokenId;
use crate::error::TokenizerError;
use crate::vocab::{KEY_TOKENS, TokenType, Vocab};

/// The most bytes the special tokens may have together: the automaton takes some tens of bytes for each. Published
/// vocabularies stay below 100 KiB.
const MAX_SPECIAL_BYTES: usize = 4 << 20;

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'t> {
    /// To be split and merged; never empty.
    Text(&'t str),
    /// This token's text stood here.
    Token(TokenId),
}

/// The searchers for special tokens.
#[derive(Debug)]
pub(crate) struct SpecialTokens {
    always: Option<Searcher>,
    when_parsed: Option<Searcher>,
}

#[derive(Debug)]
struct Searcher {
    automaton: AhoCorasick,
    /// For each pattern, its token and whether white space behind it is dropped.
    tokens: Vec<(TokenId, bool)>,
}

impl SpecialTokens {
    /// Collects the special tokens of `vocab`.
    pub(crate) fn new(vocab: &Vocab<'_>) -> Result<SpecialTokens, TokenizerError> {
        let strips = strips_behind(vocab);
        let of_types = |types: &[TokenType]| {
            let ids = (0..vocab.tokens.len()).filter(|id| types.contains(&vocab.type_of(*id)));
            let tokens: Vec<_> = ids
                .filter(|id| !vocab.tokens[*id].is_empty())
                .map(|id| (id as TokenId, vocab.tokens[id], strips(vocab.tokens[id])))
                .collect();
            Searcher::new(&tokens)
        };
        Ok(SpecialTokens {
            always: of_types(&[TokenType::UserDefined])?,
            when_parsed: of_types(&[TokenType::UserDefined, TokenType::Control, TokenType::Unknown])?,
        })
    }

    /// Calls `emit` with each part of `text`, in order; CONTROL and UNKNOWN tokens are found only if `parse_special`.
    pub(crate) fn split<'t>(&self, text: &'t str, parse_special: bool, mut emit: impl FnMut(Part<'t>)) {
        let mut rest = 0;
        if let Some(searcher) = if parse_special { &self.when_parsed } else { &self.always } {
            for found in searcher.automaton.find_iter(text) {
                if rest < found.start() {
                    emit(Part::Text(&text[rest..found.start()]));
                }
                let (id, strips) = searcher.tokens[found.pattern().as_usize()];
                emit(Part::Token(id));
                let behind = &text[found.end()..];
                rest = text.len() - if strips { behind.trim_start().len() } else { behind.len() };
            }
        }
        if rest < text.len() {
            emit(Part::Text(&text[rest..]));
        }
    }
}

impl Searcher {
    fn new(tokens: &[(TokenId, &str, bool)]) -> Result<Option<Searcher>, TokenizerError> {
        if tokens.is_empty() {
            return Ok(None);
        }
        let got = tokens.iter().map(|(_, text, _)| text.len()).sum();
        let too_long =
            TokenizerError::TooLong { key: KEY_TOKENS, what: "of special tokens", limit: MAX_SPECIAL_BYTES, got };
        if got > MAX_SPECIAL_BYTES {
            return Err(too_long);
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(_, text, _)| text))
            .map_err(|_| too_long)?;
        Ok(Some(Searcher { automaton, tokens: tokens.iter().map(|(id, _, strips)| (*id, *strips)).collect() }))
    }
}

/// Which special tokens swallow the white space behind them.
///
/// GGUF does not say. Phi-3 is known, by its name, to be published with `rstrip` on all but three of its tokens;
/// llama.cpp goes by the same name.
fn strips_behind(vocab: &Vocab<'_>) -> impl Fn(&str) -> bool {
    let name = vocab.name.to_ascii_lowercase();
    let is_phi3 = name.contains("phi-3") || name.contains("phi3");
    move |token| is_phi3 && !matches!(token, "<unk>" | "<s>" | "<|endoftext|>")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'t>(vocab: &Vocab<'_>, text: &'t str, parse_special: bool) -> Vec<Part<'t>> {
        let mut parts = Vec::new();
        SpecialTokens::new(vocab).unwrap().split(text, parse_special, |part| parts.push(part));
        parts
    }

    fn vocab(name: &'static str) -> Vocab<'static> {
        use TokenType::*;
        Vocab {
            name,
            tokens: vec!["a", "<|x|>", "<u>", "<u><u>", "<|x|>y", ""],
            types: Some(vec![Normal, Control, UserDefined, UserDefined, Control, Control]),
            ..Vocab::default()
        }
    }

    #[test]
    fn control_tokens_are_found_only_when_asked_for() {
        use Part::*;
        assert_eq!(parts(&vocab(""), "a<|x|>b", true), [Text("a"), Token(1), Text("b")]);
        assert_eq!(parts(&vocab(""), "a<|x|>b", false), [Text("a<|x|>b")]);
    }

    #[test]
    fn user_defined_tokens_are_always_found() {
        use Part::*;
        assert_eq!(parts(&vocab(""), "<|x|><u>", false), [Text("<|x|>"), Token(2)]);
    }

    #[test]
    fn the_longest_of_several_wins() {
        use Part::*;
        assert_eq!(parts(&vocab(""), "<u><u><u>", false), [Token(3), Token(2)]);
        assert_eq!(parts(&vocab(""), "<|x|>y", true), [Token(4)]);
    }

    #[test]
    fn phi3_tokens_swallow_the_white_space_behind_them() {
        use Part::*;
        assert_eq!(parts(&vocab("Phi3"), "<|x|> \n b <u> ", true), [Token(1), Text("b "), Token(2)]);
        assert_eq!(parts(&vocab("other"), "<|x|> b", true), [Token(1), Text(" b")]);
    }
}
