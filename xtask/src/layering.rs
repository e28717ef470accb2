//! Checks that the house stands as ARCHITECTURE.md describes it: who may use whom, and where `unsafe` may be.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo;
use crate::rust_source::{code_only, has_word, rust_files};

/// A room of the house: its crates of the workspace that its own code may use, tests apart.
struct Room {
    name: &'static str,
    may_use: &'static [&'static str],
}

const fn room(name: &'static str, may_use: &'static [&'static str]) -> Room {
    Room { name, may_use }
}

/// Every package of the workspace. Data flows from the top to the bottom, and `use` points back the same way.
const ROOMS: &[Room] = &[
    room("gguf-parser", &[]),
    room("quant", &["gguf-parser"]),
    room("tokenizer", &["gguf-parser"]),
    room("weight-loader", &["gguf-parser"]),
    room("cuda-sys", &[]),
    room("transformer", &["cuda-sys", "gguf-parser", "quant", "weight-loader"]),
    room("engine", &["transformer"]),
    room("structured", &["engine", "tokenizer"]),
    room("worker-http", &["engine", "structured", "tokenizer"]),
    room(
        "worker-orcd",
        &["engine", "gguf-parser", "quant", "tokenizer", "transformer", "weight-loader", "worker-http"],
    ),
    // Not part of the worker.
    room("test-support", &["gguf-parser", "transformer"]),
    room("worker-tests", &["gguf-parser", "tokenizer"]),
    room("xtask", &["gguf-parser", "quant"]),
];

/// Packages that no other may need to run, only to be tested.
const FOR_TESTS: &[&str] = &["test-support", "worker-tests", "xtask"];

/// Crates from outside that are the business of few: HTTP servers, mapped memory, templates, terminals.
const KEPT: &[(&str, &[&str])] = &[
    ("axum", &["worker-http", "worker-tests"]),
    ("hyper", &["worker-http"]),
    ("hyper-util", &["worker-http"]),
    ("tower-http", &["worker-http"]),
    ("prometheus-client", &["worker-http"]),
    ("reqwest", &["worker-orcd", "worker-tests"]),
    ("memmap2", &["quant", "weight-loader"]),
    ("minijinja", &["tokenizer"]),
    ("llguidance", &["structured"]),
    ("clap", &["worker-orcd", "worker-tests", "xtask"]),
    ("indicatif", &["worker-orcd", "xtask"]),
    ("rustyline", &["worker-orcd"]),
    ("anyhow", &["worker-orcd", "worker-tests", "xtask"]),
    ("bindgen", &["cuda-sys"]),
    ("cmake", &["cuda-sys"]),
];

/// Words that a crate's own code does not have: what it does not know about.
const UNKNOWN: &[(&str, &[&str])] = &[
    ("gguf-parser", &["std::fs", "std::net", "std::io", "std::thread", "std::process"]),
    ("quant", &["std::fs", "std::net", "std::io", "std::process"]),
    ("tokenizer", &["std::fs", "std::net", "std::process"]),
    ("transformer", &["File", "std::net", "std::process"]),
    ("engine", &["std::fs", "std::net", "std::io", "std::process", "Instant::now", "SystemTime::now"]),
    ("structured", &["std::fs", "std::net", "std::process"]),
    ("worker-http", &["std::fs", "std::process"]),
];

/// Where `unsafe` may stand: files, and folders with a slash at the end.
const UNSAFE: &[&str] = &[
    "crates/quant/src/aligned.rs", // looks at pages as numbers
    "crates/quant/src/guarded.rs", // an allocator for tests that puts a page that faults behind everything
    "crates/quant/src/simd/",
    "crates/quant/src/formats/",
    "crates/quant/src/interleaved/",
    "crates/quant/src/matmul.rs",
    "crates/quant/src/direct.rs",
    "crates/quant/src/panel.rs",
    "crates/quant/src/tile.rs",
    "crates/quant/tests/guard.rs", // puts a page that may not be read behind the last weight
    "crates/cuda-sys/", // the border to C++: bindings, handles, and a build script that sets variables for bindgen
    "crates/transformer/src/cpu/",
    "crates/transformer/src/cuda/",              // launching kernels
    "crates/transformer/tests/no_allocation.rs", // a global allocator that counts
    "crates/weight-loader/src/mapping.rs",
];

pub(crate) fn check() -> Result<()> {
    let metadata = cargo::metadata()?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut faults = rooms_are_known(packages);
    for package in packages {
        faults.extend(dependency_faults(package));
    }
    faults.extend(word_faults(&cargo::repository_root())?);
    if !faults.is_empty() {
        bail!("the layering is broken:\n  {}", faults.join("\n  "));
    }
    println!("{} packages, each in its place", packages.len());
    Ok(())
}

/// The table names every package, and only packages that exist.
fn rooms_are_known(packages: &[Value]) -> Vec<String> {
    let there: BTreeSet<_> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let known: BTreeSet<_> = ROOMS.iter().map(|room| room.name).collect();
    let missing = there.difference(&known).map(|name| format!("{name}: has no line in xtask/src/layering.rs"));
    let gone =
        known.difference(&there).map(|name| format!("{name}: has a line in xtask/src/layering.rs and no package"));
    missing.chain(gone).collect()
}

fn dependency_faults(package: &Value) -> Vec<String> {
    let name = package["name"].as_str().unwrap_or_default();
    let Some(room) = ROOMS.iter().find(|room| room.name == name) else { return Vec::new() };
    let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
    dependencies.iter().filter_map(|dependency| dependency_fault(room, dependency)).collect()
}

fn dependency_fault(room: &Room, dependency: &Value) -> Option<String> {
    let used = dependency["name"].as_str()?;
    // Tests may use what they need: a crate's tests come after every crate.
    if dependency["kind"] == "dev" {
        return None;
    }
    let name = room.name;
    if FOR_TESTS.contains(&used) {
        return Some(format!("{name}: may have {used} as a dev-dependency only"));
    }
    let is_ours = ROOMS.iter().any(|room| room.name == used);
    if is_ours && !room.may_use.contains(&used) {
        return Some(format!("{name}: may not use {used}, only {:?}", room.may_use));
    }
    let keepers = KEPT.iter().find(|(kept, _)| *kept == used).map(|(_, keepers)| *keepers)?;
    (!keepers.contains(&name)).then(|| format!("{name}: may not use {used}; it is kept to {keepers:?}"))
}

fn word_faults(root: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for folder in ["crates", "tests", "xtask"] {
        for file in rust_files(&root.join(folder))? {
            let path = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().replace('\\', "/");
            let source = std::fs::read_to_string(&file).with_context(|| format!("reading {path}"))?;
            faults.extend(file_faults(&path, &source));
        }
    }
    Ok(faults)
}

fn file_faults(path: &str, source: &str) -> Vec<String> {
    let code = code_only(source);
    let mut faults = Vec::new();
    let may_be_unsafe = UNSAFE.iter().any(|place| path == *place || place.ends_with('/') && path.starts_with(place));
    if has_word(&code, "unsafe") && !may_be_unsafe {
        faults.push(format!("{path}: holds unsafe code; that is kept to {UNSAFE:?}"));
    }
    // A unit test may know more than the code it tests; such modules stand at the end of a file, or in one of their own.
    let own_code = code.split("#[cfg(test)]").next().unwrap_or_default();
    if path.ends_with("tests.rs") {
        return faults;
    }
    for (name, words) in UNKNOWN {
        if path.starts_with(&format!("crates/{name}/src/")) {
            let known = words.iter().filter(|word| has_word(own_code, word));
            faults.extend(known.map(|word| format!("{path}: {name} knows nothing of {word}")));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(name: &str, used: &str, kind: Option<&str>) -> Vec<String> {
        dependency_faults(&json!({"name": name, "dependencies": [{"name": used, "kind": kind}]}))
    }

    #[test]
    fn the_house_stands_as_the_table_says() {
        if let Err(fault) = check() {
            panic!("{fault}");
        }
    }

    #[test]
    fn refuses_a_use_against_the_flow() {
        assert!(faults("transformer", "quant", None).is_empty());
        assert_eq!(faults("quant", "transformer", None).len(), 1);
        assert_eq!(faults("engine", "tokenizer", None).len(), 1);
        assert_eq!(faults("engine", "tokenizer", Some("build")).len(), 1);
    }

    #[test]
    fn refuses_test_code_and_kept_crates_outside_tests() {
        assert!(faults("engine", "test-support", Some("dev")).is_empty());
        assert_eq!(faults("engine", "test-support", None).len(), 1);
        assert!(faults("worker-http", "axum", None).is_empty());
        assert_eq!(faults("worker-orcd", "axum", None).len(), 1);
    }

    #[test]
    fn refuses_a_package_without_a_line() {
        let all: Vec<_> = ROOMS.iter().map(|room| json!({"name": room.name})).collect();
        assert!(rooms_are_known(&all).is_empty());
        assert_eq!(rooms_are_known(&[&all[1..], &[json!({"name": "new"})]].concat()).len(), 2);
    }

    #[test]
    fn refuses_unsafe_code_outside_its_places() {
        let code = "fn f() { unsafe { g() } }";
        assert!(file_faults("crates/quant/src/simd/avx2.rs", code).is_empty());
        assert_eq!(file_faults("crates/engine/src/lib.rs", code).len(), 1);
        assert!(
            file_faults("crates/engine/src/lib.rs", "#![deny(unsafe_code)] // unsafe\nconst A: &str = \"unsafe\";")
                .is_empty()
        );
    }

    #[test]
    fn refuses_what_a_crate_knows_nothing_of() {
        assert_eq!(file_faults("crates/gguf-parser/src/a.rs", "use std::fs::File;").len(), 1);
        assert_eq!(file_faults("crates/engine/src/a.rs", "let now = Instant::now();").len(), 1);
        assert!(
            file_faults("crates/gguf-parser/src/a.rs", "#[cfg(test)]\nmod tests { use std::fs::File; }").is_empty()
        );
        assert!(file_faults("crates/gguf-parser/tests/a.rs", "use std::fs::File;").is_empty());
        assert!(file_faults("crates/engine/src/scheduler/tests.rs", "Instant::now()").is_empty());
    }
}
