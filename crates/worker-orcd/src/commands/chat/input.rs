//! What is typed, or comes through a pipe: one message after the other.
//!
//! At a terminal a line can be edited, the history is at hand, and a message may have several lines: a backslash at a line's
//! end, Alt-Enter, or pasted text. Through a pipe each line is a message, and a backslash at its end works too.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{
    Cmd, ConditionalEventHandler, Config, Context, Editor, Event, EventContext, EventHandler, Helper, KeyCode,
    KeyEvent, Modifiers, Movement, RepeatCount,
};

use super::slash::COMMANDS;
use crate::output;

/// Lines that the history keeps.
const MAX_HISTORY: usize = 1_000;
/// The longest line that is read from a pipe, in bytes. What fits into a context is far less.
const MAX_LINE_BYTES: u64 = 64 << 20;
/// In front of every message.
const PROMPT: &str = "> ";

/// Where messages come from.
pub(crate) enum Input {
    /// A person types.
    Terminal(Box<Terminal>),
    /// A program writes.
    Pipe(io::StdinLock<'static>),
}

impl Input {
    /// Standard input. `history` is the file that remembers what was typed at a terminal.
    ///
    /// # Errors
    /// When the terminal cannot be used.
    pub(crate) fn open(history: Option<PathBuf>) -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Pipe(io::stdin().lock()));
        }
        Ok(Self::Terminal(Box::new(Terminal::open(history)?)))
    }

    /// Whether a person types.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next message or command, lines joined; none when there are no more.
    ///
    /// # Errors
    /// When nothing can be read.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<String>> {
        let text = match self {
            Self::Terminal(terminal) => terminal.next()?,
            Self::Pipe(pipe) => next_line(pipe)?,
        };
        Ok(text.map(|text| text.replace("\\\n", "\n")))
    }
}

fn goes_on(text: &str) -> bool {
    text.ends_with('\\')
}

/// A line, and those after it as long as each ends with a backslash.
fn next_line(pipe: &mut impl BufRead) -> anyhow::Result<Option<String>> {
    let mut text = String::new();
    loop {
        let mut limited = pipe.by_ref().take(MAX_LINE_BYTES);
        let n_bytes = limited.read_line(&mut text).map_err(|e| anyhow::anyhow!("cannot read standard input: {e}"))?;
        anyhow::ensure!(
            n_bytes as u64 != MAX_LINE_BYTES,
            "standard input: a line has {MAX_LINE_BYTES} bytes or more, the limit"
        );
        if n_bytes == 0 {
            return Ok((!text.is_empty()).then_some(text));
        }
        let ended = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
        match ended {
            Some(line) if goes_on(line) => text = format!("{line}\n"),
            Some(line) => return Ok(Some(line.to_owned())),
            // The last line; the next read finds nothing.
            None => {}
        }
    }
}

/// A person at a keyboard.
pub(crate) struct Terminal {
    editor: Editor<Keys, FileHistory>,
    history: Option<PathBuf>,
}

impl Terminal {
    fn open(history: Option<PathBuf>) -> anyhow::Result<Self> {
        let config = Config::builder().max_history_size(MAX_HISTORY)?.history_ignore_dups(true)?.build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Keys));
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        editor.bind_sequence(KeyEvent::ctrl('c'), EventHandler::Conditional(Box::new(ClearFirst)));
        let history = history.filter(|path| match prepare(path).and_then(|()| editor.load_history(path)) {
            Ok(()) => true,
            Err(e) => {
                tracing::warn!("no history is kept: {}: {e}", path.display());
                false
            }
        });
        Ok(Self { editor, history })
    }

    /// Ctrl-C clears what was typed; where nothing was, the second one leaves.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        let mut was_interrupted = false;
        loop {
            match self.editor.readline(PROMPT) {
                Ok(text) => {
                    self.remember(&text);
                    return Ok(Some(text));
                }
                Err(ReadlineError::Interrupted) if !was_interrupted => {
                    was_interrupted = true;
                    output::aside("(Ctrl-C again or Ctrl-D leaves)");
                }
                Err(ReadlineError::Interrupted | ReadlineError::Eof) => return Ok(None),
                Err(e) => anyhow::bail!("cannot read from the terminal: {e}"),
            }
        }
    }

    /// At once, so that nothing is lost however this process ends. A full disk is no reason to stop talking.
    fn remember(&mut self, text: &str) {
        if text.trim().is_empty() {
            return;
        }
        let added = self.editor.add_history_entry(text);
        if let (Ok(true), Some(path)) = (added, &self.history)
            && let Err(e) = self.editor.append_history(path)
        {
            tracing::warn!("the history is not kept any more: {}: {e}", path.display());
            self.history = None;
        }
    }
}

/// Makes the file and its folder where they are missing.
fn prepare(path: &Path) -> Result<(), ReadlineError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::OpenOptions::new().create(true).append(true).open(path)?;
    Ok(())
}

/// The file that remembers what was typed: in `$XDG_STATE_HOME`, else in `~/.local/state`; none without a home.
pub(crate) fn history_file() -> Option<PathBuf> {
    history_in(std::env::var_os("XDG_STATE_HOME").map(PathBuf::from), std::env::home_dir())
}

fn history_in(state: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    // The specification: relative paths are to be ignored.
    let state = state.filter(|path| path.is_absolute());
    let home = home.filter(|path| path.is_absolute()).map(|home| home.join(".local/state"));
    Some(state.or(home)?.join("worker-orcd/chat_history"))
}

/// Ctrl-C: throws away what was typed, if anything was.
struct ClearFirst;

impl ConditionalEventHandler for ClearFirst {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        Some(if context.line().is_empty() { Cmd::Interrupt } else { Cmd::Kill(Movement::WholeBuffer) })
    }
}

/// What the keys mean beyond editing: Enter after a backslash, and Tab after a slash.
struct Keys;

impl Helper for Keys {}
impl Highlighter for Keys {}
impl Hinter for Keys {
    type Hint = String;
}

impl Validator for Keys {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if goes_on(context.input()) { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Completer for Keys {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..pos];
        let fits = |name: &&str| typed.starts_with('/') && name.starts_with(typed);
        Ok((0, COMMANDS.iter().map(|(name, ..)| *name).filter(fits).map(str::to_owned).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let mut pipe = text.as_bytes();
        std::iter::from_fn(|| next_line(&mut pipe).unwrap()).collect()
    }

    #[test]
    fn a_backslash_at_a_lines_end_goes_on_in_the_next() {
        assert_eq!(lines("a\\\nb\\\r\nc\nd\n"), ["a\\\nb\\\nc", "d"]);
        assert_eq!(lines("a\\b\nc\\ \n"), ["a\\b", "c\\ "]);
    }

    #[test]
    fn the_last_line_needs_no_end() {
        assert_eq!(lines("a\nb"), ["a", "b"]);
        assert_eq!(lines("a\\\n"), ["a\\\n"]);
        assert_eq!(lines("a\\"), ["a\\"]);
        assert_eq!(lines("\n\n"), ["", ""]);
    }

    #[test]
    fn the_history_is_where_the_specification_says() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(history_in(path("/s"), path("/h")), path("/s/worker-orcd/chat_history"));
        assert_eq!(history_in(path("s"), path("/h")), path("/h/.local/state/worker-orcd/chat_history"));
        assert_eq!(history_in(None, None), None);
    }
}
