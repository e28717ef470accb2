//! `cargo xtask cuda build`: the worker with its kernels, and the program that tests them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{architectures, target_dirs, toolkit};
use crate::cargo::{self, Executables, cargo, shown, succeed, target_dir};

/// Options of `cuda build`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Architectures to compile for, such as 90a or 80-virtual,90a; else WORKER_CUDA_ARCHS, else PTX for 80 and code for 90a
    #[arg(long, value_name = "LIST")]
    arch: Option<String>,
    /// Build the worker for speed
    #[arg(long)]
    release: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let architectures = architectures(args.arch.as_deref());
    let worker = worker(&architectures, args.release)?;
    let op_tests = op_tests(&architectures)?;
    println!("{}\n{}", worker.get("worker-orcd")?.display(), op_tests.display());
    Ok(())
}

/// The worker, with its kernels for these architectures.
pub(super) fn worker(architectures: &str, release: bool) -> Result<Executables> {
    let mut command = cargo(["build", "--package", "worker-orcd", "--bins", "--features", "worker-orcd/cuda"]);
    command.env("WORKER_CUDA_ARCHS", architectures);
    if release {
        command.arg("--release");
    }
    cargo::build(&mut command)
}

/// The program that tests the kernels, once cargo has built them for these architectures.
pub(super) fn op_tests(architectures: &str) -> Result<PathBuf> {
    let build = toolkit::kernels(&target_dir(), architectures).join("build");
    let cmake = toolkit::cmake(&target_dirs()).context("there is no CMake; see cargo xtask cuda setup")?;
    let mut command = Command::new(cmake);
    command.arg("--build").arg(&build).args(["--parallel", "--target", "op-tests"]);
    // The build's own messages go to standard error, as cargo's do.
    let output = command.stderr(std::process::Stdio::inherit()).output().context("running cmake")?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stdout));
        anyhow::bail!("building the kernels' tests failed ({})", output.status);
    }
    Ok(build.join("op-tests"))
}

/// For `cargo xtask ci`: every kernel and its test for one architecture, the code around them under clippy, and the tests
/// that need no GPU.
pub(crate) fn compile_only() -> Result<()> {
    const ARCHITECTURES: &str = "90a-real";
    let features = format!("{},{}", super::test::FEATURES, super::test::WORKER_FEATURES);
    let packages = ["--package", "cuda-sys", "--package", "transformer", "--package", "worker-orcd"];
    let announced = |command: &mut Command| {
        println!("$ {}", shown(command));
        succeed(command.env("WORKER_CUDA_ARCHS", ARCHITECTURES))
    };
    let mut clippy = cargo(["clippy", "--all-targets", "--features", &features]);
    announced(clippy.args(packages).args(["--", "--deny", "warnings"]))?;
    let mut doc = cargo(["doc", "--no-deps", "--quiet", "--features", &features]);
    announced(doc.args(packages).env("RUSTDOCFLAGS", "--deny warnings"))?;
    let mut tests = cargo(["test", "--package", "cuda-sys", "--package", "transformer", "--lib", "--test", "contract"]);
    tests.args(["--test", "gpu", "--test", "faults", "--test", "poison"]);
    announced(tests.args(["--features", super::test::FEATURES]))?;
    let op_tests = op_tests(ARCHITECTURES)?;
    announced(&mut Command::new(op_tests))
}
