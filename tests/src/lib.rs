//! The worker as its users meet it: a process of its own, reached over HTTP and judged by what it sends.
//!
//! Nothing here links the worker. [`harness`] starts the binary, receives its ready callback, speaks to its routes and
//! reads its metrics; [`haiku`] is the end-to-end run of `cargo xtask e2e-haiku` and of the test
//! `haiku_generation_anti_cheat`, one and the same code; [`storm`] is many jobs at a time, half of them broken
//! off; [`soak`] is load of every kind for a while (`cargo xtask soak`). What a run finds is written down before any of it
//! is judged, so that a failure leaves evidence and not only a message.

pub mod haiku;
pub mod harness;
pub mod soak;
pub mod storm;
