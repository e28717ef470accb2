//! What can be typed instead of a message: lines that begin with a slash.

use crate::cli::parse_temperature;

/// A command.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Slash {
    /// What the model is told before the conversation; none takes it away.
    System(Option<String>),
    /// The seed of every answer from here on; none draws a new one for each.
    Seed(Option<u64>),
    /// The temperature from here on.
    Temp(f32),
    /// Forget the conversation.
    Reset,
    /// Explain.
    Help,
    /// Leave.
    Quit,
}

/// What `/help` shows, and what the Tab key completes.
pub(crate) const COMMANDS: &[(&str, &str, &str)] = &[
    ("/system", "TEXT", "tell the model this before the conversation; without TEXT, nothing"),
    ("/seed", "N", "the same seed for every answer; without N, a new one for each"),
    ("/temp", "T", "temperature, 0 to 2; 0 always takes the most likely token"),
    ("/reset", "", "forget the conversation"),
    ("/help", "", "this"),
    ("/quit", "", "leave, as Ctrl-D does"),
];

impl Slash {
    /// The command in `text`; none where it is a message.
    ///
    /// # Errors
    /// A command that there is not, or one with a value that it does not take: what to type instead.
    pub(crate) fn parse(text: &str) -> Option<Result<Self, String>> {
        let text = text.trim_end();
        let name = text.split_whitespace().next().filter(|_| text.starts_with('/'))?;
        Some(Self::named(name, text[name.len()..].trim()))
    }

    fn named(name: &str, value: &str) -> Result<Self, String> {
        let alone = |command: Self| match value {
            "" => Ok(command),
            _ => Err(format!("{name} takes no value")),
        };
        match name {
            "/system" => Ok(Self::System((!value.is_empty()).then(|| value.to_owned()))),
            "/seed" if value.is_empty() => Ok(Self::Seed(None)),
            "/seed" => match value.parse() {
                Ok(seed) => Ok(Self::Seed(Some(seed))),
                Err(_) => Err(format!("/seed {value}: needs a whole number from 0 to {}", u64::MAX)),
            },
            "/temp" => match parse_temperature(value) {
                Ok(temperature) => Ok(Self::Temp(temperature)),
                Err(_) => Err(format!("/temp {value}: needs a number from 0 to 2")),
            },
            "/reset" => alone(Self::Reset),
            "/help" => alone(Self::Help),
            "/quit" | "/exit" => alone(Self::Quit),
            _ => Err(format!("{name}: no such command, see /help; a space in front sends it as a message")),
        }
    }
}

/// What `/help` writes.
pub(crate) fn help() -> String {
    let mut text = String::new();
    for (name, value, what) in COMMANDS {
        text += &format!("{:<16}{what}\n", format!("{name} {value}"));
    }
    text + "A line that ends with \\ goes on in the next, as after Alt-Enter; pasted text may have many.\n\
            Ctrl-C stops an answer, or clears the line. Ctrl-D, or Ctrl-C twice, leaves."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> Slash {
        Slash::parse(text).expect("a command").unwrap_or_else(|fault| panic!("{fault}"))
    }

    #[test]
    fn reads_every_command() {
        assert_eq!(command("/system You are a poet. "), Slash::System(Some("You are a poet.".into())));
        assert_eq!(command("/system"), Slash::System(None));
        assert_eq!(command("/seed 18446744073709551615"), Slash::Seed(Some(u64::MAX)));
        assert_eq!(command("/seed"), Slash::Seed(None));
        assert_eq!(command("/temp  0.5"), Slash::Temp(0.5));
        assert_eq!([command("/reset"), command("/help "), command("/quit")], [Slash::Reset, Slash::Help, Slash::Quit]);
    }

    #[test]
    fn a_system_text_may_have_several_lines() {
        assert_eq!(command("/system one\ntwo"), Slash::System(Some("one\ntwo".into())));
        assert_eq!(command("/system\none"), Slash::System(Some("one".into())));
    }

    #[test]
    fn what_does_not_begin_with_a_slash_is_a_message() {
        for text in ["hello", " /help", "", "a /help"] {
            assert_eq!(Slash::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn says_what_a_command_needs() {
        let fault = |text| Slash::parse(text).expect("a command").unwrap_err();
        assert_eq!(fault("/seed -1"), "/seed -1: needs a whole number from 0 to 18446744073709551615");
        assert_eq!(fault("/temp hot"), "/temp hot: needs a number from 0 to 2");
        assert_eq!(fault("/temp"), "/temp : needs a number from 0 to 2");
        assert_eq!(fault("/reset all"), "/reset takes no value");
        assert_eq!(fault("/dance"), "/dance: no such command, see /help; a space in front sends it as a message");
        assert!(fault("/").starts_with("/: no such command"));
    }

    #[test]
    fn help_and_completion_list_what_is_read() {
        for (name, ..) in COMMANDS {
            assert!(!matches!(Slash::parse(name), Some(Err(fault)) if fault.contains("no such")), "{name}");
            assert!(help().contains(name));
        }
    }
}
