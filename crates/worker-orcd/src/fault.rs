//! Faults on demand, so that what happens then can be tested on the whole process. Not part of a release build, unless it was
//! made with the feature `fault-injection`.
//!
//! `WORKER_TEST_FAULT=device-lost:20` fails the step after 20 more as a device does that is lost, `out-of-memory:20` as one
//! that has no room for this step and works on. With the features `cuda` and `fault-injection`, `poison:20` really destroys the
//! GPU's context before that step, which then fails by itself.

#[cfg(any(debug_assertions, feature = "fault-injection"))]
pub(crate) use injected::{injected, is_asked_for};

/// The executor as it is.
#[cfg(not(any(debug_assertions, feature = "fault-injection")))]
pub(crate) fn injected(
    executor: Box<dyn transformer::Executor>,
    _: &crate::device::Device,
) -> Box<dyn transformer::Executor> {
    executor
}

/// Whether the environment asks for a fault.
#[cfg(not(any(debug_assertions, feature = "fault-injection")))]
pub(crate) fn is_asked_for() -> bool {
    false
}

#[cfg(any(debug_assertions, feature = "fault-injection"))]
mod injected {
    use transformer::{Batch, Executor, ExecutorError, ExecutorInfo, MemoryUse, StepOutput};

    use crate::device::Device;

    /// Whether the environment asks for a fault.
    pub(crate) fn is_asked_for() -> bool {
        std::env::var_os("WORKER_TEST_FAULT").is_some()
    }

    /// The executor, or one that fails where the environment says so.
    pub(crate) fn injected(executor: Box<dyn Executor>, device: &Device) -> Box<dyn Executor> {
        let Ok(text) = std::env::var("WORKER_TEST_FAULT") else { return executor };
        let parsed = |(what, after): (&str, &str)| Some((Fault::new(what, device)?, after.parse().ok()?));
        let (fault, after) = text
            .split_once(':')
            .and_then(parsed)
            .unwrap_or_else(|| panic!("WORKER_TEST_FAULT: {text:?} is no fault here"));
        tracing::warn!("a step will fail on demand: {text}");
        Box::new(Failing { executor, after, fault: Some(fault) })
    }

    enum Fault {
        /// What the step is said to have ended with.
        Error(ExecutorError),
        /// A real one, of this GPU.
        #[cfg(all(feature = "cuda", feature = "fault-injection"))]
        Poison(crate::gpu::Gpu),
    }

    impl Fault {
        fn new(what: &str, device: &Device) -> Option<Self> {
            match (what, device) {
                ("device-lost", _) => Some(Self::Error(ExecutorError::DeviceLost("on demand".into()))),
                ("out-of-memory", _) => Some(Self::Error(ExecutorError::OutOfMemory("on demand".into()))),
                #[cfg(all(feature = "cuda", feature = "fault-injection"))]
                ("poison", Device::Cuda(gpu)) => Some(Self::Poison(gpu.clone())),
                _ => None,
            }
        }
    }

    struct Failing {
        executor: Box<dyn Executor>,
        /// Steps until then.
        after: u64,
        fault: Option<Fault>,
    }

    impl Executor for Failing {
        fn info(&self) -> &ExecutorInfo {
            self.executor.info()
        }

        fn memory(&self) -> MemoryUse {
            self.executor.memory()
        }

        fn forward(&mut self, batch: &Batch) -> Result<StepOutput<'_>, ExecutorError> {
            let fault = match self.after.checked_sub(1) {
                Some(left) => {
                    self.after = left;
                    None
                }
                None => self.fault.take(),
            };
            match fault {
                Some(Fault::Error(error)) => return Err(error),
                #[cfg(all(feature = "cuda", feature = "fault-injection"))]
                Some(Fault::Poison(gpu)) => crate::gpu::poison(&gpu),
                None => {}
            }
            self.executor.forward(batch)
        }
    }
}
