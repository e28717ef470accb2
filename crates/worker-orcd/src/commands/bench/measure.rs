//! One measurement: sequences of some depth, then a prompt read or tokens decoded.

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use transformer::{BLOCK_TOKENS, Batch, BlockId, Executor, Role, SampleRequest, Sampling, TokenId};

use crate::cli::BenchArgs;

/// Everything that is to be measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) cases: Vec<Case>,
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
    /// What `args` ask for, of a model whose context has room for `n_ctx` tokens.
    ///
    /// # Errors
    /// Nothing to measure.
    pub(crate) fn new(args: &BenchArgs, n_ctx: usize) -> anyhow::Result<Self> {
        let mut cases = if args.suite { suite() } else { combinations(args) };
        anyhow::ensure!(!cases.is_empty(), "-p 0 -n 0: nothing to measure");
        if args.suite {
            cases.retain(|case| case.longest() <= n_ctx);
            anyhow::ensure!(!cases.is_empty(), "--suite: a context of {n_ctx} tokens has no room for any of it");
        }
        Ok(Self { cases, repetitions: args.repetitions as usize, seed: args.seed })
    }

    /// Tokens in the longest sequence of all.
    pub(crate) fn longest(&self) -> usize {
        self.cases.iter().map(Case::longest).max().unwrap_or(0)
    }

    /// The most sequences at a time.
    pub(crate) fn most_seqs(&self) -> usize {
        self.cases.iter().map(|case| case.n_seqs).max().unwrap_or(1)
    }

    /// Tokens that the KV pool must hold at a time, in whole blocks a sequence.
    pub(crate) fn most_tokens(&self) -> u64 {
        let tokens = |case: &Case| case.n_seqs.saturating_mul(case.longest().next_multiple_of(BLOCK_TOKENS)) as u64;
        self.cases.iter().map(tokens).max().unwrap_or(0)
    }
}

/// Every length at every depth with every number of sequences.
fn combinations(args: &BenchArgs) -> Vec<Case> {
    let mut cases = Vec::new();
    for &depth in &args.depth {
        for &n_seqs in &args.batch {
            let prompts = args.n_prompt.iter().map(|&n| Work::Prompt(n as usize));
            let works = prompts.chain(args.n_gen.iter().map(|&n| Work::Decode(n as usize)));
            let works = works.filter(|work| !matches!(work, Work::Prompt(0) | Work::Decode(0)));
            cases.extend(works.map(|work| Case { work, depth: depth as usize, n_seqs: n_seqs as usize }));
        }
    }
    cases
}

/// One thing varied at a time.
fn suite() -> Vec<Case> {
    let prompts = [128, 512, 2048].map(|n| Case { work: Work::Prompt(n), depth: 0, n_seqs: 1 });
    let decode = |depth, n_seqs| Case { work: Work::Decode(128), depth, n_seqs };
    let depths = [0, 1024, 4096, 16_384].map(|depth| decode(depth, 1));
    let batches = [8, 32, 128, 256].map(|n_seqs| decode(0, n_seqs));
    [&prompts[..], &depths, &batches].concat()
}

impl Case {
    /// Tokens that one measurement handles.
    pub(crate) fn n_tokens(&self) -> usize {
        match self.work {
            Work::Prompt(n) | Work::Decode(n) => n * self.n_seqs,
        }
    }

    /// Tokens in each sequence when it is done.
    fn longest(&self) -> usize {
        let (Work::Prompt(n) | Work::Decode(n)) = self.work;
        self.depth.saturating_add(n)
    }
}

/// Tokens per second, of `plan.repetitions` runs after one that does not count.
pub(crate) fn measure(executor: &mut dyn Executor, case: &Case, plan: &Plan) -> anyhow::Result<Spread> {
    let mut bench = Bench::new(executor, case, plan.seed);
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
    /// A device that chooses the tokens itself is to do it here too: it is part of its step, as it is when serving.
    samples: bool,
    random: StdRng,
    batch: Batch,
}

impl<'e> Bench<'e> {
    fn new(executor: &'e mut dyn Executor, case: &Case, seed: u64) -> Self {
        let info = executor.info();
        let (block_tokens, n_vocab, max_batch_tokens) = (info.block_tokens, info.n_vocab, info.max_batch_tokens);
        let samples = info.samples;
        let per_seq = case.longest().div_ceil(block_tokens);
        let blocks_of = |s: usize| (0..per_seq).map(|b| BlockId((s * per_seq + b) as u32)).collect();
        let blocks = (0..case.n_seqs).map(blocks_of).collect();
        let random = StdRng::seed_from_u64(seed);
        Self { executor, blocks, block_tokens, n_vocab, max_batch_tokens, samples, random, batch: Batch::default() }
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
        if sample && self.samples {
            self.batch.sample_with(&SampleRequest::new(&Sampling::GREEDY, 0));
        }
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
    fn the_suite_varies_one_thing_at_a_time_and_leaves_out_what_has_no_room() {
        use crate::cli::{Cli, Command};
        use clap::Parser as _;

        let Some(Command::Bench(args)) = Cli::parse_from(["worker-orcd", "bench", "--suite"]).command else { panic!() };
        let plan = Plan::new(&args, 32_768).unwrap();
        assert_eq!((plan.cases.len(), plan.longest(), plan.most_seqs()), (11, 16_512, 256));
        assert_eq!(plan.most_tokens(), 256 * 128);
        let small = Plan::new(&args, 512).unwrap();
        assert_eq!((small.cases.len(), small.longest()), (7, 512));
        assert!(Plan::new(&args, 100).unwrap_err().to_string().contains("no room"));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(Spread::of(vec![4.0, 1.0]).median, 2.5);
        assert_eq!(Spread::of(vec![7.0]), Spread { median: 7.0, least: 7.0, most: 7.0 });
    }
}
