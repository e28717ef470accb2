//! NVIDIA GPUs: what there is, and a model's executor on one.

#[cfg(feature = "cuda")]
use crate::start::weight_bytes;
use crate::start::{Made, Model, OnProgress, Options};

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

/// Loads a model into a GPU's memory, in steps of `max_batch_tokens` rows, or one for each sequence.
///
/// # Errors
/// What was needed and what was there, before anything is allocated; whatever the device says after that.
#[cfg(feature = "cuda")]
pub(crate) fn make(
    model: Model<'_>,
    gpu: &Gpu,
    max_batch_tokens: usize,
    options: &Options,
    progress: &mut OnProgress<'_>,
) -> anyhow::Result<Made> {
    use anyhow::Context as _;
    use transformer::cuda::{CudaExecutor, CudaOptions, MemoryNeeds, kv_block_bytes};
    use transformer::{BLOCK_TOKENS, KvType};

    use crate::{kv_plan::Room, start};

    let Model { file, gguf, spec } = model;
    anyhow::ensure!(
        options.kv_type == KvType::F16,
        "--kv-type f32: a GPU keeps keys and values in f16 only; leave it out, or use --device cpu"
    );
    let in_file = || format!("model {:?}", file.name());
    // A longer context than the model's is refused below.
    let n_ctx = options.ctx_size.map_or(spec.n_ctx, |ctx| ctx.min(spec.n_ctx));
    let needs = |max_seqs: usize| MemoryNeeds::of(spec, gguf, n_ctx, max_seqs, max_batch_tokens.max(max_seqs));
    let least = needs(1).with_context(in_file)?;
    let left = gpu.free_bytes.saturating_sub(least.weight_bytes + least.reserved_bytes);
    let scratch = |max_seqs| needs(max_seqs).map_or(u64::MAX, |needs| needs.scratch_bytes);
    let max_seqs = options.max_seqs.unwrap_or_else(|| default_max_seqs(left, scratch));
    // Each sequence must be able to have its row in every step.
    let max_batch_tokens = max_batch_tokens.max(max_seqs);
    // What weights take more than in their file counts as everything else.
    let reserved = needs(max_seqs).with_context(in_file)?.total_bytes().saturating_sub(weight_bytes(gguf));
    let room = Room::of_gpu(gpu.free_bytes, reserved);
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
    let executor = CudaExecutor::load(spec.clone(), file, gguf, options, progress).with_context(in_file)?;
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
pub(crate) fn make(_: Model<'_>, gpu: &Gpu, _: usize, _: &Options, _: &mut OnProgress<'_>) -> anyhow::Result<Made> {
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
/// and they share one pool of keys and values; but each has rows of logits and scratch memory of its own, and what steps work in
/// may take a quarter of what the weights leave: the most of 256, 128, ... 8 for which that holds; 8 where it holds for none,
/// which will be refused.
#[cfg(any(feature = "cuda", test))]
fn default_max_seqs(left_bytes: u64, scratch_bytes: impl Fn(usize) -> u64) -> usize {
    [256, 128, 64, 32, 16].into_iter().find(|&max_seqs| scratch_bytes(max_seqs) <= left_bytes / 4).unwrap_or(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_gpu_answers_fewer_at_a_time() {
        // About what Qwen2.5-0.5B needs with its whole context.
        let scratch = |max_seqs: usize| (60 << 20) + max_seqs as u64 * 3_100_000;
        assert_eq!(default_max_seqs(4 << 30, scratch), 256);
        assert_eq!(default_max_seqs(1 << 30, scratch), 64);
        assert_eq!(default_max_seqs(1 << 20, scratch), 8);
    }
}
