//! Making allocations fail, for tests of what happens then.
//!
//! One counter for the process: a test that uses it shares its process with no other test that allocates.

use std::sync::atomic::{AtomicI64, Ordering};

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
