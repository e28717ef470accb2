//! The worker: flags, start-up order, ready callback and subcommands; the only place that names a concrete device.
//!
//! `cli` is the table of everything that can be written on the command line, `config` reads it from a file; `commands` has
//! one file per subcommand.
//! `start` turns a file into a warm executor for all of them; `callback` tells an orchestrator, and
//! `heartbeat` keeps telling it. `access` says who may ask. `scoring` asks a
//! model for the probability of every token of a text.

mod access;
mod answer;
#[cfg(feature = "builtin-model")]
mod builtin;
mod callback;
mod cli;
mod commands;
mod config;
#[cfg(test)]
mod deploy_tests;
mod device;
mod fault;
mod gpu;
mod heartbeat;
mod kv_plan;
mod logging;
mod memory;
mod output;
mod progress;
mod scoring;
mod signals;
mod source;
mod start;
mod verdict;

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap::error::{ContextKind, ContextValue};

use cli::{Cli, Command};
use config::Refused;

fn main() -> ExitCode {
    let outcome = match config::parse(std::env::args_os()) {
        Ok(cli) => run(cli),
        Err(Refused::CommandLine(error)) => refuse(&error),
        Err(Refused::Config(error)) => Err(error),
    };
    match outcome {
        Ok(code) => code,
        Err(error) if error.is::<output::ReaderGone>() => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("error: {}", in_one_sentence(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match cli.command {
        None => commands::serve::run(&cli.serve),
        Some(Command::Serve(args)) => commands::serve::run(&args),
        Some(Command::Generate(args)) => commands::generate::run(&args),
        Some(Command::Chat(args)) => commands::chat::run(&args),
        Some(Command::Inspect(args)) => commands::inspect::run(&args).map(done),
        Some(Command::Tokenize(args)) => commands::tokenize::tokenize(&args).map(done),
        Some(Command::Detokenize(args)) => commands::tokenize::detokenize(&args).map(done),
        Some(Command::Bench(args)) => commands::bench::run(&args).map(done),
        Some(Command::Quantize(args)) => commands::quantize::run(&args),
        Some(Command::Perplexity(args)) => commands::perplexity::run(&args).map(done),
        Some(Command::Compare(args)) => commands::compare::run(&args).map(done),
        Some(Command::Completions(args)) => commands::table::completions(args.shell).map(done),
        Some(Command::Man(args)) => commands::table::man(&args).map(done),
    }
}

/// The error and its causes, each once: some errors repeat their cause in their own words.
fn in_one_sentence(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .reduce(|all, cause| if all.ends_with(&cause) { all } else { all + ": " + &cause })
        .unwrap_or_default()
}

/// Says what is wrong with the command line, and where a value came from if not from there. Prints `--help` too.
fn refuse(error: &clap::Error) -> ! {
    let from_environment = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(arg)) => variable_of(arg),
        _ => None,
    };
    // A closed standard output or error leaves nobody to tell.
    let _ = error.print();
    if let Some(variable) = from_environment {
        output::note(&format!("The value comes from the environment variable {variable}."));
    }
    std::process::exit(error.exit_code())
}

/// The environment variable that gave the flag shown as `--flag <VALUE>` its value, if the command line did not.
fn variable_of(shown: &str) -> Option<String> {
    let flag = shown.split([' ', '=']).next()?.trim_start_matches('-');
    let command = Cli::command();
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(flag))?;
    let is_given = |text: &str| {
        text.strip_prefix("--").is_some_and(|text| text.split('=').next() == Some(flag))
            || arg.get_short().is_some_and(|short| text.starts_with(&format!("-{short}")))
    };
    let variable = arg.get_env()?.to_string_lossy().into_owned();
    let from_environment = !std::env::args_os().skip(1).any(|text| is_given(&text.to_string_lossy()));
    (from_environment && std::env::var_os(&variable).is_some()).then_some(variable)
}
