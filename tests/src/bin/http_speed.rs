//! How fast a worker answers one client over HTTP: the time to the first token, and tokens per second as they are streamed.
//! Compare with `worker-orcd bench -p 128 -n 128 -d 128`, which drives the executor alone.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::json;
use worker_tests::harness::{Launch, Worker, WorkerBinary};

/// Measures one client's view of a worker.
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
    /// Tokens of the prompt, about
    #[arg(long, default_value_t = 128)]
    prompt_tokens: usize,
    /// Tokens to stream
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// Answers that are measured, after two that are not
    #[arg(long, default_value_t = 20)]
    repetitions: usize,
}

/// What one answer showed.
#[derive(Debug, Clone, Copy)]
struct Figures {
    n_prompt: u64,
    first_token_ms: f64,
    tokens_per_sec: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let binary = WorkerBinary::given_or_built(args.worker.clone())?;
    let folder = tempfile::tempdir().context("making a folder for the log")?;
    let log = folder.path().join("worker.log");
    let (model, device) = (args.model.as_deref(), Some(args.device.as_str()));
    // Otherwise every prompt but the first would be found in the cache.
    let launch = Launch { worker_id: "http-speed", model, device, flags: &["--no-prefix-reuse"], log: &log };
    let worker = Worker::start(&binary, launch).await?;
    let health = worker.client().health().await?;
    // Rarely more than a token a word; what it comes to is reported.
    let words = "the sun and the moon and the rain on a day in the spring of a year ".repeat(args.prompt_tokens);
    let prompt: String = words.split_inclusive(' ').take(args.prompt_tokens).collect();
    let mut figures = Vec::new();
    for i in 0..args.repetitions + 2 {
        let answer = ask(&worker, &prompt, args.max_tokens, i).await?;
        if i >= 2 {
            figures.push(answer);
        }
    }
    let median = |of: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = figures.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        (values[0], values[values.len() / 2], values[values.len() - 1])
    };
    let (first, rate) = (median(|f| f.first_token_ms), median(|f| f.tokens_per_sec));
    let report = json!({
        "model": health["model"],
        "device": health["device"],
        "seconds_to_callback": worker.ready_after().as_secs_f64(),
        "prompt_tokens": figures[0].n_prompt,
        "first_token_ms": {"min": first.0, "median": first.1, "max": first.2},
        "tokens_per_sec": {"min": rate.0, "median": rate.1, "max": rate.2},
    });
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

async fn ask(worker: &Worker, prompt: &str, max_tokens: usize, i: usize) -> Result<Figures> {
    let request = json!({
        "job_id": format!("speed-{i}"), "prompt": prompt, "max_tokens": max_tokens, "temperature": 1, "seed": i,
    });
    let answer = worker.client().execute(request, |_| {}).await?;
    ensure!(answer.first("end").is_some(), "job speed-{i}: {:?} {:?}", answer.events.last(), answer.broken);
    let times: Vec<f64> =
        answer.events.iter().filter(|event| event.event == "token").map(|event| event.at_ms).collect();
    let (Some(&first), Some(&last)) = (times.first(), times.last()) else {
        anyhow::bail!("job speed-{i} had no tokens");
    };
    let n_prompt = answer.first("started").and_then(|started| started["prompt_tokens"].as_u64()).unwrap_or(0);
    let seconds = (last - first) / 1e3;
    let tokens_per_sec = if seconds > 0.0 { (times.len() - 1) as f64 / seconds } else { 0.0 };
    Ok(Figures { n_prompt, first_token_ms: first, tokens_per_sec })
}
