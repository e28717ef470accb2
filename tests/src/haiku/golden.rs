//! Greedy ids and top-20 log-probabilities, as the worker streams them, against a reference in float64.
//!
//! A haiku that reads well proves little: the built-in model writes right haiku with all its biases dropped. Numbers
//! prove a forward pass. The golden file holds, for several prompts, the ids of the prompt and for each greedy step the
//! chosen id, the 20 most likely ids with their log-probabilities, and the gap between the best two.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::harness::StreamedToken;

/// How many alternatives a step holds: the most that a request may ask for.
pub(crate) const N_TOP: usize = 20;

/// One prompt of a golden file.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct GoldenPrompt {
    /// Sent as it is.
    pub prompt: String,
    /// What it tokenizes to.
    pub ids: Vec<u32>,
    /// The greedy answer. An end token, where the answer has one, is its last step.
    pub steps: Vec<Step>,
}

/// One greedy step of the reference.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Step {
    /// The most likely token.
    pub id: u32,
    /// Best minus second best log-probability.
    pub gap: f64,
    /// The most likely tokens and their log-probabilities, best first.
    pub top: Vec<(u32, f64)>,
}

/// Reads a golden file.
///
/// # Errors
/// When it cannot be read, is no golden file, or holds no step.
pub(super) fn read(path: &Path) -> Result<Vec<GoldenPrompt>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let golden: Vec<GoldenPrompt> =
        serde_json::from_str(&text).with_context(|| format!("{} is no golden file", path.display()))?;
    anyhow::ensure!(golden.iter().any(|g| !g.steps.is_empty()), "{} holds no step to compare", path.display());
    Ok(golden)
}

/// How far the worker may be off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gates {
    /// Of the absolute differences of log-probabilities, the mean.
    pub mean_abs: f64,
    /// Of the log-probabilities, the 2-norm of the difference over the 2-norm of the reference.
    pub relative: f64,
    /// The share of steps where the reference's best two are so close that the error could swap them.
    pub exempt_share: f64,
}

impl Gates {
    /// The CPU with a KV cache in F16.
    pub const CPU: Self = Self { mean_abs: 0.01, relative: 5e-4, exempt_share: 0.02 };
    /// A GPU and a small model.
    pub const GPU: Self = Self { relative: 1e-3, ..Self::CPU };
    /// A GPU and a model of hundreds of millions of parameters.
    pub const GPU_FULL_SIZE: Self = Self { relative: 5e-3, ..Self::CPU };
}

/// How far the worker is from the reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Prompts whose token count the worker reported other than the reference's.
    pub prompts_tokenized_differently: usize,
    /// Greedy steps of the reference.
    pub n_steps: usize,
    /// Steps that were compared: all but those after a step where worker and reference parted.
    pub n_compared: usize,
    /// Steps whose choice differs though the reference's best two are further apart than twice the step's error, which
    /// is the largest difference among its log-probabilities.
    pub n_wrong_choices: usize,
    /// Steps whose best two are closer than that.
    pub n_exempt: usize,
    /// The first difference of choice, in words.
    pub first_difference: Option<String>,
    /// Log-probabilities compared.
    pub n_logprobs: usize,
    /// Mean absolute difference of log-probabilities.
    pub mean_abs: f64,
    /// Largest absolute difference of log-probabilities.
    pub max_abs: f64,
    /// Relative difference in the 2-norm.
    pub relative: f64,
}

/// One thing that a gate asks, with what was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gate {
    /// What is measured.
    pub what: &'static str,
    /// What came out.
    pub measured: f64,
    /// The most it may be.
    pub limit: f64,
}

impl Gate {
    /// Whether it holds. Not-a-number does not.
    pub fn holds(&self) -> bool {
        self.measured <= self.limit
    }
}

impl Comparison {
    /// Every gate with its measure.
    pub fn gates(&self, gates: &Gates) -> Vec<Gate> {
        let gate = |what, measured, limit| Gate { what, measured, limit };
        let n_steps = self.n_steps as f64;
        vec![
            gate("prompts tokenized differently", self.prompts_tokenized_differently as f64, 0.0),
            gate("wrong greedy choices", self.n_wrong_choices as f64, 0.0),
            gate("near ties, share of steps", self.n_exempt as f64 / self.n_compared as f64, gates.exempt_share),
            // Where many steps are not compared, the figures above say little.
            gate("steps not compared, share", 1.0 - self.n_compared as f64 / n_steps, 0.5),
            gate("log-probabilities, mean difference", self.mean_abs, gates.mean_abs),
            gate("log-probabilities, relative error", self.relative, gates.relative),
        ]
    }

    /// Whether all gates hold.
    pub fn passes(&self, gates: &Gates) -> bool {
        self.gates(gates).iter().all(Gate::holds)
    }
}

/// The worker's answer to one golden prompt.
#[derive(Debug, Clone)]
pub(super) struct GreedyAnswer {
    /// `prompt_tokens` of its `started` event.
    pub n_prompt_tokens: Option<u64>,
    /// What it streamed.
    pub tokens: Vec<StreamedToken>,
    /// Whether it ended at an end token.
    pub ended: bool,
}

/// Compares the answers, one for each prompt, with the reference. `is_end` knows the model's end tokens.
pub(super) fn compare(golden: &[GoldenPrompt], answers: &[GreedyAnswer], is_end: impl Fn(u32) -> bool) -> Comparison {
    let mut tokenized_differently = 0;
    let mut differences = Differences::default();
    let mut first_difference = None;
    let (mut n_compared, mut n_wrong_choices, mut n_exempt) = (0, 0, 0);
    for (golden_idx, (golden, answer)) in golden.iter().zip(answers).enumerate() {
        tokenized_differently += usize::from(answer.n_prompt_tokens != Some(golden.ids.len() as u64));
        for (step_idx, step) in golden.steps.iter().enumerate() {
            n_compared += 1;
            let token = answer.tokens.get(step_idx);
            // An answer that ends too early has no log-probabilities here: the error so far stands in.
            let error = token.map_or(differences.max_abs, |token| differences.add(&step.top, &token.top));
            // Twice: one of the two may be too high by the error, the other too low.
            let is_exempt = step.gap <= 2.0 * error;
            n_exempt += usize::from(is_exempt);
            let agrees = match token {
                Some(token) => token.id == step.id,
                None => answer.ended && is_end(step.id),
            };
            if !agrees {
                n_wrong_choices += usize::from(!is_exempt);
                first_difference.get_or_insert_with(|| {
                    let got = token.map_or_else(|| "its end".to_owned(), |token| format!("token {}", token.id));
                    format!("prompt {golden_idx}, step {step_idx}: {got} instead of token {}", step.id)
                });
                break;
            }
        }
    }
    Comparison {
        prompts_tokenized_differently: tokenized_differently,
        n_steps: golden.iter().map(|golden| golden.steps.len()).sum(),
        n_compared,
        n_wrong_choices,
        n_exempt,
        first_difference,
        n_logprobs: differences.n,
        mean_abs: differences.sum_abs / differences.n as f64,
        max_abs: differences.max_abs,
        relative: (differences.sum_squares / differences.reference_squares).sqrt(),
    }
}

#[derive(Default)]
struct Differences {
    n: usize,
    sum_abs: f64,
    max_abs: f64,
    sum_squares: f64,
    reference_squares: f64,
}

impl Differences {
    /// Adds a step; returns its largest difference.
    fn add(&mut self, reference: &[(u32, f64)], worker: &[(u32, f64)]) -> f64 {
        let mut largest: f64 = 0.0;
        let found: HashMap<_, _> = worker.iter().copied().collect();
        // What the worker leaves out is no likelier than the last that it names; with none named, nothing is likely.
        let lowest = worker.iter().map(|(_, logprob)| *logprob).fold(f64::INFINITY, f64::min);
        for (id, expected) in reference {
            let difference = match found.get(id) {
                Some(got) => (got - expected).abs(),
                None if worker.is_empty() => f64::INFINITY,
                None => (expected - lowest).max(0.0),
            };
            self.n += 1;
            self.sum_abs += difference;
            self.sum_squares += difference * difference;
            self.reference_squares += expected * expected;
            largest = largest.max(difference);
        }
        self.max_abs = self.max_abs.max(largest);
        largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> Vec<GoldenPrompt> {
        let step = |id, gap| Step { id, gap, top: vec![(id, -0.1), (9, -0.1 - gap)] };
        let prompt = "p".to_owned();
        vec![GoldenPrompt {
            prompt,
            ids: vec![1, 2, 3],
            steps: (0..60).map(|i| step(i % 7, 2.5)).chain([step(99, 3.0)]).collect(),
        }]
    }

    fn right(golden: &[GoldenPrompt]) -> Vec<GreedyAnswer> {
        let answer = |golden: &GoldenPrompt| GreedyAnswer {
            n_prompt_tokens: Some(golden.ids.len() as u64),
            tokens: golden.steps[..golden.steps.len() - 1].iter().map(token).collect(),
            ended: true,
        };
        golden.iter().map(answer).collect()
    }

    fn token(step: &Step) -> StreamedToken {
        StreamedToken { id: step.id, text: String::new(), logprob: Some(step.top[0].1), top: step.top.clone() }
    }

    fn check(change: impl FnOnce(&mut Vec<GoldenPrompt>, &mut Vec<GreedyAnswer>)) -> Comparison {
        let mut golden = golden();
        let mut answers = right(&golden);
        change(&mut golden, &mut answers);
        compare(&golden, &answers, |id| id == 99)
    }

    #[test]
    fn passes_what_equals_the_reference() {
        let same = check(|_, _| {});
        assert!(same.passes(&Gates::CPU), "{same:?}");
        assert_eq!((same.n_steps, same.n_compared, same.max_abs), (61, 61, 0.0));
    }

    #[test]
    fn fails_a_wrong_choice_and_compares_nothing_after_it() {
        let wrong = check(|_, answers| answers[0].tokens[8].id = 1234);
        assert!(!wrong.passes(&Gates::CPU));
        assert_eq!((wrong.n_wrong_choices, wrong.n_compared), (1, 9));
        assert_eq!(wrong.first_difference.as_deref(), Some("prompt 0, step 8: token 1234 instead of token 1"));
    }

    #[test]
    fn forgives_a_wrong_choice_at_a_near_tie() {
        let tie = check(|golden, answers| {
            golden[0].steps[50].gap = 1e-5;
            answers[0].tokens[50].id = 9;
            answers[0].tokens[50].top[0].1 += 1e-4;
        });
        assert!(tie.passes(&Gates::CPU), "{tie:?}");
        assert_eq!((tie.n_wrong_choices, tie.n_exempt), (0, 1));
    }

    #[test]
    fn an_error_so_large_that_it_excuses_everything_fails_all_the_same() {
        let off = check(|_, answers| {
            for token in &mut answers[0].tokens {
                token.top[1].1 -= 5.0;
                token.id = 5;
            }
        });
        assert_eq!(off.n_wrong_choices, 0);
        assert!(!off.passes(&Gates::CPU));
        assert!(off.gates(&Gates::CPU).iter().filter(|gate| !gate.holds()).count() >= 3);
    }

    #[test]
    fn fails_missing_logprobs_a_missing_end_and_another_tokenization() {
        assert!(!check(|_, answers| answers[0].tokens[0].top.clear()).passes(&Gates::CPU));
        assert!(!check(|_, answers| answers[0].ended = false).passes(&Gates::CPU));
        assert!(!check(|_, answers| answers[0].n_prompt_tokens = Some(4)).passes(&Gates::CPU));
        assert!(!check(|_, answers| answers[0].tokens.truncate(30)).passes(&Gates::CPU));
    }

    #[test]
    fn a_token_that_the_worker_leaves_out_costs_what_it_must_be_off_by_at_least() {
        let out = check(|_, answers| answers[0].tokens[0].top = vec![(0, -0.1), (8, -3.0)]);
        // The reference has token 9 at -2.6; the worker puts it at -3.0 or lower.
        assert!((out.max_abs - 0.4).abs() < 1e-9, "{out:?}");
    }
}
