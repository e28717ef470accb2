//! A request's bits are its own in contexts of thousands of tokens, among 64 requests.
//!
//! On the GPU, with `WORKER_TEST_MODEL` naming a file, of that model; otherwise of the haiku model, in shorter contexts.

use std::collections::{BTreeMap, BTreeSet};
#[cfg(feature = "cuda")]
use std::path::Path;
use std::time::Instant;

use transformer::{
    BLOCK_TOKENS, Batch, BlockId, Choice, Executor, ModelSpec, Role, SampleRequest, Sampling, StepOutput, TokenCount,
    mask_words,
};
use weight_loader::ModelFile;

use crate::case::Case;
use crate::sequence::{Setup, Target, Watched};

/// How much is asked of the executor.
#[derive(Debug, Clone, Copy)]
struct Scale {
    n_ctx: usize,
    /// Prompts of the requests that are watched, ascending.
    prompts: [usize; 6],
    /// Requests at once, the watched ones among them.
    n_requests: usize,
}

impl Scale {
    /// A model of full size.
    #[cfg(feature = "cuda")]
    const FULL: Scale = Scale { n_ctx: 3072, prompts: [1, 17, 64, 513, 1000, 3000], n_requests: 64 };
    /// The haiku model's whole context.
    #[cfg(feature = "cuda")]
    const HAIKU: Scale = Scale { n_ctx: 512, prompts: [1, 17, 33, 100, 257, 470], n_requests: 64 };
    /// What a CPU does in seconds.
    const SMALL: Scale = Scale { n_ctx: 160, prompts: [1, 17, 33, 64, 90, 130], n_requests: 12 };
}

/// What is asked after a row.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ask {
    Logits,
    /// The chosen token with twenty log-probabilities: the best of some requests, of the others one drawn.
    Choices,
}

/// A request whose every token is given, so that each way of driving it asks the same of the executor.
#[derive(Debug, Clone)]
struct Request {
    tokens: Vec<u32>,
    n_prompt: usize,
    seed: u64,
    /// The most prompt tokens in a step.
    chunk: usize,
    /// The step in which it joins the others.
    joins: usize,
    /// Another request of the same drive and how many of its prompt's tokens are this one's too: their keys and values are read
    /// where that one has put them.
    prefix: Option<(usize, usize)>,
}

impl Request {
    /// Random tokens that follow from `seed`.
    fn new(n_prompt: usize, n_given: usize, seed: u64, n_vocab: usize) -> Self {
        Self {
            tokens: random_tokens(n_prompt + n_given, seed, n_vocab),
            n_prompt,
            seed,
            chunk: usize::MAX,
            joins: 0,
            prefix: None,
        }
    }

    /// Where its own tokens begin.
    fn start(&self) -> usize {
        self.prefix.map_or(0, |(_, n)| n)
    }

    /// Asks for what follows the tokens before `end`, the batch's last.
    fn ask(&self, batch: &mut Batch, end: usize, n_vocab: usize) {
        let mut given = BTreeMap::new();
        self.tokens[self.n_prompt..end].iter().for_each(|&id| *given.entry(id).or_insert(0) += 1);
        let history: Vec<_> = given.into_iter().map(|(id, count)| TokenCount { id, count }).collect();
        let plain = Sampling::default();
        let sampling = match self.seed % 4 {
            0 => Sampling { temperature: 0.0, ..plain },
            1 => Sampling { temperature: 0.8, top_p: 0.95, repetition_penalty: 1.1, ..plain },
            2 => Sampling { top_k: 40, min_p: 0.01, ..plain },
            _ => Sampling { top_k: 200, presence_penalty: 0.5, frequency_penalty: 0.25, ..plain },
        };
        let (mut logit_bias, mut mask) = (Vec::new(), Vec::new());
        if self.seed % 4 == 3 {
            logit_bias.extend((0..100).map(|i| (7 * i, 0.5 - (i % 3) as f32)));
            // Another one in every step.
            mask.extend((0..mask_words(n_vocab)).map(|word| (word + end) as u32 | 0x5555_5555));
        }
        let history = if sampling.penalizes() { &history[..] } else { &[] };
        batch.sample_with(&SampleRequest {
            history,
            logit_bias: &logit_bias,
            mask: &mask,
            n_logprobs: Some(20),
            ..SampleRequest::new(&sampling, self.seed)
        });
    }
}

/// SplitMix64, one number a token.
fn random_tokens(n: usize, seed: u64, n_vocab: usize) -> Vec<u32> {
    let mix = |z: u64| (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let last = |z: u64| (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let number = |i: u64| last(mix((seed * 1_000_003 + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (0..n as u64).map(|i| ((number(i) >> 32) % n_vocab as u64) as u32).collect()
}

/// A hash in which each change of any one of the words shows.
fn fold(hash: u64, words: impl Iterator<Item = u32>) -> u64 {
    words.fold(hash, |hash, word| (hash.rotate_left(5) ^ u64::from(word)).wrapping_mul(0x517c_c1b7_2722_0a95))
}

/// What every row of an answer is, in a number each.
fn fingerprints(output: StepOutput<'_>, n_vocab: usize) -> Vec<u64> {
    match output {
        StepOutput::Logits(logits) => {
            let rows = logits.chunks_exact(n_vocab).map(|row| {
                assert!(row.iter().all(|x| x.is_finite()), "logits are not finite");
                fold(1, row.iter().map(|x| x.to_bits()))
            });
            rows.collect()
        }
        StepOutput::Chosen(choices) => {
            let of = |choice: &Choice| {
                let logprobs = choice.logprobs.as_ref().unwrap();
                let top = logprobs.top.iter().flat_map(|top| [top.id, top.logprob.to_bits()]);
                fold(2, [choice.id.unwrap(), logprobs.logprob.to_bits()].into_iter().chain(top))
            };
            choices.iter().map(of).collect()
        }
    }
}

/// Drives all requests at once: for each, a fingerprint of what is answered at its prompt's end and after every given token.
///
/// Each request's blocks lie scattered over the pool, between those of the others.
fn drive(executor: &mut dyn Executor, requests: &[Request], ask: Ask) -> Vec<Vec<u64>> {
    let info = executor.info().clone();
    let own_blocks = |i: usize| (0..).map(move |b: usize| BlockId((b * requests.len() + i) as u32));
    let mut positions: Vec<usize> = requests.iter().map(Request::start).collect();
    let mut answers: Vec<Vec<u64>> = vec![Vec::new(); requests.len()];
    let mut batch = Batch::default();
    for step in 0.. {
        batch.clear();
        let (mut asked, written) = (Vec::new(), positions.clone());
        for (i, request) in requests.iter().enumerate() {
            let (pos, room) = (positions[i], info.max_batch_tokens - batch.n_tokens());
            // A prefix can be read in the step after the one that has written it.
            let waits = request.prefix.is_some_and(|(of, n)| written[of] < n);
            if request.joins > step || waits || pos == request.tokens.len() || room == 0 {
                continue;
            }
            let (role, end) = match pos < request.n_prompt {
                true => (Role::Prompt, request.n_prompt.min(pos.saturating_add(request.chunk.min(room)))),
                false => (Role::Generated, pos + 1),
            };
            let (of, n) = request.prefix.unwrap_or((i, 0));
            let n_blocks = end.div_ceil(BLOCK_TOKENS);
            let shared = own_blocks(of).take(n / BLOCK_TOKENS);
            let blocks: Vec<BlockId> = shared.chain(own_blocks(i).skip(n / BLOCK_TOKENS)).take(n_blocks).collect();
            let asks = end >= request.n_prompt;
            batch.push(role, &request.tokens[pos..end], pos as u32, &blocks, asks);
            if asks {
                asked.push(i);
                if ask == Ask::Choices {
                    request.ask(&mut batch, end, info.n_vocab);
                }
            }
            positions[i] = end;
        }
        if batch.is_empty() && requests.iter().all(|request| request.joins <= step) {
            return answers;
        }
        let output = executor.forward(&batch).unwrap();
        for (i, fingerprint) in asked.into_iter().zip(fingerprints(output, info.n_vocab)) {
            answers[i].push(fingerprint);
        }
    }
    unreachable!()
}

/// The requests that are watched.
fn watched(scale: Scale, n_vocab: usize) -> Vec<Request> {
    let n_given = [24, 20, 16, 12, 30, 24];
    let sizes = scale.prompts.into_iter().zip(n_given).zip(0..);
    sizes.map(|((n_prompt, n_given), seed)| Request::new(n_prompt, n_given, seed, n_vocab)).collect()
}

/// The same between others, all of which come and go at different steps.
fn among_others(watched: &[Request], scale: Scale, n_vocab: usize) -> (Vec<Request>, Vec<usize>) {
    let places: Vec<usize> = (0..watched.len()).map(|i| (i * scale.n_requests + 3) / watched.len()).collect();
    let others = scale.n_ctx / 8;
    let request = |i: usize| match places.iter().position(|&place| place == i) {
        Some(of) => {
            Request { joins: [0, 3, 0, 5, 2, 1][of], chunk: [1, 7, 64, 100, 333, 512][of], ..watched[of].clone() }
        }
        None => Request {
            joins: i % 11,
            chunk: [usize::MAX, 5, 64, 128][i % 4],
            ..Request::new(1 + i * 37 % others, 5 + i % 29, 100 + i as u64, n_vocab)
        },
    };
    ((0..scale.n_requests).map(request).collect(), places)
}

/// One that has read the first `n_shared` tokens of `request`'s prompt, and other tokens after them; and `request`, which reads
/// those where it finds them.
fn with_prefix(request: &Request, n_shared: usize, n_vocab: usize) -> [Request; 2] {
    let mut donor = Request { chunk: 96, ..Request::new(n_shared + 20, 10, 77, n_vocab) };
    donor.tokens[..n_shared].copy_from_slice(&request.tokens[..n_shared]);
    [donor, Request { prefix: Some((0, n_shared)), chunk: 200, ..request.clone() }]
}

/// The model and how much is asked of it.
fn model() -> (ModelFile, Scale) {
    let haiku = || ModelFile::open(&Case::read("haiku").model).unwrap();
    match Target::best() {
        Target::Cpu(..) => (haiku(), Scale::SMALL),
        #[cfg(feature = "cuda")]
        Target::Cuda { .. } => match std::env::var_os("WORKER_TEST_MODEL") {
            Some(path) => (ModelFile::open(Path::new(&path)).unwrap(), Scale::FULL),
            None => (haiku(), Scale::HAIKU),
        },
    }
}

/// The best one, and on a GPU every other way that has to give the same bits.
fn targets() -> Vec<Target> {
    match Target::best() {
        cpu @ Target::Cpu(..) => vec![cpu],
        #[cfg(feature = "cuda")]
        Target::Cuda { .. } => [(true, true), (true, false), (false, true), (false, false)]
            .map(|(graphs, dependent_launch)| Target::Cuda { graphs, dependent_launch })
            .to_vec(),
    }
}

#[test]
fn a_request_s_bits_are_its_own_in_long_contexts() {
    let (file, scale) = model();
    let setup = Setup { n_ctx: scale.n_ctx, max_seqs: scale.n_requests, max_batch_tokens: scale.n_ctx + 1024 };
    let targets = targets();
    let mut firsts: Option<Vec<Vec<Vec<u64>>>> = None;
    for (target_idx, target) in targets.iter().enumerate() {
        let began = Instant::now();
        let spec = ModelSpec::from_gguf(&file.gguf().unwrap()).unwrap();
        let mut watch = Watch::new(target.executor_with(&file, spec, setup), scale);
        let asks: &[Ask] = if watch.executor.info().samples { &[Ask::Logits, Ask::Choices] } else { &[Ask::Logits] };
        let alone: Vec<Vec<Vec<u64>>> = asks.iter().map(|&ask| watch.alone(ask)).collect();
        for (&ask, want) in asks.iter().zip(&alone) {
            assert!(watch.alone(ask) == *want, "{target}, {ask:?}: a second run differs");
            watch.among_others_is(ask, want).unwrap_or_else(|what| panic!("{target}, {ask:?}: {what}"));
            // Prompts know no graphs: the first target and the last, which differ in all else, do.
            if [0, targets.len() - 1].contains(&target_idx) {
                watch.in_chunks_is(ask, want).unwrap_or_else(|what| panic!("{target}, {ask:?}: {what}"));
                watch.with_prefixes_is(ask, want).unwrap_or_else(|what| panic!("{target}, {ask:?}: {what}"));
            }
        }
        assert_distinct(&alone);
        assert!(firsts.get_or_insert_with(|| alone.clone()) == &alone, "{target} differs from {}", targets[0]);
        println!("{target}, contexts to {}: {:.1} s", scale.n_ctx, began.elapsed().as_secs_f64());
    }
}

/// Equal answers would prove nothing.
fn assert_distinct(answers: &[Vec<Vec<u64>>]) {
    let all: Vec<u64> = answers.iter().flatten().flatten().copied().collect();
    let distinct: BTreeSet<u64> = all.iter().copied().collect();
    assert_eq!(distinct.len(), all.len(), "different rows have the same bits");
}

/// An executor that is asked the same in many ways.
struct Watch {
    executor: Box<dyn Watched>,
    scale: Scale,
    requests: Vec<Request>,
}

impl Watch {
    fn new(executor: Box<dyn Watched>, scale: Scale) -> Self {
        let requests = watched(scale, executor.info().n_vocab);
        Self { executor, scale, requests }
    }

    /// Every request by itself, its prompt whole.
    fn alone(&mut self, ask: Ask) -> Vec<Vec<u64>> {
        let executor = &mut *self.executor;
        self.requests.iter().map(|request| drive(executor, std::slice::from_ref(request), ask).remove(0)).collect()
    }

    /// Among others.
    fn among_others_is(&mut self, ask: Ask, want: &[Vec<u64>]) -> Result<(), String> {
        let (many, places) = among_others(&self.requests, self.scale, self.executor.info().n_vocab);
        let together = drive(&mut *self.executor, &many, ask);
        match places.iter().zip(want).position(|(&place, want)| together[place] != *want) {
            Some(i) => Err(format!("request {i} differs among {}", many.len())),
            None => Ok(()),
        }
    }

    /// Prompts in chunks of 1 (the short ones), 7, 64 and 512.
    fn in_chunks_is(&mut self, ask: Ask, want: &[Vec<u64>]) -> Result<(), String> {
        for (i, chunk) in [(1, 1), (2, 1), (2, 7), (4, 7), (4, 64), (5, 64), (5, 512)] {
            let request = Request { chunk, ..self.requests[i].clone() };
            if drive(&mut *self.executor, std::slice::from_ref(&request), ask)[0] != want[i] {
                return Err(format!("a prompt of {} differs in chunks of {chunk}", request.n_prompt));
            }
        }
        Ok(())
    }

    /// With one block, a half and nearly all of the prompt written by another request.
    fn with_prefixes_is(&mut self, ask: Ask, want: &[Vec<u64>]) -> Result<(), String> {
        let n_vocab = self.executor.info().n_vocab;
        for (request, want) in self.requests.iter().zip(want).filter(|(request, _)| request.n_prompt > BLOCK_TOKENS) {
            let whole_blocks = |n: usize| n / BLOCK_TOKENS * BLOCK_TOKENS;
            let most = whole_blocks(request.n_prompt - 1);
            for n_shared in [BLOCK_TOKENS, whole_blocks(most / 2), most] {
                if drive(&mut *self.executor, &with_prefix(request, n_shared, n_vocab), ask)[1] != *want {
                    return Err(format!("{n_shared} of {} tokens written by another", request.n_prompt));
                }
            }
        }
        let mut wrong = with_prefix(&self.requests[3], BLOCK_TOKENS, n_vocab);
        wrong[0].tokens[0] = (wrong[0].tokens[0] + 1) % n_vocab as u32;
        match drive(&mut *self.executor, &wrong, ask)[1] == want[3] {
            true => Err("what another has written is not read".to_owned()),
            false => Ok(()),
        }
    }
}
