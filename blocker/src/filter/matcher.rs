//! All filters of one source over whole blocks of lines.
//!
//! One Aho-Corasick automaton over the filters' literals runs over the block; only lines with a hit are looked at:
//! decoded, relieved of their date, and offered to the filters. A line without a hit costs no allocation and no
//! look of its own. Where some filter has no literal, every line is offered.
#![forbid(unsafe_code)]

use std::{borrow::Cow, fmt, sync::Arc};

use aho_corasick::{AhoCorasick, MatchKind};

use super::{
    Filter, Verdict,
    date::{self, Clock},
};
use crate::time::Timestamp;

/// Longer lines are skipped and counted; sources cut at the same length.
pub const LINE_BYTES_MAX: usize = 64 << 10;

/// The filters of a source, ready for its blocks.
pub struct SourceMatcher {
    filters: Vec<Arc<Filter>>,
    /// `None` when some filter must see every line.
    prefilter: Option<AhoCorasick>,
    /// The line with its date cut out, where that leaves two parts; kept for its memory.
    scratch: String,
    too_long: u64,
}

impl fmt::Debug for SourceMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceMatcher").field("filters", &self.filters).finish_non_exhaustive()
    }
}

/// A candidate line.
#[derive(Debug)]
pub struct Line<'a> {
    filters: &'a [Arc<Filter>],
    text: &'a str,
    /// The date the line carries, if it was found.
    pub date: Option<Timestamp>,
}

impl Line<'_> {
    /// What the filter with this index, as given to [`SourceMatcher::new`], makes of the line.
    pub fn verdict(&self, filter: usize) -> Option<Verdict> {
        self.filters.get(filter)?.verdict(self.text)
    }
}

impl SourceMatcher {
    /// A matcher for these filters; indices into them name them afterwards.
    pub fn new(filters: Vec<Arc<Filter>>) -> Self {
        let literals: Option<Vec<_>> = filters.iter().map(|filter| filter.literals()).collect();
        let prefilter = literals.and_then(|literals| {
            // The default match kind has no vectorised search. An automaton too large to build only costs speed.
            AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(literals.concat()).ok()
        });
        Self { filters, prefilter, scratch: String::new(), too_long: 0 }
    }

    /// Lines skipped so far because they were longer than [`LINE_BYTES_MAX`].
    pub fn lines_too_long(&self) -> u64 {
        self.too_long
    }

    /// Calls `each` for every line of `block` that some filter could blame, in order.
    pub fn scan(&mut self, block: &[u8], clock: Clock, mut each: impl FnMut(&Line<'_>)) {
        if self.filters.is_empty() {
            return;
        }
        let mut at = 0;
        while let Some(rest) = block.get(at..).filter(|rest| !rest.is_empty()) {
            let hit = match &self.prefilter {
                Some(prefilter) => match prefilter.find(rest) {
                    Some(hit) => hit.start(),
                    None => return,
                },
                None => 0,
            };
            let start = memchr::memrchr(b'\n', &rest[..hit]).map_or(0, |newline| newline + 1);
            let end = memchr::memchr(b'\n', &rest[hit..]).map_or(rest.len(), |newline| hit + newline);
            self.offer(&rest[start..end], clock, &mut each);
            at += end + 1;
        }
    }

    fn offer(&mut self, line: &[u8], clock: Clock, each: &mut impl FnMut(&Line<'_>)) {
        if line.len() > LINE_BYTES_MAX {
            self.too_long += 1;
            return;
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // A byte that is no UTF-8 must hide nothing.
        let line: Cow<'_, str> = String::from_utf8_lossy(line);
        let found = date::find(&line, clock);
        let text = match &found {
            None => &*line,
            Some(found) if found.span.start == 0 => line.get(found.span.end..).unwrap_or(""),
            Some(found) => {
                self.scratch.clear();
                self.scratch.push_str(line.get(..found.span.start).unwrap_or(""));
                self.scratch.push_str(line.get(found.span.end..).unwrap_or(""));
                &self.scratch
            }
        };
        each(&Line { filters: &self.filters, text, date: found.map(|found| found.at) });
    }
}
