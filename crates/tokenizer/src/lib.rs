//! Text to token ids and back, streaming decoder and chat templates, from GGUF metadata.
