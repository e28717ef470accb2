//! `bench --url`: how a running server answers many clients.
//!
//! Closed loop: so many clients, each of which sends its next request when the last is answered. Open loop: requests come at
//! random times of a given rate, whether or not the ones before are answered, which is what a crowd does; a server that is
//! too slow shows it by latencies that grow. Latencies count from the moment a request was to be sent.

mod arrivals;
mod client;
mod stats;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget};
use reqwest::Url;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::client::Server;
use self::stats::{Sample, Stats};
use crate::cli::BenchArgs;
use crate::output;

/// The longest prompt that `/execute` takes, in characters.
const MAX_PROMPT_CHARS: usize = 32_768;

/// What is asked of the server.
#[derive(Debug, Clone)]
struct Plan {
    n_requests: usize,
    /// Words of a prompt, so that it has about as many tokens as were asked for.
    n_words: usize,
    max_tokens: u32,
    seed: u64,
}

/// Measures the server at `url`.
pub(crate) fn run(args: &BenchArgs, url: &Url) -> anyhow::Result<()> {
    let one = |values: &[u32], flag| match values {
        [n] if *n > 0 => Ok(*n),
        _ => Err(anyhow::anyhow!("{flag}: with --url needs one number above 0")),
    };
    let (n_prompt, max_tokens) = (one(&args.n_prompt, "-p")?, one(&args.n_gen, "-n")?);
    let server = Server::new(url, args.api_key.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    let (n_prompt, stats, wall) = runtime.block_on(async {
        let n_prompt = prompt_that_fits(&server, n_prompt as usize, max_tokens as usize).await;
        let n_words = words_for(&server, n_prompt, args.seed).await?;
        let plan = Plan { n_requests: args.requests as usize, n_words, max_tokens, seed: args.seed };
        let (stats, wall) = load(&server, &plan, args).await;
        anyhow::Ok((n_prompt, stats, wall))
    })?;
    report(args, url, n_prompt, &stats, wall)?;
    anyhow::ensure!(stats.n_answered > 0, "no request was answered");
    Ok(())
}

/// Tokens of a prompt: as many as wanted, or what the server's context leaves beside the answer.
async fn prompt_that_fits(server: &Server, n_prompt: usize, max_tokens: usize) -> usize {
    let Some(n_ctx) = server.context_length().await.filter(|&n_ctx| n_ctx < n_prompt + max_tokens) else {
        return n_prompt;
    };
    let fits = n_ctx.saturating_sub(max_tokens).max(1).min(n_prompt);
    output::note(&format!("prompts of {fits} tokens, not {n_prompt}: the server's context has {n_ctx}"));
    fits
}

/// How many words make a prompt of about `n_tokens`, by asking the server, which this warms too. A word has one token or
/// more.
async fn words_for(server: &Server, n_tokens: usize, seed: u64) -> anyhow::Result<usize> {
    let mut n_words = n_tokens.div_ceil(2);
    for i in 0..2 {
        let prompt = arrivals::prompt(n_words, seed, usize::MAX - 1 - i);
        anyhow::ensure!(
            prompt.len() <= MAX_PROMPT_CHARS,
            "-p {n_tokens}: a prompt of {} characters, /execute takes {MAX_PROMPT_CHARS}",
            prompt.len()
        );
        let sample = server.ask(usize::MAX - 1 - i, &prompt, 1, Instant::now()).await;
        if let Some(code) = sample.error {
            anyhow::bail!("a first request was not answered: {code}");
        }
        n_words = (n_words * n_tokens / (sample.n_prompt as usize).max(1)).max(1);
    }
    Ok(n_words)
}

/// Sends every request and waits for every answer: what was seen, and how long it took.
async fn load(server: &Server, plan: &Plan, args: &BenchArgs) -> (Stats, Duration) {
    let bar = ProgressBar::new(plan.n_requests as u64);
    if args.json || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let began = Instant::now();
    let mut tasks = match args.request_rate {
        Some(rate) => open_loop(server, plan, rate, began, &bar),
        None => closed_loop(server, plan, args.concurrency as usize, &bar),
    };
    let mut stats = Stats::new();
    while let Some(samples) = tasks.join_next().await {
        // A task that panicked has said so; its requests count as lost.
        for sample in samples.unwrap_or_else(|_| vec![Sample { error: Some("LOST".to_owned()), ..Sample::default() }]) {
            stats.add(&sample);
        }
    }
    let wall = began.elapsed();
    bar.finish_and_clear();
    (stats, wall)
}

fn closed_loop(server: &Server, plan: &Plan, n_clients: usize, bar: &ProgressBar) -> JoinSet<Vec<Sample>> {
    let next = Arc::new(AtomicUsize::new(0));
    let client = |_| {
        let (server, plan, next, bar) = (server.clone(), plan.clone(), Arc::clone(&next), bar.clone());
        async move {
            let mut samples = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= plan.n_requests {
                    return samples;
                }
                let prompt = arrivals::prompt(plan.n_words, plan.seed, i);
                samples.push(server.ask(i, &prompt, plan.max_tokens, Instant::now()).await);
                bar.inc(1);
            }
        }
    };
    (0..n_clients.min(plan.n_requests)).map(client).collect()
}

fn open_loop(server: &Server, plan: &Plan, rate: f64, began: Instant, bar: &ProgressBar) -> JoinSet<Vec<Sample>> {
    let request = |(i, at)| {
        let (server, plan, bar) = (server.clone(), plan.clone(), bar.clone());
        async move {
            let due = began + at;
            tokio::time::sleep_until(due).await;
            let prompt = arrivals::prompt(plan.n_words, plan.seed, i);
            let sample = server.ask(i, &prompt, plan.max_tokens, due).await;
            bar.inc(1);
            vec![sample]
        }
    };
    arrivals::poisson(plan.n_requests, rate, plan.seed).into_iter().enumerate().map(request).collect()
}

fn report(args: &BenchArgs, url: &Url, n_prompt: usize, stats: &Stats, wall: Duration) -> anyhow::Result<()> {
    if args.json {
        let mut report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "url": crate::callback::shown(url),
            "requests": args.requests,
            "concurrency": args.request_rate.is_none().then_some(args.concurrency),
            "request_rate": args.request_rate,
            "prompt_tokens_asked": n_prompt,
            "max_tokens": args.n_gen[0],
            "seed": args.seed,
        });
        if let (Some(report), serde_json::Value::Object(seen)) = (report.as_object_mut(), stats.as_json(wall)) {
            report.extend(seen);
        }
        return output::write(&(serde_json::to_string_pretty(&report)? + "\n"));
    }
    output::write(&table(args, url, n_prompt, stats, wall))
}

fn table(args: &BenchArgs, url: &Url, n_prompt: usize, stats: &Stats, wall: Duration) -> String {
    let seconds = wall.as_secs_f64();
    let load = match args.request_rate {
        Some(rate) => format!("{rate} requests/s at random times"),
        None => format!("{} at a time", args.concurrency),
    };
    let errors: Vec<String> = stats.errors.iter().map(|(code, n)| format!("{code} {n}")).collect();
    let mut text = format!(
        "server   {}\n\
         load     {} requests, {load}; prompts of {} tokens, answers of at most {}\n\
         answers  {} in {seconds:.2} s: {:.2} requests/s, {:.1} tokens/s written, {:.1} tokens/s read\n\
         tokens   {:.1} read and {:.1} written for an answer, on average\n\
         errors   {}\n\n\
         {:<18}{:>10}{:>10}{:>10}{:>10}{:>10}\n",
        crate::callback::shown(url),
        args.requests,
        n_prompt,
        args.n_gen[0],
        stats.n_answered,
        stats.n_answered as f64 / seconds,
        stats.n_tokens as f64 / seconds,
        stats.n_prompt_tokens as f64 / seconds,
        stats.mean_prompt(),
        stats.n_tokens as f64 / stats.n_answered.max(1) as f64,
        if errors.is_empty() { "none".to_owned() } else { errors.join(", ") },
        "ms",
        "mean",
        "p50",
        "p90",
        "p99",
        "longest",
    );
    let latencies = [("first token", &stats.first), ("between tokens", &stats.between), ("whole answer", &stats.total)];
    for (name, latency) in &latencies {
        let cells: String = latency.row().iter().map(|ms| format!("{ms:>10.2}")).collect();
        text += &format!("{name:<18}{cells}\n");
    }
    let speed: String = stats.speed.row().iter().map(|speed| format!("{speed:>10.1}")).collect();
    let heads: String = ["mean", "p50", "p10", "p1", "least"].iter().map(|head| format!("{head:>10}")).collect();
    text += &format!("\n{:<18}{heads}\n{:<18}{speed}\n", "tokens/s", "of an answer");
    for (name, latency) in &latencies[..2] {
        text += &format!("\n{name}\n{}", latency.bars());
    }
    text
}
