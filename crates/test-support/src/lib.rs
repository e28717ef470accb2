//! Test support: GGUF builder, fake executor, closeness assertions.

pub mod gguf;
pub mod tiny_model;
