//! When requests are sent, and what they ask. Everything follows from the seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Words that most vocabularies hold as one token each, the space in front included.
const WORDS: &[&str] = &[
    "the", "and", "of", "to", "in", "on", "at", "by", "for", "with", "from", "into", "over", "under", "time", "light",
    "water", "wind", "night", "day", "house", "river", "stone", "green", "blue", "white", "old", "new", "long",
    "small",
];

/// The times at which `n` requests are sent, counted from the first moment: a Poisson process of `rate` a second, as many
/// clients that know nothing of each other make it.
pub(crate) fn poisson(n: usize, rate: f64, seed: u64) -> Vec<Duration> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut at = 0.0;
    let next = |_| {
        // 1 - u is in (0, 1], so that the logarithm is finite.
        at += -(1.0 - rng.random::<f64>()).ln() / rate;
        Duration::from_secs_f64(at)
    };
    (0..n).map(next).collect()
}

/// A prompt of so many words; another for each `i`, from its first word on, so that no cache helps.
pub(crate) fn prompt(n_words: usize, seed: u64, i: usize) -> String {
    let mut rng = StdRng::seed_from_u64(seed ^ (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let words: Vec<_> = (0..n_words).map(|_| WORDS[rng.random_range(0..WORDS.len())]).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_the_rate_and_independently() {
        let times = poisson(20_000, 50.0, 7);
        assert!(times.windows(2).all(|pair| pair[0] <= pair[1]));
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Standard errors for 20,000 gaps: 0.7 % of the mean, 1 % of the deviation, which equals the mean.
        assert!((mean * 50.0 - 1.0).abs() < 0.04, "{mean}");
        assert!((variance.sqrt() * 50.0 - 1.0).abs() < 0.06, "{variance}");
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(poisson(5, 1.0, 1), poisson(5, 1.0, 1));
        assert_ne!(poisson(5, 1.0, 1), poisson(5, 1.0, 2));
        assert_eq!(prompt(9, 1, 0), prompt(9, 1, 0));
        assert_ne!(prompt(9, 1, 0), prompt(9, 1, 1));
        assert_eq!(prompt(9, 1, 0).split(' ').count(), 9);
        assert_eq!(prompt(0, 1, 0), "");
    }
}
