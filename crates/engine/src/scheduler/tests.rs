//! The scheduler driven by hand, over an executor without a model: scenarios, and random traces against a model of what
//! must hold.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use test_support::fake_executor::{FakeConfig, FakeControl, FakeExecutor, FakeStep};
use transformer::{Executor, ExecutorInfo, RowFault, TokenId};

use super::*;
use crate::constraint::{Constraint, ConstraintError, Progress, TokenMask};
use crate::limits::EngineConfig;
use crate::request::{Sampling, TokenLogprobs};

/// Scheduler, executor and a clock that ticks once a step.
struct Rig {
    scheduler: Scheduler,
    executor: FakeExecutor,
    control: FakeControl,
    /// Chooses in the executor's place, from what the batch says, as an executor that samples does.
    device: Option<Sampler>,
    now: Instant,
    tick: Duration,
    last_id: u64,
    events: Events,
}

impl Rig {
    fn new(fake: FakeConfig, config: &EngineConfig) -> Self {
        let (executor, control) = FakeExecutor::new(fake);
        let scheduler = Scheduler::new(Limits::new(executor.info(), config));
        let tick = Duration::from_millis(10);
        Self { scheduler, executor, control, device: None, now: Instant::now(), tick, last_id: 0, events: Vec::new() }
    }

    /// Over an executor that samples.
    fn sampling_on_the_device(fake: FakeConfig, config: &EngineConfig) -> Self {
        let rig = Self::new(fake, config);
        let info = ExecutorInfo { samples: true, ..rig.executor.info().clone() };
        let device = Some(Sampler::new(info.n_vocab));
        Self { scheduler: Scheduler::new(Limits::new(&info, config)), device, ..rig }
    }

    fn submit(&mut self, request: Request) -> JobId {
        self.last_id += 1;
        let id = JobId(self.last_id);
        self.scheduler.submit(id, request, self.now);
        id
    }

    /// One step, as the engine's thread does it. False if there was nothing to do.
    fn step(&mut self) -> bool {
        if !self.scheduler.plan(self.now, &mut self.events) {
            return false;
        }
        self.scheduler.check_books();
        self.now += self.tick;
        match self.executor.forward(self.scheduler.batch()) {
            Ok(output) => match &mut self.device {
                None => self.scheduler.commit(output, self.now, &mut self.events),
                Some(device) => {
                    let choices = choose_all(device, self.scheduler.batch(), output.into_logits());
                    self.scheduler.commit(StepOutput::Chosen(&choices), self.now, &mut self.events);
                }
            },
            Err(error) => self.scheduler.fail_step(&error, &mut self.events),
        }
        self.scheduler.check_books();
        true
    }

    fn run(&mut self) {
        while self.step() {}
        assert!(self.scheduler.is_idle());
        assert_eq!(self.scheduler.pool().n_used(), 0, "an idle engine holds no block");
        assert_eq!(self.control.n_violations(), 0, "every batch keeps the rules, every slot read was written");
    }

    fn tokens(&self, id: JobId) -> Vec<TokenId> {
        let of_job = self.events.iter().filter(|(of, _)| *of == id);
        of_job.filter_map(|(_, e)| if let Event::Token(t) = e { Some(t.id) } else { None }).collect()
    }

    fn n_cached(&self, id: JobId) -> usize {
        let finished = self.events.iter().find_map(|(of, e)| match e {
            Event::Finished(finished) if *of == id => Some(finished.n_cached),
            _ => None,
        });
        finished.expect("the request has finished")
    }

    fn last_step(&self) -> FakeStep {
        *self.control.steps().last().expect("there was a step")
    }
}

fn choose_all(sampler: &mut Sampler, batch: &Batch, logits: &[f32]) -> Vec<Choice> {
    assert_eq!(batch.samples.len(), batch.sample_rows.len());
    let rows = logits.chunks_exact((logits.len() / batch.samples.len().max(1)).max(1));
    let choose = |(i, row)| {
        let request = batch.sample(i);
        let id = sampler.choose(row, &request, batch.samples[i].position);
        let logprobs = |n| id.ok().map(|id| sampler.logprobs(row, id, n).unwrap());
        Choice { id, logprobs: request.n_logprobs.and_then(logprobs) }
    };
    (0..batch.samples.len()).zip(rows).map(choose).collect()
}

fn greedy(prompt: &[TokenId], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.into(),
        max_tokens,
        end_tokens: [].into(),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        logit_bias: Vec::new(),
        constraint: None,
        seed: 1,
        n_logprobs: None,
        n_prompt_logprobs: None,
    }
}

/// Allows tokens whose sum with all before them is a multiple of `modulus`, and up to `max_tokens` of them.
#[derive(Debug, Clone, Copy)]
struct Rule {
    modulus: u32,
    /// With fewer the answer may not end.
    min_tokens: usize,
    max_tokens: usize,
    /// So many tokens are followed by an error.
    fails_after: Option<usize>,
}

impl Rule {
    const ANY: Rule = Rule { modulus: 1, min_tokens: 0, max_tokens: usize::MAX, fails_after: None };

    #[allow(clippy::unnecessary_wraps, reason = "what a request has")]
    fn constraint(self) -> Option<Box<dyn Constraint>> {
        Some(Box::new(Ruled { rule: self, n_tokens: 0, sum: 0 }))
    }
}

struct Ruled {
    rule: Rule,
    n_tokens: usize,
    sum: u32,
}

impl Constraint for Ruled {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<Progress, ConstraintError> {
        assert!(mask.is_empty());
        if self.rule.fails_after == Some(self.n_tokens) {
            return Err(ConstraintError("on demand".into()));
        }
        let allowed = (0..mask.n_vocab() as u32).filter(|id| (self.sum + id).is_multiple_of(self.rule.modulus));
        allowed.for_each(|id| mask.allow(id));
        Ok(match self.n_tokens {
            n if n < self.rule.min_tokens => Progress::Unfinished,
            n if n < self.rule.max_tokens => Progress::MayEnd,
            _ => Progress::Finished,
        })
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        self.sum += token;
        self.n_tokens += 1;
        assert!(self.sum.is_multiple_of(self.rule.modulus), "token {token} was not allowed");
        Ok(())
    }
}

/// A request that can be made any number of times.
#[derive(Debug)]
struct Ask {
    request: Request,
    rule: Option<Rule>,
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
            constraint: self.rule.and_then(Rule::constraint),
            seed,
            n_logprobs,
            n_prompt_logprobs,
        }
    }
}

impl Clone for Ask {
    fn clone(&self) -> Self {
        Self { request: Request { constraint: None, ..self.request() }, rule: self.rule }
    }
}

const PERIODIC: u32 = 3;

/// `n` tokens that differ by `salt`. With [`PERIODIC`], the same few blocks after ever different beginnings.
fn text(n: usize, salt: u32) -> Vec<TokenId> {
    if salt == PERIODIC {
        return (0..n as u32).map(|i| i % 2).collect();
    }
    (0..n as u32).map(|i| (i * 7 + salt * 31 + i * i % 5) % 250).collect()
}

fn small(n_blocks: usize) -> FakeConfig {
    FakeConfig { block_tokens: 4, n_blocks, n_ctx: 64, ..FakeConfig::default() }
}

#[test]
fn transcript_of_two_requests_that_share_a_beginning() {
    let mut rig = Rig::new(small(16), &EngineConfig { max_seqs: 1, ..Default::default() });
    rig.control.script(&[1, 2, 3, 4, 5], &[10, 11, 99]);
    rig.control.script(&[1, 2, 3, 4, 6], &[20]);
    rig.submit(Request { end_tokens: [99].into(), ..greedy(&[1, 2, 3, 4, 5], 8) });
    rig.submit(greedy(&[1, 2, 3, 4, 6], 1));
    let cancelled = rig.submit(greedy(&[1], 1));
    rig.step();
    rig.scheduler.cancel(cancelled, &mut rig.events);
    rig.run();
    let lines: Vec<_> = rig.events.iter().map(|(JobId(id), event)| format!("{id}: {event:?}")).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn error_texts() {
    let limits = Limits::new(FakeExecutor::new(small(8)).0.info(), &EngineConfig::default());
    let sampling = |change: fn(&mut Sampling)| {
        let mut request = greedy(&[1], 1);
        change(&mut request.sampling);
        request
    };
    let faulty = [
        greedy(&[], 1),
        greedy(&[3, 256], 1),
        greedy(&[1; 65], 0),
        greedy(&[1; 64], 1),
        greedy(&[1; 30], 4),
        Request { n_logprobs: Some(21), ..greedy(&[1], 1) },
        Request { n_prompt_logprobs: Some(22), ..greedy(&[1], 1) },
        sampling(|s| s.temperature = f32::NAN),
        sampling(|s| s.temperature = -1.0),
        sampling(|s| s.repetition_penalty = 0.0),
        sampling(|s| s.top_p = 1.5),
        sampling(|s| s.min_p = -0.5),
        sampling(|s| s.presence_penalty = 2.5),
        sampling(|s| s.frequency_penalty = f32::NAN),
        Request { logit_bias: vec![(256, 1.0)], ..greedy(&[1], 1) },
        Request { logit_bias: vec![(7, f32::NAN)], ..greedy(&[1], 1) },
        Request { logit_bias: vec![(7, 1.0), (8, 1.0), (7, 2.0)], ..greedy(&[1], 1) },
        Request { logit_bias: vec![(7, 1.0); 1025], ..greedy(&[1], 1) },
        Request { constraint: Rule::ANY.constraint(), end_tokens: [256].into(), ..greedy(&[1], 1) },
    ];
    let mut lines: Vec<_> = faulty.iter().map(|r| limits.check(r).unwrap_err().to_string()).collect();
    lines.push(crate::SubmitError::QueueFull { waiting: 3, limit: 3 }.to_string());
    lines.push(crate::SubmitError::NotAccepting("draining").to_string());
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn reserves_exactly_the_slots_that_can_be_written() {
    let limits = |n_blocks| Limits::new(FakeExecutor::new(small(n_blocks)).0.info(), &EngineConfig::default());
    // 5 prompt tokens and 4 generated, the last of which is never fed back: 8 slots, 2 blocks.
    assert_eq!(limits(2).blocks_needed(&greedy(&[1; 5], 4)), 2);
    assert_eq!(limits(2).blocks_needed(&greedy(&[1; 5], 5)), 3);
    assert!(limits(2).check(&greedy(&[1; 5], 4)).is_ok());
    assert!(limits(2).check(&greedy(&[1; 5], 5)).is_err());
    // And they are enough.
    let mut rig = Rig::new(small(2), &EngineConfig::default());
    let id = rig.submit(greedy(&[1; 5], 4));
    rig.run();
    assert_eq!(rig.tokens(id).len(), 4);
}

#[test]
fn a_prompt_one_short_of_the_context_gets_one_token() {
    let mut rig = Rig::new(small(16), &EngineConfig::default());
    let id = rig.submit(greedy(&text(63, 0), 2000));
    rig.run();
    assert_eq!(rig.tokens(id).len(), 1);
    assert!(rig.scheduler.limits.check(&greedy(&text(64, 0), 1)).is_err());
}

#[test]
fn streams_get_their_row_before_prompts_share_the_rest() {
    let config = EngineConfig { max_batch_tokens: 12, prefix_reuse: false, ..Default::default() };
    let mut rig = Rig::new(small(64), &config);
    rig.submit(greedy(&[1], 30));
    rig.submit(greedy(&[2], 30));
    rig.step();
    rig.submit(greedy(&text(60, 0), 1));
    rig.submit(greedy(&text(3, 1), 1));
    rig.step();
    // The short prompt is read at once, the long one gets what is left.
    assert_eq!(rig.last_step(), FakeStep { n_prompt_rows: 10, n_generated_rows: 2, n_samples: 3 });
    rig.submit(greedy(&text(50, 2), 1));
    rig.step();
    assert_eq!(rig.last_step(), FakeStep { n_prompt_rows: 10, n_generated_rows: 2, n_samples: 2 });
    assert_eq!(rig.scheduler.running[3].n_computed, 5, "an even share");
    rig.run();
}

#[test]
fn a_slow_device_gets_shorter_steps_while_it_streams() {
    let fake = FakeConfig { n_ctx: 4096, n_blocks: 1024, max_batch_tokens: 1024, ..FakeConfig::default() };
    let mut rig = Rig::new(fake, &EngineConfig { max_batch_tokens: 1024, ..Default::default() });
    rig.tick = Duration::from_secs(1);
    rig.submit(greedy(&text(1000, 0), 100));
    rig.step();
    assert_eq!(rig.last_step().n_prompt_rows, 1000, "nothing is known of the device yet");
    rig.submit(greedy(&text(1000, 1), 1));
    rig.step();
    assert_eq!(rig.last_step(), FakeStep { n_prompt_rows: 100, n_generated_rows: 1, n_samples: 1 });
    for _ in 0..20 {
        rig.step();
    }
    assert_eq!(rig.last_step().n_prompt_rows, MIN_PROMPT_ROWS, "the least that pays");
}

#[test]
fn nobody_overtakes_a_request_that_waits_for_blocks() {
    let mut rig = Rig::new(small(4), &EngineConfig::default());
    rig.submit(greedy(&[1; 5], 8));
    rig.submit(greedy(&[2; 5], 8));
    rig.submit(greedy(&[3], 1));
    rig.step();
    assert_eq!(rig.scheduler.n_running(), 1, "the second needs 3 of the 1 block left, the third waits behind it");
    rig.run();
    let admitted: Vec<_> =
        rig.events.iter().filter(|(_, e)| matches!(e, Event::Admitted { .. })).map(|(JobId(id), _)| *id).collect();
    assert_eq!(admitted, [1, 2, 3]);
}

#[test]
fn cancelling_the_head_of_the_queue_lets_the_next_in() {
    let mut rig = Rig::new(small(4), &EngineConfig::default());
    rig.submit(greedy(&[1; 5], 8));
    let head = rig.submit(greedy(&[2; 5], 8));
    rig.submit(greedy(&[3], 1));
    rig.step();
    rig.scheduler.cancel(head, &mut rig.events);
    rig.step();
    assert_eq!(rig.tokens(JobId(3)).len(), 1);
    rig.run();
}

#[test]
fn cancels_in_the_middle_of_a_prompt() {
    let mut rig = Rig::new(small(32), &EngineConfig { max_chunk_tokens: 7, ..Default::default() });
    let id = rig.submit(greedy(&text(60, 0), 3));
    rig.step();
    rig.step();
    rig.scheduler.cancel(id, &mut rig.events);
    rig.scheduler.cancel(id, &mut rig.events);
    rig.scheduler.cancel(JobId(77), &mut rig.events);
    rig.run();
    assert!(matches!(rig.events[..], [(_, Event::Admitted { .. }), (_, Event::Failed(_))]));
    assert_eq!(rig.control.n_steps(), 2);
}

#[test]
fn choices_that_cannot_be_end_the_requests_of_their_step() {
    let choice = |id| Choice { id, logprobs: None };
    let fault = RowFault { maximum: f32::INFINITY };
    let cases: [(Vec<Choice>, &str); 3] = [
        (vec![choice(Ok(1)); 2], "chose 2 tokens for 1 rows"),
        (vec![choice(Ok(256))], "chose token 256, the vocabulary has 256"),
        (vec![choice(Err(fault))], "no finite maximum (it is inf)"),
    ];
    for (choices, text) in cases {
        let mut rig = Rig::sampling_on_the_device(small(8), &EngineConfig::default());
        rig.submit(greedy(&[1, 2], 3));
        assert!(rig.scheduler.plan(rig.now, &mut rig.events));
        rig.scheduler.commit(StepOutput::Chosen(&choices), rig.now, &mut rig.events);
        let Some((_, Event::Failed(failure))) = rig.events.last() else { panic!("{:?}", rig.events) };
        assert!(failure.kind == FailureKind::Internal && failure.message.contains(text), "{failure:?}");
        rig.run();
    }
}

/// How many tokens of a chat's second turn are found in the cache, after a first of 10 tokens and an answer of 11.
fn cached_in_the_second_turn(config: FakeConfig) -> usize {
    let mut rig = Rig::new(config, &EngineConfig::default());
    let first = rig.submit(greedy(&text(10, 0), 11));
    rig.run();
    let mut second = [&text(10, 0)[..], &rig.tokens(first)].concat();
    second.extend([5, 6, 7]);
    let second = rig.submit(greedy(&second, 5));
    rig.run();
    rig.n_cached(second)
}

#[test]
fn the_second_turn_of_a_chat_reuses_the_first_answer() {
    // 10 + 11 tokens, of which the last has no slot: 20 slots, 5 full blocks.
    assert_eq!(cached_in_the_second_turn(small(32)), 20);
}

#[test]
fn without_equal_bits_only_blocks_of_prompt_rows_are_reused() {
    assert_eq!(cached_in_the_second_turn(FakeConfig { roles_bit_equal: false, ..small(32) }), 8);
}

#[test]
fn the_last_prompt_token_is_always_computed() {
    let mut rig = Rig::new(small(32), &EngineConfig::default());
    let ids = [0, 1].map(|_| {
        let id = rig.submit(greedy(&text(12, 0), 3));
        rig.run();
        id
    });
    assert_eq!(rig.n_cached(ids[1]), 8);
    assert_eq!(rig.tokens(ids[0]), rig.tokens(ids[1]));
}

#[test]
fn a_burst_with_one_beginning_computes_it_once() {
    let mut rig =
        Rig::new(FakeConfig { n_ctx: 256, ..small(512) }, &EngineConfig { max_chunk_tokens: 10, ..Default::default() });
    let jobs: Vec<_> = (0..8)
        .map(|i| {
            let mut prompt = text(100, 0);
            prompt.push(i);
            rig.submit(greedy(&prompt, 4))
        })
        .collect();
    rig.run();
    let n_prompt_rows: usize = rig.control.steps().iter().map(|s| s.n_prompt_rows).sum();
    assert_eq!(n_prompt_rows, 101 + 7);
    assert!(jobs[1..].iter().all(|&id| rig.n_cached(id) == 100));
}

#[test]
fn what_a_failed_step_wrote_is_not_reused() {
    for error in [ExecutorError::OutOfMemory("full".into()), ExecutorError::InvalidBatch("odd".into())] {
        let mut rig = Rig::new(small(32), &EngineConfig::default());
        rig.control.fail_after(0, error);
        rig.submit(greedy(&text(20, 0), 5));
        rig.step();
        assert!(matches!(rig.events.last(), Some((_, Event::Failed(_)))));
        let id = rig.submit(greedy(&text(20, 0), 5));
        rig.run();
        assert_eq!(rig.n_cached(id), 0);
        assert_eq!(rig.tokens(id).len(), 5);
    }
}

#[test]
fn logits_of_the_wrong_size_fail_the_step() {
    let mut rig = Rig::new(small(32), &EngineConfig::default());
    rig.submit(greedy(&[1], 5));
    assert!(rig.scheduler.plan(rig.now, &mut rig.events));
    rig.scheduler.commit(StepOutput::Logits(&[0.0; 3]), rig.now, &mut rig.events);
    let Some((_, Event::Failed(failure))) = rig.events.last() else { panic!("{:?}", rig.events) };
    assert_eq!(failure.kind, FailureKind::Internal);
    rig.run();
}

fn scored(prompt: &[TokenId], max_tokens: usize) -> Request {
    Request { n_logprobs: Some(2), n_prompt_logprobs: Some(2), ..greedy(prompt, max_tokens) }
}

impl Rig {
    fn scores(&self, id: JobId) -> Vec<TokenLogprobs> {
        let of_job: Vec<_> = self.events.iter().filter(|(of, _)| *of == id).map(|(_, event)| event).collect();
        split_scores(&of_job[1..]).0
    }
}

#[test]
fn a_prompts_scores_are_what_each_of_its_beginnings_says_of_the_next_token() {
    let prompt = text(30, 0);
    for new in [Rig::new, Rig::sampling_on_the_device] {
        let mut rig = new(small(64), &EngineConfig { max_chunk_tokens: 7, ..Default::default() });
        let id = rig.submit(scored(&prompt, 1));
        rig.run();
        let scores = rig.scores(id);
        assert_eq!(scores.len(), 29);
        for (i, score) in scores.iter().enumerate() {
            // The same token, this time chosen.
            let logit_bias = vec![(prompt[i + 1], 100.0)];
            let forced = rig.submit(Request { n_logprobs: Some(2), logit_bias, ..greedy(&prompt[..=i], 1) });
            rig.run();
            let token = rig.events.iter().find_map(|(of, event)| match event {
                Event::Token(token) if *of == forced => Some(token.clone()),
                _ => None,
            });
            assert_eq!(token, Some(Token { id: prompt[i + 1], logprobs: Some(score.clone()) }));
        }
    }
}

#[test]
fn scoring_gets_the_outputs_that_streams_and_other_prompts_leave() {
    let config = EngineConfig { prefix_reuse: false, ..Default::default() };
    let mut rig = Rig::new(FakeConfig { max_seqs: 7, ..small(128) }, &config);
    let shape = |n_prompt_rows, n_generated_rows, n_samples| FakeStep { n_prompt_rows, n_generated_rows, n_samples };
    let id = rig.submit(scored(&text(60, 0), 1));
    rig.step();
    assert_eq!(rig.last_step(), shape(7, 0, 7), "as many rows as there are outputs");
    rig.submit(greedy(&[1], 30));
    rig.step();
    assert_eq!(rig.last_step(), shape(7, 0, 7), "one is the other prompt's");
    rig.submit(greedy(&text(50, 2), 9));
    rig.submit(scored(&text(60, 3), 0));
    rig.step();
    // A stream, 50 rows of a prompt with one output, and 1 + 3 / 2 rows of each prompt that is scored.
    assert_eq!(rig.last_step(), shape(54, 1, 6));
    rig.run();
    assert_eq!(rig.scores(id).len(), 59);
}

#[test]
fn a_prompt_is_scored_although_it_is_in_the_cache_and_others_find_it_there() {
    let mut rig = Rig::new(small(64), &EngineConfig::default());
    let before = rig.submit(greedy(&text(30, 0), 2));
    rig.run();
    let id = rig.submit(scored(&text(30, 0), 2));
    // Does not wait for blocks that are only being scored.
    let beside = rig.submit(greedy(&text(30, 0), 2));
    rig.run();
    assert_eq!((rig.scores(id).len(), rig.n_cached(id), rig.n_cached(beside)), (29, 0, 28));
    assert_eq!((rig.tokens(id), rig.tokens(beside)), (rig.tokens(before), rig.tokens(before)));
    let mut fresh = Rig::new(small(64), &EngineConfig::default());
    fresh.submit(scored(&text(30, 0), 0));
    fresh.run();
    let after = fresh.submit(greedy(&text(30, 0), 2));
    fresh.run();
    assert_eq!(fresh.n_cached(after), 28);
    assert_eq!((fresh.scheduler.totals().prompt_tokens, fresh.scheduler.totals().generation_tokens), (60, 2));
}

#[test]
fn a_prompt_that_fills_the_context_is_read_and_scored_where_nothing_follows() {
    let mut rig = Rig::new(small(16), &EngineConfig::default());
    let jobs = [scored(&text(64, 0), 0), scored(&[7], 0), greedy(&text(64, 0), 0)].map(|request| rig.submit(request));
    rig.run();
    assert_eq!(jobs.map(|id| rig.scores(id).len()), [63, 0, 0]);
    assert!(jobs.iter().all(|&id| rig.tokens(id).is_empty()));
    let ends =
        rig.events.iter().filter(|(_, event)| matches!(event, Event::Finished(f) if f.reason == EndReason::MaxTokens));
    assert_eq!(ends.count(), 3);
    assert_eq!(rig.scheduler.totals().prompt_tokens, 64 + 1 + 64);
}

#[test]
fn an_answer_that_ends_at_once_tells_how_likely_that_was() {
    let mut rig = Rig::new(small(16), &EngineConfig::default());
    rig.control.script(&[1, 2], &[9]);
    rig.submit(Request { end_tokens: [9].into(), ..scored(&[1, 2], 5) });
    rig.run();
    let Some((_, Event::Finished(finished))) = rig.events.last() else { panic!("{:?}", rig.events) };
    assert_eq!((finished.reason, finished.n_generated), (EndReason::EndToken(9), 0));
    let logprobs = finished.end_logprobs.as_ref().unwrap();
    assert_eq!((logprobs.top[0].id, logprobs.top[0].logprob), (9, logprobs.logprob));
}

#[test]
fn scoring_that_is_cancelled_or_fails_gives_its_blocks_back() {
    for fails in [false, true] {
        let mut rig = Rig::new(small(32), &EngineConfig { max_chunk_tokens: 7, ..Default::default() });
        let id = rig.submit(scored(&text(60, 0), 3));
        rig.step();
        rig.step();
        assert!(rig.scheduler.pool().n_used() > 0);
        if fails {
            rig.control.nan_after(0);
            rig.step();
        } else {
            rig.scheduler.cancel(id, &mut rig.events);
        }
        assert_eq!((rig.scheduler.pool().n_used(), rig.scheduler.n_running()), (0, 0));
        assert!(matches!(rig.events.last(), Some((_, Event::Failed(_)))));
        assert_eq!(rig.scheduler.totals().prompt_tokens, 0, "it was not read");
    }
}

#[test]
fn an_executor_that_does_not_score_what_it_is_given_fails_the_step() {
    let logprobs = || Some(TokenLogprobs { logprob: -1.0, top: Vec::new() });
    for (id, logprobs) in [(3, logprobs()), (2, None)] {
        let mut rig = Rig::sampling_on_the_device(small(8), &EngineConfig::default());
        rig.submit(scored(&[1, 2], 0));
        assert!(rig.scheduler.plan(rig.now, &mut rig.events));
        let choices = [Choice { id: Ok(id), logprobs }];
        rig.scheduler.commit(StepOutput::Chosen(&choices), rig.now, &mut rig.events);
        let Some((_, Event::Failed(failure))) = rig.events.last() else { panic!("{:?}", rig.events) };
        assert!(failure.message.contains("did not score token 2"), "{failure:?}");
    }
}

/// Fails in its own ways.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bad {
    Panics,
    AllowsNothing,
    /// Of a vocabulary of 256.
    AllowsOthersTokens,
    RefusesTokens,
}

impl Constraint for Bad {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<Progress, ConstraintError> {
        match self {
            Bad::Panics => panic!("boom"),
            Bad::AllowsNothing => {}
            Bad::AllowsOthersTokens => mask.set_words(&[&[0; 8][..], &[u32::MAX; 8]].concat()),
            Bad::RefusesTokens => mask.allow(3),
        }
        Ok(Progress::Unfinished)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        Err(ConstraintError(format!("token {token} is refused")))
    }
}

#[test]
fn a_constraint_that_fails_ends_its_request_and_disturbs_no_other() {
    let ends = || [7].into();
    let late = Rule { fails_after: Some(4), ..Rule::ANY };
    let early = Rule { fails_after: Some(0), ..Rule::ANY };
    let bad = |kind: Bad| Some(Box::new(kind) as Box<dyn Constraint>);
    let cases = [
        (early.constraint(), 0, "failed: on demand"),
        (late.constraint(), 4, "failed: on demand"),
        (bad(Bad::Panics), 0, "it panicked: boom"),
        (bad(Bad::AllowsNothing), 0, "allows no token"),
        (bad(Bad::AllowsOthersTokens), 0, "allows no token"),
        (bad(Bad::RefusesTokens), 1, "token 3 is refused"),
    ];
    for (constraint, n_tokens, text_of) in cases {
        let mut rig = Rig::new(small(32), &EngineConfig { max_seqs: 3, ..Default::default() });
        let before = rig.submit(greedy(&text(6, 1), 9));
        // No token of its answer is 7.
        let logit_bias = vec![(7, -100.0)];
        let failing = rig.submit(Request { constraint, logit_bias, end_tokens: ends(), ..greedy(&text(9, 0), 9) });
        let after = rig.submit(greedy(&text(7, 2), 9));
        rig.run();
        assert_eq!(rig.tokens(failing).len(), n_tokens, "{text_of}");
        let last = rig.events.iter().rfind(|(id, _)| *id == failing);
        let Some((_, Event::Failed(failure))) = last else { panic!("{last:?}") };
        assert!(failure.kind == FailureKind::Internal && failure.message.contains(text_of), "{failure:?}");
        for (id, salt, n) in [(before, 1, 6), (after, 2, 7)] {
            let mut alone = Rig::new(small(32), &EngineConfig::default());
            let same = alone.submit(greedy(&text(n, salt), 9));
            alone.run();
            assert_eq!(rig.tokens(id), alone.tokens(same), "a neighbour of one with {text_of}");
        }
    }
}

#[test]
fn a_finished_constraint_leaves_only_an_end_token() {
    for n in 0..4 {
        let mut rig = Rig::new(small(32), &EngineConfig::default());
        let rule = Rule { min_tokens: n, max_tokens: n, ..Rule::ANY };
        // The script wants other tokens, and never an end token; so does the bias.
        rig.control.script(&[1, 2], &[10; 9]);
        let logit_bias = vec![(7, -100.0), (8, -99.0)];
        let constraint = rule.constraint();
        rig.submit(Request { constraint, logit_bias, end_tokens: [7, 8].into(), ..greedy(&[1, 2], 9) });
        rig.run();
        let Some((_, Event::Finished(finished))) = rig.events.last() else { panic!("{:?}", rig.events) };
        assert_eq!((finished.reason, finished.n_generated), (EndReason::EndToken(8), n));
    }
}

#[test]
fn an_unfinished_constraint_does_not_end_although_the_model_wants_to() {
    let mut rig = Rig::new(small(32), &EngineConfig::default());
    rig.control.script(&[1, 2], &[7; 9]);
    let rule = Rule { min_tokens: 3, max_tokens: 5, ..Rule::ANY };
    let id = rig.submit(Request { constraint: rule.constraint(), end_tokens: [7].into(), ..greedy(&[1, 2], 9) });
    rig.run();
    // All other logits are equal.
    assert_eq!(rig.tokens(id), [0; 3]);
    assert!(matches!(rig.events.last(), Some((_, Event::Finished(f))) if f.reason == EndReason::EndToken(7)));
}

#[test]
fn a_batch_says_what_each_row_is_chosen_by() {
    let mut rig = Rig::new(small(32), &EngineConfig::default());
    rig.control.script(&[1, 2], &[9, 4, 9, 9, 3, 4]);
    let sampling = Sampling { temperature: 0.0, frequency_penalty: 0.5, ..Sampling::default() };
    rig.submit(Request { sampling, logit_bias: vec![(5, 1.0), (2, -3.0)], ..greedy(&[1, 2], 9) });
    let rule = Rule { modulus: 64, ..Rule::ANY };
    rig.submit(Request { constraint: rule.constraint(), end_tokens: [7].into(), ..greedy(&[3], 9) });
    for _ in 0..5 {
        rig.step();
    }
    assert!(rig.scheduler.plan(rig.now, &mut rig.events));
    let [penalized, constrained] = [0, 1].map(|i| rig.scheduler.batch().sample(i));
    let counts: Vec<_> = penalized.history.iter().map(|counted| (counted.id, counted.count)).collect();
    assert_eq!(counts, [(3, 1), (4, 1), (9, 3)]);
    assert_eq!((penalized.logit_bias, penalized.mask.len()), (&[(2, -3.0), (5, 1.0)][..], 0));
    assert_eq!((constrained.history, constrained.logit_bias), (&[][..], &[][..]));
    let allowed: Vec<_> = (0..256).filter(|id| constrained.mask[id / 32] >> (id % 32) & 1 == 1).collect();
    assert_eq!(allowed, [0, 7, 64, 128, 192]);
}

/// One move of a random trace.
#[derive(Debug, Clone)]
enum Move {
    Submit(Ask),
    /// A second turn: the request, begun with the prompt and the answer of the job submitted so many before the last.
    FollowUp(Ask, u64),
    /// Of the job submitted so many before the last.
    Cancel(u64),
    Steps(usize),
    Fail(ExecutorError),
}

fn any_sampling() -> impl Strategy<Value = Sampling> {
    prop_oneof![
        Just(Sampling { temperature: 0.0, ..Sampling::default() }),
        Just(Sampling { temperature: 1.5, top_p: 0.9, repetition_penalty: 1.3, ..Sampling::default() }),
        Just(Sampling { presence_penalty: 1.5, frequency_penalty: -0.5, ..Sampling::default() }),
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    (1u32..60, 0usize..4, 0usize..8, prop::option::weighted(0.2, 0usize..4)).prop_map(
        |(modulus, min_tokens, more, fails_after)| Rule {
            modulus,
            min_tokens,
            max_tokens: min_tokens + more,
            fails_after,
        },
    )
}

fn any_bias() -> impl Strategy<Value = Vec<(TokenId, f32)>> {
    let some = prop::collection::btree_map(0u32..256, prop_oneof![Just(-100.0f32), -3.0f32..3.0], 1..40);
    prop_oneof![2 => Just(Vec::new()), 1 => some.prop_map(|bias| bias.into_iter().rev().collect())]
}

fn any_ask() -> impl Strategy<Value = Ask> {
    let rule = prop::option::weighted(0.3, any_rule());
    let n_logprobs = prop::option::of(0usize..3);
    // Few different texts, so that beginnings are shared; some end tokens, so that answers end early.
    let n_logprobs = (n_logprobs, prop::option::weighted(0.3, 0usize..3));
    (1usize..40, 0..=PERIODIC, 0usize..12, any_sampling(), any_bias(), rule, 0u64..3, n_logprobs, 0u32..40).prop_map(
        |(n_prompt, salt, max_tokens, sampling, logit_bias, rule, seed, (n_logprobs, n_prompt_logprobs), n_end)| {
            let request = Request {
                prompt: text(n_prompt, salt).into(),
                max_tokens,
                end_tokens: (0..n_end.max(u32::from(rule.is_some()))).collect(),
                sampling,
                logit_bias,
                constraint: None,
                seed,
                n_logprobs,
                n_prompt_logprobs,
            };
            Ask { request, rule }
        },
    )
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        4 => any_ask().prop_map(Move::Submit),
        2 => (any_ask(), 0u64..6).prop_map(|(ask, back)| Move::FollowUp(ask, back)),
        2 => (0u64..6).prop_map(Move::Cancel),
        6 => (1usize..6).prop_map(Move::Steps),
        1 => Just(Move::Fail(ExecutorError::OutOfMemory("on demand".into()))),
        1 => Just(Move::Fail(ExecutorError::InvalidBatch("on demand".into()))),
    ]
}

fn any_setting() -> impl Strategy<Value = (FakeConfig, EngineConfig)> {
    let max_seqs = (1usize..5, 1usize..12);
    (1usize..6, 16usize..80, any::<bool>(), max_seqs, 1usize..40, 1usize..20, any::<bool>()).prop_map(
        |(
            block_tokens,
            n_blocks,
            roles_bit_equal,
            (max_seqs, outputs),
            max_batch_tokens,
            max_chunk_tokens,
            prefix_reuse,
        )| {
            let default = FakeConfig::default();
            let fake = FakeConfig { block_tokens, n_blocks, n_ctx: 64, roles_bit_equal, max_seqs: outputs, ..default };
            (fake, EngineConfig { max_seqs, queue_limit: 0, max_batch_tokens, max_chunk_tokens, prefix_reuse })
        },
    )
}

/// The request's events on a worker that has never seen another: the prompt's scores in one, `Token`s and how it ends.
fn alone(fake: &FakeConfig, ask: &Ask) -> Vec<Event> {
    let config = EngineConfig { max_seqs: 1, prefix_reuse: false, ..Default::default() };
    let mut rig = Rig::new(FakeConfig { n_blocks: 64 + fake.n_blocks, ..fake.clone() }, &config);
    rig.submit(ask.request());
    rig.run();
    let events: Vec<_> = rig.events.iter().map(|(_, e)| e).filter(|e| !matches!(e, Event::Admitted { .. })).collect();
    let (scores, rest) = split_scores(&events);
    std::iter::once(Event::PromptLogprobs(scores)).chain(rest.iter().map(|&event| event.clone())).collect()
}

/// The scores that come first, put together, and what follows, in which there are none.
fn split_scores<'a>(events: &'a [&'a Event]) -> (Vec<TokenLogprobs>, &'a [&'a Event]) {
    let is_scores = |event: &&Event| matches!(event, Event::PromptLogprobs(_));
    let n = events.iter().take_while(|event| is_scores(event)).count();
    let (before, rest) = events.split_at(n);
    assert!(!rest.iter().any(is_scores), "scores come first: {events:?}");
    let scores = before.iter().flat_map(|event| match event {
        Event::PromptLogprobs(scores) if !scores.is_empty() => scores.clone(),
        other => panic!("{other:?}"),
    });
    (scores.collect(), rest)
}

/// Every job's events are a proper story that agrees with the job run alone.
fn check_story(fake: &FakeConfig, ask: &Ask, events: &[&Event]) {
    let (last, before) = events.split_last().expect("every request ends");
    assert!(last.is_last() && before.iter().all(|e| !e.is_last()), "exactly one end: {events:?}");
    let tokens = match before.split_first() {
        None => {
            assert!(matches!(last, Event::Failed(_)), "only what waits may fail without being admitted");
            return;
        }
        Some((first, tokens)) => {
            assert!(matches!(first, Event::Admitted { .. }), "{events:?}");
            tokens
        }
    };
    let expected = alone(fake, ask);
    let Some((Event::PromptLogprobs(all_scores), expected)) = expected.split_first() else { panic!("{expected:?}") };
    let (scores, tokens) = split_scores(tokens);
    assert!(all_scores.starts_with(&scores), "{ask:?}: {scores:?} {all_scores:?}");
    if !tokens.is_empty() || matches!(last, Event::Finished(_)) {
        let n_scored = ask.request.n_prompt_logprobs.map_or(0, |_| ask.request.prompt.len() - 1);
        assert_eq!((scores.len(), all_scores.len()), (n_scored, n_scored));
    }
    assert!(tokens.iter().zip(expected).all(|(got, expected)| *got == expected), "{events:?} {expected:?}");
    check_tokens(ask, tokens);
    if let Event::Finished(finished) = last {
        let rule = ask.rule.unwrap_or(Rule::ANY);
        assert!(tokens.len() <= rule.max_tokens && rule.fails_after.is_none_or(|n| tokens.len() <= n));
        assert!(finished.reason == EndReason::MaxTokens || tokens.len() >= rule.min_tokens);
        let Some(Event::Finished(expected_end)) = expected.last() else { panic!("{expected:?}") };
        assert_eq!(tokens.len() + 1, expected.len());
        assert_eq!((finished.reason, finished.n_generated), (expected_end.reason, tokens.len()));
        assert_eq!(finished.end_logprobs, expected_end.end_logprobs);
        assert!(ask.request.n_prompt_logprobs.is_none() || finished.n_cached == 0);
    }
}

/// No token is one that the request forbids.
fn check_tokens(ask: &Ask, tokens: &[&Event]) {
    let mut sum = 0;
    for event in tokens {
        let Event::Token(token) = event else { panic!("{tokens:?}") };
        sum += token.id;
        assert!(ask.rule.is_none_or(|rule| sum.is_multiple_of(rule.modulus)), "{ask:?}: {tokens:?}");
        // Logits are from -8 to 8; but what a constraint leaves may all be biased.
        let is_banned = ask.request.logit_bias.contains(&(token.id, -100.0));
        assert!(!is_banned || ask.rule.is_some(), "{ask:?}: {tokens:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_traces_keep_the_books_and_every_promise(
        (fake, config) in any_setting(),
        samples_on_device in any::<bool>(),
        moves in prop::collection::vec(any_move(), 1..40),
    ) {
        let new = if samples_on_device { Rig::sampling_on_the_device } else { Rig::new };
        let mut rig = new(fake.clone(), &config);
        let mut asks = BTreeMap::new();
        for next in moves {
            match next {
                Move::FollowUp(mut ask, back) => {
                    let id = JobId(rig.last_id.saturating_sub(back));
                    let before = asks.get(&id).map_or(&[][..], |before: &Ask| &before.request.prompt);
                    ask.request.prompt = [before, &rig.tokens(id), &ask.request.prompt[..1]].concat().into();
                    if rig.scheduler.limits.check(&ask.request()).is_ok() {
                        asks.insert(rig.submit(ask.request()), ask);
                    }
                }
                Move::Submit(ask) if rig.scheduler.limits.check(&ask.request()).is_ok() => {
                    asks.insert(rig.submit(ask.request()), ask);
                }
                Move::Submit(_) => {}
                Move::Cancel(back) => {
                    let id = JobId(rig.last_id.saturating_sub(back));
                    rig.scheduler.cancel(id, &mut rig.events);
                }
                Move::Steps(n) => (0..n).for_each(|_| {
                    rig.step();
                }),
                Move::Fail(error) => {
                    rig.control.fail_after(0, error);
                    rig.step();
                }
            }
            rig.scheduler.check_books();
        }
        // A fault that no step has met yet hits the first of these.
        rig.run();
        let mut stories: HashMap<JobId, Vec<&Event>> = HashMap::new();
        let mut last_admitted = JobId(0);
        for (id, event) in &rig.events {
            stories.entry(*id).or_default().push(event);
            if matches!(event, Event::Admitted { .. }) {
                prop_assert!(*id > last_admitted, "first come, first served");
                last_admitted = *id;
            }
        }
        for (id, ask) in &asks {
            check_story(&fake, ask, &stories.remove(id).unwrap_or_default());
        }
        prop_assert!(stories.is_empty());
    }
}
