//! `qwen2`: Qwen2 and Qwen2.5. Biases on q, k and v; RoPE on halves; output matrix sometimes the embedding.
//!
//! Source: transformers `modeling_qwen2.py`.

use super::Architecture;
use super::decoder::{Biases, Traits, read};
use crate::spec::RopePairs;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2",
    read: |gguf| {
        read(
            gguf,
            Traits {
                architecture: "qwen2",
                pairs: RopePairs::Halves,
                qkv_bias: Biases::Always,
                // Qwen2 has 1e6 where others have 1e4: a default would give fluent nonsense.
                default_rope_base: None,
                rope_freqs: false,
            },
        )
    },
};
