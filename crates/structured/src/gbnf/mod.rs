//! llama.cpp's GBNF, brought into `llguidance`'s dialect of Lark.
//!
//! GBNF knows characters, Lark knows lexemes: a lexeme is a regular expression and takes as much text as it can. So whatever
//! in a grammar does not refer to itself becomes one lexeme, as large as it can be. A grammar without recursion is one
//! lexeme altogether, and its language is exactly that of the GBNF. With recursion, every text of the Lark grammar is one of
//! the GBNF too; the other way round there are exceptions where a lexeme takes what only the next one could have used, as in
//! `x ::= "a"* ("a" x)?`.
//!
//! Covered: rules, literals, character classes, `.`, groups, alternatives, `* + ? {m} {m,} {m,n}`, comments. Refused with
//! line and column: references to tokens (`<think>`, `!<[7]>`).

mod parse;

use std::fmt::Write;

use parse::{Expr, Rule};

/// The Lark of a GBNF grammar.
///
/// # Errors
/// What is wrong, with line and column.
pub(crate) fn to_lark(source: &str) -> Result<String, String> {
    let rules = parse::parse(source)?;
    let mut writer = Writer { is_regular: regular_rules(&rules), rules: &rules, lark: String::new(), n_runs: 0 };
    for at in 0..rules.len() {
        writer.rule(at);
    }
    let root = rules.iter().position(|rule| rule.name == "root").unwrap_or_default();
    Ok(format!("start: {}\n{}", writer.name(root), writer.lark))
}

/// Of each rule, whether it refers, over however many others, to none that refers to itself.
fn regular_rules(rules: &[Rule]) -> Vec<bool> {
    let mut references: Vec<Vec<usize>> = vec![Vec::new(); rules.len()];
    rules.iter().zip(&mut references).for_each(|(rule, to)| rule.expr.references(to));
    // A rule is regular once all that it refers to are: what is never reached that way lies on a circle or leads to one.
    let mut n_open: Vec<usize> = references.iter().map(Vec::len).collect();
    let mut referring = vec![Vec::new(); rules.len()];
    for (from, to) in references.iter().enumerate().flat_map(|(from, all)| all.iter().map(move |&to| (from, to))) {
        referring[to].push(from);
    }
    let mut ready: Vec<usize> = (0..rules.len()).filter(|&at| n_open[at] == 0).collect();
    let mut is_regular = vec![false; rules.len()];
    while let Some(at) = ready.pop() {
        is_regular[at] = true;
        for &from in &referring[at] {
            n_open[from] -= 1;
            if n_open[from] == 0 {
                ready.push(from);
            }
        }
    }
    is_regular
}

struct Writer<'a> {
    rules: &'a [Rule],
    is_regular: Vec<bool>,
    lark: String,
    /// Lexemes made of pieces of rules.
    n_runs: usize,
}

impl Writer<'_> {
    /// Lark tells lexemes from rules by their letters.
    fn name(&self, at: usize) -> String {
        if self.is_regular[at] { format!("T{at}") } else { format!("r{at}") }
    }

    fn rule(&mut self, at: usize) {
        let (name, rules) = (self.name(at), self.rules);
        let body = self.write(&rules[at].expr).text;
        // Writing to a string does not fail.
        let _ = writeln!(self.lark, "{name}: {body}");
    }

    /// An expression, each part of it written once: as part of a lexeme where it is regular, else with its regular parts as
    /// lexemes of their own.
    fn write(&mut self, expr: &Expr) -> Written {
        match expr {
            Expr::Class(regex) => Written { text: format!("/{regex}/"), is_regular: true, binds: Binds::Alone },
            Expr::Rule(at) => Written { text: self.name(*at), is_regular: self.is_regular[*at], binds: Binds::Alone },
            Expr::Sequence(all) if all.is_empty() => {
                Written { text: "\"\"".into(), is_regular: true, binds: Binds::Alone }
            }
            Expr::Sequence(all) => self.sequence(all),
            Expr::Alternatives(all) => {
                let all: Vec<Written> = all.iter().map(|expr| self.write(expr)).collect();
                let is_regular = all.iter().all(|part| part.is_regular);
                let parts = all.into_iter().map(|part| if is_regular { part.text } else { self.outside_lexeme(part) });
                let text = parts.collect::<Vec<_>>().join(" | ");
                Written { text, is_regular, binds: Binds::Alternatives }
            }
            Expr::Repeated(expr, min, max) => {
                let part = self.write(expr);
                let text = format!("{}{}", part.within(Binds::Alone), times(*min, *max));
                Written { text, is_regular: part.is_regular, binds: Binds::Sequence }
            }
        }
    }

    /// Neighbours that are regular become one lexeme together.
    fn sequence(&mut self, all: &[Expr]) -> Written {
        if let [only] = all {
            return self.write(only);
        }
        let all: Vec<Written> = all.iter().map(|expr| self.write(expr)).collect();
        let is_regular = all.iter().all(|part| part.is_regular);
        let parts = all.chunk_by(|a, b| a.is_regular && b.is_regular).map(|neighbours| {
            let texts: Vec<String> = neighbours.iter().map(|part| part.within(Binds::Sequence)).collect();
            let text = texts.join(" ");
            if neighbours[0].is_regular && !is_regular { self.lexeme(&text) } else { text }
        });
        Written { text: parts.collect::<Vec<_>>().join(" "), is_regular, binds: Binds::Sequence }
    }

    /// A part as it stands between others that are not regular.
    fn outside_lexeme(&mut self, part: Written) -> String {
        if part.is_regular { self.lexeme(&part.text) } else { part.text }
    }

    /// A lexeme of its own, by its name.
    fn lexeme(&mut self, body: &str) -> String {
        let name = format!("RUN{}", self.n_runs);
        self.n_runs += 1;
        let _ = writeln!(self.lark, "{name}: {body}");
        name
    }
}

/// An expression in Lark.
struct Written {
    text: String,
    /// Whether it can be part of a lexeme.
    is_regular: bool,
    binds: Binds,
}

/// What holds an expression together, the weakest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binds {
    Alternatives,
    Sequence,
    Alone,
}

impl Written {
    /// In brackets, unless it holds together as well as this without.
    fn within(&self, binds: Binds) -> String {
        if self.binds >= binds { self.text.clone() } else { format!("({})", self.text) }
    }
}

fn times(min: u32, max: Option<u32>) -> String {
    match (min, max) {
        (0, None) => "*".into(),
        (1, None) => "+".into(),
        (0, Some(1)) => "?".into(),
        (min, None) => format!("{{{min},}}"),
        (min, Some(max)) => format!("{{{min},{max}}}"),
    }
}

/// Text that a regular expression between slashes is to match as it is.
pub(crate) fn escaped_for_regex(text: &str) -> String {
    text.chars().map(escaped_char).collect()
}

fn escaped_char(c: char) -> String {
    if c.is_ascii_alphanumeric() || (!c.is_ascii() && !c.is_control()) {
        c.to_string()
    } else {
        format!("\\x{{{:x}}}", u32::from(c))
    }
}
