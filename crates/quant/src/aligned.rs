//! Memory whose first element begins a cache line.

use std::collections::TryReserveError;
use std::ops::{Deref, DerefMut};

/// Bytes of a cache line, and of the widest vector.
const LINE: usize = 64;

/// A fixed number of `f32` that begin on a cache line.
///
/// A vector of 64 bytes that begins elsewhere lies in two lines and takes two reads: products with many tokens are a sixth
/// to a fifth slower on activations that are not aligned.
#[derive(Debug, Default)]
pub struct Aligned {
    memory: Vec<f32>,
    first: usize,
    len: usize,
}

impl Aligned {
    /// `len` zeros, of which the system hands out pages as they are first written.
    pub fn zeros(len: usize) -> Aligned {
        let memory = vec![0.0; len + LINE / size_of::<f32>()];
        // `align_offset` may decline, in theory; then nothing is lost but speed.
        let first = memory.as_ptr().align_offset(LINE).min(LINE / size_of::<f32>());
        Aligned { memory, first, len }
    }

    /// The same, where there is memory for it.
    ///
    /// # Errors
    /// When there is not, or the size overflows.
    pub fn try_zeros(len: usize) -> Result<Aligned, TryReserveError> {
        Vec::<f32>::new().try_reserve_exact(len.saturating_add(LINE))?;
        Ok(Aligned::zeros(len))
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        self.memory.capacity() * size_of::<f32>()
    }
}

impl Deref for Aligned {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.memory[self.first..self.first + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.first..self.first + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_on_a_cache_line_and_has_its_length() {
        for len in [0, 1, 16, 1000] {
            let mut memory = Aligned::zeros(len);
            memory.fill(1.0);
            assert_eq!((memory.len(), memory.as_ptr() as usize % LINE), (len, 0));
        }
        assert!(Aligned::try_zeros(usize::MAX).is_err());
    }
}
