//! What HTTP costs: the processor time that a server spends on a streamed token outside the engine's threads, and the
//! throughput that is left of what the executor does alone.
//!
//! The time is that of all threads but the engine's (`engine`, and `cpu-N`, which compute for it), as the scheduler counts
//! it (`/proc/PID/task/*/schedstat`, in nanoseconds), so it hardly depends on what else the machine does. Throughput does:
//! the server's and that of `worker-orcd bench`, which drives the executor without engine or HTTP, are measured in turn,
//! and their medians compared.

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
            let figure = load(&worker, process, n_clients, args.max_tokens).await?;
            let alone = if args.bare { Some(bench(&binary, &args, n_clients).await?) } else { None };
            if i > 0 {
                figures.push(figure);
                bare.extend(alone);
            }
        }
        let http = spread(figures.iter().map(|figure| figure.tokens_per_sec));
        let mut report = json!({
            "model": args.model.as_deref().and_then(Path::file_name).map_or("built-in".into(), |name| name.to_string_lossy()),
            "clients": n_clients,
            "tokens": figures.iter().map(|figure| figure.n_tokens).sum::<usize>(),
            "cpu_us_per_token_outside_the_engine": spread(figures.iter().map(|figure| figure.cpu_us_per_token)),
            "tokens_per_sec": http,
        });
        if args.bare {
            let bare = spread(bare.into_iter());
            report["share_of_bare"] = json!(http["median"].as_f64().zip(bare["median"].as_f64()).map(|(a, b)| a / b));
            report["bare_tokens_per_sec"] = bare;
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

async fn load(worker: &Worker, process: u32, n_clients: usize, max_tokens: usize) -> Result<Figures> {
    let before = thread_times(process)?;
    let begun = Instant::now();
    let http = reqwest::Client::builder().no_proxy().build().context("making an HTTP client")?;
    let jobs = (0..n_clients).map(|_| async {
        // Only OpenAI's routes go on after the model's end token; short answers would measure how a request begins.
        let request = json!({
            "prompt": "the", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true, "stream": true,
        });
        let url = format!("{}/v1/completions", worker.uri());
        let mut reply = http.post(url).json(&request).send().await?.error_for_status()?;
        let (mut parser, mut times) = (SseParser::default(), Vec::new());
        while let Some(bytes) = reply.chunk().await? {
            let now = begun.elapsed().as_secs_f64();
            let events = parser.push(&bytes);
            times.extend(events.iter().filter(|event| event.data.contains("\"finish_reason\":null")).map(|_| now));
        }
        Ok::<_, anyhow::Error>(times)
    });
    let answers = join_all(jobs).await.into_iter().collect::<Result<Vec<_>>>()?;
    let spent_ns = outside_the_engine(&before, &thread_times(process)?);
    let n_tokens: usize = answers.iter().map(Vec::len).sum();
    // A token whose text is held back has no event of its own.
    ensure!(2 * n_tokens > n_clients * max_tokens, "{n_tokens} events for {n_clients} times {max_tokens} tokens");
    let from = answers.iter().filter_map(|times| times.first().copied()).fold(f64::MIN, f64::max);
    let to = answers.iter().filter_map(|times| times.last().copied()).fold(f64::MAX, f64::min);
    ensure!(from < to, "the answers are too short to overlap");
    let n_within = answers.iter().flatten().filter(|time| (from..to).contains(time)).count();
    Ok(Figures {
        n_tokens,
        cpu_us_per_token: spent_ns as f64 / 1e3 / n_tokens as f64,
        tokens_per_sec: n_within as f64 / (to - from),
    })
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
