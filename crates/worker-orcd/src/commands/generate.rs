//! `generate`: one answer on standard output, as it is made, and nothing else there.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use engine::{EndReason, Engine, EngineConfig, EngineHandle, Event, Failure, FailureKind, Finished, Request, Sampling};
use serde_json::json;
use tokenizer::{ChatInput, ChatTemplate, EncodeOptions, StreamDecoder, TokenId, Tokenizer};
use weight_loader::ModelFile;
use worker_http::{Scan, StopMatcher};

use crate::cli::{GenerateArgs, MAX_STOPS, SamplingArgs};
use crate::kv_plan::Pool;
use crate::logging::{self, Quiet};
use crate::progress::Loading;
use crate::signals::INTERRUPTED;
use crate::start::{self, Loaded};
use crate::{output, signals, source};

/// The longest prompt that is read from standard input, in bytes. What fits into the context is far less.
const MAX_PROMPT_BYTES: u64 = 64 << 20;

/// Runs the command.
pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    logging::init(&args.log, Quiet::Yes)?;
    anyhow::ensure!(
        args.sampling.stop.len() <= MAX_STOPS,
        "--stop: given {} times, at most {MAX_STOPS} work",
        args.sampling.stop.len()
    );
    let file = source::open(&args.model)?;
    let prompt = prompt(args)?;
    let loaded = load(args, &file)?;
    let ids = prompt_ids(&file, &loaded, &prompt, args.chat)?;

    let max_batch_tokens = loaded.executor.info().max_batch_tokens;
    let config = EngineConfig { max_seqs: 1, max_batch_tokens, ..EngineConfig::default() };
    let engine = Engine::start(loaded.executor, config, Instant::now);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let seed = args.sampling.seed.unwrap_or_else(worker_http::drawn_seed);
    let answer = runtime.block_on(stream(&engine, &loaded.tokenizer, &ids, seed, args))?;
    report(args, &source::name(&args.model), ids.len(), seed, &answer)
}

fn load(args: &GenerateArgs, file: &ModelFile) -> anyhow::Result<Loaded> {
    let options = start::Options {
        device: args.device.clone(),
        max_seqs: Some(1),
        ctx_size: args.context.ctx_size.map(|n| n as usize),
        pool: Pool::Default,
        kv_type: args.context.kv_type.into(),
    };
    let mut loading = Loading::start(args.log.log_format);
    start::load(file, &options, &mut |done, total| loading.set(done, total))
}

fn prompt(args: &GenerateArgs) -> anyhow::Result<String> {
    match args.prompt.as_deref().or(args.prompt_operand.as_deref()) {
        Some("-") => output::read_standard_input(MAX_PROMPT_BYTES),
        Some(text) => Ok(text.to_owned()),
        None => anyhow::bail!("no prompt: give it as --prompt TEXT, or - to read it from standard input"),
    }
}

fn prompt_ids(file: &ModelFile, loaded: &Loaded, prompt: &str, chat: bool) -> anyhow::Result<Vec<TokenId>> {
    let text = if chat {
        let template = ChatTemplate::from_gguf(&file.gguf()?, &loaded.tokenizer)
            .context("--chat: the model's template cannot be used")?
            .context("--chat: the model has no chat template")?;
        let messages = [json!({"role": "user", "content": prompt})];
        let input =
            ChatInput { messages: &messages, tools: None, add_generation_prompt: true, extra: Default::default() };
        template.render(&input).context("--chat: the model's template")?
    } else {
        prompt.to_owned()
    };
    let ids = loaded.tokenizer.encode(&text, EncodeOptions { parse_special: true, add_special: true });
    anyhow::ensure!(!ids.is_empty(), "the prompt is empty: needs at least one token");
    Ok(ids)
}

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

/// Why an answer is over.
#[derive(Debug, Clone, PartialEq)]
enum End {
    /// By itself.
    Finished(Finished),
    /// The stop text with this index is complete.
    Stopped(usize),
    /// Ctrl-C or SIGTERM.
    Interrupted,
}

/// What was generated.
struct Answer {
    text: String,
    ids: Vec<TokenId>,
    end: End,
    /// From submission to the first token.
    first: Duration,
    /// From the first token to the last.
    rest: Duration,
}

/// Generates, writing text as soon as it is certain (unless JSON was asked for).
async fn stream(
    engine: &EngineHandle,
    tokenizer: &Arc<Tokenizer>,
    prompt: &[TokenId],
    seed: u64,
    args: &GenerateArgs,
) -> anyhow::Result<Answer> {
    let interrupted = signals::watch().context("cannot watch for signals")?;
    let request = Request {
        prompt: prompt.into(),
        max_tokens: args.sampling.max_tokens as usize,
        end_tokens: tokenizer.end_tokens().into(),
        sampling: Sampling::from(&args.sampling),
        logit_bias: Vec::new(),
        constraint: None,
        seed,
        n_logprobs: None,
    };
    let began = Instant::now();
    let mut job = engine.submit(request)?;
    let mut text = AnswerText::new(tokenizer, &args.sampling.stop, args.json);
    let (mut ids, mut first, mut last) = (Vec::new(), None, began);
    let end = loop {
        let event = tokio::select! {
            biased;
            () = interrupted.cancelled() => break End::Interrupted,
            event = job.recv() => event.context("the engine ended without an answer")?,
        };
        match event {
            Event::Admitted { .. } => {}
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
struct AnswerText {
    /// None once it is finished.
    decoder: Option<StreamDecoder>,
    stops: StopMatcher,
    is_silent: bool,
    whole: String,
}

impl AnswerText {
    fn new(tokenizer: &Arc<Tokenizer>, stops: &[String], is_silent: bool) -> Self {
        Self {
            decoder: Some(tokenizer.stream_continuation()),
            stops: StopMatcher::new(stops),
            is_silent,
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
        if self.is_silent || text.is_empty() { Ok(()) } else { output::write(text) }
    }
}

/// The figures to standard error, or everything as JSON to standard output.
fn report(args: &GenerateArgs, model: &str, n_prompt: usize, seed: u64, answer: &Answer) -> anyhow::Result<ExitCode> {
    let stop_reason = match &answer.end {
        End::Finished(Finished { reason: EndReason::MaxTokens, .. }) => "MAX_TOKENS",
        End::Finished(Finished { reason: EndReason::EndToken(_), .. }) => "EOS",
        End::Stopped(_) => "STOP_SEQUENCE",
        End::Interrupted => "CANCELLED",
    };
    let n_answer = answer.ids.len();
    // The first token comes out of reading the prompt; the others are decoded.
    let decode_rate = rate(n_answer.saturating_sub(1), answer.rest);
    if args.json {
        let mut report = json!({
            "text": answer.text,
            "ids": answer.ids,
            "stop_reason": stop_reason,
            "seed": seed,
            "model": model,
            "prompt_tokens": n_prompt,
            "tokens_out": n_answer,
            "prompt_ms": answer.first.as_secs_f64() * 1e3,
            "decode_ms": answer.rest.as_secs_f64() * 1e3,
            "tokens_per_sec": decode_rate,
        });
        if let End::Stopped(stop) = answer.end {
            report["stop_sequence_matched"] = json!(args.sampling.stop[stop]);
        }
        output::write(&format!("{report}\n"))?;
    } else if output::is_terminal() && !answer.text.ends_with('\n') {
        output::write("\n")?;
    }
    output::note(&format!(
        "prompt {n_prompt} tokens in {:.0} ms ({:.1} tokens/s), answer {n_answer} tokens ({decode_rate:.1} tokens/s), \
         {stop_reason}, seed {seed}",
        answer.first.as_secs_f64() * 1e3,
        rate(n_prompt, answer.first),
    ));
    Ok(if answer.end == End::Interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

fn rate(n: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}
