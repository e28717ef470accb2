//! One measurement: sequences of some depth, then a prompt read or tokens decoded.

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use transformer::{Batch, BlockId, Executor, Role, TokenId};

use crate::cli::BenchArgs;

/// Everything that is to be measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    prompts: Vec<usize>,
    gens: Vec<usize>,
    pub(crate) depths: Vec<usize>,
    pub(crate) batches: Vec<usize>,
    pub(crate) repetitions: usize,
    seed: u64,
}

/// What happens in one measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Read this many prompt tokens a sequence.
    Prompt(usize),
    /// Decode this many tokens a sequence, one a step.
    Decode(usize),
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) work: Work,
    /// Tokens in each sequence before it begins.
    pub(crate) depth: usize,
    /// Sequences.
    pub(crate) n_seqs: usize,
}

/// The median, least and most of some figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of at least one figure; of an even number, the median is the mean of the middle two.
    pub(crate) fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let n = figures.len();
        Self { median: (figures[(n - 1) / 2] + figures[n / 2]) / 2.0, least: figures[0], most: figures[n - 1] }
    }
}

impl Plan {
    /// # Errors
    /// Nothing to measure.
    pub(crate) fn new(args: &BenchArgs) -> anyhow::Result<Self> {
        let counts = |values: &[u32]| -> Vec<usize> { values.iter().map(|&n| n as usize).collect() };
        let lengths = |values: &[u32]| -> Vec<usize> { counts(values).into_iter().filter(|n| *n > 0).collect() };
        let plan = Self {
            prompts: lengths(&args.n_prompt),
            gens: lengths(&args.n_gen),
            depths: counts(&args.depth),
            batches: counts(&args.batch),
            repetitions: args.repetitions as usize,
            seed: args.seed,
        };
        anyhow::ensure!(!(plan.prompts.is_empty() && plan.gens.is_empty()), "-p 0 -n 0: nothing to measure");
        Ok(plan)
    }

    /// Tokens in the longest sequence of all.
    pub(crate) fn longest(&self) -> usize {
        let most = |values: &[usize]| values.iter().copied().max().unwrap_or(0);
        most(&self.depths).saturating_add(most(&self.prompts).max(most(&self.gens)))
    }

    /// The most sequences at a time.
    pub(crate) fn most_seqs(&self) -> usize {
        self.batches.iter().copied().max().unwrap_or(1)
    }

    /// The lines for one depth and one number of sequences.
    pub(crate) fn cases(&self, depth: usize, n_seqs: usize) -> Vec<Case> {
        let prompts = self.prompts.iter().map(|&n| Work::Prompt(n));
        let gens = self.gens.iter().map(|&n| Work::Decode(n));
        prompts.chain(gens).map(|work| Case { work, depth, n_seqs }).collect()
    }
}

impl Case {
    /// Tokens that one measurement handles.
    pub(crate) fn n_tokens(&self) -> usize {
        match self.work {
            Work::Prompt(n) | Work::Decode(n) => n * self.n_seqs,
        }
    }
}

/// Tokens per second, of `plan.repetitions` runs after one that does not count.
pub(crate) fn measure(executor: &mut dyn Executor, case: &Case, plan: &Plan) -> anyhow::Result<Spread> {
    let mut bench = Bench::new(executor, case.n_seqs, plan.seed);
    bench.read(0, case.depth)?;
    bench.run(case)?;
    let mut rates = Vec::with_capacity(plan.repetitions);
    for _ in 0..plan.repetitions {
        let began = Instant::now();
        bench.run(case)?;
        rates.push(case.n_tokens() as f64 / began.elapsed().as_secs_f64());
    }
    Ok(Spread::of(rates))
}

/// Sequences of random tokens, each with blocks of its own.
struct Bench<'e> {
    executor: &'e mut dyn Executor,
    blocks: Vec<Vec<BlockId>>,
    block_tokens: usize,
    n_vocab: usize,
    max_batch_tokens: usize,
    random: StdRng,
    batch: Batch,
}

impl<'e> Bench<'e> {
    fn new(executor: &'e mut dyn Executor, n_seqs: usize, seed: u64) -> Self {
        let info = executor.info();
        let (block_tokens, n_vocab, max_batch_tokens) = (info.block_tokens, info.n_vocab, info.max_batch_tokens);
        let per_seq = info.n_ctx.div_ceil(block_tokens);
        let blocks = (0..n_seqs).map(|s| (0..per_seq).map(|b| BlockId((s * per_seq + b) as u32)).collect()).collect();
        let random = StdRng::seed_from_u64(seed);
        Self { executor, blocks, block_tokens, n_vocab, max_batch_tokens, random, batch: Batch::default() }
    }

    fn run(&mut self, case: &Case) -> anyhow::Result<()> {
        match case.work {
            Work::Prompt(n) => self.read(case.depth, n),
            Work::Decode(n) => (0..n).try_for_each(|i| self.decode(case.depth + i)),
        }
    }

    /// Reads `n_tokens` prompt tokens of each sequence, from position `start` on, in steps as full as they may be.
    fn read(&mut self, start: usize, n_tokens: usize) -> anyhow::Result<()> {
        let mut room = self.max_batch_tokens;
        for seq in 0..self.blocks.len() {
            let mut done = 0;
            while done < n_tokens {
                let n = room.min(n_tokens - done);
                let tokens = self.tokens(n);
                done += n;
                self.push(seq, Role::Prompt, &tokens, start + done - n, done == n_tokens);
                room -= n;
                if room == 0 {
                    self.step()?;
                    room = self.max_batch_tokens;
                }
            }
        }
        self.step()
    }

    /// One token of each sequence, at position `pos`.
    fn decode(&mut self, pos: usize) -> anyhow::Result<()> {
        for seq in 0..self.blocks.len() {
            let token = self.tokens(1);
            self.push(seq, Role::Generated, &token, pos, true);
        }
        self.step()
    }

    fn tokens(&mut self, n: usize) -> Vec<TokenId> {
        (0..n).map(|_| self.random.random_range(0..self.n_vocab as TokenId)).collect()
    }

    fn push(&mut self, seq: usize, role: Role, tokens: &[TokenId], start: usize, sample: bool) {
        let n_blocks = (start + tokens.len()).div_ceil(self.block_tokens);
        self.batch.push(role, tokens, start as u32, &self.blocks[seq][..n_blocks], sample);
    }

    fn step(&mut self) -> anyhow::Result<()> {
        if !self.batch.is_empty() {
            self.executor.forward(&self.batch)?;
            self.batch.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(Spread::of(vec![4.0, 1.0]).median, 2.5);
        assert_eq!(Spread::of(vec![7.0]), Spread { median: 7.0, least: 7.0, most: 7.0 });
    }
}
