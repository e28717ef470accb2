//! `cargo xtask cuda bundle`: a folder that tests and measures everything on a GPU machine without Rust.
//!
//! It holds stripped programs, the golden files and one script, laid out as in the checkout, so that tests find their
//! data below the folder that `WORKER_TEST_ROOT` names. The programs are packed, since most hold the same code. The
//! built-in model is there once: as a file, which the tests need, and therefore not in the worker.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{architectures, build};
use crate::cargo::{self, Kind, cargo, repository_root, succeed, target_dir};

/// Options of `cuda bundle`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder to make; what is in it goes
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Architectures to compile for
    #[arg(long, value_name = "LIST", default_value = "90a")]
    arch: String,
}

/// It is carried to machines by whatever there is; a mail or a slow line must do.
const MAX_BYTES: u64 = 40_000_000;

/// Data of the checkout that the programs read, and the scripts of the full-size check.
const DATA: [&str; 9] = [
    "crates/transformer/tests/correctness/snapshots",
    "crates/transformer/golden/data",
    "crates/transformer/golden/full_size.py",
    "crates/transformer/golden/gguf_file.py",
    "crates/transformer/golden/reference.py",
    "models/haiku/haiku-qwen2-5.8m-f16.gguf",
    "models/haiku/golden.json",
    "models/haiku/golden_logprobs.json",
    "models/haiku/golden_minutes.json",
];

const SCRIPT: &str = include_str!("bundle_run.sh");

/// The programs of the bundle, unpacked by its script.
const PACKED: &str = "programs.tar.xz";

/// How they are packed: quickly, and with a memory as long as all of them, since they share most of their code.
const XZ_OPTIONS: &str = "-T1 --lzma2=preset=2,dict=64MiB";

/// Where programs wait to be packed.
const FOLDERS: [&str; 2] = ["bin", "tests"];

pub(super) fn run(args: &Args) -> Result<()> {
    let architectures = architectures(Some(&args.arch));
    let out = args.out.clone().unwrap_or_else(|| target_dir().join("cuda-bundle"));
    if out.exists() {
        ensure!(out.join("run.sh").exists(), "{} is there and is no bundle", out.display());
        std::fs::remove_dir_all(&out).with_context(|| format!("removing {}", out.display()))?;
    }
    for folder in FOLDERS {
        std::fs::create_dir_all(out.join(folder)).with_context(|| format!("creating {}", out.display()))?;
    }
    programs(&architectures, &out)?;
    tests(&architectures, &out)?;
    strip(&build::op_tests(&architectures)?, &out.join("bin/op-tests"))?;
    pack(&out)?;
    for path in DATA {
        copy(&repository_root().join(path), &out.join(path))?;
    }
    write_script(&out.join("run.sh"))?;
    std::fs::write(out.join("bundle.txt"), description(&architectures))?;
    let n_bytes = n_bytes(&out)?;
    println!("{}: {:.1} MB, kernels for {architectures}", out.display(), n_bytes as f64 / 1e6);
    println!("there: bash run.sh [STEP...]; its head lists the steps");
    ensure!(n_bytes < MAX_BYTES, "the bundle has {n_bytes} bytes; fewer than {MAX_BYTES} are wanted");
    Ok(())
}

/// Everything that is started by hand or measures, built for speed.
fn programs(architectures: &str, out: &Path) -> Result<()> {
    let mut command = cargo(["build", "--release", "--bins", "--example", "compare_logits", "--no-default-features"]);
    command.args(["--features", "worker-orcd/cuda", "--package", "worker-orcd", "--package", "transformer"]);
    command.args(["--package", "worker-tests", "--package", "xtask"]);
    let built = cargo::build(command.env("WORKER_CUDA_ARCHS", architectures))?;
    built.iter().try_for_each(|program| strip(&program.path, &out.join("bin").join(&program.name)))
}

/// Tests that say something on a GPU, in cargo's usual profile, with its checks of arithmetic; and a worker whose GPU can be made
/// to fail.
fn tests(architectures: &str, out: &Path) -> Result<()> {
    let mut command = cargo(["build", "--tests", "--package", "cuda-sys", "--package", "transformer"]);
    command.args(["--package", "worker-orcd", "--package", "worker-tests", "--no-default-features", "--features"]);
    command.arg(format!("{},{}", super::test::FEATURES, super::test::WORKER_FEATURES));
    let built = cargo::build(command.env("WORKER_CUDA_ARCHS", architectures))?;
    strip(built.get("worker-orcd")?, &out.join("bin/worker-orcd-faults"))?;
    for test in built.iter().filter(|built| built.kind == Kind::Test && is_gpu_test(&built.package, &built.name)) {
        strip(&test.path, &out.join("tests").join(format!("{}.{}", test.package, test.name)))?;
    }
    Ok(())
}

/// `correctness` holds every executor to the same goldens, `transformer` are that crate's unit tests, and `process` and `storm` are
/// given the worker and the device by their environment.
fn is_gpu_test(package: &str, name: &str) -> bool {
    match package {
        "cuda-sys" => true,
        "transformer" => {
            ["correctness", "transformer"].contains(&name) || name.starts_with("cuda") || name.starts_with("gpu")
        }
        _ => ["process", "storm"].contains(&name),
    }
}

fn pack(out: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    succeed(tar.arg("-C").arg(out).arg("-cJf").arg(out.join(PACKED)).args(FOLDERS).env("XZ_OPT", XZ_OPTIONS))?;
    FOLDERS.iter().try_for_each(|folder| std::fs::remove_dir_all(out.join(folder)))?;
    Ok(())
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    succeed(Command::new("strip").arg("--strip-all").arg("-o").arg(to).arg(from))
}

/// Copies a file, or all files of a folder. The notes of a folder stay behind.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        let entries = std::fs::read_dir(from).with_context(|| format!("reading {}", from.display()))?;
        return entries.into_iter().try_for_each(|entry| {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))
        });
    }
    let folder = to.parent().context("a file lies in a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    std::fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}

fn write_script(path: &Path) -> Result<()> {
    std::fs::write(path, SCRIPT).with_context(|| format!("writing {}", path.display()))?;
    succeed(Command::new("chmod").arg("+x").arg(path))
}

/// Which sources these programs are.
fn description(architectures: &str) -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(repository_root()).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let changed = git(&["status", "--porcelain"]).is_some_and(|status| !status.is_empty());
    let changes = if changed { ", with changes since" } else { "" };
    format!("commit {commit}{changes}\nkernels for {architectures}\n")
}

fn n_bytes(path: &Path) -> Result<u64> {
    if !path.is_dir() {
        return Ok(path.metadata()?.len());
    }
    std::fs::read_dir(path)?.map(|entry| n_bytes(&entry?.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_tests_that_say_something_on_a_gpu() {
        assert!(is_gpu_test("cuda-sys", "gpu") && is_gpu_test("cuda-sys", "contract"));
        assert!(is_gpu_test("transformer", "correctness") && is_gpu_test("transformer", "cuda_steps"));
        assert!(!is_gpu_test("transformer", "spec") && !is_gpu_test("worker-orcd", "worker-orcd"));
        assert!(is_gpu_test("worker-orcd", "process"));
        assert!(is_gpu_test("tests", "storm") && !is_gpu_test("tests", "haiku_generation_anti_cheat"));
    }

    #[test]
    fn the_script_is_one_that_a_shell_reads() {
        let status = Command::new("bash").args(["-n", "-c", SCRIPT]).status().unwrap();
        assert!(status.success());
    }

    #[test]
    fn everything_that_the_bundle_carries_is_in_the_checkout() {
        for path in DATA {
            assert!(repository_root().join(path).exists(), "{path}");
        }
    }
}
