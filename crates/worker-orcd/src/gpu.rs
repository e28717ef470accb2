//! NVIDIA GPUs: what there is, and a model's executor on one.

use transformer::ModelSpec;

use crate::start::{Made, Model, OnProgress, Options, weight_bytes};

/// What is known of a GPU before anything is loaded into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gpu {
    /// Counted from 0.
    pub(crate) ordinal: u32,
    /// As the driver calls it.
    pub(crate) name: String,
    /// Bytes of memory that are free.
    pub(crate) free_bytes: u64,
    /// Bytes of memory in all.
    pub(crate) total_bytes: u64,
    /// Whether steps of decoding are replayed as CUDA graphs.
    pub(crate) graphs: bool,
}

/// Why there is no GPU to run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoGpu {
    /// This build could not use one.
    #[cfg_attr(all(feature = "cuda", not(test)), expect(dead_code, reason = "this build could"))]
    NotBuilt,
    /// In plain words.
    #[cfg_attr(not(any(feature = "cuda", test)), expect(dead_code, reason = "a build without CUDA does not look"))]
    Unusable(String),
}

/// Looks at a GPU. This makes its context, of which the first in a process takes about 0.2 s.
///
/// # Errors
/// [`NoGpu`] says why it cannot be used.
#[cfg(feature = "cuda")]
pub(crate) fn find(ordinal: u32, graphs: bool) -> Result<Gpu, NoGpu> {
    let (facts, free_bytes) = transformer::cuda::device_facts(ordinal).map_err(|e| NoGpu::Unusable(e.to_string()))?;
    Ok(Gpu { ordinal, name: facts.name, free_bytes, total_bytes: facts.total_bytes, graphs })
}

/// There is none to look at.
#[cfg(not(feature = "cuda"))]
pub(crate) fn find(_ordinal: u32, _graphs: bool) -> Result<Gpu, NoGpu> {
    Err(NoGpu::NotBuilt)
}

/// Loads a model into a GPU's memory.
///
/// # Errors
/// What was needed and what was there, before anything is allocated; whatever the device says after that.
#[cfg(feature = "cuda")]
pub(crate) fn make(
    model: Model<'_>,
    gpu: &Gpu,
    (max_seqs, max_batch_tokens): (usize, usize),
    options: &Options,
    progress: &mut OnProgress<'_>,
) -> anyhow::Result<Made> {
    use anyhow::Context as _;
    use transformer::cuda::{CudaExecutor, CudaOptions, kv_block_bytes};
    use transformer::{BLOCK_TOKENS, KvType};

    use crate::{kv_plan::Room, start};

    let Model { file, gguf, spec } = model;
    anyhow::ensure!(
        options.kv_type == KvType::F16,
        "--kv-type f32: a GPU keeps keys and values in f16 only; leave it out, or use --device cpu"
    );
    let n_ctx = options.ctx_size.unwrap_or(spec.n_ctx);
    let room = Room::of_gpu(gpu.free_bytes, reserved_bytes(spec, n_ctx, max_seqs, max_batch_tokens));
    let plan = start::plan(model, kv_block_bytes(spec) / BLOCK_TOKENS as u64, max_seqs, options, room)?;
    let options = CudaOptions {
        ordinal: gpu.ordinal,
        n_ctx: Some(plan.n_ctx),
        max_seqs,
        max_batch_tokens,
        kv_bytes: Some(plan.kv_bytes),
        graphs: gpu.graphs,
        ..CudaOptions::default()
    };
    let executor = CudaExecutor::load(spec.clone(), file, gguf, options, progress)
        .with_context(|| format!("model {:?}", file.name()))?;
    let times = executor.load_times();
    tracing::debug!(
        "GPU open after {:.1?}, weights after {:.1?}, all after {:.1?}",
        times.opened,
        times.resident,
        times.done
    );
    progress(weight_bytes(gguf), weight_bytes(gguf));
    Ok(Made { executor: Box::new(executor), weights: None, weights_took: times.resident - times.opened })
}

/// There is no executor for it.
#[cfg(not(feature = "cuda"))]
pub(crate) fn make(
    _: Model<'_>,
    gpu: &Gpu,
    _: (usize, usize),
    _: &Options,
    _: &mut OnProgress<'_>,
) -> anyhow::Result<Made> {
    anyhow::bail!("GPU {} ({}): this build of worker-orcd has no CUDA", gpu.ordinal, gpu.name)
}

/// Destroys the process's context on a GPU: what its executor is asked next fails.
#[cfg(all(feature = "cuda", feature = "fault-injection"))]
pub(crate) fn poison(gpu: &Gpu) {
    match transformer::cuda::poison_context(gpu.ordinal) {
        Ok(()) => panic!("GPU {} does not mind what should have destroyed its context", gpu.ordinal),
        Err(error) => tracing::warn!("destroyed the context on demand: {error}"),
    }
}

/// Requests that may generate at the same time where nobody said. Decoding 256 costs a GPU hardly more than decoding one,
/// and they share one pool of keys and values; but each has a row of logits and scratch memory of its own, which may take
/// a quarter of what the weights leave.
pub(crate) fn default_max_seqs(Model { gguf, spec, .. }: Model<'_>, gpu: &Gpu, ctx_size: Option<usize>) -> usize {
    let left = gpu.free_bytes.saturating_sub(weight_bytes(gguf));
    let n_ctx = ctx_size.unwrap_or(spec.n_ctx);
    max_seqs_in(left / 4, |max_seqs| max_seqs as u64 * bytes_of_a_seq(spec, n_ctx))
}

/// The most of 256, 128, ... 8 for which `needed` fits into `bytes`; 8 where nothing does, which will be refused.
fn max_seqs_in(bytes: u64, needed: impl Fn(usize) -> u64) -> usize {
    [256, 128, 64, 32, 16].into_iter().find(|&max_seqs| needed(max_seqs) <= bytes).unwrap_or(8)
}

/// An upper estimate of what the executor needs besides weights and pool: the context and the kernels' code, activations
/// of the longest step, the largest matrix in F16, and what each sequence needs. The executor checks once more, with what
/// it will really take.
#[cfg(any(feature = "cuda", test))]
fn reserved_bytes(spec: &ModelSpec, n_ctx: usize, max_seqs: usize, max_batch_tokens: usize) -> u64 {
    const CONTEXT: u64 = 512 << 20;
    let qkv = (spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head;
    let of_a_row = 10 * spec.d_model + 6 * qkv + 2 * spec.n_heads * spec.d_head + 10 * spec.d_ff;
    let matrix = 2 * spec.d_model * spec.n_vocab.max(2 * spec.d_ff);
    let of_seqs = (max_seqs as u64).saturating_mul(bytes_of_a_seq(spec, n_ctx));
    let fixed = CONTEXT.saturating_add(matrix as u64);
    fixed.saturating_add((max_batch_tokens as u64).saturating_mul(of_a_row as u64)).saturating_add(of_seqs)
}

/// Logits of a generated and of a prompt row and what is needed to choose from them, partial sums of the residual stream,
/// what attention keeps of each 256 tokens of a context, and the tokens of a context.
fn bytes_of_a_seq(spec: &ModelSpec, n_ctx: usize) -> u64 {
    let of_a_split = 4 * spec.n_heads * (spec.d_head + 2);
    (16 * spec.n_vocab + 64 * spec.d_model + 4 * n_ctx + n_ctx.div_ceil(256) * of_a_split) as u64
}

#[cfg(test)]
mod tests {
    use transformer::{Rope, RopePairs};

    use super::*;

    /// Qwen2.5-0.5B.
    fn qwen() -> ModelSpec {
        ModelSpec {
            architecture: "qwen2",
            name: None,
            n_layers: 24,
            d_model: 896,
            n_heads: 14,
            n_kv_heads: 2,
            d_head: 64,
            d_ff: 4864,
            n_vocab: 151_936,
            n_ctx: 32_768,
            rms_eps: 1e-6,
            rope: Rope { pairs: RopePairs::Halves, base: 1e6, n_dims: 64, scale: 1.0, has_freqs: false },
            qkv_bias: true,
            tied_output: false,
        }
    }

    #[test]
    fn what_a_gpu_reserves_is_a_small_part_of_it() {
        let reserved = reserved_bytes(&qwen(), 32_768, 256, 2048);
        assert!((512 << 20..2 << 30).contains(&reserved), "{reserved}");
    }

    #[test]
    fn a_small_gpu_answers_fewer_at_a_time() {
        // 3.1 MB a sequence.
        let needed = |max_seqs: usize| max_seqs as u64 * bytes_of_a_seq(&qwen(), 32_768);
        assert_eq!(max_seqs_in(1 << 30, needed), 256);
        assert_eq!(max_seqs_in(250 << 20, needed), 64);
        assert_eq!(max_seqs_in(1 << 20, needed), 8);
    }
}
