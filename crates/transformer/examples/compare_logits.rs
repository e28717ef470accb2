//! Compares a model's logits with the reference's, at some positions of one long sequence, and fails beyond the gates.
//!
//!     full_size.py MODEL.gguf --out full_size        # in crates/transformer/golden, once
//!     cargo run --release -p transformer --example compare_logits -- MODEL.gguf full_size.json
//!     cargo run --release -p transformer --features cuda --example compare_logits -- MODEL.gguf full_size.json --device cuda
//!
//! The sequence is read in as a prompt, in steps of 512 rows, but for its last 32 tokens, which are fed one a step as if
//! they had been generated. Where generated rows have kernels of their own, as on a GPU, each position of the prompt is then
//! asked for once more as a generated row.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use serde::Deserialize;
use test_support::closeness::{Closeness, Gates, Position, check_exempt};
use transformer::cpu::{CpuExecutor, CpuOptions};
use transformer::{BLOCK_TOKENS, Batch, BlockId, Executor, ExecutorError, KvType, ModelSpec, Role};
use weight_loader::ModelFile;

/// Tokens at the end that are fed one a step.
const N_GENERATED: usize = 32;
/// Prompt rows of a step.
const CHUNK: usize = 512;
/// Sampled rows of a step: more positions of one chunk than are ever compared.
const MAX_SAMPLES: usize = 256;

const USAGE: &str = "usage: compare_logits MODEL.gguf GOLDEN.json [--device cpu|cuda]";

#[derive(Deserialize)]
struct Golden {
    tokens: Vec<u32>,
    positions: Vec<usize>,
    n_vocab: usize,
    #[serde(skip)]
    logits: Vec<f32>,
}

impl Golden {
    fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let mut golden: Golden = serde_json::from_slice(&std::fs::read(path)?)?;
        let bytes = std::fs::read(path.with_extension("f32"))?;
        golden.logits = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if golden.logits.len() != golden.positions.len() * golden.n_vocab {
            return Err(format!("{}: logits for other positions", path.display()).into());
        }
        Ok(golden)
    }

    /// The reference's logits at the `idx`th position.
    fn at(&self, idx: usize) -> &[f32] {
        &self.logits[idx * self.n_vocab..][..self.n_vocab]
    }

    /// Tokens that are read in as a prompt.
    fn n_prompt(&self) -> usize {
        self.tokens.len().saturating_sub(N_GENERATED).max(1)
    }

    /// Blocks for the whole sequence.
    fn blocks(&self) -> Vec<BlockId> {
        (0..self.tokens.len().div_ceil(BLOCK_TOKENS) as u32).map(BlockId).collect()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (model, golden, device) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [model, golden] => (model, golden, "cpu"),
        [model, golden, "--device", device] => (model, golden, device),
        _ => return Err(USAGE.into()),
    };
    let golden = Golden::read(Path::new(golden))?;
    let file = ModelFile::open(Path::new(model))?;
    let faults = match device {
        "cpu" => on_cpu(&file, &golden)?,
        #[cfg(feature = "cuda")]
        "cuda" => on_cuda(&file, &golden)?,
        _ => return Err(USAGE.into()),
    };
    if faults.is_empty() {
        return Ok(());
    }
    Err(faults.join("; ").into())
}

/// Both kinds of KV cache.
fn on_cpu(file: &ModelFile, golden: &Golden) -> Result<Vec<String>, Box<dyn Error>> {
    let gguf = file.gguf()?;
    let spec = ModelSpec::from_gguf(&gguf)?;
    let weights = weight_loader::load(file, &gguf, &spec.tensors(), &mut |_| ())?;
    let mut faults = Vec::new();
    for (kv_type, gates) in [(KvType::F32, Gates::CPU_F32), (KvType::F16, Gates::CPU_F16)] {
        let n_tokens = golden.tokens.len();
        let kv_bytes = spec.kv_bytes_per_token(kv_type.n_bytes()) * n_tokens.next_multiple_of(BLOCK_TOKENS) as u64;
        let options = CpuOptions {
            kv_type,
            max_seqs: MAX_SAMPLES,
            n_ctx: Some(n_tokens),
            kv_bytes: Some(kv_bytes),
            ..CpuOptions::default()
        };
        println!("KV cache {kv_type:?}:");
        let mut executor = CpuExecutor::new(spec.clone(), weights.clone(), options)?;
        faults.extend(compare(&mut executor, golden, gates)?);
    }
    Ok(faults)
}

#[cfg(feature = "cuda")]
fn on_cuda(file: &ModelFile, golden: &Golden) -> Result<Vec<String>, Box<dyn Error>> {
    use transformer::cuda::{CudaExecutor, CudaOptions, kv_block_bytes};
    let gguf = file.gguf()?;
    let spec = ModelSpec::from_gguf(&gguf)?;
    let options = CudaOptions {
        n_ctx: Some(golden.tokens.len()),
        max_seqs: MAX_SAMPLES,
        max_batch_tokens: CHUNK,
        kv_bytes: Some(golden.blocks().len() as u64 * kv_block_bytes(&spec)),
        ..CudaOptions::default()
    };
    let mut executor = CudaExecutor::load(spec, file, &gguf, options, &mut |_, _| ())?;
    compare(&mut executor, golden, Gates::CUDA_FULL_SIZE)
}

/// What is beyond the gates.
fn compare(executor: &mut dyn Executor, golden: &Golden, gates: Gates) -> Result<Vec<String>, Box<dyn Error>> {
    let start = Instant::now();
    let rows = read_in(executor, golden)?;
    println!("{}: {} tokens in {:.1} s", executor.info().device, golden.tokens.len(), start.elapsed().as_secs_f64());
    let mut found = vec![report(golden, &rows)];
    if !executor.info().roles_bit_equal {
        let start = Instant::now();
        let rows = as_generated(executor, golden)?;
        println!("as generated rows, in {:.1} s:", start.elapsed().as_secs_f64());
        found.push(report(golden, &rows));
    }
    let exempt = check_exempt(found.iter().map(|c| c.n_exempt).sum(), found.iter().map(|c| c.n_positions).sum());
    Ok(found.iter().map(|c| c.check(gates)).chain([exempt]).filter_map(Result::err).collect())
}

/// Logits at a golden position, which is named by its place among them.
type Row = (usize, Vec<f32>);

/// The whole sequence, once.
fn read_in(executor: &mut dyn Executor, golden: &Golden) -> Result<Vec<Row>, ExecutorError> {
    let (blocks, n_prompt) = (golden.blocks(), golden.n_prompt());
    let chunk = executor.info().max_batch_tokens.min(CHUNK);
    let (mut pos, mut rows, mut batch) = (0, Vec::new(), Batch::default());
    while pos < golden.tokens.len() {
        let (role, end) = match pos < n_prompt {
            true => (Role::Prompt, n_prompt.min(pos + chunk)),
            false => (Role::Generated, pos + 1),
        };
        batch.clear();
        batch.push(role, &golden.tokens[pos..end], pos as u32, &blocks, false);
        let wanted: Vec<usize> = places(golden, |p| (pos..end).contains(&p)).collect();
        batch.sample_rows.extend(wanted.iter().map(|&idx| golden.positions[idx] - pos));
        let logits = executor.forward(&batch)?.into_logits();
        rows.extend(wanted.into_iter().zip(logits.chunks_exact(golden.n_vocab).map(<[f32]>::to_vec)));
        pos = end;
    }
    Ok(rows)
}

/// Each position of the prompt as a generated row, after [`read_in`]: its keys and values replace those of the prompt's row.
/// From the last to the first, so that each reads what prompt rows have left.
fn as_generated(executor: &mut dyn Executor, golden: &Golden) -> Result<Vec<Row>, ExecutorError> {
    let (blocks, mut rows, mut batch) = (golden.blocks(), Vec::new(), Batch::default());
    for idx in places(golden, |p| p < golden.n_prompt()).rev() {
        let pos = golden.positions[idx];
        batch.clear();
        batch.push(Role::Generated, &golden.tokens[pos..=pos], pos as u32, &blocks, true);
        rows.push((idx, executor.forward(&batch)?.into_logits().to_vec()));
    }
    rows.reverse();
    Ok(rows)
}

/// Places of the golden positions that are wanted.
fn places(golden: &Golden, wanted: impl Fn(usize) -> bool) -> impl DoubleEndedIterator<Item = usize> {
    golden.positions.iter().enumerate().filter(move |&(_, &p)| wanted(p)).map(|(idx, _)| idx)
}

fn report(golden: &Golden, rows: &[Row]) -> Closeness {
    println!(
        "| position | relative error | mean abs. difference of log-probabilities | lead of the best | same choice |"
    );
    println!("|---:|---:|---:|---:|---|");
    for (idx, got) in rows {
        let position = golden.positions[*idx];
        // Powers of two less one, and the last: the table is to be read.
        if (position + 1).is_power_of_two() || position + 1 == golden.tokens.len() {
            let p = Position::of(got, golden.at(*idx));
            let same = if p.same_choice { "yes" } else { "no" };
            println!("| {position} | {:.1e} | {:.1e} | {:.1e} | {same} |", p.error, p.mean_logprob_error, p.lead);
        }
    }
    let got: Vec<f32> = rows.iter().flat_map(|(_, logits)| logits).copied().collect();
    let want: Vec<f32> = rows.iter().flat_map(|(idx, _)| golden.at(*idx)).copied().collect();
    let c = Closeness::of(&got, &want, golden.n_vocab);
    println!(
        "all {} positions: error {:.1e}, worst {:.1e}; log-probabilities {:.1e}; greedy choices: {} differ, {} exempt",
        c.n_positions, c.error, c.max_error, c.mean_logprob_error, c.n_disagree, c.n_exempt
    );
    c
}
