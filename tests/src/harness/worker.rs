//! The worker binary, and one running process of it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::process::{Child, Command};

use super::{Client, Orchestrator};

/// The longest wait for a worker to become ready: loading a full-size model from a cold disk fits many times over.
const READY_LIMIT: Duration = Duration::from_secs(300);

/// The built-in model, below [`repository_root`].
const BUILT_IN_MODEL: &str = "models/haiku/haiku-qwen2-5.8m-f16.gguf";

/// Lines of a dead worker's log that an error quotes.
const LOG_TAIL_LINES: usize = 12;

/// A built `worker-orcd`.
#[derive(Debug, Clone)]
pub struct WorkerBinary(PathBuf);

impl WorkerBinary {
    /// A binary that somebody else has built.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The one at `path`, or else [`from_environment_or_cargo`](Self::from_environment_or_cargo).
    ///
    /// # Errors
    /// When there is no path and the build fails.
    pub fn given_or_built(path: Option<PathBuf>) -> Result<Self> {
        path.map_or_else(Self::from_environment_or_cargo, |path| Ok(Self::at(path)))
    }

    /// The binary that the environment variable `WORKER_ORCD_BIN` names or, where it is unset, what `cargo build` makes
    /// of this checkout now. Cargo's own progress goes to standard error.
    ///
    /// # Errors
    /// When the build fails.
    pub fn from_environment_or_cargo() -> Result<Self> {
        if let Some(path) = std::env::var_os("WORKER_ORCD_BIN") {
            return Ok(Self(path.into()));
        }
        let mut cargo = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // Cargo describes the running test's package in the environment, and some build scripts watch these variables:
        // the build must be the one that a user gets, or each would undo the other.
        for (name, _) in std::env::vars_os() {
            if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                cargo.env_remove(name);
            }
        }
        let output = cargo
            .args(["build", "--package", "worker-orcd", "--bin", "worker-orcd"])
            .arg("--message-format=json-render-diagnostics")
            .current_dir(repository_root())
            .stderr(Stdio::inherit())
            .output()
            .context("running cargo build")?;
        if !output.status.success() {
            bail!("cargo build --package worker-orcd failed ({})", output.status);
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        let executables = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut paths = executables.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
        paths.next_back().map(Self).context("cargo build --package worker-orcd named no executable")
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// The folder with `models/`, in which results are written: the checkout that this package was built from, or, where the
/// programs were carried to another machine, the one that the environment variable `WORKER_TEST_ROOT` names.
pub(crate) fn repository_root() -> PathBuf {
    if let Some(root) = std::env::var_os("WORKER_TEST_ROOT") {
        return root.into();
    }
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

/// How a worker is to be started.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// Its `--worker-id`.
    pub worker_id: &'a str,
    /// Its `--model`; without one it serves the built-in model.
    pub model: Option<&'a Path>,
    /// Its `--device`; without one, `auto`.
    pub device: Option<&'a str>,
    /// Further flags.
    pub flags: &'a [&'a str],
    /// Where its output goes, both streams.
    pub log: &'a Path,
}

/// A worker process that has called back: it is ready. Killed when dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    client: Client,
    callback: Value,
    ready_after: Duration,
    log: PathBuf,
}

impl Worker {
    /// Starts a worker on a free port and waits until it calls back.
    ///
    /// # Errors
    /// When it cannot be started, ends before it is ready, or takes too long; the error quotes the end of its log.
    pub async fn start(binary: &WorkerBinary, launch: Launch<'_>) -> Result<Self> {
        let mut orchestrator = Orchestrator::start().await?;
        let started = Instant::now();
        let mut child = command(binary, &launch, orchestrator.url())?
            .spawn()
            .with_context(|| format!("starting {}", binary.path().display()))?;
        let callback = tokio::select! {
            callback = orchestrator.callback() => callback.context("the orchestrator stopped")?,
            status = child.wait() => {
                bail!("the worker ended before it was ready ({})\n{}", status?, log_tail(launch.log));
            }
            () = tokio::time::sleep(READY_LIMIT) => {
                bail!("the worker was not ready after {} s\n{}", READY_LIMIT.as_secs(), log_tail(launch.log));
            }
        };
        let uri = callback["uri"].as_str().with_context(|| format!("the callback names no uri: {callback}"))?;
        let client = Client::new(uri)?;
        Ok(Self { child, client, callback, ready_after: started.elapsed(), log: launch.log.to_path_buf() })
    }

    /// Speaks to it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Where it answers.
    pub fn uri(&self) -> &str {
        self.client.base()
    }

    /// The body of its ready callback.
    pub fn callback(&self) -> &Value {
        &self.callback
    }

    /// From start to callback.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Its process id, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.child.id()
    }

    /// If it has ended by itself: how, and the end of its log.
    pub fn obituary(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(format!("the worker has ended ({status})\n{}", log_tail(&self.log)))
    }

    /// Asks it to shut down and waits for its exit.
    ///
    /// # Errors
    /// When the request fails or the process outlives `limit`.
    pub async fn shut_down(mut self, limit: Duration) -> Result<ExitStatus> {
        self.client.shutdown().await?;
        match tokio::time::timeout(limit, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("the worker still runs {} s after POST /shutdown", limit.as_secs()),
        }
    }
}

fn command(binary: &WorkerBinary, launch: &Launch<'_>, callback_url: &str) -> Result<Command> {
    let log = File::create(launch.log).with_context(|| format!("creating {}", launch.log.display()))?;
    let mut command = Command::new(binary.path());
    // Settings of the caller's own would make this another worker than the one described.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WORKER_ORCD_")) {
        command.env_remove(name);
    }
    command.args(["--worker-id", launch.worker_id, "--port", "0", "--callback-url", callback_url]);
    // A worker that was carried to another machine has no model inside: the built-in one travels once, as a file.
    let carried = std::env::var_os("WORKER_TEST_ROOT").map(|_| repository_root().join(BUILT_IN_MODEL));
    if let Some(model) = launch.model.or(carried.as_deref()) {
        command.arg("--model").arg(model);
    }
    if let Some(device) = launch.device {
        command.args(["--device", device]);
    }
    command.args(launch.flags);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    Ok(command)
}

fn log_tail(path: &Path) -> String {
    let log = std::fs::read(path).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
    let path = path.strip_prefix(repository_root()).unwrap_or(path);
    format!("the last of its log, {}:\n  {}", path.display(), tail.join("\n  "))
}
