//! The haiku run: a worker is started, asked for a haiku over HTTP, and judged.
//!
//! The prompt names a word that changes every minute and a nonce, so no answer can be prepared. The word stands in the
//! prompt, however, and a small model forgives much, so the haiku alone proves little: the same process must also give
//! the reference's greedy ids and log-probabilities, and the same binary serving a damaged copy of the model must fail
//! that comparison.
//!
//! Everything goes to `.test-results/haiku/<run_id>/` before any of it is judged: `verification.json` (verdicts and
//! figures), `sse_transcript.ndjson` (every request and event), `metrics_snapshot.json`, `test_report.md`, `worker.log`.

mod checks;
mod controls;
mod drive;
mod golden;
mod record;
mod report;
mod screen;
mod syllables;
mod words;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::harness::WorkerBinary;
use crate::harness::repository_root;

pub use checks::Check;
pub use golden::{Comparison, Gate, Gates};
pub use record::Record;

/// What to run, and on what.
#[derive(Debug, Clone)]
pub struct Options {
    /// The worker.
    pub worker: WorkerBinary,
    /// A GGUF file; without one, the built-in model.
    pub model: Option<PathBuf>,
    /// `cpu`, `cuda` or `auto`; without one, the worker's own default.
    pub device: Option<String>,
    /// A golden file of [`Self::model`]. The built-in model has its own.
    pub golden: Option<PathBuf>,
}

/// Runs it, shows it on standard output, and writes the artefacts.
///
/// The record says whether the run passed: see [`Record::passed`].
///
/// # Errors
/// When the artefacts cannot be written. A worker that fails in any way is no error: the record holds what went wrong.
pub async fn run(options: &Options) -> Result<Record> {
    let run_id = run_id();
    let folder = repository_root().join(".test-results/haiku").join(&run_id);
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut record = Record::new(run_id, folder);
    let screen = screen::Screen::new();
    screen.title(&record);
    if let Err(error) = drive::drive(options, &mut record, &screen).await {
        record.error = Some(format!("{error:#}"));
    }
    record.write()?;
    screen.verdict(&record);
    Ok(record)
}

/// The built-in model's folder in this checkout.
fn built_in(file: &str) -> PathBuf {
    repository_root().join("models/haiku").join(file)
}

/// A path as a reader types it: relative to the checkout where it lies inside.
fn display_path(path: &Path) -> String {
    path.strip_prefix(repository_root()).unwrap_or(path).display().to_string()
}

/// Sorts by time and is unlike that of a run started in the same second.
fn run_id() -> String {
    format!("{}-{}", chrono::Utc::now().format("%Y%m%dT%H%M%SZ"), alphanumeric(4).to_lowercase())
}

/// `n` random letters and digits.
fn alphanumeric(n: usize) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    (0..n).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
}
