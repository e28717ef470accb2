//! From a shape to a constraint: the vocabulary as a trie, limits, and the place of a fault.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::Constraint;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;
use tokenizer::{TokenId, TokenType, Tokenizer};

use crate::constraint::GrammarConstraint;
use crate::tools::{self, CallForm, Tool};
use crate::{gbnf, schema};

/// The longest schema, expression or grammar, in bytes. Of several tools: all of them together.
pub const MAX_SHAPE_BYTES: usize = 64 << 10;
/// How deep a schema's values or an expression's brackets may be nested. Grammars may be less deep.
pub const MAX_DEPTH: usize = 64;
/// The most strings to choose from.
const MAX_CHOICES: usize = 1024;
/// The longest token that the trie can hold has twice as many bytes. Longer ones are never chosen under a constraint.
const MAX_TOKEN_BYTES: usize = 512;
/// The most states of the automaton that finds lexemes, in one answer: 20 to 40 MB, at the 1 to 2 kB that `llguidance` says a
/// state takes. Each answer has its own, so that 64 of them stay below 3 GB.
const MAX_LEXER_STATES: usize = 20_000;
/// The stack of the thread that compiles: what parses grammars there goes down into them by recursion.
const STACK_BYTES: usize = 256 << 20;
/// The longest that the part or the tool is looked for which makes a shape fail; each try is another compilation.
const BLAME_TIME: Duration = Duration::from_secs(2);
/// The longest message of a fault, in bytes.
const MAX_MESSAGE_BYTES: usize = 400;

/// What an answer is to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema allows.
    JsonSchema(Value),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text that a regular expression matches as a whole, in the syntax of Rust's `regex`.
    Regex(String),
    /// A grammar in `llguidance`'s dialect of Lark.
    Lark(String),
    /// A grammar in llama.cpp's GBNF.
    Gbnf(String),
    /// Calls of tools and nothing else.
    Calls {
        /// What may be called; at least one.
        tools: Vec<Tool>,
        /// How a call is written.
        form: CallForm,
        /// The most calls.
        max_calls: usize,
    },
    /// Any text. Where the model begins a call in its form, a call of a tool: with arguments that fit the schema, if the tool
    /// is strict, or with any object.
    TextAndCalls {
        /// What may be called; at least one.
        tools: Vec<Tool>,
        /// How a call is written. What is written otherwise is text.
        form: CallForm,
        /// Whether there may be more than one call.
        is_parallel: bool,
    },
}

/// Why a shape is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", Place(.place))]
pub struct ShapeError {
    /// Where in the schema: a JSON pointer, as `/properties/a`; empty for all of it, or where the message says it.
    pub place: String,
    /// Of several tools, which one's parameters.
    pub tool: Option<usize>,
    /// Expected, got.
    pub message: String,
}

struct Place<'a>(&'a str);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "at {}: ", self.0) }
    }
}

impl ShapeError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { place: String::new(), tool: None, message: message.into() }
    }
}

/// A tokenizer's vocabulary, as grammars need it. Cheap to clone.
#[derive(Clone)]
pub struct Grammars {
    factory: Arc<ParserFactory>,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammars")
    }
}

/// A shape that was understood. Cheap to clone.
#[derive(Clone)]
pub struct Compiled(Arc<Mutex<Matcher>>);

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compiled")
    }
}

impl PartialEq for Compiled {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Compiled {
    /// A constraint for one answer. It shares nothing with others, so that what they have found out does not count towards
    /// its limits.
    pub fn constraint(&self) -> Box<dyn Constraint> {
        let matcher = self.0.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        Box::new(GrammarConstraint::new(matcher))
    }
}

impl Grammars {
    /// Makes the trie of a vocabulary. Takes a good part of a second for a large one.
    ///
    /// # Errors
    /// The tokenizer has no end token, with which an answer could end, or its tokens make no trie; says which.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, String> {
        let Some(&end) = tokenizer.end_tokens().first() else {
            return Err("the model has no end token, so that an answer under a grammar could not end".into());
        };
        let build = || -> Result<Self, String> {
            let words: Vec<Vec<u8>> = (0..tokenizer.n_vocab()).map(|id| spelled(tokenizer, id as TokenId)).collect();
            let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let slices = llguidance::earley::SlicedBiasComputer::general_slices();
            let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
                .map_err(|error| error.to_string())?;
            factory.quiet();
            // A message is for a client's eyes: what has been generated so far does not belong there.
            factory.limits_mut().verbose_errors = false;
            factory.limits_mut().max_lexer_states = MAX_LEXER_STATES;
            Ok(Self { factory: Arc::new(factory) })
        };
        on_large_stack(|| {
            let panicked = |_| Err("the vocabulary makes no trie".to_owned());
            catch_unwind(AssertUnwindSafe(build)).unwrap_or_else(panicked)
        })?
    }

    /// Understands a shape. Takes milliseconds, at worst a few seconds, of which at most two or so go to finding what is at
    /// fault: not for a thread that serves connections.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn compile(&self, shape: &Shape) -> Result<Compiled, ShapeError> {
        on_large_stack(|| {
            let panicked = |_| Err(ShapeError::new("cannot be understood"));
            catch_unwind(AssertUnwindSafe(|| self.compile_here(shape))).unwrap_or_else(panicked)
        })
        .unwrap_or_else(|error| Err(ShapeError::new(error)))
    }

    fn compile_here(&self, shape: &Shape) -> Result<Compiled, ShapeError> {
        let grammar = match shape {
            Shape::JsonObject => return self.compile_schema(&serde_json::json!({"type": "object"})),
            Shape::JsonSchema(schema) => {
                schema::check(schema)?;
                return self.compile_schema(schema);
            }
            Shape::Calls { tools, form, max_calls } => {
                let trie = self.factory.tok_env().tok_trie();
                return self.compile_calls(tools, |_| true, || tools::lark(tools, *form, *max_calls, trie));
            }
            Shape::TextAndCalls { tools, form, is_parallel } => {
                let trie = self.factory.tok_env().tok_trie();
                let grammar = || tools::lark_among_text(tools, *form, *is_parallel, trie);
                return self.compile_calls(tools, |tool| tool.is_strict, grammar);
            }
            Shape::Choice(choices) => choice_lark(choices)?,
            Shape::Regex(regex) => {
                check_text(regex)?;
                if regex.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1 {
                    return Err(ShapeError::new("expected a character behind the last \\, got the end"));
                }
                format!("start: /{}/", llguidance::regex_to_lark(regex, ""))
            }
            Shape::Lark(lark) => {
                check_text(lark)?;
                lark.clone()
            }
            Shape::Gbnf(source) => {
                check_some(source)?;
                gbnf::to_lark(source).map_err(ShapeError::new)?
            }
        };
        self.create(TopLevelGrammar::from_lark(grammar)).map_err(ShapeError::new)
    }

    /// `is_held`: whether a tool's schema is part of the grammar.
    fn compile_calls(
        &self,
        tools: &[Tool],
        is_held: impl Fn(&Tool) -> bool,
        grammar: impl FnOnce() -> String,
    ) -> Result<Compiled, ShapeError> {
        let held: Vec<(usize, &Tool)> = tools.iter().enumerate().filter(|(_, tool)| is_held(tool)).collect();
        let mut n_bytes = 0;
        for &(at, tool) in &held {
            let checked = tools::check(tool, n_bytes);
            n_bytes = checked.map_err(|error| ShapeError { tool: Some(at), ..error })?;
        }
        self.create(TopLevelGrammar::from_lark(grammar())).map_err(|error| self.blame_tool(&held, error))
    }

    fn compile_schema(&self, schema: &Value) -> Result<Compiled, ShapeError> {
        self.create_of(schema).map_err(|error| self.blame_part(schema, error, Instant::now() + BLAME_TIME))
    }

    fn create_of(&self, schema: &Value) -> Result<Compiled, String> {
        self.create(TopLevelGrammar::from_json_schema(schema::with_layout(schema)))
    }

    /// Which part of a schema makes it fail; all of it where none is found by `until`.
    fn blame_part(&self, schema: &Value, error: String, until: Instant) -> ShapeError {
        let (place, message) = schema::locate(schema, error, until, |part| self.create_of(part).err());
        ShapeError { place, tool: None, message }
    }

    /// Which tool's parameters make the grammar of all of them fail.
    fn blame_tool(&self, tools: &[(usize, &Tool)], error: String) -> ShapeError {
        let until = Instant::now() + BLAME_TIME;
        let fault = |&(at, tool): &(usize, &Tool)| {
            let schema = tools::arguments_schema(&tool.parameters);
            let error = self.create_of(&schema).err()?;
            Some(ShapeError { tool: Some(at), ..self.blame_part(&schema, error, until) })
        };
        let mut tried = tools.iter().take_while(|_| Instant::now() < until);
        tried.find_map(fault).unwrap_or_else(|| ShapeError::new(error))
    }

    fn create(&self, grammar: TopLevelGrammar) -> Result<Compiled, String> {
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(in_one_line(&error));
        }
        // The first mask is the one that takes long. Made here it shows too whether there is any text at all, and what it
        // has found out about the grammar goes with every answer.
        match matcher.compute_mask() {
            Ok(_) => Ok(Compiled(Arc::new(Mutex::new(matcher)))),
            Err(error) if error.to_string().starts_with("NoExtension") => Err("no text fits".into()),
            Err(error) => Err(in_one_line(&error.to_string())),
        }
    }
}

/// What the trie knows of a token: its bytes; with a mark in front, which no text has, where a reader does not see it.
fn spelled(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    match tokenizer.token_type(id) {
        _ if bytes.is_empty() || bytes.len() > MAX_TOKEN_BYTES => Vec::new(),
        None | Some(TokenType::Unused) => Vec::new(),
        Some(TokenType::Control | TokenType::Unknown) => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
        Some(_) => bytes.to_vec(),
    }
}

fn choice_lark(choices: &[String]) -> Result<String, ShapeError> {
    if choices.is_empty() || choices.len() > MAX_CHOICES {
        let message = format!("expected 1 to {MAX_CHOICES} texts to choose from, got {}", choices.len());
        return Err(ShapeError::new(message));
    }
    check_len(choices.iter().map(String::len).sum())?;
    if let Some(at) = choices.iter().position(String::is_empty) {
        return Err(ShapeError::new(format!("expected texts that are not empty, got one as number {at}")));
    }
    // One lexeme for all: that of the longest text does not take a shorter one's place.
    let texts: Vec<String> = choices.iter().map(|text| gbnf::escaped_for_regex(text)).collect();
    Ok(format!("start: CHOICE\nCHOICE: /{}/", texts.join("|")))
}

pub(crate) fn check_len(n_bytes: usize) -> Result<(), ShapeError> {
    if n_bytes > MAX_SHAPE_BYTES {
        return Err(ShapeError::new(format!("expected at most {MAX_SHAPE_BYTES} bytes, got {n_bytes}")));
    }
    Ok(())
}

/// A grammar or an expression that is neither empty nor too long.
fn check_some(text: &str) -> Result<(), ShapeError> {
    check_len(text.len())?;
    if text.trim().is_empty() {
        return Err(ShapeError::new("expected something, got nothing"));
    }
    Ok(())
}

/// [`check_some`], and not too deep, as far as can be told without reading its syntax: brackets count wherever they stand,
/// within quotes too. `llguidance` counts those of an expression or of Lark itself, and allows fewer in Lark.
fn check_text(text: &str) -> Result<(), ShapeError> {
    check_some(text)?;
    let mut depth = 0usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            let line = 1 + text[..at].bytes().filter(|&byte| byte == b'\n').count();
            return Err(ShapeError::new(format!("line {line}: expected brackets at most {MAX_DEPTH} deep")));
        }
    }
    Ok(())
}

/// What an error says, in one line: without the backtrace of a panic, and without the source that it goes on to repeat.
fn in_one_line(error: &str) -> String {
    if error.starts_with("panic") {
        return "cannot be understood".into();
    }
    if error.contains("coerce_one_of") {
        return "\"oneOf\" is supported only where it is plain that no value fits two of its schemas".into();
    }
    if error.contains("without 'referencing'") {
        return "\"$ref\" is supported only within the schema, as \"#/$defs/name\"".into();
    }
    let text = error.replace("<non-verbose/>", "");
    let is_source = |line: &&str| {
        let line = line.trim();
        line.trim_matches('^').is_empty() || line.split_once(" | ").is_some_and(|(n, _)| n.parse::<u32>().is_ok())
    };
    let mut text = text.lines().filter(|line| !is_source(line)).map(str::trim).collect::<Vec<_>>().join(" ");
    if text.len() > MAX_MESSAGE_BYTES {
        let end = (0..=MAX_MESSAGE_BYTES).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES);
        let handle = thread.spawn_scoped(scope, work).map_err(|error| format!("no thread: {error}"))?;
        handle.join().map_err(|_| "the work was lost".to_owned())
    })
}
