//! `compare`: how far one model's predictions of a text are from another's, as people choose quantisations by.

mod report;
mod vocabulary;

use std::time::Instant;

use rayon::prelude::*;
use weight_loader::ModelFile;

use crate::cli::CompareArgs;
use crate::logging::{self, Quiet};
use crate::scoring::statistics::Pair;
use crate::scoring::{Model, Windows};
use crate::{output, source};

use report::Figures;

/// Runs the command.
pub(crate) fn run(args: &CompareArgs) -> anyhow::Result<()> {
    logging::init(&args.log, Quiet::Yes)?;
    let (a, b) = (ModelFile::open(&args.reference)?, ModelFile::open(&args.other)?);
    let windows = {
        let (a_gguf, b_gguf) = (a.gguf()?, b.gguf()?);
        if let Some(difference) = vocabulary::first_difference(&a_gguf, &b_gguf) {
            anyhow::bail!("{} and {} have different vocabularies: {difference}", a.name(), b.name());
        }
        Windows::read(&args.text, &source::vocabulary(&a)?)?
    };
    let load = |file| Model::load(file, &args.text, &args.device, &args.log);
    let ((mut a, a_facts), (mut b, b_facts)) = (load(&a)?, load(&b)?);
    let (n_vocab, n_other) = (a_facts.n_vocab, b_facts.n_vocab);
    anyhow::ensure!(
        n_vocab == n_other,
        "the output matrices have {n_vocab} and {n_other} rows: not the same vocabulary"
    );

    // For what is done with the logits; the executors have their own.
    let threads = rayon::ThreadPoolBuilder::new().num_threads(args.device.threads.unwrap_or(0) as usize).build()?;
    let began = Instant::now();
    let n_windows = windows.n_windows();
    if !args.json {
        output::write(&report::head(args, &a_facts, &b_facts, &windows))?;
    }
    let mut pairs = Vec::with_capacity(n_windows * windows.scored().len());
    for i in 0..n_windows {
        windows.score(i, &mut [&mut a, &mut b], |targets, [a, b]| {
            // In order, whichever thread has computed which.
            let rows = a.par_chunks_exact(n_vocab).zip(b.par_chunks_exact(n_vocab)).zip(targets);
            threads.install(|| pairs.par_extend(rows.map(|((a, b), &target)| Pair::of(a, b, target))));
            Ok(())
        })?;
        if !args.json {
            output::write(&report::row(i, n_windows, &Figures::of(&pairs)))?;
        }
    }
    let (figures, seconds) = (Figures::of(&pairs), began.elapsed().as_secs_f64());
    if args.json {
        let report = figures.as_json(args, &a_facts, &b_facts, &windows, seconds);
        return output::write(&(serde_json::to_string_pretty(&report)? + "\n"));
    }
    output::write(&figures.shown(pairs.len(), seconds))
}
