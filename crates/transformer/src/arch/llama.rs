//! `llama`: Llama 1 to 3.3, Mistral 7B and their many relatives. No biases as a rule; RoPE on neighbours, because the
//! converter reorders the rows of q and k; `rope_freqs.weight` from Llama 3.1 on.
//!
//! Source: transformers `modeling_llama.py`; llama.cpp `convert_hf_to_gguf.py`, `LlamaModel.permute`.

use super::Architecture;
use super::decoder::{Biases, Traits, read};
use crate::spec::RopePairs;

/// What a `llama` file without `rope.freq_base` means: Llama 1 and 2, converted before the key existed.
const DEFAULT_ROPE_BASE: f32 = 10_000.0;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "llama",
    read: |gguf| {
        read(
            gguf,
            Traits {
                architecture: "llama",
                pairs: RopePairs::Adjacent,
                qkv_bias: Biases::WherePresent,
                default_rope_base: Some(DEFAULT_ROPE_BASE),
                rope_freqs: true,
            },
        )
    },
};
