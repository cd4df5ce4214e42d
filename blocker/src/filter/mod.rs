//! From a line to a failure.
#![forbid(unsafe_code)]

use std::{path::PathBuf, sync::Arc};

/// A filter as its file says it, before it is compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterSpec {
    /// Its name: the file's stem.
    pub name: String,
    /// One sentence, or empty.
    pub description: String,
    /// Where it was read, for messages; empty for a built-in one.
    pub path: PathBuf,
    /// Whose pattern language it is in.
    pub dialect: Dialect,
    /// What makes a line a failure; in order, the first match wins.
    pub failregex: Vec<Pattern>,
    /// A match of one of these takes a failure back.
    pub ignoreregex: Vec<Pattern>,
    /// Must match first; its `<F-CONTENT>` is what `failregex` sees.
    pub prefregex: Option<Pattern>,
    /// Lines that must or must not match.
    pub samples: Vec<Sample>,
}

/// A pattern and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The text, with its `<HOST>` and other tags.
    pub text: String,
    /// File and 1-based line, for messages.
    pub at: Place,
}

/// A place in a configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file; empty for built-in text.
    pub path: PathBuf,
    /// 1-based line; 0 when unknown.
    pub line: u32,
    /// 1-based column in characters; 0 when unknown.
    pub column: u32,
}

/// Whose regular expressions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Ours: the `regex` crate's, linear, with `<HOST>`/`<ADDR>`.
    #[default]
    Native,
    /// fail2ban's: Python's `re` with fail2ban's tags.
    Fail2ban,
}

/// A sample line and what must come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The whole line, as the daemon writes it.
    pub line: String,
    /// The address it is blamed on; `None` when it must not be a failure of anybody.
    pub host: Option<String>,
    /// Where it stands.
    pub at: Place,
}

/// A compiled filter.
#[derive(Debug)]
pub struct Filter {
    /// Its name.
    pub name: Arc<str>,
}
