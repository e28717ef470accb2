//! `perplexity`: how well a model predicts a text, as llama.cpp's tool measures it by default.

use std::time::Instant;

use serde_json::json;

use crate::cli::PerplexityArgs;
use crate::logging::{self, Quiet};
use crate::scoring::statistics::{self, Estimate};
use crate::scoring::{Model, Windows};
use crate::{output, source};

/// Runs the command.
pub(crate) fn run(args: &PerplexityArgs) -> anyhow::Result<()> {
    logging::init(&args.log, Quiet::Yes)?;
    let file = source::open(&args.model)?;
    let windows = Windows::read(&args.text, &source::vocabulary(&file)?)?;
    let (mut model, facts) = Model::load(&file, &args.text, &args.device, &args.log)?;

    let began = Instant::now();
    let (n_windows, n_scored) = (windows.n_windows(), windows.scored().len());
    if !args.json {
        output::write(&format!(
            "model    {}: {} {}, on {}\n\
             text     {}: {} tokens, {n_windows} windows of {}, {n_scored} tokens scored in each\n\n\
             {:<9}perplexity so far\n",
            facts.name,
            facts.architecture,
            facts.quant_kind,
            facts.device,
            args.text.file.display(),
            windows.n_tokens(),
            args.text.ctx_size,
            "window",
        ))?;
    }
    let mut nlls = Vec::with_capacity(n_windows * n_scored);
    for i in 0..n_windows {
        windows.score(i, &mut [&mut model], |targets, [logits]| {
            let rows = logits.chunks_exact(facts.n_vocab).zip(targets);
            nlls.extend(rows.map(|(row, &target)| statistics::log_sum_exp(row) - f64::from(row[target as usize])));
            Ok(())
        })?;
        if !args.json {
            let so_far = statistics::perplexity(&nlls).value;
            output::write(&format!("{:<9}{so_far:.4}\n", format!("{}/{n_windows}", i + 1)))?;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let (perplexity, nll) = (statistics::perplexity(&nlls), Estimate::mean(&nlls));
    if args.json {
        let report = json!({
            "model": facts.name,
            "quant_kind": facts.quant_kind,
            "device": facts.device,
            "n_ctx": args.text.ctx_size,
            "n_tokens": windows.n_tokens(),
            "n_windows": n_windows,
            "n_scored": nlls.len(),
            "perplexity": perplexity.as_json(),
            "negative_log_likelihood": nll.as_json(),
            "seconds": seconds,
        });
        return output::write(&(serde_json::to_string_pretty(&report)? + "\n"));
    }
    output::write(&format!(
        "\nperplexity {:.4} \u{b1} {:.4} of {} tokens, in {seconds:.1} s\n",
        perplexity.value,
        perplexity.error,
        nlls.len()
    ))
}
