//! The forward pass on the GPU: the calls of one step, in order.
//!
//! Generated rows and prompt rows go through different kernels and leave different bits; neither's depend on how many rows
//! there are. See ARCHITECTURE.md for what is proved of them, and `cuda/ops` for what each kernel does.

use cuda_sys::{CudaError, DeviceBuffer, Stream, sys};
use half::f16;
use quant::Format;

use super::arena::MatrixAt;
use super::buffers::{Buffers, KvPool, Widths, dequantized_len, vector};
use super::model::{Layer, Model, Norm};
use super::step::{Layout, Step};
use super::tap::{Located, Tap};
use crate::cpu::Step as Probed;
use crate::{ModelSpec, RopePairs};

/// Calls a kernel's launcher and turns its status into a `Result`.
macro_rules! launch {
    ($stream:expr, $op:ident, $args:expr) => {{
        let args = $args;
        // SAFETY: every pointer comes from a buffer of `Forward`, which holds what the largest step needs (`Sizes`,
        // `Layout`); the step was checked against those limits; and no buffer is freed before the stream's work is done.
        let status = unsafe { sys::$op(&args, $stream.raw()) };
        $stream.launched(stringify!($op), status)?
    }};
}

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

    /// Prompt rows: from tokens to the logits of those that are sampled, or what is chosen from them.
    pub(super) fn prompt(&mut self, step: &Step, stream: &Stream, tap: &mut Option<Tap<'_>>) -> Result<(), CudaError> {
        let n = step.n_prompt;
        self.embed(self.layout.prompt_tokens().start, n, stream)?;
        if let Some(tap) = tap {
            tap.residual(Probed::Embeddings, 0, &self.buffers.residual, n, stream)?;
        }
        for i in 0..self.model.layers.len() {
            self.prompt_attention(i, step, stream, tap)?;
            self.prompt_feed_forward(i, n, stream, tap)?;
        }
        if step.n_prompt_samples == 0 {
            return Ok(());
        }
        let rows = self.inputs.slice(self.layout.prompt_samples()).as_ptr();
        let norm = self.model.output_norm;
        self.norm(norm, Some(rows), step.n_prompt_samples, 0, None, stream, tap)?;
        if let Some(tap) = tap {
            tap.see(Probed::FinalNorm, 0, step.n_prompt_samples, self.widths.d_model, stream)?;
        }
        let logits = self.buffers.prompt_logits.as_mut_ptr();
        self.head(logits, step.n_prompt_samples, None, stream)?;
        if step.chooses {
            let choices = self.buffers.prompt_choices.as_mut_slice().as_mut_ptr();
            self.sample(logits, self.layout.prompt_params(), choices, step.n_prompt_samples, stream)?;
        }
        Ok(())
    }

    fn prompt_attention(
        &mut self,
        i: usize,
        step: &Step,
        stream: &Stream,
        tap: &mut Option<Tap<'_>>,
    ) -> Result<(), CudaError> {
        let n = step.n_prompt;
        let norm = self.model.layers[i].attn_norm;
        self.norm(norm, None, n, 0, None, stream, tap)?;
        if let Some(tap) = tap {
            tap.see(Probed::AttnNorm, i, n, self.widths.d_model, stream)?;
        }
        self.prompt_qkv(i, n, stream)?;
        let Self { spec, widths: w, model, kv, buffers: b, layout, inputs, .. } = self;
        let layer = &model.layers[i];
        let (k_pool, v_pool) = layer_pools(kv, i);
        let numbers = |range: std::ops::Range<usize>| inputs.slice(range).as_ptr();
        if let Some(tap) = tap {
            tap.qkv(i, n, Some(&b.qkv), stream)?;
        }
        launch!(
            stream,
            orcd_rope_append,
            sys::orcd_rope_append_args {
                qkv: b.qkv.as_ptr(),
                cos_sin: b.cos_sin.as_ptr(),
                q: b.q.as_mut_ptr(),
                k_pool,
                v_pool,
                block_table: numbers(layout.block_table()),
                table_start: numbers(layout.prompt_tables()),
                positions: numbers(layout.prompt_positions()),
                n_tokens: n as u32,
                n_heads: spec.n_heads as u32,
                n_kv_heads: spec.n_kv_heads as u32,
                d_head: spec.d_head as u32,
                d_head_pad: w.d_head_pad as u32,
                n_rope: spec.rope.n_dims as u32,
                rope_adjacent: u32::from(spec.rope.pairs == RopePairs::Adjacent),
            }
        );
        if let Some(tap) = tap {
            let (positions, tables) = (layout.prompt_positions(), layout.prompt_tables());
            tap.rotated(i, n, &b.q, &Located { kv, inputs, layout, positions, tables }, stream)?;
        }
        launch!(
            stream,
            orcd_attention_prefill,
            sys::orcd_attention_prefill_args {
                q: b.q.as_ptr(),
                k_pool,
                v_pool,
                block_table: numbers(layout.block_table()),
                table_start: numbers(layout.prompt_tables()),
                positions: numbers(layout.prompt_positions()),
                tiles: numbers(layout.prompt_tiles()).cast(),
                n_tiles: step.n_tiles as u32,
                out: b.attn.as_mut_ptr(),
                out_pitch: w.q_pitch as u32,
                n_tokens: n as u32,
                n_heads: spec.n_heads as u32,
                n_kv_heads: spec.n_kv_heads as u32,
                d_head: spec.d_head as u32,
                d_head_pad: w.d_head_pad as u32,
            }
        );
        if let Some(tap) = tap {
            tap.attn(i, &b.attn, n, stream)?;
        }
        let x = Activations { values: &b.attn, pitch: w.q_pitch, scale: 1.0, row_unscale: std::ptr::null() };
        let weights = prepared(&layer.attn_output, 0, model, &mut b.weights, stream)?;
        let mut args = prompt_args(&layer.attn_output, weights, &x, n);
        args.output = sys::ORCD_PREFILL_ADD;
        args.out = b.residual.as_mut_ptr();
        args.out_pitch = w.d_model as u32;
        args.probe = shown_to(tap);
        launch!(stream, orcd_prefill_matmul, args);
        if let Some(tap) = tap {
            tap.see(Probed::AttnOut, i, n, w.d_model, stream)?;
        }
        Ok(())
    }

    /// Queries, keys and values with their biases, one behind the other. One product where the matrices are one.
    fn prompt_qkv(&mut self, i: usize, n: usize, stream: &Stream) -> Result<(), CudaError> {
        let Self { spec, widths: w, model, buffers: b, .. } = self;
        let layer = &model.layers[i];
        let bias = qkv_bias(spec, model, layer);
        let x = Activations {
            values: &b.normed,
            pitch: w.model_pitch,
            scale: layer.attn_norm.scale,
            row_unscale: std::ptr::null(),
        };
        let [q, k, v] = &layer.qkv;
        let is_one = q.format == Format::F16 && q.is_followed_by(k) && k.is_followed_by(v);
        let parts: &[&MatrixAt] = if is_one { &[q] } else { &[q, k, v] };
        let mut column = 0;
        for (matrix, bias) in parts.iter().zip(bias) {
            let weights = prepared(matrix, 0, model, &mut b.weights, stream)?;
            let mut args = prompt_args(matrix, weights, &x, n);
            if is_one {
                args.n_rows = w.d_qkv as u32;
            }
            args.output = sys::ORCD_PREFILL_STORE;
            args.out = b.qkv.slice_mut(column..).as_mut_ptr();
            args.out_pitch = w.d_qkv as u32;
            args.bias = bias;
            launch!(stream, orcd_prefill_matmul, args);
            column += matrix.n_rows;
        }
        Ok(())
    }

    fn prompt_feed_forward(
        &mut self,
        i: usize,
        n: usize,
        stream: &Stream,
        tap: &mut Option<Tap<'_>>,
    ) -> Result<(), CudaError> {
        let (norm, bound) = (self.model.layers[i].ffn_norm, self.model.layers[i].ffn_bound);
        self.norm(norm, None, n, 0, Some(bound), stream, tap)?;
        if let Some(tap) = tap {
            tap.see(Probed::FfnNorm, i, n, self.widths.d_model, stream)?;
        }
        let Self { widths: w, model, buffers: b, .. } = self;
        let layer = &model.layers[i];
        let x = Activations {
            values: &b.normed,
            pitch: w.model_pitch,
            scale: layer.ffn_norm.scale,
            row_unscale: std::ptr::null(),
        };
        let gate = prepared(&layer.gate, 0, model, &mut b.weights, stream)?;
        let up_at = if layer.gate.format == Format::F16 { 0 } else { dequantized_len(&layer.gate) };
        let up = prepared(&layer.up, up_at, model, &mut b.weights, stream)?;
        let mut args = prompt_args(&layer.gate, gate, &x, n);
        args.w[1] = up;
        args.unscale[1] = 1.0 / (layer.up.scale * x.scale);
        args.output = sys::ORCD_PREFILL_GATE_UP;
        args.act = b.act.as_mut_ptr();
        args.act_pitch = w.ff_pitch as u32;
        args.ffn_scale = b.ffn_scale.as_ptr();
        args.probe = shown_to(tap);
        launch!(stream, orcd_prefill_matmul, args);
        if let Some(tap) = tap {
            tap.see(Probed::FfnAct, i, n, w.d_ff, stream)?;
        }
        let x = Activations { values: &b.act, pitch: w.ff_pitch, scale: 1.0, row_unscale: b.ffn_unscale.as_ptr() };
        let weights = prepared(&layer.down, 0, model, &mut b.weights, stream)?;
        let mut args = prompt_args(&layer.down, weights, &x, n);
        args.output = sys::ORCD_PREFILL_ADD;
        args.out = b.residual.as_mut_ptr();
        args.out_pitch = w.d_model as u32;
        args.probe = shown_to(tap);
        launch!(stream, orcd_prefill_matmul, args);
        if let Some(tap) = tap {
            tap.see(Probed::Ffn, i, n, w.d_model, stream)?;
            tap.residual(Probed::Out, i, &b.residual, n, stream)?;
        }
        Ok(())
    }

    /// residual = token_embd[tokens]
    fn embed(&mut self, tokens_at: usize, n: usize, stream: &Stream) -> Result<(), CudaError> {
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
    fn norm(
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
    fn sample(
        &mut self,
        logits: *const f32,
        params: std::ops::Range<usize>,
        choices: *mut u32,
        n: usize,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let Self { widths: w, buffers: b, inputs, .. } = self;
        launch!(
            stream,
            orcd_sample,
            sys::orcd_sample_args {
                logits,
                row_pitch: w.n_vocab as u64,
                params: inputs.slice(params).as_ptr().cast(),
                history: b.history.as_ptr(),
                choices: choices.cast(),
                scratch: b.sampling.as_mut_ptr().cast(),
                n_rows: n as u32,
                n_vocab: w.n_vocab as u32,
            }
        );
        Ok(())
    }

    /// logits = output * normed, for generated and prompt rows alike; or, with a number of partials, output * norm(residual).
    fn head(
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

/// Activations that a product reads.
struct Activations<'a> {
    values: &'a DeviceBuffer<f16>,
    pitch: usize,
    /// What they were stored times.
    scale: f32,
    /// And what each row is to be multiplied by, or null.
    row_unscale: *const f32,
}

/// The arguments of a generated rows' product: everything but where it goes.
fn matmul_args(
    matrix: &MatrixAt,
    x: &DeviceBuffer<f16>,
    x_pitch: usize,
    x_scale: f32,
    n: usize,
    arena: &DeviceBuffer<u8>,
) -> sys::orcd_decode_matmul_args {
    let mut args = sys::orcd_decode_matmul_args::default();
    args.w[0] = matrix.raw(arena);
    args.x = x.as_ptr();
    args.x_pitch = x_pitch as u32;
    args.x_unscale = 1.0 / x_scale;
    args.n_tokens = n as u32;
    args.n_splits = 1;
    args.output = sys::ORCD_DECODE_STORE;
    args
}

/// The same for prompt rows, with weights that [`prepared`] has made halves.
fn prompt_args(matrix: &MatrixAt, w: *const f16, x: &Activations<'_>, n: usize) -> sys::orcd_prefill_matmul_args {
    let mut args = sys::orcd_prefill_matmul_args::default();
    args.w[0] = w;
    args.w_pitch = matrix.n_padded_cols() as u32;
    args.x = x.values.as_ptr();
    args.x_pitch = x.pitch as u32;
    args.n_tokens = n as u32;
    args.n_rows = matrix.n_rows as u32;
    args.n_cols = matrix.n_cols as u32;
    args.unscale[0] = 1.0 / (matrix.scale * x.scale);
    args.row_unscale = x.row_unscale;
    args
}

/// A matrix as halves times its scale: where it lies, or dequantized to `at` in `to`.
fn prepared(
    matrix: &MatrixAt,
    at: usize,
    model: &Model,
    to: &mut DeviceBuffer<f16>,
    stream: &Stream,
) -> Result<*const f16, CudaError> {
    if matrix.format == Format::F16 {
        return Ok(matrix.raw(&model.arena).values.cast());
    }
    let mut out = to.slice_mut(at..at + dequantized_len(matrix));
    let out_pitch = matrix.n_padded_cols() as u32;
    launch!(
        stream,
        orcd_dequantize,
        sys::orcd_dequantize_args { w: matrix.raw(&model.arena), out: out.as_mut_ptr(), out_pitch }
    );
    Ok(out.as_mut_ptr())
}

/// A norm that a product computes itself: of the first residual plus `n_partials` partials, left in the second.
fn fused_norm(
    spec: &ModelSpec,
    model: &Model,
    norm: Norm,
    (residual, residual_out): (*const f32, *mut f32),
    (partials, n_partials): (*const f32, usize),
) -> sys::orcd_decode_norm {
    sys::orcd_decode_norm {
        residual,
        partials,
        n_partials: n_partials as u32,
        residual_out,
        weight: vector(model, norm.weight),
        eps: spec.rms_eps,
        scale: norm.scale,
        ..Default::default()
    }
}

/// Where a kernel leaves what it otherwise only hands on: null, unless somebody watches.
fn shown_to(tap: &mut Option<Tap<'_>>) -> *mut f32 {
    tap.as_mut().map_or(std::ptr::null_mut(), Tap::values)
}

/// Blocks for attention of `n` rows, where the device holds `most`. A few rows leave half of every SM to the kernels before and
/// after, which then overlap.
fn attention_blocks(most: u32, n: usize) -> u32 {
    const FEW: usize = 2;
    if n <= FEW { most.div_ceil(2) } else { most }
}

/// Pointers to the biases of q, k and v; null without.
fn qkv_bias(spec: &ModelSpec, model: &Model, layer: &Layer) -> [*const f32; 3] {
    let Some(start) = layer.qkv_bias else { return [std::ptr::null(); 3] };
    [0, spec.d_q(), spec.d_q() + spec.d_kv()].map(|offset| vector(model, start + offset))
}

/// Where a layer's keys and values begin.
fn layer_pools(kv: &mut KvPool, layer: usize) -> (*mut f16, *mut f16) {
    let range = layer * kv.layer_len..(layer + 1) * kv.layer_len;
    (kv.k.slice_mut(range.clone()).as_mut_ptr(), kv.v.slice_mut(range).as_mut_ptr())
}
