//! The paged KV cache: blocks of sixteen tokens' keys and values.

use crate::{BLOCK_TOKENS, Batch, KvType};
use quant::Format;

/// The block format that a KV type is.
fn format(ty: KvType) -> Format {
    match ty {
        KvType::F16 => Format::F16,
        KvType::F32 => Format::F32,
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
        2 * self.n_layers * self.n_kv_heads * self.head_bytes()
    }

    /// Bytes of one head's keys (or values) in one block.
    fn head_bytes(&self) -> usize {
        BLOCK_TOKENS * self.row_bytes()
    }

    /// Bytes of one head's key (or value) of one token.
    fn row_bytes(&self) -> usize {
        self.d_head * self.ty.n_bytes()
    }
}

/// Keys and values of every block in every layer.
///
/// For each layer first its keys, `[n_blocks, n_kv_heads, d_head, BLOCK_TOKENS]`, then its values,
/// `[n_blocks, n_kv_heads, BLOCK_TOKENS, d_head]`. Keys lie transposed so that one vector holds the same element of
/// sixteen tokens: a query's sixteen scores then build up in one register, with nothing to sum across lanes.
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    bytes: Vec<u8>,
}

/// Which half of a layer.
#[derive(Debug, Clone, Copy)]
enum Side {
    Keys,
    Values,
}

impl KvCache {
    /// Reserves the whole pool. The system hands out its pages as blocks are first written.
    ///
    /// # Errors
    /// When there is not that much memory, or the size overflows.
    pub fn new(shape: KvShape) -> Result<KvCache, std::collections::TryReserveError> {
        let n_bytes = shape.block_bytes().saturating_mul(shape.n_blocks);
        // Asked for twice, because only `vec!` gets zeroed pages without touching them and only this reports a failure.
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

    /// One head's keys in one block: `[d_head, BLOCK_TOKENS]`
    pub(super) fn keys(&self, layer: usize, block: usize, kv_head: usize) -> &[u8] {
        let offset = self.offset(layer, Side::Keys, block, kv_head);
        &self.bytes[offset..][..self.shape.head_bytes()]
    }

    /// One head's values in one block: `[BLOCK_TOKENS, d_head]`
    pub(super) fn values(&self, layer: usize, block: usize, kv_head: usize) -> &[u8] {
        let offset = self.offset(layer, Side::Values, block, kv_head);
        &self.bytes[offset..][..self.shape.head_bytes()]
    }

    fn offset(&self, layer: usize, side: Side, block: usize, kv_head: usize) -> usize {
        let s = &self.shape;
        assert!(
            layer < s.n_layers && block < s.n_blocks && kv_head < s.n_kv_heads,
            "{layer}, {block}, {kv_head}: {s:?}"
        );
        (((layer * 2 + side as usize) * s.n_blocks + block) * s.n_kv_heads + kv_head) * s.head_bytes()
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
                let (block, slot) = (blocks[position / BLOCK_TOKENS].0 as usize, position % BLOCK_TOKENS);
                for kv_head in 0..s.n_kv_heads {
                    let from = row * row_len + kv_head * s.d_head;
                    self.put_key(layer, block, kv_head, slot, &k[from..][..s.d_head]);
                    let offset = self.offset(layer, Side::Values, block, kv_head) + slot * s.row_bytes();
                    quant::quantize(format(s.ty), &v[from..][..s.d_head], &mut self.bytes[offset..][..s.row_bytes()]);
                }
            }
        }
    }

    /// Writes one key into its column.
    fn put_key(&mut self, layer: usize, block: usize, kv_head: usize, slot: usize, key: &[f32]) {
        /// Elements narrowed at a time.
        const CHUNK: usize = 64;
        let (format, size) = (format(self.shape.ty), self.shape.ty.n_bytes());
        let mut offset = self.offset(layer, Side::Keys, block, kv_head) + slot * size;
        let mut narrow = [0; CHUNK * size_of::<f32>()];
        for key in key.chunks(CHUNK) {
            let narrow = &mut narrow[..key.len() * size];
            quant::quantize(format, key, narrow);
            for element in narrow.chunks_exact(size) {
                self.bytes[offset..][..size].copy_from_slice(element);
                offset += BLOCK_TOKENS * size;
            }
        }
    }
}

#[cfg(test)]
impl KvCache {
    /// Every element a NaN, in both types.
    pub(super) fn fill_with_nan(&mut self) {
        self.bytes.fill(0xFF);
    }
}
