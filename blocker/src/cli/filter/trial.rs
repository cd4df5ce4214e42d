//! `blocker filter test`: a filter on a log, by the way that the agent's lines take.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader},
    net::IpAddr,
    path::Path,
    process::ExitCode,
    sync::Arc,
};

use clap::Args;
use serde_json::{Value, json};

use super::{complain, exit, place_before, refused, say, show};
use crate::{
    filter::{
        Clock, Dialect, Filter, FilterError, FilterSpec, LINE_BYTES_MAX, Losses, SourceMatcher, Verdict, date,
    },
    time::Timestamp,
};

/// Addresses counted one by one; failures of further ones are counted together.
const HOSTS_MAX: usize = 100_000;
/// Forms of dates counted one by one.
const DATE_FORMS_MAX: usize = 64;
/// Addresses printed for people.
const HOSTS_SHOWN_MAX: usize = 20;
/// Lines of each kind that JSON carries.
const LINES_KEPT_MAX: usize = 10_000;

/// Which lines are printed.
#[derive(Clone, Copy, Debug, Args)]
pub(in crate::cli) struct Show {
    /// Print the lines that are failures.
    #[arg(long)]
    matched: bool,
    /// Print the lines that are none.
    #[arg(long)]
    missed: bool,
    /// Print the lines that an ignoreregex takes back.
    #[arg(long)]
    ignored: bool,
    /// Print the lines that are no failures by themselves, but part of a connection's story.
    #[arg(long)]
    noted: bool,
}

/// What became of one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Matched,
    Ignored,
    Noted,
    Missed,
}

impl Fate {
    const ALL: [Self; 4] = [Self::Matched, Self::Ignored, Self::Noted, Self::Missed];

    fn name(self) -> &'static str {
        match self {
            Self::Matched => "matched",
            Self::Ignored => "ignored",
            Self::Noted => "noted",
            Self::Missed => "missed",
        }
    }

    fn is_shown(self, show: Show) -> bool {
        match self {
            Self::Matched => show.matched,
            Self::Ignored => show.ignored,
            Self::Noted => show.noted,
            Self::Missed => show.missed,
        }
    }
}

/// Tries `spec` on `log` and prints what came of it.
pub(super) fn run(spec: &FilterSpec, log: &str, show: Show, as_json: bool) -> ExitCode {
    let mut trial = match Trial::new(spec) {
        Ok(trial) => trial,
        Err(error) => return refused(&error.to_string(), exit::CONFIG, as_json),
    };
    let mut kept: [Vec<String>; 4] = Default::default();
    let each = |line: &[u8], fate: Fate, address: Option<IpAddr>| {
        if !fate.is_shown(show) {
            return;
        }
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end_matches(['\r', '\n']);
        if !as_json {
            let address = address.map_or(String::new(), |address| format!(" {address}"));
            say(&format!("{}{address}: {}\n", fate.name(), show::clean(line)));
        } else if kept[fate as usize].len() < LINES_KEPT_MAX {
            kept[fate as usize].push(line.to_owned());
        }
    };
    if let Err(error) = trial.read(log, each) {
        let why =
            format!("{log}: {error}; give a log that can be read, a line of one, or - for standard input");
        return refused(&why, exit::NO_INPUT, as_json);
    }
    if trial.counts.lines == 0 {
        complain("the log has no lines");
    }
    if as_json {
        let mut out = trial.counts.json(spec);
        for (fate, lines) in Fate::ALL.into_iter().zip(kept) {
            if fate.is_shown(show) {
                out[format!("{}_lines", fate.name())] = json!(lines);
            }
        }
        say(&format!("{out:#}\n"));
    } else {
        say(&trial.counts.text(spec));
    }
    if trial.counts.fates[Fate::Matched as usize] > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Trial {
    matcher: SourceMatcher,
    /// The filter without its ignoreregexes, if it has any: what it finds and the filter does not is ignored.
    unforgiving: Option<SourceMatcher>,
    /// Each pattern alone, where the filter does not say which one it was.
    alone: Vec<SourceMatcher>,
    clock: Clock,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    lines: u64,
    /// By [`Fate`].
    fates: [u64; 4],
    no_address: u64,
    too_long: u64,
    losses: Losses,
    patterns: Vec<u64>,
    hosts: BTreeMap<IpAddr, u64>,
    other_hosts: u64,
    dates: BTreeMap<String, u64>,
    undated: u64,
    first_date: Option<Timestamp>,
    last_date: Option<Timestamp>,
}

impl Trial {
    fn new(spec: &FilterSpec) -> Result<Self, FilterError> {
        let matcher = |spec: FilterSpec| -> Result<SourceMatcher, FilterError> {
            let mut matcher = SourceMatcher::new(vec![Arc::new(Filter::compile(spec)?)]);
            matcher.set_zone(jiff::tz::TimeZone::system());
            Ok(matcher)
        };
        let bare = FilterSpec { ignoreregex: Vec::new(), ..spec.clone() };
        let alone = match spec.dialect {
            Dialect::Fail2ban => Vec::new(),
            Dialect::Native => spec
                .failregex
                .iter()
                .map(|pattern| {
                    let failregex = vec![pattern.clone()];
                    matcher(FilterSpec { failregex, noaddress: Vec::new(), ..bare.clone() })
                })
                .collect::<Result<_, _>>()?,
        };
        let now = jiff::Timestamp::now();
        Ok(Self {
            matcher: matcher(spec.clone())?,
            unforgiving: (!spec.ignoreregex.is_empty()).then(|| matcher(bare)).transpose()?,
            alone,
            clock: Clock {
                now: Timestamp::from_micros(now.as_microsecond()),
                utc_offset_secs: jiff::tz::TimeZone::system().to_offset(now).seconds(),
            },
            counts: Counts { patterns: vec![0; spec.failregex.len()], ..Counts::default() },
        })
    }

    fn read(&mut self, log: &str, mut each: impl FnMut(&[u8], Fate, Option<IpAddr>)) -> io::Result<()> {
        let path = Path::new(log);
        if log == "-" {
            return lines(io::stdin().lock(), |line| self.line(line, &mut each));
        }
        // What is no file is a line, unless it can only be meant as a file.
        let is_line = !path.exists() && (log.contains(char::is_whitespace) || !log.contains('/'));
        if is_line {
            if !log.contains(char::is_whitespace) {
                complain(&format!("there is no file {log:?}, so this is taken for the line of a log"));
            }
            return lines(log.as_bytes(), |line| self.line(line, &mut each));
        }
        lines(BufReader::new(File::open(path)?), |line| self.line(line, &mut each))
    }

    fn line(&mut self, line: &[u8], each: &mut impl FnMut(&[u8], Fate, Option<IpAddr>)) {
        self.counts.lines += 1;
        let (mut found, mut noted) = (None, false);
        self.matcher.scan(line, self.clock, |line| {
            noted = line.is_noted(0);
            let verdict = line.verdict(0);
            let pattern = line.failure(0).map(|failure| failure.pattern);
            found = verdict.map(|verdict| (verdict, pattern, line.date(0)));
        });
        let mut bare = None;
        if let Some(unforgiving) = &mut self.unforgiving {
            unforgiving.scan(line, self.clock, |line| bare = line.verdict(0));
        }
        self.counts.too_long = self.matcher.lines_too_long();
        self.counts.losses = self.matcher.losses(0);
        self.note_form(line);
        let fate = match (found, bare) {
            (Some(_), _) => Fate::Matched,
            (None, Some(_)) => Fate::Ignored,
            (None, None) if noted => Fate::Noted,
            (None, None) => Fate::Missed,
        };
        self.counts.fates[fate as usize] += 1;
        let mut address = None;
        if let Some((verdict, pattern, date)) = found {
            address = match verdict {
                Verdict::Blame(address) => Some(address),
                Verdict::NoAddress => None,
            };
            let pattern = pattern.or_else(|| self.pattern_of(line, verdict));
            if let Some(hits) = pattern.and_then(|pattern| self.counts.patterns.get_mut(pattern)) {
                *hits += 1;
            }
            self.counts.note(address, date);
        }
        each(line, fate, address);
    }

    /// The first pattern that alone comes to this verdict.
    fn pattern_of(&mut self, line: &[u8], verdict: Verdict) -> Option<usize> {
        self.alone.iter_mut().position(|matcher| {
            let mut found = None;
            matcher.scan(line, self.clock, |line| found = line.verdict(0));
            found == Some(verdict)
        })
    }

    /// Counts the form of the date that stands in the line: its digits as 9, its letters as a.
    fn note_form(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line.get(..LINE_BYTES_MAX).unwrap_or(line));
        let Some(found) = date::find(&line).or_else(|| date::find_in_json(&line)) else {
            self.counts.undated += 1;
            return;
        };
        let form = line.get(found.span).unwrap_or("").chars().map(|c| match c {
            '0'..='9' => '9',
            'A'..='Z' | 'a'..='z' => 'a',
            c => c,
        });
        let form = form.collect();
        let dates = &mut self.counts.dates;
        if dates.len() < DATE_FORMS_MAX || dates.contains_key(&form) {
            *dates.entry(form).or_default() += 1;
        }
    }
}

/// Calls `each` for every line, longer ones cut to what is still too long.
fn lines(mut from: impl BufRead, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        let part = from.fill_buf()?;
        if part.is_empty() {
            if !line.is_empty() {
                each(&line);
            }
            return Ok(());
        }
        let (taken, is_whole) = match memchr::memchr(b'\n', part) {
            Some(newline) => (newline + 1, true),
            None => (part.len(), false),
        };
        let room = (LINE_BYTES_MAX + 1).saturating_sub(line.len());
        line.extend_from_slice(&part[..taken.min(room)]);
        from.consume(taken);
        if is_whole {
            each(line.strip_suffix(b"\n").unwrap_or(&line));
            line.clear();
        }
    }
}

impl Counts {
    fn note(&mut self, address: Option<IpAddr>, date: Option<Timestamp>) {
        match address {
            None => self.no_address += 1,
            Some(address) if self.hosts.len() < HOSTS_MAX || self.hosts.contains_key(&address) => {
                *self.hosts.entry(address).or_default() += 1;
            }
            Some(_) => self.other_hosts += 1,
        }
        self.first_date = self.first_date.into_iter().chain(date).min();
        self.last_date = self.last_date.into_iter().chain(date).max();
    }

    /// The addresses, those with most failures first.
    fn hosts(&self) -> Vec<(IpAddr, u64)> {
        let mut hosts: Vec<_> = self.hosts.iter().map(|(host, failures)| (*host, *failures)).collect();
        hosts.sort_by_key(|(host, failures)| (std::cmp::Reverse(*failures), *host));
        hosts
    }

    fn text(&self, spec: &FilterSpec) -> String {
        let [matched, ignored, noted, missed] = self.fates;
        let noted = if noted > 0 { format!("{noted} noted, ") } else { String::new() };
        let mut text = format!(
            "{}: {} lines, {matched} matched, {ignored} ignored, {noted}{missed} missed\n",
            show::clean(&spec.name),
            self.lines
        );
        for (count, what) in [
            (self.no_address, "failures name no address"),
            (self.too_long, "lines were too long and not read"),
            (self.losses.gave_up, "times a pattern took more steps than it may"),
            (
                self.losses.connections,
                "connections were forgotten before their time, since there were too many",
            ),
            (self.losses.lines, "lines were too many to be joined"),
        ] {
            if count > 0 {
                text += &format!("  {count} {what}\n");
            }
        }
        text += "patterns\n";
        for (pattern, hits) in spec.failregex.iter().zip(&self.patterns) {
            text += &format!("{hits:8}  {}{}\n", place_before(&pattern.at), show::clean(&pattern.text));
        }
        if !self.hosts.is_empty() {
            text += &format!("hosts: {}\n", self.hosts.len());
            for (host, failures) in self.hosts().iter().take(HOSTS_SHOWN_MAX) {
                text += &format!("{failures:8}  {host}\n");
            }
            let more = self.hosts.len().saturating_sub(HOSTS_SHOWN_MAX);
            if more > 0 {
                text += &format!("          and {more} more; --json has them all\n");
            }
        }
        text += "dates\n";
        for (form, lines) in &self.dates {
            text += &format!("{lines:8}  {}\n", show::clean(form));
        }
        if self.undated > 0 {
            text += &format!("{:8}  none that blocker's own filters would find\n", self.undated);
        }
        if let (Some(first), Some(last)) = (self.first_date, self.last_date) {
            text += &format!("failures from {} to {}\n", when(first), when(last));
        }
        text
    }

    fn json(&self, spec: &FilterSpec) -> Value {
        let [matched, ignored, noted, missed] = self.fates;
        let patterns = spec.failregex.iter().zip(&self.patterns).map(|(pattern, hits)| {
            let file = pattern.at.path.display().to_string();
            json!({ "pattern": pattern.text, "file": file, "line": pattern.at.line, "hits": hits })
        });
        let hosts = self
            .hosts()
            .into_iter()
            .map(|(host, failures)| json!({ "host": host.to_string(), "failures": failures }));
        json!({
            "filter": spec.name,
            "lines": self.lines,
            "matched": matched,
            "ignored": ignored,
            "noted": noted,
            "missed": missed,
            "no_address": self.no_address,
            "too_long": self.too_long,
            "gave_up": self.losses.gave_up,
            "connections_lost": self.losses.connections,
            "joined_lines_lost": self.losses.lines,
            "patterns": patterns.collect::<Vec<_>>(),
            "hosts": hosts.collect::<Vec<_>>(),
            "other_hosts": self.other_hosts,
            "dates": self.dates,
            "undated": self.undated,
            "first_date": self.first_date.map(when),
            "last_date": self.last_date.map(when),
        })
    }
}

fn when(at: Timestamp) -> String {
    jiff::Timestamp::from_second(at.as_secs()).map(|at| at.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_where_they_end_and_where_they_are_too_long() {
        let long = "x".repeat(3 * LINE_BYTES_MAX);
        let text = format!("a\n\nb\r\n{long}\nlast");
        let mut found = Vec::new();
        lines(BufReader::with_capacity(7, text.as_bytes()), |line| found.push(line.to_vec())).unwrap();
        let lengths: Vec<_> = found.iter().map(Vec::len).collect();
        assert_eq!(lengths, [1, 0, 2, LINE_BYTES_MAX + 1, 4]);
    }
}
