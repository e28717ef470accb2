//! What HTTP costs: the processor time that a server spends on a streamed token outside the engine's threads, and the
//! throughput that is left of what the executor does alone.
//!
//! The time is that of all threads but the engine's (`engine`, and `cpu-N`, which compute for it), as the scheduler counts
//! it (`/proc/PID/task/*/schedstat`, in nanoseconds), so it hardly depends on what else the machine does. Throughput does:
//! the server's and that of `worker-orcd bench`, which drives the executor without engine or HTTP, are measured in turn,
//! and what is told is the median of the shares of each two.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures_util::future::join_all;
use serde_json::{Value, json};
use worker_tests::harness::{Launch, SseParser, Worker, WorkerBinary};

/// Measures what HTTP costs.
#[derive(Debug, Parser)]
struct Args {
    /// The worker binary; built from this checkout when left out
    #[arg(long, value_name = "FILE")]
    worker: Option<PathBuf>,
    /// A GGUF file; the built-in model when left out
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// cpu or cuda
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Clients at a time, one measurement for each
    #[arg(long, value_delimiter = ',', default_value = "32")]
    clients: Vec<usize>,
    /// Tokens of each answer
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// How often each measurement is repeated, after one that is not counted
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// Compare with `worker-orcd bench`, run between the measurements
    #[arg(long)]
    bare: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let binary = WorkerBinary::given_or_built(args.worker.clone())?;
    let folder = tempfile::tempdir().context("making a folder for the log")?;
    let log = folder.path().join("worker.log");
    let max_seqs = args.clients.iter().max().context("--clients: expected at least one number")?.to_string();
    let flags = ["--no-prefix-reuse", "--max-seqs", &max_seqs];
    let (model, device) = (args.model.as_deref(), Some(args.device.as_str()));
    let worker =
        Worker::start(&binary, Launch { worker_id: "http-cost", model, device, flags: &flags, log: &log }).await?;
    let process = worker.process_id().context("the worker's process id")?;
    for &n_clients in &args.clients {
        let mut figures = Vec::new();
        let mut bare = Vec::new();
        for i in 0..=args.repetitions {
            let figure = load(&worker, process, n_clients, &args).await?;
            let alone = if args.bare { Some(bench(&binary, &args, n_clients).await?) } else { None };
            if i > 0 {
                figures.push(figure);
                bare.extend(alone);
            }
        }
        let mut report = json!({
            "model": args.model.as_deref().and_then(Path::file_name).map_or("built-in".into(), |name| name.to_string_lossy()),
            "clients": n_clients,
            "tokens": figures.iter().map(|figure| figure.n_tokens).sum::<usize>(),
            "cpu_us_per_token_outside_the_engine": spread(figures.iter().map(|figure| figure.cpu_us_per_token)),
            "tokens_per_sec": spread(figures.iter().map(|figure| figure.tokens_per_sec)),
        });
        if args.bare {
            let shares = figures.iter().zip(&bare).map(|(figure, bare)| figure.tokens_per_sec / bare);
            report["share_of_bare"] = spread(shares);
            report["bare_tokens_per_sec"] = spread(bare.iter().copied());
        }
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(())
}

/// What one round showed.
struct Figures {
    n_tokens: usize,
    cpu_us_per_token: f64,
    /// While all clients were being answered.
    tokens_per_sec: f64,
}

async fn load(worker: &Worker, process: u32, n_clients: usize, args: &Args) -> Result<Figures> {
    let before = thread_times(process)?;
    let begun = Instant::now();
    let http = reqwest::Client::builder().no_proxy().build().context("making an HTTP client")?;
    let jobs = (0..n_clients).map(|_| async {
        // Only OpenAI's routes go on after the model's end token; short answers would measure how a request begins.
        let mut request = json!({
            "prompt": "the", "max_tokens": args.max_tokens, "temperature": 0, "ignore_eos": true, "stream": true,
        });
        if args.bare {
            // A token whose text is held back has no event of its own, and a random model writes many of these.
            request["stream_options"] = json!({ "include_usage": true, "continuous_usage_stats": true });
        }
        let url = format!("{}/v1/completions", worker.uri());
        let mut reply = http.post(url).json(&request).send().await?.error_for_status()?;
        let (mut parser, mut seen) = (SseParser::default(), Vec::new());
        while let Some(bytes) = reply.chunk().await? {
            let now = begun.elapsed().as_secs_f64();
            for event in parser.push(&bytes) {
                if event.data.contains("\"finish_reason\":null") {
                    seen.push((now, n_completed(&event.data).unwrap_or(seen.len() + 1)));
                }
            }
        }
        Ok::<_, anyhow::Error>(seen)
    });
    let answers = join_all(jobs).await.into_iter().collect::<Result<Vec<_>>>()?;
    let spent_ns = outside_the_engine(&before, &thread_times(process)?);
    let n_tokens = n_clients * args.max_tokens;
    let from = answers.iter().filter_map(|seen| seen.first()).map(|seen| seen.0).fold(f64::MIN, f64::max);
    let to = answers.iter().filter_map(|seen| seen.last()).map(|seen| seen.0).fold(f64::MAX, f64::min);
    ensure!(from < to, "the answers are too short to overlap");
    let tokens_per_sec = answers.iter().filter_map(|seen| rate(seen, from, to)).sum();
    Ok(Figures { n_tokens, cpu_us_per_token: spent_ns as f64 / 1e3 / n_tokens as f64, tokens_per_sec })
}

/// Tokens until now, where an event says so.
fn n_completed(data: &str) -> Option<usize> {
    let rest = data.split_once("\"completion_tokens\":")?.1;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Tokens a second of one answer, between its first and its last event within a time.
fn rate(seen: &[(f64, usize)], from: f64, to: f64) -> Option<f64> {
    let mut within = seen.iter().filter(|(time, _)| (from..=to).contains(time));
    let (first, last) = (within.next()?, within.next_back()?);
    Some((last.1 - first.1) as f64 / (last.0 - first.0))
}

/// Each thread's name and the nanoseconds that it has run, by its id.
fn thread_times(process: u32) -> Result<HashMap<String, (String, u64)>> {
    let folder = format!("/proc/{process}/task");
    let mut times = HashMap::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {folder}: this needs Linux"))? {
        let entry = entry?;
        // A thread may end between two looks.
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).ok();
        let (Some(name), Some(stat)) = (read("comm"), read("schedstat")) else { continue };
        let ran = stat.split(' ').next().and_then(|ns| ns.parse().ok()).context("schedstat: no number")?;
        times.insert(entry.file_name().to_string_lossy().into_owned(), (name.trim().to_owned(), ran));
    }
    Ok(times)
}

fn outside_the_engine(before: &HashMap<String, (String, u64)>, after: &HashMap<String, (String, u64)>) -> u64 {
    let others = after.iter().filter(|(_, (name, _))| name != "engine" && !name.starts_with("cpu-"));
    others.map(|(id, (_, ran))| ran - before.get(id).map_or(0, |(_, ran)| *ran)).sum()
}

/// Tokens a second that the executor decodes alone, in as many sequences.
async fn bench(binary: &WorkerBinary, args: &Args, n_seqs: usize) -> Result<f64> {
    let mut command = tokio::process::Command::new(binary.path());
    command.args(["bench", "--json", "-p", "0", "-r", "1", "--device", &args.device]);
    command.args(["-n", &args.max_tokens.to_string(), "-b", &n_seqs.to_string()]);
    if let Some(model) = &args.model {
        command.arg("--model").arg(model);
    }
    let output = command.stderr(Stdio::null()).output().await.context("running worker-orcd bench")?;
    ensure!(output.status.success(), "worker-orcd bench ended with {}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).context("reading what bench says")?;
    report["results"][0]["tokens_per_sec"]["median"].as_f64().context("bench: no figure")
}

fn spread(values: impl Iterator<Item = f64>) -> Value {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    json!({ "median": sorted.get(sorted.len() / 2), "min": sorted.first(), "max": sorted.last() })
}
