//! One pattern of fail2ban's by itself, for tools and tests that look at what it matches.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::filter::{
    dialect::{self, Imported},
    regexp::{Regexp, Search},
};

/// A pattern with its tags put in, ready to search.
#[derive(Debug)]
pub struct Expression {
    regexp: Regexp,
    names: Vec<(usize, String)>,
}

/// A match: the bytes it takes, and those of each named group that captured something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The whole match.
    pub span: Range<usize>,
    /// The groups by name, in the order of the pattern.
    pub groups: Vec<(String, Range<usize>)>,
}

impl Expression {
    /// Compiles a pattern. Without `names`, `<HOST>` takes addresses only; with `lines`, `^` and `$` are ends of lines.
    ///
    /// # Errors
    /// Says why it does not compile.
    pub fn new(pattern: &str, names: bool, lines: bool) -> Result<Self, String> {
        let translated = dialect::translate_imported(pattern, Imported { names, lines })
            .map_err(|(what, hint)| if hint.is_empty() { what } else { format!("{what}; {hint}") })?;
        let regexp = Regexp::any(&translated)?;
        Ok(Self { names: regexp.names(), regexp })
    }

    /// Whether it runs in time linear in the text, whatever the text is.
    pub fn is_linear(&self) -> bool {
        self.regexp.is_linear()
    }

    /// The leftmost match; `None` too where it took more steps than it may.
    pub fn find(&self, text: &str) -> Option<Match> {
        let Search::Found(groups) = self.regexp.search(text, 0, &[]) else { return None };
        let span = |number: usize| groups.get(number).cloned().flatten();
        let named = self.names.iter().filter_map(|(number, name)| Some((name.clone(), span(*number)?)));
        Some(Match { span: span(0)?, groups: named.collect() })
    }
}
