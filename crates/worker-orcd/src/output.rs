//! Standard output, for commands whose output is read by a program as often as by a person.
//!
//! A reader that goes away (`worker-orcd … | head`) ends the command quietly.

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

/// Writes a line to standard error. That nobody reads it is no reason to fail.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
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
