//! The family of splitters that descend from OpenAI's `cl100k_base`; `qwen2`, `qwen35` and `llama-bpe` are its members.
//!
//! Their expressions have the same seven alternatives, tried in this order at each position, and differ in two details:
//!
//! 1. `(?i:'s|'t|'re|'ve|'m|'ll|'d)`: English contractions;
//! 2. `[^\r\n\p{L}\p{N}]?\p{L}+`: a word, with one character before it that is no newline, letter or number;
//! 3. `\p{N}` or `\p{N}{1,3}`: digits;
//! 4. ` ?[^\s\p{L}\p{N}]+[\r\n]*`: symbols, with a space before and newlines behind;
//! 5. `\s*[\r\n]+`: white space up to the last newline of the run;
//! 6. `\s+(?!\S)`: white space, all but the last character where text follows;
//! 7. `\s+`.
//!
//! In `qwen35` marks count as letters in alternatives 2 and 4.

use crate::unicode::{LETTER, MARK, NEWLINE, NUMBER, SPACE, classes};

/// Splits `text`: at most `MAX_DIGITS` digits in a piece; marks belong to words if `MARKS`.
#[inline]
pub(super) fn split<'t, const MAX_DIGITS: usize, const MARKS: bool>(text: &'t str, mut emit: impl FnMut(&'t str)) {
    let mut pos = 0;
    while pos < text.len() {
        let end = piece_end::<MAX_DIGITS, MARKS>(text, pos);
        emit(&text[pos..end]);
        pos = end;
    }
}

/// Where the piece that begins at `pos` ends; beyond `pos` for every `pos` inside the text.
#[inline]
fn piece_end<const MAX_DIGITS: usize, const MARKS: bool>(text: &str, pos: usize) -> usize {
    let classes = classes();
    let word = if MARKS { LETTER | MARK } else { LETTER };
    let (class, len) = classes.at(text, pos);
    let first = text.as_bytes()[pos];
    if first == b'\''
        && let Some(len) = contraction_len(&text.as_bytes()[pos..])
    {
        return pos + len;
    }
    if class & word != 0 {
        return classes.run_of(text, pos + len, word);
    }
    if class & NUMBER != 0 {
        return digits_end::<MAX_DIGITS>(text, pos + len);
    }
    let (next, next_len) = classes.at(text, pos + len);
    if class & NEWLINE == 0 && next & word != 0 {
        return classes.run_of(text, pos + len + next_len, word);
    }
    let not_symbol = SPACE | NUMBER | word;
    if class & SPACE == 0 {
        return newlines_end(text, classes.run_without(text, pos + len, not_symbol));
    }
    if first == b' ' && next_len != 0 && next & not_symbol == 0 {
        return newlines_end(text, classes.run_without(text, pos + len + next_len, not_symbol));
    }
    white_space_end(text, pos)
}

/// The length of the contraction that `bytes`, which begin with an apostrophe, begin with.
///
/// Case folding makes `ſ` (U+017F) an `s`.
fn contraction_len(bytes: &[u8]) -> Option<usize> {
    let letter = |at: usize| bytes.get(at).map(u8::to_ascii_lowercase);
    match (letter(1)?, letter(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(3),
        (0xC5, Some(0xBF)) => Some(3),
        _ => None,
    }
}

/// Where the digits end of which the first ends at `pos`.
fn digits_end<const MAX_DIGITS: usize>(text: &str, mut pos: usize) -> usize {
    for _ in 1..MAX_DIGITS {
        let (class, len) = classes().at(text, pos);
        if class & NUMBER == 0 {
            break;
        }
        pos += len;
    }
    pos
}

fn newlines_end(text: &str, pos: usize) -> usize {
    pos + text.as_bytes()[pos..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
}

/// Alternatives 5 to 7: the white space that begins at `pos`.
fn white_space_end(text: &str, pos: usize) -> usize {
    let classes = classes();
    let (mut end, mut last_begin, mut newline_end) = (pos, pos, None);
    loop {
        let (class, len) = classes.at(text, end);
        if class & SPACE == 0 {
            break;
        }
        last_begin = end;
        end += len;
        if class & NEWLINE != 0 {
            newline_end = Some(end);
        }
    }
    match newline_end {
        Some(newline_end) => newline_end,
        None if end == text.len() || last_begin == pos => end,
        None => last_begin,
    }
}
