//! From an opened file to an executor that is warm: what `serve`, `generate` and `bench` do before they begin.
//!
//! Everything that can be refused is refused before weights are touched, so that a mistake costs milliseconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use gguf_parser::Gguf;
use tokenizer::Tokenizer;
use transformer::cpu::{CpuExecutor, CpuOptions};
use transformer::{Batch, BlockId, Executor, KvType, ModelSpec, Role};
use weight_loader::{ModelFile, Weights};

use crate::kv_plan::{self, KvPlan, Pool};
use crate::memory;

/// Rows that one step may have: prompts are read in chunks of this.
///
/// A chunk is as long as others wait for their next token, and a cancelled prompt for its end. Longer ones read a prompt
/// no faster: at 128 rows computing already takes twenty times as long as reading the weights.
pub(crate) const MAX_BATCH_TOKENS: usize = 128;

/// What the executor is made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Threads to compute with.
    pub(crate) threads: usize,
    /// Sequences in one step.
    pub(crate) max_seqs: usize,
    /// Rows in one step.
    pub(crate) max_batch_tokens: usize,
    /// The longest sequence, where one was asked for.
    pub(crate) ctx_size: Option<usize>,
    /// The KV pool.
    pub(crate) pool: Pool,
    /// How keys and values are stored.
    pub(crate) kv_type: KvType,
}

/// A model that can run.
pub(crate) struct Loaded {
    /// Warm.
    pub(crate) executor: CpuExecutor,
    /// What it is.
    pub(crate) spec: ModelSpec,
    /// Its vocabulary.
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Its weights: the mapping that the executor reads from.
    pub(crate) weights: Weights,
    /// The type that most bytes of its weights are stored in, such as `F16`.
    pub(crate) quant_kind: &'static str,
    /// Opening excluded.
    pub(crate) took: Duration,
}

/// Loads the model in `file`, telling `progress` how many bytes of how many are there, and runs it once.
///
/// # Errors
/// One that says what, where, what was needed and what was there.
pub(crate) fn load(
    file: &ModelFile,
    options: &Options,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> anyhow::Result<Loaded> {
    let began = Instant::now();
    let gguf = file.gguf()?;
    let in_file = || format!("model {:?}", file.name());
    let spec = ModelSpec::from_gguf(&gguf).with_context(in_file)?;
    let plan = plan(&spec, &gguf, options)?;
    let (vocabulary, weights) = std::thread::scope(|scope| {
        // A large vocabulary takes tens of milliseconds to index: time in which the pages of the weights come in.
        let vocabulary = scope.spawn(|| Tokenizer::from_gguf(&gguf).context("its vocabulary cannot be used"));
        let weights = weight_loader::load(file, &gguf, &spec.tensors(), &mut |p| progress(p.done_bytes, p.total_bytes));
        (vocabulary.join().expect("reading a vocabulary does not panic"), weights)
    });
    let weights = weights?;
    let weights_at = began.elapsed();
    let tokenizer = vocabulary.with_context(in_file)?;
    let mut executor = CpuExecutor::new(
        spec.clone(),
        weights.clone(),
        CpuOptions {
            n_threads: options.threads,
            n_ctx: Some(plan.n_ctx),
            max_seqs: options.max_seqs,
            max_batch_tokens: options.max_batch_tokens,
            kv_bytes: Some(plan.kv_bytes),
            kv_type: options.kv_type,
            ..CpuOptions::default()
        },
    )
    .with_context(in_file)?;
    let executor_at = began.elapsed();
    warm_up(&mut executor).with_context(in_file)?;
    let took = began.elapsed();
    tracing::debug!(
        "weights and vocabulary after {weights_at:.1?}, executor after {executor_at:.1?}, first step after {took:.1?}"
    );
    Ok(Loaded { executor, spec, tokenizer: Arc::new(tokenizer), weights, quant_kind: quant_kind(&gguf), took })
}

/// How much goes to keys and values, and whether all of it fits into memory.
fn plan(spec: &ModelSpec, gguf: &Gguf<'_>, options: &Options) -> anyhow::Result<KvPlan> {
    let weight_bytes = gguf.tensors.iter().map(|t| t.n_bytes).sum();
    let plan = kv_plan::plan(&kv_plan::Wish {
        bytes_per_token: spec.kv_bytes_per_token(options.kv_type.n_bytes()),
        model_ctx: spec.n_ctx,
        max_seqs: options.max_seqs,
        ctx_size: options.ctx_size,
        pool: options.pool,
        weight_bytes,
        available_bytes: memory::available_bytes(),
    })?;
    if plan.n_ctx < spec.n_ctx && options.ctx_size.is_none() {
        tracing::info!(
            "context: {} of the model's {} tokens, as many as {} of keys and values hold (--kv-cache-mb, --ctx-size)",
            plan.n_ctx,
            spec.n_ctx,
            memory::shown(plan.kv_bytes),
        );
    }
    Ok(plan)
}

/// One step, so that the first request finds threads started and memory touched. The keys and values that it leaves
/// behind belong to no request. One is enough: it costs what decoding a token costs, and time to ready counts.
fn warm_up(executor: &mut CpuExecutor) -> anyhow::Result<()> {
    let mut batch = Batch::default();
    batch.push(Role::Generated, &[0], 0, &[BlockId(0)], true);
    let logits = executor.forward(&batch)?.into_logits();
    anyhow::ensure!(
        logits.iter().all(|x| x.is_finite()),
        "the model's first answer is not a number: its weights are damaged"
    );
    Ok(())
}

/// The type that most bytes of the weights are stored in.
fn quant_kind(gguf: &Gguf<'_>) -> &'static str {
    let mut kinds: Vec<(&'static str, u64)> = Vec::new();
    for tensor in &gguf.tensors {
        match kinds.iter_mut().find(|(name, _)| *name == tensor.ty.name()) {
            Some((_, n_bytes)) => *n_bytes += tensor.n_bytes,
            None => kinds.push((tensor.ty.name(), tensor.n_bytes)),
        }
    }
    kinds.into_iter().max_by_key(|(_, n_bytes)| *n_bytes).map_or("none", |(name, _)| name)
}
