//! Load of every kind for a while, and afterwards the books: no job lost or doubled, nothing held, nothing grown.
//!
//! Clients ask for short and long answers on every route; a third of these are cancelled or left. Among the clients are
//! some that read a few bytes a second and some that send nothing but garbage (`raw.rs`). What a client asks for follows
//! from the run's seed. Each request has a label, sent as its `X-Correlation-Id`, so that every line of the worker's log
//! belongs to exactly one request of a client: what the clients saw (`ledger.rs`) is held against what the worker says it
//! did (`audit.rs`). Files and memory are compared with what they were after a first round of the same load (`held.rs`).
//!
//! Everything goes to `.test-results/soak/<run_id>/`: `report.json`, `report.md`, `worker.log`.

mod audit;
mod held;
mod jobs;
mod ledger;
mod load;
mod raw;
mod report;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::harness::{Launch, Worker, WorkerBinary, repository_root};
use held::Held;
use ledger::Ledger;
pub use report::{Check, Record};

/// More clients than run at a time, and more than run and wait together: some are refused.
const FLAGS: [&str; 8] = ["--max-seqs", "16", "--queue-limit", "24", "--kv-cache-mb", "4", "--log-format", "json"];
/// A full-size model's keys and values take more.
const FLAGS_FULL_SIZE: [&str; 8] =
    ["--max-seqs", "16", "--queue-limit", "24", "--kv-cache-mb", "64", "--log-format", "json"];
/// The first round takes this part of the load's time, and at least [`LEAST_WARM_UP`].
const WARM_UP_SHARE: f64 = 0.5;
/// Time enough for every kind of request to have come up, and for the allocator to have reached its level.
const LEAST_WARM_UP: Duration = Duration::from_secs(8);
/// How long the worker may take to leave.
const EXIT_LIMIT: Duration = Duration::from_secs(10);

/// What to run, and on what.
#[derive(Debug, Clone)]
pub struct Options {
    /// The worker.
    pub worker: WorkerBinary,
    /// `cpu` or `cuda`.
    pub device: String,
    /// A GGUF file; without one, the built-in model.
    pub model: Option<PathBuf>,
    /// How long the load lasts, after a first round of half of that.
    pub seconds: u64,
    /// Clients at a time.
    pub clients: usize,
    /// What they ask for follows from it.
    pub seed: u64,
}

/// Starts a worker, loads it, and writes what was found. Whether all holds: [`Record::passed`].
///
/// # Errors
/// When the artefacts cannot be written. A worker that fails in any way is no error: the record holds what went wrong.
pub async fn run(options: &Options) -> Result<Record> {
    ensure!(options.clients > 0, "--clients: expected at least 1");
    let run_id = format!("{}-{:04x}", chrono::Utc::now().format("%Y%m%dT%H%M%SZ"), rand::random::<u16>());
    let folder = repository_root().join(".test-results/soak").join(&run_id);
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut record = Record::new(run_id, folder, options);
    println!("{}", record.title());
    if let Err(error) = drive(options, &mut record).await {
        record.error = Some(format!("{error:#}"));
    }
    record.write()?;
    println!("{}", record.table());
    Ok(record)
}

async fn drive(options: &Options, record: &mut Record) -> Result<()> {
    let log = record.folder().join("worker.log");
    let flags = if options.model.is_some() { &FLAGS_FULL_SIZE } else { &FLAGS };
    let (model, device) = (options.model.as_deref(), Some(options.device.as_str()));
    let launch = Launch { worker_id: "soak", model, device, flags, log: &log };
    let worker = Worker::start(&options.worker, launch).await?;
    let wanted = if options.device == "cuda" { "bespoke-cuda" } else { "cpu" };
    ensure!(worker.callback()["worker_type"] == wanted, "not a {wanted} worker: {}", worker.callback());

    let mut ledger = Ledger::default();
    let alone = load::answers_alone(worker.uri(), &mut ledger).await?;
    let load = Duration::from_secs(options.seconds);
    let warm_up = load.mul_f64(WARM_UP_SHARE).max(LEAST_WARM_UP);
    let round =
        |name, time| load::Round { base: worker.uri(), name, options, alone: &alone, end: Instant::now() + time };
    round("warm-up", warm_up).run(&mut ledger).await?;
    let before = Held::settled(&worker).await?;
    let n_before = ledger.n_requests();
    ledger.forget_gaps();
    let begun = Instant::now();
    round("load", load).run(&mut ledger).await?;
    record.loaded_for_seconds = begun.elapsed().as_secs_f64();
    let after = Held::settled(&worker).await?;
    record.n_requests = ledger.n_requests() - n_before;
    record.inter_token_ms = ledger.gaps();
    record.outcomes = ledger.outcomes();

    let exit = worker.shut_down(EXIT_LIMIT).await?;
    record.checks = audit::of_answers(&ledger);
    record.checks.extend(audit::against_the_log(&ledger, &read_log(&log)?, &after.metrics));
    record.checks.extend(held::compare(&before, &after));
    record.checks.push(Check::new("the worker ends when asked to", exit.success(), exit.to_string()));
    Ok(())
}

fn read_log(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
