//! A compiled regular expression: linear, or with look-around behind a linear gate.
//!
//! Knows nothing of addresses or of what its groups mean. A pattern that the linear engine cannot express runs on a
//! backtracking one, under a limit of steps and only on text that the gate, a linear superset of it, matches.
#![forbid(unsafe_code)]

use std::{ops::Range, sync::OnceLock};

use regex::{Regex, RegexBuilder};

use super::{
    dialect::{NOT_IN_WORD, NOT_IN_WORD_LOOKING, Translated},
    trail::{Cut, Trail},
};

/// Bytes one compiled pattern may occupy; the largest of fail2ban's own need more than the crate's default.
const COMPILED_BYTES_MAX: usize = 64 << 20;
/// Steps a pattern with look-around may take on one line before it counts as not matching.
const BACKTRACK_STEPS_MAX: usize = 100_000;
/// In a text longer than this, captures are left to [`Trail`], which costs more to begin with and less per byte.
pub(super) const LONG_BYTES: usize = 2 << 10;

/// Ready to search.
#[derive(Debug)]
pub(super) enum Regexp {
    /// Linear in the text, whatever it holds.
    Linear(Box<Linear>),
    /// Look-around and the like, behind a linear pattern that matches a superset.
    Gated {
        /// The superset.
        gate: Box<Linear>,
        /// The pattern itself.
        full: Box<fancy_regex::Regex>,
        /// The same for long texts, if it asks for no more than assertions about what follows.
        long: Box<LongGated>,
    },
}

/// A linear pattern, with the engine for long texts.
#[derive(Debug)]
pub(super) struct Linear {
    regex: Regex,
    /// It looks for ends of words, as Unicode has them.
    looks_at_words: bool,
    /// It matches at the start of a text only.
    anchored: bool,
    /// Compiled when the first long text asks for it.
    trail: OnceLock<Option<Trail>>,
}

/// A pattern with assertions, compiled when the first long text asks for it.
#[derive(Debug)]
pub(super) struct LongGated {
    cut: Option<Cut>,
    trail: OnceLock<Option<Trail>>,
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

impl Linear {
    fn new(pattern: &str) -> Result<Self, String> {
        let regex = build(pattern)?;
        let hir = regex_syntax::parse(pattern).ok();
        let looks = hir.as_ref().map(|hir| hir.properties().look_set());
        let looks_at_words = looks.is_some_and(|looks| looks.contains_word_unicode());
        let anchored = (hir.as_ref())
            .is_some_and(|hir| hir.properties().look_set_prefix().contains(regex_syntax::hir::Look::Start));
        Ok(Self { regex, looks_at_words, anchored, trail: OnceLock::new() })
    }

    fn is_match_at(&self, text: &str, start: usize) -> bool {
        let trail = self.trail_if(is_long(text, start) && self.is_slow(text));
        match trail.map(|trail| trail.is_match(text, start)) {
            Some(Ok(found)) => found,
            _ => self.regex.is_match_at(text, start),
        }
    }

    /// Where the leftmost match begins, or an earlier place; a pattern that matches less begins nowhere before.
    fn begin_at(&self, text: &str, start: usize) -> Option<usize> {
        if is_long(text, start) {
            return self.find_at(text, start).map(|found| found.start);
        }
        self.is_match_at(text, start).then_some(start)
    }

    fn find_at(&self, text: &str, start: usize) -> Option<Range<usize>> {
        // The crate's ways to a match that begins anywhere may look at some text several times.
        let trail = self.trail_if(is_long(text, start) && (!self.anchored || self.is_slow(text)));
        match trail.map(|trail| trail.find(text, start)) {
            Some(Ok(found)) => found,
            _ => self.regex.find_at(text, start).map(|found| found.range()),
        }
    }

    /// Allocates only when there is a match, or the text is long.
    fn captures_at(&self, text: &str, start: usize, wanted: &[usize]) -> Option<Groups> {
        let long = is_long(text, start);
        // One that is bound to the start fails there, and the crate has quick ways to see that another one fails.
        let try_match = !(long && self.anchored);
        if try_match && !self.is_match_at(text, start) {
            return None;
        }
        match self.trail_if(long).map(|trail| trail.captures(text, start, wanted)) {
            Some(Ok(found)) => found,
            _ => {
                let groups = self.regex.captures_at(text, start)?;
                Some(groups.iter().map(|group| group.map(|found| found.range())).collect())
            }
        }
    }

    /// Whether the crate cannot use its automaton on this text.
    fn is_slow(&self, text: &str) -> bool {
        self.looks_at_words && !text.is_ascii()
    }

    fn trail_if(&self, wanted: bool) -> Option<&Trail> {
        if !wanted {
            return None;
        }
        self.trail.get_or_init(|| Trail::new(self.regex.as_str(), COMPILED_BYTES_MAX)).as_ref()
    }
}

#[cfg(test)]
impl Regexp {
    /// As [`Self::search`], by the crate's own captures.
    pub(super) fn search_plainly(&self, text: &str) -> Option<Groups> {
        let (Self::Linear(linear) | Self::Gated { gate: linear, .. }) = self;
        let groups = linear.regex.captures(text)?;
        Some(groups.iter().map(|group| group.map(|found| found.range())).collect())
    }
}

impl LongGated {
    fn trail_if(&self, wanted: bool) -> Option<&Trail> {
        let cut = self.cut.as_ref().filter(|_| wanted)?;
        self.trail.get_or_init(|| Trail::asserting(cut, COMPILED_BYTES_MAX)).as_ref()
    }
}

fn is_long(text: &str, start: usize) -> bool {
    text.len().saturating_sub(start) > LONG_BYTES
}

impl Regexp {
    /// Compiles a pattern that must be linear.
    pub(super) fn linear(pattern: &str) -> Result<Self, String> {
        Linear::new(pattern).map(|linear| Self::Linear(linear.into()))
    }

    /// Compiles a translated pattern, with the backtracking engine if it must be.
    pub(super) fn any(translated: &Translated) -> Result<Self, String> {
        if let Ok(linear) = Linear::new(&translated.full) {
            return Ok(Self::Linear(linear.into()));
        }
        let long = LongGated { cut: Cut::new(&translated.full), trail: OnceLock::new() }.into();
        let full = translated.full.replace(NOT_IN_WORD, NOT_IN_WORD_LOOKING);
        let full = fancy_regex::RegexBuilder::new(&full)
            .backtrack_limit(BACKTRACK_STEPS_MAX)
            .delegate_size_limit(COMPILED_BYTES_MAX)
            .build()
            .map_err(|cause| last_line(&cause.to_string()))?;
        Ok(Self::Gated { gate: Linear::new(&translated.gate)?.into(), full: Box::new(full), long })
    }

    /// The groups that have names, by number.
    pub(super) fn names(&self) -> Vec<(usize, String)> {
        fn named<'a>(names: impl Iterator<Item = Option<&'a str>>) -> Vec<(usize, String)> {
            names.enumerate().filter_map(|(index, name)| Some((index, name?.to_owned()))).collect()
        }
        match self {
            Self::Linear(linear) => named(linear.regex.capture_names()),
            Self::Gated { full, .. } => named(full.capture_names()),
        }
    }

    /// How many long texts were left to an engine that costs many times as much a byte.
    pub(super) fn slow_searches(&self) -> u64 {
        let of =
            |trail: &OnceLock<Option<Trail>>| trail.get().and_then(Option::as_ref).map_or(0, Trail::gave_up);
        match self {
            Self::Linear(linear) => of(&linear.trail),
            Self::Gated { gate, long, .. } => of(&gate.trail) + of(&long.trail),
        }
    }

    /// Whether it needs the backtracking engine.
    pub(super) fn is_linear(&self) -> bool {
        matches!(self, Self::Linear(_))
    }

    /// Whether it matches anywhere in `text`; allocates nothing.
    pub(super) fn test(&self, text: &str) -> Search<()> {
        let found = match self {
            Self::Linear(linear) => Ok(linear.is_match_at(text, 0)),
            Self::Gated { gate, full, long } => {
                if let Some(trail) = long.trail_if(is_long(text, 0))
                    && let Ok(found) = trail.is_match(text, 0)
                {
                    Ok(found)
                } else if let Some(begin) = gate.begin_at(text, 0) {
                    full.find_from_pos(text, begin).map(|found| found.is_some())
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
            Self::Linear(linear) => linear.find_at(text, start).map_or(Search::None, Search::Found),
            Self::Gated { gate, full, long } => {
                if let Some(trail) = long.trail_if(is_long(text, start))
                    && let Ok(found) = trail.find(text, start)
                {
                    return found.map_or(Search::None, Search::Found);
                }
                let Some(begin) = gate.begin_at(text, start) else { return Search::None };
                match full.find_from_pos(text, begin) {
                    Ok(Some(found)) => Search::Found(found.start()..found.end()),
                    Ok(None) => Search::None,
                    Err(_) => Search::GaveUp,
                }
            }
        }
    }

    /// The leftmost match that begins at `start` or behind; what stands before is seen by anchors and boundaries.
    /// Only groups that are `wanted` need be among what it finds; all are if none is. Allocates only when there is a
    /// match, or the text is long.
    pub(super) fn search(&self, text: &str, start: usize, wanted: &[usize]) -> Search<Groups> {
        match self {
            Self::Linear(linear) => {
                linear.captures_at(text, start, wanted).map_or(Search::None, Search::Found)
            }
            Self::Gated { gate, full, long } => {
                if let Some(trail) = long.trail_if(is_long(text, start))
                    && gate.is_match_at(text, start)
                    && let Ok(found) = trail.captures(text, start, wanted)
                {
                    return found.map_or(Search::None, Search::Found);
                }
                let Some(begin) = gate.begin_at(text, start) else { return Search::None };
                match full.captures_from_pos(text, begin) {
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
