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
    let references: Vec<Vec<usize>> = rules.iter().map(|rule| rule.expr.references()).collect();
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
        let (name, expr) = (self.name(at), &self.rules[at].expr);
        let body = if self.is_regular[at] { self.terminal(expr) } else { self.mixed(expr) };
        // Writing to a string does not fail.
        let _ = writeln!(self.lark, "{name}: {body}");
    }

    fn regular(&self, expr: &Expr) -> bool {
        expr.references().into_iter().all(|at| self.is_regular[at])
    }

    /// An expression as part of a lexeme.
    fn terminal(&self, expr: &Expr) -> String {
        match expr {
            Expr::Class(regex) => format!("/{regex}/"),
            Expr::Rule(at) => self.name(*at),
            Expr::Sequence(all) if all.is_empty() => "\"\"".into(),
            Expr::Sequence(all) => all.iter().map(|expr| self.terminal(expr)).collect::<Vec<_>>().join(" "),
            Expr::Alternatives(all) => {
                let all: Vec<String> = all.iter().map(|expr| self.terminal(expr)).collect();
                format!("({})", all.join(" | "))
            }
            Expr::Repeated(expr, min, max) => format!("({}){}", self.terminal(expr), times(*min, *max)),
        }
    }

    /// An expression that refers to a rule that refers to itself.
    fn mixed(&mut self, expr: &Expr) -> String {
        if self.regular(expr) {
            return self.run(std::slice::from_ref(expr));
        }
        match expr {
            Expr::Sequence(all) => {
                let mut parts = Vec::new();
                let mut rest = all.as_slice();
                while !rest.is_empty() {
                    let n = rest.iter().take_while(|expr| self.regular(expr)).count();
                    parts.push(if n > 0 { self.run(&rest[..n]) } else { self.mixed(&rest[0]) });
                    rest = &rest[n.max(1)..];
                }
                format!("({})", parts.join(" "))
            }
            Expr::Alternatives(all) => {
                let all: Vec<String> = all.iter().map(|expr| self.mixed(expr)).collect();
                format!("({})", all.join(" | "))
            }
            Expr::Repeated(expr, min, max) => format!("({}){}", self.mixed(expr), times(*min, *max)),
            Expr::Rule(at) => self.name(*at),
            Expr::Class(regex) => format!("/{regex}/"),
        }
    }

    /// Neighbours that are regular, as one lexeme.
    fn run(&mut self, all: &[Expr]) -> String {
        let body: Vec<String> = all.iter().map(|expr| self.terminal(expr)).collect();
        let name = format!("RUN{}", self.n_runs);
        self.n_runs += 1;
        let _ = writeln!(self.lark, "{name}: {}", body.join(" "));
        name
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
