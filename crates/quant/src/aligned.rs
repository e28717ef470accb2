//! Memory for numbers, in whole pages of its own.
#![allow(unsafe_code)] // Looks at a mapping's bytes as numbers.

#[cfg(all(test, unix))]
use crate::guarded::Pages;
#[cfg(not(all(test, unix)))]
use memmap2::MmapMut as Pages;
use std::ops::{Deref, DerefMut, Range};

/// Bytes that a mapping is a multiple of, or a part of that: ranges that touch are merged where they do.
const PAGE: usize = 4096;

/// A fixed number of `f32` that begin on a page, and so on a cache line.
///
/// A vector of 64 bytes that begins elsewhere lies in two lines and takes two reads: products with many tokens are a sixth
/// to a fifth slower on activations that are not aligned.
#[derive(Debug, Default)]
pub struct Aligned {
    memory: Option<Pages>,
    len: usize,
}

impl Aligned {
    /// `len` zeros, of which the system hands out pages as they are first written.
    ///
    /// # Panics
    /// When there is no memory for them.
    pub fn zeros(len: usize) -> Aligned {
        Aligned::try_zeros(len).unwrap_or_else(|| panic!("no memory for {len} numbers"))
    }

    /// The same; `None` where there is no memory for them.
    pub fn try_zeros(len: usize) -> Option<Aligned> {
        let n_bytes = len.checked_mul(size_of::<f32>())?;
        let memory = if n_bytes > 0 { Some(Pages::map_anon(n_bytes).ok()?) } else { None };
        Some(Aligned { memory, len })
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.len())
    }
}

/// Asks the system to gather memory that has been written in pages of 2 MiB, which are found in fewer steps: what lies side by
/// side shares them. Contents and addresses stay. It takes a second for a gigabyte, in which others may read.
///
/// Memory that is written in such pages from the start is handed out faster on a machine of its own, and many times slower on
/// a virtual one whose host has to find it first.
pub(crate) fn gather_in_huge_pages<'a>(memories: impl Iterator<Item = &'a Aligned>) {
    let mut gathered: Option<Range<usize>> = None;
    for memory in memories.filter_map(|of| of.memory.as_ref()) {
        let first = memory.as_ptr() as usize;
        let pages = first..(first + memory.len()).next_multiple_of(PAGE);
        gathered = Some(match gathered {
            Some(before) if before.end == pages.start => before.start..pages.end,
            Some(before) if pages.end == before.start => pages.start..before.end,
            Some(before) => {
                gather(before);
                pages
            }
            None => pages,
        });
    }
    gathered.into_iter().for_each(gather);
}

/// Of mapped memory, whole pages.
fn gather(pages: Range<usize>) {
    #[cfg(target_os = "linux")]
    {
        const MADV_COLLAPSE: libc::c_int = 25;
        // SAFETY: neither contents nor addresses change. A system that cannot says no, which costs speed and nothing else.
        unsafe { libc::madvise(pages.start as *mut libc::c_void, pages.len(), MADV_COLLAPSE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = pages;
}

impl Deref for Aligned {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        let Some(memory) = &self.memory else { return &[] };
        // SAFETY: a mapping begins on a page, and was made for as many numbers, for which all bits are valid.
        unsafe { std::slice::from_raw_parts(memory.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        let Some(memory) = &mut self.memory else { return &mut [] };
        // SAFETY: as above, and exclusive.
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_on_a_cache_line_and_has_its_length() {
        assert!(Aligned::zeros(0).is_empty());
        for len in [1, 16, 1000] {
            let mut memory = Aligned::zeros(len);
            memory.fill(1.0);
            assert_eq!((memory.len(), memory.as_ptr() as usize % 64), (len, 0));
        }
        assert!(Aligned::try_zeros(usize::MAX).is_none());
        assert!(Aligned::try_zeros(usize::MAX / 8).is_none());
    }
}
