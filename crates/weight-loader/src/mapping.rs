//! A model file's bytes, wherever they live. The one place with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::Mmap;

/// Bytes that stay where they are for as long as anybody holds the mapping.
#[derive(Debug)]
pub(crate) enum Mapping {
    /// A file, mapped read-only.
    File(Mmap),
    /// A model that is part of the program.
    Static(&'static [u8]),
}

impl Mapping {
    /// Maps a whole file, read-only.
    pub(crate) fn of(file: &File) -> io::Result<Mapping> {
        // SAFETY: Rust asks that nobody changes the bytes behind a `&[u8]`. We map read-only and never write; another
        // process that writes into the model file while it is mapped breaks this, and no portable call could stop it, so
        // it is a documented limit of `ModelFile`. In practice its effect is bounded: names and metadata are read during
        // start-up only, weights are plain numbers for which every bit pattern is valid, and every access is checked
        // against the mapping's own length. Changed bytes give wrong text, a truncated file gives SIGBUS.
        unsafe { Mmap::map(file) }.map(Mapping::File)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Mapping::File(map) => map,
            Mapping::Static(bytes) => bytes,
        }
    }

    /// Brings a range of bytes into memory and into the page table, so that the first token does not pay for it.
    ///
    /// # Errors
    /// The disk's, where the system can tell.
    pub(crate) fn prefault(&self, range: Range<usize>) -> io::Result<()> {
        let Mapping::File(map) = self else { return Ok(()) };
        #[cfg(target_os = "linux")]
        match map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len()) {
            // Linux before 5.14 does not know this advice.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => return result,
        }
        touch(&map[range]);
        Ok(())
    }

    /// Drops whole pages within a range of bytes from this process's memory. They stay in the system's cache as long as it has
    /// room, and whoever reads them again has them again.
    pub(crate) fn give_back(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Mapping::File(map) = self {
            let (start, end) =
                (range.start.next_multiple_of(MIN_PAGE_BYTES), range.end / MIN_PAGE_BYTES * MIN_PAGE_BYTES);
            if start < end {
                // SAFETY: the mapping is of a file and is never written, so a page that is dropped is read again with the same
                // bytes. That it failed costs memory and nothing else.
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }
}

/// The smallest page of any system we run on; larger pages are merely touched more than once.
const MIN_PAGE_BYTES: usize = 4096;

/// Reads one byte of every page.
fn touch(bytes: &[u8]) {
    for byte in bytes.iter().step_by(MIN_PAGE_BYTES).chain(bytes.last()) {
        std::hint::black_box(*byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_reaches_every_length() {
        for n in [0, 1, MIN_PAGE_BYTES, MIN_PAGE_BYTES + 1] {
            touch(&vec![0; n]);
        }
    }
}
