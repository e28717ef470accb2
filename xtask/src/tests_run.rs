//! `cargo xtask test`: every test of the workspace, and the sum of it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo::{self, Executables};
use crate::{browser, clients};

/// Run every test of the workspace, the haiku run among them
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only tests whose names contain this
    filter: Option<String>,
    /// Run published client packages against a worker instead, in a Python environment of their own
    #[arg(long)]
    clients: bool,
    /// Drive the worker's page in headless Chromium instead: the one that CHROME names, or that is in PATH
    #[arg(long, conflicts_with = "clients")]
    browser: bool,
    /// With --browser: make the documentation's pictures of the page, and test nothing
    #[arg(long, requires = "browser", conflicts_with = "filter")]
    screenshots: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.clients {
        return clients::run(args.filter.as_deref());
    }
    if args.browser {
        return browser::run(args.filter.as_deref(), args.screenshots);
    }
    eprintln!("Building the workspace and its tests; the first time takes some minutes.");
    run_built(&build()?, args.filter.as_deref())
}

/// Builds all tests, and in the same go, so that they share every dependency, the programs that tests start.
pub(crate) fn build() -> Result<Executables> {
    cargo::build(&mut cargo::cargo(["build", "--workspace", "--lib", "--bins", "--tests"]))
}

/// Runs all tests, going on after a failure so that one run shows them all, and prints a last line with the totals.
pub(crate) fn run_built(built: &Executables, filter: Option<&str>) -> Result<()> {
    let mut command = cargo::cargo(["test", "--workspace", "--no-fail-fast"]);
    command.args(filter);
    alone(&mut command);
    // The same binary that was just built, rather than one that the haiku test builds by itself.
    command.env("WORKER_ORCD_BIN", built.get("worker-orcd")?);
    let (totals, succeeded) = watch(&mut command)?;
    println!("\n{totals}");
    if !succeeded || totals.failed > 0 {
        bail!("the tests failed");
    }
    if totals.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// Keeps from tests what their user's environment says to the worker and to HTTP clients, and has property tests try the same
/// cases each time: what fails here fails again. `PROPTEST_RNG_SEED` tries others.
pub(crate) fn alone(tests: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let is_settings =
            name.to_str().is_some_and(|name| name.starts_with("WORKER_ORCD_") && name != "WORKER_ORCD_BIN");
        if is_settings {
            tests.env_remove(name);
        }
    }
    // A proxy is not asked for a worker of this machine.
    for name in ["NO_PROXY", "no_proxy"] {
        let given = std::env::var(name).map(|names| names + ",").unwrap_or_default();
        tests.env(name, given + "127.0.0.1,localhost");
    }
    if std::env::var_os(SEED).is_none() {
        tests.env(SEED, "1");
    }
}

/// The variable that proptest takes its first seed from.
const SEED: &str = "PROPTEST_RNG_SEED";

/// What the test runner's closing lines add up to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Totals {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Totals {
    /// Adds a closing line: `test result: ok. 3 passed; 0 failed; 1 ignored; ...`. Other lines add nothing.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result: ") else { return };
        let mut words = counts.split([' ', ';', '.']).filter(|word| !word.is_empty()).peekable();
        while let Some(word) = words.next() {
            let (Ok(n), Some(what)) = (word.parse::<usize>(), words.peek()) else { continue };
            match *what {
                "passed" => self.passed += n,
                "failed" => self.failed += n,
                "ignored" => self.ignored += n,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.ignored > 0 { write!(f, ", {} ignored", self.ignored) } else { Ok(()) }
    }
}

/// Runs the command, passing its standard output on line by line.
fn watch(command: &mut Command) -> Result<(Totals, bool)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("running cargo test")?;
    let mut totals = Totals::default();
    let mut lines = BufReader::new(child.stdout.take().context("cargo's output")?);
    let mut line = Vec::new();
    // Bytes, not strings: what a test prints need not be UTF-8.
    while lines.read_until(b'\n', &mut line).context("reading cargo's output")? > 0 {
        std::io::stdout().write_all(&line).context("writing to standard output")?;
        totals.add(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok((totals, child.wait()?.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_the_closing_lines_of_all_test_programs() {
        let mut totals = Totals::default();
        totals.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.50s\n");
        totals.add("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s");
        totals.add("test counts::passed 99 passed ... ok");
        assert_eq!(totals, Totals { passed: 15, failed: 2, ignored: 1 });
        assert_eq!(totals.to_string(), "15 passed, 2 failed, 1 ignored");
    }
}
