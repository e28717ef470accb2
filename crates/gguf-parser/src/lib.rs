//! GGUF bytes to a checked directory of metadata and tensor descriptions.
