//! The haiku run as a program: what `cargo xtask e2e-haiku` starts once everything is built.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use worker_tests::haiku::{self, Options};
use worker_tests::harness::WorkerBinary;

/// Starts a worker, asks it for a haiku, and judges it.
#[derive(Debug, Parser)]
struct Args {
    /// The worker binary; built from this checkout when left out
    #[arg(long, value_name = "FILE")]
    worker: Option<PathBuf>,
    /// A GGUF file; the built-in model when left out
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// cpu, cuda or auto
    #[arg(long)]
    device: Option<String>,
    /// A golden file of the model
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let worker = WorkerBinary::given_or_built(args.worker)?;
    let options = Options { worker, model: args.model, device: args.device, golden: args.golden };
    let record = haiku::run(&options).await?;
    Ok(if record.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
