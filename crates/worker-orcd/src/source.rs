//! Where the model comes from: the file that was named, or the one that is built in.

use anyhow::Context as _;
use tokenizer::Tokenizer;
use weight_loader::ModelFile;

use crate::cli::ModelArgs;

/// Opens the model that `args` name.
///
/// # Errors
/// A file that cannot be opened; no `--model` in a build without a built-in one.
pub(crate) fn open(args: &ModelArgs) -> anyhow::Result<ModelFile> {
    match &args.model {
        Some(path) => Ok(ModelFile::open(path)?),
        None => built_in(),
    }
}

/// The vocabulary of a model, and nothing else of it.
///
/// # Errors
/// A file that is no GGUF file, or whose vocabulary cannot be used.
pub(crate) fn vocabulary(file: &ModelFile) -> anyhow::Result<Tokenizer> {
    Tokenizer::from_gguf(&file.gguf()?).with_context(|| format!("{}: its vocabulary cannot be used", file.name()))
}

/// The model as the command line names it.
pub(crate) fn model_ref(args: &ModelArgs) -> String {
    match &args.model {
        Some(path) => path.display().to_string(),
        None => format!("builtin:{BUILT_IN}"),
    }
}

/// The name of the model's file, without its folders.
pub(crate) fn file_name(args: &ModelArgs) -> String {
    match &args.model {
        Some(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        None => format!("builtin:{BUILT_IN}"),
    }
}

/// The model's name in answers: its file's, without the ending.
pub(crate) fn name(args: &ModelArgs) -> String {
    match &args.model {
        Some(path) => path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        None => BUILT_IN.to_owned(),
    }
}

/// The name of the built-in model.
const BUILT_IN: &str = "haiku-qwen2-5.8m-f16";

#[cfg(feature = "builtin-model")]
fn built_in() -> anyhow::Result<ModelFile> {
    Ok(ModelFile::from_static(crate::builtin::bytes(), BUILT_IN))
}

#[cfg(not(feature = "builtin-model"))]
fn built_in() -> anyhow::Result<ModelFile> {
    anyhow::bail!("no model: this build has no built-in one, so --model FILE is needed")
}
