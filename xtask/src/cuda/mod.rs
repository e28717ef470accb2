//! `cargo xtask cuda`: everything around the feature `cuda`, from fetching a compiler to a folder for a GPU machine.
//!
//! None of it needs a GPU, but for running what was built.

mod build;
mod bundle;
mod setup;
mod test;
#[allow(dead_code, reason = "the build script of cuda-sys uses the rest")]
#[path = "../../../crates/cuda-sys/build/toolkit.rs"]
mod toolkit;

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::cargo::{self, repository_root, target_dir};

pub(crate) use build::compile_only;

/// What `cargo xtask cuda` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make sure that the kernels can be compiled here: find a toolkit, or fetch one into target/
    Setup,
    /// Build the worker with its kernels, and the program that tests them
    Build(build::Args),
    /// Run the tests that need a GPU; without one they say SKIPPED, and fail with WORKER_REQUIRE_GPU=1
    Test(test::Args),
    /// Build the worker for speed and run `worker-orcd bench --device cuda` with the arguments given
    Bench {
        /// For `worker-orcd bench`; try --help
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Make a folder that tests and measures everything on a GPU machine without Rust
    Bundle(bundle::Args),
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Setup => setup::run(),
        Command::Build(args) => build::run(args),
        Command::Test(args) => test::run(args),
        Command::Bench { args } => bench(args),
        Command::Bundle(args) => bundle::run(args),
    }
}

/// As for `cargo xtask ci`.
pub(crate) fn setup() -> Result<()> {
    setup::run()
}

fn bench(args: &[String]) -> Result<()> {
    let mut command =
        cargo::cargo(["run", "--release", "--package", "worker-orcd", "--features", "worker-orcd/cuda", "--", "bench"]);
    cargo::succeed(command.args(["--device", "cuda"]).args(args))
}

/// Where `cargo xtask cuda setup` may have put things; the build script of cuda-sys looks in the same places.
fn target_dirs() -> Vec<PathBuf> {
    vec![target_dir(), repository_root().join("target")]
}

/// The architectures that a command asks for, or else the environment.
fn architectures(asked: Option<&str>) -> String {
    asked.map_or_else(toolkit::architectures, toolkit::expanded)
}
