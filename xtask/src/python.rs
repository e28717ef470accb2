//! Python environments of the repository's own, below `target/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo::{shown, succeed, target_dir};
use crate::tests_run;

/// The Python of the environment `target/<name>`, made if it is not there, with what the file `requirements` lists.
/// Installing is left to pip each time: with everything in place it takes a second.
///
/// # Errors
/// `python3` or its module `venv` is missing, or pip fails.
pub(crate) fn environment(name: &str, requirements: &Path) -> Result<PathBuf> {
    let venv = target_dir().join(name);
    let python = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    make(&venv, &python)?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(requirements);
    eprintln!("$ {}", shown(&pip));
    succeed(&mut pip)?;
    Ok(python)
}

/// Makes an environment where there is none that works.
///
/// # Errors
/// `python3` or its module `venv` is missing.
pub(crate) fn make(venv: &Path, python: &Path) -> Result<()> {
    // One whose making was broken off has a Python without pip.
    let pip = Command::new(python).args(["-m", "pip", "--version"]).output();
    if pip.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    eprintln!("Making a Python environment in {}", venv.display());
    let mut make = Command::new("python3");
    succeed(make.args(["-m", "venv", "--clear"]).arg(venv))
        .context("python3 with its module venv is needed for this (Debian, Ubuntu: apt-get install python3-venv)")
}

/// The tests below `scripts` whose names contain `filter`, kept from what their user's environment says.
pub(crate) fn unittest(python: &Path, scripts: &Path, filter: Option<&str>) -> Command {
    let mut tests = Command::new(python);
    // Bytes of compiled scripts would lie among the sources.
    tests.args(["-B", "-m", "unittest", "discover", "--verbose", "--start-directory"]).arg(scripts);
    if let Some(filter) = filter {
        tests.args(["-k", filter]);
    }
    tests_run::alone(&mut tests);
    tests
}
