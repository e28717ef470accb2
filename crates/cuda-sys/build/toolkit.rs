//! Finding a CUDA toolkit, libclang, CMake and Ninja, and where things are built. Shared by the build script and
//! `cargo xtask cuda`, so that both find the same.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Major versions of the toolkit that the kernels are written for.
pub(crate) const SUPPORTED: std::ops::RangeInclusive<u32> = 12..=13;

/// A CUDA toolkit that compiles.
#[derive(Debug, Clone)]
pub(crate) struct Toolkit {
    /// The compiler.
    pub(crate) nvcc: PathBuf,
    /// The folder with `cuda_runtime_api.h`.
    pub(crate) include: PathBuf,
    /// The folder with `libcudart_static.a`.
    pub(crate) lib: PathBuf,
    /// Major and minor version.
    pub(crate) version: (u32, u32),
    /// What led to it: a variable, or a folder.
    pub(crate) found_by: String,
}

impl Toolkit {
    /// The folder that `CUDA_PATH` names.
    pub(crate) fn root(&self) -> &Path {
        let bin = self.nvcc.parent().unwrap_or(&self.nvcc);
        bin.parent().unwrap_or(bin)
    }
}

/// Finds a toolkit: where a variable points, then the `nvcc` on `PATH`, `/usr/local/cuda`, and last what
/// `cargo xtask cuda setup` fetched into one of `target_dirs`.
///
/// # Errors
/// What was tried, and why each did not do. A variable that points to no usable toolkit is an error at once: it would
/// surprise its owner to get another one.
pub(crate) fn find(target_dirs: &[PathBuf]) -> Result<Toolkit, String> {
    if let Some(nvcc) = variable("CUDACXX") {
        return at(&nvcc, "CUDACXX").map_err(|fault| format!("CUDACXX={}: {fault}", nvcc.display()));
    }
    for name in ["CUDA_PATH", "CUDA_HOME"] {
        if let Some(root) = variable(name) {
            return at(&root.join("bin/nvcc"), name).map_err(|fault| format!("{name}={}: {fault}", root.display()));
        }
    }
    let mut candidates: Vec<(PathBuf, String)> = Vec::new();
    candidates.extend(on_path("nvcc").map(|nvcc| (nvcc, "PATH".to_owned())));
    candidates.push(("/usr/local/cuda/bin/nvcc".into(), "/usr/local/cuda".to_owned()));
    for target in target_dirs {
        let fetched = fetched_root(target).map(|root| (root.join("bin/nvcc"), "cargo xtask cuda setup".to_owned()));
        candidates.extend(fetched);
    }
    let mut faults = Vec::new();
    for (nvcc, found_by) in candidates {
        match at(&nvcc, &found_by) {
            Ok(toolkit) => return Ok(toolkit),
            Err(_) if !nvcc.exists() => {}
            Err(fault) => faults.push(format!("{}: {fault}", nvcc.display())),
        }
    }
    let tried = if faults.is_empty() { String::new() } else { format!(" ({})", faults.join("; ")) };
    Err(format!("there is no CUDA toolkit 12.x or 13.x{tried}"))
}

fn at(nvcc: &Path, found_by: &str) -> Result<Toolkit, String> {
    let output = Command::new(nvcc).arg("--version").output().map_err(|error| format!("cannot be run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = version_in(&text).ok_or("says no version that can be read")?;
    if !SUPPORTED.contains(&version.0) {
        return Err(format!("is version {}.{}; 12.x or 13.x is needed", version.0, version.1));
    }
    // A name without a folder was looked up on PATH; and a distribution's nvcc may be a link into another folder.
    let nvcc = if nvcc.components().count() == 1 { nvcc.to_str().and_then(on_path) } else { Some(nvcc.to_path_buf()) };
    let nvcc = nvcc.ok_or("is not on PATH")?;
    let real = nvcc.canonicalize().unwrap_or_else(|_| nvcc.clone());
    let roots = [&nvcc, &real].map(|nvcc| nvcc.parent().and_then(Path::parent).map(Path::to_path_buf));
    let under = |folders: &[&str], file: &str| {
        let folders = roots.iter().flatten().flat_map(|root| folders.iter().map(|folder| root.join(folder)));
        folders.into_iter().find(|folder| folder.join(file).exists()).ok_or(format!("has no {file} beside it"))
    };
    let arch = format!("targets/{}-linux", std::env::consts::ARCH);
    let debian = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
    let include = under(&["include", &format!("{arch}/include")], "cuda_runtime_api.h")?;
    let lib = under(&["lib64", "lib", &format!("{arch}/lib"), &debian], "libcudart_static.a")?;
    Ok(Toolkit { nvcc, include, lib, version, found_by: found_by.to_owned() })
}

/// `..., release 13.0, V13.0.88` in what `nvcc --version` prints.
fn version_in(text: &str) -> Option<(u32, u32)> {
    numbers(text.split_once("release ")?.1)
}

/// The two numbers that a text begins with: `13.0, V13.0.88`.
fn numbers(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.split_once('.')?;
    let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.trim().parse().ok()?, minor.parse().ok()?))
}

/// PTX for 80 runs on every GPU since Ampere; 90a is Hopper's own machine code.
const DEFAULT_ARCHITECTURES: &str = "80-virtual;90a-real";

/// The architectures to compile for, as CMake wants them: from `WORKER_CUDA_ARCHS` or `CUDAARCHS`.
pub(crate) fn architectures() -> String {
    let given = ["WORKER_CUDA_ARCHS", "CUDAARCHS"].iter().find_map(|name| std::env::var(name).ok());
    expanded(&given.filter(|text| !text.is_empty()).unwrap_or_else(|| DEFAULT_ARCHITECTURES.to_owned()))
}

/// `90a` is short for `90a-real`, machine code and no PTX.
pub(crate) fn expanded(architectures: &str) -> String {
    let one = |word: &str| if word.contains('-') { word.to_owned() } else { format!("{word}-real") };
    architectures.split([',', ';', ' ']).filter(|word| !word.is_empty()).map(one).collect::<Vec<_>>().join(";")
}

/// Where the kernels are compiled: one folder for all profiles of cargo, so that they are compiled once. CMake's own
/// files lie in `build` below it.
pub(crate) fn kernels(target: &Path, architectures: &str) -> PathBuf {
    target.join("cuda-kernels").join(architectures.replace(';', "+"))
}

/// Where `cargo xtask cuda setup` puts its Python environment.
pub(crate) fn environment(target: &Path) -> PathBuf {
    target.join("cuda-toolkit")
}

/// The packages' folder of that environment.
pub(crate) fn site_packages(target: &Path) -> Option<PathBuf> {
    let lib = std::fs::read_dir(environment(target).join("lib")).ok()?;
    let mut folders: Vec<_> = lib.flatten().map(|entry| entry.path().join("site-packages")).collect();
    folders.sort();
    folders.into_iter().find(|folder| folder.is_dir())
}

/// The toolkit in that environment.
pub(crate) fn fetched_root(target: &Path) -> Option<PathBuf> {
    let nvidia = site_packages(target)?.join("nvidia");
    ["cu13", "cu12"].iter().map(|name| nvidia.join(name)).find(|root| root.join("bin/nvcc").exists())
}

/// The least CMake that `cuda/CMakeLists.txt` takes.
const MIN_CMAKE: (u32, u32) = (3, 24);

/// A CMake that is new enough: from `PATH`, or from the environment that `cargo xtask cuda setup` made.
pub(crate) fn cmake(target_dirs: &[PathBuf]) -> Option<PathBuf> {
    let new_enough = |path: &PathBuf| {
        let output = Command::new(path).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = numbers(text.split_once("version ")?.1)?;
        Some(version >= MIN_CMAKE)
    };
    programs("cmake", target_dirs).find(|path| new_enough(path) == Some(true))
}

/// Ninja, from the same places.
pub(crate) fn ninja(target_dirs: &[PathBuf]) -> Option<PathBuf> {
    programs("ninja", target_dirs).next()
}

fn programs(name: &str, target_dirs: &[PathBuf]) -> impl Iterator<Item = PathBuf> {
    let fetched = target_dirs.iter().map(|target| environment(target).join("bin").join(name));
    on_path(name).into_iter().chain(fetched.filter(|path| path.exists()).collect::<Vec<_>>())
}

/// The folder with a libclang, which bindgen opens at run time: where `LIBCLANG_PATH` points, or where distributions
/// and `cargo xtask cuda setup` put it.
pub(crate) fn libclang(target_dirs: &[PathBuf]) -> Option<PathBuf> {
    if let Some(path) = variable("LIBCLANG_PATH") {
        return Some(path);
    }
    let mut folders = Vec::new();
    if let Ok(output) = Command::new("llvm-config").arg("--libdir").output() {
        folders.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    let llvm = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut llvm: Vec<_> = llvm.filter(|entry| entry.file_name().to_string_lossy().starts_with("llvm")).collect();
    llvm.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
    folders.extend(llvm.into_iter().map(|entry| entry.path().join("lib")));
    let debian = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    folders.extend([debian.as_str(), "/usr/lib64", "/usr/local/lib", "/usr/lib"].map(PathBuf::from));
    folders.extend(target_dirs.iter().filter_map(|t| site_packages(t)).map(|packages| packages.join("clang/native")));
    let is_libclang =
        |name: &str| name.starts_with("libclang.so") || name.starts_with("libclang-") && name.contains(".so");
    folders.into_iter().find(|folder| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).any(|name| is_libclang(&name.to_string_lossy()))
    })
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
