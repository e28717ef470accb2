//! What is known of a device and of its memory.

use std::fmt;

/// Which instructions a device has. Ordered: 9.0 is above 8.9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComputeCapability {
    /// The generation: 8 for Ampere and Ada, 9 for Hopper.
    pub major: u32,
    /// The step within it.
    pub minor: u32,
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What does not change while the process lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// As the driver calls it: `NVIDIA H200`.
    pub name: String,
    /// Its instructions.
    pub compute_capability: ComputeCapability,
    /// Streaming multiprocessors.
    pub n_sms: u32,
    /// Size of the second-level cache.
    pub l2_bytes: u64,
    /// The most shared memory that one block can ask for.
    pub max_shared_bytes: u32,
    /// All memory on the device.
    pub total_bytes: u64,
}

/// A device's memory at one moment, other processes' use included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// What an allocation could still get.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

impl MemoryInfo {
    /// What is in use, by anyone.
    pub fn used(&self) -> u64 {
        self.total.saturating_sub(self.free)
    }
}

/// Where memory lies, as CUDA says of a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// Memory that CUDA does not know.
    Unregistered,
    /// Pinned memory of the host, which a kernel would read over the bus.
    Host,
    /// Memory on the device.
    Device,
    /// Memory that moves between the two when touched.
    Managed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_ordered_by_generation_first() {
        let at = |major, minor| ComputeCapability { major, minor };
        assert!(at(7, 5) < at(8, 0) && at(8, 9) < at(9, 0) && at(9, 0) < at(10, 0));
        assert_eq!(at(8, 6).to_string(), "8.6");
    }

    #[test]
    fn used_memory_never_underflows() {
        assert_eq!(MemoryInfo { free: 30, total: 100 }.used(), 70);
        assert_eq!(MemoryInfo { free: 101, total: 100 }.used(), 0);
    }
}
