//! Log-probabilities of rows of logits, and figures of many of them, all in `f64`.

use serde_json::json;
use tokenizer::TokenId;

/// A mean and its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) error: f64,
}

impl Estimate {
    /// The mean of at least two values.
    pub(crate) fn mean(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let value = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|x| (x - value).powi(2)).sum::<f64>() / n;
        Self { value, error: (variance / (n - 1.0)).sqrt() }
    }

    /// The root of the mean square of at least two values.
    pub(crate) fn root_mean_square(values: &[f64]) -> Self {
        let squares = Self::mean(&values.iter().map(|x| x * x).collect::<Vec<_>>());
        let value = squares.value.sqrt();
        // The root's slope is 1 / (2 * root); of nothing but zeros there is nothing to be wrong about.
        Self { value, error: if value > 0.0 { squares.error / (2.0 * value) } else { 0.0 } }
    }

    /// The share of `n_true` among `n`, at least two.
    pub(crate) fn share(n_true: usize, n: usize) -> Self {
        let value = n_true as f64 / n as f64;
        Self { value, error: (value * (1.0 - value) / (n as f64 - 1.0)).sqrt() }
    }

    /// e to this power; the error grows with the slope.
    pub(crate) fn exp(self) -> Self {
        let value = self.value.exp();
        Self { value, error: value * self.error }
    }

    pub(crate) fn as_json(self) -> serde_json::Value {
        json!({"value": self.value, "error": self.error})
    }
}

/// Perplexity: e to the mean negative log-likelihood.
pub(crate) fn perplexity(negative_log_likelihoods: &[f64]) -> Estimate {
    Estimate::mean(negative_log_likelihoods).exp()
}

/// The value below which a `fraction` of the sorted values lie, between two of them where it falls between.
///
/// # Panics
/// If there are no values.
pub(crate) fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let at = fraction.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] * (1.0 - part) + sorted[high] * part
}

/// The logarithm of the sum of e to each logit: a token's log-probability is its logit less this.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    most + logits.iter().map(|&x| (f64::from(x) - most).exp()).sum::<f64>().ln()
}

/// How two models, `a` the reference, see one position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pair {
    /// Negative log-likelihood of the token that follows, as `a` and `b` have it.
    pub(crate) a_nll: f64,
    pub(crate) b_nll: f64,
    /// Kullback-Leibler divergence of `b` from `a`: sum of p_a * ln(p_a / p_b), in nats.
    pub(crate) divergence: f64,
    /// Whether the two hold the same token the likeliest.
    pub(crate) same_top: bool,
}

impl Pair {
    /// Of logits over the same vocabulary, with `target` in it.
    pub(crate) fn of(a: &[f32], b: &[f32], target: TokenId) -> Self {
        let (a_sum, b_sum) = (log_sum_exp(a), log_sum_exp(b));
        let divergence: f64 = a
            .iter()
            .zip(b)
            .map(|(&a, &b)| {
                let (a, b) = (f64::from(a) - a_sum, f64::from(b) - b_sum);
                a.exp() * (a - b)
            })
            .sum();
        let nll = |logits: &[f32], sum: f64| sum - f64::from(logits[target as usize]);
        Self {
            a_nll: nll(a, a_sum),
            b_nll: nll(b, b_sum),
            // It is never negative, but rounding of equal distributions may be.
            divergence: divergence.max(0.0),
            same_top: top(a) == top(b),
        }
    }

    /// How much more likely `b` holds the token that follows.
    pub(crate) fn probability_difference(&self) -> f64 {
        (-self.b_nll).exp() - (-self.a_nll).exp()
    }
}

/// The first of the largest.
fn top(logits: &[f32]) -> usize {
    logits.iter().enumerate().fold(0, |best, (i, x)| if *x > logits[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }

    #[test]
    fn means_know_their_error() {
        let mean = Estimate::mean(&[1.0, 2.0, 3.0, 4.0]);
        near(mean.value, 2.5);
        near(mean.error, (5.0f64 / 3.0).sqrt() / 2.0); // the sample's standard deviation over the root of n
        let root = Estimate::root_mean_square(&[3.0, -3.0, 3.0]);
        assert_eq!((root.value, root.error), (3.0, 0.0));
        assert_eq!(Estimate::root_mean_square(&[0.0, 0.0]).error, 0.0);
        near(Estimate::share(3, 4).error, 0.25);
    }

    #[test]
    fn perplexity_of_a_guess_among_ten_is_ten() {
        let guess = perplexity(&[10f64.ln(); 5]);
        near(guess.value, 10.0);
        near(guess.error, 0.0);
    }

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        let values = [0.0, 1.0, 2.0, 10.0];
        assert_eq!([0.0, 0.5, 1.0].map(|at| quantile(&values, at)), [0.0, 1.5, 10.0]);
        near(quantile(&values, 0.9), 2.0 + 0.7 * 8.0);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        near(log_sum_exp(&[1e30, 1e30]) / f64::from(1e30f32), 1.0);
        near(log_sum_exp(&[-1e4, -1e4]), -1e4 + 2f64.ln());
    }

    #[test]
    fn divergence_is_that_of_the_distributions() {
        // p = (3/4, 1/4) and q = (1/2, 1/2), with a constant that must not matter.
        let (p, q) = ([3f32.ln() + 9.0, 9.0], [-5.0, -5.0]);
        let pair = Pair::of(&p, &q, 1);
        let expected = 0.75 * (0.75f64 / 0.5).ln() + 0.25 * (0.25f64 / 0.5).ln();
        assert!((pair.divergence - expected).abs() < 1e-6, "f32 logits near 10 are rounded by 5e-7: {pair:?}");
        assert!((pair.a_nll - 4f64.ln()).abs() < 1e-6 && (pair.b_nll - 2f64.ln()).abs() < 1e-6);
        assert!((pair.probability_difference() - 0.25).abs() < 1e-6);
        assert!(pair.same_top, "the first of equals is the top");
        let same = Pair::of(&p, &p, 0);
        assert_eq!((same.divergence, same.same_top), (0.0, true));
    }
}
