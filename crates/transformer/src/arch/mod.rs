//! The architectures: GGUF metadata to [`ModelSpec`].
//!
//! To add one: a file here with an [`Architecture`], and its line in [`ARCHITECTURES`].

mod decoder;
mod llama;
mod qwen2;

use gguf_parser::Gguf;

use crate::spec::{ModelSpec, SpecError};

/// One value of `general.architecture`, and how its models are read.
pub(crate) struct Architecture {
    /// As in the metadata, where it is the prefix of most keys too.
    name: &'static str,
    /// Reads and checks the hyper-parameters.
    read: fn(&Gguf<'_>) -> Result<ModelSpec, SpecError>,
}

const ARCHITECTURES: &[Architecture] = &[
    llama::ARCHITECTURE, //
    qwen2::ARCHITECTURE,
];

/// The architectures this worker can serve, as `general.architecture` names them.
pub fn known_architectures() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|a| a.name)
}

/// Reads a model's hyper-parameters by its architecture.
pub(crate) fn read(gguf: &Gguf<'_>) -> Result<ModelSpec, SpecError> {
    let got = gguf.metadata.require_str("general.architecture")?;
    match ARCHITECTURES.iter().find(|a| a.name == got) {
        Some(architecture) => (architecture.read)(gguf),
        None => Err(SpecError::UnknownArchitecture {
            got: got.to_owned(),
            known: known_architectures().collect::<Vec<_>>().join(", "),
        }),
    }
}
