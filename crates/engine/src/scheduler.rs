//! Which rows the next step has, and what comes of what it gives.
//!
//! A pure state machine: no threads, channels or clocks. Time comes in as an argument and events go out through a list, so
//! property tests drive it directly. A step is [`Scheduler::plan`], the executor's `forward`, and [`Scheduler::commit`] or
//! [`Scheduler::fail_step`].
//!
//! - *Admission* is first come, first served: the request at the head of the queue is admitted when there is a place for it
//!   and all KV blocks it may come to need can be promised; until then nobody overtakes it. Nothing is preempted.
//! - *A step* has a row for every sequence that is generating, then prompt rows: what is left of the budget, shared evenly
//!   among the prompts being read, so that a long one holds up neither streams nor shorter prompts.
//! - *Prompts that are scored* want an output of every row, of which a step has only so many: what streams and other prompts
//!   leave of them is shared evenly, so that scoring takes longer and holds nobody up.
//! - *Equal beginnings* are computed once: a prompt that stands where an earlier one is just computing the same block waits
//!   for it and takes it over.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use transformer::{Batch, Choice, ExecutorError, RowFault, SampleSpec, StepOutput};

use crate::blocks::BlockPool;
use crate::limits::Limits;
use crate::request::{EndReason, Event, Failure, FailureKind, JobId, Request, Token};
use crate::sampler::Sampler;
use crate::sequence::{Sequence, Waiting};

/// How long a step with prompt rows should take while answers are being streamed: a pause in a stream that a reader hardly
/// notices.
const STEP_TARGET_BESIDE_STREAMS: Duration = Duration::from_millis(100);
/// The same while nothing is streamed: how long a cancellation or a new request may wait. Long enough that reading the
/// weights, some 50 ms a step for 1 GB on two cores, is a small part of it.
const STEP_TARGET: Duration = Duration::from_secs(2);
/// A step may always have so many prompt rows, however slow the device: fewer would not pay for reading the weights.
const MIN_PROMPT_ROWS: usize = 32;

/// Sequences' part of a step.
#[derive(Debug, Clone, Copy)]
struct Planned {
    seq_idx: usize,
    n_rows: usize,
    /// Outputs that are log-probabilities of prompt tokens.
    n_scored: usize,
    /// Whether one more, the last, is the next token.
    samples: bool,
}

/// Sums since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) generation_tokens: u64,
    pub(crate) steps: u64,
}

pub(crate) type Events = Vec<(JobId, Event)>;

#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    waiting: VecDeque<Waiting>,
    /// In order of admission.
    running: Vec<Sequence>,
    /// The head of the queue did not fit, and nothing has been given back since.
    head_is_blocked: bool,
    batch: Batch,
    planned: Vec<Planned>,
    /// `(rows wanted, index in running)` of the prompts being read; scratch of `plan`.
    prompts: Vec<(usize, usize)>,
    step_started: Option<Instant>,
    /// Measured time of one prompt row.
    prompt_row: Duration,
    sampler: Sampler,
    totals: Totals,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            pool: BlockPool::new(limits.n_blocks, limits.block_tokens),
            waiting: VecDeque::new(),
            running: Vec::with_capacity(limits.max_seqs),
            head_is_blocked: false,
            batch: Batch::default(),
            planned: Vec::with_capacity(limits.max_seqs),
            prompts: Vec::with_capacity(limits.max_seqs),
            step_started: None,
            prompt_row: Duration::ZERO,
            sampler: Sampler::new(limits.n_vocab),
            totals: Totals::default(),
            limits,
        }
    }

    /// Puts a request that [`Limits::check`] accepts at the end of the queue.
    pub(crate) fn submit(&mut self, id: JobId, request: Request, now: Instant) {
        debug_assert_eq!(self.limits.check(&request), Ok(()));
        self.waiting.push_back(Waiting { id, request, submitted: now });
    }

    /// Ends a request, wherever it is. Unknown ids, and those that have ended, are ignored.
    pub(crate) fn cancel(&mut self, id: JobId, events: &mut Events) {
        if let Some(at) = self.running.iter().position(|s| s.id == id) {
            self.end(at, failed(FailureKind::Cancelled, "the request was cancelled"), events);
        } else if let Some(at) = self.waiting.iter().position(|w| w.id == id) {
            self.waiting.remove(at);
            self.head_is_blocked &= at > 0;
            events.push((id, failed(FailureKind::Cancelled, "the request was cancelled while it waited")));
        }
    }

    /// Ends all requests.
    pub(crate) fn fail_all(&mut self, kind: FailureKind, message: &str, events: &mut Events) {
        while !self.running.is_empty() {
            self.end(0, failed(kind, message), events);
        }
        events.extend(self.waiting.drain(..).map(|w| (w.id, failed(kind, message))));
        self.head_is_blocked = false;
    }

    /// Admits what can be admitted and puts the next step together in [`Scheduler::batch`]. False if there is nothing to do.
    pub(crate) fn plan(&mut self, now: Instant, events: &mut Events) -> bool {
        self.admit(now, events);
        self.batch.clear();
        self.planned.clear();
        for seq_idx in 0..self.running.len() {
            if self.running[seq_idx].n_pending() == 1 && self.running[seq_idx].n_generated() > 0 {
                self.push_rows(seq_idx, 1);
            }
        }
        self.plan_prompts();
        debug_assert!(!self.batch.is_empty() || (self.running.is_empty() && self.waiting.is_empty()));
        self.step_started = Some(now);
        !self.batch.is_empty()
    }

    /// The step that was planned.
    pub(crate) fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Takes what a step gave: every planned sequence moves on, those that sampled get a token.
    pub(crate) fn commit(&mut self, output: StepOutput<'_>, now: Instant, events: &mut Events) {
        if let Err(message) = self.check_output(output) {
            return self.fail_step(&ExecutorError::InvalidBatch(message), events);
        }
        self.measure(now);
        self.totals.steps += 1;
        let mut row = 0;
        for i in 0..self.planned.len() {
            let Planned { seq_idx, n_rows, n_scored, samples } = self.planned[i];
            let sequence = &mut self.running[seq_idx];
            sequence.n_computed += n_rows;
            sequence.register_full_blocks(&mut self.pool, &self.limits);
            let n_outputs = n_scored + usize::from(samples);
            self.take_outputs(seq_idx, output, row..row + n_outputs, n_scored, now, events);
            row += n_outputs;
        }
        self.planned.clear();
        let n_before = self.running.len();
        self.running.retain(|sequence| !sequence.ended);
        self.head_is_blocked &= self.running.len() == n_before;
    }

    /// Ends the requests that took part in a step that failed. What it wrote is nowhere registered.
    pub(crate) fn fail_step(&mut self, error: &ExecutorError, events: &mut Events) {
        let kind = match error {
            ExecutorError::InvalidBatch(_) => FailureKind::Internal,
            ExecutorError::OutOfMemory(_) => FailureKind::OutOfMemory,
            ExecutorError::DeviceLost(_) => FailureKind::DeviceLost,
        };
        let message = error.to_string();
        self.planned.sort_unstable_by_key(|p| std::cmp::Reverse(p.seq_idx));
        for i in 0..self.planned.len() {
            self.end(self.planned[i].seq_idx, failed(kind, &message), events);
        }
        self.planned.clear();
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn n_running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// Panics unless pool and sequences agree on every block and promise.
    #[cfg(test)]
    pub(crate) fn check_books(&self) {
        let held = self.running.iter().flat_map(|s| s.blocks.iter().copied());
        self.pool.check_books(held, self.running.iter().map(|s| s.n_promised).sum());
        assert!(self.running.iter().all(|s| !s.ended) && self.running.len() <= self.limits.max_seqs);
    }

    fn admit(&mut self, now: Instant, events: &mut Events) {
        while !self.head_is_blocked && self.running.len() < self.limits.max_seqs {
            let Some(head) = self.waiting.pop_front() else { return };
            match Sequence::admit(head, &mut self.pool, &self.limits, now) {
                Ok(mut sequence) => {
                    events.push((sequence.id, Event::Admitted { n_cached: sequence.n_cached }));
                    match sequence.constrain(&self.limits) {
                        Ok(()) => self.running.push(sequence),
                        Err(error) => {
                            sequence.give_back(&mut self.pool);
                            events.push((sequence.id, failed(FailureKind::Internal, &error.to_string())));
                        }
                    }
                }
                Err(head) => {
                    self.waiting.push_front(*head);
                    self.head_is_blocked = true;
                }
            }
        }
    }

    /// Takes what a step gave for some of its sample rows, all of one sequence: scores first, then the next token. Where none is
    /// wanted, a prompt that has been read is the end.
    fn take_outputs(
        &mut self,
        seq_idx: usize,
        output: StepOutput<'_>,
        rows: Range<usize>,
        n_scored: usize,
        now: Instant,
        events: &mut Events,
    ) {
        let mut choices = rows.map(|row| match output {
            StepOutput::Chosen(choices) => choices[row].clone(),
            StepOutput::Logits(logits) => {
                let n_vocab = self.limits.n_vocab;
                choose(&mut self.sampler, &self.batch, row, &logits[row * n_vocab..][..n_vocab])
            }
        });
        let scored = choices.by_ref().take(n_scored);
        // Whoever chose has been held to giving what was asked for.
        let scored: Result<Vec<_>, RowFault> = scored.filter_map(|c| c.id.map(|_| c.logprobs).transpose()).collect();
        let next = choices.next();
        match scored {
            Err(fault) => return self.end_in_step(seq_idx, failed(FailureKind::Internal, &fault.to_string()), events),
            Ok(scored) if scored.is_empty() => {}
            Ok(scored) => events.push((self.running[seq_idx].id, Event::PromptLogprobs(scored))),
        }
        let sequence = &self.running[seq_idx];
        if let Some(choice) = next {
            self.take(seq_idx, choice, now, events);
        } else if sequence.max_generated == 0 && sequence.n_pending() == 0 {
            let finished = sequence.finished(EndReason::MaxTokens, None, now);
            self.count_prompt(seq_idx);
            self.end_in_step(seq_idx, Event::Finished(finished), events);
        }
    }

    /// Shares what is left of the step among the prompts being read: the shortest remainders first, each getting what it
    /// needs up to an even share of the rest.
    fn plan_prompts(&mut self) {
        self.prompts.clear();
        for seq_idx in 0..self.running.len() {
            if self.running[seq_idx].n_generated() == 0 {
                self.running[seq_idx].reuse(&mut self.pool, &self.limits);
                if !self.is_being_computed(seq_idx) {
                    let wanted = self.running[seq_idx].n_pending().min(self.limits.max_chunk_tokens);
                    self.prompts.push((wanted, seq_idx));
                }
            }
        }
        self.cap_scored();
        self.prompts.sort_unstable();
        let mut budget = self.prompt_budget();
        for i in 0..self.prompts.len() {
            let (wanted, seq_idx) = self.prompts[i];
            let n_rows = wanted.min(budget / (self.prompts.len() - i));
            budget -= n_rows;
            if n_rows > 0 {
                self.push_rows(seq_idx, n_rows);
            }
        }
    }

    /// Gives each prompt that is scored no more rows than its share of the outputs that are left, when every other prompt has
    /// the one that it may need.
    fn cap_scored(&mut self) {
        let Self { running, prompts, limits, batch, .. } = self;
        let n_scored = prompts.iter().filter(|(_, seq_idx)| running[*seq_idx].is_scored()).count();
        // Each sequence, running or read, has its output: there are no more of them than outputs.
        let spare = limits.max_outputs - batch.sample_rows.len() - prompts.len();
        for (wanted, seq_idx) in prompts {
            if running[*seq_idx].is_scored() {
                *wanted = (*wanted).min(1 + spare / n_scored);
            }
        }
    }

    /// Whether a sequence admitted earlier is computing the block that this one needs next.
    fn is_being_computed(&self, seq_idx: usize) -> bool {
        let sequence = &self.running[seq_idx];
        sequence.next_shareable(&self.limits).is_some_and(|next| {
            self.running[..seq_idx].iter().any(|earlier| earlier.is_computing(sequence.node(), next, &self.limits))
        })
    }

    /// Prompt rows this step may have: what the step has room for, and what its target time allows. Every prompt gets a
    /// row, because a step has room for a row of each sequence.
    fn prompt_budget(&self) -> usize {
        let n_streams = self.batch.n_tokens();
        let target = if n_streams > 0 { STEP_TARGET_BESIDE_STREAMS } else { STEP_TARGET };
        let affordable = match self.prompt_row.as_nanos() {
            0 => usize::MAX,
            row => (target.as_nanos() / row) as usize,
        };
        (self.limits.max_batch_tokens - n_streams).min(affordable.max(MIN_PROMPT_ROWS).max(self.prompts.len()))
    }

    /// Whether a step gave as much as was asked for, and possible tokens.
    fn check_output(&self, output: StepOutput<'_>) -> Result<(), String> {
        let n_vocab = self.limits.n_vocab;
        let n_samples = self.batch.sample_rows.len();
        match output {
            StepOutput::Logits(logits) if logits.len() != n_samples * n_vocab => {
                Err(format!("the executor returned {} logits for {n_samples} rows of {n_vocab}", logits.len()))
            }
            StepOutput::Chosen(choices) if choices.len() != n_samples => {
                Err(format!("the executor chose {} tokens for {n_samples} rows", choices.len()))
            }
            StepOutput::Chosen(choices) => {
                if let Some(id) = choices.iter().find_map(|c| c.id.ok().filter(|&id| id as usize >= n_vocab)) {
                    return Err(format!("the executor chose token {id}, the vocabulary has {n_vocab}"));
                }
                let scored = |(choice, sample): (&Choice, &SampleSpec)| {
                    let (id, given) = (choice.id.ok()?, sample.given?);
                    (id != given || choice.logprobs.is_none()).then_some((id, given))
                };
                match choices.iter().zip(&self.batch.samples).find_map(scored) {
                    Some((id, given)) => Err(format!("the executor did not score token {given}, it chose {id}")),
                    None => Ok(()),
                }
            }
            StepOutput::Logits(_) => Ok(()),
        }
    }

    /// Learns from the step that has just ended how long a prompt row takes.
    fn measure(&mut self, now: Instant) {
        let n_streams = self.planned.iter().filter(|p| self.running[p.seq_idx].n_generated() > 0).count();
        let n_prompt_rows = self.batch.n_tokens() - n_streams;
        let Some(started) = self.step_started.take() else { return };
        if n_prompt_rows >= MIN_PROMPT_ROWS {
            let row = now.saturating_duration_since(started) / n_prompt_rows as u32;
            self.prompt_row = if self.prompt_row.is_zero() { row } else { (self.prompt_row * 3 + row) / 4 };
        }
    }

    fn push_rows(&mut self, seq_idx: usize, n_rows: usize) {
        let sequence = &mut self.running[seq_idx];
        let start = sequence.n_computed;
        let end = start + n_rows;
        let samples = end == sequence.tokens.len() && sequence.max_generated > 0;
        sequence.take_blocks_to(end, &mut self.pool, &self.limits);
        let first_row = self.batch.n_tokens();
        self.batch.push(sequence.role(), &sequence.tokens[start..end], start as u32, &sequence.blocks, false);
        let mut n_scored = 0;
        while n_scored < n_rows
            && let Some(request) = sequence.score_request(start + n_scored + 1)
        {
            self.batch.sample_row(first_row + n_scored, &request);
            n_scored += 1;
        }
        if samples {
            self.batch.sample_row(first_row + n_rows - 1, &sequence.sample_request());
        }
        self.planned.push(Planned { seq_idx, n_rows, n_scored, samples });
    }

    /// Counts a sequence's prompt as read.
    fn count_prompt(&mut self, seq_idx: usize) {
        let sequence = &self.running[seq_idx];
        self.totals.prompt_tokens += sequence.n_prompt() as u64;
        self.totals.cached_tokens += sequence.n_cached as u64;
    }

    /// Takes a sequence's next token. If that is its last, it is marked as ended.
    fn take(&mut self, seq_idx: usize, choice: Choice, now: Instant, events: &mut Events) {
        if choice.id.is_ok() && self.running[seq_idx].n_generated() == 0 {
            self.count_prompt(seq_idx);
        }
        let sequence = &mut self.running[seq_idx];
        let last = match choice.id {
            Err(fault) => Some(failed(FailureKind::Internal, &fault.to_string())),
            Ok(id) => {
                if sequence.request.end_tokens.contains(&id) {
                    Some(Event::Finished(sequence.finished(EndReason::EndToken(id), choice.logprobs, now)))
                } else {
                    self.totals.generation_tokens += 1;
                    events.push((sequence.id, Event::Token(Token { id, logprobs: choice.logprobs })));
                    let is_last = sequence.push_token(id, now);
                    if is_last {
                        Some(Event::Finished(sequence.finished(EndReason::MaxTokens, None, now)))
                    } else {
                        let advanced = sequence.advance_constraint(id);
                        advanced.err().map(|error| failed(FailureKind::Internal, &error.to_string()))
                    }
                }
            }
        };
        if let Some(last) = last {
            self.end_in_step(seq_idx, last, events);
        }
    }

    /// Marks a sequence of the step at hand as ended.
    fn end_in_step(&mut self, seq_idx: usize, last: Event, events: &mut Events) {
        let sequence = &mut self.running[seq_idx];
        sequence.ended = true;
        sequence.give_back(&mut self.pool);
        events.push((sequence.id, last));
    }

    fn end(&mut self, seq_idx: usize, last: Event, events: &mut Events) {
        let mut sequence = self.running.remove(seq_idx);
        sequence.give_back(&mut self.pool);
        self.head_is_blocked = false;
        events.push((sequence.id, last));
    }
}

/// What the sampler makes of the logits of the batch's sample `i`.
fn choose(sampler: &mut Sampler, batch: &Batch, i: usize, row: &[f32]) -> Choice {
    let request = batch.sample(i);
    let chosen = sampler.choose(row, &request, batch.samples[i].position).and_then(|id| {
        let logprobs = request.n_logprobs.map(|n| sampler.logprobs(row, id, n)).transpose()?;
        Ok((id, logprobs))
    });
    match chosen {
        Ok((id, logprobs)) => Choice { id: Ok(id), logprobs },
        Err(fault) => Choice { id: Err(fault), logprobs: None },
    }
}

fn failed(kind: FailureKind, message: &str) -> Event {
    Event::Failed(Failure { kind, message: message.to_owned() })
}

#[cfg(test)]
mod tests;
