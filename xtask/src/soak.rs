//! `cargo xtask soak`: builds the worker and the soak, and starts the soak.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::cargo::{self, Executables};

/// With the first round, two minutes.
const DEFAULT_SECONDS: u64 = 80;
const DEFAULT_CLIENTS: usize = 64;
const FAILURE: &str = "the soak failed";
/// The clients of each run in CI ask for the same.
const CI_SEED: u64 = 1;

/// Load a worker with requests of every kind for a while, and check that nothing is lost, doubled or held
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long the load lasts, after a first round of half of that
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SECONDS)]
    seconds: u64,
    /// Clients at a time
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CLIENTS)]
    clients: usize,
    /// Where the worker is to compute: cpu or cuda
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda"])]
    device: String,
    /// A worker that is built already
    #[arg(long, value_name = "FILE")]
    worker: Option<PathBuf>,
    /// A GGUF file of yours; the built-in haiku model when left out
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// What the clients ask for follows from it; drawn, and printed, when left out
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut build = cargo::cargo(["build", "--package", "worker-tests", "--bin", "soak"]);
    if args.worker.is_none() {
        build.args(["--package", "worker-orcd", "--bin", "worker-orcd"]);
        if args.device == "cuda" {
            build.args(["--features", "worker-orcd/cuda"]);
        }
    }
    let built = cargo::build(&mut build)?;
    let worker = args.worker.as_deref().map_or_else(|| built.get("worker-orcd"), Ok)?;
    cargo::succeed_or(FAILURE, &mut command(built.get("soak")?, worker, args))
}

/// The soak with its defaults, from programs built before.
pub(crate) fn run_built(built: &Executables) -> Result<()> {
    let args = Args {
        seconds: DEFAULT_SECONDS,
        clients: DEFAULT_CLIENTS,
        device: "cpu".into(),
        worker: None,
        model: None,
        seed: Some(CI_SEED),
    };
    cargo::succeed_or(FAILURE, &mut command(built.get("soak")?, built.get("worker-orcd")?, &args))
}

fn command(soak: &Path, worker: &Path, args: &Args) -> Command {
    let mut command = Command::new(soak);
    command.arg("--worker").arg(worker).args(["--device", &args.device]);
    command.args(["--seconds", &args.seconds.to_string(), "--clients", &args.clients.to_string()]);
    if let Some(model) = &args.model {
        command.arg("--model").arg(model);
    }
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    command
}
