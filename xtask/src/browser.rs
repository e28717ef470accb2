//! `cargo xtask test --browser`: the worker's page in headless Chromium.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser as _;

use crate::cargo::{self, Executables, repository_root, target_dir};
use crate::{make_random, python};

/// The tests. They are in Python since the client that drives the browser is; it comes from the package index, the
/// browser does not.
const SCRIPTS: &str = "tests/browser";
/// What starts a worker, shared with the published clients.
const SHARED: &str = "tests/clients";
const MODEL: &str = "models/haiku/haiku-qwen2-5.8m-f16.gguf";
/// Where pictures for the documentation go.
const PICTURES: &str = "docs/images";

/// What Chromium is called where it is installed.
const NAMES: [&str; 5] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];

/// A model that answers long and slowly enough to watch and to stop: some 40 tokens a second on two cores.
const SLOW: &str = "--n-layers 8 --n-embd 512 --n-head 8 --n-kv 2 --n-ff 1536 --vocab synthetic:32000 --n-vocab 32064";

/// Builds the worker and runs the tests whose names contain `filter`, or, with `screenshots`, makes the documentation's
/// pictures anew.
pub(crate) fn run(filter: Option<&str>, screenshots: bool) -> Result<()> {
    let mut build = cargo::cargo(["build", "--package", "worker-orcd", "--bin", "worker-orcd"]);
    let built = cargo::build(&mut build)?;
    run_tests(&built, filter, screenshots)
}

/// Runs all tests against the worker that was built.
pub(crate) fn run_built(built: &Executables) -> Result<()> {
    run_tests(built, None, false)
}

fn run_tests(built: &Executables, filter: Option<&str>, screenshots: bool) -> Result<()> {
    let root = repository_root();
    let scripts = root.join(SCRIPTS);
    let chrome = find_chromium()?;
    let python = python::environment("browser-venv", &scripts.join("requirements.txt"))
        .with_context(|| format!("{SCRIPTS}: the tests need Python 3 and, once, a package index"))?;
    let mut tests = python::unittest(&python, &scripts, filter);
    if screenshots {
        let pictures = root.join(PICTURES);
        std::fs::create_dir_all(&pictures).with_context(|| format!("making {}", pictures.display()))?;
        tests.args(["--pattern", "screenshots.py"]).env("WORKER_SCREENSHOTS", pictures);
    }
    tests.env("PYTHONPATH", root.join(SHARED)).env("CHROME", chrome);
    tests.env("WORKER_ORCD_BIN", built.get("worker-orcd")?);
    tests.env("WORKER_HAIKU_MODEL", root.join(MODEL)).env("WORKER_SLOW_MODEL", slow_model()?);
    cargo::succeed(&mut tests).context("the page does not do what it should")
}

/// The program that the environment variable `CHROME` names, or the first one in `PATH`.
fn find_chromium() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("CHROME") {
        let named = PathBuf::from(named);
        if !named.is_file() {
            bail!("CHROME: no such file: {}", named.display());
        }
        return Ok(named);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = |name: &&str| std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    NAMES.iter().find_map(in_path).with_context(|| {
        let names = NAMES.join(", ");
        format!("no Chromium: none of {names} is in PATH. Install one (apt-get install chromium) or name it in CHROME")
    })
}

/// Writes the slow model below `target/`. It takes seconds, and nothing that was written before can be out of date.
pub(crate) fn slow_model() -> Result<PathBuf> {
    let folder = target_dir().join("tmp");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let file = folder.join("slow.gguf");
    let words = ["make-random".into(), file.clone().into_os_string()];
    let made = MakeRandom::try_parse_from(words.into_iter().chain(SLOW.split(' ').map(Into::into)))?;
    make_random::run(&made.args)?;
    Ok(file)
}

/// `cargo xtask make-random` as a command line of its own.
#[derive(Debug, clap::Parser)]
struct MakeRandom {
    #[command(flatten)]
    args: make_random::Args,
}
