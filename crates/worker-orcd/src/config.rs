//! `--config FILE`: the flags of `serve` from a TOML file, under their own names.
//!
//! The keys are read off clap's table of flags, so a new flag needs no line here. A value of the file becomes the flag's
//! default; clap's own order, flag, then environment, then default, does the rest. Before that every value is checked by the
//! parser of its flag, so that a fault names its line in the file, and all faults of a file are told at once.

use std::any::TypeId;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command, CommandFactory as _, FromArgMatches as _};
use toml::de::{DeTable, DeValue};

use crate::cli::Cli;

/// The largest file that is read. One with every flag and a comment for each has a few KiB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// The flag that names the file; it cannot be set in it.
const FLAG: &str = "config";
/// The subcommand whose flags the file sets; they can be given without its name too.
const SERVE: &str = "serve";

/// Why there is no command line to work with.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The command line itself, or a request for help.
    CommandLine(clap::Error),
    /// The file.
    Config(anyhow::Error),
}

/// Reads the command line, and the file that it or the environment names.
///
/// # Errors
/// A command line that clap refuses; a file that cannot be read, or has faults: then all of them, one a line.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Refused> {
    let args: Vec<OsString> = args.into_iter().collect();
    let mut command = Cli::command();
    if let Some(path) = path(&command, &args) {
        let defaults = read(&path).and_then(|text| Ok(defaults(&text, &path.display().to_string(), &command)?));
        command = with_defaults(command, &defaults.map_err(Refused::Config)?);
    }
    let matches = command.try_get_matches_from_mut(args);
    matches.and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches)).map_err(Refused::CommandLine)
}

/// The file that a command line of `serve` names. None where there is more wrong with that line, or help is asked for: then
/// reading it once more, whole, says so.
fn path(command: &Command, args: &[OsString]) -> Option<PathBuf> {
    let matches = command.clone().ignore_errors(true).try_get_matches_from(args).ok()?;
    let matches = match matches.subcommand() {
        None => &matches,
        Some((SERVE, matches)) => matches,
        Some(_) => return None,
    };
    matches.get_one::<PathBuf>(FLAG).cloned()
}

fn read(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_CONFIG_BYTES + 1).read_to_string(&mut text));
    read.with_context(|| format!("--config {}: cannot be read", path.display()))?;
    let n_bytes = text.len() as u64;
    anyhow::ensure!(
        n_bytes <= MAX_CONFIG_BYTES,
        "--config {}: has more than {MAX_CONFIG_BYTES} bytes, the limit",
        path.display()
    );
    Ok(text)
}

/// The command with other defaults, for its own flags and for those of `serve`.
fn with_defaults(command: Command, defaults: &[FileValue]) -> Command {
    let set = |mut command: Command| {
        for default in defaults {
            command = command.mut_arg(&default.id, |arg| arg.default_values(default.values.clone()));
        }
        command
    };
    set(command).mut_subcommand(SERVE, set)
}

/// What the file says of one flag.
#[derive(Debug, PartialEq, Eq)]
struct FileValue {
    /// clap's name for the flag.
    id: String,
    /// As they would be written on the command line; one, but for a flag that may be given several times.
    values: Vec<String>,
}

/// Every fault of a file, in its order.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
struct Faults(Vec<String>);

/// What `text` says of the flags of `command`. `name` is the file's, for messages.
fn defaults(text: &str, name: &str, command: &Command) -> Result<Vec<FileValue>, Faults> {
    let at = |span: Range<usize>| format!("{name}:{}", 1 + text[..span.start.min(text.len())].matches('\n').count());
    let table = DeTable::parse(text).map_err(|fault| {
        let place = fault.span().map_or_else(|| name.to_owned(), &at);
        Faults(vec![format!("{place}: not TOML: {}", fault.message())])
    })?;
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let (mut defaults, mut faults) = (Vec::new(), Vec::new());
    for (key, value) in entries {
        match file_value(key.get_ref(), value.get_ref(), command) {
            Ok(default) => defaults.push(default),
            Err(fault) => faults.push(format!("{}: {}: {fault}", at(key.span()), key.get_ref())),
        }
    }
    if faults.is_empty() { Ok(defaults) } else { Err(Faults(faults)) }
}

/// Whether `text` has no faults.
#[cfg(test)]
pub(crate) fn check_text(text: &str) -> anyhow::Result<()> {
    defaults(text, "text", &Cli::command())?;
    Ok(())
}

/// One entry, checked by its flag; or what was expected and what was there.
fn file_value(key: &str, value: &DeValue<'_>, command: &Command) -> Result<FileValue, String> {
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(key) && may_be_set(arg));
    let Some(arg) = arg else { return Err(unknown(key, command)) };
    let values = match value {
        DeValue::Array(elements) if is_list(arg) => {
            elements.iter().map(|element| written(element.get_ref(), arg)).collect::<Result<_, _>>()?
        }
        _ => vec![written(value, arg)?],
    };
    if !is_switch(arg) {
        values.iter().try_for_each(|value| check(key, value, command))?;
    }
    Ok(FileValue { id: arg.get_id().to_string(), values })
}

fn may_be_set(arg: &Arg) -> bool {
    arg.get_long() != Some(FLAG) && (is_switch(arg) || arg.get_action().takes_values())
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse)
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// The value as it would be written on the command line.
fn written(value: &DeValue<'_>, arg: &Arg) -> Result<String, String> {
    let kind = Kind::of(arg);
    match (kind, value) {
        (Kind::Switch, DeValue::Boolean(b)) => Ok(b.to_string()),
        // What does not fit here fits no flag, and its digits say so as well.
        (Kind::Integer | Kind::Number, DeValue::Integer(n)) => {
            Ok(i128::from_str_radix(n.as_str(), n.radix()).map_or_else(|_| n.as_str().to_owned(), |n| n.to_string()))
        }
        (Kind::Number, DeValue::Float(x)) => Ok(x.as_str().to_owned()),
        (Kind::Text, DeValue::String(text)) => Ok(text.clone().into_owned()),
        _ => Err(format!("expected {}, got {}", kind.shown(arg), shown(value))),
    }
}

/// What a flag's value is in TOML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Switch,
    Integer,
    Number,
    Text,
}

impl Kind {
    fn of(arg: &Arg) -> Self {
        let ty = arg.get_value_parser().type_id();
        let is_one_of = |ids: &[TypeId]| ids.iter().any(|id| ty == *id);
        if is_switch(arg) {
            Self::Switch
        } else if is_one_of(&[TypeId::of::<f32>(), TypeId::of::<f64>()]) {
            Self::Number
        } else if is_one_of(&[
            TypeId::of::<u8>(),
            TypeId::of::<u16>(),
            TypeId::of::<u32>(),
            TypeId::of::<u64>(),
            TypeId::of::<usize>(),
            TypeId::of::<i32>(),
            TypeId::of::<i64>(),
        ]) {
            Self::Integer
        } else {
            Self::Text
        }
    }

    fn shown(self, arg: &Arg) -> String {
        let one = match self {
            Self::Switch => "true or false".to_owned(),
            Self::Integer => "an integer".to_owned(),
            Self::Number => "a number".to_owned(),
            Self::Text => match &possible(arg)[..] {
                [] => "a string".to_owned(),
                names => format!("one of {}", names.join(", ")),
            },
        };
        if is_list(arg) { format!("{one}, or an array of such") } else { one }
    }
}

/// The names that a flag accepts where it accepts nothing else, as TOML writes them.
fn possible(arg: &Arg) -> Vec<String> {
    arg.get_possible_values().iter().map(|value| format!("{:?}", value.get_name())).collect()
}

/// A value of the wrong type. Strings are not shown: one may be a key that was meant for another line.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(_) => "a string".to_owned(),
        DeValue::Integer(n) => n.to_string(),
        DeValue::Float(x) => x.to_string(),
        DeValue::Boolean(b) => b.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Lets the flag's own parser look at a value.
fn check(key: &str, value: &str, command: &Command) -> Result<(), String> {
    let Some(error) = refusal(&format!("--{key}={value}"), command) else { return Ok(()) };
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(key));
    Err(match arg.map(possible) {
        Some(names) if !names.is_empty() => format!("expected one of {}, got {value:?}", names.join(", ")),
        _ => {
            let reason = std::error::Error::source(&error).map_or_else(|| "not accepted".to_owned(), |e| e.to_string());
            let is_text = arg.is_none_or(|arg| Kind::of(arg) == Kind::Text);
            let got = if is_text { format!("{value:?}") } else { value.to_owned() };
            format!("expected a value that --{key} accepts, got {got}: {reason}")
        }
    })
}

fn unknown(key: &str, command: &Command) -> String {
    if key == FLAG {
        return "expected a flag that a file can set, got the one that names the file".to_owned();
    }
    let similar = refusal(&format!("--{key}"), command)
        .and_then(|error| match error.get(ContextKind::SuggestedArg) {
            Some(ContextValue::String(flag)) => Some(flag.trim_start_matches('-').to_owned()),
            _ => None,
        })
        .map_or(String::new(), |flag| format!("; did you mean {flag}?"));
    format!("expected the name of a flag of {SERVE}, such as port or max-seqs, got an unknown key{similar}")
}

/// What clap has against one word of a command line, whatever the environment says.
fn refusal(word: &str, command: &Command) -> Option<clap::Error> {
    let command = command.clone().mut_args(|arg| arg.env(None::<&str>));
    command.try_get_matches_from(["worker-orcd", word]).err()
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
