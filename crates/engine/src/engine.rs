//! The engine as other threads see it: a handle to submit to, a job to read from, a snapshot to look at.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use transformer::{Executor, ExecutorInfo, MemoryUse};

use crate::limits::{EngineConfig, Limits};
use crate::request::{Event, JobId, Request, SubmitError};
use crate::thread;

/// Tells the time: `Instant::now`, or what a test wants it to be.
pub type Clock = fn() -> Instant;

/// Starts engines; see [`Engine::start`].
#[derive(Debug)]
pub struct Engine;

impl Engine {
    /// Moves `executor` onto a new OS thread called `engine` and starts to serve.
    ///
    /// The engine runs until [`EngineHandle::drain`] or [`EngineHandle::stop`], or until all its handles are gone and its
    /// jobs have ended. The executor, and with it all device memory, is dropped on the engine's thread before that ends.
    ///
    /// # Panics
    /// If the operating system gives no thread.
    pub fn start(executor: Box<dyn Executor>, config: EngineConfig, clock: Clock) -> EngineHandle {
        let info = Arc::new(executor.info().clone());
        let limits = Limits::new(&info, &config);
        let snapshot = Snapshot {
            state: EngineState::Ready,
            failure: None,
            running: 0,
            waiting: 0,
            kv_blocks_used: 0,
            kv_blocks_cached: 0,
            kv_blocks_total: limits.n_blocks,
            prompt_tokens_total: 0,
            cached_tokens_total: 0,
            generation_tokens_total: 0,
            steps_total: 0,
            memory: executor.memory(),
            info,
        };
        let inner = Inner { commands: Vec::new(), n_live: 0, n_leaving: 0, deadline: None, has_ended: false, snapshot };
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            to_engine: Condvar::new(),
            ended: Condvar::new(),
            limits,
            clock,
            last_id: AtomicU64::new(0),
        });
        let for_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || thread::run(executor, &for_thread))
            .expect("the operating system gives a thread for the engine");
        EngineHandle { owner: Arc::new(Owner { shared }) }
    }
}

/// What the engine is doing as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineState {
    /// It takes requests.
    Ready,
    /// It takes no new requests; those it has go on.
    Draining,
    /// The device or the worker's own code failed; every request was ended. [`Snapshot::failure`] says how.
    Failed,
    /// It was drained; its thread and its device memory are gone.
    Stopped,
}

impl EngineState {
    /// For messages: `draining`.
    pub fn name(self) -> &'static str {
        match self {
            EngineState::Ready => "ready",
            EngineState::Draining => "draining",
            EngineState::Failed => "failed",
            EngineState::Stopped => "stopped",
        }
    }
}

/// The engine at one moment. Figures are those after its last step; `state` and `waiting` are up to date.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// What the engine is doing.
    pub state: EngineState,
    /// Why it failed.
    pub failure: Option<String>,
    /// Requests being answered.
    pub running: usize,
    /// Requests that wait for a place.
    pub waiting: usize,
    /// KV blocks held by, or promised to, requests being answered.
    pub kv_blocks_used: usize,
    /// KV blocks nobody uses whose content is kept for reuse.
    pub kv_blocks_cached: usize,
    /// KV blocks in the pool.
    pub kv_blocks_total: usize,
    /// Prompt tokens read since the start, cached ones included. A prompt counts when its first token is chosen, or, where none
    /// is wanted, when it has been read.
    pub prompt_tokens_total: u64,
    /// Of these, the ones found in the cache.
    pub cached_tokens_total: u64,
    /// Tokens generated since the start, end tokens not counted.
    pub generation_tokens_total: u64,
    /// Steps since the start.
    pub steps_total: u64,
    /// What the executor held when last asked; nothing once it is gone.
    pub memory: MemoryUse,
    /// What the executor is.
    pub info: Arc<ExecutorInfo>,
}

/// What other threads ask of the engine's.
#[derive(Debug)]
pub(crate) enum Command {
    Submit { id: JobId, request: Request, submitted: Instant, events: UnboundedSender<Event> },
    Cancel(JobId),
}

/// Guarded by [`Shared::inner`].
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) commands: Vec<Command>,
    /// Requests accepted whose last event is not sent yet.
    pub(crate) n_live: usize,
    /// Of these, the ones whose job was dropped: the engine ends them before its next step.
    pub(crate) n_leaving: usize,
    /// When to cut off what is still running.
    pub(crate) deadline: Option<Instant>,
    /// The thread is done and the executor gone.
    pub(crate) has_ended: bool,
    pub(crate) snapshot: Snapshot,
}

/// What the engine's thread and everybody else share.
#[derive(Debug)]
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    /// Commands or a change of state for the engine's thread.
    pub(crate) to_engine: Condvar,
    /// `has_ended` was set.
    pub(crate) ended: Condvar,
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    last_id: AtomicU64,
}

impl Shared {
    /// No code that can panic runs under the lock, so a poisoned one is sound.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cancel(&self, id: JobId, is_dropped: bool) {
        let mut inner = self.lock();
        if !inner.has_ended {
            inner.n_leaving += usize::from(is_dropped);
            inner.commands.push(Command::Cancel(id));
            self.to_engine.notify_one();
        }
    }

    fn drain(&self, deadline: Option<Instant>) {
        let mut inner = self.lock();
        if inner.snapshot.state == EngineState::Ready {
            inner.snapshot.state = EngineState::Draining;
        }
        inner.deadline = [inner.deadline, deadline].into_iter().flatten().min();
        self.to_engine.notify_one();
    }
}

impl Limits {
    fn room_for(&self, inner: &Inner, n_requests: usize) -> Result<(), SubmitError> {
        let most = self.max_seqs + self.queue_limit;
        if n_requests > most {
            return Err(SubmitError::TooMany { n_requests, limit: most });
        }
        if inner.snapshot.state != EngineState::Ready {
            return Err(SubmitError::NotAccepting(inner.snapshot.state.name()));
        }
        let n_live = inner.n_live.saturating_sub(inner.n_leaving.min(self.max_seqs));
        if n_live + n_requests > most {
            let waiting = n_live.saturating_sub(self.max_seqs);
            return Err(SubmitError::QueueFull { waiting, limit: self.queue_limit });
        }
        Ok(())
    }
}

/// Its end is the end of the last handle.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.drain(None);
    }
}

/// A running engine. Clones are the same engine; when the last is dropped, it drains.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    owner: Arc<Owner>,
}

impl EngineHandle {
    /// Puts a request in the queue.
    ///
    /// # Errors
    /// At once, without asking the engine's thread: a request that breaks a rule of [`Request`], that could never fit, or
    /// for which the queue has no place. The queue is full when `max_seqs + queue_limit` requests are live. Up to `max_seqs`
    /// whose jobs were dropped no longer count, although the engine ends them only after the step that it is in.
    pub fn submit(&self, request: Request) -> Result<Job, SubmitError> {
        let mut jobs = self.submit_all(vec![request])?;
        Ok(jobs.pop().expect("as many jobs as requests"))
    }

    /// Puts several requests in the queue, one behind the other with nobody's in between: all of them or, if one is
    /// refused, none.
    ///
    /// # Errors
    /// As for [`EngineHandle::submit`], and [`SubmitError::TooMany`].
    pub fn submit_all(&self, requests: Vec<Request>) -> Result<Vec<Job>, SubmitError> {
        let shared = &self.owner.shared;
        let limits = &shared.limits;
        requests.iter().try_for_each(|request| limits.check(request))?;
        let submitted = (shared.clock)();
        let mut inner = shared.lock();
        limits.room_for(&inner, requests.len())?;
        inner.n_live += requests.len();
        let jobs = requests.into_iter().map(|request| {
            let id = JobId(shared.last_id.fetch_add(1, Ordering::Relaxed) + 1);
            let (events, receiver) = unbounded_channel();
            inner.commands.push(Command::Submit { id, request, submitted, events });
            Job { id, events: receiver, shared: Arc::clone(shared), has_ended: false }
        });
        let jobs = jobs.collect();
        shared.to_engine.notify_one();
        Ok(jobs)
    }

    /// Whether so many more requests would find places now; somebody else may have them by the time they are submitted.
    ///
    /// # Errors
    /// [`SubmitError::TooMany`], [`SubmitError::NotAccepting`] or [`SubmitError::QueueFull`], as for
    /// [`EngineHandle::submit_all`].
    pub fn room_for(&self, n_requests: usize) -> Result<(), SubmitError> {
        let shared = &self.owner.shared;
        shared.limits.room_for(&shared.lock(), n_requests)
    }

    /// Ends a request before the engine's next step, with [`crate::FailureKind::Cancelled`]. Any number of times; ids of
    /// requests that have ended, or never were, are ignored.
    pub fn cancel(&self, id: JobId) {
        self.owner.shared.cancel(id, false);
    }

    /// The engine at this moment. Cheap: a short lock and a copy.
    pub fn snapshot(&self) -> Snapshot {
        let inner = self.owner.shared.lock();
        let mut snapshot = inner.snapshot.clone();
        snapshot.waiting = inner.n_live.saturating_sub(snapshot.running);
        snapshot
    }

    /// Takes no new requests; the engine ends when those it has have ended.
    pub fn drain(&self) {
        self.owner.shared.drain(None);
    }

    /// Drains, and ends what is still there at `deadline` (by the engine's clock, looked at between steps) with
    /// [`crate::FailureKind::ShuttingDown`].
    pub fn stop(&self, deadline: Instant) {
        self.owner.shared.drain(Some(deadline));
    }

    /// Waits until the engine's thread has dropped the executor and is done: after [`EngineHandle::drain`],
    /// [`EngineHandle::stop`] or a failure. Blocks; an asynchronous caller wants `spawn_blocking`.
    pub fn join(&self) {
        let shared = &self.owner.shared;
        let mut inner = shared.lock();
        while !inner.has_ended {
            inner = shared.ended.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// One submitted request, for the one who reads its answer. Dropping it cancels the request before the next step.
///
/// At most `max_tokens + 2` events ever wait in it, and one for each token of a prompt that is scored, so that a reader who is
/// slow, or has stopped, never holds up a step.
#[derive(Debug)]
pub struct Job {
    id: JobId,
    events: UnboundedReceiver<Event>,
    shared: Arc<Shared>,
    has_ended: bool,
}

impl Job {
    /// For [`EngineHandle::cancel`].
    pub fn id(&self) -> JobId {
        self.id
    }

    /// The next event; `None` after the last.
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub async fn recv(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        self.note(event)
    }

    /// [`Job::recv`] for a thread of its own.
    ///
    /// # Panics
    /// Within an asynchronous runtime.
    pub fn blocking_recv(&mut self) -> Option<Event> {
        let event = self.events.blocking_recv();
        self.note(event)
    }

    /// The next event if there is one now.
    ///
    /// # Errors
    /// Whether there is none yet or none any more.
    pub fn try_recv(&mut self) -> Result<Event, TryRecvError> {
        let event = self.events.try_recv()?;
        Ok(self.note(Some(event)).expect("passes the event on"))
    }

    fn note(&mut self, event: Option<Event>) -> Option<Event> {
        self.has_ended |= event.as_ref().is_none_or(Event::is_last);
        event
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.has_ended {
            self.shared.cancel(self.id, true);
        }
    }
}
