//! Compares a model's logits with the reference's, at some positions of one long sequence.
//!
//!     full_size.py MODEL.gguf --out full_size        # in crates/transformer/golden, once
//!     cargo run --release -p transformer --example compare_logits -- MODEL.gguf full_size.json
//!
//! The sequence is read in as a prompt, in steps of 512 rows, but for its last 32 tokens, which are fed one a step as if
//! they had been generated.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use serde::Deserialize;
use transformer::cpu::{CpuExecutor, CpuOptions};
use transformer::{BLOCK_TOKENS, Batch, BlockId, Executor, KvType, ModelSpec, Role};
use weight_loader::ModelFile;

/// Tokens at the end that are fed one a step.
const N_GENERATED: usize = 32;

#[derive(Deserialize)]
struct Golden {
    tokens: Vec<u32>,
    positions: Vec<usize>,
    n_vocab: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, golden] = &args[..] else { return Err("usage: compare_logits MODEL.gguf GOLDEN.json".into()) };
    let golden_path = Path::new(golden);
    let golden: Golden = serde_json::from_slice(&std::fs::read(golden_path)?)?;
    let bytes = std::fs::read(golden_path.with_extension("f32"))?;
    let want: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();

    let file = ModelFile::open(Path::new(model))?;
    let gguf = file.gguf()?;
    let spec = ModelSpec::from_gguf(&gguf)?;
    let weights = weight_loader::load(&file, &gguf, &spec.tensors(), &mut |_| ())?;
    for kv_type in [KvType::F32, KvType::F16] {
        let options = CpuOptions { kv_type, max_seqs: 64, n_ctx: Some(golden.tokens.len()), ..CpuOptions::default() };
        let kv_bytes =
            spec.kv_bytes_per_token(kv_type.n_bytes()) * golden.tokens.len().next_multiple_of(BLOCK_TOKENS) as u64;
        let options = CpuOptions { kv_bytes: Some(kv_bytes), ..options };
        let mut executor = CpuExecutor::new(spec.clone(), weights.clone(), options)?;
        let start = Instant::now();
        let got = run(&mut executor, &golden)?;
        println!("{}, KV cache {kv_type:?}: {:.0} s", executor.info().device, start.elapsed().as_secs_f64());
        report(&golden, &got, &want);
    }
    Ok(())
}

/// Logits at the golden positions. `[n_positions, n_vocab]`
fn run(executor: &mut CpuExecutor, golden: &Golden) -> Result<Vec<f32>, Box<dyn Error>> {
    let n_tokens = golden.tokens.len();
    let n_prompt = n_tokens.saturating_sub(N_GENERATED).max(1);
    let blocks: Vec<BlockId> = (0..n_tokens.div_ceil(BLOCK_TOKENS) as u32).map(BlockId).collect();
    let (mut pos, mut logits, mut batch) = (0, Vec::new(), Batch::default());
    while pos < n_tokens {
        let (role, end) = match pos < n_prompt {
            true => (Role::Prompt, n_prompt.min(pos + executor.info().max_batch_tokens)),
            false => (Role::Generated, pos + 1),
        };
        batch.clear();
        batch.push(role, &golden.tokens[pos..end], pos as u32, &blocks, false);
        batch.sample_rows.extend(golden.positions.iter().filter(|p| (pos..end).contains(p)).map(|p| p - pos));
        logits.extend_from_slice(executor.forward(&batch)?.into_logits());
        pos = end;
    }
    Ok(logits)
}

fn report(golden: &Golden, got: &[f32], want: &[f32]) {
    println!(
        "| position | relative error | mean abs. difference of log-probabilities | lead of the best | same choice |"
    );
    println!("|---:|---:|---:|---:|---|");
    let (mut n_exempt, mut n_differ, mut worst) = (0, 0, 0.0f64);
    let rows = got.chunks_exact(golden.n_vocab).zip(want.chunks_exact(golden.n_vocab));
    for (position, (got, want)) in golden.positions.iter().zip(rows) {
        let error = relative_error(got, want);
        let largest = got.iter().zip(want).map(|(g, w)| f64::from(g - w).abs()).fold(0.0, f64::max);
        let (got_lp, want_lp) = (log_softmax(got), log_softmax(want));
        let mean = got_lp.iter().zip(&want_lp).map(|(g, w)| (g - w).abs()).sum::<f64>() / want.len() as f64;
        let (best, gap) = best_and_lead(want);
        let same = best_and_lead(got).0 == best;
        worst = worst.max(error);
        n_exempt += usize::from(gap <= 2.0 * largest);
        n_differ += usize::from(!same && gap > 2.0 * largest);
        // Powers of two less one, and the last: the table is to be read.
        if (position + 1).is_power_of_two() {
            println!("| {position} | {error:.1e} | {mean:.1e} | {gap:.1e} | {} |", if same { "yes" } else { "no" });
        }
    }
    let n = golden.positions.len();
    println!(
        "all {n} positions: error {:.1e}, worst {worst:.1e}; greedy choices: {n_differ} differ, {n_exempt} exempt",
        relative_error(got, want)
    );
}

/// `|got - want| / |want|`
fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(*g) - f64::from(*w))).sum();
    (error / want.iter().map(|w| square(f64::from(*w))).sum::<f64>()).sqrt()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().map(|&x| f64::from(x)).fold(f64::MIN, f64::max);
    let log_sum = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln();
    logits.iter().map(|&x| f64::from(x) - max - log_sum).collect()
}

/// The index of the largest, and how far the second is behind.
fn best_and_lead(values: &[f32]) -> (usize, f64) {
    let best = (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or(0);
    let second = (0..values.len()).filter(|&i| i != best).map(|i| values[i]).fold(f32::MIN, f32::max);
    (best, f64::from(values[best]) - f64::from(second))
}
