//! GGUF bytes to a checked directory of metadata and tensor descriptions.
//!
//! A GGUF file is a header, a list of metadata entries, a list of tensor descriptions, and the tensors' data. This crate
//! turns the bytes of such a file into a [`Gguf`]: [`Metadata`], whose [`Value`]s are read through typed getters, and
//! one [`TensorInfo`] per tensor with its [`TensorType`], row-major [`Shape`] and place in the file.
//!
//! The file is not trusted. Parsing is the only check there is, and it is done once: whatever [`Gguf::parse`] returns
//! can be used without looking again, because every count was held against the bytes that remain before anything was
//! allocated for it, every sum and product is checked, and every tensor is proved to lie aligned and alone inside the
//! file. Any bytes give `Ok` or a [`ParseError`] that names the key or tensor, the place, the expected and the got;
//! never a panic. What the values *mean* (are these sensible head counts, is this id in the vocabulary) belongs to the
//! crates that use them.
//!
//! It does no I/O and copies nothing that is long: strings are borrowed, and arrays stay bytes until somebody asks for
//! their elements. So the same code serves an mmap, an embedded model and a test's literal, and a vocabulary of 150,000
//! tokens costs a few milliseconds and no memory.
//!
//! ```
//! use gguf_parser::{Gguf, TensorType, writer::GgufWriter};
//!
//! let mut writer = GgufWriter::new();
//! writer.kv("general.architecture", "qwen2").kv("qwen2.block_count", 24u32);
//! writer.tensor("token_embd.weight", TensorType::F16, &[1000, 64]); // 1000 rows of 64
//! let header = writer.finish()?;
//! let mut file = header.bytes;
//! file.resize(header.file_len as usize, 0);
//!
//! let gguf = Gguf::parse(&file)?;
//! assert_eq!(gguf.metadata.require_str("general.architecture")?, "qwen2");
//! assert_eq!(gguf.metadata.require_u32("qwen2.block_count")?, 24);
//! assert_eq!(gguf.metadata.u32("qwen2.context_length")?, None);
//!
//! let embedding = gguf.tensor("token_embd.weight").unwrap();
//! assert_eq!(embedding.shape[..], [1000, 64]);
//! assert_eq!(embedding.bytes(&file).len(), 1000 * 64 * 2);
//!
//! let error = Gguf::parse(&file[..file.len() - 1]).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     r#"tensor "token_embd.weight": needs 128000 bytes at offset 160, file has 128159"#
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod error;
mod listing;
mod metadata;
mod parse;
mod reader;
mod tensor;
mod tensor_type;
mod value;
pub mod writer;

pub use error::ParseError;
pub use metadata::{Metadata, ValueError};
pub use parse::Gguf;
pub use tensor::{Shape, TensorInfo};
pub use tensor_type::TensorType;
pub use value::{Array, Strings, Value, ValueType, Values};

/// The most dimensions a tensor has: ggml's own limit.
pub const MAX_DIMS: usize = 4;

/// How deep arrays of arrays may be nested. llama.cpp reads none at all; four leaves room, and keeps recursion short.
pub const MAX_ARRAY_DEPTH: usize = 4;

/// The longest metadata key, in bytes: the limit of the GGUF specification.
pub const MAX_KEY_BYTES: usize = 65_535;

/// The longest tensor name, in bytes: the limit of the GGUF specification.
pub const MAX_TENSOR_NAME_BYTES: usize = 64;

/// The alignment of tensor data where `general.alignment` names none.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// The smallest alignment: the specification asks for a multiple of 8, and 64-bit elements need it.
pub const MIN_ALIGNMENT: u64 = 8;

/// The largest alignment: a huge page (2 MiB). More than that only pads.
pub const MAX_ALIGNMENT: u64 = 1 << 21;
