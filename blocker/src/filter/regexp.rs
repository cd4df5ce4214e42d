//! A compiled regular expression: linear, or with look-around behind a linear gate.
//!
//! Knows nothing of addresses or of what its groups mean. A pattern that the linear engine cannot express runs on a
//! backtracking one, under a limit of steps and only on text that the gate, a linear superset of it, matches.
#![forbid(unsafe_code)]

use std::ops::Range;

use regex::{Regex, RegexBuilder};

use super::dialect::{NOT_IN_WORD, NOT_IN_WORD_LOOKING, Translated};

/// Bytes one compiled pattern may occupy; the largest of fail2ban's own need more than the crate's default.
const COMPILED_BYTES_MAX: usize = 64 << 20;
/// Steps a pattern with look-around may take on one line before it counts as not matching.
const BACKTRACK_STEPS_MAX: usize = 100_000;

/// Ready to search.
#[derive(Debug)]
pub(super) enum Regexp {
    /// Linear in the text, whatever it holds.
    Linear(Regex),
    /// Look-around and the like, behind a linear pattern that matches a superset.
    Gated {
        /// The superset.
        gate: Regex,
        /// The pattern itself.
        full: Box<fancy_regex::Regex>,
    },
}

/// What a search came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Search<T> {
    /// It matches.
    Found(T),
    /// It does not.
    None,
    /// It took more steps than it may; it counts as not matching.
    GaveUp,
}

/// What each group captured; the first one is the whole match.
pub(super) type Groups = Vec<Option<Range<usize>>>;

impl Regexp {
    /// Compiles a pattern that must be linear.
    pub(super) fn linear(pattern: &str) -> Result<Self, String> {
        build(pattern).map(Self::Linear)
    }

    /// Compiles a translated pattern, with the backtracking engine if it must be.
    pub(super) fn any(translated: &Translated) -> Result<Self, String> {
        if let Ok(linear) = build(&translated.full) {
            return Ok(Self::Linear(linear));
        }
        let full = translated.full.replace(NOT_IN_WORD, NOT_IN_WORD_LOOKING);
        let full = fancy_regex::RegexBuilder::new(&full)
            .backtrack_limit(BACKTRACK_STEPS_MAX)
            .delegate_size_limit(COMPILED_BYTES_MAX)
            .build()
            .map_err(|cause| last_line(&cause.to_string()))?;
        Ok(Self::Gated { gate: build(&translated.gate)?, full: Box::new(full) })
    }

    /// The groups that have names, by number.
    pub(super) fn names(&self) -> Vec<(usize, String)> {
        fn named<'a>(names: impl Iterator<Item = Option<&'a str>>) -> Vec<(usize, String)> {
            names.enumerate().filter_map(|(index, name)| Some((index, name?.to_owned()))).collect()
        }
        match self {
            Self::Linear(regex) => named(regex.capture_names()),
            Self::Gated { full, .. } => named(full.capture_names()),
        }
    }

    /// Whether it needs the backtracking engine.
    pub(super) fn is_linear(&self) -> bool {
        matches!(self, Self::Linear(_))
    }

    /// Whether it matches anywhere in `text`; allocates nothing.
    pub(super) fn test(&self, text: &str) -> Search<()> {
        let found = match self {
            Self::Linear(regex) => Ok(regex.is_match(text)),
            Self::Gated { gate, full } => {
                if gate.is_match(text) {
                    full.is_match(text)
                } else {
                    Ok(false)
                }
            }
        };
        match found {
            Ok(true) => Search::Found(()),
            Ok(false) => Search::None,
            Err(_) => Search::GaveUp,
        }
    }

    /// Where the leftmost match is that begins at `start` or behind; several times quicker than [`Self::search`].
    pub(super) fn find(&self, text: &str, start: usize) -> Search<Range<usize>> {
        match self {
            Self::Linear(regex) => {
                regex.find_at(text, start).map_or(Search::None, |m| Search::Found(m.range()))
            }
            Self::Gated { gate, full } => {
                if !gate.is_match_at(text, start) {
                    return Search::None;
                }
                match full.find_from_pos(text, start) {
                    Ok(Some(found)) => Search::Found(found.start()..found.end()),
                    Ok(None) => Search::None,
                    Err(_) => Search::GaveUp,
                }
            }
        }
    }

    /// The leftmost match that begins at `start` or behind; what stands before is seen by anchors and boundaries.
    /// Allocates only when there is one.
    pub(super) fn search(&self, text: &str, start: usize) -> Search<Groups> {
        match self {
            Self::Linear(regex) => {
                if !regex.is_match_at(text, start) {
                    return Search::None;
                }
                match regex.captures_at(text, start) {
                    Some(groups) => Search::Found(groups.iter().map(|g| g.map(|m| m.range())).collect()),
                    None => Search::None,
                }
            }
            Self::Gated { gate, full } => {
                if !gate.is_match_at(text, start) {
                    return Search::None;
                }
                match full.captures_from_pos(text, start) {
                    Ok(Some(groups)) => {
                        Search::Found(groups.iter().map(|g| g.map(|m| m.start()..m.end())).collect())
                    }
                    Ok(None) => Search::None,
                    Err(_) => Search::GaveUp,
                }
            }
        }
    }
}

fn build(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .size_limit(COMPILED_BYTES_MAX)
        .build()
        .map_err(|cause| last_line(&cause.to_string()))
}

/// The crates draw the pattern and put the reason last.
fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or(text).trim_start_matches("error: ").to_owned()
}
