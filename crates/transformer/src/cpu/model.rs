//! The weights as the forward pass wants them: found once, by name.

use gguf_parser::TensorType;
use quant::Format;
use weight_loader::{Tensor, TensorSpec, Weights};

use super::CpuError;
use super::matmul::Matrix;
use crate::ModelSpec;
use crate::spec::{USABLE_ROPE_FACTORS, unusable_rope_factor};

/// A matrix in the bytes of its file, kept alive.
pub(super) struct Weight {
    tensor: Tensor,
    format: Format,
    n_rows: usize,
    n_cols: usize,
}

impl Weight {
    /// For a kernel.
    pub(super) fn matrix(&self) -> Matrix<'_> {
        Matrix { format: self.format, n_rows: self.n_rows, n_cols: self.n_cols, bytes: self.tensor.bytes() }
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
    /// Finds every tensor of `spec`.
    pub(super) fn new(spec: &ModelSpec, weights: &Weights) -> Result<Self, CpuError> {
        let finder = Finder { weights, specs: spec.tensors() };
        let layer = |i: usize| -> Result<Layer, CpuError> {
            let name = |leaf: &str| format!("blk.{i}.{leaf}");
            let bias = |leaf: &str| spec.qkv_bias.then(|| finder.vector(&name(leaf))).transpose();
            Ok(Layer {
                attn_norm: finder.vector(&name("attn_norm.weight"))?,
                q: finder.matrix(&name("attn_q.weight"))?,
                k: finder.matrix(&name("attn_k.weight"))?,
                v: finder.matrix(&name("attn_v.weight"))?,
                q_bias: bias("attn_q.bias")?,
                k_bias: bias("attn_k.bias")?,
                v_bias: bias("attn_v.bias")?,
                attn_output: finder.matrix(&name("attn_output.weight"))?,
                ffn_norm: finder.vector(&name("ffn_norm.weight"))?,
                gate: finder.matrix(&name("ffn_gate.weight"))?,
                up: finder.matrix(&name("ffn_up.weight"))?,
                down: finder.matrix(&name("ffn_down.weight"))?,
            })
        };
        Ok(Self {
            token_embd: finder.matrix("token_embd.weight")?,
            layers: (0..spec.n_layers).map(layer).collect::<Result<_, _>>()?,
            output_norm: finder.vector("output_norm.weight")?,
            output: (!spec.tied_output).then(|| finder.matrix("output.weight")).transpose()?,
            rope_freqs: spec.rope.has_freqs.then(|| finder.rope_freqs()).transpose()?,
        })
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
        Ok(Weight { tensor, format, n_rows, n_cols })
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
