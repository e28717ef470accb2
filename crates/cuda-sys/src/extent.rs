//! Sizes and offsets, checked: what a length is in bytes, which elements a range names, and where the parts of one
//! allocation begin.

use std::ops::{Bound, Range, RangeBounds};

/// `cudaMalloc` aligns to at least this, and so does [`Plan`].
pub const ALIGNMENT: usize = 256;

/// The most bytes of one allocation: what an `isize` holds, as for every object of Rust.
pub const MAX_BYTES: usize = isize::MAX as usize;

/// Bytes of `len` elements; `None` above [`MAX_BYTES`].
pub fn bytes_of<T>(len: usize) -> Option<usize> {
    len.checked_mul(size_of::<T>()).filter(|bytes| *bytes <= MAX_BYTES)
}

/// The elements that a range names in a buffer of `len`.
///
/// # Panics
/// When it ends before it begins or past the end, as indexing a slice does.
#[track_caller]
pub fn resolve(range: impl RangeBounds<usize>, len: usize) -> Range<usize> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.checked_add(1).expect("range starts past the largest number"),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.checked_add(1).expect("range ends past the largest number"),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => len,
    };
    assert!(start <= end && end <= len, "range {start}..{end} of a buffer with {len} elements");
    start..end
}

/// Whether `len` elements of `T` at `byte_offset` lie, aligned, inside `n_bytes`. Allocations are aligned to
/// [`ALIGNMENT`], so an offset's alignment is that of the address.
pub fn fits<T>(byte_offset: usize, len: usize, n_bytes: usize) -> bool {
    let end = bytes_of::<T>(len).and_then(|bytes| byte_offset.checked_add(bytes));
    byte_offset.is_multiple_of(align_of::<T>()) && end.is_some_and(|end| end <= n_bytes)
}

/// Where parts lie in one allocation, planned before any of it is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    n_bytes: usize,
}

impl Plan {
    /// An empty allocation.
    pub fn new() -> Self {
        Self::default()
    }

    /// Places `n_bytes` more at the next multiple of [`ALIGNMENT`], and returns where they begin; `None` when the whole
    /// would exceed [`MAX_BYTES`], and then nothing was placed.
    pub fn place(&mut self, n_bytes: usize) -> Option<usize> {
        let offset = self.n_bytes.checked_next_multiple_of(ALIGNMENT)?;
        let end = offset.checked_add(n_bytes).filter(|end| *end <= MAX_BYTES)?;
        self.n_bytes = end;
        Some(offset)
    }

    /// Bytes from the beginning of the first part to the end of the last.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_more_bytes_than_an_object_can_have() {
        assert_eq!(bytes_of::<f32>(MAX_BYTES / 4), Some(MAX_BYTES / 4 * 4));
        assert_eq!(bytes_of::<f32>(MAX_BYTES / 4 + 1), None);
        assert_eq!(bytes_of::<u64>(usize::MAX), None);
        assert_eq!(bytes_of::<u8>(MAX_BYTES), Some(MAX_BYTES));
        let mut plan = Plan::new();
        assert_eq!(plan.place(1), Some(0));
        assert_eq!((plan.place(MAX_BYTES), plan.n_bytes()), (None, 1));
        assert_eq!((plan.place(3), plan.n_bytes()), (Some(256), 259));
    }

    #[test]
    #[should_panic(expected = "range 2..6 of a buffer with 5 elements")]
    fn refuses_a_range_past_the_end() {
        resolve(2..6, 5);
    }

    #[test]
    #[should_panic(expected = "range 3..2")]
    #[expect(clippy::reversed_empty_ranges, reason = "it is what must be refused")]
    fn refuses_a_range_that_ends_before_it_begins() {
        resolve(3..2, 5);
    }

    proptest! {
        #[test]
        fn a_range_names_what_it_names_in_a_slice(len in 0usize..200, a in 0usize..200, b in 0usize..200) {
            let all: Vec<usize> = (0..len).collect();
            let (start, end) = (a.min(b).min(len), a.max(b).min(len));
            prop_assert_eq!(&all[resolve(start..end, len)], &all[start..end]);
            prop_assert_eq!(&all[resolve(start.., len)], &all[start..]);
            prop_assert_eq!(&all[resolve(..end, len)], &all[..end]);
            prop_assert_eq!(&all[resolve(.., len)], &all[..]);
            if end < len {
                prop_assert_eq!(&all[resolve(start..=end, len)], &all[start..=end]);
            }
        }

        #[test]
        fn parts_are_aligned_apart_and_inside(sizes in prop::collection::vec(0usize..5_000, 0..40)) {
            let mut plan = Plan::new();
            let mut end = 0;
            for size in sizes {
                let offset = plan.place(size).unwrap();
                prop_assert!(offset.is_multiple_of(ALIGNMENT) && offset >= end && offset - end < ALIGNMENT);
                end = offset + size;
                prop_assert_eq!(plan.n_bytes(), end);
                prop_assert!(fits::<u8>(offset, size, plan.n_bytes()));
                prop_assert!(!fits::<u8>(offset, size + 1, plan.n_bytes()));
            }
        }

        #[test]
        fn a_view_fits_exactly_when_it_is_aligned_and_inside(offset in 0usize..600, len in 0usize..600, n in 0usize..2_000) {
            let inside = (offset + 4 * len) as u128 <= n as u128;
            prop_assert_eq!(fits::<f32>(offset, len, n), inside && offset % 4 == 0);
            prop_assert!(!fits::<f32>(offset, usize::MAX - len, n));
            prop_assert!(!fits::<u8>(usize::MAX - offset, len + offset + 1, n));
        }
    }
}
