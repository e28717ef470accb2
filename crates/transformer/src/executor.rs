//! The seam: one call a step.

use crate::{Batch, Choice};

/// What an executor can hold and how it behaves: fixed for its lifetime.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecutorInfo {
    /// For people: `cpu (2 threads, avx512)`.
    pub device: String,
    /// Rows of the output matrix.
    pub n_vocab: usize,
    /// The longest sequence, in tokens.
    pub n_ctx: usize,
    /// Tokens a KV block holds.
    pub block_tokens: usize,
    /// KV blocks in the pool.
    pub n_blocks: usize,
    /// The most rows one step may have.
    pub max_batch_tokens: usize,
    /// The most sequences, and the most sampled rows, one step may have.
    pub max_seqs: usize,
    /// Whether prompt rows and generated rows of the same tokens leave bit-identical keys, values and logits. Only then
    /// may a block written under one role be read by a sequence that would have written it under the other.
    pub roles_bit_equal: bool,
    /// Whether it chooses tokens itself for a batch with `samples`. If not, it answers every batch with logits, and filling
    /// `samples` in is work for nothing.
    pub samples: bool,
}

/// What an executor holds in memory, measured where the device can tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// Bytes of the KV pool.
    pub kv_bytes: u64,
    /// Bytes of activations and other scratch memory.
    pub scratch_bytes: u64,
    /// Of all these, bytes in GPU memory; 0 on a CPU.
    pub vram_bytes: u64,
}

impl MemoryUse {
    /// Everything the executor holds, wherever it is.
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes + self.kv_bytes + self.scratch_bytes
    }
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecutorError {
    /// The batch breaks a rule of [`Batch`] or a limit of [`ExecutorInfo`]: an error in the engine, harmless to the
    /// executor.
    #[error("batch: {0}")]
    InvalidBatch(String),
    /// The device ran out of memory in this step; the next step may work.
    #[error("out of device memory: {0}")]
    OutOfMemory(String),
    /// The device failed and every later step will too; the process should be restarted.
    #[error("device failed: {0}")]
    DeviceLost(String),
}

/// What a step gives for each row of [`Batch::sample_rows`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StepOutput<'a> {
    /// `[n_samples, n_vocab]`, row-major.
    Logits(&'a [f32]),
    /// `[n_samples]`: from an executor that samples, for a batch with [`Batch::samples`].
    Chosen(&'a [Choice]),
}

impl<'a> StepOutput<'a> {
    /// The logits of a batch without [`Batch::samples`].
    ///
    /// # Panics
    /// If tokens were chosen instead.
    pub fn into_logits(self) -> &'a [f32] {
        match self {
            Self::Logits(logits) => logits,
            Self::Chosen(choices) => panic!("{} tokens were chosen where logits were wanted", choices.len()),
        }
    }
}

/// A model on a device, with its KV pool: a ragged batch in, logits out, or the tokens chosen from them.
///
/// One call a step, so that a device may fuse a whole step into one kernel. The engine's thread owns the executor and is
/// the only one to call it.
pub trait Executor: Send {
    /// What this executor can hold and how it behaves.
    fn info(&self) -> &ExecutorInfo;

    /// What it holds in memory.
    fn memory(&self) -> MemoryUse;

    /// Runs every row of `batch` through the model, appends its keys and values to the KV pool and returns the logits of
    /// the rows in `batch.sample_rows`; or, if `batch.samples` says how to choose and this executor samples, the tokens
    /// chosen. A choice follows from the row's logits and its [`SampleSpec`](crate::SampleSpec) alone.
    ///
    /// A row's bits depend on its sequence's tokens (and roles, unless [`ExecutorInfo::roles_bit_equal`]) and on nothing
    /// else: not on the batch's other rows, nor on how the sequence was cut into steps.
    ///
    /// # Errors
    /// After [`ExecutorError::InvalidBatch`] and [`ExecutorError::OutOfMemory`] the executor works on; the blocks named in
    /// the batch hold undefined values from `start_pos` on.
    fn forward(&mut self, batch: &Batch) -> Result<StepOutput<'_>, ExecutorError>;

    /// Waits for what loading has left to do in the background, if it has: for those who measure.
    fn settle(&mut self) {}
}
