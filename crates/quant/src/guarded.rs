//! For this crate's own tests: every piece of memory ends where a page begins that faults on any access.
//!
//! Both what is allocated and what [`Aligned`](crate::Aligned) takes from the system, so that a kernel that reads or writes past
//! the end of an operand ends the test.
#![allow(unsafe_code)] // An allocator.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::TryReserveError;

const PAGE: usize = 4096;

/// Allocates pages for each piece, and one behind them that may not be touched.
struct Guard;

#[global_allocator]
static GUARD: Guard = Guard;

/// Bytes of the pages that hold a piece, which ends where they do, or as near as its alignment allows.
fn pages_of(layout: Layout) -> usize {
    layout.pad_to_align().size().next_multiple_of(PAGE)
}

// SAFETY: pieces are mappings of their own, zeroed, large enough, and aligned up to a page; there is none for more.
unsafe impl GlobalAlloc for Guard {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let n_bytes = pages_of(layout);
        if layout.align() > PAGE {
            return std::ptr::null_mut();
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
        // SAFETY: a fresh mapping, of which all pages but the last are then made accessible; a piece ends behind those.
        unsafe {
            let base = libc::mmap(std::ptr::null_mut(), n_bytes + PAGE, libc::PROT_NONE, flags, -1, 0);
            if base == libc::MAP_FAILED || libc::mprotect(base, n_bytes, libc::PROT_READ | libc::PROT_WRITE) != 0 {
                return std::ptr::null_mut();
            }
            base.cast::<u8>().add(n_bytes - layout.pad_to_align().size())
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let n_bytes = pages_of(layout);
        // SAFETY: the whole mapping that `alloc` made for the same layout.
        unsafe { libc::munmap(at.sub(n_bytes - layout.pad_to_align().size()).cast(), n_bytes + PAGE) };
    }
}

/// In place of a mapping: allocated, and so guarded. It begins a cache line, and ends less than one before the guard.
#[derive(Debug)]
pub(crate) struct Pages {
    lines: Vec<Line>,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Pages {
    pub(crate) fn map_anon(n_bytes: usize) -> Result<Pages, TryReserveError> {
        let (mut lines, n_lines) = (Vec::new(), n_bytes.div_ceil(size_of::<Line>()));
        lines.try_reserve_exact(n_lines)?;
        lines.resize(n_lines, Line([0; 64]));
        Ok(Pages { lines })
    }

    pub(crate) fn len(&self) -> usize {
        size_of_val(&self.lines[..])
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.lines.as_ptr().cast()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.lines.as_mut_ptr().cast()
    }
}
