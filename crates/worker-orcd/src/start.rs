//! From an opened file to an executor that is warm: what `serve`, `generate` and `bench` do before they begin.
//!
//! Everything that can be refused is refused before weights are touched, so that a mistake costs milliseconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use gguf_parser::Gguf;
use tokenizer::Tokenizer;
use transformer::cpu::{CpuExecutor, CpuOptions};
use transformer::{Batch, BlockId, Executor, KvType, ModelSpec, Role, SampleRequest, Sampling, StepOutput};
use weight_loader::{ModelFile, Weights};

use crate::cli::DeviceArgs;
use crate::device::Device;
use crate::kv_plan::{self, KvPlan, Pool, Room};
use crate::{gpu, memory};

/// Requests that may generate at the same time on a CPU where nobody said.
const CPU_MAX_SEQS: usize = 8;

/// What the executor is made with.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Where it is to run.
    pub(crate) device: DeviceArgs,
    /// Sequences in one step, where somebody said.
    pub(crate) max_seqs: Option<usize>,
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
    pub(crate) executor: Box<dyn Executor>,
    /// Where it runs.
    pub(crate) device: Device,
    /// What it is.
    pub(crate) spec: ModelSpec,
    /// Its vocabulary.
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Its weights, where the CPU computes from them: the mapping that the executor reads from.
    pub(crate) weights: Option<Weights>,
    /// Bytes of weights that decoding a token reads.
    pub(crate) decoded_bytes: u64,
    /// The type that most bytes of its weights are stored in, such as `F16`.
    pub(crate) quant_kind: &'static str,
    /// How long it took, once the device was there, until all weights were where it computes from them.
    pub(crate) weights_took: Duration,
    /// From the opened file to the end of the first step.
    pub(crate) took: Duration,
}

impl Loaded {
    /// Whether all weights are in the memory that the device computes from: on the CPU they were brought in, of a GPU it
    /// is measured.
    pub(crate) fn is_resident(&self) -> bool {
        let held = self.executor.memory();
        match self.device {
            Device::Cpu { .. } => true,
            Device::Cuda(_) => held.vram_bytes >= held.weight_bytes,
        }
    }
}

/// A file that has been looked into.
#[derive(Clone, Copy)]
pub(crate) struct Model<'a> {
    pub(crate) file: &'a ModelFile,
    pub(crate) gguf: &'a Gguf<'a>,
    pub(crate) spec: &'a ModelSpec,
}

/// What a device makes of a model.
pub(crate) struct Made {
    pub(crate) executor: Box<dyn Executor>,
    /// See [`Loaded`].
    pub(crate) weights: Option<Weights>,
    /// See [`Loaded`].
    pub(crate) weights_took: Duration,
}

/// Is told how many bytes of how many are there.
pub(crate) type OnProgress<'p> = dyn FnMut(u64, u64) + Send + 'p;

/// Chooses the device and loads the model in `file` into it, telling `progress` how many bytes of how many are there, and
/// runs it once.
///
/// # Errors
/// One that says what, where, what was needed and what was there.
pub(crate) fn load(file: &ModelFile, options: &Options, progress: &mut OnProgress<'_>) -> anyhow::Result<Loaded> {
    let began = Instant::now();
    let gguf = file.gguf()?;
    let in_file = || format!("model {:?}", file.name());
    let spec = ModelSpec::from_gguf(&gguf).with_context(in_file)?;
    weight_loader::check(file, &gguf, &spec.tensors())?;
    let (vocabulary, made) = std::thread::scope(|scope| {
        // A large vocabulary takes tens of milliseconds to index: time in which the device wakes and the weights come in.
        let vocabulary = scope.spawn(|| Tokenizer::from_gguf(&gguf).context("its vocabulary cannot be used"));
        let made = Device::choose(&options.device).and_then(|device| {
            let made = make(Model { file, gguf: &gguf, spec: &spec }, &device, options, progress)?;
            Ok((device, made))
        });
        (vocabulary.join().expect("reading a vocabulary does not panic"), made)
    });
    let (device, Made { mut executor, weights, weights_took }) = made?;
    let tokenizer = vocabulary.with_context(in_file)?;
    let executor_at = began.elapsed();
    warm_up(executor.as_mut()).with_context(in_file)?;
    let took = began.elapsed();
    tracing::debug!("weights took {weights_took:.1?}; executor after {executor_at:.1?}, first step after {took:.1?}");
    let (quant_kind, decoded_bytes) = (quant_kind(&gguf), decoded_bytes(&gguf));
    let tokenizer = Arc::new(tokenizer);
    Ok(Loaded { executor, device, spec, tokenizer, weights, decoded_bytes, quant_kind, weights_took, took })
}

fn make(model: Model<'_>, device: &Device, options: &Options, progress: &mut OnProgress<'_>) -> anyhow::Result<Made> {
    let max_batch_tokens = device.max_batch_tokens();
    match device {
        Device::Cpu { threads } => make_cpu(model, *threads, max_batch_tokens, options, progress),
        Device::Cuda(gpu) => gpu::make(model, gpu, max_batch_tokens, options, progress),
    }
}

fn make_cpu(
    model: Model<'_>,
    threads: usize,
    max_batch_tokens: usize,
    options: &Options,
    progress: &mut OnProgress<'_>,
) -> anyhow::Result<Made> {
    let Model { file, gguf, spec } = model;
    let max_seqs = options.max_seqs.unwrap_or(CPU_MAX_SEQS);
    // Each sequence must be able to have its row in every step.
    let max_batch_tokens = max_batch_tokens.max(max_seqs);
    let bytes_per_token = spec.kv_bytes_per_token(options.kv_type.n_bytes());
    let plan = plan(model, bytes_per_token, max_seqs, options, Room::of_machine())?;
    let began = Instant::now();
    let mut on_progress = |p: weight_loader::Progress<'_>| progress(p.done_bytes, p.total_bytes);
    let weights = weight_loader::load(file, gguf, &spec.tensors(), &mut on_progress)?;
    let weights_took = began.elapsed();
    let options = CpuOptions {
        n_threads: threads,
        n_ctx: Some(plan.n_ctx),
        max_seqs,
        max_batch_tokens,
        kv_bytes: Some(plan.kv_bytes),
        kv_type: options.kv_type,
        ..CpuOptions::default()
    };
    let executor =
        CpuExecutor::new(spec.clone(), weights.clone(), options).with_context(|| format!("model {:?}", file.name()))?;
    Ok(Made { executor: Box::new(executor), weights: Some(weights), weights_took })
}

/// Bytes of all tensors in the file.
pub(crate) fn weight_bytes(gguf: &Gguf<'_>) -> u64 {
    gguf.tensors.iter().map(|t| t.n_bytes).sum()
}

/// All weights are read to decode a token, but of a token embedding that is not the output matrix too only a row, which
/// is nothing.
fn decoded_bytes(gguf: &Gguf<'_>) -> u64 {
    let embedding = gguf.tensor("token_embd.weight").filter(|_| gguf.tensor("output.weight").is_some());
    weight_bytes(gguf) - embedding.map_or(0, |tensor| tensor.n_bytes)
}

/// How much goes to keys and values, and whether all of it fits into the device's memory.
pub(crate) fn plan(
    Model { gguf, spec, .. }: Model<'_>,
    bytes_per_token: u64,
    max_seqs: usize,
    options: &Options,
    room: Room,
) -> anyhow::Result<KvPlan> {
    let plan = kv_plan::plan(&kv_plan::Wish {
        bytes_per_token,
        model_ctx: spec.n_ctx,
        max_seqs,
        ctx_size: options.ctx_size,
        pool: options.pool,
        weight_bytes: weight_bytes(gguf),
        room,
    })?;
    if plan.n_ctx < spec.n_ctx && options.ctx_size.is_none() {
        tracing::info!(
            "context: {} of the model's {} tokens, as many as {} of keys and values hold (--kv-cache-mb, --ctx-size)",
            plan.n_ctx,
            spec.n_ctx,
            memory::shown(plan.kv_bytes),
        );
    }
    if let Pool::Bytes(asked) = options.pool
        && plan.kv_bytes < asked
    {
        let (asked, taken) = (asked >> 20, memory::shown(plan.kv_bytes));
        tracing::info!("--kv-cache-mb {asked}: {taken} are taken: whole blocks, and no more than all requests can use");
    }
    Ok(plan)
}

/// One step, so that the first request finds threads started and memory touched; on a device whose prompts take another
/// way, one of each. The keys and values that it leaves behind belong to no request. One is enough: it costs what
/// decoding a token costs, and time to ready counts.
fn warm_up(executor: &mut dyn Executor) -> anyhow::Result<()> {
    let info = executor.info();
    let (samples, roles): (_, &[Role]) = match info.roles_bit_equal {
        true => (info.samples, &[Role::Generated]),
        false => (info.samples, &[Role::Prompt, Role::Generated]),
    };
    for &role in roles {
        let mut batch = Batch::default();
        batch.push(role, &[0], 0, &[BlockId(0)], true);
        if samples {
            let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
            batch.sample_with(&SampleRequest::new(&greedy, 0));
        }
        let is_sound = match executor.forward(&batch)? {
            StepOutput::Logits(logits) => logits.iter().all(|x| x.is_finite()),
            StepOutput::Chosen(choices) => choices.iter().all(|choice| choice.id.is_ok()),
        };
        anyhow::ensure!(is_sound, "the model's first answer is not a number: its weights are damaged");
    }
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
