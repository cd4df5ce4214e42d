//! All filters of one source over whole blocks of lines.
//!
//! A search for the patterns' literals runs over the block; only lines with a hit are looked at: decoded, relieved of
//! their date, and offered to the patterns that the hit speaks for. A line without a hit costs no allocation and no
//! look of its own. Where some pattern has no literal, every line is offered. What imported filters remember from line
//! to line is kept here, since it belongs to the source.
#![forbid(unsafe_code)]

use std::{borrow::Cow, fmt, sync::Arc};

use jiff::tz::{Offset, TimeZone};

use super::{
    Filter, Rules, Verdict,
    date::{self, Clock},
    field::Field,
    imported::{Failure, Losses, State},
    prefilter::{Candidates, Prefilter},
    regexp::LONG_BYTES,
};
use crate::time::Timestamp;

/// Longer lines are skipped and counted; sources cut at the same length.
pub const LINE_BYTES_MAX: usize = 64 << 10;

/// The filters of a source, ready for its blocks.
pub struct SourceMatcher {
    filters: Vec<Arc<Filter>>,
    prefilter: Prefilter,
    /// By filter: the number of its first pattern.
    first_patterns: Vec<usize>,
    /// The patterns worth trying on the line at hand; kept for its memory.
    candidates: Candidates,
    /// By filter; `None` for those that remember nothing.
    memories: Vec<Option<Memory>>,
    /// By filter: searches in long lines that were left to a slower engine.
    slow: Vec<u64>,
    /// By filter; `None` for those that see the line.
    fields: Vec<Option<Field>>,
    any_field: bool,
    /// Whether some filter is ours, and sees the line without the date that we find.
    any_native: bool,
    any_imported: bool,
    /// Where dates that name no zone are from; `None` for the clock's offset.
    zone: Option<TimeZone>,
    clock_zone: (i32, TimeZone),
    /// The line with its date cut out, where that leaves two parts; kept for its memory.
    scratch: String,
    too_long: u64,
}

/// What an imported filter remembers, and what it made of the line at hand.
#[derive(Debug)]
struct Memory {
    state: State,
    /// `None` until it is asked about this line.
    asked: Option<Option<Failure>>,
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
    memories: &'a mut [Option<Memory>],
    slow: &'a mut [u64],
    first_patterns: &'a [usize],
    candidates: &'a Candidates,
    fields: &'a [Option<Field>],
    /// The line as it came, and decoded.
    bytes: &'a [u8],
    whole: &'a str,
    /// Without its date, for filters of ours.
    text: &'a str,
    date: Option<date::Found>,
    clock: Clock,
    zone: &'a TimeZone,
}

impl Line<'_> {
    /// The whole line as it was written, but for bytes that are no UTF-8.
    pub fn whole(&self) -> &str {
        self.whole
    }

    /// What the filter with this index, as given to [`SourceMatcher::new`], makes of the line.
    pub fn verdict(&mut self, filter: usize) -> Option<Verdict> {
        match &self.filters.get(filter)?.rules {
            Rules::Native(native) => {
                let first = self.first_patterns.get(filter)?;
                let text = match self.fields.get(filter) {
                    Some(Some(field)) => field.text()?,
                    _ => self.text,
                };
                let before = self.slow_searches(filter);
                let verdict = native.verdict(text, |pattern| self.candidates.has(first + pattern));
                self.count_slow(filter, before);
                verdict
            }
            Rules::Imported(_) => self.failure(filter).map(Failure::verdict),
        }
    }

    /// The date the line carries in the eyes of the filter with this index, if it was found.
    pub fn date(&mut self, filter: usize) -> Option<Timestamp> {
        match &self.filters.get(filter)?.rules {
            Rules::Native(_) => {
                let own = self.fields.get(filter).and_then(Option::as_ref);
                let own = own.and_then(|field| field.date(self.clock));
                own.or_else(|| match &self.date {
                    Some(found) => found.at(self.clock),
                    None => date::find_in_json(self.whole)?.at(self.clock),
                })
            }
            Rules::Imported(_) => self.failure(filter)?.date,
        }
    }

    /// Whether the line matched a pattern of the imported filter with this index and is no failure all the same: what it
    /// says of its connection is remembered.
    pub fn is_noted(&mut self, filter: usize) -> bool {
        let is_failure = self.failure(filter).is_some();
        // Asked about this line, then: what it was before says nothing.
        let memory =
            self.memories.get(filter).and_then(Option::as_ref).filter(|memory| memory.asked.is_some());
        !is_failure && memory.is_some_and(|memory| memory.state.has_noted())
    }

    /// The place among the `failregex` of the imported filter with this index of the one that matched, also where that
    /// is no failure yet or none at all, as for `<F-NOFAIL>`.
    pub fn pattern(&mut self, filter: usize) -> Option<usize> {
        self.failure(filter);
        let memory = self.memories.get(filter)?.as_ref()?;
        memory.asked.as_ref().and(memory.state.matched)
    }

    /// Everything that the filter with this index found, if it is an imported one. It is evaluated once, however often
    /// it is asked.
    pub fn failure(&mut self, filter: usize) -> Option<&Failure> {
        let Rules::Imported(rules) = &self.filters.get(filter)?.rules else { return None };
        if !self.candidates.has(*self.first_patterns.get(filter)?) {
            return None;
        }
        let before = self.slow_searches(filter);
        let Memory { state, asked } = self.memories.get_mut(filter)?.as_mut()?;
        if asked.is_none() {
            let decoded = rules.decode(self.bytes);
            let text = decoded.as_deref().unwrap_or(self.whole);
            *asked = Some(rules.evaluate(state, text, self.clock.now, self.zone));
            self.count_slow(filter, before);
        }
        self.memories.get(filter)?.as_ref()?.asked.as_ref()?.as_ref()
    }

    /// What the filter has counted up to now; 0 in a short line, which costs little in every engine.
    fn slow_searches(&self, filter: usize) -> u64 {
        let filter = self.filters.get(filter).filter(|_| self.bytes.len() > LONG_BYTES);
        filter.map_or(0, |filter| filter.slow_searches())
    }

    fn count_slow(&mut self, filter: usize, before: u64) {
        let now = self.slow_searches(filter);
        if let Some(slow) = self.slow.get_mut(filter) {
            *slow += now.saturating_sub(before);
        }
    }
}

impl SourceMatcher {
    /// A matcher for these filters; indices into them name them afterwards.
    pub fn new(filters: Vec<Arc<Filter>>) -> Self {
        let mut required = Vec::new();
        let mut first_patterns = Vec::new();
        for filter in &filters {
            first_patterns.push(required.len());
            required.extend(filter.required());
        }
        let memories = filters.iter().map(|filter| match &filter.rules {
            Rules::Native(_) => None,
            Rules::Imported(rules) => Some(Memory { state: State::new(rules), asked: None }),
        });
        let fields = filters.iter().map(|filter| filter.spec().field.clone().map(Field::new));
        Self {
            fields: fields.collect(),
            any_field: filters.iter().any(|filter| filter.spec().field.is_some()),
            memories: memories.collect(),
            slow: vec![0; filters.len()],
            any_imported: filters.iter().any(|filter| matches!(filter.rules, Rules::Imported(_))),
            any_native: filters.iter().any(|filter| matches!(filter.rules, Rules::Native(_))),
            filters,
            prefilter: Prefilter::new(&required),
            first_patterns,
            candidates: Candidates::default(),
            zone: None,
            clock_zone: (0, TimeZone::UTC),
            scratch: String::new(),
            too_long: 0,
        }
    }

    /// Sets the zone of dates that name none; without it, imported filters use the clock's offset all year round.
    pub fn set_zone(&mut self, zone: TimeZone) {
        self.zone = Some(zone);
    }

    /// Takes over what filters of `former` that read like ones of this matcher remember of the same log, but for what
    /// they lost.
    pub fn adopt(&mut self, former: &mut Self) {
        for (filter, memory) in self.filters.iter().zip(&mut self.memories) {
            let Some(memory) = memory else { continue };
            let alike = former.filters.iter().zip(&mut former.memories).find_map(|(known, known_memory)| {
                known.spec().reads_like(filter.spec()).then(|| known_memory.take()).flatten()
            });
            if let Some(mut known) = alike {
                known.state.forget_losses();
                *memory = known;
            }
        }
    }

    /// Sets how many connections each imported filter remembers, and how many bytes of lines it joins.
    pub fn set_bounds(&mut self, connections_max: usize, joined_bytes_max: usize) {
        for memory in self.memories.iter_mut().flatten() {
            memory.state.set_bounds(connections_max, joined_bytes_max);
        }
    }

    /// What its bounds have cost the filter with this index.
    pub fn losses(&self, filter: usize) -> Losses {
        let memory = self.memories.get(filter).and_then(Option::as_ref);
        let mut losses = memory.map_or_else(Losses::default, |memory| memory.state.losses());
        if let Some(Some(field)) = self.fields.get(filter) {
            (losses.not_json, losses.no_field) = (field.not_json, field.no_field);
        }
        Losses { slow: self.slow.get(filter).copied().unwrap_or(0), ..losses }
    }

    /// Lines skipped so far because they were longer than [`LINE_BYTES_MAX`].
    pub fn lines_too_long(&self) -> u64 {
        self.too_long
    }

    /// Calls `each` for every line of `block` that some filter could blame, in order.
    pub fn scan(&mut self, block: &[u8], clock: Clock, mut each: impl FnMut(&mut Line<'_>)) {
        if self.filters.is_empty() {
            return;
        }
        let (mut start, mut hit) = (0, self.prefilter.find(block, 0));
        while start < block.len() {
            let within = match hit {
                _ if self.prefilter.every_line => start,
                Some(hit) => hit.start,
                None => return,
            };
            start =
                memchr::memrchr(b'\n', &block[start..within]).map_or(start, |newline| start + newline + 1);
            let end = memchr::memchr(b'\n', &block[within..]).map_or(block.len(), |newline| within + newline);
            hit = self.prefilter.candidates(block, hit, end, &mut self.candidates);
            self.offer(&block[start..end], clock, &mut each);
            start = end + 1;
        }
    }

    fn offer(&mut self, line: &[u8], clock: Clock, each: &mut impl FnMut(&mut Line<'_>)) {
        if line.len() > LINE_BYTES_MAX {
            self.too_long += 1;
            return;
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // A byte that is no UTF-8 must hide nothing.
        let whole = match std::str::from_utf8(line) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => String::from_utf8_lossy(line),
        };
        let found = if self.any_native { date::find(&whole) } else { None };
        let text = match &found {
            None => &*whole,
            Some(found) if found.span.start == 0 => whole.get(found.span.end..).unwrap_or(""),
            Some(found) => {
                self.scratch.clear();
                self.scratch.push_str(whole.get(..found.span.start).unwrap_or(""));
                self.scratch.push_str(whole.get(found.span.end..).unwrap_or(""));
                &self.scratch
            }
        };
        if self.any_field {
            read_fields(&mut self.fields, &self.first_patterns, &self.candidates, &whole);
        }
        if self.clock_zone.0 != clock.utc_offset_secs {
            let offset = Offset::from_seconds(clock.utc_offset_secs).unwrap_or(Offset::UTC);
            self.clock_zone = (clock.utc_offset_secs, TimeZone::fixed(offset));
        }
        let mut line = Line {
            filters: &self.filters,
            memories: &mut self.memories,
            slow: &mut self.slow,
            first_patterns: &self.first_patterns,
            candidates: &self.candidates,
            fields: &self.fields,
            bytes: line,
            whole: &whole,
            text,
            date: found,
            clock,
            zone: self.zone.as_ref().unwrap_or(&self.clock_zone.1),
        };
        each(&mut line);
        if !self.any_imported {
            return;
        }
        // What nobody asked about must be remembered all the same.
        for filter in 0..self.filters.len() {
            line.failure(filter);
            if let Some(Some(memory)) = line.memories.get_mut(filter) {
                memory.asked = None;
            }
        }
    }
}

/// Reads the fields of those filters that have a pattern worth trying on this line.
fn read_fields(fields: &mut [Option<Field>], firsts: &[usize], candidates: &Candidates, line: &str) {
    for (filter, field) in fields.iter_mut().enumerate() {
        let Some(field) = field else { continue };
        let first = firsts.get(filter).copied().unwrap_or(0);
        if candidates.has_any(first..firsts.get(filter + 1).copied().unwrap_or(usize::MAX)) {
            field.read(line);
        } else {
            field.clear();
        }
    }
}
