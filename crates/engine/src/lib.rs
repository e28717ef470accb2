//! Requests to steps: continuous batching, KV blocks, sampling.
//!
//! An engine is one OS thread that owns an [`Executor`](transformer::Executor) and does one thing over and over: *plan* which
//! rows the next step has, *forward* them through the model, *commit* what the logits say. Other threads hold an
//! [`EngineHandle`]; they [`submit`](EngineHandle::submit) a [`Request`], read the [`Event`]s of their [`Job`], and look at a
//! [`Snapshot`]. Dropping a job cancels it before the next step.
//!
//! The nouns, and how they meet:
//!
//! - A *request* is token ids in; events with token ids come out. Text, stop strings and time limits are the caller's.
//! - The *scheduler* turns requests into steps. It is a state machine without threads, channels or clocks, so that random
//!   traces can drive it.
//! - A *sequence* is a request that was admitted: its tokens, its KV blocks, how far it has come.
//! - The *block pool* knows who holds which KV block and what is promised to whom. A request is admitted, first come, first
//!   served, when all blocks it may come to need can be promised; so there is no preemption, and nothing is computed twice.
//! - The *prefix index* finds blocks by content. Full blocks stay after their request has ended, until their space is needed;
//!   a later request with the same beginning, a chat's next turn for one, takes them over.
//! - The *sampler* chooses a token from a row of logits, with random numbers that are a function of seed and position. An
//!   executor that samples by itself does the same on its device; the engine then takes its choices as they are.
//! - A *constraint* says which tokens a request may be given next: structured output without a word of text. It is asked
//!   before each of its request's choices and told what was chosen.
//!
//! # What a request's tokens depend on
//!
//! On the model, the device, the request and its seed. Not on the other requests of a step, on how the prompt was cut into
//! chunks, or on what was found in the cache: `tests/same_bits.rs` compares tokens and log-probabilities bit by bit. The
//! engine's part in that is to share blocks only where the executor's [`roles_bit_equal`] or equal roles allow it, and to draw
//! by position; the executor's part is that a row's bits depend on its own sequence alone.
//!
//! # What the engine does not know
//!
//! Text, pointers, devices, HTTP, or what time it is: a clock is passed in. Timing shapes steps (a slow device gets shorter
//! ones while it streams) and never tokens.
//!
//! # Example
//!
//! ```
//! use std::time::Instant;
//!
//! use engine::{Engine, EngineConfig, Event, Request, Sampling};
//! use test_support::fake_executor::{FakeConfig, FakeExecutor};
//!
//! let (executor, control) = FakeExecutor::new(FakeConfig::default());
//! control.script(&[1, 2, 3], &[40, 41, 0]);
//!
//! let engine = Engine::start(Box::new(executor), EngineConfig::default(), Instant::now);
//! let mut job = engine.submit(Request {
//!     prompt: [1, 2, 3].into(),
//!     max_tokens: 100,
//!     end_tokens: [0].into(),
//!     sampling: Sampling { temperature: 0.7, ..Sampling::default() },
//!     logit_bias: Vec::new(),
//!     constraint: None,
//!     seed: 42,
//!     n_logprobs: None,
//!     n_prompt_logprobs: None,
//! })?;
//! let mut ids = Vec::new();
//! while let Some(event) = job.blocking_recv() {
//!     if let Event::Token(token) = event {
//!         ids.push(token.id);
//!     }
//! }
//! assert_eq!(ids, [40, 41]);
//!
//! engine.drain();
//! engine.join();
//! assert!(control.is_dropped());
//! # Ok::<(), engine::SubmitError>(())
//! ```
//!
//! [`roles_bit_equal`]: transformer::ExecutorInfo::roles_bit_equal

mod blocks;
mod constraint;
mod engine;
mod limits;
mod prefix;
mod request;
pub mod rng;
pub mod sampler;
mod scheduler;
mod sequence;
mod softmax;
mod thread;

pub use constraint::{Constraint, ConstraintError, Progress, TokenMask};
pub use engine::{Clock, Engine, EngineHandle, EngineState, Job, Snapshot};
pub use limits::{EngineConfig, MAX_BIAS, MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_PENALTY};
pub use request::{
    EndReason, Event, Failure, FailureKind, Finished, JobId, Logprob, Request, Sampling, SubmitError, Timings, Token,
    TokenLogprobs,
};
