//! The real binary as a process: what a shell, an orchestrator and a client see of it.

mod access;
mod bench;
mod callback;
mod calls;
mod chat;
mod command_line;
mod faults;
mod generate;
mod harness;
mod inspect;
mod life;
mod models;
mod quantize;
mod scoring;
mod start_failures;
mod tokens;
