//! The weights as the forward pass wants them: found once, by name, and interleaved where that pays.
#![allow(unsafe_code)] // Threads write parts of the same memory.

use std::sync::Arc;
use std::thread::JoinHandle;

use gguf_parser::TensorType;
use quant::{Format, IntegerIsa, Interleaved};
use weight_loader::{Tensor, TensorSpec, Weights};

use super::CpuError;
use super::matmul::{Matrix, Values};
use super::pool::{Pool, SharedSlice, share};
use crate::ModelSpec;
use crate::spec::{USABLE_ROPE_FACTORS, unusable_rope_factor};

/// Bytes of interleaved weights from which on large pages are worth a thread.
const WORTH_GATHERING: usize = 32 << 20;

/// A matrix, kept alive.
pub(super) enum Weight {
    /// In the bytes of its file.
    InFile { tensor: Tensor, format: Format, n_rows: usize, n_cols: usize },
    /// Interleaved, for products with activations of 16 bits; `tensor` is what it was made from.
    Interleaved { interleaved: Interleaved, isa: IntegerIsa, tensor: Tensor },
}

impl Weight {
    /// For a kernel.
    pub(super) fn matrix(&self) -> Matrix<'_> {
        match self {
            Weight::InFile { tensor, format, n_rows, n_cols } => {
                Matrix { format: *format, n_rows: *n_rows, n_cols: *n_cols, values: Values::Rows(tensor.bytes()) }
            }
            Weight::Interleaved { interleaved, isa, .. } => Matrix::interleaved(interleaved, *isa),
        }
    }

    /// Where it can be interleaved, room for that, to be filled by [`Weight::fill`].
    fn with_room(self, isa: IntegerIsa) -> Result<Self, CpuError> {
        match self {
            Weight::InFile { tensor, format, n_rows, n_cols } if quant::can_interleave(format) => {
                let n_bytes = tensor.bytes().len() as u64;
                let no_memory = CpuError::Memory { what: "interleaved weights", n_bytes };
                let interleaved = Interleaved::new(format, n_rows, n_cols).ok_or(no_memory)?;
                Ok(Weight::Interleaved { interleaved, isa, tensor })
            }
            other => Ok(other),
        }
    }

    /// Interleaves the rows, if there is room for them, and gives the file's pages back.
    fn fill(&mut self, pool: &Pool) {
        let Weight::Interleaved { interleaved, tensor, .. } = self else { return };
        let (format, n_cols, n_groups) = (interleaved.format(), interleaved.n_cols(), interleaved.n_groups());
        let (memory, group_bytes) = interleaved.groups_mut();
        let memory = SharedSlice::new(memory);
        pool.run(|thread_idx, n_threads| {
            let groups = share(n_groups, 1, thread_idx, n_threads);
            // SAFETY: the shares of different threads do not overlap.
            let to = unsafe { memory.range_mut(groups.start * group_bytes..groups.end * group_bytes) };
            Interleaved::interleave_groups(format, n_cols, tensor.bytes(), groups, to);
        });
        tensor.give_back_pages();
    }
}

/// A layer's weights. Shapes are `[outputs, inputs]`.
pub(super) struct Layer {
    /// `[d_model]`
    pub(super) attn_norm: Vec<f32>,
    /// `[n_heads * d_head, d_model]`
    pub(super) q: Weight,
    /// `[n_kv_heads * d_head, d_model]`
    pub(super) k: Weight,
    /// `[n_kv_heads * d_head, d_model]`
    pub(super) v: Weight,
    /// `[n_heads * d_head]`
    pub(super) q_bias: Option<Vec<f32>>,
    /// `[n_kv_heads * d_head]`
    pub(super) k_bias: Option<Vec<f32>>,
    /// `[n_kv_heads * d_head]`
    pub(super) v_bias: Option<Vec<f32>>,
    /// `[d_model, n_heads * d_head]`
    pub(super) attn_output: Weight,
    /// `[d_model]`
    pub(super) ffn_norm: Vec<f32>,
    /// `[d_ff, d_model]`
    pub(super) gate: Weight,
    /// `[d_ff, d_model]`
    pub(super) up: Weight,
    /// `[d_model, d_ff]`
    pub(super) down: Weight,
}

impl Layer {
    fn matrices(&self) -> [&Weight; 7] {
        let Self { q, k, v, attn_output, gate, up, down, .. } = self;
        [q, k, v, attn_output, gate, up, down]
    }

    fn matrices_mut(&mut self) -> [&mut Weight; 7] {
        let Self { q, k, v, attn_output, gate, up, down, .. } = self;
        [q, k, v, attn_output, gate, up, down]
    }
}

/// All weights.
pub(super) struct Model {
    /// `[n_vocab, d_model]`
    pub(super) token_embd: Weight,
    /// `[n_layers]`
    pub(super) layers: Vec<Layer>,
    /// `[d_model]`
    pub(super) output_norm: Vec<f32>,
    /// `[n_vocab, d_model]`; `None`: the token embedding.
    output: Option<Weight>,
    /// `[rope.n_dims / 2]`
    pub(super) rope_freqs: Option<Vec<f32>>,
}

impl Model {
    /// Finds every tensor of `spec`; with `integers`, interleaves what can be of the matrices that activations are multiplied
    /// with.
    pub(super) fn new(
        spec: &ModelSpec,
        weights: &Weights,
        integers: Option<(&Pool, IntegerIsa)>,
    ) -> Result<Self, CpuError> {
        let finder = Finder { weights, specs: spec.tensors() };
        let matrix = |name: &str| {
            let weight = finder.matrix(name)?;
            match integers {
                Some((_, isa)) => weight.with_room(isa),
                None => Ok(weight),
            }
        };
        let layer = |i: usize| -> Result<Layer, CpuError> {
            let name = |leaf: &str| format!("blk.{i}.{leaf}");
            let bias = |leaf: &str| spec.qkv_bias.then(|| finder.vector(&name(leaf))).transpose();
            Ok(Layer {
                attn_norm: finder.vector(&name("attn_norm.weight"))?,
                q: matrix(&name("attn_q.weight"))?,
                k: matrix(&name("attn_k.weight"))?,
                v: matrix(&name("attn_v.weight"))?,
                q_bias: bias("attn_q.bias")?,
                k_bias: bias("attn_k.bias")?,
                v_bias: bias("attn_v.bias")?,
                attn_output: matrix(&name("attn_output.weight"))?,
                ffn_norm: finder.vector(&name("ffn_norm.weight"))?,
                gate: matrix(&name("ffn_gate.weight"))?,
                up: matrix(&name("ffn_up.weight"))?,
                down: matrix(&name("ffn_down.weight"))?,
            })
        };
        let mut model = Self {
            // Where it is looked up in and no more, its pages are read as they are needed.
            token_embd: if spec.tied_output {
                matrix("token_embd.weight")
            } else {
                finder.matrix("token_embd.weight")
            }?,
            layers: (0..spec.n_layers).map(layer).collect::<Result<_, _>>()?,
            output_norm: finder.vector("output_norm.weight")?,
            output: (!spec.tied_output).then(|| matrix("output.weight")).transpose()?,
            rope_freqs: spec.rope.has_freqs.then(|| finder.rope_freqs()).transpose()?,
        };
        // Not before all have their room: then they lie side by side, and share large pages.
        if let Some((pool, _)) = integers {
            model.matrices_mut().for_each(|weight| weight.fill(pool));
        }
        Ok(model)
    }

    /// All matrices.
    fn matrices_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        let Self { token_embd, layers, output, .. } = self;
        std::iter::once(token_embd).chain(layers.iter_mut().flat_map(Layer::matrices_mut)).chain(output)
    }

    /// Interleaved weights.
    fn interleaved(&self) -> impl Iterator<Item = &Interleaved> {
        let all =
            std::iter::once(&self.token_embd).chain(self.layers.iter().flat_map(Layer::matrices)).chain(&self.output);
        all.filter_map(|weight| match weight {
            Weight::Interleaved { interleaved, .. } => Some(interleaved),
            Weight::InFile { .. } => None,
        })
    }

    /// Whether any weights are interleaved.
    pub(super) fn has_interleaved(&self) -> bool {
        self.interleaved().next().is_some()
    }

    /// Gathers interleaved weights in huge pages, behind the back of those who read them: decoding, bound by memory, is a tenth
    /// faster then.
    pub(super) fn gather_in_background(self: &Arc<Self>) -> Option<JoinHandle<()>> {
        if self.interleaved().map(Interleaved::n_bytes).sum::<usize>() < WORTH_GATHERING {
            return None;
        }
        let model = Arc::clone(self);
        let job = move || Interleaved::gather_in_huge_pages(model.interleaved());
        // Without the thread they stay where they are.
        std::thread::Builder::new().name("huge-pages".into()).spawn(job).ok()
    }

    /// The matrix that turns the residual stream into logits. `[n_vocab, d_model]`
    pub(super) fn output(&self) -> &Weight {
        self.output.as_ref().unwrap_or(&self.token_embd)
    }
}

/// Finds tensors and compares them with the spec once more: spec and weights come from two calls, maybe of two files.
struct Finder<'a> {
    weights: &'a Weights,
    specs: Vec<TensorSpec>,
}

impl Finder<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor, CpuError> {
        let wrong = |expected: String, got: String| CpuError::Tensor { name: name.to_owned(), expected, got };
        let spec = self.specs.iter().find(|s| s.name == name);
        let spec = spec.ok_or_else(|| wrong("to be in the spec".into(), "none".into()))?;
        let expected = || format!("shape {:?}, type one of {:?}", spec.shape, spec.types);
        let tensor = self.weights.tensor(name).ok_or_else(|| wrong(expected(), "none".into()))?;
        if tensor.shape[..] != spec.shape[..] || !spec.types.contains(&tensor.ty) {
            return Err(wrong(expected(), format!("shape {:?}, type {:?}", &tensor.shape[..], tensor.ty)));
        }
        Ok(tensor)
    }

    fn matrix(&self, name: &str) -> Result<Weight, CpuError> {
        let tensor = self.tensor(name)?;
        let format = format_of(name, tensor.ty)?;
        let (n_rows, n_cols) = (tensor.shape[0] as usize, tensor.shape[1] as usize);
        Ok(Weight::InFile { tensor, format, n_rows, n_cols })
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>, CpuError> {
        let tensor = self.tensor(name)?;
        let mut out = vec![0.0; tensor.shape[0] as usize];
        quant::dequantize(format_of(name, tensor.ty)?, tensor.bytes(), &mut out);
        Ok(out)
    }

    fn rope_freqs(&self) -> Result<Vec<f32>, CpuError> {
        let name = "rope_freqs.weight";
        let freqs = self.vector(name)?;
        match unusable_rope_factor(&freqs) {
            None => Ok(freqs),
            Some(f) => {
                Err(CpuError::Tensor { name: name.into(), expected: USABLE_ROPE_FACTORS.into(), got: f.to_string() })
            }
        }
    }
}

fn format_of(name: &str, ty: TensorType) -> Result<Format, CpuError> {
    Format::from_name(ty.name()).ok_or_else(|| CpuError::Tensor {
        name: name.to_owned(),
        expected: "a type with kernels".into(),
        got: ty.name().into(),
    })
}
