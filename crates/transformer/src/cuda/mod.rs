//! The CUDA executor: weights, keys and values in GPU memory, a step of generated rows as one graph.
//!
//! [`CudaExecutor`] checks the batch and splits it by role. Generated rows are padded to the next size in [`BUCKETS`] and run
//! through kernels whose sums have an order given by the model alone; the calls of a size are recorded once and replayed.
//! Prompt rows run through tensor-core products and tiled attention. A row's bits depend on its sequence and its role, and not on
//! its neighbours, the padding, the cut of a prompt into steps, or on whether a graph was used; prompt and generated rows leave
//! different bits (`ExecutorInfo::roles_bit_equal` is false).
//!
//! The residual stream, norms, scores and sums are F32; matrices are read in the format of their file; activations that
//! enter a product are F16 times an exact power of two that keeps them in range; keys and values are F16.

#![allow(unsafe_code, reason = "kernels take raw pointers; each block says why they are good")]

mod arena;
mod args;
mod buffers;
mod forward;
mod load;
mod model;
mod needs;
mod prompt;
mod step;
mod tap;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use cuda_sys::{Device, DeviceFacts, GraphExec, OpenError, PinnedBuffer, Stream, sys};
use gguf_parser::Gguf;
use weight_loader::{LoadError, ModelFile};

use crate::cpu::Probe;
use crate::kv::blocks_in;
use crate::validate::validate;
use crate::{
    BLOCK_TOKENS, Batch, Choice, Executor, ExecutorError, ExecutorInfo, KvError, Logprob, MAX_LOGPROBS, MemoryUse,
    ModelSpec, RowFault, StepOutput, TokenLogprobs,
};
use arena::Plan;
use buffers::{Buffers, CHOICE_WORDS, KvPool, Widths, d_head_pad};
use forward::Forward;
use model::Model;
use needs::sizes;
use step::Step;
use tap::Tap;

pub use needs::MemoryNeeds;

/// The most rows of a step that one may ask for.
pub const MAX_BATCH_TOKENS: usize = 1 << 15;
/// The most sequences of a step that one may ask for: attention's kernels take as many generated rows.
pub const MAX_SEQS: usize = 256;
/// Numbers of generated rows that graphs are recorded for; a step is padded to the next of them.
pub const BUCKETS: [usize; 14] = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256];

/// How a [`CudaExecutor`] is made.
#[derive(Debug, Clone)]
pub struct CudaOptions {
    /// Which GPU, counted from 0.
    pub ordinal: u32,
    /// The longest sequence; at most, and without it, the model's own context.
    pub n_ctx: Option<usize>,
    /// The most sequences in a step.
    pub max_seqs: usize,
    /// The most rows in a step.
    pub max_batch_tokens: usize,
    /// Bytes of the KV pool. Without it: room for one full context for every sequence, as far as a half of the free memory
    /// goes.
    pub kv_bytes: Option<u64>,
    /// Whether steps of generated rows are recorded and replayed.
    pub graphs: bool,
    /// Whether a kernel may start while its predecessor ends.
    pub dependent_launch: bool,
}

impl Default for CudaOptions {
    /// The first GPU, 64 sequences, steps of 2,048 rows, with graphs.
    fn default() -> Self {
        Self {
            ordinal: 0,
            n_ctx: None,
            max_seqs: 64,
            max_batch_tokens: 2048,
            kv_bytes: None,
            graphs: true,
            dependent_launch: true,
        }
    }
}

/// Why a [`CudaExecutor`] cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// An option is out of range.
    #[error("{option}: expected {expected}, got {got}")]
    Option {
        /// What is out of range.
        option: &'static str,
        /// Its range.
        expected: String,
        /// Its value.
        got: usize,
    },
    /// A tensor is missing or has a type without kernels.
    #[error("tensor \"{name}\": expected {expected}, got {got}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A value in GPU memory is not the file's.
    #[error("tensor \"{name}\", row {row}, column {column}: the file has {expected}, GPU memory {got}")]
    ReadBack {
        /// The tensor.
        name: String,
        /// Its row.
        row: usize,
        /// The row's column.
        column: usize,
        /// The file's value.
        expected: f32,
        /// The GPU's.
        got: f32,
    },
    /// The KV pool cannot be made.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The GPU has too little free memory. Nothing has been allocated.
    #[error(
        "GPU {ordinal} ({name}): needs {needed} bytes ({weights} of weights, {kv} of keys and values, {scratch} of working \
         memory), {free} are free"
    )]
    Memory {
        /// Which GPU.
        ordinal: u32,
        /// Its name.
        name: String,
        /// Bytes in all, with what is left to the driver.
        needed: u64,
        /// Of them, weights.
        weights: u64,
        /// Of them, the KV pool.
        kv: u64,
        /// Of them, working memory.
        scratch: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The GPU cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A call failed.
    #[error(transparent)]
    Call(#[from] cuda_sys::CudaError),
    /// The file cannot be read or is not what its architecture wants.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// What is known of a GPU and its memory, without allocating any: `(facts, free bytes)`.
///
/// # Errors
/// [`OpenError`] in plain words: no driver, no device, no such ordinal, too old a device.
pub fn device_facts(ordinal: u32) -> Result<(DeviceFacts, u64), OpenError> {
    let device = Device::open(ordinal)?;
    let memory = device.memory()?;
    Ok((device.facts().clone(), memory.free))
}

/// Destroys the process's context on a GPU, so that every executor on it fails with its next call: for tests of what becomes
/// of a worker then.
///
/// # Errors
/// Always: see [`cuda_sys::faults::poison_context`].
#[cfg(feature = "fault-injection")]
pub fn poison_context(ordinal: u32) -> Result<(), CudaError> {
    Ok(cuda_sys::faults::poison_context(&Device::open(ordinal)?)?)
}

/// Bytes of a KV block of [`BLOCK_TOKENS`] tokens: heads are padded to widths that kernels are made for.
pub fn kv_block_bytes(spec: &ModelSpec) -> u64 {
    let pad = d_head_pad(spec.d_head).unwrap_or(spec.d_head);
    2 * (spec.n_layers * spec.n_kv_heads * BLOCK_TOKENS * pad * 2) as u64
}

/// How long the parts of [`CudaExecutor::load`] took, from its beginning.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadTimes {
    /// The device is open: the CUDA context is there.
    pub opened: Duration,
    /// All weights are in GPU memory.
    pub resident: Duration,
    /// Everything is.
    pub done: Duration,
}

/// A model on a GPU, with its KV pool.
pub struct CudaExecutor {
    info: ExecutorInfo,
    memory: MemoryUse,
    times: LoadTimes,
    // Before `stream` and the buffers: fields are dropped in order.
    /// By the number of rows, and whether tokens are chosen.
    graphs: HashMap<(usize, bool), GraphExec>,
    use_graphs: bool,
    forward: Forward,
    /// The most query rows of a tile of prompt attention.
    rows_per_tile: usize,
    step: Step,
    numbers: PinnedBuffer<u32>,
    logits: Vec<f32>,
    choices: Vec<Choice>,
    stream: Stream,
    device: Device,
    /// Bytes that were free before anything was allocated.
    free_before: u64,
}

impl CudaExecutor {
    /// Opens the GPU, checks that everything fits, takes all memory and loads the weights.
    ///
    /// That the file has no tensors beside the spec's is for the caller to see to, with [`weight_loader::check`]. `progress` is
    /// told bytes loaded and bytes in all.
    ///
    /// # Errors
    /// [`CudaError`] says which option, tensor, device or amount of memory is at fault.
    pub fn load(
        spec: ModelSpec,
        file: &ModelFile,
        gguf: &Gguf<'_>,
        options: CudaOptions,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Self, CudaError> {
        let began = Instant::now();
        check("max_seqs", options.max_seqs, MAX_SEQS)?;
        check("max_batch_tokens", options.max_batch_tokens, MAX_BATCH_TOKENS)?;
        let n_ctx = options.n_ctx.unwrap_or(spec.n_ctx);
        check("n_ctx", n_ctx, spec.n_ctx)?;
        let plan = Plan::new(&spec, gguf)?;
        let widths = Widths::new(&spec, buffers::dequantized_of(&plan, &spec))?;

        let device = Device::open(options.ordinal)?;
        let stream = device.stream()?;
        let opened = began.elapsed();
        let free = device.memory()?.free;
        let block_bytes = kv_block_bytes(&spec);
        let n_blocks = n_kv_blocks(&options, n_ctx, block_bytes, free)?;
        let n_ctx = n_ctx.min(n_blocks * BLOCK_TOKENS);
        let (sizes, layout) = sizes(&spec, &widths, n_ctx, options.max_seqs, options.max_batch_tokens);
        let needs = MemoryNeeds::new(&plan, &widths, &sizes, &layout);
        let MemoryNeeds { weight_bytes, scratch_bytes, .. } = needs;
        let kv_bytes = n_blocks as u64 * block_bytes;
        let needed = needs.total_bytes() + kv_bytes;
        if needed > free {
            return Err(CudaError::Memory {
                ordinal: options.ordinal,
                name: device.facts().name.clone(),
                needed,
                weights: weight_bytes,
                kv: kv_bytes,
                scratch: scratch_bytes,
                free,
            });
        }

        let model = Model::load(&spec, &device, &stream, file, gguf, plan, progress)?;
        let resident = began.elapsed();
        // SAFETY: takes a flag, read by later launches on this thread.
        unsafe { sys::orcd_set_dependent_launch(i32::from(options.dependent_launch)) };
        // SAFETY: takes and gives numbers.
        let attn_blocks = unsafe { sys::orcd_attention_decode_blocks(widths.d_head_pad as u32) };
        // SAFETY: takes and gives numbers.
        let rows_per_tile =
            unsafe { sys::orcd_attention_prefill_tile_rows(spec.n_heads as u32, spec.n_kv_heads as u32) } as usize;
        let layer_len = n_blocks * spec.n_kv_heads * BLOCK_TOKENS * widths.d_head_pad;
        let kv = KvPool::new(&device, spec.n_layers, layer_len)?;
        let info = ExecutorInfo {
            device: format!("cuda:{} ({})", options.ordinal, device.facts().name),
            n_vocab: spec.n_vocab,
            n_ctx,
            block_tokens: BLOCK_TOKENS,
            n_blocks,
            max_batch_tokens: options.max_batch_tokens,
            max_seqs: options.max_seqs,
            roles_bit_equal: false,
            samples: spec.n_vocab <= sys::ORCD_SAMPLE_MAX_VOCAB as usize,
        };
        let mut forward = Forward {
            buffers: Buffers::new(&device, &widths, &sizes)?,
            inputs: device.alloc_zeroed(layout.len())?,
            attn_blocks: attn_blocks.max(1),
            spec,
            widths,
            model,
            kv,
            layout,
        };
        forward.prepare(&stream)?;
        let kv_bytes = forward.kv.n_bytes();
        let memory = MemoryUse { weight_bytes, kv_bytes, scratch_bytes, vram_bytes: 0 };
        let mut executor = Self {
            info,
            memory,
            times: LoadTimes { opened, resident, done: resident },
            graphs: HashMap::new(),
            use_graphs: options.graphs,
            rows_per_tile,
            step: Step::default(),
            numbers: device.alloc_pinned(forward.layout.len())?,
            logits: Vec::new(),
            choices: Vec::with_capacity(options.max_seqs),
            forward,
            stream,
            device,
            free_before: free,
        };
        if executor.use_graphs {
            executor.record()?;
        }
        executor.memory.vram_bytes = executor.vram_bytes().unwrap_or(0);
        executor.times.done = began.elapsed();
        Ok(executor)
    }

    /// Records a graph for every number of generated rows that a step may be padded to, so that no step has to.
    fn record(&mut self) -> Result<(), cuda_sys::CudaError> {
        let chooses = self.info.samples;
        let most = bucket(self.info.max_seqs);
        for n_slots in BUCKETS.into_iter().take_while(|&n| n <= most) {
            let Self { forward, stream, graphs, .. } = self;
            graph(graphs, n_slots, chooses, forward, stream)?.upload(stream)?;
        }
        self.stream.synchronize()
    }

    /// What the driver says has gone since before anything was allocated: code and graphs too, and whatever others on the same
    /// GPU have taken meanwhile. Without the CUDA context.
    fn vram_bytes(&self) -> Option<u64> {
        Some(self.free_before.saturating_sub(self.device.memory().ok()?.free))
    }

    /// How long loading took.
    pub fn load_times(&self) -> LoadTimes {
        self.times
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.forward.spec
    }

    /// [`Executor::forward`] one kernel at a time, with every step's values shown to `probe`: logits, always. The batch's rows
    /// are of one role.
    ///
    /// # Errors
    /// As [`Executor::forward`].
    pub fn forward_probed(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<&[f32], ExecutorError> {
        self.validate(batch)?;
        self.upload(batch, |n| n).map_err(executor_error)?;
        self.step.chooses = false;
        let rows = self.step.n_prompt.max(self.step.n_slots).max(1);
        let mut tap = Some(
            Tap::new(&self.forward.spec, &self.forward.widths, rows, &self.stream, probe).map_err(executor_error)?,
        );
        self.launch(false, &mut tap).and_then(|()| self.read_logits()).map_err(executor_error)?;
        Ok(&self.logits)
    }

    /// Compares every tensor's first and last row in GPU memory with the file's.
    ///
    /// # Errors
    /// [`CudaError::ReadBack`] names the first value that differs.
    pub fn check_all_weights(&self, file: &ModelFile, gguf: &Gguf<'_>) -> Result<usize, CudaError> {
        let model = &self.forward.model;
        let mut n = 0;
        for (name, matrix) in model.matrices() {
            load::check_read_back(file, gguf, &name, matrix, &model.arena, &self.stream)?;
            n += 1;
        }
        Ok(n)
    }

    fn validate(&self, batch: &Batch) -> Result<(), ExecutorError> {
        validate(batch, &self.info)?;
        let invalid = |what: String| Err(ExecutorError::InvalidBatch(what));
        let (got, most) = (batch.block_table.len(), self.forward.layout.block_table().len());
        if got > most {
            return invalid(format!("{got} blocks in the table, the most is {most}"));
        }
        let got = batch.samples.iter().map(|sample| sample.history.len()).sum::<usize>();
        let most = self.info.max_seqs * self.info.n_ctx;
        if got > most {
            return invalid(format!("{got} tokens in the history, the most is {most}"));
        }
        Ok(())
    }

    /// Lays the batch out and copies it to the device.
    fn upload(&mut self, batch: &Batch, bucket: fn(usize) -> usize) -> Result<(), cuda_sys::CudaError> {
        self.device.bind_to_this_thread()?;
        let Self { forward, step, numbers, stream, rows_per_tile, .. } = self;
        step::lay_out(batch, &forward.layout, bucket, *rows_per_tile, numbers.as_mut_slice(), step);
        if !step.lists.is_empty() {
            forward.buffers.lists.slice_mut(..step.lists.len()).copy_from_host(&step.lists, stream)?;
        }
        let used = step.used.clone();
        let mut target = forward.inputs.slice_mut(used.clone());
        // SAFETY: `numbers` is next written by the next step, which begins after this one's results have been waited for.
        unsafe { target.copy_from_pinned_async(numbers, used, stream) }
    }

    /// Enqueues the step's kernels.
    fn launch(&mut self, use_graphs: bool, tap: &mut Option<Tap<'_>>) -> Result<(), cuda_sys::CudaError> {
        let Self { forward, step, stream, graphs, .. } = self;
        if step.n_prompt > 0 {
            forward.prompt(step, stream, tap)?;
        }
        let n_slots = step.n_slots;
        if n_slots == 0 {
            return Ok(());
        }
        let chooses = step.chooses;
        if !use_graphs {
            return forward.generated(n_slots, chooses, stream, tap);
        }
        let graph = graph(graphs, n_slots, chooses, forward, stream)?;
        // SAFETY: the recorded calls point into `forward`, which lives as long as the graphs, and nothing else is running.
        unsafe { graph.launch(stream) }
    }

    /// Waits for the step and gathers what was chosen, in the batch's order.
    fn read_choices(&mut self, batch: &Batch) -> Result<(), cuda_sys::CudaError> {
        let Self { forward, step, choices, stream, .. } = self;
        stream.synchronize()?;
        let buffers = &forward.buffers;
        choices.clear();
        choices.extend(step.samples.iter().zip(&batch.samples).map(|(sample, spec)| {
            let (chosen, row) = match *sample {
                Ok(row) => (&buffers.choices, row),
                Err(row) => (&buffers.prompt_choices, row),
            };
            choice(&chosen.as_slice()[row * CHOICE_WORDS..], spec.n_logprobs.is_some())
        }));
        Ok(())
    }

    /// Waits for the step and gathers the logits of the batch's sampled rows, in its order.
    fn read_logits(&mut self) -> Result<(), cuda_sys::CudaError> {
        let n_vocab = self.info.n_vocab;
        let buffers = &self.forward.buffers;
        self.logits.resize(self.step.samples.len() * n_vocab, 0.0);
        for (to, sample) in self.logits.chunks_exact_mut(n_vocab).zip(&self.step.samples) {
            let (from, row) = match *sample {
                Ok(row) => (&buffers.logits, row),
                Err(row) => (&buffers.prompt_logits, row),
            };
            from.slice(row * n_vocab..(row + 1) * n_vocab).copy_to_host(to, &self.stream)?;
        }
        self.stream.synchronize()
    }
}

/// The graph of a step of `n_slots` generated rows, recorded if there is none yet.
fn graph<'g>(
    graphs: &'g mut HashMap<(usize, bool), GraphExec>,
    n_slots: usize,
    chooses: bool,
    forward: &mut Forward,
    stream: &Stream,
) -> Result<&'g GraphExec, cuda_sys::CudaError> {
    match graphs.entry((n_slots, chooses)) {
        Entry::Occupied(recorded) => Ok(recorded.into_mut()),
        Entry::Vacant(missing) => {
            let graph = stream.capture(|stream| forward.generated(n_slots, chooses, stream, &mut None))?;
            Ok(missing.insert(graph.instantiate()?))
        }
    }
}

/// What `words` say was chosen.
fn choice(words: &[u32], wants_logprobs: bool) -> Choice {
    let [id, status, maximum, logprob, n_top, ref top @ ..] = words[..CHOICE_WORDS] else {
        unreachable!("a choice has {CHOICE_WORDS} words")
    };
    if status != 0 {
        return Choice { id: Err(RowFault { maximum: f32::from_bits(maximum) }), logprobs: None };
    }
    let (ids, logprobs) = top.split_at(MAX_LOGPROBS);
    let top = ids.iter().zip(logprobs).take(n_top as usize);
    let top = top.map(|(&id, &logprob)| Logprob { id, logprob: f32::from_bits(logprob) });
    let logprobs =
        wants_logprobs.then(|| TokenLogprobs { logprob: f32::from_bits(logprob), top: top.collect::<Vec<_>>() });
    Choice { id: Ok(id), logprobs }
}

impl Executor for CudaExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn memory(&self) -> MemoryUse {
        let vram_bytes = self.vram_bytes().unwrap_or(self.memory.vram_bytes);
        MemoryUse { vram_bytes, ..self.memory }
    }

    fn forward(&mut self, batch: &Batch) -> Result<StepOutput<'_>, ExecutorError> {
        self.validate(batch)?;
        let uploaded = self.upload(batch, bucket);
        self.step.chooses &= self.info.samples;
        uploaded
            .and_then(|()| self.launch(self.use_graphs, &mut None))
            .and_then(|()| if self.step.chooses { self.read_choices(batch) } else { self.read_logits() })
            .map_err(executor_error)?;
        Ok(if self.step.chooses { StepOutput::Chosen(&self.choices) } else { StepOutput::Logits(&self.logits) })
    }
}

impl Drop for CudaExecutor {
    fn drop(&mut self) {
        // Nothing is freed under a kernel that still runs. In a poisoned context this fails, and nothing runs.
        let _ = self.stream.synchronize();
    }
}

/// The size that a number of generated rows is padded to.
fn bucket(n: usize) -> usize {
    if n == 0 { 0 } else { BUCKETS.into_iter().find(|&b| n <= b).unwrap_or(n) }
}

/// Blocks of the KV pool.
fn n_kv_blocks(options: &CudaOptions, n_ctx: usize, block_bytes: u64, free: u64) -> Result<usize, KvError> {
    let all = (n_ctx.div_ceil(BLOCK_TOKENS) * options.max_seqs) as u64;
    let kv_bytes = options.kv_bytes.unwrap_or((all * block_bytes).min(free / 2));
    blocks_in(kv_bytes, block_bytes)
}

fn check(option: &'static str, got: usize, max: usize) -> Result<(), CudaError> {
    if (1..=max).contains(&got) {
        return Ok(());
    }
    Err(CudaError::Option { option, expected: format!("1 to {max}"), got })
}

/// An allocation that failed concerns one step; after anything else the device is not to be trusted.
fn executor_error(error: cuda_sys::CudaError) -> ExecutorError {
    if error.is_out_of_memory() {
        ExecutorError::OutOfMemory(error.to_string())
    } else {
        ExecutorError::DeviceLost(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_padded_to_the_next_size() {
        assert_eq!([0, 1, 2, 3, 9, 33, 200, 256].map(bucket), [0, 1, 2, 4, 12, 48, 256, 256]);
        assert_eq!(BUCKETS[BUCKETS.len() - 1], MAX_SEQS);
    }
}
