//! `cargo xtask e2e-haiku`: builds the worker and the haiku run, and starts the run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::cargo::{self, Executables};

const FAILURE: &str = "the haiku run failed";

/// Build the worker, start it, ask it for a haiku over HTTP, and judge what it answers
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A GGUF file of yours; the built-in haiku model when left out
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Where the worker is to compute: cpu, cuda or auto
    #[arg(long, value_parser = ["cpu", "cuda", "auto"])]
    device: Option<String>,
    /// A golden file of your model, in the form of models/haiku/golden_logprobs.json
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Build for speed; the first build takes longer
    #[arg(long)]
    release: bool,
    /// A worker that is built already; nothing of it is compiled then
    #[arg(long, value_name = "FILE", conflicts_with = "release")]
    worker: Option<PathBuf>,
    /// The program of the run, built already: with --worker, cargo is not needed at all
    #[arg(long, value_name = "FILE", requires = "worker")]
    runner: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut command = match (&args.worker, &args.runner) {
        (Some(worker), Some(runner)) => haiku(runner, worker, args),
        (Some(worker), None) => {
            let built = build(&mut cargo::cargo(["build", "--package", "worker-tests", "--bins"]))?;
            haiku(built.get("haiku")?, worker, args)
        }
        (None, _) => {
            let built = build(&mut both(args)?)?;
            haiku(built.get("haiku")?, built.get("worker-orcd")?, args)
        }
    };
    cargo::succeed_or(FAILURE, &mut command)
}

/// The haiku run with its defaults, from programs built before.
pub(crate) fn run_built(built: &Executables) -> Result<()> {
    let args = Args { model: None, device: None, golden: None, release: false, worker: None, runner: None };
    cargo::succeed_or(FAILURE, &mut haiku(built.get("haiku")?, built.get("worker-orcd")?, &args))
}

/// Builds worker and run.
fn both(args: &Args) -> Result<Command> {
    let mut command = cargo::cargo(["build", "--package", "worker-orcd", "--package", "worker-tests", "--bins"]);
    if args.release {
        command.arg("--release");
    }
    if args.device.as_deref() == Some("cuda") {
        require_cuda_feature()?;
        command.args(["--features", "worker-orcd/cuda"]);
    }
    Ok(command)
}

fn build(command: &mut Command) -> Result<Executables> {
    eprintln!("Building; the first time takes a few minutes.");
    let built = cargo::build(command)?;
    eprintln!();
    Ok(built)
}

fn haiku(runner: &Path, worker: &Path, args: &Args) -> Command {
    let mut command = Command::new(runner);
    command.arg("--worker").arg(worker);
    let files = [("--model", args.model.as_deref()), ("--golden", args.golden.as_deref())];
    let device = ("--device", args.device.as_deref().map(Path::new));
    for (flag, value) in files.into_iter().chain([device]) {
        if let Some(value) = value {
            command.arg(flag).arg(value);
        }
    }
    command
}

fn require_cuda_feature() -> Result<()> {
    let metadata = cargo::metadata()?;
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let worker = packages.iter().find(|package| package["name"] == "worker-orcd");
    if worker.is_none_or(|package| package["features"]["cuda"].is_null()) {
        bail!("--device cuda: this checkout has no CUDA build yet (worker-orcd has no feature \"cuda\")");
    }
    Ok(())
}
