//! Upper bounds of histogram buckets: those of vLLM V1, so that its dashboards' quantiles mean the same here.

/// Time to the first token, in seconds.
pub(super) const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];

/// Time between two tokens, in seconds.
pub(super) const BETWEEN_TOKENS: [f64; 19] =
    [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];

/// Time that a request, or one of its stages, takes, in seconds.
pub(super) const REQUEST: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

/// Answers asked for.
pub(super) const ANSWERS: [f64; 5] = [1.0, 2.0, 5.0, 10.0, 20.0];

/// Tokens: 1, 2 and 5 of each power of ten, up to what the context holds.
pub(super) fn tokens(context_length: usize) -> Vec<f64> {
    let decades = std::iter::successors(Some(1.0), |decade| Some(decade * 10.0));
    let bounds = decades.flat_map(|decade| [decade, 2.0 * decade, 5.0 * decade]);
    bounds.take_while(|&bound| bound <= context_length as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_counts_reach_as_far_as_the_context() {
        assert_eq!(tokens(1), [1.0]);
        assert_eq!(tokens(100), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(tokens(4095).last(), Some(&2000.0));
        assert_eq!(tokens(1 << 24).last(), Some(&1e7));
    }
}
