//! Work that a stream recorded, to be run again with one call.

use std::cell::Cell;
use std::marker::PhantomData;

use crate::device::Device;
use crate::error::CudaError;
use crate::stream::Stream;
use crate::sys;

/// A recording: which kernels and copies, with which arguments, after which others.
#[derive(Debug)]
pub struct Graph {
    raw: sys::cudaGraph_t,
    device: Device,
    one_thread: PhantomData<Cell<()>>,
}

// SAFETY: belongs to no thread; without `Sync`, one thread at a time uses it.
unsafe impl Send for Graph {}

impl Stream {
    /// Records what `work` enqueues on this stream instead of running it. `work` may not wait for the stream or
    /// allocate; what other threads do meanwhile does not matter.
    ///
    /// # Errors
    /// What `work` returns, or what CUDA says of the recording.
    pub fn capture<E: From<CudaError>>(&self, work: impl FnOnce(&Stream) -> Result<(), E>) -> Result<Graph, E> {
        // SAFETY: a stream of ours, that is ended below whatever `work` does, unless it panics: then the recording is
        // left open, and CUDA refuses the stream's next use.
        let status = unsafe { sys::cudaStreamBeginCapture(self.raw(), sys::cudaStreamCaptureModeThreadLocal) };
        self.device().check(status, || "cudaStreamBeginCapture()".into())?;
        let outcome = work(self);
        let mut raw = std::ptr::null_mut();
        // SAFETY: a stream of ours and a pointer to write to.
        let status = unsafe { sys::cudaStreamEndCapture(self.raw(), &mut raw) };
        let ended = self.device().check(status, || "cudaStreamEndCapture()".into());
        let graph = Graph { raw, device: self.device().clone(), one_thread: PhantomData };
        // The fault inside is the cause of the one at the end.
        outcome?;
        ended?;
        Ok(graph)
    }
}

impl Graph {
    /// How many kernels, copies and other steps it has.
    ///
    /// # Errors
    /// When CUDA refuses.
    pub fn n_nodes(&self) -> Result<usize, CudaError> {
        let mut n = 0;
        // SAFETY: a graph of ours; without an array, only the number is written.
        let status = unsafe { sys::cudaGraphGetNodes(self.raw, std::ptr::null_mut(), &mut n) };
        self.device.check(status, || "cudaGraphGetNodes()".into())?;
        Ok(n)
    }

    /// Prepares it for launching.
    ///
    /// # Errors
    /// Out of memory, or a recording that cannot be run.
    pub fn instantiate(&self) -> Result<GraphExec, CudaError> {
        self.device.bind_to_this_thread()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a graph of ours and a pointer to write to.
        let status = unsafe { sys::cudaGraphInstantiate(&mut raw, self.raw, 0) };
        self.device.check(status, || "cudaGraphInstantiate()".into())?;
        Ok(GraphExec { raw, device: self.device.clone(), one_thread: PhantomData })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.raw.is_null() {
            return;
        }
        // SAFETY: ours, and not used again.
        let _ = self.device.check(unsafe { sys::cudaGraphDestroy(self.raw) }, || "cudaGraphDestroy()".into());
    }
}

/// A recording that can be launched, as often as wanted. Keeps nothing of the [`Graph`] it was made from.
#[derive(Debug)]
pub struct GraphExec {
    raw: sys::cudaGraphExec_t,
    device: Device,
    one_thread: PhantomData<Cell<()>>,
}

// SAFETY: belongs to no thread; without `Sync`, one thread at a time uses it.
unsafe impl Send for GraphExec {}

impl GraphExec {
    /// Enqueues the recorded work on a stream.
    ///
    /// # Safety
    /// Everything that the recorded calls point to is still there, at the same addresses, until the work is done; and
    /// nothing else writes it meanwhile.
    ///
    /// # Errors
    /// When the device has failed.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: handles of ours; the caller answers for what the work touches.
        let status = unsafe { sys::cudaGraphLaunch(self.raw, stream.raw()) };
        self.device.check(status, || "cudaGraphLaunch()".into())
    }

    /// Sends it to the device ahead of its first launch, which is then as quick as the others.
    ///
    /// # Errors
    /// Out of memory.
    pub fn upload(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: handles of ours.
        let status = unsafe { sys::cudaGraphUpload(self.raw, stream.raw()) };
        self.device.check(status, || "cudaGraphUpload()".into())
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        // SAFETY: ours, and not used again; a launch that is running goes on to its end.
        let _ = self.device.check(unsafe { sys::cudaGraphExecDestroy(self.raw) }, || "cudaGraphExecDestroy()".into());
    }
}
