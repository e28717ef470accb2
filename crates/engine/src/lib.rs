//! Requests to steps: continuous batching, KV blocks, sampling.

mod request;

pub use request::{
    EndReason, Event, Failure, FailureKind, Finished, JobId, Logprob, Request, Sampling, SubmitError, Timings, Token,
    TokenLogprobs,
};
