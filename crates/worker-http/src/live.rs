//! The live jobs by the names their clients gave them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Jobs from the moment on in which the queue has room for them, their prompts not encoded yet, to the terminal event. A job
/// that is refused only after that has its name meanwhile, and another of that name is refused because of it. Each belongs to
/// a connection, so the limit of those is the limit of these.
#[derive(Debug, Clone)]
pub(crate) struct LiveJobs {
    jobs: Arc<Mutex<HashMap<String, CancellationToken>>>,
    n_live: watch::Sender<usize>,
}

impl LiveJobs {
    pub(crate) fn new() -> Self {
        Self { jobs: Arc::default(), n_live: watch::Sender::new(0) }
    }

    /// Enters a job; `None` when a live one has this name.
    pub(crate) fn begin(&self, job_id: &str) -> Option<LiveJob> {
        let mut jobs = self.lock();
        if jobs.contains_key(job_id) {
            return None;
        }
        let cancel = CancellationToken::new();
        jobs.insert(job_id.to_string(), cancel.clone());
        self.n_live.send_replace(jobs.len());
        Some(LiveJob { live: self.clone(), job_id: job_id.to_string(), cancel })
    }

    /// Asks a job to end; false when there is none of this name.
    pub(crate) fn cancel(&self, job_id: &str) -> bool {
        self.lock().get(job_id).map(CancellationToken::cancel).is_some()
    }

    pub(crate) fn n_live(&self) -> usize {
        *self.n_live.borrow()
    }

    /// Returns once no job is live.
    pub(crate) async fn wait_until_idle(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.n_live.subscribe().wait_for(|&n| n == 0).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        // Nothing panics while it holds the lock, and a map is whole between any two of its calls.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job's place among the live ones; dropping it gives the name free.
#[derive(Debug)]
pub(crate) struct LiveJob {
    live: LiveJobs,
    job_id: String,
    cancel: CancellationToken,
}

impl LiveJob {
    pub(crate) fn job_id(&self) -> &str {
        &self.job_id
    }

    /// Returns once the job is asked to end.
    pub(crate) async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }
}

impl Drop for LiveJob {
    fn drop(&mut self) {
        let mut jobs = self.live.lock();
        jobs.remove(&self.job_id);
        self.live.n_live.send_replace(jobs.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_free_again_once_its_job_is_gone() {
        let live = LiveJobs::new();
        let job = live.begin("a").unwrap();
        assert!(live.begin("a").is_none());
        assert!(live.begin("b").is_some());
        drop(job);
        assert!(live.begin("a").is_some());
    }

    #[tokio::test]
    async fn cancel_reaches_the_job_it_names_and_no_other() {
        let live = LiveJobs::new();
        let (a, b) = (live.begin("a").unwrap(), live.begin("b").unwrap());
        assert!(live.cancel("a"));
        assert!(!live.cancel("c"));
        a.cancelled().await;
        assert!(!b.cancel.is_cancelled());
    }

    #[tokio::test]
    async fn is_idle_once_the_last_job_is_gone() {
        let live = LiveJobs::new();
        let job = live.begin("a").unwrap();
        let waiting = tokio::spawn({
            let live = live.clone();
            async move { live.wait_until_idle().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(job);
        waiting.await.unwrap();
    }
}
