//! Which type each tensor gets: llama.cpp's mixtures, so that a file's name says what people know it by.
//!
//! # Source
//! llama.cpp `src/llama-quant.cpp` (`tensor_allows_quantization`, `llama_tensor_get_type_impl`, `tensor_type_fallback`) and
//! `include/llama.h` (`enum llama_ftype`), as of mid-2026; of both what concerns models that the worker can run.

use gguf_parser::{Gguf, TensorInfo, TensorType};
use transformer::ModelSpec;

use crate::cli::WeightsChoice;

/// Tensors of so few dimensions are vectors: norms and biases, which are few bytes and matter much.
const LEAST_DIMS: usize = 2;
/// Layers of the models that llama.cpp calls 70B. Eight query heads share a value matrix there, so that one is cheap.
const LAYERS_OF_70B: usize = 80;
/// Value matrices that get more bits in Q4_K_S: those of the first layers.
const VALUES_OF_S: usize = 4;

impl WeightsChoice {
    /// The type of most matrices.
    pub(crate) fn base(self) -> TensorType {
        match self {
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::BF16 => TensorType::BF16,
            Self::Q8_0 => TensorType::Q8_0,
            Self::Q4_0 => TensorType::Q4_0,
            Self::Q4_1 => TensorType::Q4_1,
            Self::Q5_0 => TensorType::Q5_0,
            Self::Q5_1 => TensorType::Q5_1,
            Self::Q4_K_S | Self::Q4_K_M => TensorType::Q4_K,
            Self::Q5_K_S | Self::Q5_K_M => TensorType::Q5_K,
            Self::Q6_K => TensorType::Q6_K,
        }
    }

    /// The value of `general.file_type`.
    pub(crate) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q4_K_S => 14,
            Self::Q4_K_M => 15,
            Self::Q5_K_S => 16,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::BF16 => 32,
        }
    }
}

/// What the choice looks at beside a tensor's name and shape.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    n_layers: usize,
    /// Value matrices in the model.
    n_values: usize,
    /// The token embedding serves as the output matrix.
    is_tied: bool,
    is_70b: bool,
}

impl Facts {
    pub(crate) fn of(gguf: &Gguf<'_>, spec: &ModelSpec) -> Self {
        let is_70b = match spec.architecture {
            "qwen2" => true,
            "llama" => spec.n_heads != spec.n_kv_heads,
            _ => false,
        };
        Self {
            n_layers: spec.n_layers,
            n_values: gguf.tensors.iter().filter(|tensor| is_value_matrix(tensor.name)).count(),
            is_tied: gguf.tensor("output.weight").is_none(),
            is_70b: is_70b && spec.n_layers == LAYERS_OF_70B,
        }
    }
}

/// A tensor's type in the new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) ty: TensorType,
    /// It should have had another, whose blocks do not fit its rows.
    pub(crate) is_fallback: bool,
}

/// The type that `tensor` gets in a file of `choice`; its own where it is none of the matrices.
pub(crate) fn choose(choice: WeightsChoice, facts: &Facts, tensor: &TensorInfo<'_>) -> Chosen {
    let is_matrix = tensor.shape.len() >= LEAST_DIMS
        && tensor.name.ends_with("weight")
        && !tensor.name.contains("_norm.weight")
        && !tensor.name.contains("ffn_gate_inp.weight");
    if !is_matrix {
        return Chosen { ty: tensor.ty, is_fallback: false };
    }
    let base = choice.base();
    if matches!(base, TensorType::F32 | TensorType::F16 | TensorType::BF16) {
        return Chosen { ty: base, is_fallback: false };
    }
    let row_len = tensor.shape.row_len();
    let wanted = with_more_bits(choice, facts, tensor.name, row_len);
    let ty = fitting(wanted, row_len);
    Chosen { ty, is_fallback: ty != wanted }
}

/// The type of a matrix if its rows hold whole blocks.
fn with_more_bits(choice: WeightsChoice, facts: &Facts, name: &str, row_len: u64) -> TensorType {
    use WeightsChoice::{Q4_K_M, Q4_K_S, Q5_K_M};
    let base = choice.base();
    let is_output = name == "output.weight" || (facts.is_tied && name == "token_embd.weight");
    let layer = layer_of(name);
    if is_output {
        return match base {
            _ if !row_len.is_multiple_of(base.block_len()) => TensorType::Q8_0,
            TensorType::Q8_0 => TensorType::Q8_0,
            _ => TensorType::Q6_K,
        };
    }
    if is_value_matrix(name) {
        let ty = match choice {
            Q4_K_M | Q5_K_M if deserves_more(layer, facts.n_values) => TensorType::Q6_K,
            Q4_K_S if layer < VALUES_OF_S => TensorType::Q5_K,
            _ => base,
        };
        return if facts.is_70b && ty == TensorType::Q4_K { TensorType::Q5_K } else { ty };
    }
    if name.contains("ffn_down") {
        return match choice {
            Q4_K_M | Q5_K_M if deserves_more(layer, facts.n_layers) => TensorType::Q6_K,
            Q4_K_S if layer < facts.n_layers / 8 => TensorType::Q5_K,
            _ => base,
        };
    }
    base
}

/// The first eighth of the layers, the last, and every third between them.
fn deserves_more(layer: usize, n: usize) -> bool {
    layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2
}

fn is_value_matrix(name: &str) -> bool {
    ["attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"].iter().any(|part| name.contains(part))
}

/// The number in `blk.7.attn_v.weight`; 0 where there is none.
fn layer_of(name: &str) -> usize {
    name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok()).unwrap_or(0)
}

/// `wanted`, or a type of smaller blocks and no fewer bits where rows of `row_len` are no whole number of its blocks.
fn fitting(wanted: TensorType, row_len: u64) -> TensorType {
    let fits = |ty: TensorType| row_len.is_multiple_of(ty.block_len());
    let smaller = match wanted {
        _ if fits(wanted) => return wanted,
        TensorType::Q4_K => TensorType::Q5_0,
        TensorType::Q5_K => TensorType::Q5_1,
        TensorType::Q6_K => TensorType::Q8_0,
        other => other,
    };
    if fits(smaller) { smaller } else { TensorType::F16 }
}

#[cfg(test)]
mod tests {
    use gguf_parser::Shape;

    use super::*;

    fn chosen(choice: WeightsChoice, n_layers: usize, is_tied: bool, name: &str, shape: &[u64]) -> TensorType {
        let facts = Facts { n_layers, n_values: n_layers, is_tied, is_70b: n_layers == LAYERS_OF_70B };
        let shape = Shape::new(shape).unwrap();
        choose(choice, &facts, &TensorInfo { name, ty: TensorType::F32, shape, offset: 0, n_bytes: 0 }).ty
    }

    /// The layers, of 24, in which a mixture gives `part` this type.
    fn layers(choice: WeightsChoice, part: &str, ty: TensorType) -> Vec<usize> {
        (0..24)
            .filter(|layer| chosen(choice, 24, true, &format!("blk.{layer}.{part}.weight"), &[256, 256]) == ty)
            .collect()
    }

    #[test]
    fn vectors_and_norms_stay_as_they_are() {
        for (name, shape) in [
            ("blk.0.attn_q.bias", &[256][..]),
            ("output_norm.weight", &[256]),
            ("blk.0.attn_q_norm.weight", &[2, 128]),
            ("rope_freqs.weight", &[64]),
            ("blk.0.attn_q.scale", &[2, 256]),
        ] {
            assert_eq!(chosen(WeightsChoice::Q4_K_M, 24, false, name, shape), TensorType::F32, "{name}");
        }
    }

    #[test]
    fn mixtures_give_some_layers_more() {
        let of_24 = [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23];
        for choice in [WeightsChoice::Q4_K_M, WeightsChoice::Q5_K_M] {
            assert_eq!(layers(choice, "attn_v", TensorType::Q6_K), of_24, "{choice:?}");
            assert_eq!(layers(choice, "ffn_down", TensorType::Q6_K), of_24, "{choice:?}");
            assert_eq!(layers(choice, "ffn_up", choice.base()).len(), 24);
        }
        assert_eq!(layers(WeightsChoice::Q4_K_S, "attn_v", TensorType::Q5_K), [0, 1, 2, 3]);
        assert_eq!(layers(WeightsChoice::Q4_K_S, "ffn_down", TensorType::Q5_K), [0, 1, 2]);
        assert_eq!(layers(WeightsChoice::Q5_K_S, "attn_v", TensorType::Q5_K).len(), 24);
        let value = |choice| chosen(choice, 80, false, "blk.31.attn_v.weight", &[1024, 8192]);
        assert_eq!([WeightsChoice::Q4_K_M, WeightsChoice::Q5_K_S].map(value), [TensorType::Q5_K; 2]);
    }

    #[test]
    fn the_output_matrix_gets_more_whichever_it_is() {
        let [output, embedding] = ["output.weight", "token_embd.weight"]
            .map(|name| move |choice, tied| chosen(choice, 24, tied, name, &[1000, 1024]));
        assert_eq!(output(WeightsChoice::Q4_K_S, false), TensorType::Q6_K);
        assert_eq!(embedding(WeightsChoice::Q4_K_S, false), TensorType::Q4_K);
        assert_eq!(embedding(WeightsChoice::Q4_K_S, true), TensorType::Q6_K);
        assert_eq!(embedding(WeightsChoice::Q4_0, true), TensorType::Q6_K);
        assert_eq!(embedding(WeightsChoice::Q8_0, true), TensorType::Q8_0);
        assert_eq!(output(WeightsChoice::BF16, false), TensorType::BF16);
    }

    #[test]
    fn rows_that_hold_no_whole_super_blocks_fall_back() {
        let of = |choice, name: &str, row_len| chosen(choice, 24, true, name, &[64, row_len]);
        assert_eq!(of(WeightsChoice::Q4_K_M, "blk.3.attn_q.weight", 896), TensorType::Q5_0);
        assert_eq!(of(WeightsChoice::Q5_K_M, "blk.3.attn_q.weight", 896), TensorType::Q5_1);
        assert_eq!(of(WeightsChoice::Q4_K_M, "blk.0.attn_v.weight", 896), TensorType::Q8_0);
        assert_eq!(of(WeightsChoice::Q6_K, "blk.0.attn_k.weight", 896), TensorType::Q8_0);
        assert_eq!(of(WeightsChoice::Q4_0, "token_embd.weight", 896), TensorType::Q8_0);
        assert_eq!(of(WeightsChoice::Q4_K_M, "blk.3.attn_q.weight", 100), TensorType::F16);
        assert_eq!(of(WeightsChoice::Q8_0, "blk.3.attn_q.weight", 100), TensorType::F16);
    }
}
