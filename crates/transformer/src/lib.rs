//! Decoder architectures as data, the paged KV cache and the executors.

mod arch;
mod batch;
pub mod cpu;
mod executor;
mod kv;
mod spec;
mod validate;

pub use arch::known_architectures;
pub use batch::{Batch, BlockId, Role, Segment, TokenId};
pub use executor::{Executor, ExecutorError, ExecutorInfo, MemoryUse};
pub use kv::{BLOCK_TOKENS, KvError, KvGeometry, KvType};
pub use spec::{
    MAX_CTX, MAX_D_FF, MAX_D_HEAD, MAX_D_MODEL, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, ModelSpec, Rope, RopePairs, SpecError,
};
