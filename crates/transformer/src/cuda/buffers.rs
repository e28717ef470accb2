//! Memory that a step works in: taken once, for the largest step.

use cuda_sys::{Device, DeviceBuffer, PinnedBuffer, sys};
use half::f16;

use super::CudaError;
use super::arena::{CHUNK, MatrixAt};
use super::model::Model;
use super::step::max_list_words;
use crate::ModelSpec;

/// The most rows that products normalise themselves.
const MAX_FUSED: usize = sys::ORCD_DECODE_NORM_MAX_TOKENS as usize;

/// Numbers of 32 bits in an `orcd_sample_choice`.
pub(super) const CHOICE_WORDS: usize = size_of::<sys::orcd_sample_choice>() / 4;

/// Widths of the buffers: what follows from the model alone.
#[derive(Debug, Clone)]
pub(super) struct Widths {
    pub(super) d_model: usize,
    pub(super) d_q: usize,
    /// q, k and v together.
    pub(super) d_qkv: usize,
    pub(super) d_ff: usize,
    pub(super) n_vocab: usize,
    /// `d_model`, `d_q` and `d_ff`, rounded up to whole chunks: what kernels read as columns of a matrix.
    pub(super) model_pitch: usize,
    pub(super) q_pitch: usize,
    pub(super) ff_pitch: usize,
    /// Columns of a head in the KV pool.
    pub(super) d_head_pad: usize,
    /// Parts in which the attention output's and the feed-forward's sums come.
    pub(super) attn_splits: usize,
    pub(super) ffn_splits: usize,
    /// Halves of the largest matrix or pair of matrices that have to be dequantized for prompts.
    pub(super) dequantized: usize,
}

/// Columns that a head takes in the KV pool: what attention's kernels are compiled for. `None` for larger heads.
pub(super) fn d_head_pad(d_head: usize) -> Option<usize> {
    [16, 32, 64, 128, 256].into_iter().find(|&pad| d_head <= pad)
}

impl Widths {
    /// `dequantized`: see [`dequantized_of`].
    pub(super) fn new(spec: &ModelSpec, dequantized: usize) -> Result<Self, CudaError> {
        let unsupported =
            || CudaError::Option { option: "head size", expected: "an even number up to 256".into(), got: spec.d_head };
        let d_head_pad = d_head_pad(spec.d_head).filter(|_| spec.d_head.is_multiple_of(2)).ok_or_else(unsupported)?;
        let (d_q, d_ff, d_model) = (spec.d_q(), spec.d_ff, spec.d_model);
        Ok(Self {
            d_model,
            d_q,
            d_qkv: d_q + 2 * spec.d_kv(),
            d_ff,
            n_vocab: spec.n_vocab,
            model_pitch: d_model.next_multiple_of(CHUNK),
            q_pitch: d_q.next_multiple_of(CHUNK),
            ff_pitch: d_ff.next_multiple_of(CHUNK),
            d_head_pad,
            attn_splits: n_splits(d_model, d_q),
            ffn_splits: n_splits(d_model, d_ff),
            dequantized,
        })
    }

    fn max_splits(&self) -> usize {
        self.attn_splits.max(self.ffn_splits)
    }
}

fn n_splits(n_rows: usize, n_cols: usize) -> usize {
    // SAFETY: takes and gives numbers.
    unsafe { sys::orcd_decode_matmul_splits(n_rows as u32, n_cols as u32) as usize }
}

/// Halves that a matrix takes when it is dequantized.
pub(super) fn dequantized_len(matrix: &MatrixAt) -> usize {
    matrix.n_rows * matrix.n_padded_cols()
}

/// Activations of one step. Rows: prompt rows, or generated rows with their padding.
pub(super) struct Buffers {
    /// The residual stream. `[rows, d_model]`
    pub(super) residual: DeviceBuffer<f32>,
    /// The residual stream between the halves of a layer, where products normalise it themselves: some blocks still read the
    /// one while another writes the other. `[MAX_FUSED, d_model]`
    pub(super) updated: DeviceBuffer<f32>,
    /// What a norm made of it. `[rows, model_pitch]`
    pub(super) normed: DeviceBuffer<f16>,
    /// Prompt rows' queries, keys and values. `[rows, d_qkv]`
    pub(super) qkv: DeviceBuffer<f32>,
    /// Queries after RoPE. `[rows, d_q]`
    pub(super) q: DeviceBuffer<f32>,
    /// Weighted values of every head. `[rows, q_pitch]`
    pub(super) attn: DeviceBuffer<f16>,
    /// `silu(gate) * up`, times a power of two for each row. `[rows, ff_pitch]`
    pub(super) act: DeviceBuffer<f16>,
    /// That power of two, and its inverse. `[rows]`
    pub(super) ffn_scale: DeviceBuffer<f32>,
    pub(super) ffn_unscale: DeviceBuffer<f32>,
    /// What a half of a layer adds to the residual stream of generated rows, in parts. `[splits, slots, d_model]`
    pub(super) partials: DeviceBuffer<f32>,
    /// `[slots, n_vocab]`
    pub(super) logits: DeviceBuffer<f32>,
    /// Of sampled prompt rows. `[max_samples, n_vocab]`
    pub(super) prompt_logits: DeviceBuffer<f32>,
    /// Attention's partial results. Zeros between calls.
    pub(super) attn_partials: DeviceBuffer<f32>,
    /// What is chosen after each generated row, and after each sampled prompt row, as `orcd_sample_choice`s: the kernel writes them
    /// to the host's memory, which saves a copy that would cost more than it carries.
    /// `[slots, CHOICE_WORDS]` and `[max_samples, CHOICE_WORDS]`
    pub(super) choices: PinnedBuffer<u32>,
    pub(super) prompt_choices: PinnedBuffer<u32>,
    /// What sampling works in.
    pub(super) sampling: DeviceBuffer<u64>,
    /// Which tokens' logits change and how, of all samples; see `step::max_list_words`.
    pub(super) lists: DeviceBuffer<u32>,
    /// Dequantized weights of the product at hand.
    pub(super) weights: DeviceBuffer<f16>,
    /// RoPE's angles. `[n_ctx, n_dims / 2, 2]`
    pub(super) cos_sin: DeviceBuffer<f32>,
}

/// How many elements each buffer has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    rows: usize,
    slots: usize,
    samples: usize,
    attn_partials: usize,
    cos_sin: usize,
    sampling: usize,
    lists: usize,
}

impl Sizes {
    pub(super) fn new(spec: &ModelSpec, w: &Widths, rows: usize, slots: usize, samples: usize, n_ctx: usize) -> Self {
        let [heads, kv_heads, pad] = [spec.n_heads, spec.n_kv_heads, w.d_head_pad].map(|n| n as u32);
        // SAFETY: all take and give numbers.
        let (partials, sampling) = unsafe {
            (
                sys::orcd_attention_decode_partials(slots as u32, n_ctx as u32, heads, kv_heads, pad),
                sys::orcd_sample_scratch_bytes(slots.max(samples) as u32, w.n_vocab as u32),
            )
        };
        Self {
            rows: rows.max(slots),
            slots,
            samples,
            attn_partials: partials as usize,
            cos_sin: n_ctx * spec.rope.n_dims,
            sampling: sampling.div_ceil(size_of::<u64>()),
            lists: max_list_words(samples, samples * n_ctx),
        }
    }

    /// Bytes of all buffers.
    pub(super) fn n_bytes(&self, w: &Widths) -> u64 {
        let floats = self.rows * (w.d_model + w.d_qkv + w.d_q + 2)
            + MAX_FUSED * w.d_model
            + w.max_splits() * self.slots * w.d_model
            + (self.slots + self.samples) * w.n_vocab
            + self.attn_partials
            + self.cos_sin
            + 2 * self.sampling
            + self.lists;
        let halves = self.rows * (w.model_pitch + w.q_pitch + w.ff_pitch) + w.dequantized;
        (floats * 4 + halves * 2) as u64
    }
}

impl Buffers {
    pub(super) fn new(device: &Device, w: &Widths, sizes: &Sizes) -> Result<Self, cuda_sys::CudaError> {
        let Sizes { rows, slots, samples, .. } = *sizes;
        let buffers = Self {
            residual: device.alloc_zeroed(rows * w.d_model)?,
            updated: device.alloc_zeroed(MAX_FUSED * w.d_model)?,
            normed: device.alloc_zeroed(rows * w.model_pitch)?,
            qkv: device.alloc_zeroed(rows * w.d_qkv)?,
            q: device.alloc_zeroed(rows * w.d_q)?,
            attn: device.alloc_zeroed(rows * w.q_pitch)?,
            act: device.alloc_zeroed(rows * w.ff_pitch)?,
            ffn_scale: device.alloc_zeroed(rows)?,
            ffn_unscale: device.alloc_zeroed(rows)?,
            partials: device.alloc_zeroed(w.max_splits() * slots * w.d_model)?,
            logits: device.alloc_zeroed(slots * w.n_vocab)?,
            prompt_logits: device.alloc_zeroed(samples * w.n_vocab)?,
            attn_partials: device.alloc_zeroed(sizes.attn_partials)?,
            weights: device.alloc_zeroed(w.dequantized)?,
            cos_sin: device.alloc_zeroed(sizes.cos_sin)?,
            choices: device.alloc_pinned(slots * CHOICE_WORDS)?,
            prompt_choices: device.alloc_pinned(samples * CHOICE_WORDS)?,
            sampling: device.alloc_zeroed(sizes.sampling)?,
            lists: device.alloc_zeroed(sizes.lists)?,
        };
        debug_assert_eq!(buffers.n_bytes(), sizes.n_bytes(w));
        Ok(buffers)
    }

    /// Bytes of GPU memory, which the host's choices are not.
    fn n_bytes(&self) -> u64 {
        let floats = [&self.residual, &self.updated, &self.qkv, &self.q, &self.ffn_scale, &self.ffn_unscale];
        let more_floats = [&self.partials, &self.logits, &self.prompt_logits, &self.attn_partials, &self.cos_sin];
        let halves = [&self.normed, &self.attn, &self.act, &self.weights];
        let n_bytes = floats.into_iter().chain(more_floats).map(DeviceBuffer::n_bytes).sum::<usize>()
            + halves.into_iter().map(DeviceBuffer::n_bytes).sum::<usize>()
            + self.sampling.n_bytes()
            + self.lists.n_bytes();
        n_bytes as u64
    }
}

/// The keys and values of all layers. Each `[n_layers, n_blocks, n_kv_heads, block_tokens, d_head_pad]`
pub(super) struct KvPool {
    pub(super) k: DeviceBuffer<f16>,
    pub(super) v: DeviceBuffer<f16>,
    /// Elements of a layer.
    pub(super) layer_len: usize,
}

impl KvPool {
    pub(super) fn new(device: &Device, n_layers: usize, layer_len: usize) -> Result<Self, cuda_sys::CudaError> {
        let n = n_layers * layer_len;
        Ok(Self { k: device.alloc_zeroed(n)?, v: device.alloc_zeroed(n)?, layer_len })
    }

    pub(super) fn n_bytes(&self) -> u64 {
        (self.k.n_bytes() + self.v.n_bytes()) as u64
    }
}

/// What a model's prompts need dequantized at once.
pub(super) fn dequantized_of(plan: &super::arena::Plan, spec: &ModelSpec) -> usize {
    let of = |name: String| match plan.matrices.get(&name) {
        Some(matrix) if matrix.format != quant::Format::F16 => dequantized_len(matrix),
        _ => 0,
    };
    let per_layer = |i: usize| {
        let leaf = |leaf: &str| of(format!("blk.{i}.{leaf}.weight"));
        let attn = leaf("attn_q").max(leaf("attn_k")).max(leaf("attn_v")).max(leaf("attn_output"));
        attn.max(leaf("ffn_gate") + leaf("ffn_up")).max(leaf("ffn_down"))
    };
    (0..spec.n_layers).map(per_layer).max().unwrap_or(0)
}

/// The pointer to a norm's weight or a bias.
pub(super) fn vector(model: &Model, start: usize) -> *const f32 {
    model.vectors.slice(start..).as_ptr()
}
