//! `bench`: how fast prompts are read and answers decoded, beside how fast this machine reads the same weights.
//!
//! The executor is driven directly: no HTTP, no sampling. Every figure is the median of some repetitions, with the least
//! and the most, after one that is not counted. Prompt tokens are drawn from a seed, so that a run can be repeated.
//!
//! The ceiling is measured in the same process, on the same threads and the same bytes: decoding a token has to read
//! every matrix once, so no program decodes faster than this machine reads them.

mod bandwidth;
mod measure;
mod report;

use std::time::Instant;

use crate::cli::BenchArgs;
use crate::kv_plan::Pool;
use crate::logging::{self, Quiet};
use crate::progress::Loading;
use crate::start::{self, Loaded};
use crate::{device, memory, source};

use measure::Plan;
use report::Report;

/// Runs the command.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    logging::init(&args.log, Quiet::Yes)?;
    let threads = device::cpu_threads(&args.device)?;
    let plan = Plan::new(args)?;
    let began = Instant::now();
    let file = source::open(&args.model)?;
    let options = start::Options {
        threads,
        max_seqs: plan.most_seqs(),
        max_batch_tokens: start::MAX_BATCH_TOKENS.max(plan.most_seqs()),
        ctx_size: Some(plan.longest()),
        pool: Pool::Whole,
        kv_type: args.kv_type.into(),
    };
    let loaded = {
        let mut loading = Loading::start(args.log.log_format);
        start::load(&file, &options, &mut |done, total| loading.set(done, total))?
    };
    let seconds_to_ready = began.elapsed().as_secs_f64();
    measure_all(args, &plan, loaded, threads, seconds_to_ready)
}

fn measure_all(
    args: &BenchArgs,
    plan: &Plan,
    mut loaded: Loaded,
    threads: usize,
    seconds_to_ready: f64,
) -> anyhow::Result<()> {
    let read_per_token = bandwidth::decoded_bytes(&loaded.weights);
    let ceiling = bandwidth::measure(&read_per_token, threads, plan.repetitions);
    let mut report = Report::new(&source::name(&args.model), &loaded, seconds_to_ready, ceiling, args.json);
    report.head()?;
    for &depth in &plan.depths {
        for &n_seqs in &plan.batches {
            for case in plan.cases(depth, n_seqs) {
                let rates = measure::measure(&mut loaded.executor, &case, plan)?;
                report.row(&case, &rates)?;
            }
        }
    }
    report.end(memory::resident_bytes())
}
