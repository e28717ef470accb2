//! A call's status into a `Result`.

use std::ffi::CStr;

use crate::error::CudaError;
use crate::sys;

/// `Ok` for success. `call` is asked for its words only when there is an error to put them in.
pub(crate) fn check(
    status: impl Into<i64>,
    device: Option<u32>,
    call: impl FnOnce() -> String,
) -> Result<(), CudaError> {
    // A cudaError_t is unsigned to the runtime and an int32_t to the kernels' launchers; all values fit both.
    let code = status.into() as i32;
    if code == 0 {
        return Ok(());
    }
    // The runtime also remembers the error for the next cudaGetLastError, which is how launchers learn of theirs: without
    // this, the launch after a failed allocation would seem to fail.
    // SAFETY: takes nothing, and only clears that memory.
    unsafe { sys::cudaGetLastError() };
    Err(error(code, device, call()))
}

pub(crate) fn error(code: i32, device: Option<u32>, call: String) -> CudaError {
    let status = code as sys::cudaError_t;
    // SAFETY: both give a constant string with a zero at its end for any number.
    let (name, description) = unsafe { (text(sys::cudaGetErrorName(status)), text(sys::cudaGetErrorString(status))) };
    CudaError { code, name, description, call, device }
}

impl CudaError {
    /// The error of this code, in the runtime's words: for calls that are made through [`sys`].
    pub fn from_code(code: i32, call: impl Into<String>) -> Self {
        error(code, None, call.into())
    }
}

/// # Safety
/// `text` is null or a string that ends with a zero.
unsafe fn text(text: *const std::ffi::c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller promises it.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
