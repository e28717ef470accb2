//! The CPU executor: a whole step on a pool of threads that stays warm.
//!
//! [`CpuExecutor`] checks the batch, then [`forward`](Executor::forward) reads like the paper, one kernel after the other.
//! Activations, norms, scores and the residual stream are F32; weights are read in the format of their file, where they lie
//! in it or interleaved ([`CpuOptions::integers`]); keys and values are F16 or F32 ([`KvType`]). All memory that a step needs is
//! taken when the executor is made.
//!
//! Every product takes its sum in one order, given by the instruction set and the format alone. So a row's bits depend on its
//! sequence's tokens and on nothing else: not on its role, its neighbours, the cut into steps, or the threads.

pub mod attention;
mod exp;
mod forward;
pub mod matmul;
mod model;
pub mod ops;
pub mod pool;
mod probe;

use quant::{IntegerIsa, Isa};
use weight_loader::Weights;

use crate::validate::validate;
use crate::{
    BLOCK_TOKENS, Batch, Executor, ExecutorError, ExecutorInfo, KvError, KvGeometry, KvType, MemoryUse, ModelSpec,
    StepOutput,
};
use forward::Forward;
pub use probe::{Probe, Step};

/// The most rows of a step that one may ask for. A longer step computes no faster and holds more memory.
pub const MAX_BATCH_TOKENS: usize = 4096;
/// The most sequences of a step that one may ask for: a row of logits is kept for each.
pub const MAX_SEQS: usize = 1024;

/// How a [`CpuExecutor`] is made.
#[derive(Debug, Clone)]
pub struct CpuOptions {
    /// Threads that compute, the calling one included.
    pub n_threads: usize,
    /// The longest sequence; at most, and without it, the model's own context.
    pub n_ctx: Option<usize>,
    /// The most sequences in a step.
    pub max_seqs: usize,
    /// The most rows in a step.
    pub max_batch_tokens: usize,
    /// Bytes of the KV pool. Without it: room for `max_seqs` full contexts, of which the system hands out pages as they are
    /// first written.
    pub kv_bytes: Option<u64>,
    /// How keys and values are stored.
    pub kv_type: KvType,
    /// Instructions to compute with.
    pub isa: Isa,
    /// With these instructions, matrices in formats that allow it are interleaved as they are loaded, and multiplied with
    /// activations rounded to 16 bits instead of F32: faster, and in memory of this process's own.
    pub integers: Option<IntegerIsa>,
}

impl Default for CpuOptions {
    /// All threads of the machine, eight sequences, steps of 512 rows, F16 keys and values, the best instructions there are.
    fn default() -> Self {
        Self {
            n_threads: std::thread::available_parallelism().map_or(1, usize::from),
            n_ctx: None,
            max_seqs: 8,
            max_batch_tokens: 512,
            kv_bytes: None,
            kv_type: KvType::default(),
            isa: Isa::detect(),
            integers: IntegerIsa::detect(),
        }
    }
}

/// Why a [`CpuExecutor`] cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// An option is out of range.
    #[error("{option}: expected {expected}, got {got}")]
    Option {
        /// The field of [`CpuOptions`].
        option: &'static str,
        /// Its range.
        expected: String,
        /// Its value.
        got: usize,
    },
    /// A tensor of the spec is missing from the weights or has another shape: they are not of one file.
    #[error("tensor \"{name}\": expected {expected}, got {got}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What the spec says.
        expected: String,
        /// What the weights hold.
        got: String,
    },
    /// The KV pool cannot be made.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The machine does not have the memory.
    #[error("out of memory: {what} needs {n_bytes} bytes")]
    Memory {
        /// For what.
        what: &'static str,
        /// How much.
        n_bytes: u64,
    },
    /// Threads could not be started.
    #[error("cannot start {n_threads} threads: {source}")]
    Threads {
        /// How many.
        n_threads: usize,
        /// Why not.
        source: std::io::Error,
    },
}

/// A model on the CPU, with its KV pool.
pub struct CpuExecutor {
    info: ExecutorInfo,
    memory: MemoryUse,
    forward: Forward,
}

impl CpuExecutor {
    /// Takes all memory, starts the threads.
    ///
    /// Weights stay where the loader mapped them, except those that are interleaved, whose pages are given back, and norms and
    /// biases, which are widened to F32.
    ///
    /// # Errors
    /// [`CpuError`] says which option, tensor or amount of memory is at fault.
    pub fn new(spec: ModelSpec, weights: Weights, options: CpuOptions) -> Result<Self, CpuError> {
        check("n_threads", options.n_threads, pool::MAX_THREADS)?;
        check("max_seqs", options.max_seqs, MAX_SEQS)?;
        check("max_batch_tokens", options.max_batch_tokens, MAX_BATCH_TOKENS)?;
        let n_ctx = options.n_ctx.unwrap_or(spec.n_ctx);
        check("n_ctx", n_ctx, spec.n_ctx)?;

        let kv = match options.kv_bytes {
            Some(kv_bytes) => KvGeometry::of_bytes(&spec, options.kv_type, kv_bytes)?,
            None => KvGeometry::of_sequences(&spec, options.kv_type, n_ctx, options.max_seqs),
        };
        // A pool smaller than the context cannot hold a sequence as long as that.
        let n_ctx = n_ctx.min(kv.n_tokens());
        let forward = Forward::new(spec.clone(), &weights, &options, &kv, n_ctx)?;
        let integers = options.integers.filter(|_| forward.has_interleaved());
        let integers = integers.map_or(String::new(), |isa| format!(", {}", isa.name()));
        let info = ExecutorInfo {
            device: format!("cpu ({} threads, {}{integers})", options.n_threads, options.isa.name()),
            n_vocab: spec.n_vocab,
            n_ctx,
            block_tokens: BLOCK_TOKENS,
            n_blocks: kv.n_blocks,
            max_batch_tokens: options.max_batch_tokens,
            max_seqs: options.max_seqs,
            roles_bit_equal: true,
            samples: false,
        };
        let weight_bytes = weights.n_bytes();
        let memory =
            MemoryUse { weight_bytes, kv_bytes: kv.n_bytes(), scratch_bytes: forward.scratch_bytes(), vram_bytes: 0 };
        Ok(Self { info, memory, forward })
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        self.forward.spec()
    }

    /// [`Executor::forward`], with every step's values shown to `probe` as they are computed: logits, always.
    ///
    /// # Errors
    /// As [`Executor::forward`].
    pub fn forward_probed(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<&[f32], ExecutorError> {
        validate(batch, &self.info)?;
        Ok(self.forward.run(batch, probe))
    }
}

impl Executor for CpuExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn memory(&self) -> MemoryUse {
        self.memory
    }

    fn forward(&mut self, batch: &Batch) -> Result<StepOutput<'_>, ExecutorError> {
        self.forward_probed(batch, &mut ()).map(StepOutput::Logits)
    }

    fn settle(&mut self) {
        self.forward.settle();
    }
}

fn check(option: &'static str, got: usize, max: usize) -> Result<(), CpuError> {
    if (1..=max).contains(&got) {
        return Ok(());
    }
    Err(CpuError::Option { option, expected: format!("1 to {max}"), got })
}
