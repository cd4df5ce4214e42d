//! Filters in fail2ban's language, evaluated as fail2ban does.
//!
//! What they make of a line depends on the lines before it: which form its dates have, what is known of the
//! connection, and with `maxlines` the lines themselves. That is the [`State`] of one filter on one source; the
//! [`Rules`] are shared. Nothing is ever resolved: where fail2ban would ask for the address of a name there is none.
//!
//! | module | story |
//! |---|---|
//! | `pattern` | one pattern and what its groups are called |
//! | `expression` | one pattern by itself, for tools and tests |
//! | `failure` | what was captured, and who is blamed |
//! | `connections` | lines of one connection, by `<F-MLFID>` |
//! | `lines` | the last lines, for patterns over several |
//! | `date` | finds the date and learns which form it has |
#![forbid(unsafe_code)]

use std::{cell::Cell, time::Duration};

use encoding_rs::Encoding;
use jiff::tz::TimeZone;

use super::{Dialect, FilterError, FilterSpec, Pattern, Verdict, dialect::Imported, regexp::Groups};
use crate::time::Timestamp;

mod connections;
mod date;
mod expression;
mod failure;
mod lines;
mod pattern;

use connections::Connections;
pub use connections::{CONNECTION_SPAN, CONNECTIONS_MAX};
use date::{Detector, Forms, zone_of};
pub use expression::{Expression, Match};
use failure::Facts;
pub use failure::{Failure, Value};
use lines::Lines;
pub use lines::{JOINED_BYTES_MAX, JOINED_LINES_MAX};
use pattern::Compiled;

/// A line without a date has the date of the last one that had one, if that is no older than this.
const LAST_DATE_SPAN: Duration = Duration::from_secs(60);

/// What a fail2ban filter, or the jail that names it, sets besides patterns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fail2banOptions {
    /// Forms of dates, one a line; fail2ban's own where there is none.
    pub datepattern: Option<Pattern>,
    /// How many lines a pattern sees at once; 0 and 1 mean one.
    pub maxlines: usize,
    /// `usedns = no`: `<HOST>` takes no host name. Names are never resolved, whatever this says.
    pub addresses_only: bool,
    /// `logtype = journal`: the source gives the time, so no date is looked for.
    pub journal: bool,
    /// The zone of dates that name none, such as `UTC+0200`.
    pub logtimezone: Option<Pattern>,
    /// The encoding of the log; UTF-8 where there is none.
    pub logencoding: Option<Pattern>,
}

/// A compiled filter.
#[derive(Debug)]
pub(super) struct Rules {
    prefregex: Option<Compiled>,
    failregex: Vec<Compiled>,
    ignoreregex: Vec<Compiled>,
    /// There are so few of them that they are tried before anything else.
    ignore_first: bool,
    forms: Forms,
    zone: Option<TimeZone>,
    maxlines: usize,
    journal: bool,
    /// `None` for UTF-8.
    encoding: Option<&'static Encoding>,
}

impl Rules {
    /// Compiles every pattern.
    pub(super) fn compile(spec: &FilterSpec) -> Result<Self, FilterError> {
        debug_assert_eq!(spec.dialect, Dialect::Fail2ban);
        let options = &spec.fail2ban;
        let whole = Imported { names: !options.addresses_only, lines: false };
        let all = |patterns: &[Pattern], options: Imported| -> Result<Vec<Compiled>, FilterError> {
            patterns.iter().map(|pattern| Compiled::new(pattern, options)).collect()
        };
        let prefregex = spec.prefregex.as_ref().map(|pattern| Compiled::new(pattern, whole)).transpose()?;
        let failregex = all(&spec.failregex, Imported { lines: options.maxlines > 1, ..whole })?;
        let ignoreregex = all(&spec.ignoreregex, whole)?;
        if !prefregex.as_ref().is_some_and(Compiled::identifies)
            && let Some(at) = failregex.iter().position(|pattern| !pattern.identifies())
        {
            return Err(FilterError {
                at: spec.failregex[at].at.clone(),
                what: format!("the pattern {:?} says nowhere who failed", spec.failregex[at].text),
                hint: "put <HOST>, <ADDR> or <F-ID/> where the address stands in the line".to_owned(),
            });
        }
        let forms = match &options.datepattern {
            None => Forms::default(),
            Some(pattern) => Forms::new(&pattern.text).map_err(|what| FilterError {
                at: pattern.at.clone(),
                what,
                hint: "see `man jail.conf`, datepattern".to_owned(),
            })?,
        };
        let zone = match &options.logtimezone {
            None => None,
            Some(text) => Some(zone_of(text.text.trim()).ok_or_else(|| FilterError {
                at: text.at.clone(),
                what: format!("{:?} is no time zone", text.text),
                hint: "write an offset such as UTC+0200, or an abbreviation such as CET".to_owned(),
            })?),
        };
        let encoding = options.logencoding.as_ref().map(encoding_of).transpose()?.flatten();
        Ok(Self {
            encoding,
            ignore_first: !ignoreregex.is_empty() && ignoreregex.len() + 2 < failregex.len(),
            prefregex,
            failregex,
            ignoreregex,
            forms,
            zone,
            maxlines: options.maxlines,
            journal: options.journal,
        })
    }

    /// Literals of which every line that can change anything holds at least one; `None` when there are none to look
    /// for, or when every line counts.
    pub(super) fn literals(&self) -> Option<Vec<Vec<u8>>> {
        if self.maxlines > 1 || !(self.journal || self.forms.cut_before_non_word()) {
            return None;
        }
        let own: Option<Vec<_>> = self.failregex.iter().map(|pattern| pattern.literals.clone()).collect();
        own.map(|sets| sets.concat()).or_else(|| self.prefregex.as_ref()?.literals.clone())
    }

    /// How many searches in long lines were left to a slower engine, by all filters that share the dates' forms.
    pub(super) fn slow_searches(&self) -> u64 {
        let patterns = self.prefregex.iter().chain(&self.failregex).chain(&self.ignoreregex);
        patterns.map(Compiled::slow_searches).sum::<u64>() + self.forms.slow_searches()
    }

    /// The text of a line, where its encoding is another than UTF-8.
    pub(super) fn decode(&self, line: &[u8]) -> Option<String> {
        Some(self.encoding?.decode_without_bom_handling(line).0.into_owned())
    }

    /// What it makes of `line`, given what it knows of the lines before.
    pub(super) fn evaluate(
        &self,
        state: &mut State,
        line: &str,
        now: Timestamp,
        zone: &TimeZone,
    ) -> Option<Failure> {
        state.noted = false;
        state.matched = None;
        let date = state.read(self, line, now, self.zone.as_ref().unwrap_or(zone));
        let mut text = std::mem::take(&mut state.text);
        let found = self.search(state, &mut text, date, now);
        state.text = text;
        found
    }

    fn search(
        &self,
        state: &mut State,
        text: &mut String,
        date: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<Failure> {
        if self.ignore_first && self.ignores(text, state) {
            return None;
        }
        let mut outer = Facts::default();
        if let Some(prefregex) = &self.prefregex {
            let groups = prefregex.find(text, &state.gave_up)?;
            prefregex.facts(text, &groups, &mut outer);
            outer.groups.remove("content");
            if let Some(content) = prefregex.content(text, &groups).map(str::to_owned) {
                text.clear();
                text.push_str(&content);
                text.push('\n');
                if self.maxlines > 1 {
                    // What is kept for the next line is what is left of this one. As in fail2ban.
                    state.replaced = Some(content);
                }
            }
        }
        let (index, pattern, groups) = self
            .failregex
            .iter()
            .enumerate()
            .find_map(|(index, pattern)| Some((index, pattern, pattern.find(text, &state.gave_up)?)))?;
        let mut facts = Facts::default();
        let matched = self.matched(state, text, pattern, &groups)?;
        state.matched = Some(index);
        pattern.facts(text, &groups, &mut facts);
        pattern.clear(&mut outer, facts.id().is_some());
        outer.update(facts);
        let mut facts = outer;
        match facts.text("mlfid").map(str::to_owned) {
            Some(id) => {
                let merged = state.connections.merge(&id, facts, matched, now);
                state.noted = merged.is_none();
                facts = merged?;
            }
            // Without a connection to remember it for, such a line is nothing; fail2ban would count it.
            None if facts.says("nofail") || facts.says("mlfgained") || facts.id().is_none() => return None,
            None => facts.matches = matched,
        }
        Some(facts.into_failure(index, date))
    }

    fn ignores(&self, text: &str, state: &State) -> bool {
        self.ignoreregex.iter().any(|pattern| pattern.is_match(text, &state.gave_up))
    }

    /// How many lines a match took; `None` when an `ignoreregex` takes it back. Those lines are used up.
    fn matched(&self, state: &mut State, text: &str, pattern: &Compiled, groups: &Groups) -> Option<u32> {
        if self.maxlines <= 1 {
            return (!self.ignores(text, state)).then_some(1);
        }
        let span = groups.first().cloned().flatten().unwrap_or(0..0);
        let skipped: String =
            pattern.skips.iter().filter_map(|group| text.get(groups.get(*group)?.clone()?)).collect();
        let (matched, left) = state.lines.part(text, &span, &skipped);
        state.replaced = None;
        state.lines.keep(left);
        let own: String = matched.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        (!self.ignores(&own, state)).then(|| u32::try_from(matched.len()).unwrap_or(u32::MAX))
    }
}

/// The encoding that `logencoding` names; `None` for UTF-8 and what is part of it.
fn encoding_of(name: &Pattern) -> Result<Option<&'static Encoding>, FilterError> {
    let text = name.text.trim().to_ascii_lowercase().replace('_', "-");
    if matches!(text.as_str(), "" | "auto" | "ascii" | "us-ascii" | "utf-8" | "utf8" | "utf-8-sig") {
        return Ok(None);
    }
    // Python has more names for some.
    let label = text.strip_prefix("cp12").map_or_else(|| text.clone(), |page| format!("windows-12{page}"));
    match Encoding::for_label(label.as_bytes()) {
        // Lines are found by their line breaks before they are decoded.
        Some(encoding) if encoding.is_ascii_compatible() => {
            Ok((encoding != encoding_rs::UTF_8).then_some(encoding))
        }
        _ => Err(FilterError {
            at: name.at.clone(),
            what: format!("{:?} is no encoding that a log can be read in", name.text),
            hint: "write logencoding = utf-8, latin1, or another that leaves ASCII as it is".to_owned(),
        }),
    }
}

/// What the bounds on filters cost; all but the last concern imported ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Lines that could have been failures by a field that they name twice, or that are no JSON.
    pub not_json: u64,
    /// Lines that could have been failures if they had that field, or a text in it.
    pub no_field: u64,
    /// Lines that a pattern gave up on, for taking more steps than it may.
    pub gave_up: u64,
    /// Connections forgotten before their time, since there were too many.
    pub connections: u64,
    /// Lines that patterns over several saw no more, since together they were too long.
    pub lines: u64,
    /// Searches in long lines that were left to an engine that costs many times as much.
    pub slow: u64,
}

impl std::ops::AddAssign for Losses {
    fn add_assign(&mut self, other: Self) {
        self.not_json += other.not_json;
        self.no_field += other.no_field;
        self.gave_up += other.gave_up;
        self.connections += other.connections;
        self.lines += other.lines;
        self.slow += other.slow;
    }
}

/// What a filter knows of the log it reads.
#[derive(Debug)]
pub(super) struct State {
    detector: Detector,
    last_date: Option<Timestamp>,
    lines: Lines,
    /// What takes the place of all lines before the next one is added.
    replaced: Option<String>,
    connections: Connections,
    /// What the patterns see; kept for its memory.
    text: String,
    /// Whether the last line was part of a connection's story and no failure.
    noted: bool,
    /// The place of the pattern that matched the last line, whatever came of it.
    pub(super) matched: Option<usize>,
    gave_up: Cell<u64>,
}

impl State {
    /// A state that has seen nothing yet.
    pub(super) fn new(rules: &Rules) -> Self {
        Self {
            detector: Detector::new(&rules.forms),
            last_date: None,
            lines: Lines::new(rules.maxlines),
            replaced: None,
            connections: Connections::default(),
            text: String::new(),
            noted: false,
            matched: None,
            gave_up: Cell::new(0),
        }
    }

    /// Whether the last line was part of a connection's story and no failure.
    pub(super) fn has_noted(&self) -> bool {
        self.noted
    }

    /// What the bounds have cost so far.
    pub(super) fn losses(&self) -> Losses {
        Losses {
            gave_up: self.gave_up.get(),
            connections: self.connections.gave_way,
            lines: self.lines.gave_way,
            ..Losses::default()
        }
    }

    /// Begins to count losses afresh.
    pub(super) fn forget_losses(&mut self) {
        self.gave_up.set(0);
        (self.connections.gave_way, self.lines.gave_way) = (0, 0);
    }

    /// Changes the bounds on connections and on bytes of joined lines.
    pub(super) fn set_bounds(&mut self, connections_max: usize, joined_bytes_max: usize) {
        self.connections.set_max(connections_max);
        self.lines.set_bytes_max(joined_bytes_max);
    }

    /// Finds the date of a line and puts what the patterns see into `text`.
    fn read(&mut self, rules: &Rules, line: &str, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let recent = self.last_date.filter(|last| *last > now.saturating_sub(LAST_DATE_SPAN));
        let mut cut = 0..0;
        let date = if rules.journal {
            self.last_date = Some(now);
            Some(now)
        } else {
            match self.detector.find(line, zone, now) {
                Some(found) if found.cut.is_empty() => Some(recent.unwrap_or(now)),
                Some(found) => {
                    if found.at.is_some() {
                        self.last_date = found.at;
                    }
                    if found.at.is_some() || recent.is_none() {
                        cut = found.cut;
                    }
                    found.at.or(recent)
                }
                None => recent,
            }
        };
        let (before, behind) = (line.get(..cut.start).unwrap_or(""), line.get(cut.end..).unwrap_or(""));
        if rules.maxlines > 1 {
            if let Some(replaced) = self.replaced.take() {
                self.lines.keep(vec![replaced]);
            }
            self.lines.push([before, behind].concat());
            self.lines.join_into(&mut self.text);
        } else {
            self.text.clear();
            self.text.push_str(before);
            self.text.push_str(behind);
            self.text.push('\n');
        }
        date
    }
}

impl Failure {
    /// What it means for the engine.
    pub(super) fn verdict(&self) -> Verdict {
        self.address.map_or(Verdict::NoAddress, Verdict::Blame)
    }
}

#[cfg(test)]
mod tests;
