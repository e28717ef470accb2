//! How far loading, or other work on all of a model's weights, has come: a bar on a terminal, log lines with a percentage elsewhere.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::LogFormat;
use crate::memory;

/// Percent between two log lines, at least.
const LINE_STEP_PERCENT: u64 = 10;
/// Time between two log lines, at least: a file that is there at once needs two lines, not eleven.
const LINE_PAUSE: Duration = Duration::from_millis(250);

/// The bar on the screen, if there is one.
static ON_SCREEN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Runs `write`, which writes to standard error, while no bar is in its way.
pub(crate) fn aside<R>(write: impl FnOnce() -> R) -> R {
    let bar = ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// What is done with the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// They are brought to where they will be used; then the model is run once.
    Load,
    /// They are written in another format; then the disk has to take them.
    Quantize,
}

impl Work {
    /// What is going on, what has been done with all bytes in the end, and what is going on then.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Load => ("loading weights", "loaded", "warming up"),
            Self::Quantize => ("quantizing", "read", "syncing"),
        }
    }
}

/// Shows the loading of weights, or other work on them.
pub(crate) struct Loading {
    work: Work,
    shown: Shown,
}

enum Shown {
    /// A bar.
    Bar(ProgressBar),
    /// Log lines; when the last one was written and what it said.
    Lines(Option<(Instant, u64)>),
}

impl Loading {
    /// A bar where standard error is a terminal and logs are for people, else lines.
    pub(crate) fn start(format: LogFormat) -> Self {
        Self::of(Work::Load, format)
    }

    /// As [`start`](Self::start), of any work.
    pub(crate) fn of(work: Work, format: LogFormat) -> Self {
        if format == LogFormat::Json || !io::stderr().is_terminal() {
            return Self { work, shown: Shown::Lines(None) };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(style(
            "{msg:>15} [{bar:40}] {percent:>3} %  {decimal_bytes} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta}",
        ));
        bar.set_message(work.words().0);
        bar.enable_steady_tick(Duration::from_millis(100));
        *ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        Self { work, shown: Shown::Bar(bar) }
    }

    /// `done` of `total` bytes are done.
    pub(crate) fn set(&mut self, done: u64, total: u64) {
        let (doing, finished, then) = self.work.words();
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done);
                if done == total {
                    bar.set_style(style(&format!("{{msg:>15}} [{{bar:40}}] {{decimal_total_bytes}} {finished}")));
                    bar.set_message(then);
                }
            }
            Shown::Lines(last) => {
                let percent = percent(done, total);
                if is_due(last.map(|(at, said)| (at.elapsed(), said)), percent) {
                    tracing::info!("{doing}: {percent} % of {}", memory::shown(total));
                    *last = Some((Instant::now(), percent));
                }
            }
        }
    }
}

impl Drop for Loading {
    /// Takes the bar off the screen; what was loaded, and how fast, is logged by whoever loaded it.
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            *ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner) = None;
            bar.finish_and_clear();
        }
    }
}

/// `template` is one of those above.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is well formed").progress_chars("=> ")
}

fn percent(done: u64, total: u64) -> u64 {
    if total == 0 { 100 } else { (u128::from(done) * 100 / u128::from(total)).min(100) as u64 }
}

/// Whether `percent` is worth a line, given how long ago the last one was and what it said.
fn is_due(last: Option<(Duration, u64)>, percent: u64) -> bool {
    match last {
        None => true,
        Some((_, said)) if percent == 100 => said < 100,
        Some((ago, said)) => percent >= said + LINE_STEP_PERCENT && ago >= LINE_PAUSE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_line_come_always_and_once() {
        assert!(is_due(None, 0));
        assert!(is_due(Some((Duration::ZERO, 0)), 100));
        assert!(!is_due(Some((LINE_PAUSE, 100)), 100));
    }

    #[test]
    fn between_them_a_line_needs_ten_percent_and_a_pause() {
        assert!(is_due(Some((LINE_PAUSE, 20)), 30));
        assert!(!is_due(Some((LINE_PAUSE, 20)), 29));
        assert!(!is_due(Some((Duration::ZERO, 20)), 90));
    }

    #[test]
    fn a_percentage_is_never_above_a_hundred() {
        assert_eq!([percent(0, 0), percent(1, 3), percent(5, 3), percent(u64::MAX, u64::MAX)], [100, 33, 100, 100]);
    }
}
