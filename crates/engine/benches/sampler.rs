//! Time to choose a token from 151,936 logits: `cargo bench -p engine`.
//!
//! On two rows: peaked, as a trained model's are, and flat, as a random model's are, which is the sampler's worst case.
//! Best and median of 200 runs.

use std::hint::black_box;
use std::time::Instant;

use engine::Sampling;
use engine::rng::uniform;
use engine::sampler::Sampler;
use transformer::{SampleRequest, TokenCount};

const N_VOCAB: usize = 151_936;
const N_RUNS: usize = 200;

fn main() {
    // Sums of uniform numbers are near normal; a trained model's best logits stand some ten deviations above the rest.
    let normal = |i: u64| (0..6).map(|j| uniform(1, 6 * i + j) as f32).sum::<f32>() * 1.4 - 4.2;
    let flat: Vec<f32> = (0..N_VOCAB as u64).map(normal).collect();
    let mut peaked: Vec<f32> = flat.iter().map(|x| x * 2.5).collect();
    for i in 0..200 {
        peaked[i * 701] += 14.0 - i as f32 * 0.05;
    }
    let plain = Sampling::default();
    let warm = Sampling { temperature: 0.7, ..plain.clone() };
    let settings = [
        ("greedy", Sampling { temperature: 0.0, ..plain.clone() }),
        ("temperature 0.7", Sampling { temperature: 0.7, ..plain.clone() }),
        ("temperature 0.7, top_p 0.95", Sampling { temperature: 0.7, top_p: 0.95, ..plain.clone() }),
        ("temperature 0.7, top_k 40", Sampling { temperature: 0.7, top_k: 40, ..plain.clone() }),
        (
            "all filters and a penalty",
            Sampling { top_k: 40, top_p: 0.95, min_p: 0.05, repetition_penalty: 1.1, ..warm.clone() },
        ),
    ];
    let history: Vec<TokenCount> = (0..200).map(|i| TokenCount { id: i * 31, count: 1 }).collect();
    println!("{:<32}{:>14}{:>14}{:>14}{:>14}", "ms a token", "peaked best", "median", "flat best", "median");
    let mut sampler = Sampler::new(N_VOCAB);
    for (name, sampling) in &settings {
        let mut figures = Vec::new();
        for row in [&peaked, &flat] {
            let time = measure(|i| {
                let request = SampleRequest { history: &history, ..SampleRequest::new(sampling, 1) };
                let _ = black_box(sampler.choose(row, &request, i));
            });
            figures.extend(time);
        }
        println!("{name:<32}{:>14.3}{:>14.3}{:>14.3}{:>14.3}", figures[0], figures[1], figures[2], figures[3]);
    }
    let mut figures = Vec::new();
    for row in [&peaked, &flat] {
        figures.extend(measure(|_| drop(black_box(sampler.logprobs(row, 0, 20)))));
    }
    println!(
        "{:<32}{:>14.3}{:>14.3}{:>14.3}{:>14.3}",
        "log-probabilities, top 20", figures[0], figures[1], figures[2], figures[3]
    );
}

/// Best and median milliseconds of a run.
fn measure(mut run: impl FnMut(u64)) -> [f64; 2] {
    let mut times: Vec<f64> = (0..N_RUNS as u64)
        .map(|i| {
            let start = Instant::now();
            run(i);
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    [times[0], times[N_RUNS / 2]]
}
