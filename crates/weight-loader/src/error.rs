//! What can be wrong between a path and a model's tensors.

use std::fmt;
use std::io;

use gguf_parser::{ParseError, Shape, TensorType};

/// Why a model could not be loaded. Each names the file, what was expected and what is there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Nothing is there.
    #[error("model {path:?}: no such file")]
    NotFound {
        /// The path as it was given.
        path: String,
    },
    /// The file cannot be opened.
    #[error("model {path:?}: cannot be opened: {source}")]
    Unreadable {
        /// The path as it was given.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The path names something else than a file.
    #[error("model {path:?}: expected a .gguf file, got {got}")]
    NotAFile {
        /// The path as it was given.
        path: String,
        /// What it is: `a directory`.
        got: &'static str,
    },
    /// The file is empty.
    #[error("model {path:?}: expected a .gguf file, got an empty one")]
    Empty {
        /// The path as it was given.
        path: String,
    },
    /// The file cannot be mapped into memory.
    #[error("model {path:?}: cannot be mapped into memory: {source}")]
    Unmappable {
        /// The path as it was given.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is no GGUF file, or a broken one.
    #[error("model {path:?}: {source}")]
    Gguf {
        /// The path as it was given.
        path: String,
        /// What is wrong, and where.
        source: ParseError,
    },
    /// The disk failed while tensors were read.
    #[error(
        "model {path:?}: tensor {tensor:?}: reading {n_bytes} bytes at offset {offset} failed \
         (was the file cut, or its disk lost?): {source}"
    )]
    Read {
        /// The path as it was given.
        path: String,
        /// The tensor being read.
        tensor: String,
        /// Where the bytes stand in the file.
        offset: u64,
        /// How many there are.
        n_bytes: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// The file's tensors are not those of its architecture.
    #[error("model {path:?}: {}", Faults(faults))]
    Tensors {
        /// The path as it was given.
        path: String,
        /// Everything that is wrong: first what the architecture asks for, in its order, then what is superfluous, in
        /// the file's.
        faults: Vec<TensorFault>,
    },
}

/// One way in which a file's tensors differ from what the architecture needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorFault {
    /// The file does not have it.
    #[error("tensor {name:?}: missing, expected {} {shape:?}", AnyOf(types))]
    Missing {
        /// The tensor.
        name: String,
        /// The shape it should have, slowest first.
        shape: Vec<u64>,
        /// The types it may have.
        types: &'static [TensorType],
    },
    /// The architecture does not know it.
    #[error("tensor {name:?}: superfluous, got {ty} {shape}")]
    Superfluous {
        /// The tensor.
        name: String,
        /// Its type.
        ty: TensorType,
        /// Its shape, slowest first.
        shape: Shape,
    },
    /// It has another shape.
    #[error("tensor {name:?}: expected shape {expected:?}, got {got}")]
    Misshapen {
        /// The tensor.
        name: String,
        /// The shape it should have, slowest first.
        expected: Vec<u64>,
        /// The shape it has.
        got: Shape,
    },
    /// It has a type that cannot be computed with here.
    #[error("tensor {name:?}: expected type {}, got {got}", AnyOf(expected))]
    WrongType {
        /// The tensor.
        name: String,
        /// The types it may have.
        expected: &'static [TensorType],
        /// The type it has.
        got: TensorType,
    },
}

/// All faults: one on the same line, several on a line each.
struct Faults<'e>(&'e [TensorFault]);

impl fmt::Display for Faults<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [fault] = self.0 {
            return fault.fmt(f);
        }
        write!(f, "{} faults in its tensors", self.0.len())?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

/// `F32`, `F32 or F16`, `F32, F16 or BF16`.
struct AnyOf<'e>(&'e [TensorType]);

impl fmt::Display for AnyOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, ty) in self.0.iter().enumerate() {
            let separator = match i {
                0 => "",
                _ if i + 1 == self.0.len() => " or ",
                _ => ", ",
            };
            write!(f, "{separator}{ty}")?;
        }
        Ok(())
    }
}
