//! Standard output, for commands whose output is read by a program as often as by a person.
//!
//! A reader that goes away (`worker-orcd … | head`) ends the command quietly.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

/// Standard output has no reader any more.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub(crate) struct ReaderGone;

/// Writes `text` and makes sure that it is on its way.
///
/// # Errors
/// [`ReaderGone`], or what else kept it from being written.
pub(crate) fn write(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        Err(e) => Err(anyhow::Error::new(e).context("cannot write to standard output")),
    }
}

/// Writes what a model has written: as it is to a file or a pipe; to a terminal without the characters that would command
/// it, since nobody knows what a model writes.
///
/// # Errors
/// As [`write()`].
pub(crate) fn write_answer(text: &str) -> anyhow::Result<()> {
    if is_terminal() { write(&harmless(text)) } else { write(text) }
}

/// The text with U+FFFD for control characters, escape among them, other than the ends of lines and tabs.
fn harmless(text: &str) -> Cow<'_, str> {
    let is_command = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(is_command) { text.replace(is_command, "\u{fffd}").into() } else { text.into() }
}

/// Writes a line to standard error. That nobody reads it is no reason to fail.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Writes a line to standard error that is less important than what is on standard output: dim on a terminal, where
/// `NO_COLOR` is not set.
pub(crate) fn aside(line: &str) {
    let is_dim = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    note(&if is_dim { format!("\x1b[2m{line}\x1b[0m") } else { line.to_owned() });
}

/// Whether a person reads.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// All of standard input.
///
/// # Errors
/// More than `limit` bytes, bytes that are no UTF-8, or what else kept it from being read.
pub(crate) fn read_standard_input(limit: u64) -> anyhow::Result<String> {
    use io::Read as _;
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| anyhow::anyhow!("cannot read standard input: {e}"))?;
    anyhow::ensure!(bytes.len() as u64 <= limit, "standard input has more than {limit} bytes, the limit");
    String::from_utf8(bytes)
        .map_err(|e| anyhow::anyhow!("standard input is not UTF-8: byte {}", e.utf8_error().valid_up_to()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_commands() {
        assert_eq!(harmless("a\tb\n\u{e9}\u{1f600}"), "a\tb\n\u{e9}\u{1f600}");
        assert_eq!(harmless("\x1b]0;title\x07\r\u{9b}2J"), "\u{fffd}]0;title\u{fffd}\u{fffd}\u{fffd}2J");
    }
}
