//! `completions` and `man`: the table of flags in the form that a shell or a manual wants.

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::{Cli, ManArgs};
use crate::output;

/// The script that makes `shell` complete this command line.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    output::write(&script(shell))
}

/// A manual page, as troff: the worker's, or that of one subcommand.
pub(crate) fn man(args: &ManArgs) -> anyhow::Result<()> {
    output::write(&page(args.command.as_deref())?)
}

fn script(shell: Shell) -> String {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "worker-orcd", &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn page(name: Option<&str>) -> anyhow::Result<String> {
    let mut whole = Cli::command().disable_help_subcommand(true);
    // Gives subcommands the whole command line's name.
    whole.build();
    let names = || whole.get_subcommands().map(Command::get_name).collect::<Vec<_>>().join(", ");
    let command = match name {
        None => whole.clone(),
        Some(name) => match whole.find_subcommand(name) {
            Some(command) => command.clone(),
            None => anyhow::bail!("man {name}: no such subcommand; there are {}", names()),
        },
    };
    let mut bytes = Vec::new();
    Man::new(command).source(concat!("worker-orcd ", env!("CARGO_PKG_VERSION"))).render(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    /// The long flags of a command.
    fn flags(command: &Command) -> Vec<String> {
        command.get_arguments().filter_map(|arg| arg.get_long()).map(str::to_owned).collect()
    }

    #[test]
    fn completions_know_every_flag_and_subcommand() {
        for &shell in Shell::value_variants() {
            let script = script(shell);
            let command = Cli::command();
            let mut words: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
            words.extend(command.get_subcommands().chain([&command]).flat_map(flags));
            assert!(words.len() > 40 && words.contains(&"serve".to_owned()));
            for word in words {
                assert!(script.contains(&word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn manual_pages_explain_every_flag() {
        let command = Cli::command();
        for (name, command) in
            command.get_subcommands().map(|sub| (Some(sub.get_name()), sub)).chain([(None, &command)])
        {
            let page = page(name).unwrap();
            let title = name.map_or("worker-orcd".to_owned(), |name| format!("worker-orcd-{name}"));
            assert!(page.contains(&format!(".TH {title} 1 ")), "{page}");
            for flag in flags(command) {
                // troff wants a hyphen that is one written with a backslash.
                let flag = format!(r"\-\-{}", flag.replace('-', r"\-"));
                assert!(page.contains(&flag), "{title}: {flag}: {page}");
            }
        }
        let page = page(None).unwrap();
        assert!(page.contains("WORKER_ORCD_PORT") && page.contains("worker\\-orcd\\-serve(1)"), "{page}");
    }

    #[test]
    fn a_page_of_no_subcommand_is_refused() {
        let error = page(Some("cook")).unwrap_err().to_string();
        assert!(error.starts_with("man cook: no such subcommand; there are serve, generate, "), "{error}");
    }
}
