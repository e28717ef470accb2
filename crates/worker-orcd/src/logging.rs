//! Logs, to standard error: lines for people, or JSON objects for programs.
//!
//! A log line written while a progress bar is on the screen goes above the bar, not through it.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;

use crate::cli::{LogArgs, LogFormat};
use crate::progress;

/// What a command logs when nobody said: `serve` tells what it does, the others only what went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quiet {
    /// `info` and worse.
    No,
    /// `warn` and worse, and how far loading has come.
    Yes,
}

/// Starts logging for the whole process; see [`init_with`].
pub(crate) fn init(args: &LogArgs, default: Quiet) -> anyhow::Result<()> {
    init_with(args, default, None)
}

/// Starts logging for the whole process.
///
/// The filter is `--log-level`, else `RUST_LOG`, else `default`'s; lines of the target `also` are written from `debug` on in
/// any case.
///
/// # Errors
/// A filter that cannot be read, with the reason.
pub(crate) fn init_with(args: &LogArgs, default: Quiet, also: Option<&str>) -> anyhow::Result<()> {
    let filter = filter(args.log_level.as_deref(), std::env::var("RUST_LOG").ok().as_deref(), default, also)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| AboveTheBar);
    match args.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => {
            let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            builder.with_target(false).with_ansi(colours).init();
        }
    }
    log_panics();
    Ok(())
}

/// A panic is a line of the log like any other: of its request, and in JSON where the log is. The backtrace follows where
/// `RUST_BACKTRACE` asks for one.
fn log_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Where the log is too quiet for it, it is told as without one.
        if !tracing::enabled!(tracing::Level::ERROR) {
            return before(panic);
        }
        let payload = panic.payload();
        let message =
            payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(|s| s.as_str()));
        let message = message.unwrap_or("no message");
        let place = panic.location().map(ToString::to_string);
        let backtrace = std::backtrace::Backtrace::capture();
        let captured = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
        let backtrace = captured.then(|| backtrace.to_string());
        tracing::error!(place, backtrace, "panicked: {message}");
    }));
}

fn filter(flag: Option<&str>, rust_log: Option<&str>, default: Quiet, also: Option<&str>) -> anyhow::Result<EnvFilter> {
    let (source, text) = match (flag, rust_log) {
        (Some(text), _) => ("--log-level", text),
        (None, Some(text)) if !text.is_empty() => ("RUST_LOG", text),
        _ if default == Quiet::Yes => ("default", concat!("warn,", env!("CARGO_CRATE_NAME"), "::progress=info")),
        _ => ("default", "info"),
    };
    let filter =
        EnvFilter::try_new(text).map_err(|e| anyhow::anyhow!("{source}: cannot read the filter {text:?}: {e}"))?;
    match also {
        Some(target) => Ok(filter.add_directive(format!("{target}=debug").parse()?)),
        None => Ok(filter),
    }
}

/// Standard error, with the progress bar out of the way for each write. A log that nobody reads any more is no reason to
/// fail, so errors stop here: the subscriber would report them on standard error, and panic.
struct AboveTheBar;

impl Write for AboveTheBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = progress::aside(|| io::stderr().write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_over_rust_log_and_that_over_the_default() {
        let shown = |flag, env, quiet| filter(flag, env, quiet, None).unwrap().to_string();
        assert_eq!(shown(Some("debug"), Some("error"), Quiet::No), "debug");
        assert_eq!(shown(None, Some("error"), Quiet::No), "error");
        assert_eq!(shown(None, Some(""), Quiet::No), "info");
        assert!(shown(None, None, Quiet::Yes).contains("warn"));
    }

    #[test]
    fn a_target_that_was_asked_for_is_heard_whatever_the_filter() {
        let shown = filter(Some("error"), None, Quiet::No, Some("worker_http::prompts")).unwrap().to_string();
        assert_eq!(shown, "worker_http::prompts=debug,error");
    }

    #[test]
    fn names_the_source_of_a_filter_it_cannot_read() {
        let message = filter(Some("engine=loud"), None, Quiet::No, None).unwrap_err().to_string();
        assert!(message.starts_with("--log-level: cannot read the filter \"engine=loud\""), "{message}");
    }
}
