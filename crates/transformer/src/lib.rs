//! Decoder architectures as data, the paged KV cache and the executors.

mod batch;
pub mod cpu;
mod executor;

pub use batch::{Batch, BlockId, Role, Segment, TokenId};
pub use executor::{Executor, ExecutorError, ExecutorInfo, MemoryUse};
