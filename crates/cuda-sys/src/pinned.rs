//! Host memory that the device copies by itself.

use std::ptr::NonNull;

use crate::call;
use crate::device::Device;
use crate::error::{CudaError, MEMORY_ALLOCATION};
use crate::extent;
use crate::repr::DeviceRepr;
use crate::sys;

/// Elements of one type in pinned memory: the system never moves it, so a copy needs no help of the processor and runs
/// while others work. Freed when dropped.
#[derive(Debug)]
pub struct PinnedBuffer<T: DeviceRepr> {
    ptr: NonNull<T>,
    len: usize,
    device: Device,
}

// SAFETY: owned memory of plain values, like a `Box<[T]>`.
unsafe impl<T: DeviceRepr> Send for PinnedBuffer<T> {}
// SAFETY: shared, it is only read, like a `Box<[T]>`.
unsafe impl<T: DeviceRepr> Sync for PinnedBuffer<T> {}

impl<T: DeviceRepr> PinnedBuffer<T> {
    pub(crate) fn zeroed(device: &Device, len: usize) -> Result<Self, CudaError> {
        let call = || format!("cudaHostAlloc({len} elements of {})", T::NAME);
        let out_of_memory = || call::error(MEMORY_ALLOCATION, Some(device.ordinal()), call());
        let n_bytes = extent::bytes_of::<T>(len).ok_or_else(out_of_memory)?;
        device.bind_to_this_thread()?;
        let mut ptr = std::ptr::null_mut();
        if n_bytes > 0 {
            // SAFETY: a pointer to write to.
            let status = unsafe { sys::cudaHostAlloc(&mut ptr, n_bytes, sys::cudaHostAllocDefault) };
            device.check(status, || format!("cudaHostAlloc({n_bytes} bytes)"))?;
            // SAFETY: as many bytes as were just allocated.
            unsafe { std::ptr::write_bytes(ptr.cast::<u8>(), 0, n_bytes) };
        }
        Ok(Self { ptr: NonNull::new(ptr.cast()).unwrap_or(NonNull::dangling()), len, device: device.clone() })
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `len` elements, initialised, owned by this.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: `len` elements, initialised, owned by this and borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: DeviceRepr> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        if self.len * size_of::<T>() == 0 {
            return;
        }
        // SAFETY: ours, and not used again.
        let _ = self.device.check(unsafe { sys::cudaFreeHost(self.ptr.as_ptr().cast()) }, || "cudaFreeHost()".into());
    }
}
