//! Finding a device, and binding a thread to it.

use std::ffi::CStr;
use std::sync::Arc;

use crate::buffer::DeviceBuffer;
use crate::call::check;
use crate::error::{CudaError, OpenError};
use crate::facts::{ComputeCapability, DeviceFacts, MemoryInfo};
use crate::pinned::PinnedBuffer;
use crate::repr::DeviceRepr;
use crate::stream::Stream;
use crate::sys;

/// What the kernels need at least: asynchronous copies into shared memory, and matrix instructions for 16-bit floats.
const MIN_COMPUTE_CAPABILITY: ComputeCapability = ComputeCapability { major: 8, minor: 0 };

const INSUFFICIENT_DRIVER: i32 = 35;
const NO_DEVICE: i32 = 100;
const NO_CODE: [i32; 3] = [98, 209, 222]; // no such function, no image, PTX of a version that the driver cannot read

/// What the kernels of this build were compiled for, as CMake writes it: `80-virtual;90a-real`.
pub const ARCHITECTURES: &str = env!("WORKER_CUDA_ARCHITECTURES");

/// A device that can run the kernels of this build. Cheap to clone; any thread may use it.
#[derive(Debug, Clone)]
pub struct Device {
    ordinal: u32,
    facts: Arc<DeviceFacts>,
}

impl Device {
    /// How many devices there are.
    ///
    /// # Errors
    /// [`OpenError::NoDriver`] or [`OpenError::NoDevice`] instead of a count of 0.
    pub fn count() -> Result<u32, OpenError> {
        let mut n = 0;
        // SAFETY: `n` is a number to write to.
        let status = unsafe { sys::cudaGetDeviceCount(&mut n) };
        match check(status, None, || "cudaGetDeviceCount()".into()) {
            Ok(()) if n > 0 => Ok(n as u32),
            Ok(()) => Err(OpenError::NoDevice),
            Err(error) if error.code == INSUFFICIENT_DRIVER => Err(no_driver()),
            Err(error) if error.code == NO_DEVICE => Err(OpenError::NoDevice),
            Err(error) => Err(error.into()),
        }
    }

    /// What is known of a device, before it is opened. Makes no context.
    ///
    /// # Errors
    /// No driver, no device, no such ordinal.
    pub fn facts_of(ordinal: u32) -> Result<DeviceFacts, OpenError> {
        let n_devices = Self::count()?;
        if ordinal >= n_devices {
            return Err(OpenError::OrdinalOutOfRange { ordinal, n_devices });
        }
        let mut raw = sys::orcd_device_facts::default();
        // SAFETY: `raw` is a structure to write to.
        let status = unsafe { sys::orcd_read_device_facts(ordinal as i32, &mut raw) };
        check(status, Some(ordinal), || "cudaGetDeviceProperties()".into())?;
        // SAFETY: the function ends the name with a zero inside the array.
        let name = unsafe { CStr::from_ptr(raw.name.as_ptr()) }.to_string_lossy().into_owned();
        Ok(DeviceFacts {
            name,
            compute_capability: ComputeCapability { major: raw.compute_major as u32, minor: raw.compute_minor as u32 },
            n_sms: raw.n_sms as u32,
            l2_bytes: raw.l2_bytes as u64,
            max_shared_bytes: raw.max_shared_bytes as u32,
            total_bytes: raw.total_bytes,
        })
    }

    /// Opens a device and binds the calling thread to it: makes its context (about 0.2 s for the first in a process) and
    /// checks that this build has kernels for it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(ordinal: u32) -> Result<Self, OpenError> {
        let facts = Self::facts_of(ordinal)?;
        if facts.compute_capability < MIN_COMPUTE_CAPABILITY {
            return Err(OpenError::ComputeCapabilityTooLow {
                ordinal,
                name: facts.name,
                found: facts.compute_capability,
                needed: MIN_COMPUTE_CAPABILITY,
            });
        }
        let device = Self { ordinal, facts: Arc::new(facts) };
        device.bind_to_this_thread()?;
        // SAFETY: takes nothing; this thread is bound to the device.
        let status = unsafe { sys::orcd_has_code_for_current_device() };
        match check(status, Some(ordinal), || "looking for kernels with cudaFuncGetAttributes()".into()) {
            Ok(()) => Ok(device),
            Err(error) if NO_CODE.contains(&error.code) => Err(OpenError::NoKernels {
                ordinal,
                name: device.facts.name.clone(),
                found: device.facts.compute_capability,
                built_for: ARCHITECTURES.to_owned(),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes it the calling thread's device. Launches and captures need that; everything made by this handle does it by
    /// itself.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn bind_to_this_thread(&self) -> Result<(), CudaError> {
        // SAFETY: an ordinal that exists.
        let status = unsafe { sys::cudaSetDevice(self.ordinal as i32) };
        self.check(status, || format!("cudaSetDevice({})", self.ordinal))
    }

    /// Which one it is, counted from 0.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// What is known of it.
    pub fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    /// Its memory now.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn memory(&self) -> Result<MemoryInfo, CudaError> {
        self.bind_to_this_thread()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: two numbers to write to.
        let status = unsafe { sys::cudaMemGetInfo(&mut free, &mut total) };
        self.check(status, || "cudaMemGetInfo()".into())?;
        Ok(MemoryInfo { free: free as u64, total: total as u64 })
    }

    /// A new stream, which waits for no other.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn stream(&self) -> Result<Stream, CudaError> {
        Stream::new(self)
    }

    /// `len` elements of device memory, all zero.
    ///
    /// # Errors
    /// Out of memory; a size that no allocation can have counts as that.
    pub fn alloc_zeroed<T: DeviceRepr>(&self, len: usize) -> Result<DeviceBuffer<T>, CudaError> {
        DeviceBuffer::zeroed(self, len)
    }

    /// Device memory with these values.
    ///
    /// # Errors
    /// Out of memory.
    pub fn alloc_from<T: DeviceRepr>(&self, values: &[T], stream: &Stream) -> Result<DeviceBuffer<T>, CudaError> {
        let mut buffer = self.alloc_zeroed(values.len())?;
        buffer.copy_from_host(values, stream)?;
        Ok(buffer)
    }

    /// `len` elements of host memory that the device can copy by itself, all zero.
    ///
    /// # Errors
    /// Too little memory that can be pinned.
    pub fn alloc_pinned<T: DeviceRepr>(&self, len: usize) -> Result<PinnedBuffer<T>, CudaError> {
        PinnedBuffer::zeroed(self, len)
    }

    /// Waits for everything on the device, whichever stream it is on.
    ///
    /// # Errors
    /// Whatever went wrong in work that was still running.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.bind_to_this_thread()?;
        // SAFETY: takes nothing.
        let status = unsafe { sys::cudaDeviceSynchronize() };
        self.check(status, || "cudaDeviceSynchronize()".into())
    }

    /// Turns the status of a CUDA call that concerns this device into a `Result`.
    ///
    /// # Errors
    /// When the status is none of success.
    pub fn check(&self, status: impl Into<i64>, call: impl FnOnce() -> String) -> Result<(), CudaError> {
        check(status, Some(self.ordinal), call)
    }
}

fn no_driver() -> OpenError {
    let (mut driver, mut runtime) = (0, 0);
    // SAFETY: numbers to write to; both calls work without a driver, and then the first gives 0.
    unsafe {
        sys::cudaDriverGetVersion(&mut driver);
        sys::cudaRuntimeGetVersion(&mut runtime);
    }
    let shown = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    OpenError::NoDriver { needed: shown(runtime), found: (driver > 0).then(|| shown(driver)) }
}
