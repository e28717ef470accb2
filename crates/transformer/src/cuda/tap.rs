//! A window on a step's values, for those who compare them with a reference: reads every buffer back as it is filled.

use std::ops::Range;

use cuda_sys::{CudaError, DeviceBuffer, Stream};
use half::f16;

use super::buffers::{KvPool, Widths};
use super::step::Layout;
use crate::cpu::{Probe, Step};
use crate::{BLOCK_TOKENS, ModelSpec};

/// Shows a [`Probe`] what the kernels compute. A step that is watched runs one kernel at a time.
pub(super) struct Tap<'a> {
    /// Where kernels leave, in F32, what they otherwise only round or hand on.
    values: DeviceBuffer<f32>,
    spec: ModelSpec,
    widths: Widths,
    probe: &'a mut dyn Probe,
}

/// Where rows' keys and values are in the pool.
pub(super) struct Located<'a> {
    pub(super) kv: &'a KvPool,
    pub(super) inputs: &'a DeviceBuffer<u32>,
    pub(super) layout: &'a Layout,
    pub(super) positions: Range<usize>,
    pub(super) tables: Range<usize>,
}

impl<'a> Tap<'a> {
    /// For steps of up to `rows` rows.
    pub(super) fn new(
        spec: &ModelSpec,
        widths: &Widths,
        rows: usize,
        stream: &Stream,
        probe: &'a mut dyn Probe,
    ) -> Result<Self, CudaError> {
        let width = widths.d_model.max(widths.d_qkv).max(widths.d_ff);
        let values = stream.device().alloc_zeroed(rows * width)?;
        Ok(Self { values, spec: spec.clone(), widths: widths.clone(), probe })
    }

    /// For a kernel to write to.
    pub(super) fn values(&mut self) -> *mut f32 {
        self.values.as_mut_ptr()
    }

    /// What a kernel has written: `[n, width]`.
    pub(super) fn see(
        &mut self,
        step: Step,
        layer: usize,
        n: usize,
        width: usize,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let values = self.values.slice(..n * width).to_vec(stream)?;
        self.probe.see(step, layer, &values);
        Ok(())
    }

    /// A buffer's first `n` rows of `d_model` values.
    pub(super) fn residual(
        &mut self,
        step: Step,
        layer: usize,
        residual: &DeviceBuffer<f32>,
        n: usize,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let values = residual.slice(..n * self.widths.d_model).to_vec(stream)?;
        self.probe.see(step, layer, &values);
        Ok(())
    }

    /// Queries, keys and values before RoPE: from `qkv`, or from where a kernel was asked to leave them.
    pub(super) fn qkv(
        &mut self,
        layer: usize,
        n: usize,
        qkv: Option<&DeviceBuffer<f32>>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let width = self.widths.d_qkv;
        let all = qkv.unwrap_or(&self.values).slice(..n * width).to_vec(stream)?;
        let (d_q, d_kv) = (self.spec.d_q(), self.spec.d_kv());
        for (step, columns) in [(Step::Q, 0..d_q), (Step::K, d_q..d_q + d_kv), (Step::V, d_q + d_kv..width)] {
            let part: Vec<f32> = all.chunks_exact(width).flat_map(|row| row[columns.clone()].iter().copied()).collect();
            self.probe.see(step, layer, &part);
        }
        Ok(())
    }

    /// Queries and keys after RoPE; the keys as they are in the pool, rounded to F16.
    pub(super) fn rotated(
        &mut self,
        layer: usize,
        n: usize,
        q: &DeviceBuffer<f32>,
        at: &Located<'_>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let q = q.slice(..n * self.widths.d_q).to_vec(stream)?;
        self.probe.see(Step::QRope, layer, &q);
        let pool = at.kv.k.slice(layer * at.kv.layer_len..(layer + 1) * at.kv.layer_len).to_vec(stream)?;
        let inputs = at.inputs.to_vec(stream)?;
        let (d_head, pad, n_kv_heads) = (self.spec.d_head, self.widths.d_head_pad, self.spec.n_kv_heads);
        let mut keys = Vec::with_capacity(n * self.spec.d_kv());
        for row in 0..n {
            let position = inputs[at.positions.start + row] as usize;
            let table = inputs[at.tables.start + row] as usize;
            let block = inputs[at.layout.block_table().start + table + position / BLOCK_TOKENS] as usize;
            for head in 0..n_kv_heads {
                let start = ((block * n_kv_heads + head) * BLOCK_TOKENS + position % BLOCK_TOKENS) * pad;
                keys.extend(pool[start..start + d_head].iter().map(|x| x.to_f32()));
            }
        }
        self.probe.see(Step::KRope, layer, &keys);
        Ok(())
    }

    /// Weighted values of every head, rounded to F16.
    pub(super) fn attn(
        &mut self,
        layer: usize,
        attn: &DeviceBuffer<f16>,
        n: usize,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let (pitch, d_q) = (self.widths.q_pitch, self.widths.d_q);
        let all = attn.slice(..n * pitch).to_vec(stream)?;
        let rows = all.chunks_exact(pitch).flat_map(|row| row[..d_q].iter().map(|x| x.to_f32()));
        self.probe.see(Step::Attn, layer, &rows.collect::<Vec<f32>>());
        Ok(())
    }

    /// What a half of a layer adds to generated rows, its parts summed; and with `residual`, what that makes of it.
    #[allow(clippy::too_many_arguments, reason = "a step, its place, and where its values are")]
    pub(super) fn partials(
        &mut self,
        step: Step,
        layer: usize,
        n: usize,
        partials: &DeviceBuffer<f32>,
        n_splits: usize,
        residual: Option<&DeviceBuffer<f32>>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let len = n * self.widths.d_model;
        let parts = partials.slice(..n_splits * len).to_vec(stream)?;
        let mut sum = vec![0.0; len];
        let mut out = residual.map(|residual| residual.slice(..len).to_vec(stream)).transpose()?;
        for part in parts.chunks_exact(len) {
            for (i, value) in part.iter().enumerate() {
                sum[i] += value;
                if let Some(out) = &mut out {
                    out[i] += value;
                }
            }
        }
        self.probe.see(step, layer, &sum);
        if let Some(out) = out {
            self.probe.see(Step::Out, layer, &out);
        }
        Ok(())
    }
}
