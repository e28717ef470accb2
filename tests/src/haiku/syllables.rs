//! Counts syllables, with the built-in model's own vocabulary.
//!
//! `syllables.txt` holds every word and phrase of the grammar that the model was trained on (`models/haiku/haikugen.py`,
//! function `lexicon`), with its syllables. English spelling does not tell syllables, so a word outside the table is
//! not guessed: a line with such a word has no count. The count is reported, never asserted.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

static TABLE: LazyLock<HashMap<&str, u32>> = LazyLock::new(|| {
    let entries = include_str!("syllables.txt").lines().filter_map(|line| line.split_once(' '));
    entries.filter_map(|(syllables, words)| Some((words, syllables.parse().ok()?))).collect()
});

/// The longest phrase of the table, in words.
const MAX_PHRASE_WORDS: usize = 4;

/// A haiku's lines and how many syllables each may have: none when a word is unknown, several when a phrase of the
/// table and its words disagree.
pub(super) fn count(text: &str) -> Vec<BTreeSet<u32>> {
    text.trim().lines().map(line_syllables).collect()
}

/// Whether the lines may be read as five, seven and five syllables.
pub(super) fn is_5_7_5(text: &str) -> bool {
    let lines = count(text);
    lines.len() == 3 && lines.iter().zip([5, 7, 5]).all(|(line, wanted)| line.contains(&wanted))
}

fn line_syllables(line: &str) -> BTreeSet<u32> {
    let line = line.to_lowercase();
    let words: Vec<_> = line.split_whitespace().collect();
    // rest[i]: what the words from i on may sum up to.
    let mut rest = vec![BTreeSet::new(); words.len() + 1];
    rest[words.len()].insert(0);
    for start in (0..words.len()).rev() {
        for end in start + 1..=words.len().min(start + MAX_PHRASE_WORDS) {
            if let Some(syllables) = TABLE.get(words[start..end].join(" ").as_str()) {
                let sums: Vec<_> = rest[end].iter().map(|sum| sum + syllables).collect();
                rest[start].extend(sums);
            }
        }
    }
    rest.swap_remove(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haiku::words::minute_word;

    #[test]
    fn counts_the_model_s_own_haiku() {
        assert!(is_5_7_5("\nforty-two chips spin\nthe humming chip multiplies\nthe bright pointer glows\n"));
        assert!(!is_5_7_5("forty-two chips spin\nthe humming chip multiplies"));
        assert!(!is_5_7_5("forty-two chips spin\nthe humming chip spins\nthe bright pointer glows"));
    }

    #[test]
    fn does_not_guess_a_word_it_does_not_know() {
        assert_eq!(count("xylophones\nthe chip"), [BTreeSet::new(), BTreeSet::from([2])]);
    }

    #[test]
    fn knows_every_minute_and_no_phrase_is_longer_than_it_looks_for() {
        assert!((0..60).all(|minute| TABLE.contains_key(minute_word(minute).as_str())));
        assert!(TABLE.keys().all(|words| words.split(' ').count() <= MAX_PHRASE_WORDS));
        assert_eq!(TABLE.len(), include_str!("syllables.txt").lines().count());
    }
}
