//! `qwen35`: Qwen3.5. As `qwen2`, but combining marks belong to words.

use super::cl100k;

/// The published expression (Qwen3.5's `tokenizer.json`).
#[cfg(test)]
pub(super) const PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Each digit is a piece; marks are letters.
pub(super) fn split<'t>(text: &'t str, emit: impl FnMut(&'t str)) {
    cl100k::split::<1, true>(text, emit);
}
