//! Running cargo, and other programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The checkout this program was built from, or, where it was carried to another machine, the folder that the environment
/// variable `WORKER_TEST_ROOT` names.
pub(crate) fn repository_root() -> PathBuf {
    if let Some(root) = std::env::var_os("WORKER_TEST_ROOT") {
        return root.into();
    }
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

/// Cargo's folder for build outputs.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository_root().join("target"), PathBuf::from)
}

/// A command that runs cargo on this checkout, whatever the current folder.
pub(crate) fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut command = cargo_program();
    let [subcommand, rest @ ..] = &args[..] else { unreachable!("cargo is always given a subcommand") };
    command.arg(subcommand).args(["--manifest-path".as_ref(), repository_root().join("Cargo.toml").as_os_str()]);
    command.args(rest);
    command
}

/// Cargo, as its user started it.
pub(crate) fn cargo_program() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // `cargo run` describes this package in the environment. Some build scripts watch these variables: with them,
    // whoever changes between `cargo xtask` and `cargo` would compile the same crates each time.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started or fails; the error shows the command.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("running {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a program that says itself what is wrong, so that the command it was started with would not help.
///
/// # Errors
/// When it cannot be started, or fails: `failure`.
pub(crate) fn succeed_or(failure: &'static str, command: &mut Command) -> Result<()> {
    if !command.status()?.success() {
        bail!(failure);
    }
    Ok(())
}

/// A command as one might type it, paths of this checkout relative.
pub(crate) fn shown(command: &Command) -> String {
    let root = format!("{}/", repository_root().display());
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args()).map(|word| word.to_string_lossy().into_owned());
    let words: Vec<_> = words.map(|word| word.replace(&root, "")).collect();
    words.join(" ").replace(" --manifest-path Cargo.toml", "")
}

/// Runs a cargo command that builds, progress on standard error, and returns the executables that it made or found up to
/// date.
///
/// # Errors
/// When the build fails.
pub(crate) fn build(command: &mut Command) -> Result<Executables> {
    // Cargo takes options before `--` only, which no build has.
    command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("running {}", shown(command)))?;
    if !output.status.success() {
        bail!("{} failed ({})", shown(command), output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let artefacts = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let executable = |message: Value| {
        let target = &message["target"];
        let kind = match target["kind"][0].as_str()? {
            "bin" if message["profile"]["test"] == false => Kind::Program,
            "example" if message["profile"]["test"] == false => Kind::Example,
            _ => Kind::Test,
        };
        let path = PathBuf::from(message["executable"].as_str()?);
        let package = Path::new(message["manifest_path"].as_str()?).parent()?.file_name()?.to_str()?;
        Some(Executable { package: package.to_owned(), name: target["name"].as_str()?.to_owned(), kind, path })
    };
    Ok(Executables(artefacts.filter_map(executable).collect()))
}

/// What an executable is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Program,
    Example,
    Test,
}

/// One that a build has made.
#[derive(Debug)]
pub(crate) struct Executable {
    /// The folder of its package, which is the package's name.
    pub(crate) package: String,
    /// Its target.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
}

/// Executables that a build has made.
#[derive(Debug)]
pub(crate) struct Executables(Vec<Executable>);

impl Executables {
    /// The program called `name`.
    ///
    /// # Errors
    /// When the build made none.
    pub(crate) fn get(&self, name: &str) -> Result<&Path> {
        let mut programs = self.0.iter().filter(|built| built.kind == Kind::Program);
        let found = programs.find(|built| built.name == name);
        found.map(|built| built.path.as_path()).with_context(|| format!("the build made no program {name:?}"))
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Executable> {
        self.0.iter()
    }
}

/// What `cargo metadata` says of this workspace, dependencies of its members included by name.
///
/// # Errors
/// When cargo fails.
pub(crate) fn metadata() -> Result<Value> {
    let mut command = cargo(["metadata", "--no-deps", "--format-version", "1"]);
    let output = command.stderr(Stdio::inherit()).output().context("running cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed ({})", output.status);
    }
    serde_json::from_slice(&output.stdout).context("reading what cargo metadata says")
}
