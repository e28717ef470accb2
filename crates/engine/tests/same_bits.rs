//! A request's tokens and log-probabilities are the same bits whatever the worker is doing: alone or in a batch of 8, with
//! and without prefix reuse, over a generated answer too, whatever the chunks and the threads. So are those of its prompt's
//! tokens, and they are what each beginning of the prompt says of the token that follows.
//!
//! One suite, mounted on the executor without a model, on the haiku model, and on a quantised one with each way of multiplying
//! interleaved weights.

use std::path::Path;
use std::time::Instant;

use engine::{
    Constraint, ConstraintError, Engine, EngineConfig, EngineHandle, Event, Job, Progress, Request, Sampling, Token,
    TokenLogprobs, TokenMask,
};
use quant::IntegerIsa;
use test_support::fake_executor::{FakeConfig, FakeExecutor};
use transformer::cpu::{CpuExecutor, CpuOptions};
use transformer::{Executor, ModelSpec, TokenId};
use weight_loader::{ModelFile, Weights};

const CHUNKS: [usize; 4] = [1, 7, 64, usize::MAX];

/// `Write a haiku about GPU computing that includes the word "forty-two"` in the haiku model's vocabulary.
const HAIKU_PROMPT: [TokenId; 14] = [283, 257, 275, 277, 870, 1145, 305, 308, 265, 287, 294, 366, 472, 1];

/// Makes an executor with so many threads.
type Make<'a> = &'a dyn Fn(usize) -> Box<dyn Executor>;

/// Allows every third token, beginning with what the tokens before it sum up to.
struct EveryThird(u32);

impl Constraint for EveryThird {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<Progress, ConstraintError> {
        (self.0 % 3..mask.n_vocab() as u32).step_by(3).for_each(|id| mask.allow(id));
        Ok(Progress::Unfinished)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        assert_eq!(token % 3, self.0 % 3, "only what was allowed is chosen");
        self.0 += token;
        Ok(())
    }
}

/// A request that can be made any number of times.
struct Ask {
    request: Request,
    is_constrained: bool,
}

impl Ask {
    fn request(&self) -> Request {
        let Request { max_tokens, seed, n_logprobs, n_prompt_logprobs, .. } = self.request;
        Request {
            prompt: self.request.prompt.clone(),
            max_tokens,
            end_tokens: self.request.end_tokens.clone(),
            sampling: self.request.sampling.clone(),
            logit_bias: self.request.logit_bias.clone(),
            constraint: self.is_constrained.then(|| Box::new(EveryThird(0)) as Box<dyn Constraint>),
            seed,
            n_logprobs,
            n_prompt_logprobs,
        }
    }
}

/// Eight requests: short and long prompts, equal and different beginnings, every kind of sampling, with and without biases
/// and constraints.
fn requests(text: &[TokenId]) -> Vec<Ask> {
    let plain = Sampling::default();
    let samplings = [
        Sampling { temperature: 0.0, ..plain.clone() },
        Sampling { temperature: 0.7, ..plain.clone() },
        Sampling { temperature: 1.0, top_p: 0.9, presence_penalty: 0.7, frequency_penalty: 0.4, ..plain.clone() },
        Sampling { temperature: 1.5, top_k: 20, min_p: 0.02, repetition_penalty: 1.2, ..plain },
    ];
    let n_prompt = [14, 130, 33, 90, 70, 1, 40, 50];
    (0..8)
        .map(|i| {
            // Odd ones begin like request 1; even ones differ from the first token on.
            let shift = if i % 2 == 0 { i } else { 0 };
            let request = Request {
                prompt: text.iter().cycle().skip(shift).take(n_prompt[i]).copied().collect(),
                max_tokens: 12,
                // A constraint needs one, and this one never allows it.
                end_tokens: [5].into(),
                sampling: samplings[i / 2].clone(),
                logit_bias: if i % 3 == 1 { vec![(9, 2.0), (5, -100.0), (3, -1.5)] } else { vec![(5, -100.0)] },
                constraint: None,
                seed: i as u64,
                n_logprobs: Some(5),
                // Three prompts are scored: one that begins like others do, one that does not, one of a single token.
                n_prompt_logprobs: [1, 2, 5].contains(&i).then_some(3),
            };
            Ask { request, is_constrained: [0, 2, 5, 7].contains(&i) }
        })
        .collect()
}

fn start(executor: Box<dyn Executor>, max_chunk_tokens: usize, prefix_reuse: bool) -> EngineHandle {
    let config = EngineConfig { max_chunk_tokens, prefix_reuse, ..EngineConfig::default() };
    Engine::start(executor, config, Instant::now)
}

/// What the worker says to a request.
#[derive(Default)]
struct Answer {
    /// Of the prompt's tokens, but the first.
    scores: Vec<TokenLogprobs>,
    tokens: Vec<Token>,
    /// How much of the prompt came from the cache.
    n_cached: usize,
}

fn answer(mut job: Job) -> Answer {
    let mut answer = Answer::default();
    loop {
        match job.blocking_recv() {
            Some(Event::PromptLogprobs(scores)) => answer.scores.extend(scores),
            Some(Event::Token(token)) => answer.tokens.push(token),
            Some(Event::Finished(finished)) => return Answer { n_cached: finished.n_cached, ..answer },
            Some(Event::Admitted { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn bits(logprobs: &TokenLogprobs) -> (u32, Vec<(TokenId, u32)>) {
    let top = logprobs.top.iter().map(|l| (l.id, l.logprob.to_bits()));
    (logprobs.logprob.to_bits(), top.collect())
}

fn assert_same(got: &Answer, expected: &Answer, what: &str) {
    assert_eq!(got.scores.len(), expected.scores.len(), "{what}");
    for (i, (got, expected)) in got.scores.iter().zip(&expected.scores).enumerate() {
        assert_eq!(bits(got), bits(expected), "{what}: log-probabilities of prompt token {}", i + 1);
    }
    assert_eq!(got.tokens.len(), expected.tokens.len(), "{what}");
    for (i, (got, expected)) in got.tokens.iter().zip(&expected.tokens).enumerate() {
        assert_eq!(got.id, expected.id, "{what}: token {i}");
        let of = |t: &Token| bits(t.logprobs.as_ref().expect("was asked for"));
        assert_eq!(of(got), of(expected), "{what}: log-probabilities of token {i}");
    }
}

/// Each score is what a worker of its own says of that token when the prompt's beginning is all there is, and a bias leaves no
/// other choice.
fn check_scores(make: Make<'_>, ask: &Ask, expected: &Answer) {
    let prompt = &ask.request.prompt;
    assert_eq!(expected.scores.len(), prompt.len() - 1);
    let engine = start(make(1), usize::MAX, false);
    for (i, score) in expected.scores.iter().enumerate() {
        let forced = Request {
            prompt: prompt[..=i].into(),
            max_tokens: 1,
            end_tokens: [].into(),
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            logit_bias: vec![(prompt[i + 1], 100.0)],
            n_logprobs: Some(3),
            n_prompt_logprobs: None,
            ..ask.request()
        };
        let forced = answer(engine.submit(Request { constraint: None, ..forced }).unwrap()).tokens;
        assert_eq!(forced[0].id, prompt[i + 1]);
        assert_eq!(bits(forced[0].logprobs.as_ref().unwrap()), bits(score), "prompt token {}", i + 1);
    }
}

fn check_all(make: Make<'_>, text: &[TokenId], thread_counts: &[usize]) {
    let requests = requests(text);
    // The reference: each request on a worker of its own that reads its prompt at once and reuses nothing.
    let expected: Vec<_> = requests
        .iter()
        .map(|request| answer(start(make(1), usize::MAX, false).submit(request.request()).unwrap()))
        .collect();
    for i in [1, 2, 5] {
        check_scores(make, &requests[i], &expected[i]);
    }
    let second_turn = second_turn(make, &requests[3], &expected[3].tokens);
    for &n_threads in thread_counts {
        for chunk in CHUNKS {
            for prefix_reuse in [false, true] {
                let what = format!("{n_threads} threads, chunks of {chunk}, reuse {prefix_reuse}");
                // One engine for both, so that the second pass finds what the first left in the cache.
                let engine = start(make(n_threads), chunk, prefix_reuse);
                check_alone(&engine, &requests, &expected, &what);
                check_together(&engine, &requests, &expected, &what);
                let answer = answer(engine.submit(second_turn.0.request()).unwrap());
                assert_same(&answer, &second_turn.1, &format!("second turn, {what}"));
                // 90 prompt tokens and 11 of the 12 generated have slots: 6 full blocks of 16, the last partly generated.
                assert_eq!(answer.n_cached, if prefix_reuse { 96 } else { 0 }, "{what}");
            }
        }
    }
}

fn check_alone(engine: &EngineHandle, requests: &[Ask], expected: &[Answer], what: &str) {
    for (i, request) in requests.iter().enumerate() {
        let answer = answer(engine.submit(request.request()).unwrap());
        assert_same(&answer, &expected[i], &format!("request {i} alone, {what}"));
    }
}

fn check_together(engine: &EngineHandle, requests: &[Ask], expected: &[Answer], what: &str) {
    let jobs: Vec<_> = requests.iter().map(|request| engine.submit(request.request()).unwrap()).collect();
    for (i, job) in jobs.into_iter().enumerate() {
        assert_same(&answer(job), &expected[i], &format!("request {i} of 8, {what}"));
    }
}

/// The second turn of a chat (prompt, generated answer and a few words more) and its answer on a fresh worker.
fn second_turn(make: Make<'_>, first: &Ask, generated: &[Token]) -> (Ask, Answer) {
    let ids = generated.iter().map(|t| t.id);
    let prompt: Vec<_> =
        first.request.prompt.iter().copied().chain(ids).chain(first.request.prompt[..5].iter().copied()).collect();
    let request = Request { prompt: prompt.into(), ..first.request() };
    let second = Ask { request, is_constrained: first.is_constrained };
    let answer = answer(start(make(1), usize::MAX, false).submit(second.request()).unwrap());
    (second, answer)
}

#[test]
fn over_the_executor_without_a_model() {
    let make = |_| Box::new(FakeExecutor::new(FakeConfig::default()).0) as Box<dyn Executor>;
    let text: Vec<_> = (0..40).map(|i| i * 5 % 199).collect();
    check_all(&make, &text, &[1]);
}

/// The spec and weights of a file of the checkout.
fn load(path: impl AsRef<Path>) -> (ModelSpec, Weights) {
    let file = ModelFile::open(&test_support::checkout().join(path)).unwrap();
    let gguf = file.gguf().unwrap();
    let spec = ModelSpec::from_gguf(&gguf).unwrap();
    let weights = weight_loader::load(&file, &gguf, &spec.tensors(), &mut |_| ()).unwrap();
    (spec, weights)
}

#[test]
fn over_the_haiku_model() {
    let (spec, weights) = load("models/haiku/haiku-qwen2-5.8m-f16.gguf");
    let make = |n_threads| {
        let options = CpuOptions { n_threads, ..CpuOptions::default() };
        Box::new(CpuExecutor::new(spec.clone(), weights.clone(), options).unwrap()) as Box<dyn Executor>
    };
    check_all(&make, &HAIKU_PROMPT, &[1, 2]);
}

/// Matrices in Q8_0 as they lie in the file, interleaved for AVX2, for VNNI, and for AMX, where pieces of 64 tokens and whole
/// prompts are tiles of sixteen tokens and what is left over, and pieces of 7 and single tokens are not.
#[test]
fn over_a_quantised_model() {
    let (spec, weights) = load("crates/transformer/golden/data/qwen2_q8_0.gguf");
    let text: Vec<_> = (0..40).map(|i| i * 5 % spec.n_vocab as TokenId).collect();
    if IntegerIsa::available().is_empty() {
        println!("SKIPPED: interleaved weights need a processor with AVX2");
    }
    for integers in std::iter::once(None).chain(IntegerIsa::available().into_iter().map(Some)) {
        let make = |n_threads| {
            let options = CpuOptions { n_threads, integers, ..CpuOptions::default() };
            Box::new(CpuExecutor::new(spec.clone(), weights.clone(), options).unwrap()) as Box<dyn Executor>
        };
        check_all(&make, &text, &[1, 2]);
    }
}
