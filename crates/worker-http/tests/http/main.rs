//! The worker over a real socket, with a real tokenizer and a scripted executor.

mod access;
mod answers;
mod bad_input;
mod errors;
mod jobs;
mod life;
mod limits;
mod llama;
mod log;
mod metrics;
mod openai;
mod page;
mod worker;
