//! The engine as its users see it, over an executor without a model.

use std::time::{Duration, Instant};

use engine::{
    EndReason, Engine, EngineConfig, EngineHandle, EngineState, Event, FailureKind, Job, Request, Sampling, SubmitError,
};
use test_support::fake_executor::{FakeConfig, FakeControl, FakeExecutor};
use transformer::{ExecutorError, TokenId};

fn start(fake: FakeConfig, config: EngineConfig) -> (EngineHandle, FakeControl) {
    let (executor, control) = FakeExecutor::new(fake);
    (Engine::start(Box::new(executor), config, Instant::now), control)
}

fn start_default() -> (EngineHandle, FakeControl) {
    start(FakeConfig::default(), EngineConfig::default())
}

fn greedy(prompt: &[TokenId], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.into(),
        max_tokens,
        end_tokens: [].into(),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        logit_bias: Vec::new(),
        constraint: None,
        seed: 1,
        n_logprobs: None,
        n_prompt_logprobs: None,
    }
}

fn all_events(mut job: Job) -> Vec<Event> {
    std::iter::from_fn(|| job.blocking_recv()).collect()
}

fn tokens(events: &[Event]) -> Vec<TokenId> {
    events.iter().filter_map(|e| if let Event::Token(t) = e { Some(t.id) } else { None }).collect()
}

fn failure(events: &[Event]) -> FailureKind {
    match events.last() {
        Some(Event::Failed(failure)) => failure.kind,
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[test]
fn streams_a_scripted_answer_up_to_its_end_token() {
    let (engine, control) = start_default();
    control.script(&[1, 2, 3], &[10, 11, 12, 7]);
    let events = all_events(engine.submit(Request { end_tokens: [7].into(), ..greedy(&[1, 2, 3], 100) }).unwrap());
    assert_eq!(events[0], Event::Admitted { n_cached: 0 });
    assert_eq!(tokens(&events), [10, 11, 12]);
    let Some(Event::Finished(finished)) = events.last() else { panic!("{events:?}") };
    assert_eq!((finished.reason, finished.n_generated), (EndReason::EndToken(7), 3));
    let snapshot = engine.snapshot();
    assert_eq!((snapshot.prompt_tokens_total, snapshot.generation_tokens_total), (3, 3));
    assert_eq!((snapshot.running, snapshot.waiting, snapshot.kv_blocks_used), (0, 0, 0));
}

#[test]
fn a_held_step_can_be_watched_and_cancelled() {
    let (engine, control) = start_default();
    control.hold_after(1);
    let mut job = engine.submit(greedy(&[1], 10)).unwrap();
    assert!(matches!(job.blocking_recv(), Some(Event::Admitted { .. })));
    assert!(matches!(job.blocking_recv(), Some(Event::Token(_))));
    control.wait_until_held();
    assert_eq!(engine.snapshot().running, 1);
    engine.cancel(job.id());
    engine.cancel(job.id());
    control.release();
    let rest = all_events(job);
    assert_eq!(failure(&rest), FailureKind::Cancelled);
    assert!(tokens(&rest).len() <= 1, "ends within one step");
}

#[test]
fn a_dropped_job_frees_its_place_whether_it_runs_or_waits() {
    let (engine, control) =
        start(FakeConfig::default(), EngineConfig { max_seqs: 1, queue_limit: 1, ..Default::default() });
    control.hold_after(0);
    let running = engine.submit(greedy(&[1], 100)).unwrap();
    control.wait_until_held();
    let waiting = engine.submit(greedy(&[2], 100)).unwrap();
    assert_eq!(engine.submit(greedy(&[3], 1)).unwrap_err(), SubmitError::QueueFull { waiting: 1, limit: 1 });
    drop(waiting);
    drop(running);
    control.release();
    let end = Instant::now() + Duration::from_secs(10);
    while engine.snapshot().running + engine.snapshot().waiting > 0 {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    assert!(control.n_steps() <= 2);
    assert_eq!(tokens(&all_events(engine.submit(greedy(&[3], 1)).unwrap())).len(), 1);
}

#[test]
fn a_dropped_job_makes_room_before_the_step_it_is_in_is_over() {
    let (engine, control) =
        start(FakeConfig::default(), EngineConfig { max_seqs: 2, queue_limit: 0, ..Default::default() });
    control.hold_after(0);
    let jobs = [1, 2].map(|token| engine.submit(greedy(&[token], 100)).unwrap());
    control.wait_until_held();
    assert!(matches!(engine.submit(greedy(&[3], 1)), Err(SubmitError::QueueFull { .. })));
    drop(jobs);
    let next = [3, 4].map(|token| engine.submit(greedy(&[token], 1)).unwrap());
    // What is held while the device is busy stays bounded, however often somebody comes and goes.
    drop(next);
    assert!(matches!(engine.submit(greedy(&[5], 1)), Err(SubmitError::QueueFull { .. })));
    control.release();
    let end = Instant::now() + Duration::from_secs(10);
    while engine.snapshot().running + engine.snapshot().waiting > 0 {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    assert_eq!(tokens(&all_events(engine.submit(greedy(&[6], 3)).unwrap())).len(), 3);
}

#[test]
fn requests_submitted_together_are_taken_together_or_not_at_all() {
    let (engine, control) =
        start(FakeConfig::default(), EngineConfig { max_seqs: 2, queue_limit: 1, ..Default::default() });
    control.hold_after(0);
    let held = engine.submit(greedy(&[1], 1)).unwrap();
    let several = |n| (0..n).map(|i| greedy(&[i], 1)).collect::<Vec<_>>();
    assert_eq!(engine.submit_all(several(3)).unwrap_err(), SubmitError::QueueFull { waiting: 0, limit: 1 });
    assert_eq!(engine.submit_all(several(4)).unwrap_err(), SubmitError::TooMany { n_requests: 4, limit: 3 });
    let with_a_bad_one = vec![greedy(&[1], 1), greedy(&[], 1)];
    assert!(matches!(engine.submit_all(with_a_bad_one).unwrap_err(), SubmitError::Invalid(_)));
    assert_eq!(engine.snapshot().waiting + engine.snapshot().running, 1, "nothing is left of what was refused");
    let jobs = engine.submit_all(several(2)).unwrap();
    control.release();
    for job in jobs.into_iter().chain([held]) {
        assert_eq!(tokens(&all_events(job)).len(), 1);
    }
}

#[test]
fn a_step_out_of_memory_fails_its_requests_and_no_others() {
    let (engine, control) = start_default();
    control.fail_after(1, ExecutorError::OutOfMemory("no room".into()));
    assert_eq!(failure(&all_events(engine.submit(greedy(&[1; 40], 9)).unwrap())), FailureKind::OutOfMemory);
    let events = all_events(engine.submit(greedy(&[1; 40], 9)).unwrap());
    assert_eq!(tokens(&events).len(), 9);
    assert_eq!(control.n_violations(), 0);
}

#[test]
fn a_lost_device_ends_everything_and_is_reported() {
    let (engine, control) = start_default();
    control.fail_after(0, ExecutorError::DeviceLost("gone".into()));
    assert_eq!(failure(&all_events(engine.submit(greedy(&[1], 9)).unwrap())), FailureKind::DeviceLost);
    engine.join();
    assert!(control.is_dropped());
    assert_eq!(engine.snapshot().state, EngineState::Failed);
    assert_eq!(engine.snapshot().failure.as_deref(), Some("device failed: gone"));
    assert_eq!(engine.submit(greedy(&[1], 9)).unwrap_err(), SubmitError::NotAccepting("failed"));
}

#[test]
fn a_panic_in_the_executor_ends_every_request() {
    let (engine, control) = start(FakeConfig::default(), EngineConfig { max_seqs: 1, ..Default::default() });
    control.hold_after(0);
    control.panic_after(0, "boom");
    let jobs = [greedy(&[1], 9), greedy(&[2], 9)].map(|r| engine.submit(r).unwrap());
    control.release();
    for job in jobs {
        let events = all_events(job);
        assert_eq!(failure(&events), FailureKind::Internal);
    }
    engine.join();
    assert_eq!(engine.snapshot().failure.as_deref(), Some("the engine's thread panicked: boom"));
}

#[test]
fn a_row_of_nan_fails_its_request_only() {
    let (engine, control) = start_default();
    control.nan_after(1);
    assert_eq!(failure(&all_events(engine.submit(greedy(&[1], 9)).unwrap())), FailureKind::Internal);
    assert_eq!(tokens(&all_events(engine.submit(greedy(&[1], 9)).unwrap())).len(), 9);
}

#[test]
fn drains_by_finishing_what_it_has() {
    let (engine, control) = start_default();
    control.hold_after(1);
    let job = engine.submit(greedy(&[1], 20)).unwrap();
    control.wait_until_held();
    engine.drain();
    assert_eq!(engine.snapshot().state, EngineState::Draining);
    assert_eq!(engine.submit(greedy(&[1], 1)).unwrap_err(), SubmitError::NotAccepting("draining"));
    control.release();
    assert_eq!(tokens(&all_events(job)).len(), 20);
    engine.join();
    assert!(control.is_dropped());
    assert_eq!(engine.snapshot().state, EngineState::Stopped);
    assert_eq!(engine.snapshot().memory.total_bytes(), 0);
}

#[test]
fn a_deadline_cuts_off_what_is_still_running() {
    let (engine, control) = start_default();
    control.hold_after(1);
    let job = engine.submit(greedy(&[1], 400)).unwrap();
    control.wait_until_held();
    engine.stop(Instant::now());
    control.release();
    assert_eq!(failure(&all_events(job)), FailureKind::ShuttingDown);
    engine.join();
}

#[test]
fn ends_when_its_last_handle_and_job_are_gone() {
    let (engine, control) = start_default();
    let job = engine.submit(greedy(&[1], 5)).unwrap();
    drop(engine);
    assert_eq!(tokens(&all_events(job)).len(), 5);
    let end = Instant::now() + Duration::from_secs(10);
    while !control.is_dropped() {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
}

#[test]
fn a_request_cancelled_or_dropped_while_it_waits_never_runs() {
    let (engine, control) = start(FakeConfig::default(), EngineConfig { max_seqs: 1, ..Default::default() });
    control.hold_after(0);
    let first = engine.submit(greedy(&[1], 3)).unwrap();
    control.wait_until_held();
    let cancelled = engine.submit(greedy(&[2], 3)).unwrap();
    drop(engine.submit(greedy(&[3], 3)).unwrap());
    engine.cancel(cancelled.id());
    control.release();
    let events = all_events(cancelled);
    assert!(matches!(&events[..], [Event::Failed(f)] if f.kind == FailureKind::Cancelled), "{events:?}");
    assert_eq!(tokens(&all_events(first)).len(), 3);
    engine.drain();
    engine.join();
    assert_eq!(control.n_steps(), 3, "only the first request had steps");
}

#[test]
fn threads_that_submit_cancel_and_leave_at_random_disturb_nobody() {
    const N_THREADS: u32 = 4;
    const N_JOBS: u32 = 100;
    let (engine, control) = start(
        FakeConfig { n_blocks: 24, ..FakeConfig::default() },
        EngineConfig { max_seqs: 3, queue_limit: N_THREADS as usize, ..Default::default() },
    );
    let expected = |start: TokenId| tokens(&all_events(start_default().0.submit(greedy(&[start; 20], 6)).unwrap()));
    let expected: Vec<_> = (0..4).map(expected).collect();
    std::thread::scope(|scope| {
        for thread in 0..N_THREADS {
            let (engine, expected) = (engine.clone(), &expected);
            scope.spawn(move || {
                for i in 0..N_JOBS {
                    let kind = (i * 7 + thread * 3) % 4;
                    let mut job = engine.submit(greedy(&[kind; 20], 6)).expect("four threads fit in the queue");
                    match (i + thread) % 3 {
                        0 => assert_eq!(tokens(&all_events(job)), expected[kind as usize]),
                        1 => {
                            engine.cancel(job.id());
                            let events = all_events(job);
                            assert_eq!(events.iter().filter(|e| e.is_last()).count(), 1);
                            assert!(expected[kind as usize].starts_with(&tokens(&events)));
                        }
                        _ => drop(job.blocking_recv()),
                    }
                    // A job that was left is gone once the engine has seen it; the queue has room for that many.
                    while engine.snapshot().waiting > 0 {
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    engine.drain();
    engine.join();
    let snapshot = engine.snapshot();
    assert_eq!((snapshot.running, snapshot.waiting, snapshot.kv_blocks_used), (0, 0, 0));
    assert_eq!(control.n_violations(), 0);
}
