//! The haiku run as a test: the built-in model on this machine's CPU, or where `WORKER_TEST_DEVICE` says.

use worker_tests::haiku::{self, Options};
use worker_tests::harness::WorkerBinary;

#[tokio::test(flavor = "current_thread")]
async fn haiku_generation_anti_cheat() {
    let worker = WorkerBinary::from_environment_or_cargo().expect("the worker builds");
    let device = std::env::var("WORKER_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    let options = Options { worker, model: None, device: Some(device), golden: None };
    let record = haiku::run(&options).await.expect("the artefacts are written");
    let evidence = record.folder().display();
    assert!(record.passed(), "{}\nevidence: {evidence}", record.failures().join("\n"));
}
