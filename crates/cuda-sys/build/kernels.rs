//! The kernels: CMake, then the linker's arguments.

use std::path::{Path, PathBuf};

use crate::{bindings, toolkit};

const VARIABLES: [&str; 8] =
    ["CUDACXX", "CUDA_PATH", "CUDA_HOME", "LIBCLANG_PATH", "CUDAHOSTCXX", "CUDAARCHS", "WORKER_CUDA_ARCHS", "CMAKE"];

/// # Errors
/// In one line, what is missing. A kernel that does not compile ends the process with the compiler's own words.
pub(crate) fn build() -> Result<(), String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))?;
    let source = root.join("cuda");
    println!("cargo::rerun-if-changed={}", source.display());
    for name in VARIABLES {
        println!("cargo::rerun-if-env-changed={name}");
    }

    let mut targets = vec![root.join("target")];
    targets.splice(0..0, std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from));
    let missing = |what: String| format!("{what}. `cargo xtask cuda setup` fetches what is missing into target/");
    let toolkit = toolkit::find(&targets).map_err(missing)?;
    let (major, minor) = toolkit.version;
    println!("nvcc {major}.{minor}: {}, found by {}", toolkit.nvcc.display(), toolkit.found_by);
    let cmake = match std::env::var_os("CMAKE") {
        Some(cmake) => cmake.into(),
        None => toolkit::cmake(&targets).ok_or_else(|| missing("there is no CMake 3.24 or later".into()))?,
    };
    let libclang = toolkit::libclang(&targets).ok_or_else(|| missing("there is no libclang".into()))?;
    // SAFETY: this build script has one thread. bindgen and the cmake crate take these from the environment alone.
    unsafe {
        std::env::set_var("LIBCLANG_PATH", libclang);
        std::env::set_var("CMAKE", cmake);
    }

    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets no OUT_DIR")?);
    let architectures = toolkit::architectures();
    println!("cargo::rustc-env=WORKER_CUDA_ARCHITECTURES={architectures}");
    // OUT_DIR is <target>/<profile>/build/<package>/out. The kernels are the same in every profile.
    let target = out.ancestors().nth(4).unwrap_or(&out);
    let folder = toolkit::kernels(target, &architectures);
    let _lock = lock(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let contract = bindings::write(&source, &toolkit, &out, &folder)?;
    let built = compile(&source, &toolkit, &contract, &architectures, &folder, toolkit::ninja(&targets));
    link(&built, &toolkit);
    Ok(())
}

/// Keeps a build of another profile out until this one is done. Cargo's own lock is the profile's.
fn lock(folder: &Path) -> std::io::Result<std::fs::File> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(".lock");
    let file = std::fs::File::options().write(true).create(true).truncate(false).open(&path)?;
    file.lock()?;
    // If the folder is removed, this is to run again; but not because the file is newer than the start of this run.
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)?;
    println!("cargo::rerun-if-changed={}", path.display());
    Ok(file)
}

fn compile(
    source: &Path,
    toolkit: &toolkit::Toolkit,
    contract: &Path,
    architectures: &str,
    folder: &Path,
    ninja: Option<PathBuf>,
) -> PathBuf {
    let mut config = cmake::Config::new(source);
    config.env("CUDACXX", &toolkit.nvcc).env("CUDA_PATH", toolkit.root());
    config.define("CMAKE_CUDA_COMPILER", &toolkit.nvcc).define("CMAKE_CUDA_ARCHITECTURES", architectures);
    config.define("WORKER_CUDA_CONTRACT", contract);
    if let Some(ninja) = ninja {
        config.generator("Ninja").define("CMAKE_MAKE_PROGRAM", ninja);
    }
    // Whatever cargo's profile: nobody debugs kernels from there, and tests must test what is served.
    config.out_dir(folder).profile("Release").build_target("worker_cuda").build().join("build")
}

fn link(built: &Path, toolkit: &toolkit::Toolkit) {
    println!("cargo::rustc-link-search=native={}", built.display());
    println!("cargo::rustc-link-search=native={}", toolkit.lib.display());
    println!("cargo::rustc-link-lib=static=worker_cuda");
    println!("cargo::rustc-link-lib=static=cudart_static");
    for name in ["stdc++", "dl", "rt", "pthread"] {
        println!("cargo::rustc-link-lib=dylib={name}");
    }
}
