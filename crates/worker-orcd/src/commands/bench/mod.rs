//! `bench`: how fast prompts are read and answers decoded, beside how fast this machine reads the same weights.
//!
//! With `--url` a running server is measured instead: `load`. Otherwise the executor is driven directly: no HTTP; tokens are chosen only where the device does that itself. Every figure is the
//! median of some repetitions, with the least and the most, after one that is not counted. Prompt tokens are drawn from a
//! seed, so that a run can be repeated.
//!
//! On a CPU the ceiling is measured in the same process, on the same threads and the same bytes: decoding a token has to
//! read every matrix once, so no program decodes faster than this machine reads them.

mod bandwidth;
mod load;
mod measure;
mod report;

use std::time::Instant;

use anyhow::Context as _;
use transformer::ModelSpec;

use crate::cli::BenchArgs;
use crate::kv_plan::Pool;
use crate::logging::{self, Quiet};
use crate::progress::Loading;
use crate::start::{self, Loaded};
use crate::{memory, source};

use measure::Plan;
use report::Report;

/// Runs the command.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    logging::init(&args.log, Quiet::Yes)?;
    if let Some(url) = &args.url {
        return load::run(args, url);
    }
    let began = Instant::now();
    let file = source::open(&args.model)?;
    let n_ctx = ModelSpec::from_gguf(&file.gguf()?).with_context(|| format!("model {:?}", file.name()))?.n_ctx;
    let plan = Plan::new(args, n_ctx)?;
    let options = start::Options {
        device: args.device.clone(),
        max_seqs: Some(plan.most_seqs()),
        ctx_size: Some(plan.longest()),
        pool: Pool::Tokens(plan.most_tokens()),
        kv_type: args.kv_type.into(),
    };
    let loaded = {
        let mut loading = Loading::start(args.log.log_format);
        start::load(&file, &options, &mut |done, total| loading.set(done, total))?
    };
    measure_all(args, &plan, loaded, began.elapsed().as_secs_f64())
}

fn measure_all(args: &BenchArgs, plan: &Plan, mut loaded: Loaded, seconds_to_ready: f64) -> anyhow::Result<()> {
    loaded.executor.settle();
    let ceiling = loaded.weights.as_ref().map(|weights| {
        let tensors = bandwidth::decoded_tensors(weights);
        let ceiling = bandwidth::measure(&tensors, loaded.device.threads(), plan.repetitions);
        // What the executor has copied it does not read from the file again; the rest comes back with the first step.
        tensors.iter().for_each(|tensor| tensor.give_back_pages());
        ceiling
    });
    let mut report = Report::new(&source::name(&args.model), &loaded, seconds_to_ready, ceiling, args.json);
    report.head()?;
    for case in &plan.cases {
        let rates = measure::measure(loaded.executor.as_mut(), case, plan)?;
        report.row(case, &rates)?;
    }
    report.end(memory::resident_bytes(), loaded.executor.memory())
}
