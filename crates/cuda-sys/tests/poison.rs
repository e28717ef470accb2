//! A context that is destroyed. A program of its own: nothing works in it afterwards.

#![cfg(all(feature = "cuda", feature = "fault-injection"))]

use cuda_sys::{Device, faults};

#[test]
fn a_poisoned_context_reports_its_end_by_name_from_every_call() {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            let required = std::env::var("WORKER_REQUIRE_GPU").is_ok_and(|value| value == "1");
            assert!(error.is_no_gpu() && !required, "{error}");
            eprintln!("SKIPPED: no GPU ({error})");
            return;
        }
    };
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
