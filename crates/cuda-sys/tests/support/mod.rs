//! The GPU that tests run on.

use cuda_sys::Device;

/// The first one. Where there is none the test is skipped, which is said; with `WORKER_REQUIRE_GPU=1` it fails.
pub(crate) fn device() -> Option<Device> {
    match Device::open(0) {
        Ok(device) => Some(device),
        Err(error) => {
            let required = std::env::var("WORKER_REQUIRE_GPU").is_ok_and(|value| value == "1");
            assert!(error.is_no_gpu(), "{error}");
            assert!(!required, "WORKER_REQUIRE_GPU=1, and {error}");
            eprintln!("SKIPPED: no GPU ({error})");
            None
        }
    }
}
