//! What counting and timing a token costs, and writing all metrics: `cargo bench -p worker-http`.
//!
//! Best and median of 200 runs, from one thread and from four at once; nanoseconds, of each.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// The module itself, which the crate keeps to itself; with what only its tests and the rest of the crate use.
#[path = "../src/metrics/mod.rs"]
#[allow(dead_code, unused_imports)]
mod metrics;

mod state {
    pub(crate) use worker_http::ModelFacts;
}

use metrics::{Metrics, TextForm};

const N_RUNS: usize = 200;
const N_TOKENS: usize = 10_000;
const N_THREADS: usize = 4;

fn main() {
    let metrics = Metrics::new("model");
    // In the first bucket, as a token of a fast device is, and far behind it.
    for (name, gap) in [("token, 5 ms after the last", 5), ("token, 1 s after the last", 1000)] {
        let gap = Duration::from_millis(gap);
        let tokens = || (0..N_TOKENS).for_each(|_| metrics.next_token(black_box(gap)));
        report(name, N_TOKENS, tokens);
        report(&format!("{name}, {N_THREADS} threads"), N_TOKENS * N_THREADS, || {
            std::thread::scope(|scope| {
                for _ in 0..N_THREADS {
                    scope.spawn(tokens);
                }
            });
        });
    }
    report("the clock, for comparison", N_TOKENS, || {
        for _ in 0..N_TOKENS {
            black_box(Instant::now());
        }
    });
    report("all metrics as text", 1, || {
        let _ = black_box(metrics.encode(TextForm::Prometheus, Duration::from_secs(1), None));
    });
}

fn report(name: &str, n: usize, work: impl Fn()) {
    let mut times: Vec<f64> = (0..N_RUNS)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed().as_nanos() as f64 / n as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{name:<44}{:>12.1}{:>12.1}", times[0], times[N_RUNS / 2]);
}
