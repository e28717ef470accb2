//! A hundred jobs, half of them cancelled or abandoned: on this machine's CPU, or where `WORKER_TEST_DEVICE` says; with the
//! built-in model, or the file that `WORKER_TEST_MODEL` names.

use worker_tests::harness::WorkerBinary;
use worker_tests::storm::{self, Options};

#[tokio::test(flavor = "current_thread")]
async fn after_a_hundred_jobs_half_of_them_broken_off_nothing_is_held() {
    let options = Options {
        worker: WorkerBinary::from_environment_or_cargo().expect("the worker builds"),
        device: std::env::var("WORKER_TEST_DEVICE").unwrap_or_else(|_| "cpu".into()),
        model: std::env::var_os("WORKER_TEST_MODEL").map(Into::into),
    };
    let report = storm::run(&options).await.unwrap_or_else(|error| panic!("{error:#}"));
    println!("{report}");
}
