//! The paged KV cache: how many blocks, of how many bytes.
//!
//! Keys and values live in blocks of [`BLOCK_TOKENS`] tokens. Which blocks a sequence has is the engine's business; an
//! executor is told in each batch's block table. A block holds its tokens' keys and values of every layer.

use crate::ModelSpec;

/// Tokens in a KV block: small enough that a short answer wastes little, large enough that tables stay short and
/// attention walks contiguous memory.
pub const BLOCK_TOKENS: usize = 16;

/// The most blocks of a pool: their numbers are `u32`.
const MAX_BLOCKS: usize = u32::MAX as usize;

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Half precision: half the memory and the bandwidth, an error of some 2e-4 in the logits.
    #[default]
    F16,
    /// Single precision.
    F32,
}

impl KvType {
    /// Bytes of one value.
    pub fn n_bytes(self) -> usize {
        match self {
            KvType::F16 => 2,
            KvType::F32 => 4,
        }
    }
}

/// The KV pool of an executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvGeometry {
    /// How values are stored.
    pub kv_type: KvType,
    /// Blocks in the pool.
    pub n_blocks: usize,
    /// Bytes of a block: [`BLOCK_TOKENS`] tokens' keys and values in all layers.
    pub block_bytes: u64,
}

/// Why a KV pool cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// The memory asked for does not hold one block.
    #[error("KV cache: {kv_bytes} bytes hold no block; one of {BLOCK_TOKENS} tokens takes {block_bytes}")]
    NoBlock {
        /// The bytes asked for.
        kv_bytes: u64,
        /// The bytes of one block.
        block_bytes: u64,
    },
}

impl KvGeometry {
    /// The pool of `kv_bytes` bytes.
    ///
    /// # Errors
    /// [`KvError::NoBlock`] where they hold no block.
    pub fn of_bytes(spec: &ModelSpec, kv_type: KvType, kv_bytes: u64) -> Result<Self, KvError> {
        let block_bytes = block_bytes(spec, kv_type);
        Ok(Self { kv_type, n_blocks: blocks_in(kv_bytes, block_bytes)?, block_bytes })
    }

    /// The pool in which `n_seqs` sequences of `n_ctx` tokens fit.
    pub fn of_sequences(spec: &ModelSpec, kv_type: KvType, n_ctx: usize, n_seqs: usize) -> Self {
        let n_blocks = n_ctx.div_ceil(BLOCK_TOKENS).saturating_mul(n_seqs).min(MAX_BLOCKS);
        Self { kv_type, n_blocks, block_bytes: block_bytes(spec, kv_type) }
    }

    /// Bytes of the pool.
    pub fn n_bytes(&self) -> u64 {
        self.n_blocks as u64 * self.block_bytes
    }

    /// Tokens that the pool holds.
    pub fn n_tokens(&self) -> usize {
        self.n_blocks * BLOCK_TOKENS
    }
}

/// Whole blocks of `block_bytes` in `kv_bytes`, at least one.
pub(crate) fn blocks_in(kv_bytes: u64, block_bytes: u64) -> Result<usize, KvError> {
    match kv_bytes / block_bytes {
        0 => Err(KvError::NoBlock { kv_bytes, block_bytes }),
        n => Ok(n.min(MAX_BLOCKS as u64) as usize),
    }
}

fn block_bytes(spec: &ModelSpec, kv_type: KvType) -> u64 {
    BLOCK_TOKENS as u64 * spec.kv_bytes_per_token(kv_type.n_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rope, RopePairs};

    /// The reference model: 12,288 bytes a token in F16, so 196,608 a block.
    fn reference() -> ModelSpec {
        ModelSpec {
            architecture: "qwen2",
            name: None,
            n_layers: 24,
            d_model: 896,
            n_heads: 14,
            n_kv_heads: 2,
            d_head: 64,
            d_ff: 4864,
            n_vocab: 151_936,
            n_ctx: 32_768,
            rms_eps: 1e-6,
            rope: Rope { pairs: RopePairs::Halves, base: 1e6, n_dims: 64, scale: 1.0, has_freqs: false },
            qkv_bias: true,
            tied_output: false,
        }
    }

    const BLOCK_BYTES: u64 = 196_608;

    #[test]
    fn a_size_in_bytes_is_rounded_down_to_blocks() {
        let kv = KvGeometry::of_bytes(&reference(), KvType::F16, 10 * BLOCK_BYTES + 5).unwrap();
        assert_eq!((kv.n_blocks, kv.n_bytes(), kv.n_tokens()), (10, 10 * BLOCK_BYTES, 160));
        let kv = KvGeometry::of_bytes(&reference(), KvType::F32, 10 * BLOCK_BYTES + 5).unwrap();
        assert_eq!(kv.n_blocks, 5);
    }

    #[test]
    fn a_size_that_holds_no_block_is_refused_with_both_figures() {
        let error = KvGeometry::of_bytes(&reference(), KvType::F16, BLOCK_BYTES - 1).unwrap_err();
        assert_eq!(error, KvError::NoBlock { kv_bytes: BLOCK_BYTES - 1, block_bytes: BLOCK_BYTES });
    }

    #[test]
    fn sequences_get_whole_blocks_each() {
        let kv = KvGeometry::of_sequences(&reference(), KvType::F16, 32_768, 8);
        assert_eq!((kv.n_blocks, kv.n_bytes()), (8 * 2048, 8 * 2048 * BLOCK_BYTES));
        assert_eq!(KvGeometry::of_sequences(&reference(), KvType::F16, 17, 3).n_blocks, 6);
    }
}
