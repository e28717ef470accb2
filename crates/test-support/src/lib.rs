//! Test support: GGUF builder, fake executor, closeness assertions.

pub mod fake_executor;
pub mod gguf;
pub mod tiny_model;
