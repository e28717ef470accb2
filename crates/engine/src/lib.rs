//! Requests to steps: continuous batching, KV blocks, sampling.

mod blocks;
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

pub use engine::{Clock, Engine, EngineHandle, EngineState, Job, Snapshot};
pub use limits::{EngineConfig, MAX_LOGPROBS};
pub use request::{
    EndReason, Event, Failure, FailureKind, Finished, JobId, Logprob, Request, Sampling, SubmitError, Timings, Token,
    TokenLogprobs,
};
