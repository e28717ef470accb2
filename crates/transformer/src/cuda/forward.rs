//! The forward pass on the GPU: the calls of one step of generated rows, in order, and those that every step has.
//!
//! Generated rows and prompt rows (`prompt.rs`) go through different kernels and leave different bits; neither's depend on how
//! many rows there are. See ARCHITECTURE.md for what is proved of them, and `cuda/ops` for what each kernel does.

use cuda_sys::{CudaError, DeviceBuffer, Stream, sys};

use super::args::{fused_norm, launch, layer_pools, matmul_args, qkv_bias, shown_to};
use super::buffers::{Buffers, KvPool, Widths, vector};
use super::model::{Model, Norm};
use super::step::Layout;
use super::tap::{Located, Tap};
use crate::cpu::Step as Probed;
use crate::{ModelSpec, RopePairs};

/// Everything that a step touches on the device.
pub(super) struct Forward {
    pub(super) spec: ModelSpec,
    pub(super) widths: Widths,
    pub(super) model: Model,
    pub(super) kv: KvPool,
    pub(super) buffers: Buffers,
    pub(super) layout: Layout,
    /// Where a step's [`Layout`] is copied to.
    pub(super) inputs: DeviceBuffer<u32>,
    /// Blocks that attention over long contexts is spread over.
    pub(super) attn_blocks: u32,
}

impl Forward {
    /// Fills RoPE's table. Once, before the first step.
    pub(super) fn prepare(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let n_pairs = self.spec.rope.n_dims / 2;
        if n_pairs == 0 {
            return Ok(());
        }
        let inv_freq = stream.device().alloc_from(&self.model.inv_freq, stream)?;
        launch!(
            stream,
            orcd_rope_table,
            sys::orcd_rope_table_args {
                inv_freq: inv_freq.as_ptr(),
                cos_sin: self.buffers.cos_sin.as_mut_ptr(),
                n_ctx: (self.buffers.cos_sin.len() / (2 * n_pairs)) as u32,
                n_rope: 2 * n_pairs as u32,
            }
        );
        stream.synchronize() // before `inv_freq` is freed
    }

    /// Generated rows: from tokens to logits, and with `chooses` to the next tokens. `n_slots` rows, those that pad the batch
    /// included.
    pub(super) fn generated(
        &mut self,
        n_slots: usize,
        chooses: bool,
        stream: &Stream,
        tap: &mut Option<Tap<'_>>,
    ) -> Result<(), CudaError> {
        self.embed(self.layout.tokens().start, n_slots, stream)?;
        if let Some(tap) = tap {
            tap.residual(Probed::Embeddings, 0, &self.buffers.residual, n_slots, stream)?;
        }
        let mut n_partials = 0;
        for i in 0..self.model.layers.len() {
            self.generated_attention(i, n_slots, n_partials, stream, tap)?;
            self.generated_feed_forward(i, n_slots, stream, tap)?;
            n_partials = self.widths.ffn_splits;
        }
        let fuses = self.fuses_norms(n_slots, tap);
        if !fuses {
            let norm = self.model.output_norm;
            self.norm(norm, None, n_slots, n_partials, None, stream, tap)?;
        }
        if let Some(tap) = tap {
            tap.see(Probed::FinalNorm, 0, n_slots, self.widths.d_model, stream)?;
        }
        let logits = self.buffers.logits.as_mut_ptr();
        self.head(logits, n_slots, fuses.then_some(n_partials), stream)?;
        if chooses {
            let choices = self.buffers.choices.as_mut_slice().as_mut_ptr();
            self.sample(logits, self.layout.params(), choices, n_slots, stream)?;
        }
        Ok(())
    }

    /// Queries, keys and values; attention; its output, in parts.
    fn generated_attention(
        &mut self,
        i: usize,
        n: usize,
        n_partials: usize,
        stream: &Stream,
        tap: &mut Option<Tap<'_>>,
    ) -> Result<(), CudaError> {
        let fuses = self.fuses_norms(n, tap);
        if !fuses {
            let norm = self.model.layers[i].attn_norm;
            self.norm(norm, None, n, n_partials, None, stream, tap)?;
        }
        if let Some(tap) = tap {
            tap.see(Probed::AttnNorm, i, n, self.widths.d_model, stream)?;
        }
        let Self { spec, widths: w, model, kv, buffers: b, layout, inputs, attn_blocks } = self;
        let layer = &model.layers[i];
        let bias = qkv_bias(spec, model, layer);
        let (k_pool, v_pool) = layer_pools(kv, i);
        let numbers = |range: std::ops::Range<usize>| inputs.slice(range).as_ptr();
        let mut args = matmul_args(&layer.qkv[0], &b.normed, w.model_pitch, layer.attn_norm.scale, n, &model.arena);
        for (to, matrix) in args.w.iter_mut().zip(&layer.qkv) {
            *to = matrix.raw(&model.arena);
        }
        args.output = sys::ORCD_DECODE_QKV;
        if fuses {
            let parts = (b.partials.as_ptr(), n_partials);
            args.norm = fused_norm(spec, model, layer.attn_norm, (b.residual.as_ptr(), b.updated.as_mut_ptr()), parts);
        }
        args.qkv = sys::orcd_decode_qkv {
            bias,
            cos_sin: b.cos_sin.as_ptr(),
            q: b.q.as_mut_ptr(),
            k_pool,
            v_pool,
            block_table: numbers(layout.block_table()),
            table_start: numbers(layout.tables()),
            positions: numbers(layout.positions()),
            n_heads: spec.n_heads as u32,
            n_kv_heads: spec.n_kv_heads as u32,
            d_head: spec.d_head as u32,
            d_head_pad: w.d_head_pad as u32,
            n_rope: spec.rope.n_dims as u32,
            rope_adjacent: u32::from(spec.rope.pairs == RopePairs::Adjacent),
            probe: shown_to(tap),
        };
        launch!(stream, orcd_decode_matmul, args);
        if let Some(tap) = tap {
            tap.qkv(i, n, None, stream)?;
            let at = Located { kv, inputs, layout, positions: layout.positions(), tables: layout.tables() };
            tap.rotated(i, n, &b.q, &at, stream)?;
        }
        launch!(
            stream,
            orcd_attention_decode,
            sys::orcd_attention_decode_args {
                q: b.q.as_ptr(),
                k_pool,
                v_pool,
                block_table: numbers(layout.block_table()),
                table_start: numbers(layout.tables()),
                positions: numbers(layout.positions()),
                out: b.attn.as_mut_ptr(),
                partials: b.attn_partials.as_mut_ptr(),
                n_partials: b.attn_partials.len() as u64,
                out_pitch: w.q_pitch as u32,
                n_tokens: n as u32,
                n_heads: spec.n_heads as u32,
                n_kv_heads: spec.n_kv_heads as u32,
                d_head: spec.d_head as u32,
                d_head_pad: w.d_head_pad as u32,
                n_blocks: attention_blocks(*attn_blocks, n),
                // Positions and tables are uploaded before the step; keys and values of earlier positions were written by
                // earlier steps, which the host has waited for.
                reads_ahead: 1,
            }
        );
        if let Some(tap) = tap {
            tap.attn(i, &b.attn, n, stream)?;
        }
        let mut args = matmul_args(&layer.attn_output, &b.attn, w.q_pitch, 1.0, n, &model.arena);
        args.n_splits = w.attn_splits as u32;
        args.out = b.partials.as_mut_ptr();
        launch!(stream, orcd_decode_matmul, args);
        if let Some(tap) = tap {
            tap.partials(Probed::AttnOut, i, n, &b.partials, w.attn_splits, None, stream)?;
        }
        Ok(())
    }

    /// `silu(gate) * up`, times down, in parts.
    fn generated_feed_forward(
        &mut self,
        i: usize,
        n: usize,
        stream: &Stream,
        tap: &mut Option<Tap<'_>>,
    ) -> Result<(), CudaError> {
        let fuses = self.fuses_norms(n, tap);
        if !fuses {
            let (norm, bound) = (self.model.layers[i].ffn_norm, self.model.layers[i].ffn_bound);
            self.norm(norm, None, n, self.widths.attn_splits, Some(bound), stream, tap)?;
        }
        if let Some(tap) = tap {
            tap.see(Probed::FfnNorm, i, n, self.widths.d_model, stream)?;
        }
        let Self { spec, widths: w, model, buffers: b, .. } = self;
        let layer = &model.layers[i];
        let mut args = matmul_args(&layer.gate, &b.normed, w.model_pitch, layer.ffn_norm.scale, n, &model.arena);
        if fuses {
            // The attention half left the residual in `updated`; this half leaves it where it was.
            let parts = (b.partials.as_ptr(), w.attn_splits);
            args.norm = fused_norm(spec, model, layer.ffn_norm, (b.updated.as_ptr(), b.residual.as_mut_ptr()), parts);
            args.norm.ffn_bound = layer.ffn_bound;
            args.norm.ffn_scale = b.ffn_scale.as_mut_ptr();
            args.norm.ffn_unscale = b.ffn_unscale.as_mut_ptr();
        }
        args.w[1] = layer.up.raw(&model.arena);
        args.output = sys::ORCD_DECODE_GATE_UP;
        args.act = b.act.as_mut_ptr();
        args.act_pitch = w.ff_pitch as u32;
        args.ffn_scale = b.ffn_scale.as_ptr();
        args.act_f32 = shown_to(tap);
        launch!(stream, orcd_decode_matmul, args);
        if let Some(tap) = tap {
            tap.see(Probed::FfnAct, i, n, w.d_ff, stream)?;
        }
        let mut args = matmul_args(&layer.down, &b.act, w.ff_pitch, 1.0, n, &model.arena);
        args.row_unscale = b.ffn_unscale.as_ptr();
        args.n_splits = w.ffn_splits as u32;
        args.out = b.partials.as_mut_ptr();
        launch!(stream, orcd_decode_matmul, args);
        if let Some(tap) = tap {
            tap.partials(Probed::Ffn, i, n, &b.partials, w.ffn_splits, Some(&b.residual), stream)?;
        }
        Ok(())
    }

    /// Whether products normalise their rows themselves. A step that is watched shows the norms, so it does not.
    fn fuses_norms(&self, n: usize, tap: &Option<Tap<'_>>) -> bool {
        let (max_tokens, max_cols) = (sys::ORCD_DECODE_NORM_MAX_TOKENS, sys::ORCD_DECODE_NORM_MAX_COLS);
        let d_model = self.widths.d_model;
        tap.is_none() && n <= max_tokens as usize && d_model <= max_cols as usize && d_model.is_multiple_of(4)
    }

    /// residual = token_embd[tokens]
    pub(super) fn embed(&mut self, tokens_at: usize, n: usize, stream: &Stream) -> Result<(), CudaError> {
        let args = sys::orcd_embed_args {
            table: self.model.token_embd.raw(&self.model.arena),
            tokens: self.inputs.slice(tokens_at..tokens_at + n).as_ptr(),
            residual: self.buffers.residual.as_mut_ptr(),
            n_tokens: n as u32,
        };
        launch!(stream, orcd_embed, args);
        Ok(())
    }

    /// residual += partials; normed = norm(residual). `ffn_bound` asks for the feed-forward's scales too.
    #[allow(clippy::too_many_arguments, reason = "the variants of one call")]
    pub(super) fn norm(
        &mut self,
        norm: Norm,
        rows: Option<*const u32>,
        n: usize,
        n_partials: usize,
        ffn_bound: Option<f32>,
        stream: &Stream,
        tap: &mut Option<Tap<'_>>,
    ) -> Result<(), CudaError> {
        let Self { spec, widths: w, model, buffers: b, .. } = self;
        let args = sys::orcd_rms_norm_args {
            residual: b.residual.as_mut_ptr(),
            partials: b.partials.as_ptr(),
            n_partials: n_partials as u32,
            rows: rows.unwrap_or(std::ptr::null()),
            weight: vector(model, norm.weight),
            eps: spec.rms_eps,
            out_scale: norm.scale,
            out: b.normed.as_mut_ptr(),
            out_pitch: w.model_pitch as u32,
            ffn_bound: ffn_bound.unwrap_or(0.0),
            ffn_scale: b.ffn_scale.as_mut_ptr(),
            ffn_unscale: b.ffn_unscale.as_mut_ptr(),
            out_f32: shown_to(tap),
            n_tokens: n as u32,
            d_model: w.d_model as u32,
        };
        launch!(stream, orcd_rms_norm, args);
        Ok(())
    }

    /// choices = what each row's settings make of its logits.
    pub(super) fn sample(
        &mut self,
        logits: *const f32,
        params: std::ops::Range<usize>,
        choices: *mut u32,
        n: usize,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let Self { widths: w, buffers: b, inputs, layout, .. } = self;
        launch!(
            stream,
            orcd_sample,
            sys::orcd_sample_args {
                logits,
                row_pitch: w.n_vocab as u64,
                params: inputs.slice(params).as_ptr().cast(),
                changed: b.lists.as_ptr(),
                changes: b.lists.as_ptr().cast(),
                masks: inputs.slice(layout.masks()).as_ptr(),
                choices: choices.cast(),
                scratch: b.sampling.as_mut_ptr().cast(),
                n_rows: n as u32,
                n_vocab: w.n_vocab as u32,
            }
        );
        Ok(())
    }

    /// logits = output * normed, for generated and prompt rows alike; or, with a number of partials, output * norm(residual).
    pub(super) fn head(
        &mut self,
        logits: *mut f32,
        n: usize,
        n_partials: Option<usize>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let Self { spec, widths: w, model, buffers: b, .. } = self;
        let mut args = matmul_args(&model.output, &b.normed, w.model_pitch, model.output_norm.scale, n, &model.arena);
        args.out = logits;
        if let Some(n_partials) = n_partials {
            let parts = (b.partials.as_ptr(), n_partials);
            args.norm =
                fused_norm(spec, model, model.output_norm, (b.residual.as_ptr(), b.updated.as_mut_ptr()), parts);
        }
        launch!(stream, orcd_decode_matmul, args);
        Ok(())
    }
}

/// Blocks for attention of `n` rows, where the device holds `most`. A few rows leave half of every SM to the kernels before and
/// after, which then overlap.
fn attention_blocks(most: u32, n: usize) -> u32 {
    const FEW: usize = 2;
    if n <= FEW { most.div_ceil(2) } else { most }
}
