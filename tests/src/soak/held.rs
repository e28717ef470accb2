//! What a worker holds while nothing is asked of it: KV blocks, open files, memory.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::Instant;

use super::report::Check;
use crate::harness::{Client, Metrics, Worker};

/// How long the worker may take to let go of the last job and the last connection: one step, the engine's next sample of
/// its memory, and the time that a connection gets whose client has gone silent in the middle of a head (20 s).
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);
/// Looks in a row that must agree.
const N_STILL: usize = 6;
/// By how much resident memory may have grown since the first round. The system may take pages of files away at any time.
const MAX_MEMORY_GROWTH_PERCENT: u64 = 5;
/// What must be 0 while nothing is asked.
const GAUGES: [&str; 3] = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"];

/// One look at a worker that has come to rest, or has not done so within [`SETTLE_LIMIT`].
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) metrics: Metrics,
    /// Open files, sockets among them; none where the system does not tell.
    n_files: Option<usize>,
    /// Resident memory in KiB: `Rss` of `/proc/PID/smaps_rollup`.
    resident_kib: Option<u64>,
    /// Of these, what is in no file: `Anonymous`.
    anonymous_kib: Option<u64>,
}

impl Held {
    /// Looks until nothing changes any more.
    pub(super) async fn settled(worker: &Worker) -> Result<Self> {
        let give_up = Instant::now() + SETTLE_LIMIT;
        let mut n_still = 0;
        let mut last = None;
        loop {
            let held = Self::now(worker).await?;
            let state = (held.busy().len(), held.n_files);
            n_still = if last == Some(state) { n_still + 1 } else { 0 };
            if (n_still >= N_STILL && state.0 == 0) || Instant::now() >= give_up {
                return Ok(held);
            }
            last = Some(state);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn now(worker: &Worker) -> Result<Self> {
        // A client of its own each time: the connection is open while the files are counted, before and after alike.
        let client = Client::new(worker.uri())?;
        let metrics = client.metrics().await?;
        ensure!(GAUGES.iter().all(|name| metrics.total(name).is_some()), "GET /metrics lacks one of {GAUGES:?}");
        let of_process = |name: &str| Some(format!("/proc/{}/{name}", worker.process_id()?));
        let n_files = of_process("fd").and_then(|path| Some(std::fs::read_dir(path).ok()?.count()));
        let rollup = of_process("smaps_rollup").and_then(|path| std::fs::read_to_string(path).ok());
        let kib = |name| rollup.as_deref().and_then(|text| field_kib(text, name));
        Ok(Self { metrics, n_files, resident_kib: kib("Rss:"), anonymous_kib: kib("Anonymous:") })
    }

    /// The gauges that are not 0.
    fn busy(&self) -> Vec<String> {
        let values = GAUGES.iter().map(|name| (name, self.metrics.total(name)));
        values.filter(|(_, value)| *value != Some(0.0)).map(|(name, value)| format!("{name} {value:?}")).collect()
    }
}

fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

/// After the load against after the first round.
pub(super) fn compare(before: &Held, after: &Held) -> Vec<Check> {
    let busy = after.busy();
    let rest = if busy.is_empty() { "running 0, waiting 0, KV use 0".to_owned() } else { busy.join(", ") };
    let mut checks = vec![Check::new("no job is left and every KV block is free", busy.is_empty(), rest)];
    let held = |metrics: &Metrics| metrics.total("worker_memory_bytes");
    let (model, was) = (held(&after.metrics), held(&before.metrics));
    let found = format!("{} bytes, {} before", shown(model), shown(was));
    checks.push(Check::new("the model's memory is what it was", model.is_some() && model == was, found));
    // Where there is no /proc there is nothing to compare.
    if let (Some(files), Some(was)) = (after.n_files, before.n_files) {
        checks.push(Check::new("as many files are open as before", files == was, format!("{files}, {was} before")));
    }
    if let (Some(kib), Some(was)) = (after.resident_kib, before.resident_kib) {
        let change = kib as f64 / was.max(1) as f64 - 1.0;
        let found = format!(
            "{kib} KiB, {was} before: {:+.2} % (anonymous: {} KiB, {} before)",
            change * 100.0,
            shown(after.anonymous_kib),
            shown(before.anonymous_kib)
        );
        let claim = "resident memory has grown by at most 5 % since the first round";
        checks.push(Check::new(claim, kib * 100 <= was * (100 + MAX_MEMORY_GROWTH_PERCENT), found));
    }
    checks
}

fn shown(value: Option<impl std::fmt::Display>) -> String {
    value.map_or_else(|| "unknown".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_fields_of_a_rollup() {
        let text = "00400000-7fff [rollup]\nRss:               23456 kB\nPss:    1 kB\nAnonymous:            7 kB\n";
        assert_eq!((field_kib(text, "Rss:"), field_kib(text, "Anonymous:")), (Some(23456), Some(7)));
        assert_eq!(field_kib(text, "Swap:"), None);
    }

    #[test]
    fn growth_and_leaks_are_found() {
        let metrics = |running: u32| {
            let gauges = GAUGES.iter().map(|name| format!("{name} {running}\n")).collect::<String>();
            Metrics::parse(&(gauges + "worker_memory_bytes 100\n"))
        };
        let held = |running, files, kib| Held {
            metrics: metrics(running),
            n_files: Some(files),
            resident_kib: Some(kib),
            anonymous_kib: None,
        };
        let verdicts = |after| compare(&held(0, 20, 1000), &after).iter().map(|check| check.passed).collect::<Vec<_>>();
        assert_eq!(verdicts(held(0, 20, 1050)), [true, true, true, true]);
        assert_eq!(verdicts(held(1, 21, 1051)), [false, true, false, false]);
        assert_eq!(verdicts(held(0, 19, 949)), [true, true, false, true]);
    }
}
