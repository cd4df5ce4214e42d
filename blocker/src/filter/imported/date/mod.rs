//! Finds the date of a line as fail2ban does, which decides what its patterns see: the date is cut out.
//!
//! A detector holds forms of dates and learns which of them the log has: the last winner is tried first at the place
//! where it stood, a hit farther right than before is kept in reserve, and winners move to the front. Knows nothing
//! of patterns; the present and the zone are given.
#![forbid(unsafe_code)]

use std::{
    ops::Range,
    sync::{Arc, LazyLock, OnceLock},
};

use jiff::tz::TimeZone;

mod edge;
mod fields;
mod sieve;
mod template;
mod zone;

pub(in crate::filter) use fields::zone_of;
use sieve::{Expressions, Sieve};
use template::{Hit, Reading, Template};

use crate::time::Timestamp;

/// Forms that fail2ban looks for by itself, in its order. Each is also looked for at the start of the line, before all
/// of these, unless it is bound already.
const DEFAULTS: [&str; 17] = [
    // ISO 8601 and its kin: 2026-11-24T02:47:40.123+01:00, 2026/11/24 02:47:40.
    r"%ExY(?P<_sep>[-/.])%m(?P=_sep)%d(?:T|  ?)%H:%M:%S(?:[.,]%f)?(?:\s*%z)?",
    // asctime(3) and syslog: Tue Nov 24 02:47:40.123 2026, Nov 24 02:47:40.
    r"(?:%a )?%b %d %k:%M:%S(?:\.%f)?(?: %ExY)?",
    // The same with the year before the time.
    r"(?:%a )?%b %d %ExY %k:%M:%S(?:\.%f)?",
    // 24/11/2026 02:47:40, 24-11-26 02:47:40.
    r"%d(?P<_sep>[-/])%m(?P=_sep)(?:%ExY|%Exy) %k:%M:%S",
    // Common log format, named, Roundcube: 24/Nov/2026:02:47:40 +0000.
    r"%d(?P<_sep>[-/])%b(?P=_sep)%ExY[ :]?%H:%M:%S(?:\.%f)?(?: %z)?",
    // cPanel: 11/24/2026:02:47:40.
    r"%m/%d/%ExY:%H:%M:%S",
    // 11-24-2026 02:47:40.123.
    r"%m-%d-%ExY %k:%M:%S(?:\.%f)?",
    "EPOCH",
    // The time alone.
    r"{^LN-BEG}%H:%M:%S",
    // <11/24/26@02:47:40>.
    r"^<%m/%d/%Exy@%H:%M:%S>",
    // MySQL: 261124 02:47:40.
    r"%Exy%Exm%Exd  ?%H:%M:%S",
    // Tomcat: Nov 24, 2026 2:47:40 AM.
    r"%b %d, %ExY %I:%M:%S %p",
    // ASSP: Nov-24-26 02:47:40.
    r"^%b-%d-%Exy %k:%M:%S",
    // 20261124T024740.
    r"%ExY%Exm%Exd(?:T|  ?)%ExH%ExM%ExS(?:[.,]%f)?(?:\s*%z)?",
    // monit: CET Nov 24 02:47:40.
    r"(?:%Z )?(?:%a )?%b %d %k:%M:%S(?:\.%f)?(?: %ExY)?",
    // +01:00 Nov 24 02:47:40.
    r"(?:%z )?(?:%a )?%b %d %k:%M:%S(?:\.%f)?(?: %ExY)?",
    "TAI64N",
];

/// A form that waits this long loses its place to one in use.
const UNUSED_SECS: i64 = 300;
/// The weight of forms bound to the start of the line, over 1 for the others.
const ANCHORED_WEIGHT: f64 = 100.0;

/// In a line longer than this, one walk says which forms are worth a walk each.
const LONG_BYTES: usize = 2 << 10;

type Templates = Vec<Arc<Template>>;

/// The forms themselves and their copies at the start of the line; they compile when first looked for.
static DEFAULT_TEMPLATES: LazyLock<(Templates, Templates)> = LazyLock::new(|| {
    let plain: Vec<Template> = DEFAULTS.iter().filter_map(|pattern| Template::new(pattern).ok()).collect();
    let anchored = plain.iter().filter_map(|template| {
        let mut copy = template.at_line_begin()?.ok()?;
        copy.weight = ANCHORED_WEIGHT;
        Some(Arc::new(copy))
    });
    (anchored.collect(), plain.into_iter().map(Arc::new).collect())
});

/// The forms that a filter looks for.
#[derive(Clone, Debug)]
pub(in crate::filter) struct Forms {
    templates: Templates,
    /// Made when the first long line asks for it; `None` when there are few forms, or it takes too much memory.
    sieve: Arc<OnceLock<Option<Sieve>>>,
}

/// The default forms have one sieve, whoever uses them.
static DEFAULT_FORMS: LazyLock<Forms> = LazyLock::new(|| {
    let (anchored, plain) = &*DEFAULT_TEMPLATES;
    Forms::of(anchored.iter().chain(plain).cloned().collect())
});

impl Default for Forms {
    fn default() -> Self {
        DEFAULT_FORMS.clone()
    }
}

impl Forms {
    fn of(templates: Templates) -> Self {
        Self { templates, sieve: Arc::default() }
    }

    /// The forms of a `datepattern`, one to a line; the default ones when there is none.
    ///
    /// # Errors
    /// Says what is wrong with which pattern.
    pub(in crate::filter) fn new(datepattern: &str) -> Result<Self, String> {
        let mut forms: Vec<Arc<Template>> = Vec::new();
        for pattern in datepattern.lines().map(str::trim).filter(|pattern| !pattern.is_empty()) {
            let upper = if pattern.contains('%') { pattern.to_owned() } else { pattern.to_uppercase() };
            let wrong = |what: String| format!("the date pattern {pattern:?} does not work: {what}");
            let added = match upper.as_str() {
                "{^LN-BEG}" => Self::default().templates.into_iter().filter(|form| form.anchored).collect(),
                "{DEFAULT}" => Self::default().templates,
                "{NONE}" => vec![Arc::new(Template::new("{UNB}^").map_err(wrong)?)],
                with_date if with_date.to_ascii_uppercase().contains("{DATE}") => {
                    let inside = DEFAULT_TEMPLATES.1.iter().map(|form| form.inside(pattern).map(Arc::new));
                    inside.collect::<Result<_, _>>().map_err(wrong)?
                }
                _ => vec![Arc::new(Template::new(pattern).map_err(wrong)?)],
            };
            for form in added {
                if !forms.iter().any(|known| known.name == form.name) {
                    forms.push(form);
                }
            }
        }
        Ok(if forms.is_empty() { Self::default() } else { Self::of(forms) })
    }
}

impl Forms {
    fn sieve(&self) -> Option<&Sieve> {
        let new = || Sieve::new(self.templates.iter().map(|template| &**template));
        self.sieve.get_or_init(new).as_ref()
    }

    /// See `Regexp::slow_searches`.
    pub(in crate::filter) fn slow_searches(&self) -> u64 {
        self.templates.iter().map(|template| template.slow_searches()).sum()
    }

    /// Whether what follows a date that is cut out is always the end of the line or no part of a word.
    pub(in crate::filter) fn cut_before_non_word(&self) -> bool {
        self.templates.iter().all(|template| template.cut_before_non_word())
    }
}

/// A date in a line.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::filter) struct Found {
    /// The bytes that are cut out; empty where a form says that there is no date.
    pub(in crate::filter) cut: Range<usize>,
    /// The instant; `None` when the text has the form and names none, as in 30 February.
    pub(in crate::filter) at: Option<Timestamp>,
}

#[derive(Debug)]
struct Slot {
    template: Arc<Template>,
    /// Its number among the filter's forms.
    form: usize,
    /// How often it was the winner, and how often it matched at all.
    wins: u32,
    matches: u32,
    last_win: Option<Timestamp>,
    /// Where it stood when it won last.
    distance: usize,
}

impl Slot {
    fn weight(&self) -> f64 {
        f64::from(self.wins) * self.template.weight / (self.distance.max(1) as f64)
    }

    fn find(&mut self, line: &str, start: usize, expressions: Expressions) -> Option<Hit> {
        let hit = self.template.find(line, start, expressions)?;
        self.matches = self.matches.saturating_add(1);
        Some(hit)
    }
}

/// Where the last date stood, and the characters on both sides of its ends.
#[derive(Debug)]
struct LastPlace {
    span: Range<usize>,
    before: Option<char>,
    first: Option<char>,
    last: Option<char>,
    behind: Option<char>,
}

/// Looks for dates in the lines of one log, in order.
#[derive(Debug)]
pub(in crate::filter) struct Detector {
    slots: Vec<Slot>,
    forms: Forms,
    last: Option<usize>,
    place: LastPlace,
    first_unused: usize,
    read: Option<LastRead>,
}

/// The last date that was read: in a busy log the next line has the same.
#[derive(Debug)]
struct LastRead {
    template: Arc<Template>,
    text: String,
    /// What is unsaid in it depends on these.
    now_secs: i64,
    zone: TimeZone,
    /// Counted from the start of the text.
    reading: Reading,
}

impl Detector {
    /// A detector that has seen nothing yet.
    pub(in crate::filter) fn new(forms: &Forms) -> Self {
        let slots = forms.templates.iter().enumerate().map(|(form, template)| Slot {
            template: Arc::clone(template),
            form,
            wins: 0,
            matches: 0,
            last_win: None,
            distance: usize::MAX,
        });
        Self {
            slots: slots.collect(),
            forms: forms.clone(),
            last: None,
            place: LastPlace { span: 1..usize::MAX, before: None, first: None, last: None, behind: None },
            first_unused: 0,
            read: None,
        }
    }

    /// The date of `line`, if it has one.
    pub(in crate::filter) fn find(&mut self, line: &str, zone: &TimeZone, now: Timestamp) -> Option<Found> {
        let (index, hit, searched) = self.search(line)?;
        let reading = self.read(searched, index, &hit, zone, now)?;
        let slot = &mut self.slots[index];
        slot.wins = slot.wins.saturating_add(1);
        slot.last_win = Some(now);
        slot.distance = hit.span.start;
        if self.first_unused == index {
            self.first_unused += 1;
        }
        self.place = LastPlace {
            before: char_before(line, hit.span.start),
            first: char_at(line, hit.span.start),
            last: char_before(line, hit.span.end),
            behind: char_at(line, hit.span.end),
            span: hit.span,
        };
        self.last = Some(if index > 0 && self.last != Some(index) { self.move_up(index) } else { index });
        Some(Found { cut: reading.cut, at: reading.at })
    }

    /// What the date says that a template found.
    fn read(
        &mut self,
        line: &str,
        index: usize,
        hit: &Hit,
        zone: &TimeZone,
        now: Timestamp,
    ) -> Option<Reading> {
        let template = &self.slots.get(index)?.template;
        let (text, from) = (line.get(hit.span.clone())?, hit.span.start);
        if let Some(last) = &self.read
            && Arc::ptr_eq(&last.template, template)
            && last.text == text
            && last.now_secs == now.as_secs()
            && last.zone == *zone
        {
            let cut = &last.reading.cut;
            return Some(Reading { cut: cut.start + from..cut.end + from, at: last.reading.at });
        }
        let reading = template.read(line, hit, zone, now)?;
        let relative = |at: usize| at.checked_sub(from);
        self.read = relative(reading.cut.start).zip(relative(reading.cut.end)).map(|(start, end)| LastRead {
            template: Arc::clone(template),
            text: text.to_owned(),
            now_secs: now.as_secs(),
            zone: zone.clone(),
            reading: Reading { cut: start..end, at: reading.at },
        });
        Some(reading)
    }

    /// The winner among the forms that match `line`, its match, and the part of the line that it was found in.
    fn search<'l>(&mut self, line: &'l str) -> Option<(usize, Hit, &'l str)> {
        let mut reserve: Option<(usize, Hit, &str)> = None;
        let mut tried = None;
        if let Some(last) = self.last {
            let single = self.slots.len() == 1;
            let (anchored, same_place) = (self.slots[last].template.anchored, self.same_place(line));
            let part = line.get(..self.place.span.end.min(line.len())).filter(|_| !anchored && same_place);
            let (searched, start) = match part {
                Some(part) => (part, self.place.span.start),
                None => {
                    tried = Some(last);
                    (line, 0)
                }
            };
            if let Some(hit) = self.slots[last].find(searched, start, Expressions::ALL) {
                if single || anchored || hit.span == self.place.span {
                    return Some((last, hit, searched));
                }
                reserve = Some((last, hit, searched));
            }
        }
        let mut possible = None;
        for index in 0..self.slots.len() {
            if tried == Some(index) {
                continue;
            }
            let mut expressions = Expressions::ALL;
            if line.len() > LONG_BYTES && !self.slots[index].template.anchored {
                let possible = possible.get_or_insert_with(|| Some(self.forms.sieve()?.possible(line)));
                if let Some(possible) = possible {
                    expressions = possible.of(self.slots[index].form);
                }
                if expressions.are_none() {
                    continue;
                }
            }
            let next_unused = self.slots.get(index + 1).map(|next| next.matches == 0);
            let slot = &mut self.slots[index];
            let Some(hit) = slot.find(line, 0, expressions) else { continue };
            let start = hit.span.start;
            let settled = slot.template.anchored
                || next_unused.is_none()
                || (start == 0 && slot.wins > 0 && next_unused == Some(true));
            if settled || (start <= slot.distance && start <= self.place.span.start) {
                return Some((index, hit, line));
            }
            // Farther right than before: perhaps a date inside the message.
            if reserve.as_ref().is_none_or(|(_, kept, _)| start < kept.span.start) {
                reserve = Some((index, hit, line));
            }
        }
        reserve
    }

    /// Whether the place of the last date has the same surroundings in this line.
    fn same_place(&self, line: &str) -> bool {
        let (place, span) = (&self.place, &self.place.span);
        if !line.is_char_boundary(span.start) || span.start > line.len() {
            return false;
        }
        let end = span.end.min(line.len());
        if !line.is_char_boundary(end) {
            return false;
        }
        let plain = |c: Option<char>| c.is_some_and(|c| !c.is_alphanumeric());
        let left = char_before(line, span.start) == place.before
            || (char_at(line, span.start) == place.first && plain(place.first));
        let right = char_at(line, span.end) == place.behind
            || (char_before(line, span.end) == place.last && plain(place.last));
        left && right
    }

    /// Moves a winner towards the front if it deserves it, and says where it is now.
    fn move_up(&mut self, index: usize) -> usize {
        let slot = &self.slots[index];
        let weight = slot.weight();
        let unused = slot.last_win.map(|at| at.as_secs() - UNUSED_SECS);
        let gives_way = |slots: &[Slot], to: usize| {
            weight > slots[to].weight() || unused > slots[to].last_win.map(Timestamp::as_secs)
        };
        let mut to = if self.first_unused < index { self.first_unused } else { index / 2 };
        if !gives_way(&self.slots, to) {
            if to == index - 1 {
                return index;
            }
            to = index - 1;
            if !gives_way(&self.slots, to) {
                return index;
            }
        }
        let slot = self.slots.remove(index);
        self.slots.insert(to, slot);
        while self.slots.get(self.first_unused).is_some_and(|slot| slot.wins > 0) {
            self.first_unused += 1;
        }
        to
    }
}

fn char_before(line: &str, at: usize) -> Option<char> {
    line.get(..at)?.chars().next_back()
}

fn char_at(line: &str, at: usize) -> Option<char> {
    line.get(at..)?.chars().next()
}
