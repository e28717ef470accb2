//! `cargo xtask ci`: everything that must hold before a change is merged. Stops at the first failure.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cargo::{cargo, cargo_program, repository_root, shown, succeed};
use crate::{browser, clients, cuda, e2e_haiku, layering, soak, tests_run};

/// Crates that others may take up alone; each must build, with its tests, without the features that others ask for.
const LIBRARIES: [&str; 9] = [
    "gguf-parser",
    "quant",
    "tokenizer",
    "weight-loader",
    "cuda-sys",
    "transformer",
    "engine",
    "structured",
    "worker-http",
];

pub(crate) fn run() -> Result<()> {
    let mut steps = Steps::default();
    steps.run("formatting", || announced(&mut cargo(["fmt", "--all", "--check"])))?;
    steps.run("layering", layering::check)?;
    steps.run("clippy", || {
        let mut clippy = cargo(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]);
        announced(&mut clippy)
    })?;
    steps.run("documentation", || {
        let mut doc = cargo(["doc", "--workspace", "--no-deps", "--quiet"]);
        announced(doc.env("RUSTDOCFLAGS", "--deny warnings"))
    })?;
    steps.run("each library alone", || {
        LIBRARIES.iter().try_for_each(|name| announced(&mut cargo(["check", "--quiet", "--tests", "--package", name])))
    })?;
    steps.run("fuzz targets", fuzz)?;
    steps.run("CUDA: a compiler", cuda::setup)?;
    steps.run("CUDA: kernels and the border to them", cuda::compile_only)?;
    let built = steps.run("building the tests", tests_run::build)?;
    steps.run("tests", || tests_run::run_built(&built, None))?;
    steps.run("clients", || clients::run_built(&built, None))?;
    steps.run("page in a browser", || browser::run_built(&built))?;
    steps.run("haiku run", || e2e_haiku::run_built(&built))?;
    steps.run("soak", || soak::run_built(&built))?;
    println!("\n{}", steps.summary());
    Ok(())
}

/// Steps that have passed, with their times.
#[derive(Default)]
struct Steps(Vec<(&'static str, f64)>);

impl Steps {
    fn run<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n==> {name}");
        let started = Instant::now();
        let outcome = step().with_context(|| format!("step \"{name}\" failed"))?;
        let seconds = started.elapsed().as_secs_f64();
        println!("<== {name}: ok in {seconds:.1} s");
        self.0.push((name, seconds));
        Ok(outcome)
    }

    fn summary(&self) -> String {
        let steps = self.0.iter().map(|(name, seconds)| format!("{name} {seconds:.0} s"));
        let total: f64 = self.0.iter().map(|(_, seconds)| seconds).sum();
        format!("everything holds ({total:.0} s: {})", steps.collect::<Vec<_>>().join(", "))
    }
}

fn announced(command: &mut std::process::Command) -> Result<()> {
    println!("$ {}", shown(command));
    succeed(command)
}

/// Checks that the fuzz targets compile. They are outside the workspace: running them needs a nightly compiler.
fn fuzz() -> Result<()> {
    let manifest = repository_root().join("fuzz/Cargo.toml");
    let mut command = cargo_program();
    command.args(["check", "--quiet", "--manifest-path"]).arg(&manifest);
    // libFuzzer itself is C++ and is not needed to check types; this keeps its build script from compiling it.
    command.env("CUSTOM_LIBFUZZER_PATH", Path::new("/nonexistent/libfuzzer.a"));
    announced(&mut command)
}
