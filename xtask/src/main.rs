//! The repository's own commands, in Rust so that they run wherever the worker builds: `cargo xtask --help`.

mod browser;
mod cargo;
mod ci;
mod clients;
mod cuda;
mod e2e_haiku;
mod golden;
mod layering;
mod make_random;
mod promtool;
mod python;
mod rust_source;
mod soak;
mod tests_run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The repository's own commands
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the worker, start it, ask it for a haiku over HTTP, and judge what it answers
    E2eHaiku(e2e_haiku::Args),
    /// Run every test of the workspace, the haiku run among them
    Test(tests_run::Args),
    /// Load a worker with requests of every kind for a while, and check that nothing is lost, doubled or held
    Soak(soak::Args),
    /// Everything that must hold before a change is merged, cheapest first
    Ci,
    /// Remake the golden files with the reference implementation, in a Python environment of its own
    Golden(golden::Args),
    /// The worker on NVIDIA GPUs: fetch the compiler, build, test, measure, make a bundle
    #[command(subcommand)]
    Cuda(cuda::Command),
    /// Write a GGUF file with random weights in the shape of Qwen2.5-0.5B, or smaller
    MakeRandom(make_random::Args),
    /// Build the worker for speed and run `worker-orcd bench` with the arguments given
    Bench {
        /// For `worker-orcd bench`; try --help
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::E2eHaiku(args) => e2e_haiku::run(&args),
        Command::Test(args) => tests_run::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Ci => ci::run(),
        Command::Golden(args) => golden::run(&args),
        Command::Cuda(command) => cuda::run(&command),
        Command::MakeRandom(args) => make_random::run(&args),
        Command::Bench { args } => bench(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &[String]) -> anyhow::Result<()> {
    let mut command = cargo::cargo(["run", "--release", "--package", "worker-orcd", "--", "bench"]);
    cargo::succeed(command.args(args))
}
