//! `llama-bpe`: Llama 3 and its descendants.

use super::cl100k;

/// The published expression (Llama 3's `tokenizer.json`).
#[cfg(test)]
pub(super) const PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Up to three digits are a piece.
pub(super) fn split<'t>(text: &'t str, emit: impl FnMut(&'t str)) {
    cl100k::split::<3, false>(text, emit);
}
