//! What the clients saw: one entry for each request, and the times between tokens.

use std::collections::BTreeMap;

use serde::Serialize;

/// How a request ended for its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// An answer to its end, of so many tokens; `as_alone`: the answer given alone.
    Whole { n_tokens: u64, as_alone: bool },
    /// An answer to its end, of so many tokens, read a few bytes a second at first.
    Slow { n_tokens: u64 },
    /// Ended by `POST /cancel`.
    Cancelled,
    /// Cancelled after it had ended.
    TooLate { n_tokens: u64 },
    /// Left by its client. Whether the worker had accepted it is known where it had begun to answer.
    Left { accepted: bool },
    /// Refused with this code.
    Refused(String),
    /// Garbage that was answered, or let go, as it should be; no job comes of it.
    Garbage(&'static str),
    /// None of these.
    Wrong(String),
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Its `X-Correlation-Id`; no other request has it.
    pub(super) label: String,
    pub(super) seen: Seen,
}

/// Everything that all clients saw.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) entries: Vec<Entry>,
    gaps_ms: Vec<f32>,
}

/// Times between the tokens of an answer, as its client sees them.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Gaps {
    /// How many there were.
    pub n: usize,
    /// Half of them are shorter.
    pub p50: f32,
    /// One in a hundred is longer.
    pub p99: f32,
    /// The longest.
    pub max: f32,
}

impl Ledger {
    pub(super) fn add(&mut self, label: String, seen: Seen) {
        self.entries.push(Entry { label, seen });
    }

    pub(super) fn add_gaps(&mut self, gaps_ms: &[f32]) {
        self.gaps_ms.extend_from_slice(gaps_ms);
    }

    /// So that a round counts its own only.
    pub(super) fn forget_gaps(&mut self) {
        self.gaps_ms.clear();
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.gaps_ms.extend(other.gaps_ms);
    }

    pub(super) fn n_requests(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn gaps(&self) -> Gaps {
        let mut sorted = self.gaps_ms.clone();
        sorted.sort_by(f32::total_cmp);
        let at = |share: f64| sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1)));
        let at = |share| at(share).copied().unwrap_or_default();
        Gaps { n: sorted.len(), p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }

    /// How many requests ended in each way, by the way's name.
    pub(super) fn outcomes(&self) -> BTreeMap<String, usize> {
        let mut outcomes = BTreeMap::new();
        for entry in &self.entries {
            *outcomes.entry(entry.seen.name()).or_default() += 1;
        }
        outcomes
    }
}

impl Seen {
    fn name(&self) -> String {
        match self {
            Self::Whole { .. } => "whole".into(),
            Self::Slow { .. } => "whole, read slowly".into(),
            Self::Cancelled => "cancelled".into(),
            Self::TooLate { .. } => "cancelled too late".into(),
            Self::Left { accepted: true } => "left while it was answered".into(),
            Self::Left { accepted: false } => "left before it was answered".into(),
            Self::Refused(code) => format!("refused: {code}"),
            Self::Garbage(what) => format!("garbage: {what}"),
            Self::Wrong(_) => "WRONG".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_all_gaps() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.gaps().n, 0);
        ledger.add_gaps(&(0..1000).rev().map(|i| i as f32).collect::<Vec<_>>());
        let gaps = ledger.gaps();
        assert_eq!((gaps.n, gaps.p50, gaps.p99, gaps.max), (1000, 500.0, 990.0, 999.0));
    }
}
