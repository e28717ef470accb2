//! Normal form C, as the published tokenizers of the Qwen families make it.
//!
//! Theirs goes by the tables of Unicode 9.0. Characters assigned since then are to it what unassigned ones always are:
//! they neither move nor compose, and nothing moves across them. A text is therefore normalised in the runs between
//! such characters, whatever Unicode the tables here are of.

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization;

use crate::unicode::{MAY_COMPOSE, SINCE_UNICODE_9, classes};

/// `text` in normal form C of Unicode 9.0.
pub(crate) fn nfc(text: &str) -> Cow<'_, str> {
    if is_surely_nfc(text) {
        return Cow::Borrowed(text);
    }
    let classes = classes();
    let mut out = String::with_capacity(text.len());
    let mut pos = 0;
    while pos < text.len() {
        let end = classes.run_without(text, pos, SINCE_UNICODE_9);
        out.extend(text[pos..end].nfc());
        pos = classes.run_of(text, end, SINCE_UNICODE_9);
        out.push_str(&text[end..pos]);
    }
    Cow::Owned(out)
}

/// Whether `text` holds nothing that normalisation might change: true for most text, and quickly known.
fn is_surely_nfc(text: &str) -> bool {
    // Below U+0300, the first combining mark (lead byte 0xCC), every character is its own normal form.
    let bytes = text.as_bytes();
    if bytes.iter().fold(true, |below, byte| below & (*byte < 0xCC)) {
        return true;
    }
    let mut pos = 0;
    while pos < bytes.len() {
        if bytes[pos] < 0xCC {
            pos += 1;
            continue;
        }
        let (class, len) = classes().at(text, pos);
        if class & MAY_COMPOSE != 0 {
            return false;
        }
        pos += len;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use unicode_normalization::{IsNormalized, char::canonical_combining_class};

    #[test]
    fn composes_and_orders() {
        assert_eq!(nfc("cafe\u{301} \u{1112}\u{1161}\u{11AB} \u{212B}"), "café 한 Å");
        assert_eq!(nfc("a\u{301}\u{323}"), "\u{1EA1}\u{301}");
    }

    #[test]
    fn leaves_text_alone_that_is_normal() {
        for text in ["", "plain, café", "中文, \u{1F600}", "한글"] {
            assert!(matches!(nfc(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn characters_since_unicode_9_stay_where_they_are() {
        // U+1E6F5 has combining class 230 since Unicode 17, U+11383 decomposes since 16.
        assert_eq!(nfc("a\u{345}\u{1E6F5}"), "a\u{345}\u{1E6F5}");
        assert_eq!(nfc("e\u{301}\u{11382}\u{113C9}e\u{301}"), "é\u{11382}\u{113C9}é");
    }

    #[test]
    fn a_character_not_marked_as_composing_is_its_own_normal_form() {
        let unmarked = |c: &char| classes().of(*c as u32) & (MAY_COMPOSE | SINCE_UNICODE_9) == 0;
        for c in ('\0'..=char::MAX).filter(unmarked) {
            let quick = unicode_normalization::is_nfc_quick(std::iter::once(c));
            assert!(quick == IsNormalized::Yes && canonical_combining_class(c) == 0, "U+{:04X}", c as u32);
            assert!(std::iter::once(c).nfc().eq(std::iter::once(c)));
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_whole_where_all_characters_are_old(text in "[\0-\u{36F}\u{1100}-\u{11FF}\u{AC00}-\u{AC40}\u{4E00}]{0,20}") {
            prop_assert_eq!(nfc(&text), text.nfc().collect::<String>());
        }
    }
}
