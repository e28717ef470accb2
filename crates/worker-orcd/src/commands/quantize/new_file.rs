//! A file that appears whole or not at all: written under another name beside its place, synced, and renamed.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::{Builder, NamedTempFile};

/// Zeros between tensors, at most a huge page.
const ZEROS: [u8; 4096] = [0; 4096];

/// A file being written. Dropped before [`finish`](Self::finish), it leaves nothing behind.
pub(crate) struct NewFile {
    file: NamedTempFile,
    target: PathBuf,
    may_replace: bool,
    written: u64,
}

/// Refuses a target that must not be written: one that exists where it may not be replaced, one that is no file, or the
/// file that is being read.
///
/// # Errors
/// One that names the target and says which.
pub(crate) fn check(target: &Path, source: &Path, may_replace: bool) -> anyhow::Result<()> {
    let folder = folder_of(target);
    anyhow::ensure!(folder.is_dir(), "output {target:?}: the folder {folder:?} does not exist");
    anyhow::ensure!(target.file_name().is_some(), "output {target:?}: names no file");
    let there = match fs::metadata(target) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("output {target:?}: cannot be looked at")),
    };
    anyhow::ensure!(there.is_file(), "output {target:?}: something else than a file is there");
    let read = fs::metadata(source).with_context(|| format!("input {source:?}: cannot be looked at"))?;
    anyhow::ensure!(!is_same((target, &there), (source, &read)), "output {target:?}: is the input itself");
    anyhow::ensure!(may_replace, "output {target:?}: exists; --force replaces it");
    Ok(())
}

#[cfg(unix)]
fn is_same((_, a): (&Path, &Metadata), (_, b): (&Path, &Metadata)) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn is_same((a, _): (&Path, &Metadata), (b, _): (&Path, &Metadata)) -> bool {
    fs::canonicalize(a).ok() == fs::canonicalize(b).ok()
}

fn folder_of(target: &Path) -> &Path {
    target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl NewFile {
    /// Begins a file that is to be `target`; with `may_replace` also where one is there.
    ///
    /// # Errors
    /// A folder in which no file can be made.
    pub(crate) fn create(target: &Path, may_replace: bool) -> anyhow::Result<Self> {
        let folder = folder_of(target);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!(".{name}.");
        let mut builder = Builder::new();
        builder.prefix(&prefix).suffix(".tmp");
        // As any new file: what the process's mask leaves of it.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(|e| failed(target, &e))?;
        Ok(Self { file, target: target.to_owned(), may_replace, written: 0 })
    }

    /// The name that it has meanwhile.
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Appends zeros up to byte `offset`.
    ///
    /// # Errors
    /// What kept them from being written, a full disk among it.
    pub(crate) fn pad_to(&mut self, offset: u64) -> anyhow::Result<()> {
        while self.written < offset {
            let n = (offset - self.written).min(ZEROS.len() as u64) as usize;
            self.write(&ZEROS[..n])?;
        }
        Ok(())
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// What kept them from being written, a full disk among it.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.as_file_mut().write_all(bytes).map_err(|e| failed(&self.target, &e))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Brings everything to the disk and gives the file its name.
    ///
    /// # Errors
    /// What kept it from that; a file that has come to be there meanwhile, where none may be replaced.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        let Self { file, target, may_replace, .. } = self;
        file.as_file().sync_all().map_err(|e| failed(&target, &e))?;
        let kept = if may_replace { file.persist(&target) } else { file.persist_noclobber(&target) };
        kept.map_err(|e| failed(&target, &e.error))?;
        // The name too has to outlive a power cut; a system that cannot sync a folder has its own way.
        let _ = File::open(folder_of(&target)).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

/// The system's words say what is wrong (`No space left on device`); the path of the temporary file helps nobody.
fn failed(target: &Path, error: &io::Error) -> anyhow::Error {
    let cause = error.get_ref().and_then(|inner| inner.source()).map_or_else(|| error.to_string(), ToString::to_string);
    anyhow::anyhow!("output {target:?}: cannot be written: {cause}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.gguf");
        let mut file = NewFile::create(&target, false).unwrap();
        file.write(b"abc").unwrap();
        file.pad_to(8).unwrap();
        assert!(!target.exists() && file.path().exists());
        drop(file);
        assert!(names(folder.path()).is_empty());

        let mut file = NewFile::create(&target, false).unwrap();
        file.write(b"abc").unwrap();
        file.pad_to(5).unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"abc\0\0");
        assert_eq!(names(folder.path()), ["a.gguf"]);
    }

    #[test]
    fn a_file_that_came_meanwhile_is_not_replaced_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.gguf");
        let [careful, bold] = [false, true].map(|may_replace| NewFile::create(&target, may_replace).unwrap());
        fs::write(&target, "theirs").unwrap();
        let error = careful.finish().unwrap_err().to_string();
        assert!(error.contains("cannot be written") && error.contains("exists"), "{error}");
        assert_eq!(fs::read(&target).unwrap(), b"theirs");
        bold.finish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"");
        assert_eq!(names(folder.path()), ["a.gguf"]);
    }

    #[test]
    #[cfg(unix)]
    fn the_input_is_never_the_output_by_whatever_name() {
        let folder = tempfile::tempdir().unwrap();
        let [source, hard, soft] = ["a", "b", "c"].map(|name| folder.path().join(name));
        fs::write(&source, "model").unwrap();
        fs::hard_link(&source, &hard).unwrap();
        std::os::unix::fs::symlink(&source, &soft).unwrap();
        for target in [&source, &hard, &soft] {
            let error = check(target, &source, true).unwrap_err().to_string();
            assert!(error.ends_with("is the input itself"), "{error}");
        }
        assert!(check(folder.path(), &source, true).is_err());
        check(&folder.path().join("d"), &source, false).unwrap();
    }
}
