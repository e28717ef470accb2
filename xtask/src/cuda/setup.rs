//! `cargo xtask cuda setup`: a compiler for kernels, on a machine that has none.
//!
//! NVIDIA publishes the toolkit's parts as Python wheels. They go to an environment of their own under `target/`, and get
//! the few links that nvcc and CMake expect in an installed toolkit. Everything that is there already is left alone.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{target_dirs, toolkit};
use crate::cargo::{succeed, target_dir};
use crate::python;

/// The compiler, the runtime, and the headers of `cuda_fp16.h`. Taken apart from the whole toolkit, which is 3 GB; and
/// by its name and extras, because the parts' own versions drift: the compiler alone pulls in a newer code generator,
/// whose output its assembler refuses.
const TOOLKIT: &str = "cuda-toolkit[nvcc,cudart,crt,nvvm,cccl]==13.0.2";
const CMAKE: &str = "cmake==3.31.10";
const NINJA: &str = "ninja==1.13.0";
const LIBCLANG: &str = "libclang==18.1.1";

pub(super) fn run() -> Result<()> {
    let missing = missing()?;
    if missing.is_empty() {
        println!("nothing to fetch");
    } else {
        fetch(&missing)?;
    }
    // Also where nothing was fetched: an earlier call may have ended halfway.
    if let Some(root) = toolkit::fetched_root(&target_dir()) {
        lay_out(&root).with_context(|| format!("giving {} a toolkit's layout", root.display()))?;
    }
    let found = toolkit::find(&target_dirs()).map_err(anyhow::Error::msg)?;
    let (major, minor) = found.version;
    println!("nvcc {major}.{minor}  {} (found by {})", found.nvcc.display(), found.found_by);
    let tools = [("cmake", toolkit::cmake(&target_dirs())), ("ninja", toolkit::ninja(&target_dirs()))];
    for (name, path) in tools.into_iter().chain([("libclang", toolkit::libclang(&target_dirs()))]) {
        println!("{name:<9}{}", path.with_context(|| format!("{name} was installed and is not there"))?.display());
    }
    println!("compiles for {}", toolkit::architectures());
    Ok(())
}

/// What has to be fetched.
///
/// # Errors
/// When a variable names a toolkit that is none: fetching another would not help, since variables come first.
fn missing() -> Result<Vec<&'static str>> {
    let targets = target_dirs();
    let mut missing = Vec::new();
    match toolkit::find(&targets) {
        Ok(_) => {}
        Err(fault) if ["CUDACXX=", "CUDA_PATH=", "CUDA_HOME="].iter().any(|name| fault.starts_with(name)) => {
            bail!(fault)
        }
        Err(fault) => {
            println!("{fault}");
            missing.push(TOOLKIT);
        }
    }
    let tools =
        [(CMAKE, toolkit::cmake(&targets)), (NINJA, toolkit::ninja(&targets)), (LIBCLANG, toolkit::libclang(&targets))];
    missing.extend(tools.into_iter().filter(|(_, path)| path.is_none()).map(|(package, _)| package));
    Ok(missing)
}

fn fetch(packages: &[&str]) -> Result<()> {
    let environment = toolkit::environment(&target_dir());
    let python = environment.join("bin/python");
    python::make(&environment, &python).context("fetching the CUDA compiler")?;
    println!("fetching {} (105 MB for the compiler)", packages.join(", "));
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages);
    succeed(&mut pip)
}

/// Gives the wheels' folder the links that an installed toolkit has. Nothing changes the second time.
#[cfg(unix)]
fn lay_out(root: &Path) -> Result<()> {
    // nvcc's own profile names lib64.
    link("lib", &root.join("lib64"))?;
    // Wheels have libX.so.N; the linker looks for libX.so.
    let lib = root.join("lib");
    for entry in std::fs::read_dir(&lib)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some((stem, version)) = name.split_once(".so.")
            && version.starts_with(|c: char| c.is_ascii_digit())
        {
            link(&name, &lib.join(format!("{stem}.so")))?;
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn lay_out(_: &Path) -> Result<()> {
    bail!("the wheels' layout is known for Linux only; install NVIDIA's toolkit")
}

#[cfg(unix)]
fn link(target: &str, path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    // A link to nothing exists as a name all the same.
    let _ = std::fs::remove_file(path);
    std::os::unix::fs::symlink(target, path).with_context(|| format!("linking {}", path.display()))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_made_once_and_left_alone_after() {
        let folder = tempfile::tempdir().unwrap();
        let lib = folder.path().join("lib");
        std::fs::create_dir(&lib).unwrap();
        std::fs::write(lib.join("libcudart.so.13"), "13").unwrap();
        std::fs::write(lib.join("libcudart_static.a"), "").unwrap();
        std::os::unix::fs::symlink("gone", lib.join("libnvvm.so")).unwrap();
        std::fs::write(lib.join("libnvvm.so.4"), "4").unwrap();
        for _ in 0..2 {
            lay_out(folder.path()).unwrap();
            assert_eq!(std::fs::read_to_string(folder.path().join("lib64/libcudart.so")).unwrap(), "13");
            assert_eq!(std::fs::read_to_string(lib.join("libnvvm.so")).unwrap(), "4");
            assert_eq!(std::fs::read_dir(&lib).unwrap().count(), 5);
        }
    }
}
