//! GBNF's text into rules.

use std::collections::HashMap;

use super::escaped_char;

/// The most that a repetition may count, as in llama.cpp.
const MAX_TIMES: u32 = 2000;

/// How deep groups may be nested. `llguidance` takes Lark of at most 29 levels, the rule's own among them, and the Lark of a
/// group is one of its levels at most.
pub(super) const MAX_GROUPS: usize = 28;

/// A rule; its expression refers to others by their number.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) expr: Expr,
}

#[derive(Debug)]
pub(super) enum Expr {
    /// Characters, as a regular expression without slashes.
    Class(String),
    Rule(usize),
    Sequence(Vec<Expr>),
    Alternatives(Vec<Expr>),
    Repeated(Box<Expr>, u32, Option<u32>),
}

impl Expr {
    /// Adds the rules that it refers to, as often as it does.
    pub(super) fn references(&self, to: &mut Vec<usize>) {
        match self {
            Self::Class(_) => {}
            Self::Rule(at) => to.push(*at),
            Self::Sequence(all) | Self::Alternatives(all) => all.iter().for_each(|expr| expr.references(to)),
            Self::Repeated(expr, ..) => expr.references(to),
        }
    }
}

/// Reads a grammar.
///
/// # Errors
/// What is wrong, with line and column.
pub(super) fn parse(source: &str) -> Result<Vec<Rule>, String> {
    let (numbers, rules, first_use) = (HashMap::new(), Vec::new(), Vec::new());
    let mut parser = Parser { source, at: 0, numbers, rules, first_use, n_groups: 0 };
    parser.skip(true);
    while parser.peek().is_some() {
        parser.rule()?;
        parser.skip(true);
    }
    if !parser.numbers.contains_key("root") || parser.rules[parser.numbers["root"]].is_none() {
        return Err("expected a rule named root, got none".into());
    }
    let Parser { rules, numbers, first_use, .. } = parser;
    let mut names: Vec<String> = vec![String::new(); rules.len()];
    for (name, at) in numbers {
        names[at] = name;
    }
    let named = rules.into_iter().zip(names).zip(first_use);
    let define = |((expr, name), first_use): ((Option<Expr>, String), usize)| match expr {
        Some(expr) => Ok(Rule { name, expr }),
        None => Err(fault_at(source, first_use, &format!("no rule is named {name}"))),
    };
    named.map(define).collect()
}

fn fault_at(source: &str, at: usize, message: &str) -> String {
    let before = &source[..at];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}: {message}")
}

struct Parser<'a> {
    source: &'a str,
    at: usize,
    numbers: HashMap<String, usize>,
    rules: Vec<Option<Expr>>,
    /// Of each rule, where it is first named.
    first_use: Vec<usize>,
    /// Groups that are open.
    n_groups: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.source[self.at..].chars().next()
    }

    fn take(&mut self, text: &str) -> bool {
        let is_there = self.source[self.at..].starts_with(text);
        self.at += if is_there { text.len() } else { 0 };
        is_there
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn fault<T>(&self, message: &str) -> Result<T, String> {
        let got = self.peek().map_or("the end".to_owned(), |c| format!("{c:?}"));
        Err(fault_at(self.source, self.at, &format!("{message}, got {got}")))
    }

    /// Skips spaces and comments, and line ends where the expression may go on behind them.
    fn skip(&mut self, line_ends: bool) {
        loop {
            match self.peek() {
                Some(' ' | '\t') => self.at += 1,
                Some('\r' | '\n') if line_ends => self.at += 1,
                Some('#') => {
                    let rest = &self.source[self.at..];
                    self.at += rest.find(['\r', '\n']).unwrap_or(rest.len());
                }
                _ => return,
            }
        }
    }

    fn rule(&mut self) -> Result<(), String> {
        let begin = self.at;
        let number = self.name()?;
        self.skip(false);
        if !self.take("::=") {
            return self.fault("expected ::=");
        }
        self.skip(true);
        let expr = self.alternatives(false)?;
        if !matches!(self.peek(), None | Some('\r' | '\n')) {
            return self.fault("expected the end of the rule");
        }
        if self.rules[number].replace(expr).is_some() {
            return Err(fault_at(self.source, begin, "a rule of this name is there already"));
        }
        Ok(())
    }

    fn name(&mut self) -> Result<usize, String> {
        let rest = &self.source[self.at..];
        let len = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).unwrap_or(rest.len());
        if len == 0 {
            return self.fault("expected the name of a rule");
        }
        let (name, n) = (rest[..len].to_owned(), self.rules.len());
        let number = *self.numbers.entry(name).or_insert(n);
        if number == n {
            self.rules.push(None);
            self.first_use.push(self.at);
        }
        self.at += len;
        Ok(number)
    }

    fn alternatives(&mut self, is_nested: bool) -> Result<Expr, String> {
        let mut all = vec![self.sequence(is_nested)?];
        loop {
            // An alternative may begin a line of its own.
            let end = self.at;
            self.skip(true);
            if !self.take("|") {
                if !is_nested {
                    self.at = end;
                }
                break;
            }
            self.skip(true);
            all.push(self.sequence(is_nested)?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Expr::Alternatives(all) })
    }

    fn sequence(&mut self, is_nested: bool) -> Result<Expr, String> {
        let mut all = Vec::new();
        loop {
            let Some(expr) = self.element()? else { return Ok(Expr::Sequence(all)) };
            let expr = self.repeated(expr)?;
            all.push(expr);
            self.skip(is_nested);
        }
    }

    fn element(&mut self) -> Result<Option<Expr>, String> {
        match self.peek() {
            Some('"') => self.literal().map(Some),
            Some('[') => self.class().map(Some),
            Some('.') => {
                self.at += 1;
                Ok(Some(Expr::Class("(?s:.)".into())))
            }
            Some('(') => {
                if self.n_groups == MAX_GROUPS {
                    return self.fault(&format!("expected groups at most {MAX_GROUPS} deep"));
                }
                self.n_groups += 1;
                self.at += 1;
                self.skip(true);
                let inner = self.alternatives(true)?;
                self.skip(true);
                self.n_groups -= 1;
                if self.take(")") { Ok(Some(inner)) } else { self.fault("expected )") }
            }
            Some('<' | '!') => self.fault("references to tokens are not supported"),
            Some(c) if c.is_ascii_alphanumeric() || c == '-' || c == '_' => self.name().map(Expr::Rule).map(Some),
            _ => Ok(None),
        }
    }

    fn repeated(&mut self, expr: Expr) -> Result<Expr, String> {
        let (min, max) = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => {
                self.at += 1;
                self.skip(false);
                let min = self.number()?;
                self.skip(false);
                let max = if self.take(",") {
                    self.skip(false);
                    if self.peek() == Some('}') { None } else { Some(self.number()?) }
                } else {
                    Some(min)
                };
                self.skip(false);
                if self.peek() != Some('}') || max.is_some_and(|max| max < min) {
                    return self.fault("expected {m}, {m,} or {m,n} with m at most n");
                }
                (min, max)
            }
            _ => return Ok(expr),
        };
        self.at += 1;
        if matches!(self.peek(), Some('*' | '+' | '?' | '{')) {
            return self.fault("expected one repetition: ( ) around an expression that is repeated again");
        }
        Ok(Expr::Repeated(Box::new(expr), min, max))
    }

    fn number(&mut self) -> Result<u32, String> {
        let rest = &self.source[self.at..];
        let len = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        match rest[..len].parse() {
            Ok(number) if number <= MAX_TIMES => {
                self.at += len;
                Ok(number)
            }
            _ => self.fault(&format!("expected a number up to {MAX_TIMES}")),
        }
    }

    fn literal(&mut self) -> Result<Expr, String> {
        self.at += 1;
        let mut regex = String::new();
        loop {
            match self.peek() {
                Some('"') => break,
                Some(_) => regex.push_str(&escaped_char(self.character()?)),
                None => return self.fault("expected \" at the end of the text"),
            }
        }
        self.at += 1;
        Ok(if regex.is_empty() { Expr::Sequence(Vec::new()) } else { Expr::Class(regex) })
    }

    fn class(&mut self) -> Result<Expr, String> {
        self.at += 1;
        let mut regex = String::from(if self.take("^") { "[^" } else { "[" });
        let n_before = regex.len();
        loop {
            match self.peek() {
                Some(']') => break,
                None => return self.fault("expected ] at the end of the characters"),
                Some(_) => {}
            }
            let first = self.character()?;
            regex.push_str(&escaped_char(first));
            let rest = &self.source[self.at..];
            if rest.starts_with('-') && !rest.starts_with("-]") {
                self.at += 1;
                let last = self.character()?;
                if last < first {
                    return self.fault(&format!("expected a range that ends at {first:?} or behind it"));
                }
                regex.push('-');
                regex.push_str(&escaped_char(last));
            }
        }
        if regex.len() == n_before {
            return self.fault("expected characters");
        }
        self.at += 1;
        regex.push(']');
        Ok(Expr::Class(regex))
    }

    fn character(&mut self) -> Result<char, String> {
        let begin = self.at;
        let Some(c) = self.next() else { return self.fault("expected a character") };
        if c != '\\' {
            return Ok(c);
        }
        let n_digits = match self.next() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some(c @ ('\\' | '"' | '[' | ']')) => return Ok(c),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            _ => 0,
        };
        let digits = self.source[self.at..].get(..n_digits).unwrap_or_default();
        let is_hex = n_digits > 0 && digits.bytes().all(|b| b.is_ascii_hexdigit()) && digits.len() == n_digits;
        match u32::from_str_radix(digits, 16).ok().filter(|_| is_hex).and_then(char::from_u32) {
            Some(c) => {
                self.at += n_digits;
                Ok(c)
            }
            None => {
                Err(fault_at(self.source, begin, "expected an escape: n, r, t, \\, \", [, ], xHH, uHHHH, UHHHHHHHH"))
            }
        }
    }
}
