//! The calls of one step of prompt rows, in order.

use cuda_sys::{CudaError, DeviceBuffer, Stream, sys};
use half::f16;
use quant::Format;

use super::arena::MatrixAt;
use super::args::{launch, layer_pools, qkv_bias, shown_to};
use super::buffers::dequantized_len;
use super::forward::Forward;
use super::model::Model;
use super::step::Step;
use super::tap::{Located, Tap};
use crate::RopePairs;
use crate::cpu::Step as Probed;

impl Forward {
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

/// The arguments of a product: everything but where it goes, with weights that [`prepared`] has made halves.
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
