//! What a run found, and its artefacts.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::checks::Check;
use super::golden::{Comparison, Gate};
use super::report;
use crate::harness::{Answer, Metrics};

/// Everything that a run found. Filled as the run goes on, so that a run cut short still has a record.
#[derive(Debug, Default, Serialize)]
pub struct Record {
    /// Names the run and its folder.
    pub run_id: String,
    /// UTC.
    pub started_at: String,
    /// The worker binary.
    pub worker: String,
    /// The model file, or `built-in`.
    pub model: String,
    /// From start to ready callback.
    pub ready_ms: Option<f64>,
    /// The body of the ready callback.
    pub callback: Value,
    /// The body of `GET /health` once ready.
    pub health: Value,
    /// The word that the haiku must hold.
    pub minute_word: String,
    /// As sent, chat template applied.
    pub prompt: String,
    /// The answer's text.
    pub haiku: Option<String>,
    /// The readings of its lines; no reading where a word is not in the table. Reported, not asserted.
    pub syllables: Vec<Vec<u32>>,
    /// Whether the lines read as 5-7-5. Reported, not asserted.
    pub is_5_7_5: Option<bool>,
    /// The comparison with the golden file, and those of the damaged copies.
    pub comparisons: Vec<GoldenRecord>,
    /// The verdicts, in the order of the run.
    pub checks: Vec<Check>,
    /// What kept the run from going on, if anything did.
    pub error: Option<String>,
    /// What was sent and received, by name of the exchange.
    #[serde(skip)]
    pub exchanges: Vec<(String, Answer)>,
    /// Before and after the haiku.
    #[serde(skip)]
    pub metrics: Option<(Metrics, Metrics)>,
    #[serde(skip)]
    folder: PathBuf,
}

/// One comparison with a golden file.
#[derive(Debug, Serialize)]
pub struct GoldenRecord {
    /// What was compared: the model as it is, or a damage.
    pub of: String,
    /// Whether the gates are to hold, or one of them is to fail.
    pub must_pass: bool,
    /// Measures and limits.
    pub gates: Vec<Gate>,
    /// All figures.
    pub comparison: Comparison,
}

impl Record {
    pub(super) fn new(run_id: String, folder: PathBuf) -> Self {
        let started_at = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        Self { run_id, started_at, folder, ..Self::default() }
    }

    /// Where the artefacts are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the run got to its end and every check holds.
    pub fn passed(&self) -> bool {
        self.error.is_none() && !self.checks.is_empty() && self.checks.iter().all(|check| check.passed)
    }

    /// What is wrong, a line each; empty when the run passed.
    pub fn failures(&self) -> Vec<String> {
        let checks = self.checks.iter().filter(|check| !check.passed);
        let checks = checks.map(|check| format!("{}: {}", check.claim, check.found));
        checks.chain(self.error.clone()).collect()
    }

    /// Writes all artefacts but `worker.log`, which the worker has written itself.
    pub(super) fn write(&self) -> Result<()> {
        let mut verification = serde_json::to_value(self)?;
        verification["passed"] = json!(self.passed());
        self.file("verification.json", &pretty(&verification)?)?;
        self.file("sse_transcript.ndjson", &self.transcript()?)?;
        let (before, after) = self.metrics.clone().unwrap_or_default();
        let delta = after.since(&before);
        self.file("metrics_snapshot.json", &pretty(&json!({"before": before, "after": after, "delta": delta}))?)?;
        self.file("test_report.md", &report::markdown(self))
    }

    fn file(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// A line for each request, then one for each of its events.
    fn transcript(&self) -> Result<String> {
        let mut lines = String::new();
        for (exchange, answer) in &self.exchanges {
            writeln!(lines, "{}", json!({"exchange": exchange, "status": answer.status, "request": answer.request}))?;
            for event in &answer.events {
                let line =
                    json!({"exchange": exchange, "at_ms": event.at_ms, "event": event.event, "data": event.data});
                writeln!(lines, "{line}")?;
            }
            if let Some(broken) = &answer.broken {
                writeln!(lines, "{}", json!({"exchange": exchange, "broken": broken}))?;
            }
        }
        Ok(lines)
    }
}

fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}
