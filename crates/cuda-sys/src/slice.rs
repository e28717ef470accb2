//! Parts of device memory, borrowed, and the copies to and from them.

use std::marker::PhantomData;
use std::ops::{Range, RangeBounds};

use crate::device::Device;
use crate::error::CudaError;
use crate::extent;
use crate::pinned::PinnedBuffer;
use crate::repr::DeviceRepr;
use crate::stream::Stream;
use crate::sys;

/// Elements in device memory, to read.
#[derive(Debug, Clone, Copy)]
pub struct DeviceSlice<'a, T: DeviceRepr> {
    ptr: *const T,
    len: usize,
    device: &'a Device,
    borrowed: PhantomData<&'a T>,
}

/// Elements in device memory, to read and write.
#[derive(Debug)]
pub struct DeviceSliceMut<'a, T: DeviceRepr> {
    ptr: *mut T,
    len: usize,
    device: &'a Device,
    borrowed: PhantomData<&'a mut T>,
}

// SAFETY: an exclusive borrow of memory on the device, which belongs to no thread. (`DeviceSlice` stays where its buffer
// is: the buffer is not `Sync`.)
unsafe impl<T: DeviceRepr> Send for DeviceSliceMut<'_, T> {}

impl<'a, T: DeviceRepr> DeviceSlice<'a, T> {
    /// # Safety
    /// `len` elements at `ptr` lie in one allocation on `device` that lives for `'a` and is not written meanwhile, but by
    /// kernels.
    pub(crate) unsafe fn new(ptr: *const T, len: usize, device: &'a Device) -> Self {
        Self { ptr, len, device, borrowed: PhantomData }
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// For a kernel that reads. The host cannot read through it.
    pub fn as_ptr(&self) -> *const T {
        self.ptr
    }

    /// A part of the part.
    ///
    /// # Panics
    /// When the range does not lie inside.
    #[track_caller]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> DeviceSlice<'a, T> {
        let range = extent::resolve(range, self.len);
        // SAFETY: inside a slice of the same lifetime.
        unsafe { DeviceSlice::new(self.ptr.add(range.start), range.len(), self.device) }
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
        assert_eq!(target.len(), self.len, "copying {} elements to {}", self.len, target.len());
        // SAFETY: as many bytes on either side; the host waits below, so `target` is borrowed for the whole copy.
        unsafe { copy(target.as_mut_ptr().cast(), self.ptr.cast(), size_of_val(target), TO_HOST, stream) }?;
        stream.synchronize()
    }

    /// Reads all elements into a new vector; as [`Self::copy_to_host`].
    ///
    /// # Errors
    /// Whatever went wrong in the stream's earlier work.
    pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>, CudaError> {
        // SAFETY: all zeros are a value of every `DeviceRepr`.
        let mut values = vec![unsafe { std::mem::zeroed::<T>() }; self.len];
        self.copy_to_host(&mut values, stream)?;
        Ok(values)
    }

    /// Enqueues a copy of all elements to `range` of `target`. Does not wait.
    ///
    /// # Safety
    /// Until the stream has come so far, nobody touches those elements of `target`, and `target` is not dropped.
    ///
    /// # Errors
    /// When the device has failed.
    ///
    /// # Panics
    /// When the range does not lie inside `target` or has another length.
    #[track_caller]
    pub unsafe fn copy_to_pinned_async(
        &self,
        target: &mut PinnedBuffer<T>,
        range: Range<usize>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let target = &mut target.as_mut_slice()[range];
        assert_eq!(target.len(), self.len, "copying {} elements to {}", self.len, target.len());
        // SAFETY: as many bytes on either side; the caller leaves `target` alone until it is done.
        unsafe { copy(target.as_mut_ptr().cast(), self.ptr.cast(), size_of_val(target), TO_HOST, stream) }
    }
}

impl<'a, T: DeviceRepr> DeviceSliceMut<'a, T> {
    /// # Safety
    /// `len` elements at `ptr` lie in one allocation on `device` that lives for `'a`, and nothing else borrows them.
    pub(crate) unsafe fn new(ptr: *mut T, len: usize, device: &'a Device) -> Self {
        Self { ptr, len, device, borrowed: PhantomData }
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// For a kernel that writes. The host cannot write through it.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.ptr
    }

    /// To read.
    pub fn as_slice(&self) -> DeviceSlice<'_, T> {
        // SAFETY: the same elements, for as long as this is borrowed.
        unsafe { DeviceSlice::new(self.ptr, self.len, self.device) }
    }

    /// A part of the part.
    ///
    /// # Panics
    /// When the range does not lie inside.
    #[track_caller]
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> DeviceSliceMut<'_, T> {
        let range = extent::resolve(range, self.len);
        // SAFETY: inside this slice, which is borrowed meanwhile.
        unsafe { DeviceSliceMut::new(self.ptr.add(range.start), range.len(), self.device) }
    }

    /// Two parts: the first `middle` elements, and the others. So several threads fill one allocation.
    ///
    /// # Panics
    /// When there are fewer than `middle`.
    #[track_caller]
    pub fn split_at_mut(self, middle: usize) -> (DeviceSliceMut<'a, T>, DeviceSliceMut<'a, T>) {
        let (before, after) = (extent::resolve(..middle, self.len), extent::resolve(middle.., self.len));
        // SAFETY: two parts of this slice that do not overlap, and this slice is gone.
        unsafe {
            (
                DeviceSliceMut::new(self.ptr, before.len(), self.device),
                DeviceSliceMut::new(self.ptr.add(after.start), after.len(), self.device),
            )
        }
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
        assert_eq!(source.len(), self.len, "copying {} elements to {}", source.len(), self.len);
        // SAFETY: as many bytes on either side; the host waits below, so `source` is borrowed for the whole copy.
        unsafe { copy(self.ptr.cast(), source.as_ptr().cast(), size_of_val(source), TO_DEVICE, stream) }?;
        stream.synchronize()
    }

    /// Enqueues a copy of `range` of `source` to all elements. Does not wait.
    ///
    /// # Safety
    /// Until the stream has come so far, nobody writes those elements of `source`, and neither side is dropped.
    ///
    /// # Errors
    /// When the device has failed.
    ///
    /// # Panics
    /// When the range does not lie inside `source` or has another length.
    #[track_caller]
    pub unsafe fn copy_from_pinned_async(
        &mut self,
        source: &PinnedBuffer<T>,
        range: Range<usize>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let source = &source.as_slice()[range];
        assert_eq!(source.len(), self.len, "copying {} elements to {}", source.len(), self.len);
        // SAFETY: as many bytes on either side; the caller leaves `source` as it is until it is done.
        unsafe { copy(self.ptr.cast(), source.as_ptr().cast(), size_of_val(source), TO_DEVICE, stream) }
    }

    /// Enqueues a copy of other elements on the device. Does not wait.
    ///
    /// # Errors
    /// When the device has failed.
    ///
    /// # Panics
    /// When the lengths differ.
    #[track_caller]
    pub fn copy_from_device(&mut self, source: DeviceSlice<'_, T>, stream: &Stream) -> Result<(), CudaError> {
        assert_eq!(source.len, self.len, "copying {} elements to {}", source.len, self.len);
        let n_bytes = self.len * size_of::<T>();
        // SAFETY: as many bytes on either side, in allocations that do not overlap; freeing either waits for the copy.
        unsafe { copy(self.ptr.cast(), source.ptr.cast(), n_bytes, ON_DEVICE, stream) }
    }

    /// Makes every byte zero, after the stream's earlier work. Does not wait.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn fill_zero(&mut self, stream: &Stream) -> Result<(), CudaError> {
        self.fill_bytes(0, stream)
    }

    /// Makes every byte `byte`, after the stream's earlier work: 0xFF is NaN in every float format. Does not wait.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn fill_bytes(&mut self, byte: u8, stream: &Stream) -> Result<(), CudaError> {
        let n_bytes = self.len * size_of::<T>();
        if n_bytes == 0 {
            return Ok(());
        }
        // SAFETY: as many bytes as this has; freeing them waits for the work.
        let status = unsafe { sys::cudaMemsetAsync(self.ptr.cast(), i32::from(byte), n_bytes, stream.raw()) };
        stream.device().check(status, || format!("cudaMemsetAsync({n_bytes} bytes)"))
    }
}

const TO_DEVICE: sys::cudaMemcpyKind = sys::cudaMemcpyHostToDevice;
const TO_HOST: sys::cudaMemcpyKind = sys::cudaMemcpyDeviceToHost;
const ON_DEVICE: sys::cudaMemcpyKind = sys::cudaMemcpyDeviceToDevice;

/// # Safety
/// `n_bytes` bytes at `source` and `target`, each on the side that `kind` says, stay there until the stream has copied.
unsafe fn copy(
    target: *mut std::ffi::c_void,
    source: *const std::ffi::c_void,
    n_bytes: usize,
    kind: sys::cudaMemcpyKind,
    stream: &Stream,
) -> Result<(), CudaError> {
    if n_bytes == 0 {
        return Ok(());
    }
    // SAFETY: the caller promises it.
    let status = unsafe { sys::cudaMemcpyAsync(target, source, n_bytes, kind, stream.raw()) };
    let way = match kind {
        TO_DEVICE => "host to device",
        TO_HOST => "device to host",
        _ => "on the device",
    };
    stream.device().check(status, || format!("cudaMemcpyAsync({n_bytes} bytes, {way})"))
}
