//! No kernel reads past its operands: they are laid directly before, and directly behind, a page that faults.
#![cfg(unix)]
#![allow(unsafe_code)] // Maps the pages.

mod blocks;

use blocks::blocks;
use quant::{Format, Isa, OutView, Scratch, dequantize, matmul};

const PAGE: usize = 4096;

/// Some pages between two that fault on any access.
struct Guarded {
    base: *mut u8,
    len: usize,
}

impl Guarded {
    fn new(n_bytes: usize) -> Guarded {
        let len = n_bytes.next_multiple_of(PAGE) + 2 * PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
        // SAFETY: a fresh mapping, of which the inner pages are then made accessible.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED);
        let base: *mut u8 = base.cast();
        // SAFETY: inside the mapping.
        let rc = unsafe { libc::mprotect(base.add(PAGE).cast(), len - 2 * PAGE, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(rc, 0);
        Guarded { base, len }
    }

    /// A copy of `bytes` that ends where the last page begins, or begins where the first one ends.
    fn put(&mut self, bytes: &[u8], at_end: bool) -> &[u8] {
        let offset = if at_end { self.len - PAGE - bytes.len() } else { PAGE };
        // SAFETY: inside the accessible pages, which `new` made large enough.
        unsafe {
            let to = self.base.add(offset);
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            std::slice::from_raw_parts(to, bytes.len())
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`, which no slice outlives.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

#[test]
fn no_kernel_touches_a_byte_outside_its_operands() {
    let (mut w_pages, mut x_pages) = (Guarded::new(1 << 17), Guarded::new(1 << 17));
    for (format, isa) in
        Format::ALL.iter().flat_map(|format| Isa::available().into_iter().map(move |isa| (*format, isa)))
    {
        for len in [1, 2, 7, 8, 15, 16, 17, 20, 31, 32, 36, 64, 100, 256, 1024, 1030, 1280].into_iter() {
            if len % format.block_len() != 0 {
                continue;
            }
            for (n_rows, n_tokens) in [(1, 1), (9, 2), (5, 3), (5, 7), (1, 14)] {
                let w = blocks(format, n_rows * len, len as u64);
                let mut wide = vec![0.0; n_rows * len];
                dequantize(format, &w, &mut wide);
                let x: Vec<u8> = vec![1.0f32; n_tokens * len].into_iter().flat_map(f32::to_le_bytes).collect();
                for at_end in [true, false] {
                    let w = w_pages.put(&w, at_end);
                    let x = x_pages.put(&x, at_end);
                    // SAFETY: pages are aligned, and so is their end less a multiple of four.
                    let x = unsafe { std::slice::from_raw_parts(x.as_ptr().cast::<f32>(), n_tokens * len) };
                    let mut out = vec![0.0; n_rows * n_tokens];
                    matmul(isa, format, w, len, x, OutView::new(&mut out, n_tokens, n_rows), &mut Scratch::new());
                    for (i, out) in out.into_iter().enumerate() {
                        let row = &wide[i % n_rows * len..][..len];
                        let (sum, size) = row.iter().fold((0.0, 0.0), |(sum, size), w| (sum + w, size + w.abs()));
                        assert!((out - sum).abs() <= 1e-3 * size, "{format:?} {isa:?} {len}: {out} is not {sum}");
                    }
                }
            }
        }
    }
}
