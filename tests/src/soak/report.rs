//! What a run found, as a table and as files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use super::Options;
use super::ledger::Gaps;

/// A claim, and what was found.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What is to hold.
    pub claim: &'static str,
    /// Whether it does.
    pub passed: bool,
    /// The figures.
    pub found: String,
}

impl Check {
    pub(super) fn new(claim: &'static str, passed: bool, found: impl Into<String>) -> Self {
        Self { claim, passed, found: found.into() }
    }
}

/// Everything that a run found.
#[derive(Debug, Default, Serialize)]
pub struct Record {
    /// Names the run and its folder.
    pub run_id: String,
    /// With it, the clients ask for the same again.
    pub seed: u64,
    /// Clients at a time.
    pub clients: usize,
    /// `cpu` or `cuda`.
    pub device: String,
    /// The model file, or `built-in`.
    pub model: String,
    /// How long the load lasted.
    pub loaded_for_seconds: f64,
    /// Requests of the load, the first round's left out.
    pub n_requests: usize,
    /// How all requests ended, the first round's among them.
    pub outcomes: BTreeMap<String, usize>,
    /// Between the tokens of whole streamed answers under load.
    pub inter_token_ms: Gaps,
    /// The verdicts.
    pub checks: Vec<Check>,
    /// What kept the run from going on, if anything did.
    pub error: Option<String>,
    #[serde(skip)]
    folder: PathBuf,
}

impl Record {
    pub(super) fn new(run_id: String, folder: PathBuf, options: &Options) -> Self {
        let model = options.model.as_ref().map_or_else(|| "built-in".to_owned(), |path| path.display().to_string());
        let (seed, clients, device) = (options.seed, options.clients, options.device.clone());
        Self { run_id, seed, clients, device, model, folder, ..Self::default() }
    }

    /// Where the artefacts are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the run got to its end and every check holds.
    pub fn passed(&self) -> bool {
        self.error.is_none() && !self.checks.is_empty() && self.checks.iter().all(|check| check.passed)
    }

    pub(super) fn title(&self) -> String {
        let Self { run_id, seed, clients, device, model, .. } = self;
        format!("soak {run_id}: --seed {seed}, {clients} clients, {device}, model {model}")
    }

    /// The run for a reader.
    pub fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_table(&mut text);
        text
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let verdict = if self.passed() { "passed" } else { "FAILED" };
        writeln!(out, "# {}: {verdict}\n", self.title())?;
        let gaps = &self.inter_token_ms;
        writeln!(
            out,
            "{} requests in {:.1} s. Between two tokens: p50 {:.2} ms, p99 {:.2} ms, at most {:.2} ms ({} gaps).\n",
            self.n_requests, self.loaded_for_seconds, gaps.p50, gaps.p99, gaps.max, gaps.n
        )?;
        writeln!(out, "| requests, first round included | |\n|---|---:|")?;
        for (outcome, n) in &self.outcomes {
            writeln!(out, "| {outcome} | {n} |")?;
        }
        writeln!(out, "\n| | claim | found |\n|---|---|---|")?;
        for check in &self.checks {
            let mark = if check.passed { "ok" } else { "**FAILED**" };
            writeln!(out, "| {mark} | {} | {} |", check.claim, check.found.replace('|', "\\|").replace('\n', "\\n"))?;
        }
        if let Some(error) = &self.error {
            writeln!(out, "\nThe run was cut short: {error}")?;
        }
        Ok(())
    }

    pub(super) fn write(&self) -> Result<()> {
        let mut json = serde_json::to_value(self)?;
        json["passed"] = json!(self.passed());
        self.file("report.json", &(serde_json::to_string_pretty(&json)? + "\n"))?;
        self.file("report.md", &self.table())
    }

    fn file(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}
