//! NVIDIA GPUs: what there is, and a model's executor on one.

use crate::start::{Made, Model, Options, Watched};

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
    NotBuilt,
    /// In plain words.
    #[cfg_attr(not(test), expect(dead_code, reason = "there is no build with CUDA yet"))]
    Unusable(String),
}

/// Looks at a GPU. On a build that has CUDA this makes its context, of which the first in a process takes about 0.2 s.
///
/// # Errors
/// [`NoGpu`] says why it cannot be used.
pub(crate) fn find(_ordinal: u32, _graphs: bool) -> Result<Gpu, NoGpu> {
    Err(NoGpu::NotBuilt)
}

/// Loads a model into a GPU's memory.
///
/// # Errors
/// What was needed and what was there.
pub(crate) fn make(
    _model: Model<'_>,
    gpu: &Gpu,
    _limits: (usize, usize),
    _options: &Options,
    _progress: &mut Watched<'_>,
) -> anyhow::Result<Made> {
    anyhow::bail!("GPU {} ({}): this build of worker-orcd has no CUDA", gpu.ordinal, gpu.name)
}
