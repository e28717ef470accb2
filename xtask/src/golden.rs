//! `cargo xtask golden`: remakes the golden files with independent implementations: PyTorch in float64 for models, the Python
//! package `gguf` for quantised blocks.
//!
//! The files are committed, so nobody needs Python to build or test; this is for whoever adds an architecture or doubts
//! a number. The environment goes to `target/golden-venv`, and its packages are pinned beside the script.

use std::process::Command;

use anyhow::Result;

use crate::cargo::{repository_root, succeed};
use crate::python;

/// Remake the golden files with the reference implementation, in a Python environment of its own
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Remake only the model of this name
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

const SCRIPTS: &str = "crates/transformer/golden";
const BLOCKS: &str = "crates/quant/golden";
const HAIKU: &str = "models/haiku/haiku-qwen2-5.8m-f16.gguf";

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = repository_root();
    let scripts = root.join(SCRIPTS);
    let python = python::environment("golden-venv", &scripts.join("requirements.txt"))?;
    if args.only.is_none() {
        let blocks = root.join(BLOCKS);
        eprintln!("Making golden files in {BLOCKS}/data");
        succeed(Command::new(&python).arg(blocks.join("make_blocks.py")).arg("--out").arg(blocks.join("data")))?;
    }
    let mut script = Command::new(python);
    script
        .arg(scripts.join("make_golden.py"))
        .arg("--out")
        .arg(scripts.join("data"))
        .arg("--haiku")
        .arg(root.join(HAIKU));
    if let Some(name) = &args.only {
        script.args(["--only", name]);
    }
    eprintln!("Making golden files in {SCRIPTS}/data and beside {HAIKU}");
    succeed(&mut script)?;
    eprintln!("Done. `git diff --stat` shows what changed; nothing should where nothing was meant to.");
    Ok(())
}
