//! With the feature `cuda`: compiles the kernels with CMake, and makes bindings to them and to the CUDA runtime.
//! Without it: nothing.

#![allow(unsafe_code, reason = "bindgen and the cmake crate are told by environment variables alone")]

#[cfg(feature = "cuda")]
#[path = "build/bindings.rs"]
mod bindings;
#[cfg(feature = "cuda")]
#[path = "build/kernels.rs"]
mod kernels;
#[cfg(feature = "cuda")]
#[path = "build/toolkit.rs"]
mod toolkit;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    #[cfg(feature = "cuda")]
    if let Err(fault) = kernels::build() {
        // `cargo::error` shows one plain line instead of a panic and everything printed before it.
        println!("cargo::error=cuda-sys: {fault}");
        std::process::exit(1);
    }
}
