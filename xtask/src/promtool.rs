//! Prometheus' own checker of metrics, for the clients' tests: the one that is there, or one unpacked below `target/`.
//! Nothing is installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo::{shown, target_dir};

/// Where promtool is: `PROMTOOL`, on the `PATH`, or taken out of Debian's package of Prometheus.
///
/// # Errors
/// It is nowhere and cannot be had, with the reason.
pub(crate) fn find() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("PROMTOOL").filter(|named| !named.is_empty()) {
        return Ok(named.into());
    }
    if runs(Path::new("promtool")) {
        return Ok("promtool".into());
    }
    let folder = target_dir().join("promtool");
    let unpacked = folder.join("usr/bin/promtool");
    if !runs(&unpacked) {
        unpack(&folder)?;
    }
    if !runs(&unpacked) {
        bail!("{} does not run", unpacked.display());
    }
    Ok(unpacked)
}

fn runs(program: &Path) -> bool {
    let silent = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    silent.is_ok_and(|status| status.success())
}

/// Fetches the package into the folder and unpacks it there, as any user may.
fn unpack(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    quietly(Command::new("apt-get").args(["download", "--quiet", "prometheus"]).current_dir(folder))?;
    let files = std::fs::read_dir(folder).with_context(|| format!("looking into {}", folder.display()))?;
    let package =
        files.filter_map(|file| Some(file.ok()?.path())).find(|path| path.extension().is_some_and(|e| e == "deb"));
    let package = package.context("apt-get left no package")?;
    quietly(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(folder))?;
    std::fs::remove_file(&package).with_context(|| format!("removing {}", package.display()))
}

/// Runs the command, whose words are of interest only where it fails.
fn quietly(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", shown(command));
    let output = command.output().with_context(|| format!("{} cannot be run", shown(command)))?;
    if !output.status.success() {
        bail!("{}: {}", shown(command), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
