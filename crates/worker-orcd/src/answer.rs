//! One answer, generated in this process: what `generate` and `chat` share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use engine::{EndReason, Engine, EngineConfig, EngineHandle, Event, Failure, FailureKind, Finished, Request, Sampling};
use tokenizer::{StreamDecoder, TokenId, Tokenizer};
use tokio_util::sync::CancellationToken;
use transformer::Executor;
use weight_loader::ModelFile;
use worker_http::{Scan, StopMatcher};

use crate::cli::{ContextArgs, DeviceArgs, LogArgs, MAX_STOPS, SamplingArgs};
use crate::kv_plan::Pool;
use crate::progress::Loading;
use crate::start::{self, Loaded};

impl From<&SamplingArgs> for Sampling {
    fn from(args: &SamplingArgs) -> Self {
        Self {
            temperature: args.temperature,
            repetition_penalty: args.repetition_penalty,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            ..Self::default()
        }
    }
}

/// Checks what the table of flags cannot: how often one is given.
///
/// # Errors
/// More stop texts than a request may have.
pub(crate) fn check(args: &SamplingArgs) -> anyhow::Result<()> {
    let n_stops = args.stop.len();
    anyhow::ensure!(n_stops <= MAX_STOPS, "--stop: given {n_stops} times, at most {MAX_STOPS} work");
    Ok(())
}

/// Loads a model for one sequence alone, with progress as the log's form allows.
///
/// # Errors
/// As [`start::load`].
pub(crate) fn load(
    file: &ModelFile,
    device: &DeviceArgs,
    context: &ContextArgs,
    log: &LogArgs,
) -> anyhow::Result<Loaded> {
    let options = start::Options {
        device: device.clone(),
        max_seqs: Some(1),
        ctx_size: context.ctx_size.map(|n| n as usize),
        pool: Pool::Default,
        kv_type: context.kv_type.into(),
    };
    let mut loading = Loading::start(log.log_format);
    start::load(file, &options, &mut |done, total| loading.set(done, total))
}

/// An engine for one sequence alone.
pub(crate) fn start_engine(executor: Box<dyn Executor>) -> EngineHandle {
    let max_batch_tokens = executor.info().max_batch_tokens;
    let config = EngineConfig { max_seqs: 1, max_batch_tokens, ..EngineConfig::default() };
    Engine::start(executor, config, Instant::now)
}

/// Why an answer is over.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    /// By itself.
    Finished(Finished),
    /// The stop text with this index is complete.
    Stopped(usize),
    /// Somebody asked to stop.
    Interrupted,
}

impl End {
    /// As `/execute` names it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Finished(Finished { reason: EndReason::MaxTokens, .. }) => "MAX_TOKENS",
            Self::Finished(Finished { reason: EndReason::EndToken(_), .. }) => "EOS",
            Self::Stopped(_) => "STOP_SEQUENCE",
            Self::Interrupted => "CANCELLED",
        }
    }
}

/// What was generated.
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) ids: Vec<TokenId>,
    pub(crate) end: End,
    /// From submission to the first token.
    pub(crate) first: Duration,
    /// From the first token to the last.
    pub(crate) rest: Duration,
}

impl Answer {
    /// Tokens per second while it was decoded: the first token comes out of reading the prompt.
    pub(crate) fn decode_rate(&self) -> f64 {
        rate(self.ids.len().saturating_sub(1), self.rest)
    }
}

/// How many of `n` a second, 0 where no time has passed.
pub(crate) fn rate(n: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}

/// Generates an answer to `prompt` until it ends or `interrupted` is cancelled, and gives text to `write` as soon as it is
/// certain.
///
/// # Errors
/// A prompt that the engine does not take, a failure of the engine, or an error of `write`.
pub(crate) async fn stream(
    engine: &EngineHandle,
    tokenizer: &Arc<Tokenizer>,
    prompt: &[TokenId],
    seed: u64,
    args: &SamplingArgs,
    interrupted: &CancellationToken,
    write: &mut dyn FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let request = Request {
        prompt: prompt.into(),
        max_tokens: args.max_tokens as usize,
        end_tokens: tokenizer.end_tokens().into(),
        sampling: Sampling::from(args),
        logit_bias: Vec::new(),
        constraint: None,
        seed,
        n_logprobs: None,
        n_prompt_logprobs: None,
    };
    let began = Instant::now();
    let mut job = engine.submit(request)?;
    let mut text = AnswerText::new(tokenizer, &args.stop, write);
    let (mut ids, mut first, mut last) = (Vec::new(), None, began);
    let end = loop {
        let event = tokio::select! {
            biased;
            () = interrupted.cancelled() => break End::Interrupted,
            event = job.recv() => event.context("the engine ended without an answer")?,
        };
        match event {
            Event::Admitted { .. } | Event::PromptLogprobs(_) => {}
            Event::Token(token) => {
                last = Instant::now();
                first.get_or_insert(last);
                ids.push(token.id);
                if let Some(stop) = text.push(token.id)? {
                    break End::Stopped(stop);
                }
            }
            Event::Finished(finished) => break End::Finished(finished),
            Event::Failed(Failure { kind: FailureKind::Cancelled, .. }) => break End::Interrupted,
            Event::Failed(failure) => anyhow::bail!("generation failed: {}", failure.message),
        }
    };
    // Dropping the job cancels what is left of it.
    drop(job);
    if !matches!(end, End::Stopped(_)) {
        text.finish()?;
    }
    let first = first.unwrap_or(last);
    Ok(Answer { text: text.whole, ids, end, first: first - began, rest: last - first })
}

/// The answer's text: decoded, cut at stop texts, written out.
struct AnswerText<'w> {
    /// None once it is finished.
    decoder: Option<StreamDecoder>,
    stops: StopMatcher,
    write: &'w mut dyn FnMut(&str) -> anyhow::Result<()>,
    whole: String,
}

impl<'w> AnswerText<'w> {
    fn new(tokenizer: &Arc<Tokenizer>, stops: &[String], write: &'w mut dyn FnMut(&str) -> anyhow::Result<()>) -> Self {
        Self {
            decoder: Some(tokenizer.stream_continuation()),
            stops: StopMatcher::new(stops),
            write,
            whole: String::new(),
        }
    }

    /// Takes the next token; the index of the stop text that it completes.
    fn push(&mut self, id: TokenId) -> anyhow::Result<Option<usize>> {
        let piece = self.decoder.as_mut().map(|decoder| decoder.push(id)).unwrap_or_default();
        self.scan(&piece)
    }

    /// Writes what was held back.
    fn finish(&mut self) -> anyhow::Result<()> {
        let piece = self.decoder.take().map(StreamDecoder::finish).unwrap_or_default();
        if self.scan(&piece)?.is_none() {
            let held = self.stops.finish();
            self.write(&held)?;
        }
        Ok(())
    }

    fn scan(&mut self, piece: &str) -> anyhow::Result<Option<usize>> {
        match self.stops.push(piece) {
            Scan::Text(text) => self.write(&text).map(|()| None),
            Scan::Stopped { before, stop } => self.write(&before).map(|()| Some(stop)),
        }
    }

    fn write(&mut self, text: &str) -> anyhow::Result<()> {
        self.whole.push_str(text);
        if text.is_empty() { Ok(()) } else { (self.write)(text) }
    }
}
