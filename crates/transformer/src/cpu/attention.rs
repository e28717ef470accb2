//! The paged KV cache and attention over it.

use super::pool::Pool;
use crate::Batch;
use quant::{Format, Isa};

/// Tokens that one KV block holds.
pub const BLOCK_TOKENS: usize = 16;

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KvType {
    /// Half precision.
    #[default]
    F16,
    /// Single precision.
    F32,
}

impl KvType {
    fn format(self) -> Format {
        match self {
            KvType::F16 => Format::F16,
            KvType::F32 => Format::F32,
        }
    }

    /// Bytes of one element.
    pub fn n_bytes(self) -> usize {
        self.format().block_bytes()
    }
}

/// The shape of a KV pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Layers, each with keys and values.
    pub n_layers: usize,
    /// Blocks of [`BLOCK_TOKENS`] tokens.
    pub n_blocks: usize,
    /// Heads of keys and of values.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub d_head: usize,
    /// How an element is kept.
    pub ty: KvType,
}

impl KvShape {
    /// Bytes that one block takes in all layers, keys and values together.
    pub fn block_bytes(&self) -> usize {
        2 * self.n_layers * self.layer_block_bytes()
    }

    /// Bytes of one block's keys (or values) in one layer.
    fn layer_block_bytes(&self) -> usize {
        BLOCK_TOKENS * self.n_kv_heads * self.row_bytes()
    }

    fn row_bytes(&self) -> usize {
        self.d_head * self.ty.n_bytes()
    }
}

/// Keys and values of every block in every layer: for each layer keys, then values, each
/// `[n_blocks, n_kv_heads, BLOCK_TOKENS, d_head]`.
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    bytes: Vec<u8>,
}

impl KvCache {
    /// Reserves the whole pool. The system hands out its pages as blocks are first written.
    ///
    /// # Errors
    /// When there is not that much memory, or the size overflows.
    pub fn new(shape: KvShape) -> Result<KvCache, std::collections::TryReserveError> {
        let n_bytes = shape.block_bytes().saturating_mul(shape.n_blocks);
        Vec::<u8>::new().try_reserve_exact(n_bytes)?;
        Ok(KvCache { shape, bytes: vec![0; n_bytes] })
    }

    /// The pool's shape.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Bytes of the pool.
    pub fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Where the row of one head and slot begins. `side`: 0 keys, 1 values.
    fn offset(&self, layer: usize, side: usize, block: usize, kv_head: usize, slot: usize) -> usize {
        let s = &self.shape;
        let block = (layer * 2 + side) * s.n_blocks + block;
        ((block * s.n_kv_heads + kv_head) * BLOCK_TOKENS + slot) * s.row_bytes()
    }

    /// Writes the keys and values of a batch's rows into their blocks. k, v `[n_tokens, n_kv_heads, d_head]`
    ///
    /// # Panics
    /// When the shapes do not fit, or the batch names blocks that the pool lacks.
    pub fn append(&mut self, layer: usize, batch: &Batch, k: &[f32], v: &[f32]) {
        let s = self.shape;
        let row_len = s.n_kv_heads * s.d_head;
        assert_eq!(k.len(), batch.n_tokens() * row_len, "k is [n_tokens, n_kv_heads, d_head]");
        assert_eq!(v.len(), k.len(), "v has the shape of k");
        for segment in &batch.segments {
            let blocks = &batch.block_table[segment.blocks.clone()];
            for row in segment.rows.clone() {
                let position = batch.positions[row] as usize;
                let block = blocks[position / BLOCK_TOKENS].0 as usize;
                assert!(block < s.n_blocks, "block {block} of {}", s.n_blocks);
                for (side, from) in [k, v].into_iter().enumerate() {
                    for (kv_head, from) in from[row * row_len..][..row_len].chunks_exact(s.d_head).enumerate() {
                        let offset = self.offset(layer, side, block, kv_head, position % BLOCK_TOKENS);
                        quant::quantize(s.ty.format(), from, &mut self.bytes[offset..][..s.row_bytes()]);
                    }
                }
            }
        }
    }
}

/// Working memory of [`attend`], of a fixed size.
#[derive(Debug)]
pub struct AttentionScratch {
    scores: Vec<f32>,
    row: Vec<f32>,
}

impl AttentionScratch {
    /// Memory for a pool of `n_threads`, contexts of `n_ctx` tokens and `max_seqs` sequences a step, of a model with
    /// `n_heads` query heads.
    pub fn new(
        _n_threads: usize,
        shape: &KvShape,
        _n_heads: usize,
        n_ctx: usize,
        _max_seqs: usize,
    ) -> AttentionScratch {
        AttentionScratch { scores: vec![0.0; n_ctx], row: vec![0.0; shape.d_head] }
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        (self.scores.capacity() + self.row.capacity()) * size_of::<f32>()
    }
}

/// `out[t, h] = softmax_p(scale * q[t, h] . k[p, h / group]) . v[p, h / group]` over positions `p` up to row `t`'s own, in
/// its own sequence, with `scale = 1 / sqrt(d_head)` and `group = n_heads / n_kv_heads`.
///
/// q, out `[n_tokens, n_heads, d_head]`; the batch's own keys and values have been appended to `cache`.
///
/// # Panics
/// When the shapes do not fit, or the batch names blocks that the pool lacks.
#[allow(clippy::too_many_arguments)] // A kernel's operands; a struct for them would only rename this list.
pub fn attend(
    _pool: &Pool,
    _isa: Isa,
    cache: &KvCache,
    layer: usize,
    batch: &Batch,
    q: &[f32],
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let s = cache.shape;
    let n_heads = q.len() / batch.n_tokens().max(1) / s.d_head;
    let group = n_heads / s.n_kv_heads;
    let scale = 1.0 / (s.d_head as f32).sqrt();
    for segment in &batch.segments {
        let blocks = &batch.block_table[segment.blocks.clone()];
        for row in segment.rows.clone() {
            let n_positions = batch.positions[row] as usize + 1;
            for head in 0..n_heads {
                let at = (row * n_heads + head) * s.d_head;
                let q = &q[at..][..s.d_head];
                let load = |side: usize, p: usize, to: &mut [f32]| {
                    let block = blocks[p / BLOCK_TOKENS].0 as usize;
                    let offset = cache.offset(layer, side, block, head / group, p % BLOCK_TOKENS);
                    quant::dequantize(s.ty.format(), &cache.bytes[offset..][..s.row_bytes()], to);
                };
                for p in 0..n_positions {
                    load(0, p, &mut scratch.row);
                    scratch.scores[p] = scale * q.iter().zip(&scratch.row).map(|(q, k)| q * k).sum::<f32>();
                }
                let scores = &mut scratch.scores[..n_positions];
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                scores.iter_mut().for_each(|s| *s = (*s - max).exp());
                let sum = scores.iter().sum::<f32>();
                let out = &mut out[at..][..s.d_head];
                out.fill(0.0);
                for p in 0..n_positions {
                    load(1, p, &mut scratch.row);
                    out.iter_mut().zip(&scratch.row).for_each(|(out, v)| *out += scratch.scores[p] / sum * v);
                }
            }
        }
    }
}
