//! Faults on demand, so that what happens then can be tested on the whole process. Not part of a release build.
//!
//! `WORKER_TEST_FAULT=device-lost:20` fails the step after 20 more as a device does that is lost, `out-of-memory:20` as one
//! that has no room for this step and works on.

#[cfg(debug_assertions)]
pub(crate) use injected::injected;

/// The executor as it is.
#[cfg(not(debug_assertions))]
pub(crate) fn injected(executor: Box<dyn transformer::Executor>) -> Box<dyn transformer::Executor> {
    executor
}

#[cfg(debug_assertions)]
mod injected {
    use transformer::{Batch, Executor, ExecutorError, ExecutorInfo, MemoryUse, StepOutput};

    /// The executor, or one that fails where the environment says so.
    pub(crate) fn injected(executor: Box<dyn Executor>) -> Box<dyn Executor> {
        let Ok(fault) = std::env::var("WORKER_TEST_FAULT") else { return executor };
        let parsed = fault.split_once(':').and_then(|(what, after)| {
            let error = match what {
                "device-lost" => ExecutorError::DeviceLost("on demand".into()),
                "out-of-memory" => ExecutorError::OutOfMemory("on demand".into()),
                _ => return None,
            };
            Some((after.parse().ok()?, error))
        });
        let (after, error) = parsed.unwrap_or_else(|| panic!("WORKER_TEST_FAULT: {fault:?} is no fault"));
        tracing::warn!("a step will fail on demand: {fault}");
        Box::new(Failing { executor, after, error: Some(error) })
    }

    struct Failing {
        executor: Box<dyn Executor>,
        /// Steps until then.
        after: u64,
        error: Option<ExecutorError>,
    }

    impl Executor for Failing {
        fn info(&self) -> &ExecutorInfo {
            self.executor.info()
        }

        fn memory(&self) -> MemoryUse {
            self.executor.memory()
        }

        fn forward(&mut self, batch: &Batch) -> Result<StepOutput<'_>, ExecutorError> {
            match self.after.checked_sub(1) {
                Some(left) => self.after = left,
                None => {
                    if let Some(error) = self.error.take() {
                        return Err(error);
                    }
                }
            }
            self.executor.forward(batch)
        }
    }
}
