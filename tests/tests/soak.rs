//! A short soak: on this machine's CPU, or where `WORKER_TEST_DEVICE` says; with the built-in model, or the file that
//! `WORKER_TEST_MODEL` names. `cargo xtask soak` is the long one.

use std::time::Duration;

use worker_tests::harness::WorkerBinary;
use worker_tests::soak::{self, Options};

/// All of it: first round, load, coming to rest.
const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "current_thread")]
async fn after_a_load_of_every_kind_no_job_is_lost_and_nothing_is_held() {
    let options = Options {
        worker: WorkerBinary::from_environment_or_cargo().expect("the worker builds"),
        device: std::env::var("WORKER_TEST_DEVICE").unwrap_or_else(|_| "cpu".into()),
        model: std::env::var_os("WORKER_TEST_MODEL").map(Into::into),
        seconds: 12,
        clients: 64,
        seed: 1,
    };
    let record = tokio::time::timeout(LIMIT, soak::run(&options)).await.expect("the soak ends within its limit");
    let record = record.expect("the report is written");
    assert!(record.passed(), "{}\nwritten to {}", record.table(), record.folder().display());
}
