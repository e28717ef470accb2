//! The border to CUDA.
//!
//! Two floors. Below, [`sys`]: bindings that the build generates from the C headers, structures and functions as they
//! are. Above: owning, typed handles. A [`Device`] is found and checked; it gives [`Stream`]s, [`DeviceBuffer`]s and
//! [`PinnedBuffer`]s; an [`Event`] marks a place in a stream; a [`Graph`] is work that a stream recorded. Every call's
//! status becomes a `Result` whose [`CudaError`] names the error, the call and the device.
//!
//! # Who owns what
//! Memory on the device belongs to a [`DeviceBuffer<T>`], and its pointer has the type of its elements, so a buffer of
//! `f16` cannot be passed where a kernel reads `f32`. Kernels are called through [`sys`] with such pointers; that is
//! `unsafe`, and the caller answers for shapes. Handles may move between threads and are used by one at a time.
//!
//! # Order
//! Work on a stream runs in order; streams do not wait for each other unless told to. Every copy names its stream, so a
//! copy after a kernel on the same stream sees what the kernel wrote.
//!
//! # Features
//! Without `cuda` this crate is errors, facts and arithmetic, and builds on any machine. With it, a toolkit compiles the
//! kernels; the result still starts on a machine without a driver, where [`Device::open`] says so.
//!
//! # Errors
//! [`OpenError`] for what a user can mend (no driver, no device, wrong ordinal, too old a device), [`CudaError`] for the
//! rest. Out-of-range slices and copies between different lengths panic, as they do for slices of the host.

#![allow(unsafe_code, reason = "this crate is the border: every call to C is unsafe, and says why it is sound")]
#![cfg_attr(
    not(feature = "cuda"),
    allow(rustdoc::broken_intra_doc_links, reason = "the upper floor is there with the feature alone")
)]

mod error;
pub mod extent;
mod facts;
#[cfg(any(test, feature = "fault-injection"))]
pub mod faults;
mod repr;

#[cfg(feature = "cuda")]
mod buffer;
#[cfg(feature = "cuda")]
mod call;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod event;
#[cfg(feature = "cuda")]
mod graph;
#[cfg(feature = "cuda")]
mod pinned;
#[cfg(feature = "cuda")]
mod slice;
#[cfg(feature = "cuda")]
mod stream;
#[cfg(feature = "cuda")]
pub mod sys;

pub use error::{CudaError, OpenError};
pub use facts::{ComputeCapability, DeviceFacts, MemoryInfo, MemoryKind};
pub use repr::DeviceRepr;

#[cfg(feature = "cuda")]
pub use buffer::DeviceBuffer;
#[cfg(feature = "cuda")]
pub use device::{ARCHITECTURES, Device};
#[cfg(feature = "cuda")]
pub use event::Event;
#[cfg(feature = "cuda")]
pub use graph::{Graph, GraphExec};
#[cfg(feature = "cuda")]
pub use pinned::PinnedBuffer;
#[cfg(feature = "cuda")]
pub use slice::{DeviceSlice, DeviceSliceMut};
#[cfg(feature = "cuda")]
pub use stream::Stream;
