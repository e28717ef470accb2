//! Stop strings: the text of an answer passes through, until one of them is complete.
//!
//! Each stop string is a Knuth-Morris-Pratt automaton that reads the text once, byte by byte, however it is cut into
//! tokens: the cost is linear in the text, and what is held back is exactly the longest end of the text that could still
//! become a stop string. Which match wins does not depend on the tokens either: the one that is complete first, and of
//! those complete at the same byte the longest.

/// Finds stop strings in a text that arrives in pieces.
///
/// ```
/// use worker_http::{Scan, StopMatcher};
///
/// let mut stops = StopMatcher::new(&["END".to_string()]);
/// assert_eq!(stops.push("the E"), Scan::Text("the ".into())); // "E" may be the beginning of "END"
/// assert_eq!(stops.push("N"), Scan::Text("".into()));
/// assert_eq!(stops.push("D of"), Scan::Stopped { before: "".into(), stop: 0 });
/// ```
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// Text seen and not yet released: shorter than the longest stop string.
    held: String,
}

/// What a piece of text has led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scan {
    /// This text is no part of any stop string.
    Text(String),
    /// A stop string is complete.
    Stopped {
        /// The text between what was released before and the beginning of the stop string.
        before: String,
        /// The stop string's index.
        stop: usize,
    },
}

impl StopMatcher {
    /// A matcher for these stop strings, none of them empty. Without any it passes everything at once.
    pub fn new(stops: &[String]) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()));
        Self { patterns: stops.iter().map(|stop| Pattern::new(stop)).collect(), held: String::new() }
    }

    /// Takes the next piece of text and gives back what is certain. After [`Scan::Stopped`] it begins anew.
    pub fn push(&mut self, piece: &str) -> Scan {
        let scan_from = self.held.len();
        self.held.push_str(piece);
        for end in scan_from..self.held.len() {
            let byte = self.held.as_bytes()[end];
            let complete = (self.patterns.iter_mut().enumerate())
                .filter_map(|(stop, pattern)| pattern.step(byte).then_some((stop, pattern.bytes.len())))
                .reduce(|best, other| if other.1 > best.1 { other } else { best });
            if let Some((stop, stop_bytes)) = complete {
                self.held.truncate(end + 1 - stop_bytes);
                self.patterns.iter_mut().for_each(|pattern| pattern.n_matched = 0);
                return Scan::Stopped { before: std::mem::take(&mut self.held), stop };
            }
        }
        let keep = self.patterns.iter().map(|pattern| pattern.n_matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Scan::Text(std::mem::replace(&mut self.held, rest))
    }

    /// Whether text is held back.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// The text held back, which has not become a stop string because the answer is over.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// One stop string and how much of it the text's end matches.
#[derive(Debug, Clone)]
struct Pattern {
    bytes: Vec<u8>,
    /// `borders[n]`: the longest proper prefix of the string that is also a suffix of its first `n + 1` bytes.
    borders: Vec<usize>,
    n_matched: usize,
}

impl Pattern {
    fn new(stop: &str) -> Self {
        let bytes = stop.as_bytes().to_vec();
        let mut borders = vec![0; bytes.len()];
        let mut n = 0;
        for i in 1..bytes.len() {
            while n > 0 && bytes[i] != bytes[n] {
                n = borders[n - 1];
            }
            n += usize::from(bytes[i] == bytes[n]);
            borders[i] = n;
        }
        Self { bytes, borders, n_matched: 0 }
    }

    /// Reads one byte of text; true when it completes the string.
    fn step(&mut self, byte: u8) -> bool {
        while self.n_matched > 0 && self.bytes[self.n_matched] != byte {
            self.n_matched = self.borders[self.n_matched - 1];
        }
        self.n_matched += usize::from(self.bytes[self.n_matched] == byte);
        self.n_matched == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Text before the first complete stop string, and its index, by trying every end.
    fn naive(text: &str, stops: &[String]) -> (String, Option<usize>) {
        for end in 0..=text.len() {
            let complete = (stops.iter().enumerate())
                .filter(|(_, stop)| text.as_bytes()[..end].ends_with(stop.as_bytes()))
                .reduce(|best, other| if other.1.len() > best.1.len() { other } else { best });
            if let Some((index, stop)) = complete {
                return (text[..end - stop.len()].to_string(), Some(index));
            }
        }
        (text.to_string(), None)
    }

    fn run(pieces: &[String], stops: &[String]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops);
        let mut out = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                Scan::Text(text) => out.push_str(&text),
                Scan::Stopped { before, stop } => return (out + &before, Some(stop)),
            }
        }
        (out + &matcher.finish(), None)
    }

    proptest! {
        #[test]
        fn agrees_with_trying_every_end(
            pieces in prop::collection::vec("[abé ]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,5}", 0..=4),
        ) {
            prop_assert_eq!(run(&pieces, &stops), naive(&pieces.concat(), &stops));
        }

        #[test]
        fn holds_back_no_more_than_could_become_a_stop(
            pieces in prop::collection::vec("[ab]{0,3}", 0..12),
            stops in prop::collection::vec("[ab]{1,6}", 1..=4),
        ) {
            let mut matcher = StopMatcher::new(&stops);
            let mut seen = String::new();
            let mut released = String::new();
            for piece in &pieces {
                seen.push_str(piece);
                let Scan::Text(text) = matcher.push(piece) else { return Ok(()) };
                released.push_str(&text);
                let longest = (0..=seen.len())
                    .find(|&start| stops.iter().any(|stop| stop.len() > seen.len() - start && stop.starts_with(&seen[start..])))
                    .unwrap_or(seen.len());
                prop_assert_eq!(&released, &seen[..longest]);
            }
        }
    }

    #[test]
    fn passes_everything_without_stop_strings() {
        let mut matcher = StopMatcher::new(&[]);
        assert_eq!(matcher.push("abc"), Scan::Text("abc".into()));
        assert!(!matcher.is_holding());
    }

    #[test]
    fn reads_a_megabyte_of_near_matches_in_linear_time() {
        let stop = "a".repeat(99) + "b";
        let mut matcher = StopMatcher::new(&[stop.clone(), stop[1..].to_string()]);
        let mut n_released = 0;
        for _ in 0..1 << 18 {
            let Scan::Text(text) = matcher.push("aaaa") else { panic!("nothing ends here") };
            n_released += text.len();
        }
        assert_eq!(n_released + 99, 1 << 20);
    }
}
