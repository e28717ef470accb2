//! The forward pass, on one page.
//!
//! Source: Vaswani et al. 2017 with RMSNorm before each half (Zhang & Sennrich 2019), rotary positions (Su et al. 2021),
//! grouped-query attention (Ainslie et al. 2023) and a gated feed-forward (Shazeer 2020).

use std::sync::Arc;
use std::thread::JoinHandle;

use quant::{Aligned, Isa};
use weight_loader::Weights;

use super::attention::{AttentionScratch, KvCache, KvShape, attend};
use super::matmul::{MatmulScratch, Matrix, Product, matmul};
use super::model::{Layer, Model};
use super::ops::{RopeAngles, add_assign, rms_norm, rope, silu_mul};
use super::pool::Pool;
use super::{CpuError, CpuOptions, Probe, Step};
use crate::{Batch, KvGeometry, ModelSpec};

/// Everything that a step touches.
pub(super) struct Forward {
    spec: ModelSpec,
    model: Arc<Model>,
    /// Of [`Model::gather_in_background`].
    gathering: Option<JoinHandle<()>>,
    cache: KvCache,
    angles: RopeAngles,
    attention: AttentionScratch,
    x: Activations,
    kernels: Kernels,
}

/// What every kernel needs: threads, instructions, and the threads' working memory.
struct Kernels {
    pool: Pool,
    isa: Isa,
    matmul: MatmulScratch,
}

impl Kernels {
    fn product(&mut self, x: &[f32], n_tokens: usize, weight: Matrix<'_>, out: &mut [f32]) {
        self.products(x, n_tokens, &mut [Product { weight, bias: None, out }]);
    }

    fn products(&mut self, x: &[f32], n_tokens: usize, products: &mut [Product<'_>]) {
        matmul(&self.pool, self.isa, x, n_tokens, products, &mut self.matmul);
    }
}

/// Activations of one step, F32, row-major; taken once, for the longest step. A step uses the first rows of each.
struct Activations {
    /// The residual stream. `[max_batch_tokens, d_model]`
    residual: Aligned,
    /// What a norm made of it, or what a half of a layer adds to it. `[max_batch_tokens, d_model]`
    hidden: Aligned,
    /// `[max_batch_tokens, n_heads, d_head]`
    q: Aligned,
    /// `[max_batch_tokens, n_kv_heads, d_head]`
    k: Aligned,
    /// `[max_batch_tokens, n_kv_heads, d_head]`
    v: Aligned,
    /// `[max_batch_tokens, n_heads, d_head]`
    attn: Aligned,
    /// `[max_batch_tokens, d_ff]`
    gate: Aligned,
    /// `[max_batch_tokens, d_ff]`
    up: Aligned,
    /// Rows whose logits are wanted. `[max_seqs, d_model]`
    sampled: Aligned,
    /// `[max_seqs, d_model]`
    normed: Aligned,
    /// `[max_seqs, n_vocab]`
    logits: Aligned,
}

impl Forward {
    /// Finds the weights and takes all memory.
    pub(super) fn new(
        spec: ModelSpec,
        weights: &Weights,
        options: &CpuOptions,
        kv: &KvGeometry,
        n_ctx: usize,
    ) -> Result<Self, CpuError> {
        let n_threads = options.n_threads;
        let pool = Pool::new(n_threads).map_err(|source| CpuError::Threads { n_threads, source })?;
        let model = Arc::new(Model::new(&spec, weights, options.integers.map(|isa| (&pool, isa)))?);
        let gathering = model.gather_in_background();
        let widest = spec.d_model.max(spec.d_q()).max(spec.d_ff);
        let n_rounded = if model.has_interleaved() { options.max_batch_tokens * widest } else { 0 };
        let shape = KvShape {
            n_layers: spec.n_layers,
            n_blocks: kv.n_blocks,
            n_kv_heads: spec.n_kv_heads,
            d_head: spec.d_head,
            ty: kv.kv_type,
        };
        let cache =
            KvCache::new(shape).map_err(|_| CpuError::Memory { what: "the KV cache", n_bytes: kv.n_bytes() })?;
        let angles = RopeAngles::new(
            f64::from(spec.rope.base),
            spec.rope.n_dims,
            1.0 / f64::from(spec.rope.scale),
            model.rope_freqs.as_deref(),
            options.max_batch_tokens,
        );
        Ok(Self {
            attention: AttentionScratch::new(n_threads, &shape, spec.n_heads, n_ctx, options.max_seqs),
            x: Activations::new(&spec, options)?,
            kernels: Kernels { pool, isa: options.isa, matmul: MatmulScratch::new(n_threads, n_rounded) },
            spec,
            model,
            gathering,
            cache,
            angles,
        })
    }

    /// What the model is.
    pub(super) fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Waits until weights lie where they will stay.
    pub(super) fn settle(&mut self) {
        if let Some(gathering) = self.gathering.take() {
            let _ = gathering.join();
        }
    }

    /// Whether any weights are interleaved.
    pub(super) fn has_interleaved(&self) -> bool {
        self.model.has_interleaved()
    }

    /// Bytes of everything but weights and KV pool.
    pub(super) fn scratch_bytes(&self) -> u64 {
        let kernels = self.attention.n_bytes() + self.kernels.matmul.n_bytes() + self.angles.n_bytes();
        self.x.n_bytes() + kernels as u64
    }

    /// One step: logits of the batch's sampled rows, `[n_samples, n_vocab]`. The batch has been checked.
    pub(super) fn run(&mut self, batch: &Batch, probe: &mut dyn Probe) -> &[f32] {
        let n_tokens = batch.n_tokens();
        if n_tokens == 0 {
            return &[];
        }
        self.angles.set_positions(&batch.positions);
        self.embed(batch); // residual [n_tokens, d_model]
        probe.see(Step::Embeddings, 0, &self.x.residual[..n_tokens * self.spec.d_model]);
        for layer_idx in 0..self.spec.n_layers {
            self.layer(batch, layer_idx, probe);
        }
        self.unembed(batch, probe) // [n_samples, n_vocab]
    }

    /// residual = token_embd[tokens]
    fn embed(&mut self, batch: &Batch) {
        let d_model = self.spec.d_model;
        let token_embd = self.model.token_embd.matrix();
        for (row, &token) in self.x.residual.chunks_exact_mut(d_model).zip(&batch.tokens) {
            token_embd.row(token as usize, row);
        }
    }

    /// residual += attention(norm(residual)); residual += feed_forward(norm(residual))
    fn layer(&mut self, batch: &Batch, layer_idx: usize, probe: &mut dyn Probe) {
        let n = batch.n_tokens();
        let ModelSpec { d_model, d_ff, d_head, n_heads, n_kv_heads, rms_eps, .. } = self.spec;
        let (d_q, d_kv, pairs) = (self.spec.d_q(), self.spec.d_kv(), self.spec.rope.pairs);
        let Self { model, cache, angles, attention, kernels, x, .. } = self;
        let w: &Layer = &model.layers[layer_idx];
        let isa = kernels.isa;
        let mut see = |step, values: &[f32]| probe.see(step, layer_idx, values);

        let residual = &mut x.residual[..n * d_model]; // [n_tokens, d_model]
        let hidden = &mut x.hidden[..n * d_model]; // [n_tokens, d_model]
        let q = &mut x.q[..n * d_q]; // [n_tokens, n_heads, d_head]
        let k = &mut x.k[..n * d_kv]; // [n_tokens, n_kv_heads, d_head]
        let v = &mut x.v[..n * d_kv]; // [n_tokens, n_kv_heads, d_head]
        let attn = &mut x.attn[..n * d_q]; // [n_tokens, n_heads, d_head]
        let gate = &mut x.gate[..n * d_ff]; // [n_tokens, d_ff]
        let up = &mut x.up[..n * d_ff]; // [n_tokens, d_ff]

        rms_norm(&kernels.pool, isa, residual, &w.attn_norm, rms_eps, hidden);
        see(Step::AttnNorm, hidden);
        kernels.products(
            hidden,
            n,
            &mut [
                Product { weight: w.q.matrix(), bias: w.q_bias.as_deref(), out: q },
                Product { weight: w.k.matrix(), bias: w.k_bias.as_deref(), out: k },
                Product { weight: w.v.matrix(), bias: w.v_bias.as_deref(), out: v },
            ],
        );
        see(Step::Q, q);
        see(Step::K, k);
        see(Step::V, v);
        rope(&kernels.pool, isa, pairs, angles, q, n_heads, d_head);
        rope(&kernels.pool, isa, pairs, angles, k, n_kv_heads, d_head);
        see(Step::QRope, q);
        see(Step::KRope, k);
        cache.append(layer_idx, batch, k, v);
        attend(&kernels.pool, isa, cache, layer_idx, batch, q, attn, attention);
        see(Step::Attn, attn);
        kernels.product(attn, n, w.attn_output.matrix(), hidden);
        see(Step::AttnOut, hidden);
        add_assign(&kernels.pool, isa, residual, hidden);

        rms_norm(&kernels.pool, isa, residual, &w.ffn_norm, rms_eps, hidden);
        see(Step::FfnNorm, hidden);
        kernels.products(
            hidden,
            n,
            &mut [
                Product { weight: w.gate.matrix(), bias: None, out: gate },
                Product { weight: w.up.matrix(), bias: None, out: up },
            ],
        );
        silu_mul(&kernels.pool, isa, gate, up); // gate = silu(gate) * up
        see(Step::FfnAct, gate);
        kernels.product(gate, n, w.down.matrix(), hidden);
        see(Step::Ffn, hidden);
        add_assign(&kernels.pool, isa, residual, hidden);
        see(Step::Out, residual);
    }

    /// logits = output * norm(residual[sample_rows])
    fn unembed(&mut self, batch: &Batch, probe: &mut dyn Probe) -> &[f32] {
        let n_samples = batch.sample_rows.len();
        let ModelSpec { d_model, n_vocab, rms_eps, .. } = self.spec;
        let Self { model, kernels, x, .. } = self;
        let sampled = &mut x.sampled[..n_samples * d_model]; // [n_samples, d_model]
        let normed = &mut x.normed[..n_samples * d_model]; // [n_samples, d_model]
        let logits = &mut x.logits[..n_samples * n_vocab]; // [n_samples, n_vocab]
        for (to, &row) in sampled.chunks_exact_mut(d_model).zip(&batch.sample_rows) {
            to.copy_from_slice(&x.residual[row * d_model..][..d_model]);
        }
        rms_norm(&kernels.pool, kernels.isa, sampled, &model.output_norm, rms_eps, normed);
        probe.see(Step::FinalNorm, 0, normed);
        kernels.product(normed, n_samples, model.output().matrix(), logits);
        logits
    }
}

impl Activations {
    fn new(spec: &ModelSpec, options: &CpuOptions) -> Result<Self, CpuError> {
        let (n, n_samples) = (options.max_batch_tokens, options.max_seqs);
        Ok(Self {
            residual: zeros(n, spec.d_model)?,
            hidden: zeros(n, spec.d_model)?,
            q: zeros(n, spec.d_q())?,
            k: zeros(n, spec.d_kv())?,
            v: zeros(n, spec.d_kv())?,
            attn: zeros(n, spec.d_q())?,
            gate: zeros(n, spec.d_ff)?,
            up: zeros(n, spec.d_ff)?,
            sampled: zeros(n_samples, spec.d_model)?,
            normed: zeros(n_samples, spec.d_model)?,
            logits: zeros(n_samples, spec.n_vocab)?,
        })
    }

    fn n_bytes(&self) -> u64 {
        let Self { residual, hidden, q, k, v, attn, gate, up, sampled, normed, logits } = self;
        [residual, hidden, q, k, v, attn, gate, up, sampled, normed, logits].iter().map(|x| x.n_bytes() as u64).sum()
    }
}

/// `[n, width]` zeros, or an error where the machine has no room for them.
fn zeros(n: usize, width: usize) -> Result<Aligned, CpuError> {
    let n_values = n.saturating_mul(width);
    let n_bytes = (n_values as u64).saturating_mul(size_of::<f32>() as u64);
    Aligned::try_zeros(n_values).ok_or(CpuError::Memory { what: "a step's activations", n_bytes })
}
