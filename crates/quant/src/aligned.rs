//! Memory for numbers, in whole pages of its own.
#![allow(unsafe_code)] // Looks at a mapping's bytes as numbers.

#[cfg(all(test, unix))]
use crate::guarded::Pages;
#[cfg(not(all(test, unix)))]
use memmap2::MmapMut as Pages;
use std::ops::{Deref, DerefMut};

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

    /// Asks for pages of megabytes, which are handed out, and found again, in fewer steps.
    ///
    /// What lies side by side shares them, if none of it has been written yet.
    #[must_use]
    pub(crate) fn in_huge_pages(self) -> Aligned {
        #[cfg(target_os = "linux")]
        if let Some(memory) = &self.memory {
            // A system without them says no, which costs speed and nothing else.
            let _ = memory.advise(memmap2::Advice::HugePage);
        }
        self
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.len())
    }
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
