//! A mark in a stream: to wait for, and to measure by.

use std::cell::Cell;
use std::marker::PhantomData;

use crate::device::Device;
use crate::error::CudaError;
use crate::stream::{Stream, done};
use crate::sys;

/// A place in a stream's work.
#[derive(Debug)]
pub struct Event {
    raw: sys::cudaEvent_t,
    device: Device,
    one_thread: PhantomData<Cell<()>>,
}

// SAFETY: a CUDA event belongs to no thread; without `Sync`, one thread at a time uses it.
unsafe impl Send for Event {}

impl Event {
    /// An event that only orders.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        Self::with_flags(device, sys::cudaEventDisableTiming)
    }

    /// An event that also notes the time.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn timed(device: &Device) -> Result<Self, CudaError> {
        Self::with_flags(device, sys::cudaEventDefault)
    }

    fn with_flags(device: &Device, flags: u32) -> Result<Self, CudaError> {
        device.bind_to_this_thread()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a pointer to write to; the thread is bound to the device.
        let status = unsafe { sys::cudaEventCreateWithFlags(&mut raw, flags) };
        device.check(status, || format!("cudaEventCreateWithFlags({flags})"))?;
        Ok(Self { raw, device: device.clone(), one_thread: PhantomData })
    }

    /// Marks the end of what is enqueued on the stream so far. An earlier mark is forgotten.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: an event and a stream of ours.
        let status = unsafe { sys::cudaEventRecord(self.raw, stream.raw()) };
        self.device.check(status, || "cudaEventRecord()".into())
    }

    /// Waits until the marked work is done; at once when nothing is marked.
    ///
    /// # Errors
    /// Whatever went wrong in that work.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: an event of ours.
        let status = unsafe { sys::cudaEventSynchronize(self.raw) };
        self.device.check(status, || "cudaEventSynchronize()".into())
    }

    /// Whether the marked work is done. Does not wait.
    ///
    /// # Errors
    /// Whatever went wrong in that work.
    pub fn is_done(&self) -> Result<bool, CudaError> {
        // SAFETY: an event of ours.
        let status = unsafe { sys::cudaEventQuery(self.raw) };
        done(status, &self.device, "cudaEventQuery()")
    }

    /// Milliseconds on the device from `start` to this, both [`Event::timed`] and done.
    ///
    /// # Errors
    /// When one is not recorded, not done or not timed.
    pub fn elapsed_ms_since(&self, start: &Event) -> Result<f32, CudaError> {
        let mut elapsed_ms = 0.0;
        // SAFETY: two events of ours and a number to write to.
        let status = unsafe { sys::cudaEventElapsedTime(&mut elapsed_ms, start.raw, self.raw) };
        self.device.check(status, || "cudaEventElapsedTime()".into())?;
        Ok(elapsed_ms)
    }

    pub(crate) fn raw(&self) -> sys::cudaEvent_t {
        self.raw
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: ours, and not used again.
        let _ = self.device.check(unsafe { sys::cudaEventDestroy(self.raw) }, || "cudaEventDestroy()".into());
    }
}
