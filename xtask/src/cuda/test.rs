//! `cargo xtask cuda test`: what needs a GPU to say anything.

use std::process::Command;

use anyhow::Result;

use super::{architectures, build};
use crate::cargo::{cargo, shown, succeed};

/// Options of `cuda test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Architectures to compile for, such as 90a; as for `cuda build`
    #[arg(long, value_name = "LIST")]
    arch: Option<String>,
    /// Run only tests whose names contain this
    filter: Option<String>,
}

/// Features under which packages have tests for a GPU.
pub(super) const FEATURES: &str = "cuda-sys/cuda,cuda-sys/fault-injection,transformer/cuda,transformer/fault-injection";

/// Those of a worker whose GPU really fails.
pub(super) const WORKER_FEATURES: &str = "worker-orcd/cuda,worker-orcd/fault-injection";

pub(super) fn run(args: &Args) -> Result<()> {
    let architectures = architectures(args.arch.as_deref());
    let tests = || {
        let mut command = cargo(["test", "--package", "cuda-sys", "--package", "transformer", "--lib", "--tests"]);
        command.args(["--features", FEATURES]).env("WORKER_CUDA_ARCHS", &architectures);
        command
    };
    succeed(tests().arg("--no-run"))?;
    let mut ops = Command::new(build::op_tests(&architectures)?);
    ops.args(&args.filter);
    println!("$ {}", shown(&ops));
    succeed(&mut ops)?;
    // Not captured, so that a test that skips is seen to.
    let mut tests = tests();
    tests.args(&args.filter).args(["--", "--nocapture"]);
    // One worker at a time: they look at the GPU's free memory.
    let mut faults = cargo(["test", "--package", "worker-orcd", "--test", "process", "--features", WORKER_FEATURES]);
    faults.arg(args.filter.as_deref().unwrap_or("faults::")).args(["--", "--nocapture", "--test-threads=1"]);
    // Where a GPU has to be there, the tests of every executor are about it.
    let required = std::env::var("WORKER_REQUIRE_GPU").is_ok_and(|value| value == "1");
    let device =
        (required && std::env::var_os("WORKER_TEST_DEVICE").is_none()).then_some(("WORKER_TEST_DEVICE", "cuda"));
    for tests in [&mut tests, faults.env("WORKER_CUDA_ARCHS", &architectures)] {
        println!("$ {}", shown(tests));
        succeed(tests.envs(device))?;
    }
    Ok(())
}
