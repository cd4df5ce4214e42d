//! fail2ban's annotated sample logs, each line with each set of options through our reader and engine.
//!
//! A line `# failJSON: {..}` says what must come of the next one; a line without must not match. `# filterOptions:`
//! gives the sets of options in which the lines behind it run, `# fileOptions:` what all of them share, `# addFILE:` a
//! further file. Time stands still at fail2ban's test clock, and what a filter remembers lasts over its files. Every
//! `failregex` must be hit by some line, in one of the sets of options that it is part of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use blocker::{
    config::read_fail2ban_filter,
    filter::{
        Clock, Filter, SourceMatcher,
        imported::{Failure, Value as Captured},
    },
    net::parse_address,
    time::Timestamp,
};
use jiff::{civil::DateTime, tz::TimeZone};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::incumbent::Incumbent;

/// Where and when fail2ban's tests take place.
const ZONE: &str = "CET-1CEST-2,M3.5.0,M10.5.0";
const NOW: Timestamp = Timestamp::from_secs(1_124_013_600);
/// Fewer cases than this mean that the samples were not read as they are meant.
const CASES_MIN: usize = 1_000;
/// As much for the patterns.
const PATTERNS_MIN: usize = 400;

/// A case that did not come out as fail2ban says.
#[derive(Debug)]
struct Difference {
    filter: String,
    options: String,
    file: PathBuf,
    line: usize,
    what: String,
    text: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { filter, options, file, line, what, text } = self;
        write!(f, "{}:{line}: {filter}{options}: {what}\n    {text}", file.display())
    }
}

/// A difference that is kept on purpose.
#[derive(Debug, Deserialize)]
struct Deviation {
    filter: String,
    /// What the line holds.
    text: String,
    reason: String,
}

/// What the list of deviations says of samples; its other parts are about jails.
#[derive(Deserialize)]
struct Deviations {
    #[serde(default)]
    sample: Vec<Deviation>,
}

#[derive(Debug, Default)]
struct Report {
    filters: usize,
    cases: usize,
    differences: Vec<Difference>,
    /// Those of every filter in every set of its options.
    patterns: usize,
    /// Those of them that no line hits.
    unused: Vec<Difference>,
}

#[test]
fn fail2bans_own_samples_come_out_as_it_says() {
    let incumbent = match Incumbent::find() {
        Ok(incumbent) => incumbent,
        Err(why) => return xtask::lab::skipped("fail2bans_own_samples_come_out_as_it_says", &why),
    };
    let scratch = tempfile::tempdir().expect("a folder of our own");
    let mut report = Report::default();
    for (name, dir) in incumbent.filters(scratch.path()) {
        Run { report: &mut report, incumbent: &incumbent, name: &name, dir: &dir, matchers: BTreeMap::new() }
            .files();
        report.filters += 1;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/conformance/deviations.toml");
    let text = fs::read_to_string(path).expect("the list of deviations");
    let kept = toml::from_str::<Deviations>(&text).expect("the list of deviations").sample;
    let is_kept = |difference: &Difference| {
        kept.iter().find(|k| k.filter == difference.filter && difference.text.contains(&k.text))
    };
    let agreeing = report.cases - report.differences.len();
    let used = report.patterns - report.unused.len();
    println!("samples: {} filters, {} cases, {agreeing} agreeing", report.filters, report.cases);
    println!("patterns with a sample: {} patterns, {used} hit", report.patterns);
    let differences = || report.differences.iter().chain(&report.unused);
    for difference in differences() {
        match is_kept(difference) {
            Some(deviation) => println!("{difference}\n    on purpose: {}", deviation.reason),
            None => println!("{difference}"),
        }
    }
    xtask::conformance::record(
        "samples",
        report.cases,
        agreeing,
        report.differences.iter().map(|d| d.to_string()),
    );
    let unused = report.unused.iter().map(|d| d.to_string());
    xtask::conformance::record("patterns with a sample", report.patterns, used, unused);
    let unexpected = differences().filter(|difference| is_kept(difference).is_none()).count();
    assert_eq!(unexpected, 0, "differences that nobody decided on");
    assert!(report.cases >= CASES_MIN, "only {} cases were found", report.cases);
    assert!(report.patterns >= PATTERNS_MIN, "only {} patterns were found", report.patterns);
}

/// One filter over its sample files.
struct Run<'a> {
    report: &'a mut Report,
    incumbent: &'a Incumbent,
    name: &'a str,
    dir: &'a Path,
    /// By options; `None` for one that cannot be made.
    matchers: BTreeMap<String, Option<Tried>>,
}

/// A filter in one set of options.
struct Tried {
    matcher: SourceMatcher,
    failregex: Vec<String>,
    /// Places of those that some line hit.
    hit: BTreeSet<usize>,
}

/// Options in which lines run, those of fail2ban's test itself among them.
type Options = Map<String, Value>;

impl Run<'_> {
    fn files(&mut self) {
        let mut files = vec![self.name.to_owned()];
        let mut sets: Vec<Options> = Vec::new();
        let mut at = 0;
        while at < files.len() {
            let file = self.incumbent.tests.join("files/logs").join(&files[at]);
            at += 1;
            match fs::read(&file) {
                Ok(bytes) => self.file(&file, &bytes, &mut sets, &mut files),
                Err(error) => self.differs(&Options::new(), &file, 0, error.to_string(), ""),
            }
        }
        self.patterns();
    }

    /// As fail2ban's test does: one that is hit in another set of options is tested, too.
    fn patterns(&mut self) {
        let all = || self.matchers.iter().filter_map(|(key, tried)| Some((key, tried.as_ref()?)));
        let hit: BTreeSet<&str> =
            all().flat_map(|(_, tried)| tried.hit.iter().map(|at| tried.failregex[*at].as_str())).collect();
        for (options, tried) in all() {
            self.report.patterns += tried.failregex.len();
            let unused = tried.failregex.iter().enumerate().filter(|(_, text)| !hit.contains(text.as_str()));
            self.report.unused.extend(unused.map(|(at, text)| Difference {
                filter: self.name.to_owned(),
                options: options.clone(),
                file: self.dir.join("filter.d").join(format!("{}.conf", self.name)),
                line: 0,
                what: format!("no sample hits failregex {at}"),
                text: text.clone(),
            }));
        }
    }

    fn file(&mut self, file: &Path, bytes: &[u8], sets: &mut Vec<Options>, files: &mut Vec<String>) {
        let mut common = Options::new();
        let mut skipping = false;
        let mut lines = bytes.split(|byte| *byte == b'\n').enumerate().map(|(at, line)| (at + 1, line));
        while let Some((number, mut line)) = lines.next() {
            let mut wanted = Map::new();
            let text = String::from_utf8_lossy(line);
            if let Some((kind, json)) = annotation(&text) {
                let value: Value = match serde_json::from_str(json) {
                    Ok(value) => value,
                    Err(error) => {
                        self.differs(&Options::new(), file, number, error.to_string(), &text);
                        continue;
                    }
                };
                match (kind, value) {
                    ("fileOptions", Value::Object(options)) => {
                        common = options;
                        continue;
                    }
                    ("filterOptions", given) => {
                        let all = if let Value::Array(all) = given { all } else { vec![given] };
                        sets.clear();
                        skipping = false;
                        for own in all.iter().filter_map(Value::as_object) {
                            let mut options = common.clone();
                            options.extend(own.clone());
                            if let Some(condition) = options.get("test.condition").and_then(Value::as_str) {
                                skipping = !self.holds(condition, &options, file, number);
                            }
                            if !skipping {
                                sets.push(options);
                            }
                        }
                        continue;
                    }
                    ("addFILE", Value::String(name)) => {
                        files.push(name);
                        continue;
                    }
                    (_, Value::Object(expected)) => wanted = expected,
                    _ => continue,
                }
                let Some((_, next)) = lines.next() else { break };
                line = next;
            } else if skipping || text.starts_with('#') || text.trim().is_empty() {
                continue;
            }
            if skipping {
                continue;
            }
            if sets.is_empty() {
                sets.push(Options::new());
            }
            for options in &*sets {
                let constraint = wanted.get("constraint").and_then(Value::as_str);
                if constraint.is_some_and(|constraint| !self.holds(constraint, options, file, number)) {
                    continue;
                }
                self.case(options, file, number, line, &wanted);
            }
        }
    }

    fn case(
        &mut self,
        options: &Options,
        file: &Path,
        number: usize,
        line: &[u8],
        wanted: &Map<String, Value>,
    ) {
        self.report.cases += 1;
        let line = line.trim_ascii_end_of_line();
        let prefix = options.get("test.prefix-line").and_then(Value::as_str).unwrap_or("");
        let line = [prefix.as_bytes(), line].concat();
        let found = match self.matcher(options) {
            Err(why) => Err(why),
            Ok(None) => Err("the filter cannot be used".to_owned()),
            Ok(Some(tried)) => {
                let mut found = None;
                let clock = Clock { now: NOW, utc_offset_secs: 0 };
                tried.matcher.scan(&line, clock, |line| {
                    found = line.failure(0).cloned();
                    tried.hit.extend(line.pattern(0));
                });
                Ok(found)
            }
        };
        let verdict = found.and_then(|found| compare(found.as_ref(), wanted));
        if let Err(what) = verdict {
            self.differs(options, file, number, what, &String::from_utf8_lossy(&line));
        }
    }

    /// The matcher of the filter with these options; an error the first time that it cannot be made.
    fn matcher(&mut self, options: &Options) -> Result<Option<&mut Tried>, String> {
        let given: BTreeMap<String, String> = options
            .iter()
            .filter(|(option, _)| !option.starts_with("test."))
            .map(|(option, value)| (option.clone(), value.as_str().map_or(value.to_string(), str::to_owned)))
            .collect();
        let key = match options.get("test.filter-name").and_then(Value::as_str) {
            Some(name) => name.to_owned(),
            None => format!("{given:?}"),
        };
        if !self.matchers.contains_key(&key) {
            let made = read_fail2ban_filter(self.dir, self.name, &given).and_then(|(spec, _)| {
                let failregex = spec.failregex.iter().map(|pattern| pattern.text.clone()).collect();
                let filter = Filter::compile(spec).map_err(|error| error.to_string())?;
                let mut matcher = SourceMatcher::new(vec![Arc::new(filter)]);
                matcher.set_zone(TimeZone::posix(ZONE).map_err(|error| error.to_string())?);
                Ok(Tried { matcher, failregex, hit: BTreeSet::new() })
            });
            match made {
                Ok(tried) => self.matchers.insert(key.clone(), Some(tried)),
                Err(why) => {
                    self.matchers.insert(key, None);
                    return Err(why);
                }
            };
        }
        Ok(self.matchers.get_mut(&key).and_then(Option::as_mut))
    }

    /// Whether a condition of fail2ban's tests holds; they are of one shape, and any other is a difference.
    fn holds(&mut self, condition: &str, options: &Options, file: &Path, line: usize) -> bool {
        let parts = condition.split_once("==").map(|(left, right)| (left, right, true));
        let parts = parts.or_else(|| condition.split_once("!=").map(|(left, right)| (left, right, false)));
        let value = |left: &str| match left.trim() {
            "name" => Some(self.name.to_owned()),
            left => {
                let option = left.strip_prefix("opts.get('")?.strip_suffix("')")?;
                Some(options.get(option).and_then(Value::as_str).unwrap_or("").to_owned())
            }
        };
        let judged = parts.and_then(|(left, right, equal)| {
            let right = right.trim().strip_prefix('\'')?.strip_suffix('\'')?;
            Some((value(left)? == right) == equal)
        });
        judged.unwrap_or_else(|| {
            self.differs(options, file, line, format!("this condition is not understood: {condition}"), "");
            true
        })
    }

    fn differs(&mut self, options: &Options, file: &Path, line: usize, what: String, text: &str) {
        self.report.differences.push(Difference {
            filter: self.name.to_owned(),
            options: if options.is_empty() {
                String::new()
            } else {
                Value::Object(options.clone()).to_string()
            },
            file: file.to_owned(),
            line,
            what,
            text: text.to_owned(),
        });
    }
}

/// Lines without the break at their end.
trait EndOfLine {
    fn trim_ascii_end_of_line(&self) -> &[u8];
}

impl EndOfLine for [u8] {
    fn trim_ascii_end_of_line(&self) -> &[u8] {
        let end = self.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |at| at + 1);
        &self[..end]
    }
}

/// The kind and the JSON of an annotation.
fn annotation(line: &str) -> Option<(&str, &str)> {
    let text = line.trim_end();
    let bare = text.trim_start_matches('#');
    if bare.len() == text.len() {
        return None;
    }
    let (kind, json) = bare.strip_prefix(' ').unwrap_or(bare).split_once(':')?;
    ["failJSON", "fileOptions", "filterOptions", "addFILE"].contains(&kind).then_some((kind, json))
}

/// What differs between a failure and what the annotation says of it.
fn compare(found: Option<&Failure>, wanted: &Map<String, Value>) -> Result<(), String> {
    let must_match = wanted.get("match").and_then(Value::as_bool).unwrap_or(false);
    let failure = match (found, must_match) {
        (None, false) => return Ok(()),
        (None, true) => return Err("it should match".to_owned()),
        (Some(failure), false) => return Err(format!("it should not match, but is {:?}", failure.id)),
        (Some(failure), true) => failure,
    };
    for (key, value) in wanted {
        let got = match key.as_str() {
            "match" | "desc" | "constraint" => continue,
            "time" => {
                time(failure, value)?;
                continue;
            }
            "attempts" => Value::from(failure.attempts),
            "users" => {
                let mut users: Vec<Value> = failure.users.iter().map(json).collect();
                users.sort_by_key(Value::to_string);
                let mut wanted = value.as_array().cloned().unwrap_or_default();
                wanted.sort_by_key(Value::to_string);
                if users == wanted {
                    continue;
                }
                Value::Array(users)
            }
            "host" => {
                host(failure, value.as_str().unwrap_or(""))?;
                continue;
            }
            group => failure.groups.get(group).map_or(Value::Null, json),
        };
        if got != *value {
            return Err(format!("{key} should be {value} but is {got}"));
        }
    }
    Ok(())
}

fn json(captured: &Captured) -> Value {
    match captured {
        Captured::Text(text) => Value::from(text.as_str()),
        Captured::Tuple(parts) => Value::from(parts.clone()),
    }
}

/// The failure is blamed on whom fail2ban blames it on: as an id, and if that is an address, as one.
fn host(failure: &Failure, wanted: &str) -> Result<(), String> {
    let id = match &failure.id {
        Some(Captured::Text(text)) => text.clone(),
        other => return Err(format!("host should be {wanted:?} but is {other:?}")),
    };
    let address = parse_address(wanted);
    if id != wanted && (address.is_none() || parse_address(&id) != address) {
        return Err(format!("host should be {wanted:?} but is {id:?}"));
    }
    if failure.address != address {
        return Err(format!("the address should be {wanted} but is {:?}", failure.address));
    }
    Ok(())
}

fn time(failure: &Failure, wanted: &Value) -> Result<(), String> {
    let Some(text) = wanted.as_str() else { return Ok(()) };
    let zone = TimeZone::posix(ZONE).map_err(|error| error.to_string())?;
    // Python takes one digit where the format has two.
    let format = if text.contains('.') { "%Y-%m-%dT%H:%M:%S%.f" } else { "%Y-%m-%dT%H:%M:%S" };
    let local = DateTime::strptime(format, text).map_err(|error| format!("time {text:?}: {error}"))?;
    let at = zone.to_timestamp(local).map_err(|error| format!("time {text:?}: {error}"))?.as_microsecond();
    let found = failure.date.map(Timestamp::as_micros);
    if found != Some(at) {
        let shown = failure.date.and_then(|date| jiff::Timestamp::from_microsecond(date.as_micros()).ok());
        let shown = shown.map(|at| zone.to_datetime(at).to_string());
        return Err(format!("time should be {text} but is {shown:?}"));
    }
    Ok(())
}
