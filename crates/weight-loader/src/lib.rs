//! Path to checked tensors where they will be used, with progress.
//!
//! The only crate that opens model files. A [`ModelFile`] is a path turned into bytes, mapped read-only (or a model that
//! is part of the program); its [`gguf`](ModelFile::gguf) is the parsed directory; [`load`] holds that directory against
//! the architecture's list of [`TensorSpec`]s and gives [`Weights`], from which each [`Tensor`] is had by name.
//!
//! For the CPU nothing is copied here. Weights can be used where they lie, in the page cache, so a model that was used before
//! is ready in the time it takes to fill in the page table, and two workers share one copy. That table is filled by
//! `load`, on several threads: left to the first token, it would cost that token a page fault for every 4 KiB.
//!
//! For a GPU every byte has to be copied once. [`stream`] reads [`Piece`]s of tensors into [`Slot`]s of the caller's (pinned
//! memory), on several threads because one does not keep up with the link, and hands each filled slot to a [`SlotSink`],
//! which sends it on and gives it back.
//!
//! All faults are found before any data is read and reported in one error, because a model with one wrong tensor usually
//! has many, and nobody wants to meet them one start at a time. Superfluous tensors are faults too: an architecture that
//! ignores a tensor (a bias, a frequency table) writes fluent nonsense.
//!
//! ```
//! use gguf_parser::{TensorType, writer::GgufWriter};
//! use weight_loader::{ModelFile, TensorSpec, load};
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("model.gguf");
//! # let mut writer = GgufWriter::new();
//! # writer.tensor("output_norm.weight", TensorType::F32, &[4]);
//! # let header = writer.finish()?;
//! # let mut bytes = header.bytes;
//! # bytes.resize(header.file_len as usize, 0);
//! # std::fs::write(&path, bytes)?;
//! let file = ModelFile::open(&path)?;
//! let gguf = file.gguf()?;
//! let norm = TensorSpec {
//!     name: "output_norm.weight".into(),
//!     shape: vec![4],
//!     types: &[TensorType::F32],
//!     optional: false,
//! };
//! let weights = load(&file, &gguf, &[norm], &mut |progress| {
//!     eprintln!("{} of {} bytes: {}", progress.done_bytes, progress.total_bytes, progress.tensor);
//! })?;
//! assert_eq!(weights.tensor("output_norm.weight").unwrap().bytes().len(), 16);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod load;
mod mapping;
mod model_file;
mod stream;
mod weights;

pub use error::{LoadError, TensorFault};
pub use load::{Progress, TensorSpec, check, faults, load};
pub use model_file::ModelFile;
pub use stream::{Piece, Slot, SlotSink, StreamError, pieces, stream};
pub use weights::{Tensor, Weights};
