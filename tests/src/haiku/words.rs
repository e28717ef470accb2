//! The minute word, and when a text holds a word.

const ONES: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 6] = ["", "", "twenty", "thirty", "forty", "fifty"];

/// A minute of the hour in English: `zero` to `fifty-nine`. Counts on from 0 beyond 59.
pub(super) fn minute_word(minute: u32) -> String {
    let minute = (minute % 60) as usize;
    match (minute / 10, minute % 10) {
        (0 | 1, _) => ONES[minute].to_owned(),
        (tens, 0) => TENS[tens].to_owned(),
        (tens, ones) => format!("{}-{}", TENS[tens], ONES[ones]),
    }
}

/// How often `word` stands in `text` as a whole word, case aside.
///
/// A word is letters and digits with single hyphens or apostrophes inside it: `forty-two` is one word, so `two` is not
/// in it, and `six` is neither in `sixteen` nor in `sixty-six`. A dash of its own, or two hyphens, parts words.
pub(super) fn count_word(text: &str, word: &str) -> usize {
    let wanted = word.to_lowercase();
    words(text).filter(|found| *found == wanted).count()
}

fn words(text: &str) -> impl Iterator<Item = String> {
    // Typographic forms first, so that one spelling is compared: U+2010 and U+2011 are hyphens, U+2019 an apostrophe.
    let plain: String = text
        .chars()
        .map(|c| match c {
            '\u{2010}' | '\u{2011}' => '-',
            '\u{2019}' => '\'',
            c => c,
        })
        .collect();
    let plain = plain.to_lowercase().replace("--", " ");
    let words: Vec<_> = plain
        .split(|c: char| !(c.is_alphanumeric() || c == '-' || c == '\''))
        .map(|word| word.trim_matches(['-', '\'']).to_owned())
        .filter(|word| !word.is_empty())
        .collect();
    words.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_every_minute_once() {
        let all: std::collections::HashSet<_> = (0..60).map(minute_word).collect();
        assert_eq!(all.len(), 60);
        for (minute, word) in
            [(0, "zero"), (9, "nine"), (13, "thirteen"), (20, "twenty"), (42, "forty-two"), (59, "fifty-nine")]
        {
            assert_eq!(minute_word(minute), word);
        }
    }

    #[test]
    fn finds_a_whole_word_in_any_case() {
        assert_eq!(count_word("Six chips spin,\nsix! (SIX)", "six"), 3);
        assert_eq!(count_word("\u{201c}Forty\u{2011}two\u{201d} cores", "forty-two"), 1);
        assert_eq!(count_word("six\u{2014}bright cores; six--six", "six"), 3);
    }

    #[test]
    fn does_not_find_a_word_inside_another() {
        for text in ["sixteen", "sixty", "sixty-six", "six-core", "sixes", "six's", ""] {
            assert_eq!(count_word(text, "six"), 0, "{text:?}");
        }
        assert_eq!(count_word("forty two", "forty-two"), 0);
        assert_eq!(count_word("two of forty-two", "two"), 1);
    }
}
