//! The figures, as a table for people (a line as soon as it is known) or as one JSON object.

use serde_json::json;

use crate::cli::CompareArgs;
use crate::memory;
use crate::scoring::statistics::{self, Estimate, Pair};
use crate::scoring::{LoadedFacts, Windows};

/// Percentiles of the divergence that are told, the median among them.
const PERCENTILES: [f64; 5] = [50.0, 90.0, 95.0, 99.0, 99.9];

/// What is told of two models at many positions.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figures {
    a_perplexity: Estimate,
    b_perplexity: Estimate,
    /// ln(perplexity of b / perplexity of a). Its error is that of the differences at each position, which is far smaller
    /// than the perplexities' own.
    log_ratio: Estimate,
    divergence: Estimate,
    percentiles: [f64; PERCENTILES.len()],
    largest_divergence: f64,
    /// Of the probability of the token that follows.
    mean_difference: Estimate,
    rms_difference: Estimate,
    same_top: Estimate,
}

impl Figures {
    /// Of at least two positions.
    pub(crate) fn of(pairs: &[Pair]) -> Self {
        let all = |figure: fn(&Pair) -> f64| pairs.iter().map(figure).collect::<Vec<f64>>();
        let mut divergences = all(|pair| pair.divergence);
        let divergence = Estimate::mean(&divergences);
        divergences.sort_by(f64::total_cmp);
        let differences = all(Pair::probability_difference);
        Self {
            a_perplexity: statistics::perplexity(&all(|pair| pair.a_nll)),
            b_perplexity: statistics::perplexity(&all(|pair| pair.b_nll)),
            log_ratio: Estimate::mean(&all(|pair| pair.b_nll - pair.a_nll)),
            divergence,
            percentiles: PERCENTILES.map(|percent| statistics::quantile(&divergences, percent / 100.0)),
            largest_divergence: divergences.last().copied().unwrap_or_default(),
            mean_difference: Estimate::mean(&differences),
            rms_difference: Estimate::root_mean_square(&differences),
            same_top: Estimate::share(pairs.iter().filter(|pair| pair.same_top).count(), pairs.len()),
        }
    }

    /// For people, at the end.
    pub(crate) fn shown(&self, n_scored: usize, seconds: f64) -> String {
        let mut text = String::from("\n");
        let mut line = |name: &str, value: String| text += &format!("{name:<34}{value}\n");
        line("perplexity of A", plain(self.a_perplexity));
        line("perplexity of B", plain(self.b_perplexity));
        line("ln(perplexity of B / of A)", plain(self.log_ratio));
        line("KL divergence, mean", plain(self.divergence));
        for (percent, value) in PERCENTILES.iter().zip(self.percentiles) {
            let name = if *percent == 50.0 { "median".to_owned() } else { format!("{percent} %") };
            line(&format!("KL divergence, {name}"), format!("{value:>10.6}"));
        }
        line("KL divergence, largest", format!("{:>10.6}", self.largest_divergence));
        line("change of a token's probability", percent(self.mean_difference));
        line("  root of its mean square", percent(self.rms_difference));
        line("same likeliest token", percent(self.same_top));
        text + &format!("\nof {n_scored} tokens, in {seconds:.1} s\n")
    }

    /// For programs.
    pub(crate) fn as_json(
        &self,
        args: &CompareArgs,
        a: &LoadedFacts,
        b: &LoadedFacts,
        windows: &Windows,
        seconds: f64,
    ) -> serde_json::Value {
        let model = |facts: &LoadedFacts, perplexity: Estimate| {
            json!({
                "model": facts.name,
                "quant_kind": facts.quant_kind,
                "weight_bytes": facts.weight_bytes,
                "perplexity": perplexity.as_json(),
            })
        };
        let percentiles = PERCENTILES.iter().zip(self.percentiles).map(|(percent, x)| (percent.to_string(), json!(x)));
        json!({
            "a": model(a, self.a_perplexity),
            "b": model(b, self.b_perplexity),
            "device": a.device,
            "n_ctx": args.text.ctx_size,
            "n_tokens": windows.n_tokens(),
            "n_windows": windows.n_windows(),
            "n_scored": windows.n_windows() * windows.scored().len(),
            "ln_perplexity_ratio": self.log_ratio.as_json(),
            "kl_divergence": {
                "mean": self.divergence.as_json(),
                "median": self.percentiles[0],
                "percentiles": percentiles.collect::<serde_json::Map<_, _>>(),
                "max": self.largest_divergence,
            },
            "probability_difference": {
                "mean": self.mean_difference.as_json(),
                "rms": self.rms_difference.as_json(),
            },
            "same_top": self.same_top.as_json(),
            "seconds": seconds,
        })
    }
}

/// What is compared, and on what.
pub(crate) fn head(args: &CompareArgs, a: &LoadedFacts, b: &LoadedFacts, windows: &Windows) -> String {
    let model = |facts: &LoadedFacts| {
        let bytes = memory::shown(facts.weight_bytes);
        format!("{}: {} {}, {bytes} of weights", facts.name, facts.architecture, facts.quant_kind)
    };
    format!(
        "A        {}\nB        {}\ndevice   {}\ntext     {}: {} tokens, {} windows of {}, {} tokens scored in each\n\n\
         {:<9}{:>14}{:>14}{:>16}{:>12}\n",
        model(a),
        model(b),
        a.device,
        args.text.file.display(),
        windows.n_tokens(),
        windows.n_windows(),
        args.text.ctx_size,
        windows.scored().len(),
        "window",
        "perplexity A",
        "perplexity B",
        "KL divergence",
        "same top",
    )
}

/// The figures of all windows up to `window`, counted from 0.
pub(crate) fn row(window: usize, n_windows: usize, so_far: &Figures) -> String {
    format!(
        "{:<9}{:>14.4}{:>14.4}{:>16.6}{:>10.2} %\n",
        format!("{}/{n_windows}", window + 1),
        so_far.a_perplexity.value,
        so_far.b_perplexity.value,
        so_far.divergence.value,
        so_far.same_top.value * 100.0,
    )
}

fn plain(estimate: Estimate) -> String {
    format!("{:>10.6} \u{b1} {:.6}", estimate.value, estimate.error)
}

fn percent(estimate: Estimate) -> String {
    format!("{:>10.4} \u{b1} {:.4} %", estimate.value * 100.0, estimate.error * 100.0)
}
