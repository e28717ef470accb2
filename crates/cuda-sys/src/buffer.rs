//! Memory on the device, owned.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::RangeBounds;
use std::ptr::NonNull;

use crate::call;
use crate::device::Device;
use crate::error::{CudaError, MEMORY_ALLOCATION};
use crate::extent;
use crate::facts::MemoryKind;
use crate::repr::DeviceRepr;
use crate::slice::{DeviceSlice, DeviceSliceMut};
use crate::stream::Stream;
use crate::sys;

/// Elements of one type in the device's memory, freed when dropped. Freeing waits for work that may use them.
#[derive(Debug)]
pub struct DeviceBuffer<T: DeviceRepr> {
    ptr: NonNull<T>,
    len: usize,
    device: Device,
    one_thread: PhantomData<Cell<()>>,
}

// SAFETY: memory on the device belongs to no thread; without `Sync`, one thread at a time uses it.
unsafe impl<T: DeviceRepr> Send for DeviceBuffer<T> {}

impl<T: DeviceRepr> DeviceBuffer<T> {
    pub(crate) fn zeroed(device: &Device, len: usize) -> Result<Self, CudaError> {
        let call = || format!("cudaMalloc({len} elements of {})", T::NAME);
        let out_of_memory = || call::error(MEMORY_ALLOCATION, Some(device.ordinal()), call());
        let n_bytes = extent::bytes_of::<T>(len).ok_or_else(out_of_memory)?;
        device.bind_to_this_thread()?;
        let mut buffer = Self { ptr: NonNull::dangling(), len: 0, device: device.clone(), one_thread: PhantomData };
        if n_bytes == 0 {
            buffer.len = len;
            return Ok(buffer);
        }
        let call = || format!("cudaMalloc({n_bytes} bytes)");
        #[cfg(any(test, feature = "fault-injection"))]
        if crate::faults::allocation_fails() {
            return Err(call::error(MEMORY_ALLOCATION, Some(device.ordinal()), call()));
        }
        let mut ptr = std::ptr::null_mut();
        // SAFETY: a pointer to write to; the thread is bound to the device.
        let status = unsafe { sys::cudaMalloc(&mut ptr, n_bytes) };
        device.check(status, call)?;
        buffer.ptr = NonNull::new(ptr.cast()).ok_or_else(out_of_memory)?;
        buffer.len = len;
        // Zeroed on the stream without a name, which other streams do not wait for: so the host does.
        let unnamed = std::ptr::null_mut();
        // SAFETY: as many bytes as were just allocated.
        let status = unsafe { sys::cudaMemsetAsync(ptr, 0, n_bytes, unnamed) };
        device.check(status, || format!("cudaMemsetAsync({n_bytes} bytes)"))?;
        // SAFETY: the stream without a name always exists.
        let status = unsafe { sys::cudaStreamSynchronize(unnamed) };
        device.check(status, || format!("cudaStreamSynchronize() after zeroing {n_bytes} bytes"))?;
        Ok(buffer)
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its size.
    pub fn n_bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// The device it lies on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// For a kernel that reads. An address on the device: the host cannot read through it. Valid as long as this lives.
    pub fn as_ptr(&self) -> *const T {
        self.ptr.as_ptr()
    }

    /// For a kernel that writes.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.ptr.as_ptr()
    }

    /// All of it.
    pub fn as_slice(&self) -> DeviceSlice<'_, T> {
        self.slice(..)
    }

    /// All of it, to write.
    pub fn as_mut_slice(&mut self) -> DeviceSliceMut<'_, T> {
        self.slice_mut(..)
    }

    /// A part.
    ///
    /// # Panics
    /// When the range does not lie inside.
    #[track_caller]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> DeviceSlice<'_, T> {
        let range = extent::resolve(range, self.len);
        // SAFETY: inside this allocation, which the borrow keeps alive.
        unsafe { DeviceSlice::new(self.ptr.as_ptr().add(range.start), range.len(), &self.device) }
    }

    /// A part, to write.
    ///
    /// # Panics
    /// When the range does not lie inside.
    #[track_caller]
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> DeviceSliceMut<'_, T> {
        let range = extent::resolve(range, self.len);
        // SAFETY: inside this allocation, which nothing else borrows.
        unsafe { DeviceSliceMut::new(self.ptr.as_ptr().add(range.start), range.len(), &self.device) }
    }

    /// Writes all elements. Waits until they are there.
    ///
    /// # Errors
    /// When the device has failed.
    ///
    /// # Panics
    /// When the lengths differ.
    #[track_caller]
    pub fn copy_from_host(&mut self, source: &[T], stream: &Stream) -> Result<(), CudaError> {
        self.as_mut_slice().copy_from_host(source, stream)
    }

    /// Reads all elements, as they are once the stream's earlier work is done.
    ///
    /// # Errors
    /// Whatever went wrong in that work.
    ///
    /// # Panics
    /// When the lengths differ.
    #[track_caller]
    pub fn copy_to_host(&self, target: &mut [T], stream: &Stream) -> Result<(), CudaError> {
        self.as_slice().copy_to_host(target, stream)
    }

    /// Reads all elements into a new vector; as [`Self::copy_to_host`].
    ///
    /// # Errors
    /// Whatever went wrong in the stream's earlier work.
    pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>, CudaError> {
        self.as_slice().to_vec(stream)
    }

    /// Makes every byte zero, after the stream's earlier work. Does not wait.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn fill_zero(&mut self, stream: &Stream) -> Result<(), CudaError> {
        self.as_mut_slice().fill_zero(stream)
    }

    /// Where CUDA says that this lies. [`MemoryKind::Device`], or something is very wrong: for reports that measure.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn memory_kind(&self) -> Result<MemoryKind, CudaError> {
        let mut attributes = sys::cudaPointerAttributes::default();
        // SAFETY: a structure to write to; the address is only looked up.
        let status = unsafe { sys::cudaPointerGetAttributes(&mut attributes, self.as_ptr().cast()) };
        self.device.check(status, || "cudaPointerGetAttributes()".into())?;
        Ok(match attributes.type_ {
            sys::cudaMemoryTypeDevice => MemoryKind::Device,
            sys::cudaMemoryTypeManaged => MemoryKind::Managed,
            sys::cudaMemoryTypeHost => MemoryKind::Host,
            _ => MemoryKind::Unregistered,
        })
    }
}

impl DeviceBuffer<u8> {
    /// `len` elements of another type that begin `byte_offset` bytes inside: how the parts of one large allocation get
    /// their types. See [`extent::Plan`].
    ///
    /// # Panics
    /// When they would be unaligned or not lie inside.
    #[track_caller]
    pub fn typed<U: DeviceRepr>(&self, byte_offset: usize, len: usize) -> DeviceSlice<'_, U> {
        self.assert_fits::<U>(byte_offset, len);
        // SAFETY: aligned and inside, as just checked, and any bytes are a value of `U`.
        unsafe { DeviceSlice::new(self.ptr.as_ptr().add(byte_offset).cast(), len, &self.device) }
    }

    /// As [`Self::typed`], to write.
    ///
    /// # Panics
    /// When they would be unaligned or not lie inside.
    #[track_caller]
    pub fn typed_mut<U: DeviceRepr>(&mut self, byte_offset: usize, len: usize) -> DeviceSliceMut<'_, U> {
        self.assert_fits::<U>(byte_offset, len);
        // SAFETY: aligned and inside, as just checked, any bytes are a value of `U`, and nothing else borrows it.
        unsafe { DeviceSliceMut::new(self.ptr.as_ptr().add(byte_offset).cast(), len, &self.device) }
    }

    #[track_caller]
    fn assert_fits<U: DeviceRepr>(&self, byte_offset: usize, len: usize) {
        let fits = extent::fits::<U>(byte_offset, len, self.len);
        assert!(fits, "{len} elements of {} at byte {byte_offset} of a buffer with {} bytes", U::NAME, self.len);
    }
}

impl<T: DeviceRepr> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if self.n_bytes() == 0 {
            return;
        }
        // SAFETY: ours, and not used again. In a poisoned context this fails, and the memory ends with the process.
        let _ = self.device.check(unsafe { sys::cudaFree(self.ptr.as_ptr().cast()) }, || "cudaFree()".into());
    }
}
