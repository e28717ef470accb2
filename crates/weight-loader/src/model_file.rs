//! Path to bytes: the only code in the worker that opens a model file.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;

use gguf_parser::{Gguf, TensorInfo};

use crate::LoadError;
use crate::mapping::Mapping;

/// A model file's bytes, mapped read-only, and the open file beside them.
///
/// Cheap to clone. The mapping lives as long as the file, or any [`Tensor`](crate::Tensor) that was loaded from it. What
/// is to go elsewhere, into a GPU's memory for one, is better [read](Self::read_at): that takes no page faults, and a file
/// that has become shorter is an error.
///
/// # Limits
/// The file must not change while it is mapped. One that is overwritten gives wrong text; one that is truncated ends
/// the process with SIGBUS when a missing page is touched, because nothing in the mapping can be made to survive that
/// (while [`load`](crate::load) runs, Linux from 5.14 on still reports it as an error).
/// Replace a model by renaming a new file over it, which leaves the mapped one whole.
#[derive(Debug, Clone)]
pub struct ModelFile {
    mapping: Arc<Mapping>,
    /// `None`: the model is part of the program.
    file: Option<Arc<File>>,
    name: Arc<str>,
}

impl ModelFile {
    /// Opens and maps a model file. Its contents are not looked at; see [`gguf`](Self::gguf).
    ///
    /// # Errors
    /// A path that does not exist, cannot be opened or is no regular file, and an empty file; each names the path.
    pub fn open(path: &Path) -> Result<ModelFile, LoadError> {
        let shown = path.display().to_string();
        let file = match open_without_waiting(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LoadError::NotFound { path: shown }),
            Err(source) => return Err(LoadError::Unreadable { path: shown, source }),
        };
        // Asked of the open file and not of the path, which may name something else by now.
        let metadata = file.metadata().map_err(|source| LoadError::Unreadable { path: shown.clone(), source })?;
        if !metadata.is_file() {
            let got = if metadata.is_dir() { "a directory" } else { "a device, pipe or socket" };
            return Err(LoadError::NotAFile { path: shown, got });
        }
        if metadata.len() == 0 {
            return Err(LoadError::Empty { path: shown });
        }
        let mapping = Mapping::of(&file).map_err(|source| LoadError::Unmappable { path: shown.clone(), source })?;
        Ok(ModelFile { mapping: Arc::new(mapping), file: Some(Arc::new(file)), name: shown.into() })
    }

    /// A model that is part of the program.
    ///
    /// Tensors lie as they lie in `bytes`: to be aligned in memory, `bytes` must be aligned to the file's alignment.
    pub fn from_static(bytes: &'static [u8], name: &str) -> ModelFile {
        ModelFile { mapping: Arc::new(Mapping::Static(bytes)), file: None, name: name.into() }
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        self.mapping.bytes()
    }

    /// Reads `buffer.len()` bytes at `offset` bytes from the file's beginning. Any number of threads may read at a time.
    ///
    /// # Errors
    /// The disk's; `UnexpectedEof` where the file ends before, also where it has become shorter since it was opened.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.file {
            Some(file) => read_exact_at(file, self.bytes(), offset, buffer),
            None => copy_at(self.bytes(), offset, buffer),
        }
    }

    /// Reads `buffer.len()` bytes of a tensor's data, from byte `start` of it. As [`read_at`](Self::read_at).
    ///
    /// # Errors
    /// [`LoadError::Read`], which names the tensor and the place.
    pub fn read_tensor(&self, tensor: &TensorInfo<'_>, start: u64, buffer: &mut [u8]) -> Result<(), LoadError> {
        let offset = tensor.offset + start;
        self.read_at(offset, buffer).map_err(|source| LoadError::Read {
            path: self.name().to_owned(),
            tensor: tensor.name.to_owned(),
            offset,
            n_bytes: buffer.len() as u64,
            source,
        })
    }

    /// The path as it was given, or the name of a built-in model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Parses the file's directory.
    ///
    /// # Errors
    /// [`LoadError::Gguf`] for a foreign, truncated or otherwise broken file.
    pub fn gguf(&self) -> Result<Gguf<'_>, LoadError> {
        Gguf::parse(self.bytes()).map_err(|source| LoadError::Gguf { path: self.name.to_string(), source })
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, _mapped: &[u8], offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

/// Elsewhere a read moves the file's one cursor, which threads would share.
#[cfg(not(unix))]
fn read_exact_at(_file: &File, mapped: &[u8], offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    copy_at(mapped, offset, buffer)
}

fn copy_at(bytes: &[u8], offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).and_then(|rest| rest.get(..buffer.len()));
    buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
    Ok(())
}

/// Opens for reading. Never waits for the other end of a named pipe.
fn open_without_waiting(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NONBLOCK); // regular files do not care
    }
    options.open(path)
}
