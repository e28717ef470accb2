//! What both sides of the border must agree on. Needs the feature `cuda`, and no GPU.

#![cfg(feature = "cuda")]
#![allow(unsafe_code, reason = "calls over the border")]

use std::collections::BTreeMap;
use std::ffi::CStr;

use cuda_sys::{CudaError, Device, OpenError, sys};

/// What the kernels' compiler thinks, as it was compiled into the library.
fn c_layouts() -> BTreeMap<(String, String), usize> {
    let mut n = 0;
    // SAFETY: a number to write to; the table is constant.
    let table = unsafe { std::slice::from_raw_parts(sys::orcd_layouts(&mut n), n) };
    let text = |text: *const std::ffi::c_char| {
        // SAFETY: string literals.
        unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned()
    };
    table.iter().map(|layout| ((text(layout.structure), text(layout.field)), layout.bytes)).collect()
}

#[test]
fn both_compilers_lay_out_every_structure_alike() {
    let rust = sys::LAYOUTS.iter().map(|(name, field, bytes)| ((String::from(*name), String::from(*field)), *bytes));
    let rust: BTreeMap<_, _> = rust.collect();
    assert_eq!(rust, c_layouts());
    let size = |name: &str| rust[&(name.to_owned(), String::new())];
    assert_eq!(size("orcd_f16"), 2);
    assert_eq!(size("orcd_device_facts"), size_of::<sys::orcd_device_facts>());
    assert!(rust.contains_key(&("orcd_device_facts".to_owned(), "total_bytes".to_owned())));
}

#[test]
fn a_half_is_a_half_on_both_sides() {
    assert_eq!((size_of::<half::f16>(), align_of::<half::f16>()), (2, 2));
    assert_eq!(half::f16::from_f32(1.5).to_bits(), 0x3E00);
}

#[test]
fn every_launcher_refuses_arguments_of_zeros() {
    for (name, launch) in sys::LAUNCHERS {
        // SAFETY: a launcher checks its arguments before it uses any; zeros are null pointers and empty shapes.
        let status = unsafe { launch() };
        assert_eq!(status, sys::cudaErrorInvalidValue as i32, "{name}");
    }
}

#[test]
fn every_launcher_refuses_no_arguments() {
    for (name, launch) in sys::LAUNCHERS_WITHOUT_ARGUMENTS {
        // SAFETY: a launcher looks whether there are arguments before it reads any.
        let status = unsafe { launch() };
        assert_eq!(status, sys::cudaErrorInvalidValue as i32, "{name}");
    }
}

#[test]
fn facts_are_refused_where_there_is_nowhere_to_write_them() {
    // SAFETY: null is what is tested.
    let status = unsafe { sys::orcd_read_device_facts(0, std::ptr::null_mut()) };
    assert_eq!(status, sys::cudaErrorInvalidValue as i32);
}

#[test]
fn a_machine_without_a_gpu_gets_an_error_with_a_name() {
    match Device::count() {
        Ok(n) => {
            let past = Device::open(n).unwrap_err();
            assert_eq!(past, OpenError::OrdinalOutOfRange { ordinal: n, n_devices: n });
        }
        Err(error) => {
            assert!(error.is_no_gpu(), "{error}");
            assert_eq!(Device::open(0).unwrap_err(), error);
            if let OpenError::NoDriver { needed, .. } = &error {
                assert!(needed.starts_with("12.") || needed.starts_with("13."), "{error}");
            }
        }
    }
}

#[test]
fn an_error_carries_what_the_runtime_calls_it() {
    let Err(OpenError::Cuda(error)) = Err::<(), _>(OpenError::from(CudaError::from_code(2, "cudaMalloc(8 bytes)")))
    else {
        unreachable!()
    };
    assert_eq!(error.to_string(), "cudaMalloc(8 bytes): cudaErrorMemoryAllocation (2): out of memory");
    for sticky in [700, 710, 715, 716, 719, 999] {
        assert!(CudaError::from_code(sticky, "x").is_sticky(), "{}", CudaError::from_code(sticky, "x"));
    }
}
