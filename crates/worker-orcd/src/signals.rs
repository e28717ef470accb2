//! Ctrl-C and SIGTERM: the first asks to stop, the second stops.

use std::io;

use tokio_util::sync::CancellationToken;

/// Exit status after a second signal: what a shell reports of a process that Ctrl-C ended.
pub(crate) const INTERRUPTED: u8 = 130;

/// A token that the first signal cancels. The second ends the process at once.
///
/// # Errors
/// When the handlers cannot be installed. Needs a tokio runtime.
pub(crate) fn watch() -> io::Result<CancellationToken> {
    watch_and(|| ())
}

/// As [`watch`]; before the second signal ends the process, `clean_up` is called.
///
/// # Errors
/// As [`watch`].
pub(crate) fn watch_and(clean_up: impl FnOnce() + Send + 'static) -> io::Result<CancellationToken> {
    let mut signals = Signals::new()?;
    let asked = CancellationToken::new();
    let stop = asked.clone();
    tokio::spawn(async move {
        signals.next().await;
        asked.cancel();
        signals.next().await;
        clean_up();
        std::process::exit(INTERRUPTED.into());
    });
    Ok(stop)
}

/// Ctrl-C alone, each time. From [`CtrlC::new`] on it does not end the process any more.
#[cfg(unix)]
pub(crate) struct CtrlC(tokio::signal::unix::Signal);

#[cfg(unix)]
impl CtrlC {
    /// # Errors
    /// When the handler cannot be installed. Needs a tokio runtime.
    pub(crate) fn new() -> io::Result<Self> {
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map(Self)
    }

    /// Returns when it is pressed.
    pub(crate) async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Ctrl-C alone, each time.
#[cfg(not(unix))]
pub(crate) struct CtrlC;

#[cfg(not(unix))]
impl CtrlC {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self)
    }

    pub(crate) async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
