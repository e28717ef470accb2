//! Chat templates: messages to the text that the model was trained to continue.
//!
//! A template is a Jinja program that comes with the model, so it is run as Hugging Face's `apply_chat_template` runs it
//! (`trim_blocks`, `lstrip_blocks`, loop controls, Python's string methods, `raise_exception`, `strftime_now`, a
//! `tojson` that is Python's `json.dumps`), and it is not trusted: it sees nothing but its input, and steps, memory and
//! output are limited.
//!
//! One hole is known: the engine does not count its steps while `==` compares two lists, or `~` turns one into text. A
//! template made to abuse that, with lists that hold each other twice over, is not stopped.

mod functions;
mod python;

use std::fmt;
use std::io;

use gguf_parser::Gguf;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};

use crate::error::TokenizerError;
use crate::tokenizer::Tokenizer;
pub use functions::Clock;
use functions::Raised;

/// The longest template source, in bytes. Published ones have a few dozen KiB at most.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// The longest rendered text, in bytes: eight times the longest request body, which leaves room for tools quoted twice.
pub const MAX_RENDERED_BYTES: usize = 8 << 20;

/// How much a rendering may do: one unit is an instruction or 64 bytes. Enough for some thousands of messages; used up
/// in a fraction of a second and with less than 64 MiB.
const FUEL: u64 = 1_000_000;

/// The stack of the thread that renders. The engine walks values that a template nests in each other by recursion, and
/// fuel alone bounds how deep (some 600,000 levels); pages that are not touched cost nothing.
const STACK_BYTES: usize = 256 << 20;

/// The name of the one template of an environment.
const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Clone)]
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

/// What a template is rendered with.
#[derive(Clone, Debug, Default)]
pub struct ChatInput<'a> {
    /// The conversation: objects with `role` and `content`, and whatever else the template knows (`tool_calls`).
    pub messages: &'a [serde_json::Value],
    /// The tools that the model may call, a list of JSON schemas; `none` in the template where absent.
    pub tools: Option<&'a serde_json::Value>,
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Further variables (`enable_thinking`), which win over those above.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// Why a template is refused, or gave no text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The source is longer than [`MAX_TEMPLATE_BYTES`].
    #[error("chat template: expected at most {limit} bytes, got {got}")]
    SourceTooLong {
        /// The limit.
        limit: usize,
        /// The length of the source.
        got: usize,
    },
    /// The source is no Jinja.
    #[error("chat template: {message}")]
    Syntax {
        /// What is wrong, and in which line.
        message: String,
    },
    /// The template refuses this conversation, with `raise_exception`.
    #[error("chat template: {message}")]
    Raised {
        /// The template's words.
        message: String,
    },
    /// Rendering failed: a missing field, an operation on the wrong type.
    #[error("chat template: {message}")]
    Failed {
        /// What failed, and in which line.
        message: String,
    },
    /// Rendering took more steps or memory than a template may.
    #[error("chat template: expected to finish within {limit} steps, got further")]
    TooExpensive {
        /// The number of steps, or of 64 bytes.
        limit: u64,
    },
    /// The text is longer than [`MAX_RENDERED_BYTES`].
    #[error("chat template: expected at most {limit} bytes of text, got more")]
    TextTooLong {
        /// The limit.
        limit: usize,
    },
}

impl ChatTemplate {
    /// The template in a file's `tokenizer.chat_template`, with the texts of the tokenizer's BOS and EOS; none where the
    /// file has none.
    ///
    /// # Errors
    /// The key holds no string, or no template.
    pub fn from_gguf(gguf: &Gguf<'_>, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, ChatTemplateError> {
        let Some(source) = gguf.metadata.str("tokenizer.chat_template").map_err(TokenizerError::from)? else {
            return Ok(None);
        };
        let text = |id: Option<_>| {
            let bytes = id.and_then(|id| tokenizer.token_bytes(id)).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        Ok(Some(ChatTemplate::new(source, &text(tokenizer.bos()), &text(tokenizer.eos()))?))
    }

    /// Compiles a template. `bos` and `eos` are the texts of those tokens, empty where the model has none.
    ///
    /// # Errors
    /// [`TemplateError::SourceTooLong`] and [`TemplateError::Syntax`].
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, TemplateError> {
        ChatTemplate::with_clock(source, bos, eos, chrono::Local::now)
    }

    /// [`new`](Self::new) with another source of the time that `strftime_now` writes.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_clock(source: &str, bos: &str, eos: &str, clock: Clock) -> Result<ChatTemplate, TemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::SourceTooLong { limit: MAX_TEMPLATE_BYTES, got: source.len() });
        }
        let (source, bos, eos) = (source.to_owned(), bos.to_owned(), eos.to_owned());
        let compile = || {
            let mut env = functions::environment(clock);
            env.set_fuel(Some(FUEL));
            env.add_template_owned(NAME, without_generation_tags(&source)).map_err(|error| describe(&error))?;
            Ok(env)
        };
        let env = on_deep_stack(compile).unwrap_or_else(|error| Err(TemplateError::Failed { message: error }))?;
        Ok(ChatTemplate { env, source, bos, eos })
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text for `input`.
    ///
    /// # Errors
    /// [`TemplateError::Raised`] where the template refuses the conversation (the message is the template's, for the
    /// user), [`TemplateError::TooExpensive`] and [`TemplateError::TextTooLong`] beyond the limits,
    /// [`TemplateError::Failed`] for the rest.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String, TemplateError> {
        let render = || {
            let mut text = Bounded(Vec::new());
            let template = self.env.get_template(NAME).map_err(|error| describe(&error))?;
            let rendered = template.render_captured_to(self.variables(input), &mut text).map(drop);
            rendered.map_err(|error| describe(&error))?;
            // The engine writes strings, each whole.
            Ok(String::from_utf8(text.0).unwrap_or_default())
        };
        on_deep_stack(render).unwrap_or_else(|error| Err(TemplateError::Failed { message: error }))
    }

    fn variables(&self, input: &ChatInput<'_>) -> Value {
        let mut variables = vec![
            ("bos_token", Value::from(self.bos.as_str())),
            ("eos_token", Value::from(self.eos.as_str())),
            ("messages", Value::from(Serde(input.messages))),
            ("tools", Value::from(Serde(input.tools))),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(input.add_generation_prompt)),
        ];
        variables.retain(|(name, _)| !input.extra.contains_key(*name));
        variables.extend(input.extra.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value)))));
        Value::from_pairs(variables)
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Why a file's chat template could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ChatTemplateError {
    /// The metadata is wrong.
    #[error(transparent)]
    Metadata(#[from] TokenizerError),
    /// The template is wrong.
    #[error("key tokenizer.chat_template: {0}")]
    Template(#[from] TemplateError),
}

/// Runs `work` on a thread with a stack that recursion over nested values cannot exhaust within [`FUEL`].
fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("chat-template".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|error| format!("cannot start a thread to render in: {error}"))?;
        thread.join().map_err(|_| "the template engine panicked".to_owned())
    })
}

/// Output up to [`MAX_RENDERED_BYTES`].
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED_BYTES {
            return Err(io::Error::other("too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The engine's error in our terms, without values of the conversation beyond what a template raises itself.
fn describe(error: &minijinja::Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return TemplateError::Raised { message: message.clone() };
        }
        if inner.downcast_ref::<minijinja::Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::TooExpensive { limit: FUEL };
        }
        cause = inner.source();
    }
    let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    let message = format!("{}{detail}{line}", error.kind());
    match error.kind() {
        ErrorKind::WriteFailure => TemplateError::TextTooLong { limit: MAX_RENDERED_BYTES },
        ErrorKind::SyntaxError | ErrorKind::BadEscape => TemplateError::Syntax { message },
        _ => TemplateError::Failed { message },
    }
}

/// Makes `{% generation %}` … `{% endgeneration %}`, Hugging Face's marks around what the assistant said, into a block
/// that this engine knows and that does as little.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (inside, behind) = tag.split_at(end);
        let name = inside.trim_matches(['-', '+']).trim();
        match name {
            "generation" => out.push_str(&inside.replace(name, "if true")),
            "endgeneration" => out.push_str(&inside.replace(name, "endif")),
            _ => out.push_str(inside),
        }
        rest = behind;
    }
    out + rest
}

#[cfg(test)]
mod tests;
