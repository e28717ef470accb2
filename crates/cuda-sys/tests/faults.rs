//! An allocation that is made to fail. A program of its own: the fault is the process's.

#![cfg(all(feature = "cuda", feature = "fault-injection"))]

use cuda_sys::{Device, faults};

#[test]
fn the_chosen_allocation_fails_as_a_full_device_would_and_the_next_works() {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            let required = std::env::var("WORKER_REQUIRE_GPU").is_ok_and(|value| value == "1");
            assert!(error.is_no_gpu() && !required, "{error}");
            eprintln!("SKIPPED: no GPU ({error})");
            return;
        }
    };
    faults::fail_allocation_after(1);
    let kept = device.alloc_zeroed::<u8>(8).unwrap();
    let error = device.alloc_zeroed::<f32>(25).unwrap_err();
    assert_eq!(error.to_string(), "cudaMalloc(100 bytes) on device 0: cudaErrorMemoryAllocation (2): out of memory");
    let next = device.alloc_zeroed::<f32>(25).unwrap();
    assert_eq!((kept.len(), next.len(), faults::clear()), (8, 25, false));
}
