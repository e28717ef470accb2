//! Making allocations fail and a device's context end, for tests of what happens then.
//!
//! Both concern the whole process: a test that uses one shares its process with no other test that allocates, or that uses the
//! device at all.

use std::sync::atomic::{AtomicI64, Ordering};

#[cfg(feature = "cuda")]
use crate::{CudaError, Device, sys};

/// Allocations until the one that fails; below zero: none will.
static REMAINING: AtomicI64 = AtomicI64::new(-1);

/// Lets `n` more allocations on a device succeed, and the one after them fail with out-of-memory. Those after that
/// succeed again.
pub fn fail_allocation_after(n: u32) {
    REMAINING.store(i64::from(n), Ordering::SeqCst);
}

/// Takes the fault back. Returns whether it was still waiting to happen.
pub fn clear() -> bool {
    REMAINING.swap(-1, Ordering::SeqCst) >= 0
}

/// Ends the process's context on a device as a kernel with a wrong address does: one reads where there is no memory. Waits
/// until that has happened. From then on every call on the device reports it, and only a new process has another context.
///
/// # Errors
/// Always, with what the device says of that read; `Ok` would mean that it went unnoticed.
#[cfg(feature = "cuda")]
pub fn poison_context(device: &Device) -> Result<(), CudaError> {
    /// Aligned, and never mapped.
    const NOWHERE: usize = 64;
    let stream = device.stream()?;
    let args = sys::orcd_rope_table_args {
        inv_freq: std::ptr::without_provenance(NOWHERE),
        cos_sin: std::ptr::without_provenance_mut(NOWHERE),
        n_ctx: 1,
        n_rope: 2,
    };
    // SAFETY: the host only hands these addresses on, and the device refuses them without harm to anything but its context.
    let status = unsafe { sys::orcd_rope_table(&args, stream.raw()) };
    stream.launched("orcd_rope_table", status)?;
    stream.synchronize()
}

/// Counts an allocation; whether it is the one that fails.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(crate) fn allocation_fails() -> bool {
    let down = |n: i64| (n >= 0).then_some(n - 1);
    REMAINING.fetch_update(Ordering::SeqCst, Ordering::SeqCst, down) == Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_allocation_fails_and_no_other() {
        assert!(!allocation_fails());
        fail_allocation_after(2);
        let fails: Vec<bool> = (0..5).map(|_| allocation_fails()).collect();
        assert_eq!(fails, [false, false, true, false, false]);
        fail_allocation_after(0);
        assert!(clear() && !clear() && !allocation_fails());
    }
}
