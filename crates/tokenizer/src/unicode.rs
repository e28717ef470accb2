//! Character classes: what a pre-tokenizer asks about a code point, answered by one table look-up.
//!
//! The classes are Unicode general categories as `regex-syntax` tabulates them, so that a splitter written by hand
//! agrees with the regular expression it stands for. The table has two levels (a page number for each 256 code points,
//! then a byte for each code point of a page that is not uniform); it is made once per process, in well under a
//! millisecond, and the pages of everyday text stay in the first-level cache.

use std::sync::LazyLock;

/// A letter, `\p{L}`.
pub(crate) const LETTER: u8 = 1;
/// A number, `\p{N}`.
pub(crate) const NUMBER: u8 = 1 << 1;
/// A combining mark, `\p{M}`.
pub(crate) const MARK: u8 = 1 << 2;
/// White space, `\s` (the `White_Space` property).
pub(crate) const SPACE: u8 = 1 << 3;
/// Punctuation, `\p{P}`.
pub(crate) const PUNCTUATION: u8 = 1 << 4;
/// Carriage return or line feed.
pub(crate) const NEWLINE: u8 = 1 << 5;
/// Text that holds such a character may not be in normal form C; text without any, all of Unicode 9.0, is.
pub(crate) const MAY_COMPOSE: u8 = 1 << 6;
/// Not assigned in Unicode 9.0.
pub(crate) const SINCE_UNICODE_9: u8 = 1 << 7;

const PAGE_LEN: usize = 256;
const N_PAGES: usize = 0x11_0000 / PAGE_LEN;

/// Characters outside `\p{M}` that normalisation to NFC may change or attach to what stands before them: Hangul vowels
/// and trailing consonants, and the blocks that hold every character with a canonical singleton or excluded
/// decomposition. Wider than needed, which costs only time; a test in `normalize` compares it with
/// `unicode-normalization`.
const NOT_SURELY_NFC: &[(u32, u32)] = &[
    (0x0340, 0x0344),
    (0x0374, 0x0374),
    (0x037E, 0x037E),
    (0x0387, 0x0387),
    (0x0958, 0x095F),
    (0x09DC, 0x09DF),
    (0x0A33, 0x0A36),
    (0x0A59, 0x0A5E),
    (0x0B5C, 0x0B5D),
    (0x0F43, 0x0FB9),
    (0x1161, 0x11FF),
    (0x1F71, 0x1FFD),
    (0x2000, 0x2001),
    (0x2126, 0x212B),
    (0x2329, 0x232A),
    (0x2ADC, 0x2ADC),
    (0xF900, 0xFAFF),
    (0xFB1D, 0xFB4E),
    (0x16D63, 0x16D6A),
    (0x1D15E, 0x1D1C0),
    (0x2F800, 0x2FA1D),
];

/// The class byte of every code point.
pub(crate) struct Classes {
    ascii: [u8; 128],
    page_of: Vec<u16>,
    pages: Vec<[u8; PAGE_LEN]>,
}

static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::build);

/// The table, made on first use.
pub(crate) fn classes() -> &'static Classes {
    &CLASSES
}

impl Classes {
    fn build() -> Classes {
        let mut flat = vec![0u8; N_PAGES * PAGE_LEN];
        for (pattern, bit) in [
            (r"\p{L}", LETTER),
            (r"\p{N}", NUMBER),
            (r"\p{M}", MARK | MAY_COMPOSE),
            (r"\s", SPACE),
            (r"\p{P}", PUNCTUATION),
            (r"[\r\n]", NEWLINE),
            (r"\P{Age=9.0}", SINCE_UNICODE_9),
        ] {
            for (first, last) in ranges(pattern) {
                flat[first as usize..=last as usize].iter_mut().for_each(|class| *class |= bit);
            }
        }
        for &(first, last) in NOT_SURELY_NFC {
            flat[first as usize..=last as usize].iter_mut().for_each(|class| *class |= MAY_COMPOSE);
        }
        let mut classes = Classes { ascii: [0; 128], page_of: Vec::with_capacity(N_PAGES), pages: Vec::new() };
        classes.ascii.copy_from_slice(&flat[..128]);
        // Most pages are uniform (unassigned, or one script's letters): those share one page for each class value.
        let mut uniform = [None::<u16>; 256];
        for page in flat.as_chunks::<PAGE_LEN>().0 {
            let is_uniform = page.iter().all(|class| *class == page[0]);
            let shared = uniform[usize::from(page[0])].filter(|_| is_uniform);
            let page_idx = shared.unwrap_or_else(|| {
                classes.pages.push(*page);
                (classes.pages.len() - 1) as u16
            });
            if is_uniform {
                uniform[usize::from(page[0])] = Some(page_idx);
            }
            classes.page_of.push(page_idx);
        }
        classes
    }

    /// The class bits of `code_point`; 0 beyond the last code point.
    #[inline]
    pub(crate) fn of(&self, code_point: u32) -> u8 {
        let Some(&page) = self.page_of.get(code_point as usize / PAGE_LEN) else { return 0 };
        self.pages[usize::from(page)][code_point as usize % PAGE_LEN]
    }

    /// The class bits and the length in bytes of the character that begins at `pos`; `(0, 0)` at the end of the text.
    ///
    /// `pos` is a character boundary of `text`.
    #[inline]
    pub(crate) fn at(&self, text: &str, pos: usize) -> (u8, usize) {
        let bytes = text.as_bytes();
        let Some(&lead) = bytes.get(pos) else { return (0, 0) };
        if lead < 0x80 {
            return (self.ascii[usize::from(lead)], 1);
        }
        let tail = |at: usize| u32::from(bytes.get(pos + at).copied().unwrap_or(0) & 0x3F);
        let lead = u32::from(lead);
        if lead < 0xE0 {
            (self.of((lead & 0x1F) << 6 | tail(1)), 2)
        } else if lead < 0xF0 {
            (self.of((lead & 0x0F) << 12 | tail(1) << 6 | tail(2)), 3)
        } else {
            (self.of((lead & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3)), 4)
        }
    }

    /// Where the run of characters that have one of the bits of `any` and none of `none`, beginning at `pos`, ends.
    #[inline]
    pub(crate) fn run_of(&self, text: &str, mut pos: usize, any: u8) -> usize {
        loop {
            let (class, len) = self.at(text, pos);
            if class & any == 0 {
                return pos;
            }
            pos += len;
        }
    }

    /// Where the run of characters that have none of the bits of `none`, beginning at `pos`, ends.
    #[inline]
    pub(crate) fn run_without(&self, text: &str, mut pos: usize, none: u8) -> usize {
        loop {
            let (class, len) = self.at(text, pos);
            if len == 0 || class & none != 0 {
                return pos;
            }
            pos += len;
        }
    }
}

/// The inclusive code point ranges that a one-class pattern stands for.
fn ranges(pattern: &str) -> Vec<(u32, u32)> {
    use regex_syntax::hir::{Class, HirKind};
    let hir = regex_syntax::parse(pattern).expect("a constant pattern");
    match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => class.iter().map(|r| (r.start() as u32, r.end() as u32)).collect(),
        other => unreachable!("{pattern} is one Unicode class, not {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_point_has_the_classes_of_its_regex() {
        for (pattern, bit) in
            [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\p{M}", MARK), (r"\s", SPACE), (r"\p{P}", PUNCTUATION)]
        {
            let ranges = ranges(pattern);
            let mut in_range = vec![false; 0x11_0000];
            ranges.iter().for_each(|&(a, b)| in_range[a as usize..=b as usize].fill(true));
            for (code_point, expected) in in_range.iter().enumerate() {
                assert_eq!(classes().of(code_point as u32) & bit != 0, *expected, "{pattern} U+{code_point:04X}");
            }
        }
        assert!(('\0'..=char::MAX).all(|c| (classes().of(c as u32) & SPACE != 0) == c.is_whitespace()));
    }

    #[test]
    fn the_class_of_a_character_in_text_is_that_of_its_code_point() {
        for c in '\0'..=char::MAX {
            let mut buf = [0; 4];
            let text = c.encode_utf8(&mut buf);
            assert_eq!(classes().at(text, 0), (classes().of(c as u32), c.len_utf8()), "U+{:04X}", c as u32);
        }
        assert_eq!(classes().at("ab", 2), (0, 0));
    }
}
