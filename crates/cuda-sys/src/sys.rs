//! The raw floor: what bindgen makes of `cuda/include/worker_cuda.h` and of the CUDA runtime's header.
//!
//! `orcd_f16` is [`half::f16`]. Structures' sizes and offsets are asserted when this is compiled, and [`LAYOUTS`] is
//! compared with the kernels' compiler in `tests/contract.rs`, as are the launchers' checks.

#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unused_imports,
    rustdoc::all,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    reason = "generated"
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

/// Structure, field (or nothing, for the size) and bytes, as this side sees them.
pub const LAYOUTS: &[(&str, &str, usize)] = include!(concat!(env!("OUT_DIR"), "/layouts.rs"));

include!(concat!(env!("OUT_DIR"), "/launchers.rs"));
