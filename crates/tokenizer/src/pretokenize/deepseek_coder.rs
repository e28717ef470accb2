//! `deepseek-coder`: DeepSeek Coder.
//!
//! A chain of expressions: each cuts its matches out of the pieces that the one before it left, and sees only the piece.

use crate::unicode::{LETTER, NUMBER, PUNCTUATION, SPACE, classes};

/// The published chain (DeepSeek Coder's `tokenizer.json`: four `Split`s, then `Digits` one by one).
#[cfg(test)]
pub(super) const PATTERNS: [&str; 5] =
    [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u{800}-一가-\u{D7FF}]+", r"\p{N}"];

/// Newlines one by one, words and punctuation with a white space before, East Asian runs, digits one by one.
pub(super) fn split<'t>(text: &'t str, mut emit: impl FnMut(&'t str)) {
    cut(text, newline, &mut |line: &'t str| {
        cut(line, |text, pos| spaced_run(text, pos, LETTER), &mut |piece: &'t str| {
            cut(piece, |text, pos| spaced_run(text, pos, PUNCTUATION), &mut |piece: &'t str| {
                cut(piece, asian_run, &mut |piece: &'t str| cut(piece, digit, &mut emit));
            });
        });
    });
}

/// Cuts out of `text` every leftmost match of `matcher` (which gives the end of the match that begins at a position, or
/// that position), and emits matches and what lies between them in order.
fn cut<'t>(text: &'t str, matcher: impl Fn(&str, usize) -> usize, emit: &mut impl FnMut(&'t str)) {
    let (mut rest, mut pos) = (0, 0);
    while pos < text.len() {
        let end = matcher(text, pos);
        if end == pos {
            pos += classes().at(text, pos).1;
            continue;
        }
        if rest < pos {
            emit(&text[rest..pos]);
        }
        emit(&text[pos..end]);
        (rest, pos) = (end, end);
    }
    if rest < text.len() {
        emit(&text[rest..]);
    }
}

fn newline(text: &str, pos: usize) -> usize {
    pos + usize::from(matches!(text.as_bytes()[pos], b'\r' | b'\n'))
}

fn digit(text: &str, pos: usize) -> usize {
    let (class, len) = classes().at(text, pos);
    if class & NUMBER != 0 { pos + len } else { pos }
}

/// `\s?X+` for the characters X that have the bit `class`.
fn spaced_run(text: &str, pos: usize, class: u8) -> usize {
    let (first, len) = classes().at(text, pos);
    let begin = if first & SPACE != 0 { pos + len } else { pos };
    let end = classes().run_of(text, begin, class);
    if end == begin { pos } else { end }
}

fn asian_run(text: &str, pos: usize) -> usize {
    let asian = |c: &char| matches!(c, '\u{800}'..='\u{9FA5}' | '\u{AC00}'..='\u{D7FF}');
    pos + text[pos..].chars().take_while(asian).map(char::len_utf8).sum::<usize>()
}
