//! A queue of work for the device.

use std::cell::Cell;
use std::marker::PhantomData;

use crate::call::check;
use crate::device::Device;
use crate::error::{CudaError, NOT_READY};
use crate::event::Event;
use crate::sys;

/// Work that runs in order. It waits for no other stream, the one without a name included, unless told to.
#[derive(Debug)]
pub struct Stream {
    raw: sys::orcd_stream,
    device: Device,
    one_thread: PhantomData<Cell<()>>,
}

// SAFETY: a CUDA stream belongs to no thread; without `Sync`, one thread at a time uses it.
unsafe impl Send for Stream {}

impl Stream {
    pub(crate) fn new(device: &Device) -> Result<Self, CudaError> {
        device.bind_to_this_thread()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a pointer to write to; the thread is bound to the device.
        let status = unsafe { sys::cudaStreamCreateWithFlags(&mut raw, sys::cudaStreamNonBlocking) };
        device.check(status, || "cudaStreamCreateWithFlags(cudaStreamNonBlocking)".into())?;
        Ok(Self { raw, device: device.clone(), one_thread: PhantomData })
    }

    /// For a kernel's launcher. Valid as long as this stream lives.
    pub fn raw(&self) -> sys::orcd_stream {
        self.raw
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Turns a launcher's status into a `Result`: `stream.launched("orcd_rms_norm", unsafe { sys::orcd_rms_norm(...) })`.
    /// The work has been enqueued, not done.
    ///
    /// # Errors
    /// Arguments that the launcher refuses ([`CudaError::is_invalid_value`]), or a launch that CUDA refuses.
    pub fn launched(&self, name: &'static str, status: i32) -> Result<(), CudaError> {
        check(status, Some(self.device.ordinal()), || format!("{name}()"))
    }

    /// Waits until everything enqueued so far is done.
    ///
    /// # Errors
    /// Whatever went wrong in that work, a kernel's bad address included; most of these poison the context.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: a stream of ours.
        let status = unsafe { sys::cudaStreamSynchronize(self.raw) };
        self.device.check(status, || "cudaStreamSynchronize()".into())
    }

    /// Whether everything enqueued so far is done. Does not wait.
    ///
    /// # Errors
    /// As [`Self::synchronize`].
    pub fn is_idle(&self) -> Result<bool, CudaError> {
        // SAFETY: a stream of ours.
        let status = unsafe { sys::cudaStreamQuery(self.raw) };
        done(status, &self.device, "cudaStreamQuery()")
    }

    /// What is enqueued from now on waits for what `event` marks. The host does not wait.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn wait_for(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: a stream and an event of ours.
        let status = unsafe { sys::cudaStreamWaitEvent(self.raw, event.raw(), 0) };
        self.device.check(status, || "cudaStreamWaitEvent()".into())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: ours, and not used again. Work on it goes on to its end. A failure leaves nothing to be done.
        let _ = self.device.check(unsafe { sys::cudaStreamDestroy(self.raw) }, || "cudaStreamDestroy()".into());
    }
}

/// "Not ready" is an answer.
pub(crate) fn done(status: sys::cudaError_t, device: &Device, call: &str) -> Result<bool, CudaError> {
    match device.check(status, || call.to_owned()) {
        Ok(()) => Ok(true),
        Err(error) if error.code == NOT_READY => Ok(false),
        Err(error) => Err(error),
    }
}
