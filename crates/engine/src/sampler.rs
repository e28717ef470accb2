//! From a row of logits to a token: bias, mask, penalties, temperature, top-k, top-p, min-p, draw.
//!
//! In this order:
//!
//! 1. *Logit bias*: added to the logits of the tokens that have one.
//! 2. *Mask*: tokens that it does not allow become impossible, whatever their logit.
//! 3. *Repetition penalty*: divides positive and multiplies negative logits of every token in the generated history.
//! 4. *Presence and frequency penalty*: `presence + frequency * count` is subtracted from the logit of every token that was
//!    generated `count > 0` times.
//! 5. *Temperature*: divides all logits. At 0 the most likely token is taken, the lowest id of equals, and that is all.
//! 6. *Top-k*, *top-p*, *min-p*, and the *draw*.
//!
//! A temperature scales all logits alike and the repetition penalty each by its own factor: these two commute, and the
//! penalty is cheaper first, because only the tokens of the history change. A bias and the subtracted penalties are numbers
//! on the scale of the model's own logits, as OpenAI defines them, and mean the same at every temperature; so they come
//! before it, and a greedy choice heeds them too.
//!
//! A token that is *given*, as a prompt's are where they are scored, is not chosen at all. Log-probabilities are those of the
//! model's own softmax: none of these settings enters them.
//!
//! The filters all keep the beginning of one order (most likely first, ties by id), so each is a cut-off in that order and
//! nothing is ever sorted: a cut-off is found by radix selection over the bits of the probabilities. What survives is drawn
//! from in order of id.
//!
//! A result is a function of the row, the request's settings and history, its seed and the position, and of nothing else.
//! Arithmetic is F32 with the maximum subtracted, summed in a fixed order: 16 lanes over 1024 elements, then F64.
//!
//! A row must have a finite maximum; one without (all NaN, any +inf) is a [`RowFault`]. Single NaN or -inf logits count as
//! impossible tokens.

pub use transformer::RowFault;
use transformer::{Logprob, SampleRequest, Sampling, TokenId, TokenLogprobs};

use crate::rng;
use crate::softmax::{SUM_BLOCK, finite_maximum, log_sum_exp, probabilities};

#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    probability: f32,
    id: TokenId,
}

/// Chooses tokens for one vocabulary. Its buffers are made once.
#[derive(Debug)]
pub struct Sampler {
    /// Logits after biases, mask and penalties. `[n_vocab]`
    adjusted: Vec<f32>,
    /// Probabilities times a constant: the most likely token has exactly 1. `[n_vocab]`
    weights: Vec<f32>,
    /// Sums of `weights` over each [`SUM_BLOCK`].
    block_sums: Vec<f64>,
    candidates: Vec<Candidate>,
    histogram: Histogram,
}

impl Sampler {
    /// A sampler for rows of `n_vocab` logits.
    pub fn new(n_vocab: usize) -> Self {
        Self {
            adjusted: vec![0.0; n_vocab],
            weights: vec![0.0; n_vocab],
            block_sums: vec![0.0; n_vocab.div_ceil(SUM_BLOCK)],
            candidates: Vec::with_capacity(n_vocab),
            histogram: Histogram::new(),
        }
    }

    /// Chooses the token at `position` (absolute, in its sequence), or takes the one that is given.
    ///
    /// `logits` has the length given to [`Sampler::new`], and the request's lists and its mask are of that vocabulary.
    ///
    /// # Errors
    /// [`RowFault`] if the row, as biases, mask and penalties leave it, has no finite maximum, or the token that is given no
    /// finite logit.
    pub fn choose(&mut self, logits: &[f32], request: &SampleRequest<'_>, position: u64) -> Result<TokenId, RowFault> {
        assert_eq!(logits.len(), self.weights.len(), "a row of logits has one for each token of the vocabulary");
        if let Some(given) = request.given {
            let logit = logits[given as usize];
            return if logit.is_finite() { Ok(given) } else { Err(RowFault { maximum: logit }) };
        }
        let sampling = request.sampling;
        let penalized = sampling.penalizes() && !request.history.is_empty();
        let is_adjusted = penalized || !request.logit_bias.is_empty() || !request.mask.is_empty();
        if is_adjusted {
            self.adjusted.copy_from_slice(logits);
            adjust(&mut self.adjusted, request);
        }
        let row = if is_adjusted { &self.adjusted[..] } else { logits };
        let maximum = finite_maximum(row).map_err(|maximum| RowFault { maximum })?;
        if sampling.temperature == 0.0 {
            let first = row.iter().position(|&x| x == maximum);
            return Ok(first.expect("the maximum is in the row") as TokenId);
        }
        probabilities(row, maximum, sampling.temperature, &mut self.weights, &mut self.block_sums);
        let u = rng::uniform(request.seed, position);
        if sampling.top_k == 0 && sampling.top_p >= 1.0 && sampling.min_p <= 0.0 {
            return Ok(self.draw_from_all(u));
        }
        self.keep_candidates(sampling);
        Ok(self.draw_from_candidates(u))
    }

    /// The log-probability of `chosen` and of the `n` most likely tokens under the model's own softmax.
    ///
    /// # Errors
    /// [`RowFault`] if the row has no finite maximum.
    pub fn logprobs(&self, logits: &[f32], chosen: TokenId, n: usize) -> Result<TokenLogprobs, RowFault> {
        let maximum = finite_maximum(logits).map_err(|maximum| RowFault { maximum })?;
        let normalizer = log_sum_exp(logits, maximum);
        let logprob = |logit: f32| (f64::from(logit) - normalizer) as f32;
        let top = most_likely(logits, n);
        Ok(TokenLogprobs {
            logprob: logprob(logits[chosen as usize]),
            top: top.into_iter().map(|c| Logprob { id: c.id, logprob: logprob(c.probability) }).collect(),
        })
    }

    /// Fills `candidates` with the tokens that top-k, top-p and min-p leave, by id.
    fn keep_candidates(&mut self, sampling: &Sampling) {
        let n_vocab = self.weights.len();
        let top_k = (sampling.top_k as usize) < n_vocab && sampling.top_k > 0;
        let top_p = sampling.top_p < 1.0;
        let mut total: f64 = self.block_sums.iter().sum();
        // Cheap lower bounds first. Tokens below `(1 - top_p) * total / n` add up to less than what top-p drops, so it
        // keeps none of them; but its share is of what top-k leaves, so not when there is a top-k.
        let mut floor = sampling.min_p;
        if top_p && !top_k {
            floor = floor.max(((1.0 - f64::from(sampling.top_p)) * total / n_vocab as f64) as f32 * 0.999);
        }
        if top_k {
            floor = 0.0;
        }
        // Written without a branch, because no branch predictor can know which tokens are likely.
        self.candidates.resize(n_vocab, Candidate { probability: 0.0, id: 0 });
        let mut n_kept = 0;
        for (id, &probability) in self.weights.iter().enumerate() {
            self.candidates[n_kept] = Candidate { probability, id: id as TokenId };
            n_kept += usize::from(probability >= floor);
        }
        self.candidates.truncate(n_kept);
        if top_k {
            self.histogram.keep(&mut self.candidates, Goal::Count(sampling.top_k as usize));
            total = self.candidates.iter().map(|c| f64::from(c.probability)).sum();
        }
        if top_p {
            self.histogram.keep(&mut self.candidates, Goal::Mass(f64::from(sampling.top_p) * total));
        }
        if sampling.min_p > 0.0 {
            self.candidates.retain(|c| c.probability >= sampling.min_p);
        }
    }

    fn draw_from_all(&self, u: f64) -> TokenId {
        let target = u * self.block_sums.iter().sum::<f64>();
        let mut below = 0.0;
        let last_block = self.block_sums.iter().rposition(|&s| s > 0.0).expect("the most likely token weighs 1");
        for (block_idx, &sum) in self.block_sums.iter().enumerate() {
            if below + sum > target || block_idx == last_block {
                let start = block_idx * SUM_BLOCK;
                let block = &self.weights[start..self.weights.len().min(start + SUM_BLOCK)];
                return (start + draw(block.iter().copied(), target - below)) as TokenId;
            }
            below += sum;
        }
        unreachable!("the last block is taken if no other is");
    }

    fn draw_from_candidates(&self, u: f64) -> TokenId {
        let weights = || self.candidates.iter().map(|c| c.probability);
        let total: f64 = weights().map(f64::from).sum();
        self.candidates[draw(weights(), u * total)].id
    }
}

/// Biases, mask and penalties, in this order.
fn adjust(row: &mut [f32], request: &SampleRequest<'_>) {
    for &(id, bias) in request.logit_bias {
        row[id as usize] += bias;
    }
    for (logits, &allowed) in row.chunks_mut(32).zip(request.mask) {
        if allowed != u32::MAX {
            for (_, logit) in logits.iter_mut().enumerate().filter(|(i, _)| allowed >> i & 1 == 0) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    let sampling = request.sampling;
    if sampling.repetition_penalty != 1.0 {
        for counted in request.history {
            let logit = &mut row[counted.id as usize];
            *logit = if *logit > 0.0 {
                // Against a penalty near 0, which is allowed, the quotient is beyond F32; it is then certain enough.
                (*logit / sampling.repetition_penalty).min(f32::MAX)
            } else {
                *logit * sampling.repetition_penalty
            };
        }
    }
    if sampling.penalizes_by_count() {
        for counted in request.history {
            let penalty = sampling.presence_penalty + sampling.frequency_penalty * counted.count as f32;
            row[counted.id as usize] -= penalty;
        }
    }
}

/// The index at which the running sum passes `target`; the last with any weight if rounding keeps it from doing so.
fn draw(weights: impl Iterator<Item = f32>, target: f64) -> usize {
    let mut sum = 0.0;
    let mut last = 0;
    for (i, weight) in weights.enumerate() {
        if weight > 0.0 {
            sum += f64::from(weight);
            last = i;
            if sum > target {
                break;
            }
        }
    }
    last
}

/// The `n` greatest logits, greatest first, ties by id. `Candidate::probability` holds the logit.
fn most_likely(logits: &[f32], n: usize) -> Vec<Candidate> {
    /// Elements looked at together: one comparison tells that none of them is wanted.
    const STRIDE: usize = 64;
    let mut top: Vec<Candidate> = Vec::with_capacity(n + 1);
    if n == 0 {
        return top;
    }
    for (stride_idx, stride) in logits.chunks(STRIDE).enumerate() {
        let floor = if top.len() < n { f32::NEG_INFINITY } else { top[n - 1].probability };
        if !stride.iter().any(|&x| x > floor) {
            continue;
        }
        for (i, &logit) in stride.iter().enumerate() {
            let floor = if top.len() < n { f32::NEG_INFINITY } else { top[n - 1].probability };
            if logit > floor {
                let at = top.partition_point(|c| c.probability >= logit);
                top.insert(at, Candidate { probability: logit, id: (stride_idx * STRIDE + i) as TokenId });
                top.truncate(n);
            }
        }
    }
    top
}

/// How much of the order to keep.
#[derive(Debug, Clone, Copy)]
enum Goal {
    /// So many tokens.
    Count(usize),
    /// The fewest tokens whose weights reach this.
    Mass(f64),
}

/// Radix selection over the bits of weights in `[0, 1]`, whose order as integers is their order as numbers.
#[derive(Debug)]
struct Histogram {
    counts: Vec<u32>,
    masses: Vec<f64>,
}

/// Digits of 10 bits: the bits of 1.0 shifted by 20 are 1016.
const DIGIT_BITS: u32 = 10;
const N_DIGITS: usize = 1 << DIGIT_BITS;

impl Histogram {
    fn new() -> Self {
        Self { counts: vec![0; N_DIGITS], masses: vec![0.0; N_DIGITS] }
    }

    /// Keeps the most likely candidates up to `goal`, ties by id; their order stays by id.
    fn keep(&mut self, candidates: &mut Vec<Candidate>, mut goal: Goal) {
        let (mut known, mut mask) = (0u32, 0u32);
        for shift in [2 * DIGIT_BITS, DIGIT_BITS, 0] {
            self.count(candidates, known, mask, shift);
            let Some(digit) = self.find_digit(&mut goal) else { return };
            known |= (digit as u32) << shift;
            mask |= (N_DIGITS as u32 - 1) << shift;
        }
        // All candidates with these bits are equal: the goal ends among them.
        let mut n_equal = match goal {
            Goal::Count(n) => n,
            Goal::Mass(mass) => ((mass / f64::from(f32::from_bits(known))).ceil() as usize).max(1),
        };
        let mut n_kept = 0;
        for i in 0..candidates.len() {
            let candidate = candidates[i];
            let bits = candidate.probability.to_bits();
            let is_taken_equal = bits == known && n_equal > 0;
            n_equal -= usize::from(is_taken_equal);
            candidates[n_kept] = candidate;
            n_kept += usize::from(bits > known || is_taken_equal);
        }
        candidates.truncate(n_kept);
    }

    /// Counts candidates by the digit at `shift`, among those whose higher digits are `known`.
    fn count(&mut self, candidates: &[Candidate], known: u32, mask: u32, shift: u32) {
        self.counts.fill(0);
        self.masses.fill(0.0);
        for c in candidates {
            let bits = c.probability.to_bits();
            if bits & mask == known {
                let digit = (bits >> shift) as usize & (N_DIGITS - 1);
                self.counts[digit] += 1;
                self.masses[digit] += f64::from(c.probability);
            }
        }
    }

    /// The digit in which the goal is reached, and what of the goal is left there. Of a mass that rounding keeps out of
    /// reach, the last digit that occurs. `None` if everything is to be kept.
    fn find_digit(&self, goal: &mut Goal) -> Option<usize> {
        let mut last = None;
        for digit in (0..N_DIGITS).rev().filter(|&d| self.counts[d] > 0) {
            let (count, mass) = (self.counts[digit] as usize, self.masses[digit]);
            match goal {
                Goal::Count(n) if *n <= count => return Some(digit),
                Goal::Mass(m) if *m <= mass => return Some(digit),
                Goal::Count(n) => *n -= count,
                Goal::Mass(m) => *m -= mass,
            }
            last = Some(digit);
        }
        match goal {
            Goal::Count(_) => None,
            Goal::Mass(m) => {
                *m = f64::INFINITY;
                last
            }
        }
    }
}

#[cfg(test)]
mod tests;
