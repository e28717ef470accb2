//! `qwen2`: Qwen2, Qwen2.5, Qwen3.

use super::cl100k;

/// The published expression (Qwen2's `tokenizer.json`).
#[cfg(test)]
pub(super) const PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Each digit is a piece.
pub(super) fn split<'t>(text: &'t str, emit: impl FnMut(&'t str)) {
    cl100k::split::<1, false>(text, emit);
}
