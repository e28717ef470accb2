//! What a long prompt does to those who are being answered: some streams run, then a prompt as long as the context comes in.
//!
//! The rule: beside the prompt, the 99th percentile of the time between two tokens of a stream is at most three times what it
//! is without, and one chunk of the prompt more. A chunk is what the scheduler reads of a prompt in one step beside streams:
//! about 100 ms of it, and at least 32 tokens. How long that is follows from the prompt's time alone.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tokio::sync::watch;
use worker_tests::harness::{Launch, SseParser, Worker, WorkerBinary};

/// The scheduler's aim for a step with prompt rows beside streams.
const CHUNK_TARGET_MS: f64 = 100.0;
/// The fewest tokens of a prompt that it reads in a step, however long they take.
const MIN_CHUNK_TOKENS: f64 = 32.0;
/// Tokens that each stream has before the measurement begins.
const WARM_UP_TOKENS: usize = 8;

/// Measures what a prompt as long as the context does to running streams.
#[derive(Debug, Parser)]
struct Args {
    /// The worker binary; built from this checkout when left out
    #[arg(long, value_name = "FILE")]
    worker: Option<PathBuf>,
    /// A GGUF file; the built-in model when left out
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// cpu, cuda or auto
    #[arg(long, default_value = "auto")]
    device: String,
    /// The context, in tokens; the model's own when left out
    #[arg(long, value_name = "TOKENS")]
    ctx_size: Option<u32>,
    /// Streams that run
    #[arg(long, default_value_t = 4)]
    streams: usize,
    /// Tokens of each stream; what the context has room for when left out, at most 480
    #[arg(long)]
    max_tokens: Option<usize>,
    /// Tokens that each stream has before the prompt comes in
    #[arg(long, default_value_t = 100)]
    idle_tokens: usize,
    /// How often all of it is done
    #[arg(long, default_value_t = 10)]
    rounds: usize,
}

/// A worker to ask, and what to ask it.
struct Bench {
    http: reqwest::Client,
    url: String,
    /// A token that is text by itself: streams are made of it alone, so that each token is sent when it is made.
    token: u64,
    n_ctx: usize,
}

/// Times between tokens, in milliseconds.
#[derive(Default)]
struct Gaps {
    idle: Vec<f64>,
    beside: Vec<f64>,
    /// Of the prompt beside the streams, to its first token.
    prompts: Vec<f64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let binary = WorkerBinary::given_or_built(args.worker.clone())?;
    let folder = tempfile::tempdir().context("making a folder for the log")?;
    let log = folder.path().join("worker.log");
    // Otherwise every prompt but the first would be found in the cache.
    let mut flags = vec!["--no-prefix-reuse".to_owned(), format!("--max-seqs={}", args.streams + 1)];
    flags.extend(args.ctx_size.map(|n| format!("--ctx-size={n}")));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (model, device) = (args.model.as_deref(), Some(args.device.as_str()));
    let worker =
        Worker::start(&binary, Launch { worker_id: "fairness", model, device, flags: &flags, log: &log }).await?;
    let health = worker.client().health().await?;
    let bench = Bench::new(&worker, &health).await?;
    let max_tokens = args.max_tokens.unwrap_or(480).min(bench.n_ctx - 2);
    ensure!(
        args.idle_tokens + WARM_UP_TOKENS < max_tokens,
        "--idle-tokens: the streams end before the prompt comes in"
    );
    // Once to warm up.
    bench.prompt_ms(0).await?;
    let alone = bench.prompt_ms(1).await?;
    let mut gaps = Gaps::default();
    for round in 0..args.rounds {
        bench.round(&args, max_tokens, round, &mut gaps).await?;
    }
    println!("{}", serde_json::to_string_pretty(&report(&args, &health, bench.n_ctx, alone, gaps))?);
    Ok(())
}

fn report(args: &Args, health: &Value, n_ctx: usize, alone_ms: f64, mut gaps: Gaps) -> Value {
    let n_prompt = n_ctx - 1;
    let chunk_ms = alone_ms.min(CHUNK_TARGET_MS.max(MIN_CHUNK_TOKENS * alone_ms / n_prompt as f64));
    let [idle, beside] = [&mut gaps.idle, &mut gaps.beside].map(|gaps| {
        gaps.sort_by(f64::total_cmp);
        (gaps.len(), percentile(gaps, 0.5), percentile(gaps, 0.99), percentile(gaps, 1.0))
    });
    let limit = 3.0 * idle.2 + chunk_ms;
    let shown = |(n, p50, p99, max): (usize, f64, f64, f64)| json!({"n": n, "p50": p50, "p99": p99, "max": max});
    gaps.prompts.sort_by(f64::total_cmp);
    json!({
        "model": health["model"],
        "device": health["device"],
        "streams": args.streams,
        "prompt_tokens": n_prompt,
        "prompt_alone_ms": alone_ms,
        "prompt_beside_streams_ms": percentile(&gaps.prompts, 0.5),
        "chunk_ms": chunk_ms,
        "gap_idle_ms": shown(idle),
        "gap_beside_prompt_ms": shown(beside),
        "rule": {"p99_at_most_ms": limit, "p99_ms": beside.2, "met": beside.2 <= limit},
    })
}

/// Of values in ascending order; 0 where there are none.
fn percentile(sorted: &[f64], part: f64) -> f64 {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

impl Bench {
    async fn new(worker: &Worker, health: &Value) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().build().context("making an HTTP client")?;
        let n_ctx = health["context_length"].as_u64().context("/health tells no context_length")? as usize;
        let mut bench = Self { http, url: worker.uri().to_owned(), token: 0, n_ctx };
        let tokens: Value = bench.post("/tokenize", &json!({"content": "the"})).await?.json().await?;
        bench.token = tokens["tokens"][0].as_u64().context("/tokenize gives no token")?;
        Ok(bench)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<reqwest::Response> {
        let reply = self.http.post(format!("{}{path}", self.url)).json(body).send().await?;
        if !reply.status().is_success() {
            bail!("POST {path}: {}: {}", reply.status(), reply.text().await.unwrap_or_default());
        }
        Ok(reply)
    }

    /// Reads a prompt that fills the context but for one token; the time to that token.
    async fn prompt_ms(&self, i: usize) -> Result<f64> {
        let mut prompt = vec![self.token; self.n_ctx - 1];
        prompt[0] = i as u64 % 100;
        let sent = Instant::now();
        let body = json!({"prompt": prompt, "max_tokens": 1, "temperature": 0, "ignore_eos": true});
        self.post("/v1/completions", &body).await?.bytes().await?;
        Ok(ms(sent, Instant::now()))
    }

    /// All streams, and the prompt once each has `--idle-tokens`.
    async fn round(&self, args: &Args, max_tokens: usize, round: usize, gaps: &mut Gaps) -> Result<()> {
        let (progress, seen): (Vec<_>, Vec<_>) = (0..args.streams).map(|_| watch::channel(0)).unzip();
        let streams = progress.into_iter().enumerate().map(|(i, progress)| self.stream(i, max_tokens, progress));
        let prompt = async {
            for mut seen in seen {
                seen.wait_for(|n| *n >= WARM_UP_TOKENS + args.idle_tokens).await.context("a stream ended early")?;
            }
            let sent = Instant::now();
            self.prompt_ms(round + 2).await?;
            Ok((sent, Instant::now()))
        };
        let (streams, (sent, done)) = tokio::try_join!(try_join_all(streams), prompt)?;
        gaps.prompts.push(ms(sent, done));
        let warm = streams.iter().filter_map(|times| times.get(WARM_UP_TOKENS)).max().copied().unwrap_or(sent);
        let first_end = streams.iter().filter_map(|times| times.last()).min().copied().unwrap_or(done);
        ensure!(done < first_end, "a stream ended before the prompt was read: raise --max-tokens");
        for times in &streams {
            for pair in times.windows(2) {
                let &[from, to] = pair else { continue };
                if to > sent && from < done {
                    gaps.beside.push(ms(from, to));
                } else if from >= warm && to <= first_end {
                    gaps.idle.push(ms(from, to));
                }
            }
        }
        Ok(())
    }

    /// Streams tokens; when each came.
    async fn stream(&self, i: usize, max_tokens: usize, progress: watch::Sender<usize>) -> Result<Vec<Instant>> {
        let body = json!({
            "prompt": [self.token, i], "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true, "stream": true,
            "logit_bias": {self.token.to_string(): 100},
        });
        let mut bytes = self.post("/v1/completions", &body).await?.bytes_stream();
        let (mut parser, mut times) = (SseParser::default(), Vec::with_capacity(max_tokens));
        while let Some(chunk) = bytes.next().await {
            let now = Instant::now();
            for event in parser.push(&chunk.context("a stream broke off")?) {
                let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
                ensure!(data["error"].is_null(), "a stream failed: {data}");
                if data["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()) {
                    times.push(now);
                    // Nobody may be looking any more.
                    let _ = progress.send(times.len());
                }
            }
        }
        ensure!(times.len() == max_tokens, "a stream had {} tokens of {max_tokens}", times.len());
        Ok(times)
    }
}

fn ms(from: Instant, to: Instant) -> f64 {
    (to.saturating_duration_since(from).as_secs_f64() * 1e6).round() / 1e3
}
