//! The run as a person at a terminal sees it: the haiku as it is written, then the verdicts.

use std::cell::Cell;
use std::io::{IsTerminal, Write};

use super::record::Record;
use super::{checks::Check, display_path};

/// Characters of a finding that are shown: a model may write anything. The report has it whole.
const MAX_SHOWN: usize = 300;

/// Writes to standard output; in colour on a terminal that wants it.
#[derive(Debug)]
pub(super) struct Screen {
    colour: bool,
    /// Whether the haiku's next character begins a line; none before its first word.
    line_start: Cell<Option<bool>>,
}

impl Screen {
    pub(super) fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour, line_start: Cell::new(None) }
    }

    pub(super) fn title(&self, record: &Record) {
        println!("{}\n", self.paint("1", &format!("Haiku run {}", record.run_id)));
    }

    /// A fact about the run.
    pub(super) fn fact(&self, name: &str, value: &str) {
        println!("  {} {value}", self.paint("2", &format!("{name:<9}")));
    }

    /// A step that may take a moment.
    pub(super) fn step(&self, what: &str) {
        println!("  {}", self.paint("2", what));
    }

    /// The next piece of the haiku.
    pub(super) fn haiku_text(&self, text: &str) {
        for c in text.chars() {
            match (c, self.line_start.get()) {
                ('\n' | ' ', None) => continue,
                (_, None) => print!("\n    {}", self.begin_haiku()),
                ('\n', _) => {}
                (_, Some(true)) => print!("    "),
                (_, Some(false)) => {}
            }
            print!("{c}");
            self.line_start.set(Some(c == '\n'));
        }
        // A haiku that cannot be shown is judged all the same.
        let _ = std::io::stdout().flush();
    }

    /// The haiku is complete.
    pub(super) fn haiku_end(&self, facts: &str) {
        let end = if self.colour { "\x1b[0m" } else { "" };
        let newline = if self.line_start.get() == Some(false) { "\n" } else { "" };
        println!("{end}{newline}\n  {}", self.paint("2", facts));
        self.line_start.set(None);
    }

    /// The verdicts, and where to read more.
    pub(super) fn verdict(&self, record: &Record) {
        if !record.checks.is_empty() {
            println!();
        }
        for check in &record.checks {
            self.check(check);
        }
        if let Some(error) = &record.error {
            println!("\n  {} {}", self.paint("31;1", "error"), error.replace('\n', "\n        "));
        }
        let n_failed = record.checks.iter().filter(|check| !check.passed).count();
        let verdict = match (record.passed(), &record.error) {
            (true, _) => self.paint("32;1", &format!("passed: {} checks", record.checks.len())),
            (false, None) => self.paint("31;1", &format!("FAILED: {n_failed} of {} checks", record.checks.len())),
            (false, Some(_)) => self.paint("31;1", "FAILED: the run was cut short"),
        };
        println!("\n{verdict}; everything is in {}", display_path(record.folder()));
    }

    fn check(&self, check: &Check) {
        let mark = if check.passed { self.paint("32", "ok  ") } else { self.paint("31;1", "FAIL") };
        let mut found: String = check.found.chars().take(MAX_SHOWN).collect();
        if found.len() < check.found.len() {
            found.push('\u{2026}');
        }
        println!("  {mark} {:<50} {}", check.claim, self.paint("2", &found));
    }

    fn begin_haiku(&self) -> &'static str {
        if self.colour { "\x1b[36;1m" } else { "" }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
