//! The engine's thread: owner of scheduler and executor, one step after the other.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use transformer::{Executor, ExecutorError, MemoryUse};

use crate::constraint::panic_text;
use crate::engine::{Command, EngineState, Shared};
use crate::request::{Event, Failure, FailureKind, JobId};
use crate::scheduler::{Events, Scheduler};

/// How often the executor is asked what it holds: on a GPU that is a call into the driver.
const MEMORY_SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Serves until drained or failed, then drops the executor.
pub(crate) fn run(mut executor: Box<dyn Executor>, shared: &Shared) {
    let mut outlet = Outlet::default();
    let outcome = catch_unwind(AssertUnwindSafe(|| serve(executor.as_mut(), shared, &mut outlet)));
    let failure = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(lost)) => Some(lost),
        Err(panic) => Some(Failure {
            kind: FailureKind::Internal,
            message: format!("the engine's thread panicked: {}", panic_text(panic.as_ref())),
        }),
    };
    if let Some(failure) = failure {
        tracing::error!(message = failure.message, "the engine has failed");
        outlet.fail_everything(&failure, shared);
    }
    // An executor that has panicked may panic again.
    if catch_unwind(AssertUnwindSafe(|| drop(executor))).is_err() {
        tracing::error!("the executor panicked while it was dropped");
    }
    let mut inner = shared.lock();
    if inner.snapshot.state != EngineState::Failed {
        inner.snapshot.state = EngineState::Stopped;
    }
    inner.snapshot.memory = MemoryUse::default();
    inner.has_ended = true;
    shared.ended.notify_all();
}

/// Plan, forward, commit, until an engine that drains has nothing left to do.
///
/// # Errors
/// The device is lost.
fn serve(executor: &mut dyn Executor, shared: &Shared, outlet: &mut Outlet) -> Result<(), Failure> {
    let clock = shared.clock;
    let mut scheduler = Scheduler::new(shared.limits.clone());
    let mut next_memory_sample = clock();
    while take_commands(&mut scheduler, shared, outlet) {
        let has_work = scheduler.plan(clock(), &mut outlet.events);
        outlet.flush(&scheduler, None, shared);
        if !has_work {
            continue;
        }
        match executor.forward(scheduler.batch()) {
            Ok(output) => scheduler.commit(output, clock(), &mut outlet.events),
            Err(ExecutorError::DeviceLost(message)) => {
                let message = ExecutorError::DeviceLost(message).to_string();
                return Err(Failure { kind: FailureKind::DeviceLost, message });
            }
            Err(error) => {
                tracing::warn!(%error, "a step failed; the requests in it end");
                scheduler.fail_step(&error, &mut outlet.events);
            }
        }
        let now = clock();
        let memory = (now >= next_memory_sample || scheduler.is_idle()).then(|| executor.memory());
        if memory.is_some() {
            next_memory_sample = now + MEMORY_SAMPLE_INTERVAL;
        }
        outlet.flush(&scheduler, memory, shared);
    }
    Ok(())
}

/// Waits while there is nothing to do, then hands the scheduler what was asked of the engine. False when it is to end.
fn take_commands(scheduler: &mut Scheduler, shared: &Shared, outlet: &mut Outlet) -> bool {
    let mut inner = shared.lock();
    while inner.commands.is_empty() && scheduler.is_idle() {
        if inner.snapshot.state != EngineState::Ready {
            return false;
        }
        inner = shared.to_engine.wait(inner).unwrap_or_else(PoisonError::into_inner);
    }
    std::mem::swap(&mut inner.commands, &mut outlet.commands);
    outlet.n_left = inner.n_leaving;
    let deadline = inner.deadline;
    drop(inner);
    for command in outlet.commands.drain(..) {
        match command {
            Command::Submit { id, request, submitted, events } => {
                outlet.senders.insert(id, events);
                scheduler.submit(id, request, submitted);
            }
            Command::Cancel(id) => scheduler.cancel(id, &mut outlet.events),
        }
    }
    if deadline.is_some_and(|deadline| (shared.clock)() >= deadline) {
        scheduler.fail_all(FailureKind::ShuttingDown, "the worker is shutting down", &mut outlet.events);
    }
    true
}

/// The way from the scheduler to the clients.
#[derive(Debug, Default)]
struct Outlet {
    /// Commands taken and not handed over yet; a buffer that is used again.
    commands: Vec<Command>,
    /// How many of these are of dropped jobs; `Inner::n_leaving` counts them until they are ended.
    n_left: usize,
    /// Events not sent yet.
    events: Events,
    /// Of every live request.
    senders: HashMap<JobId, UnboundedSender<Event>>,
}

impl Outlet {
    /// Publishes the figures, then sends the events: whoever has read a request's last event finds it counted, and its
    /// place free.
    fn flush(&mut self, scheduler: &Scheduler, memory: Option<MemoryUse>, shared: &Shared) {
        let totals = scheduler.totals();
        let mut inner = shared.lock();
        inner.n_live -= self.events.iter().filter(|(_, event)| event.is_last()).count();
        inner.n_leaving -= std::mem::take(&mut self.n_left);
        let snapshot = &mut inner.snapshot;
        snapshot.running = scheduler.n_running();
        snapshot.kv_blocks_used = scheduler.pool().n_used();
        snapshot.kv_blocks_cached = scheduler.pool().n_idle();
        snapshot.prompt_tokens_total = totals.prompt_tokens;
        snapshot.cached_tokens_total = totals.cached_tokens;
        snapshot.generation_tokens_total = totals.generation_tokens;
        snapshot.steps_total = totals.steps;
        snapshot.memory = memory.unwrap_or(snapshot.memory);
        drop(inner);
        self.send();
    }

    fn send(&mut self) {
        for (id, event) in self.events.drain(..) {
            let is_last = event.is_last();
            if let Some(sender) = self.senders.get(&id) {
                // Fails when the job was dropped; its cancellation is then on its way.
                let _ = sender.send(event);
            }
            if is_last {
                self.senders.remove(&id);
            }
        }
    }

    /// Ends every request that has not ended, those too that the engine's thread has not seen yet.
    fn fail_everything(&mut self, failure: &Failure, shared: &Shared) {
        let mut inner = shared.lock();
        inner.snapshot.state = EngineState::Failed;
        inner.snapshot.failure = Some(failure.message.clone());
        inner.snapshot.running = 0;
        inner.snapshot.kv_blocks_used = 0;
        inner.snapshot.kv_blocks_cached = 0;
        inner.n_live = 0;
        self.commands.append(&mut inner.commands);
        drop(inner);
        self.send();
        let unseen = self.commands.drain(..).filter_map(|command| match command {
            Command::Submit { events, .. } => Some(events),
            Command::Cancel(_) => None,
        });
        for sender in self.senders.drain().map(|(_, sender)| sender).chain(unseen) {
            let _ = sender.send(Event::Failed(failure.clone()));
        }
    }
}
