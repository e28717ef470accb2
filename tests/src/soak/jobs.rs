//! What a client may ask for: a few requests of different lengths, on every route that answers with tokens.

use rand::rngs::StdRng;
use rand::{Rng, RngExt as _};
use serde_json::{Value, json};

/// Different requests; each is asked many times, so that its answers can be compared.
pub(super) const N_REQUESTS: usize = 6;

/// Where a request goes, and how the answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Execute,
    Chat { streamed: bool },
    Completions { streamed: bool },
}

/// All of them.
pub(super) const ROUTES: [Route; 5] = [
    Route::Execute,
    Route::Chat { streamed: true },
    Route::Chat { streamed: false },
    Route::Completions { streamed: true },
    Route::Completions { streamed: false },
];

impl Route {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Execute => "/execute",
            Self::Chat { .. } => "/v1/chat/completions",
            Self::Completions { .. } => "/v1/completions",
        }
    }

    pub(super) fn is_streamed(self) -> bool {
        matches!(self, Self::Execute | Self::Chat { streamed: true } | Self::Completions { streamed: true })
    }

    /// Request `n` in this route's form.
    pub(super) fn body(self, n: usize, label: &str) -> Value {
        let prompt = "Write a haiku about GPU computing that includes the word \"forty-two\". ".repeat(1 + n % 3);
        let mut body = json!({ "max_tokens": 8 + 24 * n, "temperature": 1.5, "seed": n });
        match self {
            Self::Execute => {
                body["job_id"] = json!(label);
                body["prompt"] = json!(prompt);
            }
            Self::Chat { .. } => body["messages"] = json!([{ "role": "user", "content": prompt }]),
            Self::Completions { .. } => body["prompt"] = json!(prompt),
        }
        if self != Self::Execute && self.is_streamed() {
            body["stream"] = json!(true);
            body["stream_options"] = json!({ "include_usage": true });
        }
        body
    }
}

/// What a client does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Reads to the end.
    Patient,
    /// Sends `POST /cancel` after so many events.
    CancelsAfter(usize),
    /// Leaves after so many events; a whole answer's client leaves after so many milliseconds instead.
    LeavesAfter(usize),
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) n: usize,
    pub(super) route: Route,
    pub(super) patience: Patience,
}

impl Task {
    /// The next thing that a client does: a third of them is broken off, half by cancelling, half by leaving.
    pub(super) fn draw(rng: &mut StdRng) -> Self {
        let route = ROUTES[rng.random_range(0..ROUTES.len())];
        let after = [1, 2, 5, 20][rng.random_range(0..4)];
        let patience = match rng.next_u32() % 6 {
            // Whoever wants a whole answer does not know its name before it is there.
            0 if route.is_streamed() => Patience::CancelsAfter(after),
            0 | 1 => Patience::LeavesAfter(after),
            _ => Patience::Patient,
        };
        Self { n: rng.random_range(0..N_REQUESTS), route, patience }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn a_third_is_broken_off_and_the_seed_says_which() {
        let draw = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..6000).map(|_| Task::draw(&mut rng)).collect::<Vec<_>>()
        };
        let tasks = draw(1);
        assert_eq!(tasks, draw(1));
        assert_ne!(tasks, draw(2));
        let n_broken = tasks.iter().filter(|task| task.patience != Patience::Patient).count();
        assert!((1900..2100).contains(&n_broken), "{n_broken}");
        assert!(ROUTES.iter().all(|route| tasks.iter().any(|task| task.route == *route)));
    }
}
