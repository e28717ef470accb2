//! The worker over a real socket, with a real tokenizer and a scripted executor.

mod answers;
mod bad_input;
mod jobs;
mod life;
mod log;
mod metrics;
mod openai;
mod worker;
