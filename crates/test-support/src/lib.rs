//! Test support: GGUF builder, fake executor, closeness assertions.
