//! `gpt-2`: GPT-2, and the many vocabularies trained with its splitter.

use crate::unicode::{LETTER, NUMBER, SPACE, classes};

/// The published expression (GPT-2's `encoder.py`).
#[cfg(test)]
pub(super) const PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Runs of letters, of numbers and of symbols, each with a space before; English contractions in lower case.
pub(super) fn split<'t>(text: &'t str, mut emit: impl FnMut(&'t str)) {
    let mut pos = 0;
    while pos < text.len() {
        let end = piece_end(text, pos);
        emit(&text[pos..end]);
        pos = end;
    }
}

#[inline]
fn piece_end(text: &str, pos: usize) -> usize {
    let classes = classes();
    let bytes = &text.as_bytes()[pos..];
    if bytes[0] == b'\'' {
        match (bytes.get(1), bytes.get(2)) {
            (Some(b's' | b't' | b'm' | b'd'), _) => return pos + 2,
            (Some(b'r' | b'v'), Some(b'e')) | (Some(b'l'), Some(b'l')) => return pos + 3,
            _ => {}
        }
    }
    let (mut class, mut len) = classes.at(text, pos);
    if bytes[0] == b' ' {
        let (next, next_len) = classes.at(text, pos + 1);
        if next_len != 0 && next & SPACE == 0 {
            (class, len) = (next, 1 + next_len);
        }
    }
    let begin = pos + len;
    match class {
        _ if class & LETTER != 0 => classes.run_of(text, begin, LETTER),
        _ if class & NUMBER != 0 => classes.run_of(text, begin, NUMBER),
        _ if class & SPACE != 0 => white_space_end(text, pos),
        _ => classes.run_without(text, begin, SPACE | LETTER | NUMBER),
    }
}

/// `\s+(?!\S)|\s+`: the white space that begins at `pos`, all but its last character where text follows.
fn white_space_end(text: &str, pos: usize) -> usize {
    let classes = classes();
    let (mut end, mut last_begin) = (pos, pos);
    loop {
        let (class, len) = classes.at(text, end);
        if class & SPACE == 0 {
            break;
        }
        last_begin = end;
        end += len;
    }
    if end == text.len() || last_begin == pos { end } else { last_begin }
}
