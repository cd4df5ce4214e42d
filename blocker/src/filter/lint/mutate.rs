//! What the proof cannot know: lines as the daemon writes them, with an attacker's text in the attacker's places.
//!
//! Every part of a sample that a wide part of a pattern took, and every quoted string in it, is replaced by text that
//! carries a planted address between *bridges* (what stands around the address in this filter's own samples) and
//! *hooks* (what an attacker closes or opens a string with). The planted address must never be blamed. All of it
//! follows from a seed.
//!
//! Left alone is what no attacker writes: the head that syslog puts before a message, and the address itself. Where a
//! daemon escapes (JSON, or a pattern that says so with `\\.`), the text is escaped as the daemon would; a raw line
//! break is never planted, since whether one can be written is what `newline_safe` declares.
//!
//! A part such as `[^"]*` claims that the daemon lets no `"` into it. Mutants keep to such claims, or they do not; where
//! one of the latter blames the planted address, the filter is only as safe as that claim is true.
#![forbid(unsafe_code)]

use std::{borrow::Cow, collections::BTreeSet, net::IpAddr, ops::Range, sync::Arc};

use regex::Regex;
use regex_syntax::hir::{Capture, Class, Hir, HirKind, Repetition};

use super::shape;
use crate::{
    filter::{FieldPath, Filter, FilterSpec, Pattern, Place, SAMPLE_CLOCK, SourceMatcher, Verdict, date},
    net,
};

/// Bytes of planted text at most.
const PLANTED_BYTES_MAX: usize = 600;
/// Mutants offered to the matcher as one block.
const BLOCK_LINES: u64 = 64;
/// Printable characters that a part of a pattern must take to be wide: more than words and numbers have.
const WIDE_CHARS_MIN: usize = 70;

/// Planted addresses: of documentation ranges that no sample may use for anything else.
const PLANTED: [&str; 4] = ["192.0.2.66", "2001:db8:bad::66", "::ffff:192.0.2.66", "192.0.2.66:4711"];

const HOOKS: [&str; 34] = [
    "", "", "", " ", "  ", "'", "\"", "\\", "\\\"", "\\'", "\"\"", "' ", "\" ", "\", ", "; ", ": ", ", ",
    "[", "]", "(", ")", "<", ">", "> ", "x", "from ", " by ", "\t", "\r", "\\n", "#012", "é", "\u{2028}",
    "\u{FFFD}",
];

/// What came of the mutants of a filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mutation {
    /// How many were tried.
    pub mutants: u64,
    /// Places in samples that were replaced.
    pub fields: usize,
    /// How many were failures no more: their author went unnoticed with that line.
    pub lost: u64,
    /// The first of which the planted address was blamed.
    pub forged: Option<Forgery>,
}

/// A line by which an attacker chose whom the filter blames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgery {
    /// The sample it was made from.
    pub at: Place,
    /// The line.
    pub line: String,
    /// The address that was planted and blamed.
    pub planted: IpAddr,
}

/// A filter with the places where attackers write.
#[derive(Debug)]
pub struct Mutator {
    matcher: SourceMatcher,
    /// Of JSON lines, where the text is that all else here is about.
    field: Option<FieldPath>,
    targets: Vec<Target>,
    /// What stands before and behind the address in the samples.
    bridges: Vec<[String; 2]>,
    address_places: Vec<(Place, String)>,
}

/// A place in a sample.
#[derive(Debug)]
struct Target {
    line: String,
    at: Place,
    field: Field,
    /// The line is a failure as it stands.
    is_failure: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    span: Range<usize>,
    escapes: bool,
    /// The characters that are claimed to be possible here.
    takes: Arc<[(char, char)]>,
}

impl Field {
    fn takes(&self, c: char) -> bool {
        self.escapes || self.takes.iter().any(|(from, to)| (*from..=*to).contains(&c))
    }
}

impl Mutator {
    /// The places in the samples of `spec` and in `more` lines of its log.
    pub fn new(spec: &FilterSpec, filter: Arc<Filter>, more: &[String]) -> Self {
        let mut matcher = SourceMatcher::new(vec![filter]);
        let path = spec.field.clone();
        let align = |patterns: &[Pattern]| {
            let hirs = patterns.iter().filter_map(|pattern| shape::expression(spec, pattern).ok());
            hirs.filter_map(|hir| Aligner::new(&hir)).collect::<Vec<_>>()
        };
        let mut aligners = align(&spec.failregex);
        aligners.extend(align(&spec.noaddress).into_iter().map(Aligner::without_words));
        let samples = spec.samples.iter().map(|sample| (sample.line.as_str(), sample.at.clone()));
        let more = more.iter().map(|line| (line.as_str(), Place::default()));
        let seen = samples.chain(more).filter_map(|(line, at)| match &path {
            None => Some((Cow::Borrowed(line), at)),
            Some(path) => Some((Cow::Owned(path.text_in(line)?), at)),
        });
        let mut targets = Vec::new();
        let mut address_places = Vec::new();
        let mut bridges = Vec::new();
        for (line, at) in seen {
            let line = &*line;
            let blamed = blame(&mut matcher, path.as_ref(), line);
            let hosts: Vec<Range<usize>> = blamed.iter().flat_map(|host| places_of(line, *host)).collect();
            for host in &hosts {
                bridges.push([line[..host.start].to_owned(), line[host.end..].to_owned()]);
            }
            for field in fields(line, &aligners) {
                let is_apart =
                    hosts.iter().all(|host| host.end <= field.span.start || field.span.end <= host.start);
                if blamed.is_none() && is_address_place(&mut matcher, path.as_ref(), line, &field.span) {
                    address_places.push((at.clone(), line[field.span].to_owned()));
                } else if is_apart {
                    let is_failure = blamed.is_some();
                    targets.push(Target { line: line.to_owned(), at: at.clone(), field, is_failure });
                }
            }
        }
        Self { matcher, field: path, targets, bridges, address_places }
    }

    /// Texts in lines that are no failures, where an address alone in their place would be blamed. They are taken to
    /// stand where the daemon writes the address, and left alone; whether that is so, a person must say.
    pub fn address_places(&self) -> &[(Place, String)] {
        &self.address_places
    }

    /// Tries `count` mutants that keep to the claims of the patterns.
    pub fn run(&mut self, seed: u64, count: u64) -> Mutation {
        self.tried(seed, count, true)
    }

    /// Tries `count` mutants that do not.
    pub fn run_against_claims(&mut self, seed: u64, count: u64) -> Mutation {
        self.tried(seed, count, false)
    }

    fn tried(&mut self, seed: u64, count: u64, keeps_claims: bool) -> Mutation {
        let mut done = Mutation { fields: self.targets.len(), ..Mutation::default() };
        let planted: BTreeSet<IpAddr> = PLANTED.iter().filter_map(|text| net::parse_address(text)).collect();
        if self.targets.is_empty() {
            return done;
        }
        let mut random = Random(seed);
        let mut block = String::new();
        while done.mutants < count && done.forged.is_none() {
            block.clear();
            let lines = BLOCK_LINES.min(count - done.mutants);
            let mut made = Vec::new();
            for _ in 0..lines {
                let target = random.below(self.targets.len());
                made.push((target, block.len()));
                match &self.field {
                    None => self.mutant(target, keeps_claims, &mut random, &mut block),
                    Some(path) => {
                        let mut text = String::new();
                        self.mutant(target, keeps_claims, &mut random, &mut text);
                        block += &path.line_with(&text);
                    }
                }
                block.push('\n');
            }
            done.mutants += lines;
            let mut caught = None;
            let mut failures = 0;
            self.matcher.scan(block.as_bytes(), SAMPLE_CLOCK, |line| match line.verdict(0) {
                Some(Verdict::Blame(address)) if planted.contains(&address) => caught = Some(address),
                Some(_) => failures += 1,
                None => {}
            });
            let were = made.iter().filter(|(target, _)| self.targets[*target].is_failure).count();
            done.lost += u64::try_from(were).unwrap_or(0).saturating_sub(failures);
            if let Some(address) = caught {
                done.forged = made.into_iter().find_map(|(target, start)| {
                    let line = block[start..].split('\n').next().unwrap_or("");
                    (scanned(&mut self.matcher, line) == Some(address)).then(|| Forgery {
                        at: self.targets[target].at.clone(),
                        line: line.to_owned(),
                        planted: address,
                    })
                });
            }
        }
        done
    }

    /// Appends one mutant of a target to `out`.
    fn mutant(&self, target: usize, keeps_claims: bool, random: &mut Random, out: &mut String) {
        let Target { line, field, .. } = &self.targets[target];
        let Field { span, escapes, .. } = field;
        let mut text = String::new();
        for _ in 0..=random.below(3) {
            let empty = [String::new(), String::new()];
            let bridge = |random: &mut Random| match self.bridges.len() {
                0 => &empty,
                count => &self.bridges[random.below(count)],
            };
            text += HOOKS[random.below(HOOKS.len())];
            let [before, _] = bridge(random);
            text += tail(before, random);
            text += PLANTED[random.below(PLANTED.len())];
            let [_, behind] = bridge(random);
            text += head(behind, random);
            text += HOOKS[random.below(HOOKS.len())];
        }
        let mut end = text.len().min(PLANTED_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        out.push_str(&line[..span.start]);
        // A part of what stood there, or nothing of it.
        if random.below(2) == 0 {
            out.push_str(head(&line[span.clone()], random));
        }
        for c in text[..end].chars().filter(|c| !keeps_claims || field.takes(*c)) {
            match c {
                '"' | '\\' if *escapes => out.extend(['\\', c]),
                c if *escapes && (c.is_control() || c == '\u{2028}') => out.extend(c.escape_unicode()),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push_str(&line[span.end..]);
    }
}

/// The end of a text, from some place on: all of it, or from a word or a character.
fn tail<'a>(text: &'a str, random: &mut Random) -> &'a str {
    &text[place(text, random)..]
}

fn head<'a>(text: &'a str, random: &mut Random) -> &'a str {
    let place = place(text, random);
    // As likely all of it as a tail is.
    if place == 0 { text } else { &text[..place] }
}

fn place(text: &str, random: &mut Random) -> usize {
    let mut at = match random.below(4) {
        0 => 0,
        1 => text.len(),
        2 => random.below(text.len() + 1),
        _ => {
            // Behind one of the last words: bridges are mostly short.
            let words: Vec<usize> = text.match_indices(' ').map(|(at, _)| at + random.below(2)).collect();
            match words.len() {
                0 => 0,
                count => words[random.below(count)],
            }
        }
    };
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Who is blamed for this text, in its field if it has one.
fn blame(matcher: &mut SourceMatcher, path: Option<&FieldPath>, text: &str) -> Option<IpAddr> {
    match path {
        None => scanned(matcher, text),
        Some(path) => scanned(matcher, &path.line_with(text)),
    }
}

fn scanned(matcher: &mut SourceMatcher, line: &str) -> Option<IpAddr> {
    let mut found = None;
    matcher.scan(line.as_bytes(), SAMPLE_CLOCK, |line| found = line.verdict(0));
    match found {
        Some(Verdict::Blame(address)) => Some(address),
        _ => None,
    }
}

/// Whether an address at this place of the line, and nothing else there, is blamed.
fn is_address_place(
    matcher: &mut SourceMatcher,
    path: Option<&FieldPath>,
    line: &str,
    span: &Range<usize>,
) -> bool {
    let mut alone = line.to_owned();
    alone.replace_range(span.clone(), PLANTED[0]);
    blame(matcher, path, &alone) == net::parse_address(PLANTED[0])
}

/// Every place in `line` where this address is written.
fn places_of(line: &str, host: IpAddr) -> Vec<Range<usize>> {
    let is_part = |c: char| c.is_ascii_hexdigit() || matches!(c, '.' | ':');
    let mut places = Vec::new();
    let mut at = 0;
    while let Some(start) = line[at..].find(is_part).map(|offset| at + offset) {
        let end = line[start..].find(|c| !is_part(c)).map_or(line.len(), |len| start + len);
        for stop in (start + 2..=end).rev() {
            if net::parse_address(&line[start..stop]) == Some(host) {
                places.push(start..stop);
                break;
            }
        }
        at = end;
    }
    places
}

/// Where attackers write in `line`.
fn fields(line: &str, aligners: &[Aligner]) -> Vec<Field> {
    let (text, moved) = without_date(line);
    let is_json = text.trim_start().starts_with('{');
    let head = if is_json { 0 } else { syslog_head(&text) };
    let mut found: Vec<Field> = Vec::new();
    let aligned = aligners.iter().find_map(|aligner| Some((aligner, aligner.regex.captures(&text)?)));
    match aligned {
        Some((aligner, captures)) => {
            for (number, part) in aligner.parts.iter().enumerate() {
                let Some(span) = captures.name(&part_name(number)).map(|m| m.range()) else { continue };
                let field = Field {
                    span: span.clone(),
                    escapes: is_json || part.escapes,
                    takes: Arc::clone(&part.takes),
                };
                found.extend(quoted(&text[span.clone()]).map(|(inner, _)| Field {
                    span: span.start + inner.start..span.start + inner.end,
                    ..field.clone()
                }));
                found.push(field);
            }
        }
        // In a line that says nothing to the filter, which of JSON's values are the attacker's cannot be seen.
        None if is_json => {}
        // Nor is what looks like an address, though none that the filter takes.
        None => found.extend(quoted(&text).filter(|(span, _)| !has_dotted(&text[span.clone()])).map(
            |(span, quote)| {
                let next =
                    |by: i32| char::from_u32(u32::from(quote).saturating_add_signed(by)).unwrap_or(quote);
                Field { span, escapes: false, takes: Arc::from([('\0', next(-1)), (next(1), char::MAX)]) }
            },
        )),
    }
    found.retain(|field| field.span.start >= head);
    found.sort_by_key(|field| (field.span.start, field.span.end, field.escapes));
    found.dedup_by_key(|field| (field.span.clone(), field.escapes));
    for field in &mut found {
        field.span = moved(field.span.start)..moved(field.span.end);
    }
    found
}

/// Whether there is something like `203.0.113.9` in it.
fn has_dotted(text: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    text.split('.').filter(|part| is_number(part)).count() >= 2
}

/// The line as patterns see it, and where its places are in the whole line.
fn without_date(line: &str) -> (String, impl Fn(usize) -> usize) {
    let cut = date::find(line).map_or(0..0, |found| found.span);
    let text = [&line[..cut.start], &line[cut.end..]].concat();
    (text, move |at| if at < cut.start { at } else { at + cut.len() })
}

/// How much of the text is syslog's: the host and the tag, as in ` web sshd[1]: `.
fn syslog_head(text: &str) -> usize {
    let Some(colon) = text.find(": ") else { return 0 };
    let words: Vec<&str> = text[..colon].split(' ').filter(|word| !word.is_empty()).collect();
    let is_tag = |word: &str| !word.contains(['"', '\'', '=', '(']);
    match words.as_slice() {
        [host, tag] if is_tag(host) && is_tag(tag) => colon + 2,
        [tag] if tag.ends_with(']') && is_tag(tag) => colon + 2,
        _ => 0,
    }
}

/// The insides of quoted strings, and the quote.
fn quoted(text: &str) -> impl Iterator<Item = (Range<usize>, char)> {
    let mut found = Vec::new();
    let mut open = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (c, open) {
            _ if escaped => escaped = false,
            ('\\', _) => escaped = true,
            ('"' | '\'', None) => open = Some((at, c)),
            (c, Some((start, quote))) if c == quote => {
                found.push((start + 1..at, quote));
                open = None;
            }
            _ => {}
        }
    }
    found.into_iter()
}

/// A pattern that captures what its wide parts take.
#[derive(Debug)]
struct Aligner {
    regex: Regex,
    parts: Vec<Part>,
}

/// A wide part.
#[derive(Debug)]
struct Part {
    escapes: bool,
    takes: Arc<[(char, char)]>,
}

fn part_name(number: usize) -> String {
    format!("part_{number}")
}

impl Aligner {
    fn new(hir: &Hir) -> Option<Self> {
        let mut parts = Vec::new();
        let regex = Regex::new(&captured(hir, &mut parts).to_string()).ok()?;
        Some(Self { regex, parts })
    }

    /// Where a pattern is for lines without an address, a part that takes a word may be where the address would be.
    fn without_words(mut self) -> Self {
        for part in &mut self.parts {
            if !part.takes.iter().any(|(from, to)| (*from..=*to).contains(&' ')) {
                part.takes = Arc::from([]);
            }
        }
        self
    }
}

fn captured(hir: &Hir, parts: &mut Vec<Part>) -> Hir {
    match hir.kind() {
        HirKind::Repetition(repetition) if repetition.max.is_none_or(|max| max > 16) => {
            let Some(part) = wide(&repetition.sub) else { return hir.clone() };
            let name = Some(part_name(parts.len()).into());
            parts.push(part);
            Hir::capture(Capture { index: 1, name, sub: Box::new(hir.clone()) })
        }
        HirKind::Repetition(repetition) if repetition.max == Some(1) => {
            let sub = Box::new(captured(&repetition.sub, parts));
            Hir::repetition(Repetition { sub, ..repetition.clone() })
        }
        HirKind::Capture(capture) if capture.name.as_deref().is_some_and(shape::is_host) => {
            capture.sub.as_ref().clone()
        }
        HirKind::Capture(capture) => captured(&capture.sub, parts),
        HirKind::Concat(all) => Hir::concat(all.iter().map(|part| captured(part, parts)).collect()),
        HirKind::Alternation(all) => Hir::alternation(all.iter().map(|part| captured(part, parts)).collect()),
        _ => hir.clone(),
    }
}

/// What a part that repeats takes, if that is nearly anything, or nearly anything that is escaped.
fn wide(hir: &Hir) -> Option<Part> {
    match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => {
            let takes: Arc<[_]> = class.ranges().iter().map(|range| (range.start(), range.end())).collect();
            let part = Part { escapes: false, takes };
            let count = (' '..='~').filter(|c| part.takes.iter().any(|(a, b)| (*a..=*b).contains(c))).count();
            (count >= WIDE_CHARS_MIN).then_some(part)
        }
        HirKind::Alternation(all) => {
            let part = all.iter().find_map(wide)?;
            let backslash = |part: &Hir| match part.kind() {
                HirKind::Literal(literal) => literal.0.first() == Some(&b'\\'),
                _ => false,
            };
            let escapes = all.iter().any(|part| match part.kind() {
                HirKind::Concat(parts) => parts.first().is_some_and(backslash),
                _ => backslash(part),
            });
            Some(Part { escapes, ..part })
        }
        HirKind::Capture(capture) => wide(&capture.sub),
        _ => None,
    }
}

/// SplitMix64: enough to choose with, and the same everywhere.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        // The bias of a remainder does not matter here.
        usize::try_from(z % (bound.max(1) as u64)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_what_attackers_write() {
        for (pattern, line, fields) in [
            (
                r"^ ?\S+ sshd\[\d+\]: Failed for .* from <ADDR> port \d+$",
                "Nov 24 02:47:40 web sshd[1]: Failed for bob from 203.0.113.9 port 1",
                &["bob"][..],
            ),
            (
                r#"^\s*\{"t":"\w+","user":"(?:[^"\\]|\\.)*","ip":"<ADDR>".*$"#,
                r#"{"t":"x","user":"bob","ip":"203.0.113.9","path":"/a"}"#,
                &["bob", r#","path":"/a"}"#, "path", "/a"],
            ),
            (
                r#"^x "[^"]*", client: <ADDR>, request: ".*"$"#,
                r#"x "bob", client: 203.0.113.9, request: "GET "/" x""#,
                &["bob", "GET \"/\" x", "/"],
            ),
            (r"^never <ADDR>$", r#"user 'o"x' said "y""#, &["o\"x", "y"]),
        ] {
            let spec = FilterSpec {
                failregex: vec![Pattern { text: pattern.to_owned(), at: Place::default() }],
                ..FilterSpec::default()
            };
            let hir = shape::expression(&spec, &spec.failregex[0]).unwrap();
            let found = super::fields(line, &[Aligner::new(&hir).unwrap()]);
            let found: BTreeSet<&str> = found.into_iter().map(|field| &line[field.span]).collect();
            assert_eq!(found, fields.iter().copied().collect(), "{pattern}");
        }
    }
}
