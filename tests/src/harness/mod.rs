//! What a test needs around a worker: the process, the orchestrator it calls, a client, and readers for what it sends.

mod client;
mod metrics;
mod orchestrator;
mod sse;
mod worker;

pub use client::{Answer, Client, StreamedToken, TimedEvent};
pub use metrics::Metrics;
pub use orchestrator::Orchestrator;
pub use sse::{SseEvent, SseParser};
pub(crate) use worker::repository_root;
pub use worker::{Launch, Worker, WorkerBinary};
