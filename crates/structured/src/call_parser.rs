//! Calls out of an answer's text, as it comes.
//!
//! Text that may become a call is held back until that is decided. What turns out to be none is text, whole; only
//! whitespace next to a call, its tags and the `;` between two calls are left out.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::tools::{CLOSE, Call, CallForm, OPEN, PYTHON_TAG};

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text for the reader.
    Text(String),
    /// A whole call.
    Call(Call),
}

/// Takes an answer's text apart.
///
/// Both forms are known, unless [`only`](Self::only) one of them is: `<tool_call>` anywhere in the text, with a JSON object
/// that has a `name` and, if there are any, `arguments`; and, where the answer begins with one, JSON objects with the `name`
/// of a known tool and `parameters` or `arguments`.
#[derive(Debug, Clone)]
pub struct CallParser {
    /// Names by which a bare object is known as a call.
    names: Vec<String>,
    /// `None`: both.
    form: Option<CallForm>,
    state: State,
    /// Text that is not decided yet.
    held: String,
    /// How far `held` has been looked at, where it begins with an object.
    scan: Scan,
    /// Whether nothing but layout has come since the last call.
    follows_call: bool,
    /// Whether any text has come.
    has_text: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but whitespace so far.
    Start,
    /// Text, in which a tag may come up.
    Text,
    /// `held` begins with a tag, or a bare object, and is to become a call.
    Call { is_tagged: bool },
    /// Behind a call's object.
    Behind { was_tagged: bool },
}

/// The way through a JSON object, to its last brace.
#[derive(Debug, Clone, Copy, Default)]
struct Scan {
    at: usize,
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Scan {
    /// Goes on to the end of the object; `None` if it is not there yet.
    fn end(&mut self, text: &str) -> Option<usize> {
        for &byte in &text.as_bytes()[self.at..] {
            self.at += 1;
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.in_string => self.is_escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' if !self.in_string => self.depth += 1,
                b'}' if !self.in_string => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(self.at);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

impl CallParser {
    /// A parser for one answer, with the names of the tools that may be called.
    pub fn new(names: Vec<String>) -> Self {
        Self {
            names,
            form: None,
            state: State::Start,
            held: String::new(),
            scan: Scan::default(),
            follows_call: false,
            has_text: false,
        }
    }

    /// Takes calls of the other form for text.
    pub fn only(self, form: CallForm) -> Self {
        Self { form: Some(form), ..self }
    }

    /// Takes the next text; gives what is decided.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.advance(&mut pieces) {}
        pieces
    }

    /// Ends the answer: what is left is text.
    pub fn finish(&mut self) -> Vec<Piece> {
        let rest = std::mem::take(&mut self.held);
        let is_layout = self.follows_call && rest.trim().is_empty();
        let mut pieces = Vec::new();
        if !is_layout {
            self.give_text(rest, &mut pieces);
        }
        pieces
    }

    /// Text on both sides of a call stays apart: a line end stands for the call.
    fn give_text(&mut self, text: String, pieces: &mut Vec<Piece>) {
        if text.is_empty() {
            return;
        }
        let separator = if self.follows_call && self.has_text { "\n" } else { "" };
        (self.follows_call, self.has_text) = (false, true);
        match pieces.last_mut() {
            Some(Piece::Text(last)) => last.push_str(&text),
            _ => pieces.push(Piece::Text(format!("{separator}{text}"))),
        }
    }

    /// Decides on one more piece of what is held; false when there is nothing more to decide.
    fn advance(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Start => self.begin(),
            State::Text => self.pass_text(pieces),
            State::Call { is_tagged } => self.take_call(is_tagged, pieces),
            State::Behind { was_tagged } => self.pass_layout(was_tagged),
        }
    }

    fn begin(&mut self) -> bool {
        if self.form == Some(CallForm::Tagged) {
            self.state = State::Text;
            return true;
        }
        // Where it is a control token, as Llama 3.1 has it, this text does not show.
        let text = self.held.trim_start();
        if text.starts_with('{') || text.starts_with(PYTHON_TAG) {
            self.state = State::Call { is_tagged: false };
            return true;
        }
        if PYTHON_TAG.starts_with(text) {
            return false;
        }
        self.state = State::Text;
        true
    }

    /// Text up to a tag, or up to what may become one together with the whitespace before it.
    fn pass_text(&mut self, pieces: &mut Vec<Piece>) -> bool {
        if self.follows_call {
            self.held.drain(..self.held.len() - self.held.trim_start().len());
        }
        let has_tags = self.form != Some(CallForm::Bare);
        let tag = self.held.find(OPEN).filter(|_| has_tags);
        let n_unfinished = if has_tags { unfinished_tag(&self.held, OPEN) } else { 0 };
        let end = tag.unwrap_or(self.held.len() - n_unfinished);
        let n_text = self.held[..end].trim_end().len();
        if n_text > 0 {
            let text = self.held.drain(..n_text).collect();
            self.give_text(text, pieces);
        }
        if tag.is_some() {
            // With the whitespace in front, which is text if no call comes of it.
            self.state = State::Call { is_tagged: true };
        }
        tag.is_some()
    }

    fn take_call(&mut self, is_tagged: bool, pieces: &mut Vec<Piece>) -> bool {
        if self.scan.at == 0 {
            let text = self.held.trim_start();
            let object = text.strip_prefix(if is_tagged { OPEN } else { PYTHON_TAG }).unwrap_or(text).trim_start();
            if !object.is_empty() && !object.starts_with('{') {
                // A tag with something else behind it: the tag is text, and the rest is looked at again.
                let n_tag = self.held.len() - object.len();
                let tag = self.held.drain(..n_tag).collect();
                self.give_text(tag, pieces);
                self.state = State::Text;
                return true;
            }
            if object.is_empty() {
                return false;
            }
            self.scan.at = self.held.len() - object.len();
        }
        let Some(end) = self.scan.end(&self.held) else { return false };
        self.scan = Scan::default();
        let text: String = self.held.drain(..end).collect();
        let object = &text[text.find('{').unwrap_or(0)..];
        match self.read(object, is_tagged) {
            Some(call) => {
                self.follows_call = true;
                pieces.push(Piece::Call(call));
                self.state = State::Behind { was_tagged: is_tagged };
            }
            None => {
                self.give_text(text, pieces);
                self.state = State::Text;
            }
        }
        true
    }

    /// What stands between calls, and is part of none.
    fn pass_layout(&mut self, was_tagged: bool) -> bool {
        let text = self.held.trim_start();
        if was_tagged {
            if CLOSE.starts_with(text) && text.len() < CLOSE.len() {
                return false;
            }
            let rest = text.strip_prefix(CLOSE).unwrap_or(text).trim_start();
            self.held.drain(..self.held.len() - rest.len());
            self.state = State::Text;
            return true;
        }
        let rest = text.strip_prefix(';').unwrap_or(text).trim_start();
        if rest.is_empty() {
            return false;
        }
        if rest.starts_with('{') {
            self.held.drain(..self.held.len() - rest.len());
            self.state = State::Call { is_tagged: false };
        } else {
            self.held.drain(..self.held.len() - text.len());
            self.state = State::Text;
        }
        true
    }

    fn read(&self, object: &str, is_tagged: bool) -> Option<Call> {
        #[derive(Deserialize)]
        struct Written<'a> {
            name: String,
            #[serde(borrow)]
            arguments: Option<&'a RawValue>,
            #[serde(borrow)]
            parameters: Option<&'a RawValue>,
        }
        let Written { name, arguments, parameters } = serde_json::from_str(object).ok()?;
        let is_known = is_tagged || self.names.contains(&name);
        let arguments = match arguments.or(parameters) {
            Some(arguments) => arguments.get().to_owned(),
            None if is_tagged => "{}".to_owned(),
            None => return None,
        };
        // Some models put the object into a string.
        let arguments = serde_json::from_str::<String>(&arguments).unwrap_or(arguments);
        let is_object = arguments.trim_start().starts_with('{')
            && serde_json::from_str::<serde::de::IgnoredAny>(&arguments).is_ok();
        (is_known && is_object && !name.is_empty()).then_some(Call { name, arguments })
    }
}

/// The length of the longest end of `text` that begins a tag and does not complete it.
fn unfinished_tag(text: &str, tag: &str) -> usize {
    (1..tag.len().min(text.len() + 1)).rev().find(|&n| text.as_bytes().ends_with(&tag.as_bytes()[..n])).unwrap_or(0)
}
