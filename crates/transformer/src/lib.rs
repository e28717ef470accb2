//! Decoder architectures as data, the paged KV cache and the executors.
//!
//! Three nouns. A [`ModelSpec`] is what a decoder is: widths, head counts, how RoPE pairs, whether there are biases. It
//! comes from a GGUF file's metadata, checked, through one small file per architecture, and says which tensors the file
//! must hold. A [`Batch`] is one step's work: some sequences' next tokens, where in each sequence they stand, and the
//! blocks that hold each sequence's keys and values. An [`Executor`] is a model on a device: a batch in, logits out, or
//! the tokens chosen from them where the device samples ([`StepOutput`]).
//!
//! `forward` is one call a step, and there is no trait of single operations below it: a device may fuse a whole step
//! into one kernel, and the CPU's [`forward`](cpu) reads like the paper instead of like a dispatcher. Architectures are
//! data because the decoders worth serving differ in flags, not in structure.
//!
//! What an executor promises: a row's bits depend on its sequence's tokens and on nothing else, neither on its neighbours
//! nor on how the sequence was cut into steps; and after it is made, a step takes no memory that grows with the model.
//! What its numbers are worth is proved against `Qwen2ForCausalLM` and `LlamaForCausalLM` in float64: see
//! `docs/correctness.md` and `golden/`.
//!
//! ```no_run
//! use std::path::Path;
//! use transformer::cpu::{CpuExecutor, CpuOptions};
//! use transformer::{Batch, BlockId, Executor, ModelSpec, Role};
//! use weight_loader::ModelFile;
//!
//! let file = ModelFile::open(Path::new("model.gguf"))?;
//! let gguf = file.gguf()?;
//! let spec = ModelSpec::from_gguf(&gguf)?;
//! let weights = weight_loader::load(&file, &gguf, &spec.tensors(), &mut |_| ())?;
//! let mut executor = CpuExecutor::new(spec, weights, CpuOptions::default())?;
//!
//! // One sequence: a prompt of three tokens in block 0. Its last row's logits choose the fourth.
//! let mut batch = Batch::default();
//! batch.push(Role::Prompt, &[283, 257, 275], 0, &[BlockId(0)], true);
//! let logits = executor.forward(&batch)?.into_logits(); // [1, n_vocab]
//! let next = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
//!
//! batch.clear();
//! batch.push(Role::Generated, &[next as u32], 3, &[BlockId(0)], true);
//! let logits = executor.forward(&batch)?.into_logits();
//! # let _ = logits;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod arch;
mod batch;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod executor;
mod kv;
mod sampling;
mod spec;
mod validate;

pub use arch::known_architectures;
pub use batch::{Batch, BlockId, Role, Segment, TokenId};
pub use executor::{Executor, ExecutorError, ExecutorInfo, MemoryUse, StepOutput};
pub use kv::{BLOCK_TOKENS, KvError, KvGeometry, KvType};
pub use sampling::{
    Choice, Logprob, MAX_LOGIT_BIAS, MAX_LOGPROBS, RowFault, SampleRequest, SampleSpec, Sampling, TokenCount,
    TokenLogprobs, mask_words,
};
pub use spec::{
    MAX_CTX, MAX_D_FF, MAX_D_HEAD, MAX_D_MODEL, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, ModelSpec, Rope, RopePairs, SpecError,
};
