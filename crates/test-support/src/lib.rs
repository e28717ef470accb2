//! Test support: GGUF builder, fake executor, closeness assertions.

use std::path::{Path, PathBuf};

pub mod closeness;
pub mod fake_executor;
pub mod gguf;
pub mod tiny_model;

/// The folder with `crates/` and `models/`: the checkout that this was built from, or, where a test program was carried to
/// another machine, the one that the environment variable `WORKER_TEST_ROOT` names.
pub fn checkout() -> PathBuf {
    if let Some(root) = std::env::var_os("WORKER_TEST_ROOT") {
        return root.into();
    }
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package).to_path_buf()
}
