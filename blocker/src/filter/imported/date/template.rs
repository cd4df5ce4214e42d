//! One form of date: fail2ban's `datepattern` as a regular expression and what its parts mean.
//!
//! A pattern is `strptime` directives inside a regular expression, with words of fail2ban's own for where it may
//! stand (`man jail.conf`, "datepattern"). Which of several forms a line has is the detector's business.
#![forbid(unsafe_code)]

use std::{ops::Range, sync::OnceLock};

use jiff::tz::TimeZone;

use super::{edge, fields, sieve::Expressions};
use crate::{
    filter::{
        dialect::{self, Imported},
        regexp::{Groups, Regexp, Search},
    },
    time::Timestamp,
};

/// Where a form may stand besides where its expression says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    Anywhere,
    Word,
    /// At the start of the line, with up to two characters such as brackets before it.
    Line,
}

/// What the parts of a match say.
#[derive(Debug)]
enum Kind {
    /// Named groups, one for each directive.
    Fields,
    /// Seconds since the epoch in this group; with `long` also milli- and microseconds.
    Epoch { group: usize, long: bool },
    /// A TAI64N label, as multilog writes it.
    Tai64n,
}

/// A form of date.
#[derive(Debug)]
pub(super) struct Template {
    /// What tells it from others; two of one name are the same.
    pub(super) name: String,
    /// As the user wrote it; `None` for forms that no pattern can express.
    pattern: Option<String>,
    /// Bound to the start or the end of the line, so it is not mistaken for a date inside a message.
    pub(super) anchored: bool,
    /// How soon it moves to the front of the list.
    pub(super) weight: f64,
    kind: Kind,
    /// In Python's language; tried together, the leftmost wins.
    expressions: Vec<String>,
    compiled: OnceLock<Vec<Expression>>,
    cut_before_non_word: OnceLock<bool>,
}

/// A compiled expression, and the directive that each of its groups stands for.
type Expression = (Regexp, Vec<(usize, char)>);

/// Where a template found a date.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hit {
    /// The whole match.
    pub(super) span: Range<usize>,
    /// Where the search began.
    start: usize,
    variant: usize,
}

/// What a date that was found says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// What is cut out of the line.
    pub(super) cut: Range<usize>,
    /// The instant; `None` when the text has the form and names none.
    pub(super) at: Option<Timestamp>,
}

/// What is wrong with a pattern.
pub(super) type Complaint = String;

impl Template {
    /// The template of a pattern, as fail2ban reads it.
    pub(super) fn new(pattern: &str) -> Result<Self, Complaint> {
        let upper = pattern.to_uppercase();
        let key = if pattern.contains('%') { pattern } else { &upper };
        let (anchored, bare) = match key.strip_prefix("{^LN-BEG}").or_else(|| key.strip_prefix('^')) {
            Some(bare) => (true, bare),
            None => (false, key),
        };
        match bare {
            "EPOCH" => return Ok(Self::epoch(anchored, false)),
            "LEPOCH" => return Ok(Self::epoch(anchored, true)),
            "TAI64N" => return Ok(Self::tai64n(anchored)),
            _ => {}
        }
        if let Some(template) = Self::epoch_inside(pattern, &upper) {
            return template;
        }
        Self::strptime(pattern)
    }

    fn made(name: &str, kind: Kind, expressions: Vec<String>, anchored: bool) -> Self {
        Self {
            name: name.to_owned(),
            pattern: None,
            anchored,
            weight: 1.0,
            kind,
            expressions,
            compiled: OnceLock::new(),
            cut_before_non_word: OnceLock::new(),
        }
    }

    fn epoch(anchored: bool, long: bool) -> Self {
        let digits = epoch_digits(long);
        let places: &[&str] = if anchored { &[r"^(?:\W{0,2})?"] } else { &["^", r"^\[", r"\baudit\("] };
        let expressions = places.iter().map(|place| format!(r"{place}({digits})(?=\b|\W|$)")).collect();
        let name = match (anchored, long) {
            (true, false) => "{^LN-BEG}Epoch",
            (true, true) => "{^LN-BEG}LongEpoch",
            (false, false) => "Epoch",
            (false, true) => "LongEpoch",
        };
        Self::made(name, Kind::Epoch { group: 1, long }, expressions, anchored)
    }

    /// A pattern with `{EPOCH}` or `{LEPOCH}` in it.
    fn epoch_inside(pattern: &str, upper: &str) -> Option<Result<Self, Complaint>> {
        let (word, long) = [("{LEPOCH}", true), ("{EPOCH}", false)]
            .into_iter()
            .find(|(word, _)| upper.find(word).is_some_and(|at| !upper[..at].ends_with('\\')))?;
        if upper.len() != pattern.len() {
            return Some(Err(format!("{word} stands among letters that have no plain upper case")));
        }
        let mut text = String::new();
        let mut at = 0;
        for (start, _) in upper.match_indices(word) {
            text += &pattern[at..start];
            text += &format!("({})", epoch_digits(long));
            at = start + word.len();
        }
        text += &pattern[at..];
        let (text, anchored) = bounded(&format!("({text})"), Begin::Word, true);
        let template = Self::made(pattern, Kind::Epoch { group: 2, long }, vec![text], anchored);
        Some(template.compiles())
    }

    fn tai64n(anchored: bool) -> Self {
        let place = if anchored { r"^(?:\W{0,2})?" } else { "" };
        let name = if anchored { "{^LN-BEG}TAI64N" } else { "TAI64N" };
        let expression = format!(r"{place}(@[0-9a-f]{{24}})(?=\b|\W|$)");
        Self::made(name, Kind::Tai64n, vec![expression], anchored)
    }

    fn strptime(pattern: &str) -> Result<Self, Complaint> {
        let mut rest = pattern;
        let (mut begin, mut end) = (Begin::Word, true);
        if let Some(unbound) = rest.strip_prefix("{UNB}") {
            (rest, begin, end) = (unbound, Begin::Anywhere, false);
        }
        if begin == Begin::Word
            && let Some(line) = rest.strip_prefix("{^LN-BEG}")
        {
            (rest, begin) = (line, Begin::Line);
        }
        let (mut text, ignore_case) = directives(rest)?;
        if ignore_case {
            text.insert_str(0, "(?iu)");
        }
        let (text, anchored) = bounded(&text, begin, end);
        let mut template = Self::made(pattern, Kind::Fields, separators(&text), anchored);
        template.pattern = Some(pattern.to_owned());
        template.compiles()
    }

    fn compiles(self) -> Result<Self, Complaint> {
        for expression in &self.expressions {
            compile(expression)?;
        }
        Ok(self)
    }

    /// The same form, at the start of the line only; `None` when it is bound already.
    pub(super) fn at_line_begin(&self) -> Option<Result<Self, Complaint>> {
        if self.name.starts_with("{^LN-BEG}") || self.name.starts_with('^') {
            return None;
        }
        Some(Self::new(&format!("{{^LN-BEG}}{}", self.pattern.as_deref().unwrap_or(&self.name))))
    }

    /// The same form where `pattern` says `{DATE}`.
    pub(super) fn inside(&self, pattern: &str) -> Result<Self, Complaint> {
        let own = self.pattern.as_deref().unwrap_or(&self.name);
        let own = own.strip_prefix("{UNB}").unwrap_or(own);
        let own = own.strip_prefix("{^LN-BEG}").unwrap_or(own);
        let mut text = String::new();
        let mut rest = pattern;
        while let Some(at) = rest.to_ascii_uppercase().find("{DATE}") {
            text += &rest[..at];
            text += if rest[..at].ends_with('\\') { &rest[at..at + 6] } else { own };
            rest = &rest[at + 6..];
        }
        Self::new(&(text + rest))
    }

    /// The leftmost place in `line`, from `start` on, that one of these expressions finds.
    pub(super) fn find(&self, line: &str, start: usize, expressions: Expressions) -> Option<Hit> {
        let compiled = self.compiled.get_or_init(|| {
            // What does not compile was refused when the template was made.
            self.expressions.iter().filter_map(|expression| compile(expression).ok()).collect()
        });
        let tried = compiled.iter().enumerate().filter(|(variant, _)| expressions.has(*variant));
        let hits = tried.filter_map(|(variant, (regexp, _))| {
            // The forms of an epoch differ in what stands before it, which is no part of the match.
            let span = if compiled.len() > 1 && matches!(self.kind, Kind::Epoch { .. }) {
                let Search::Found(groups) = regexp.search(line, start, &[]) else { return None };
                groups.get(1).cloned().flatten()?.start..groups.first().cloned().flatten()?.end
            } else {
                let Search::Found(span) = regexp.find(line, start) else { return None };
                span
            };
            Some(Hit { span, start, variant })
        });
        hits.min_by_key(|hit| hit.span.start)
    }

    /// See [`Regexp::slow_searches`].
    pub(super) fn slow_searches(&self) -> u64 {
        let compiled = self.compiled.get().into_iter().flatten();
        compiled.map(|(regexp, _)| regexp.slow_searches()).sum()
    }

    /// Linear patterns, one of which matches wherever this form stands; `None` when there is no telling.
    pub(super) fn linear_supersets(&self) -> Option<Vec<String>> {
        let gate = |expression: &String| {
            dialect::translate_imported(expression, Imported::default())
                .ok()
                .map(|translated| translated.gate)
        };
        self.expressions.iter().map(gate).collect()
    }

    /// Whether what follows its date, where that is cut out, is always the end of the line or no part of a word.
    pub(super) fn cut_before_non_word(&self) -> bool {
        *self
            .cut_before_non_word
            .get_or_init(|| self.expressions.iter().all(|e| edge::cut_before_non_word(e)))
    }

    /// What a match says. `line` is what was searched.
    pub(super) fn read(&self, line: &str, hit: &Hit, zone: &TimeZone, now: Timestamp) -> Option<Reading> {
        let (regexp, letters) = self.compiled.get()?.get(hit.variant)?;
        let Search::Found(groups) = regexp.search(line, hit.start, &[]) else { return None };
        let cut = groups.get(1).cloned().flatten()?;
        Some(Reading { at: self.instant(line, &groups, letters, zone, now), cut })
    }

    fn instant(
        &self,
        line: &str,
        groups: &Groups,
        letters: &[(usize, char)],
        zone: &TimeZone,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let text = |group: usize| line.get(groups.get(group).cloned().flatten()?);
        match self.kind {
            Kind::Fields => {
                let parts: Vec<(char, &str)> =
                    letters.iter().filter_map(|(group, letter)| Some((*letter, text(*group)?))).collect();
                fields::instant(&parts, zone, now)
            }
            Kind::Epoch { group, long } => {
                let text = text(group)?;
                let digits = text.bytes().take_while(u8::is_ascii_digit).count();
                let number: f64 = text.parse().ok()?;
                let scale = match (long, text.len(), digits) {
                    (true, 16.., 16..) => 1.0,
                    (true, 13.., _) => 1_000.0,
                    _ => 1_000_000.0,
                };
                // At most 16 digits, which a double holds exactly enough.
                Some(Timestamp::from_micros((number * scale).round() as i64))
            }
            Kind::Tai64n => {
                // A letter, then the seconds in hexadecimal behind the bias of 2^62 (cr.yp.to/libtai/tai64.html).
                let seconds = i64::from_str_radix(text(1)?.get(2..17)?, 16).ok()?;
                Some(Timestamp::from_secs(seconds))
            }
        }
    }
}

fn epoch_digits(long: bool) -> &'static str {
    if long {
        r"[0-9]{10,11}(?:[0-9]{3}(?:\.[0-9]{1,6}|[0-9]{3})?)?"
    } else {
        r"[0-9]{10,11}\b(?:\.[0-9]{3,6})?"
    }
}

fn compile(expression: &str) -> Result<Expression, Complaint> {
    let translated =
        dialect::translate_imported(expression, Imported::default()).map_err(|(what, _)| what)?;
    let regexp = Regexp::any(&translated)?;
    let names = regexp.names();
    let letters = names.into_iter().filter_map(|(group, name)| {
        let mut letters = name.chars();
        letters.next().filter(|_| letters.next().is_none()).map(|letter| (group, letter))
    });
    let letters = letters.collect();
    Ok((regexp, letters))
}

/// Replaces the directives by expressions, and says whether one of them is a word, whose case does not matter.
fn directives(pattern: &str) -> Result<(String, bool), Complaint> {
    let mut out = String::with_capacity(pattern.len() * 4);
    let mut ignore_case = false;
    let mut rest = pattern;
    while let Some(at) = rest.find('%') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        let len = if rest.starts_with("Ex") { 3 } else { 1 };
        let name = rest.get(..len).unwrap_or(rest);
        let expression = directive(name).ok_or_else(|| {
            format!("there is no directive %{name}; write %% for a percent sign (in a fail2ban file %%%%)")
        })?;
        ignore_case |= matches!(name, "a" | "A" | "b" | "B" | "p" | "c");
        out += expression;
        rest = &rest[len..];
    }
    out += rest;
    Ok((out, ignore_case))
}

/// What a directive matches: Python's `strptime`, stricter where fail2ban is; `%Ex` forms take leading zeros only.
fn directive(name: &str) -> Option<&'static str> {
    Some(match name {
        "%" => "%",
        "a" => "(?P<a>mon|tue|wed|thu|fri|sat|sun)",
        "A" => "(?P<A>monday|tuesday|wednesday|thursday|friday|saturday|sunday)",
        "b" => "(?P<b>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)",
        "B" => "(?P<B>january|february|march|april|may|june|july|august|september|october|november|december)",
        "p" => "(?P<p>am|pm)",
        "d" => "(?P<d>[12][0-9]|[0 ]?[1-9]|3[01])",
        "m" => "(?P<m>0?[1-9]|1[0-2])",
        "Y" => "(?P<Y>[0-9]{4})",
        "y" | "Exy" => "(?P<y>[0-9]{2})",
        "H" => "(?P<H>[01]?[0-9]|2[0-3])",
        "k" => " ?(?P<H>[0-2]?[0-9])",
        "I" => "(?P<I>1[0-2]|0[1-9]|[1-9])",
        "l" => " ?(?P<I>1?[0-9])",
        "M" => "(?P<M>[0-5]?[0-9])",
        "S" => "(?P<S>[0-5]?[0-9]|6[01])",
        "f" => "(?P<f>[0-9]{1,6})",
        "j" => "(?P<j>36[0-6]|3[0-5][0-9]|[12][0-9][0-9]|0[1-9][0-9]|00[1-9]|[1-9][0-9]|0[1-9]|[1-9])",
        "U" => "(?P<U>5[0-3]|[0-4][0-9]|[0-9])",
        "W" => "(?P<W>5[0-3]|[0-4][0-9]|[0-9])",
        "w" => "(?P<w>[0-6])",
        "Z" => "(?P<Z>Z|[A-Z]{3,5})",
        "z" => r"(?P<z>Z|UTC|GMT|[+-][01][0-9](?::?[0-9]{2})?)",
        "ExZ" => "(?P<Z>[A-Z](?:[A-Z]{2,4})?)",
        "Exz" => r"(?P<z>(?:[A-Z](?:[A-Z]{2,4})?)?[+-][01][0-9](?::?[0-9]{2})?|[A-Z](?:[A-Z]{2,4})?)",
        "Exd" => "(?P<d>[12][0-9]|0[1-9]|3[01])",
        "Exm" => "(?P<m>0[1-9]|1[0-2])",
        "ExH" => "(?P<H>[01][0-9]|2[0-3])",
        "Exk" => " ?(?P<H>[01]?[0-9]|2[0-3])",
        "Exl" => " ?(?P<I>1[0-2]|[0-9])",
        "ExM" => "(?P<M>[0-5][0-9])",
        "ExS" => "(?P<S>[0-5][0-9]|6[01])",
        "ExY" => "(?P<Y>20[0-9]{2})",
        "c" => {
            r"(?P<a>mon|tue|wed|thu|fri|sat|sun)\s+(?P<b>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)\s+(?P<d>3[01]|[12][0-9]|0[1-9]|[1-9]| [1-9])\s+(?P<H>2[0-3]|[01][0-9]|[0-9]):(?P<M>[0-5][0-9]|[0-9]):(?P<S>6[01]|[0-5][0-9]|[0-9])\s+(?P<Y>[0-9]{4})"
        }
        "x" => "(?P<m>0?[1-9]|1[0-2])/(?P<d>[12][0-9]|[0 ]?[1-9]|3[01])/(?P<y>[0-9]{2})",
        "X" => "(?P<H>[01]?[0-9]|2[0-3]):(?P<M>[0-5]?[0-9]):(?P<S>[0-5]?[0-9]|6[01])",
        _ => return None,
    })
}

/// Puts the bounds of words or of the line around an expression and makes sure that its first group is what is cut
/// out; says whether the result is bound to the line's start or end.
fn bounded(text: &str, begin: Begin, end: bool) -> (String, bool) {
    let (text, flags) = without_flags(text.trim());
    let inner = text.trim_start_matches('(');
    let opened = text.len() - inner.len();
    let no_begin = inner.starts_with('^')
        || inner.starts_with("**")
        || (opened > 0 && (inner.starts_with("?:^") || inner.starts_with("?:(^")));
    let no_end = {
        let bare = text.trim_end_matches(')');
        let closed = text.len() - bare.len();
        let unescaped = |tail: &str| bare.strip_suffix(tail).is_some_and(|before| !before.ends_with('\\'));
        (unescaped("$") && closed <= 1)
            || unescaped("**")
            || (closed == 0 && (unescaped(r"\b") || unescaped(r"\s")))
    };
    let mut text = if has_plain_group(&text) { text } else { grouped(&text) };
    let mut anchored = false;
    match begin {
        Begin::Line if !no_begin => {
            text.insert_str(0, r"^(?:\W{0,2})?");
            anchored = true;
        }
        Begin::Word if !no_begin => text.insert_str(0, r"(?=^|\b|\W)"),
        _ => {}
    }
    if end && !no_end {
        text += r"(?=\b|\W|$)";
    }
    anchored |= text.starts_with('^')
        || ["(^", "(?:^"].iter().any(|b| text.strip_prefix(b).is_some_and(|rest| !rest.starts_with('|')));
    anchored |= [text.strip_suffix('$'), text.strip_suffix("$)")]
        .iter()
        .flatten()
        .any(|before| !before.ends_with(['\\', '|']));
    // `**` says "no bound here" and stands for nothing else at either end.
    let head = text.len() - text.trim_start_matches('(').len();
    if text[head..].starts_with("**") {
        text.replace_range(head..head + 2, "");
    }
    let tail = text.trim_end_matches(')').len();
    if text[..tail].ends_with("**") && !text[..tail - 2].ends_with('\\') {
        text.replace_range(tail - 2..tail, "");
    }
    text.insert_str(0, &flags);
    (text, anchored)
}

/// Takes the first group of flags such as `(?iu)` out.
fn without_flags(text: &str) -> (String, String) {
    for (start, _) in text.match_indices("(?") {
        let letters = text[start + 2..].bytes().take_while(u8::is_ascii_lowercase).count();
        if letters > 0 && text[start + 2 + letters..].starts_with(')') {
            let end = start + letters + 3;
            return (format!("{}{}", &text[..start], &text[end..]), text[start..end].to_owned());
        }
    }
    (text.to_owned(), String::new())
}

/// Whether there is a `(` that opens a group without a name.
fn has_plain_group(text: &str) -> bool {
    text.match_indices('(').any(|(at, _)| {
        let before = &text[..at];
        !before.ends_with('\\') && !before.ends_with("(?") && !text[at + 1..].starts_with('?')
    })
}

/// Puts all but the anchors of the line into a group.
fn grouped(text: &str) -> String {
    let (begin, rest) = text.strip_prefix('^').map_or(("", text), |rest| ("^", rest));
    let (middle, end) = rest.strip_suffix('$').map_or((rest, ""), |middle| (middle, "$"));
    format!("{begin}({middle}){end}")
}

/// One expression for each character that a repeated separator can be, since a linear expression cannot say "the same
/// again".
fn separators(text: &str) -> Vec<String> {
    const OPEN: &str = "(?P<_sep>[";
    const AGAIN: &str = "(?P=_sep)";
    let parts = text.split_once(OPEN).and_then(|(before, rest)| {
        let (class, behind) = rest.split_once("])")?;
        let plain = class.chars().all(|c| c.is_ascii_punctuation() && !matches!(c, '\\' | '^' | '[' | ']'));
        (plain && behind.contains(AGAIN)).then_some((before, class, behind))
    });
    match parts {
        Some((before, class, behind)) => class
            .chars()
            .map(|c| format!(r"{before}(?P<_sep>\{c}){}", behind.replace(AGAIN, &format!(r"\{c}"))))
            .collect(),
        None => vec![text.to_owned()],
    }
}
