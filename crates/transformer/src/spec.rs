//! What a decoder is: every fact that the executors need, checked once.
//!
//! A [`ModelSpec`] is data. The decoders worth serving differ in flags and widths, not in structure, so an architecture
//! is a reader of metadata (`arch/<name>.rs`) and no code of its own. Whoever holds a `ModelSpec` may rely on it: counts
//! are above zero and below the limits here, heads divide, numbers are finite.

use std::sync::LazyLock;

use gguf_parser::{Gguf, TensorType, ValueError};
use weight_loader::TensorSpec;

use crate::arch;

/// The most layers: the largest dense decoders have 126.
pub const MAX_LAYERS: usize = 1024;
/// The widest residual stream: the largest dense decoders have 16,384.
pub const MAX_D_MODEL: usize = 1 << 17;
/// The most attention heads in a layer: the largest dense decoders have 128.
pub const MAX_HEADS: usize = 1024;
/// The largest head: 256 is the largest in use. Attention keeps one head's sums on the stack.
pub const MAX_D_HEAD: usize = 512;
/// The widest feed-forward: the largest dense decoders have 53,248.
pub const MAX_D_FF: usize = 1 << 19;
/// The largest vocabulary: 262,144 is the largest in use.
pub const MAX_VOCAB: usize = 1 << 22;
/// The longest context that a model may claim: 10 million is the longest claimed so far. Positions stay exact in `u32`
/// and angles in `f64`.
pub const MAX_CTX: usize = 1 << 24;

/// A decoder: token embedding, `n_layers` times (attention, feed-forward) around a residual stream, output matrix.
///
/// Shapes are row-major, slowest first, as everywhere in the worker.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// `general.name`, for people.
    pub name: Option<String>,
    /// Layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads in a layer.
    pub n_heads: usize,
    /// Key/value heads in a layer; divides `n_heads`. Query head `h` reads KV head `h / (n_heads / n_kv_heads)`.
    pub n_kv_heads: usize,
    /// Width of a head; `n_heads * d_head` need not be `d_model`.
    pub d_head: usize,
    /// Width of the feed-forward.
    pub d_ff: usize,
    /// Rows of the token embedding and of the output matrix.
    pub n_vocab: usize,
    /// The longest sequence the model was made for, in tokens.
    pub n_ctx: usize,
    /// RMSNorm's epsilon.
    pub rms_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether q, k and v have biases, added before RoPE.
    pub qkv_bias: bool,
    /// Whether the token embedding is the output matrix too.
    pub tied_output: bool,
}

/// Rotary position embedding: pair `i` of a head's first `n_dims` values turns by
/// `position / scale * base^(-2i / n_dims) / rope_freqs[i]` radians.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Which values make a pair.
    pub pairs: RopePairs,
    /// `rope.freq_base`.
    pub base: f32,
    /// Values of a head that turn; even, at most `d_head`. The others pass unchanged.
    pub n_dims: usize,
    /// Linear scaling (`rope.scaling.factor`); 1 is none.
    pub scale: f32,
    /// Whether `rope_freqs.weight` divides the frequencies (Llama 3.1 and later).
    pub has_freqs: bool,
}

/// Radians a position by which each pair turns: `base^(-2i / n_dims) * scale / factors[i]`, `[n_dims / 2]`.
///
/// `scale` is 1, or 1 / factor with linear scaling; `factors` is `rope_freqs.weight`, where a file has it. In double: in F32 the
/// angles are right at position 100 and wrong at 16,000.
pub(crate) fn rope_frequencies(base: f64, n_dims: usize, scale: f64, factors: Option<&[f32]>) -> Vec<f64> {
    let of = |i: usize| {
        let factor = factors.map_or(1.0, |factors| f64::from(factors[i]));
        base.powf(-2.0 * i as f64 / n_dims as f64) * scale / factor
    };
    (0..n_dims / 2).map(of).collect()
}

/// The first of `rope_freqs.weight` that cannot divide: a zero among them would turn every position by infinity.
pub(crate) fn unusable_rope_factor(factors: &[f32]) -> Option<f32> {
    factors.iter().copied().find(|f| !(f.is_finite() && *f > 0.0))
}

/// What [`unusable_rope_factor`] looks for.
pub(crate) const USABLE_ROPE_FACTORS: &str = "finite numbers above 0";

/// Which values of a head RoPE turns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// `(i, i + n_dims / 2)`: "NEOX"; qwen2 and most others.
    Halves,
    /// `(2i, 2i + 1)`: GGUF `llama` files, whose q and k rows the converter reordered for it.
    Adjacent,
}

/// Why a GGUF file is no model that this worker can serve.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SpecError {
    /// A key is missing or its value has the wrong type.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// `general.architecture` is not in the table of architectures.
    #[error("key \"general.architecture\": expected one of {known}, got \"{got}\"")]
    UnknownArchitecture {
        /// What the file says.
        got: String,
        /// What the worker knows, separated by commas.
        known: String,
    },
    /// A value that no decoder can have.
    #[error("key \"{key}\": expected {expected}, got {got}")]
    Invalid {
        /// The metadata key.
        key: String,
        /// The rule it breaks.
        expected: String,
        /// Its value.
        got: String,
    },
    /// A value that other programs may know what to do with.
    #[error("key \"{key}\": not supported: expected {expected}, got {got}")]
    Unsupported {
        /// The metadata key.
        key: String,
        /// What the worker can do.
        expected: String,
        /// Its value.
        got: String,
    },
    /// The tensor that gives the size of the vocabulary is missing or has the wrong shape.
    #[error("tensor \"{name}\": expected {expected}, got {got}")]
    Tensor {
        /// The tensor.
        name: &'static str,
        /// The shape it should have.
        expected: String,
        /// The shape it has, or `none`.
        got: String,
    },
}

/// Types that a matrix may have: every one that `quant` can multiply with.
static MATRIX_TYPES: LazyLock<Vec<TensorType>> = LazyLock::new(|| {
    // GGUF numbers its types from 0 without large gaps; 256 is far above the last.
    (0..256).filter_map(TensorType::from_id).filter(|&ty| quant::Format::from_name(ty.name()).is_some()).collect()
});

/// Types that a vector (a norm, a bias) may have. They are few bytes, and are widened to F32 once, at start-up.
static VECTOR_TYPES: [TensorType; 3] = [TensorType::F32, TensorType::F16, TensorType::BF16];

impl ModelSpec {
    /// Reads the hyper-parameters of a model and checks every one.
    ///
    /// Of the tensors only the presence of some (biases, `output.weight`, `rope_freqs.weight`) and the rows of
    /// `token_embd.weight` are looked at: [`weight_loader::load`] compares all of them with [`tensors`](Self::tensors).
    ///
    /// # Errors
    /// Each names the key (or tensor), what was expected and what was found.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Self, SpecError> {
        arch::read(gguf)
    }

    /// Every tensor of the model, with its shape and the types it may have: what the file must hold, no more, no less.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let (d_model, d_ff, n_vocab) = (self.d_model as u64, self.d_ff as u64, self.n_vocab as u64);
        let (d_q, d_kv) = (self.d_q() as u64, self.d_kv() as u64);
        let matrix = |name: String, rows: u64, columns: u64| TensorSpec {
            name,
            shape: vec![rows, columns],
            types: &MATRIX_TYPES,
            optional: false,
        };
        let vector = |name: String, n: u64| TensorSpec { name, shape: vec![n], types: &VECTOR_TYPES, optional: false };

        let mut tensors = vec![matrix("token_embd.weight".into(), n_vocab, d_model)];
        if self.rope.has_freqs {
            tensors.push(vector("rope_freqs.weight".into(), self.rope.n_dims as u64 / 2));
        }
        for i in 0..self.n_layers {
            tensors.push(vector(format!("blk.{i}.attn_norm.weight"), d_model));
            for (leaf, rows) in [("attn_q", d_q), ("attn_k", d_kv), ("attn_v", d_kv)] {
                tensors.push(matrix(format!("blk.{i}.{leaf}.weight"), rows, d_model));
                if self.qkv_bias {
                    tensors.push(vector(format!("blk.{i}.{leaf}.bias"), rows));
                }
            }
            tensors.push(matrix(format!("blk.{i}.attn_output.weight"), d_model, d_q));
            tensors.push(vector(format!("blk.{i}.ffn_norm.weight"), d_model));
            tensors.push(matrix(format!("blk.{i}.ffn_gate.weight"), d_ff, d_model));
            tensors.push(matrix(format!("blk.{i}.ffn_up.weight"), d_ff, d_model));
            tensors.push(matrix(format!("blk.{i}.ffn_down.weight"), d_model, d_ff));
        }
        tensors.push(vector("output_norm.weight".into(), d_model));
        if !self.tied_output {
            tensors.push(matrix("output.weight".into(), n_vocab, d_model));
        }
        tensors
    }

    /// Width of all query heads together.
    pub fn d_q(&self) -> usize {
        self.n_heads * self.d_head
    }

    /// Width of all key (or value) heads together.
    pub fn d_kv(&self) -> usize {
        self.n_kv_heads * self.d_head
    }

    /// Query heads that share a KV head.
    pub fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Bytes that one token's keys and values take in all layers, when a value takes `value_bytes`.
    pub fn kv_bytes_per_token(&self, value_bytes: usize) -> u64 {
        2 * (self.n_layers * self.d_kv() * value_bytes) as u64
    }

    /// Parameters in all tensors.
    pub fn n_params(&self) -> u64 {
        self.tensors().iter().map(|t| t.shape.iter().product::<u64>()).sum()
    }
}
