//! What an answer may be made of: JSON schemas, regular expressions, grammars and tools, made into an engine's constraint;
//! and the calls that a model writes, found again in its text.
//!
//! The engine knows ids and no text, the routes know HTTP and no grammars: this crate stands between them. Parsing grammars
//! and saying which tokens may follow is the work of `llguidance`.
//!
//! - A [`Shape`] is what is asked for. [`Grammars`] is the vocabulary as a trie; it is made once for a tokenizer, and
//!   [`Grammars::compile`] makes a [`Compiled`] of a shape, which has a constraint of its own for each answer.
//! - [`Tool`]s are functions that the model may call. [`Shape::Calls`] makes it call, [`Shape::TextAndCalls`] leaves it the
//!   choice and holds it to the tools where it calls; [`CallParser`] takes an answer's text apart into text and calls, as it
//!   comes.
//!
//! # Limits
//! A shape comes from a request and is not trusted: its length and depth are limited here ([`MAX_SHAPE_BYTES`],
//! [`MAX_DEPTH`]), its automata by `llguidance`, in states and in the work of one mask. An answer whose grammar turns out
//! too complex on the way fails alone.

mod call_parser;
mod compile;
mod constraint;
mod gbnf;
mod schema;
mod tools;

pub use call_parser::{CallParser, Piece};
pub use compile::{Compiled, Grammars, MAX_DEPTH, MAX_SHAPE_BYTES, Shape, ShapeError};
pub use tools::{Call, CallForm, Tool, hidden_tags};
