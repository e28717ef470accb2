//! What can go wrong: opening a device, and any call after that.

use crate::facts::ComputeCapability;

/// A CUDA call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}{}: {name} ({code}): {description}", on(*device))]
pub struct CudaError {
    /// The `cudaError_t`.
    pub code: i32,
    /// Its name: `cudaErrorMemoryAllocation`.
    pub name: String,
    /// CUDA's own words for it: `out of memory`.
    pub description: String,
    /// The call and what it was asked for: `cudaMalloc(123 bytes)`.
    pub call: String,
    /// The device's ordinal, where the call concerns one.
    pub device: Option<u32>,
}

fn on(device: Option<u32>) -> String {
    device.map_or_else(String::new, |ordinal| format!(" on device {ordinal}"))
}

/// `cudaErrorInvalidValue`: also what a kernel's launcher says of arguments that it refuses.
pub(crate) const INVALID_VALUE: i32 = 1;
pub(crate) const MEMORY_ALLOCATION: i32 = 2;
#[cfg(feature = "cuda")]
pub(crate) const NOT_READY: i32 = 600;

/// Errors after which every call of the process fails: the context is broken, and only a new process has another.
/// From the descriptions in `driver_types.h` ("This leaves the process in an inconsistent state"), and those that CUDA's
/// own documentation calls unrecoverable.
const STICKY: &[i32] = &[
    214, // cudaErrorECCUncorrectable
    220, // cudaErrorNvlinkUncorrectable
    226, // cudaErrorContained
    700, // cudaErrorIllegalAddress
    702, // cudaErrorLaunchTimeout
    709, // cudaErrorContextIsDestroyed
    710, // cudaErrorAssert
    714, // cudaErrorHardwareStackError
    715, // cudaErrorIllegalInstruction
    716, // cudaErrorMisalignedAddress
    717, // cudaErrorInvalidAddressSpace
    718, // cudaErrorInvalidPc
    719, // cudaErrorLaunchFailure
    721, // cudaErrorTensorMemoryLeak
    911, // cudaErrorExternalDevice
    999, // cudaErrorUnknown
];

impl CudaError {
    /// Whether the device, or the host's pinnable memory, had too little left. The context is sound afterwards.
    pub fn is_out_of_memory(&self) -> bool {
        self.code == MEMORY_ALLOCATION
    }

    /// Whether a launcher or the runtime refused the arguments: a fault of this program.
    pub fn is_invalid_value(&self) -> bool {
        self.code == INVALID_VALUE
    }

    /// Whether the context is poisoned: every later call fails too, and the process has to be replaced.
    pub fn is_sticky(&self) -> bool {
        STICKY.contains(&self.code)
    }
}

/// Why a device cannot be used, in words for whoever chose it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no driver, or one too old for the runtime in this program.
    #[error("no NVIDIA driver for CUDA {needed} ({})", found_driver(.found))]
    NoDriver {
        /// The version of CUDA that this program was built with.
        needed: String,
        /// The newest that the installed driver knows; `None` without a driver.
        found: Option<String>,
    },
    /// There is a driver, and no device for it.
    #[error("the NVIDIA driver finds no GPU")]
    NoDevice,
    /// The ordinal counts past the last device.
    #[error("there is no GPU {ordinal}: this machine has {n_devices}, counted from 0")]
    OrdinalOutOfRange {
        /// What was asked for.
        ordinal: u32,
        /// How many there are.
        n_devices: u32,
    },
    /// The device is older than any kernel here supports.
    #[error("GPU {ordinal} ({name}) has compute capability {found}; {needed} or higher is needed")]
    ComputeCapabilityTooLow {
        /// Which device.
        ordinal: u32,
        /// Its name.
        name: String,
        /// What it has.
        found: ComputeCapability,
        /// What the kernels need.
        needed: ComputeCapability,
    },
    /// The kernels of this build were compiled for other devices.
    #[error("GPU {ordinal} ({name}) has compute capability {found}; this build has kernels for {built_for} only")]
    NoKernels {
        /// Which device.
        ordinal: u32,
        /// Its name.
        name: String,
        /// What it has.
        found: ComputeCapability,
        /// The architectures of the build, as CMake writes them.
        built_for: String,
    },
    /// Anything else.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

fn found_driver(found: &Option<String>) -> String {
    match found {
        Some(version) => format!("the installed one knows CUDA up to {version}"),
        None => "none is installed".to_owned(),
    }
}

impl OpenError {
    /// Whether this machine has no GPU that CUDA could use at all, so that running on the CPU instead surprises nobody.
    pub fn is_no_gpu(&self) -> bool {
        matches!(self, OpenError::NoDriver { .. } | OpenError::NoDevice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i32) -> CudaError {
        CudaError {
            code,
            name: "cudaErrorMemoryAllocation".into(),
            description: "out of memory".into(),
            call: "cudaMalloc(123 bytes)".into(),
            device: Some(1),
        }
    }

    #[test]
    fn names_the_call_the_device_and_the_error() {
        let text = "cudaMalloc(123 bytes) on device 1: cudaErrorMemoryAllocation (2): out of memory";
        assert_eq!(error(2).to_string(), text);
    }

    #[test]
    fn tells_what_passes_from_what_poisons_the_context() {
        assert!(error(2).is_out_of_memory() && !error(2).is_sticky());
        assert!(error(1).is_invalid_value() && !error(1).is_sticky());
        assert!(error(700).is_sticky() && error(719).is_sticky() && !error(700).is_out_of_memory());
    }

    #[test]
    fn says_in_plain_words_why_a_device_cannot_be_used() {
        let no_driver = OpenError::NoDriver { needed: "13.0".into(), found: None };
        assert_eq!(no_driver.to_string(), "no NVIDIA driver for CUDA 13.0 (none is installed)");
        let old = OpenError::NoDriver { needed: "13.0".into(), found: Some("12.4".into()) };
        assert_eq!(old.to_string(), "no NVIDIA driver for CUDA 13.0 (the installed one knows CUDA up to 12.4)");
        let range = OpenError::OrdinalOutOfRange { ordinal: 3, n_devices: 2 };
        assert_eq!(range.to_string(), "there is no GPU 3: this machine has 2, counted from 0");
        let low = OpenError::ComputeCapabilityTooLow {
            ordinal: 0,
            name: "Tesla T4".into(),
            found: ComputeCapability { major: 7, minor: 5 },
            needed: ComputeCapability { major: 8, minor: 0 },
        };
        assert_eq!(low.to_string(), "GPU 0 (Tesla T4) has compute capability 7.5; 8.0 or higher is needed");
        assert!(no_driver.is_no_gpu() && OpenError::NoDevice.is_no_gpu() && !low.is_no_gpu());
    }
}
