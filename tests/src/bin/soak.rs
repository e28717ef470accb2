//! The soak as a program: what `cargo xtask soak` starts once everything is built.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use worker_tests::harness::WorkerBinary;
use worker_tests::soak::{self, Options};

/// Loads a worker with requests of every kind, and checks afterwards that nothing is lost or held.
#[derive(Debug, Parser)]
struct Args {
    /// The worker binary; built from this checkout when left out
    #[arg(long, value_name = "FILE")]
    worker: Option<PathBuf>,
    /// A GGUF file; the built-in model when left out
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// cpu or cuda
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda"])]
    device: String,
    /// How long the load lasts, after a first round of half of that
    #[arg(long, default_value_t = 80)]
    seconds: u64,
    /// Clients at a time
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// What the clients ask for follows from it; drawn when left out
    #[arg(long)]
    seed: Option<u64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let worker = WorkerBinary::given_or_built(args.worker)?;
    let seed = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let Args { model, device, seconds, clients, .. } = args;
    let record = soak::run(&Options { worker, model, device, seconds, clients, seed }).await?;
    println!("written to {}", record.folder().display());
    Ok(if record.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
