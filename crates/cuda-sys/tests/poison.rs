//! A context that is destroyed. A program of its own: nothing works in it afterwards.

#![cfg(all(feature = "cuda", feature = "fault-injection"))]

mod support;

use cuda_sys::faults;

#[test]
fn a_poisoned_context_reports_its_end_by_name_from_every_call() {
    let Some(device) = support::device() else { return };
    let stream = device.stream().unwrap();
    let mut buffer = device.alloc_zeroed::<f32>(25).unwrap();
    let first = faults::poison_context(&device).unwrap_err();
    println!("{first}");
    let later = [
        buffer.copy_from_host(&[0.0; 25], &stream).unwrap_err(),
        stream.synchronize().unwrap_err(),
        device.alloc_zeroed::<f32>(25).unwrap_err(),
        device.memory().unwrap_err(),
    ];
    for error in later.iter().chain([&first]) {
        assert!(error.is_sticky() && error.name == "cudaErrorIllegalAddress", "{error}");
        assert!(error.to_string().contains(" on device 0: cudaErrorIllegalAddress (700): "), "{error}");
    }
}
