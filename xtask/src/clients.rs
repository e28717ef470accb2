//! `cargo xtask test --clients`: published client packages, unmodified, against a running worker, and what others read of
//! its metrics.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cargo::{self, Executables, repository_root};
use crate::{browser, promtool, python};

/// The tests, in Python since that is what the clients are written in.
const SCRIPTS: &str = "tests/clients";

/// Builds the worker and runs the clients whose tests' names contain `filter`.
pub(crate) fn run(filter: Option<&str>) -> Result<()> {
    let mut build = cargo::cargo(["build", "--package", "worker-orcd", "--bin", "worker-orcd"]);
    run_built(&cargo::build(&mut build)?, filter)
}

/// Runs them against the worker that was built.
pub(crate) fn run_built(built: &Executables, filter: Option<&str>) -> Result<()> {
    let scripts = repository_root().join(SCRIPTS);
    let python = environment(&scripts)?;
    let mut tests = python::unittest(&python, &scripts, filter);
    tests.env("WORKER_SLOW_MODEL", browser::slow_model()?);
    tests.env("WORKER_ORCD_BIN", built.get("worker-orcd")?);
    match promtool::find() {
        Ok(promtool) => drop(tests.env("PROMTOOL", promtool)),
        Err(error) => eprintln!("promtool cannot be had, and its test is skipped: {error:#}"),
    }
    cargo::succeed(&mut tests).context("a client does not get what it expects")
}

fn environment(scripts: &Path) -> Result<std::path::PathBuf> {
    python::environment("clients-venv", &scripts.join("requirements.txt"))
        .with_context(|| format!("{SCRIPTS}: the clients need Python 3 and, once, a package index"))
}
