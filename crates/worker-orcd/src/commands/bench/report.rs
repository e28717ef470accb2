//! The figures, as a table for people (a line as soon as it is known) or as one JSON object.

use serde_json::json;
use transformer::{ExecutorInfo, MemoryUse};

use super::measure::{Case, Spread, Work};
use crate::start::Loaded;
use crate::verdict::shown_count;
use crate::{memory, output};

/// Collects rows, or prints them.
pub(crate) struct Report {
    model: String,
    architecture: &'static str,
    quant_kind: &'static str,
    n_params: u64,
    info: ExecutorInfo,
    held: MemoryUse,
    seconds_to_ready: f64,
    seconds_for_weights: f64,
    /// Bytes of weights that a step of decoding reads.
    decoded_bytes: u64,
    /// How fast they can be read, in bytes per second, where that was measured.
    ceiling: Option<Spread>,
    is_json: bool,
    rows: Vec<serde_json::Value>,
}

impl Report {
    pub(crate) fn new(
        model: &str,
        loaded: &Loaded,
        seconds_to_ready: f64,
        ceiling: Option<Spread>,
        is_json: bool,
    ) -> Self {
        Self {
            model: model.to_owned(),
            architecture: loaded.spec.architecture,
            quant_kind: loaded.quant_kind,
            n_params: loaded.spec.n_params(),
            info: loaded.executor.info().clone(),
            held: loaded.executor.memory(),
            seconds_to_ready,
            seconds_for_weights: loaded.weights_took.as_secs_f64(),
            decoded_bytes: loaded.decoded_bytes,
            ceiling,
            is_json,
            rows: Vec::new(),
        }
    }

    /// What is measured, and on what.
    pub(crate) fn head(&self) -> anyhow::Result<()> {
        if self.is_json {
            return Ok(());
        }
        output::write(&format!(
            "model    {}: {} {}, {} parameters, {} of weights\n\
             device   {}\n\
             ready    {:.3} s after the start, warm; of that {:.3} s for the weights\n\
             {}\n\
             {:<14}{:>7}{:>7}{:>12}{:>12}{:>12}{:>11}{:>9}{:>12}\n",
            self.model,
            self.architecture,
            self.quant_kind,
            shown_count(self.n_params),
            memory::shown(self.held.weight_bytes),
            self.info.device,
            self.seconds_to_ready,
            self.seconds_for_weights,
            self.ceiling_line(),
            "test",
            "depth",
            "batch",
            "tokens/s",
            "least",
            "most",
            "ms",
            "GB/s",
            "of ceiling",
        ))
    }

    fn ceiling_line(&self) -> String {
        let Some(rate) = self.ceiling else { return String::new() };
        format!(
            "ceiling  {:.1} GB/s ({:.1} to {:.1}): plain reading of the {} that decoding a token reads\n",
            rate.median / 1e9,
            rate.least / 1e9,
            rate.most / 1e9,
            memory::shown(self.decoded_bytes),
        )
    }

    /// One measurement. `ms`: a step of decoding, or all prompts until their first tokens.
    pub(crate) fn row(&mut self, case: &Case, rates: &Spread) -> anyhow::Result<()> {
        let (name, n) = match case.work {
            Work::Prompt(n) => ("prompt", n),
            Work::Decode(n) => ("decode", n),
        };
        // Every step of decoding reads all weights once, whatever the number of sequences.
        let steps_per_second = matches!(case.work, Work::Decode(_)).then_some(rates.median / case.n_seqs as f64);
        let ms_to_first_tokens =
            matches!(case.work, Work::Prompt(_)).then_some(1e3 * case.n_tokens() as f64 / rates.median);
        let ms_per_step = steps_per_second.map(|steps| 1e3 / steps);
        let read = steps_per_second.map(|steps| steps * self.decoded_bytes as f64);
        let share = read.zip(self.ceiling).map(|(read, ceiling)| read / ceiling.median);
        if self.is_json {
            self.rows.push(json!({
                "test": name,
                "n_tokens": n,
                "depth": case.depth,
                "batch": case.n_seqs,
                "tokens_per_sec": {"median": rates.median, "min": rates.least, "max": rates.most},
                "ms_per_step": ms_per_step,
                "ms_to_first_tokens": ms_to_first_tokens,
                "weight_bytes_per_sec": read,
                "share_of_ceiling": share,
            }));
            return Ok(());
        }
        let mut line = format!(
            "{:<14}{:>7}{:>7}{:>12.1}{:>12.1}{:>12.1}{:>11.2}",
            format!("{name} {n}"),
            case.depth,
            case.n_seqs,
            rates.median,
            rates.least,
            rates.most,
            ms_per_step.or(ms_to_first_tokens).unwrap_or_default(),
        );
        line += &read.map_or(String::new(), |read| format!("{:>9.1}", read / 1e9));
        line += &share.map_or(String::new(), |share| format!("{:>10.0} %", share * 100.0));
        output::write(&(line + "\n"))
    }

    /// What the process holds after all that.
    pub(crate) fn end(self, resident_bytes: Option<u64>, held: MemoryUse) -> anyhow::Result<()> {
        if !self.is_json {
            let resident = resident_bytes.map_or("unknown".to_owned(), memory::shown);
            let vram = match held.vram_bytes {
                0 => String::new(),
                bytes => format!(", {} of GPU memory", memory::shown(bytes)),
            };
            return output::write(&format!(
                "\nresident {resident}{vram}: {} of weights, {} of keys and values, {} of scratch memory, and the rest\n",
                memory::shown(held.weight_bytes),
                memory::shown(held.kv_bytes),
                memory::shown(held.scratch_bytes),
            ));
        }
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "optimised": !cfg!(debug_assertions),
            "model": self.model,
            "architecture": self.architecture,
            "quant_kind": self.quant_kind,
            "n_params": self.n_params,
            "device": self.info.device,
            "seconds_to_ready": self.seconds_to_ready,
            "seconds_for_weights": self.seconds_for_weights,
            "decoded_bytes": self.decoded_bytes,
            "ceiling": self.ceiling.map(|rate| json!({
                "bytes": self.decoded_bytes,
                "bytes_per_sec": {"median": rate.median, "min": rate.least, "max": rate.most},
            })),
            "results": self.rows,
            "memory": {
                "resident_bytes": resident_bytes,
                "weight_bytes": held.weight_bytes,
                "kv_bytes": held.kv_bytes,
                "scratch_bytes": held.scratch_bytes,
                "vram_bytes": held.vram_bytes,
            },
        });
        output::write(&(serde_json::to_string_pretty(&report)? + "\n"))
    }
}
