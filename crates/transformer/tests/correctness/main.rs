//! Proof that the CPU executor computes what the reference computes, and always the same bits.
//!
//! The goldens are transformers' own `Qwen2ForCausalLM` and `LlamaForCausalLM` in float64: see `golden/README.md`.

mod bit_identity;
mod case;
#[cfg(feature = "cuda")]
mod cuda;
mod formats;
mod full_size;
mod golden;
mod invalid_batches;
mod negative_controls;
mod sequence;
