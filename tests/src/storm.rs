//! Many jobs at a time, half of them cancelled or abandoned: every whole answer is the one given alone, and afterwards the
//! worker holds no more than before.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::harness::{Answer, Client, Launch, Metrics, Worker, WorkerBinary};

/// Jobs in all.
const N_JOBS: usize = 100;
/// Clients at a time: more than the worker answers at a time, so that some jobs are broken off while they wait.
const N_CLIENTS: usize = 24;
/// Different requests; each is asked many times.
const N_REQUESTS: usize = 5;
/// Events after which a job is broken off: at once, while its first tokens come, later.
const BREAK_AFTER: [usize; 3] = [1, 2, 8];
/// How long the worker may take to let go of the last job: one step, and the engine's next sample of its memory.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
/// Memory of the process, apart from the model's, may grow by this much: buffers of connections, and what an allocator
/// keeps.
const MAX_GROWTH_BYTES: i64 = 64 << 20;
/// Few sequences and little room for keys and values, so that jobs have to wait for both.
const FLAGS: [&str; 4] = ["--max-seqs", "8", "--kv-cache-mb", "2"];
/// A full-size model's keys and values take more.
const FLAGS_FULL_SIZE: [&str; 4] = ["--max-seqs", "8", "--kv-cache-mb", "32"];

/// What to run, and on what.
#[derive(Debug, Clone)]
pub struct Options {
    /// The worker.
    pub worker: WorkerBinary,
    /// `cpu` or `cuda`.
    pub device: String,
    /// A GGUF file; without one, the built-in model.
    pub model: Option<PathBuf>,
}

/// How the jobs ended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Asked to the end, and equal to the answer given alone.
    pub n_whole: usize,
    /// Cancelled in time.
    pub n_cancelled: usize,
    /// Had ended before their cancellation came.
    pub n_too_late: usize,
    /// Left by their client.
    pub n_abandoned: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n_whole, n_cancelled, n_too_late, n_abandoned } = self;
        write!(f, "{n_whole} whole, {n_cancelled} cancelled ({n_too_late} too late), {n_abandoned} abandoned")
    }
}

/// What a worker holds while nothing is asked of it.
#[derive(Debug, Clone, PartialEq)]
struct Held {
    /// Weights, KV pool and scratch memory.
    model_bytes: Option<f64>,
    vram_bytes: Option<f64>,
    n_files: Option<usize>,
}

/// Starts a worker, storms it, and compares what it holds before and after.
///
/// # Errors
/// Whatever does not hold.
pub async fn run(options: &Options) -> Result<Report> {
    let folder = tempfile::tempdir().context("making a folder for the log")?;
    let log = folder.path().join("worker.log");
    let flags = if options.model.is_some() { &FLAGS_FULL_SIZE } else { &FLAGS };
    let (model, device) = (options.model.as_deref(), Some(options.device.as_str()));
    let launch = Launch { worker_id: "storm", model, device, flags, log: &log };
    let worker = Worker::start(&options.worker, launch).await?;
    let wanted = if options.device == "cuda" { "bespoke-cuda" } else { "cpu" };
    ensure!(worker.callback()["worker_type"] == wanted, "not a {wanted} worker: {}", worker.callback());
    let outcome = storm_and_compare(&worker).await;
    let kept = std::fs::read_to_string(&log).unwrap_or_default();
    let report = outcome.with_context(|| format!("the worker's log:\n{kept}"))?;
    let exit = worker.shut_down(Duration::from_secs(10)).await?;
    ensure!(exit.success(), "the worker ended with {exit}");
    Ok(report)
}

async fn storm_and_compare(worker: &Worker) -> Result<Report> {
    let mut alone = Vec::new();
    for n in 0..N_REQUESTS {
        let answer = worker.client().execute(request(n, &format!("alone-{n}")), |_| {}).await?;
        ensure!(answer.first("end").is_some(), "job alone-{n}: {:?}", answer.events.last());
        alone.push(answer.ids());
    }
    // Once before what is compared: connections and threads that are made once are made then.
    storm(worker, &alone).await?;
    let before = settled(worker).await?;
    let resident_before = resident_bytes(worker);
    let report = storm(worker, &alone).await?;
    let after = settled(worker).await?;
    ensure!(before == after, "held before: {before:?}, held after: {after:?}");
    if let (Some(before), Some(after)) = (resident_before, resident_bytes(worker)) {
        ensure!(after - before < MAX_GROWTH_BYTES, "the process grew from {before} to {after} bytes");
    }
    Ok(report)
}

async fn storm(worker: &Worker, alone: &[Vec<u32>]) -> Result<Report> {
    // Its connections end with it.
    let client = Client::new(worker.uri())?;
    let mut jobs = stream::iter(0..N_JOBS).map(|i| job(&client, i, alone)).buffer_unordered(N_CLIENTS);
    let mut report = Report::default();
    while let Some(end) = jobs.next().await {
        *match end? {
            End::Whole => &mut report.n_whole,
            End::Cancelled => &mut report.n_cancelled,
            End::TooLate => &mut report.n_too_late,
            End::Abandoned => &mut report.n_abandoned,
        } += 1;
    }
    ensure!(report.n_whole == N_JOBS / 2, "{report}");
    ensure!(report.n_cancelled >= N_JOBS / 20, "hardly a job was cancelled in time: {report}");
    Ok(report)
}

enum End {
    Whole,
    Cancelled,
    TooLate,
    Abandoned,
}

async fn job(client: &Client, i: usize, alone: &[Vec<u32>]) -> Result<End> {
    let id = format!("storm-{i}");
    let n = i % N_REQUESTS;
    let (n_events, seen) = watch::channel(0usize);
    // Moved, so that nobody waits for events of an answer that has ended.
    let count = move |_: &_| n_events.send_modify(|n| *n += 1);
    let answered = client.execute(request(n, &id), count);
    let enough = after(seen, BREAK_AFTER[i / 4 % BREAK_AFTER.len()]);
    match i % 4 {
        0 | 2 => {
            let answer = answered.await?;
            ensure!(answer.first("end").is_some(), "job {id}: {}", last(&answer));
            ensure!(answer.ids() == alone[n], "job {id}: answered {:?}, alone {:?}", answer.ids(), alone[n]);
            Ok(End::Whole)
        }
        1 => {
            let cancelled = async {
                enough.await;
                client.cancel(&id).await
            };
            let (answer, cancelled) = tokio::join!(answered, cancelled);
            cancelled?;
            let answer = answer?;
            match (answer.first("error"), answer.first("end")) {
                (Some(error), None) if error["code"] == "CANCELLED" => Ok(End::Cancelled),
                (None, Some(_)) => Ok(End::TooLate),
                _ => bail!("job {id}: {}", last(&answer)),
            }
        }
        _ => {
            tokio::select! {
                answer = answered => drop(answer?),
                () = enough => {}
            }
            Ok(End::Abandoned)
        }
    }
}

/// Returns once so many events have come, or no more can come.
async fn after(mut seen: watch::Receiver<usize>, n_events: usize) {
    let _ = seen.wait_for(|n| *n >= n_events).await;
}

fn request(n: usize, job_id: &str) -> Value {
    let prompt = "Write a haiku about GPU computing that includes the word \"forty-two\". ".repeat(1 + n % 3);
    json!({"job_id": job_id, "prompt": prompt, "max_tokens": 24 + 24 * n, "temperature": 1.5, "seed": n})
}

fn last(answer: &Answer) -> String {
    let event = answer.events.last().map(|event| event.data.to_string());
    format!("{} {}", event.unwrap_or_default(), answer.broken.as_deref().unwrap_or_default())
}

/// What the worker holds once it has let go of every job.
async fn settled(worker: &Worker) -> Result<Held> {
    let give_up = tokio::time::Instant::now() + SETTLE_LIMIT;
    let mut held = None;
    loop {
        let metrics = worker.client().metrics().await?;
        let busy = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
            .into_iter()
            .filter(|name| metrics.total(name) != Some(0.0))
            .collect::<Vec<_>>();
        // Connections take a moment to close: the same figures twice.
        let now = Held::of(worker, &metrics);
        if busy.is_empty() && held.as_ref() == Some(&now) {
            return Ok(now);
        }
        ensure!(tokio::time::Instant::now() < give_up, "not 0 after {SETTLE_LIMIT:?}: {busy:?}; {now:?}");
        held = Some(now);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

impl Held {
    fn of(worker: &Worker, metrics: &Metrics) -> Self {
        let files = worker.process_id().and_then(|id| std::fs::read_dir(format!("/proc/{id}/fd")).ok());
        Self {
            model_bytes: metrics.total("worker_memory_bytes"),
            vram_bytes: metrics.total("worker_vram_bytes"),
            n_files: files.map(Iterator::count),
        }
    }
}

/// `VmRSS`, where the system tells.
fn resident_bytes(worker: &Worker) -> Option<i64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.process_id()?)).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<i64>().ok().map(|kib| kib << 10)
}
