//! An allocation that is made to fail. A program of its own: the fault is the process's.

#![cfg(all(feature = "cuda", feature = "fault-injection"))]

mod support;

use cuda_sys::faults;

#[test]
fn the_chosen_allocation_fails_as_a_full_device_would_and_the_next_works() {
    let Some(device) = support::device() else { return };
    faults::fail_allocation_after(1);
    let kept = device.alloc_zeroed::<u8>(8).unwrap();
    let error = device.alloc_zeroed::<f32>(25).unwrap_err();
    assert_eq!(error.to_string(), "cudaMalloc(100 bytes) on device 0: cudaErrorMemoryAllocation (2): out of memory");
    let next = device.alloc_zeroed::<f32>(25).unwrap();
    assert_eq!((kept.len(), next.len(), faults::clear()), (8, 25, false));
}
