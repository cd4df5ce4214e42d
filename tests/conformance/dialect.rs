//! The translation of patterns against Python's `re`: same verdict, same span, same groups, for every pattern of
//! fail2ban's filters on what its sample lines look like to a pattern.
//!
//! A part of the pairs is run; `BLOCKER_DIALECT_STEP=1` runs them all.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use blocker::{
    config::read_fail2ban_filter,
    filter::{FilterSpec, imported::Expression},
};
use serde::{Deserialize, Serialize};

use crate::incumbent::Incumbent;

/// Each pattern is tried on every one of so many texts.
const STEP: usize = 24;
/// Names another step.
const STEP_VARIABLE: &str = "BLOCKER_DIALECT_STEP";
/// The Python that Debian's package is installed for.
const PYTHON: &str = "/usr/bin/python3";
/// Differences that are shown.
const SHOWN_MAX: usize = 20;
/// Option sets that reach the patterns behind an option.
const MODES: [&str; 9] = ["", "normal", "ddos", "extra", "aggressive", "auth", "rbl", "errors", "fallback"];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Pattern {
    text: String,
    names: bool,
    lines: bool,
    prefix: bool,
}

#[derive(Serialize)]
struct Job<'a> {
    patterns: &'a [Pattern],
    lines: &'a BTreeSet<String>,
    step: usize,
}

/// A match as the oracle tells it: pattern, text, span and groups, in characters.
#[derive(Deserialize)]
struct Matched(usize, usize, Span, Groups);

type Span = (usize, usize);
type Groups = BTreeMap<String, Span>;

#[derive(Deserialize)]
struct Answer {
    texts: Vec<String>,
    single: usize,
    pairs: usize,
    matches: Vec<Matched>,
}

#[test]
fn patterns_match_what_pythons_do() {
    let incumbent = match Incumbent::find() {
        Ok(incumbent) => incumbent,
        Err(why) => return xtask::lab::skipped("patterns_match_what_pythons_do", &why),
    };
    let scratch = tempfile::tempdir().expect("a folder of our own");
    let patterns: Vec<Pattern> = patterns(&incumbent, scratch.path()).into_iter().collect();
    let lines = lines(&incumbent);
    let step = env::var(STEP_VARIABLE).ok().and_then(|step| step.parse().ok()).unwrap_or(STEP);
    let answer = ask(&incumbent, &Job { patterns: &patterns, lines: &lines, step });
    let mut wanted = BTreeMap::new();
    for Matched(pattern, text, span, groups) in &answer.matches {
        wanted.insert((*pattern, *text), (*span, groups));
    }
    let mut differences = Vec::new();
    let mut pairs = 0;
    let mut linear = 0;
    for (at, pattern) in patterns.iter().enumerate() {
        let expression = match Expression::new(&pattern.text, pattern.names, pattern.lines) {
            Ok(expression) => expression,
            Err(why) => {
                differences.push(format!("{:?} does not compile: {why}", pattern.text));
                continue;
            }
        };
        linear += usize::from(expression.is_linear());
        let last = if pattern.lines { answer.texts.len() } else { answer.single };
        for (number, text) in answer.texts[..last].iter().enumerate().skip(at % step).step_by(step) {
            pairs += 1;
            let chars = |bytes: usize| text[..bytes].chars().count();
            // Ours takes the last line break with it where Python's `$` only looks at it; nothing depends on that.
            let to = chars(text.trim_end_matches('\n').len());
            let found: Option<(Span, Groups)> = expression.find(text).map(|found| {
                let span = (chars(found.span.start), chars(found.span.end).min(to));
                let groups = found.groups.into_iter();
                (span, groups.map(|(name, span)| (name, (chars(span.start), chars(span.end)))).collect())
            });
            let wanted = wanted
                .get(&(at, number))
                .map(|((start, end), groups)| ((*start, (*end).min(to)), (*groups).clone()));
            if found != wanted {
                differences
                    .push(format!("{:?}\n    on {text:?}\n    {found:?} but {wanted:?}", pattern.text));
            }
        }
    }
    let (differing, matches) = (differences.len(), answer.matches.len());
    println!(
        "dialect: {} patterns, {linear} linear, {pairs} pairs, {matches} matches, {differing} differing",
        patterns.len()
    );
    differences.iter().take(SHOWN_MAX).for_each(|difference| println!("{difference}"));
    assert_eq!(pairs, answer.pairs);
    assert!(matches >= patterns.len() / step, "only {matches} pairs matched");
    assert_eq!(differing, 0);
    xtask::conformance::record("dialect", pairs, pairs - differing, differences);
}

/// Every pattern of every filter, with its `<tags>` of options expanded.
fn patterns(incumbent: &Incumbent, scratch: &Path) -> BTreeSet<Pattern> {
    let mut patterns = BTreeSet::new();
    for (name, dir) in incumbent.filters(scratch) {
        for mode in MODES {
            let options = if mode.is_empty() { vec![] } else { vec![("mode".to_owned(), mode.to_owned())] };
            let options: BTreeMap<String, String> = options.into_iter().collect();
            let Ok((spec, _)) = read_fail2ban_filter(&dir, &name, &options) else { continue };
            of_spec(&spec, mode.is_empty(), &mut patterns);
        }
    }
    patterns
}

fn of_spec(spec: &FilterSpec, default: bool, patterns: &mut BTreeSet<Pattern>) {
    let lines = spec.fail2ban.maxlines > 1;
    for names in [true, false].into_iter().take(1 + usize::from(default)) {
        let mut add = |text: &str, lines, prefix| {
            // A mode that the filter does not have leaves its tag behind.
            if !text.contains("<mdre-") && !text.contains("<mdpr-") {
                patterns.insert(Pattern { text: text.to_owned(), names, lines, prefix });
            }
        };
        spec.failregex.iter().for_each(|pattern| add(&pattern.text, lines, false));
        spec.ignoreregex.iter().for_each(|pattern| add(&pattern.text, false, false));
        spec.prefregex.iter().for_each(|pattern| add(&pattern.text, false, true));
    }
}

/// All lines of the sample logs that are no annotations.
fn lines(incumbent: &Incumbent) -> BTreeSet<String> {
    let folder = fs::read_dir(incumbent.tests.join("files/logs")).expect("the sample logs");
    let mut lines = BTreeSet::new();
    for entry in folder.flatten().filter(|entry| entry.path().is_file()) {
        let text = String::from_utf8_lossy(&fs::read(entry.path()).expect("a sample log")).into_owned();
        lines.extend(
            text.split('\n')
                .map(|line| line.trim_end_matches('\r').to_owned())
                .filter(|line| !line.trim().is_empty() && !line.starts_with('#')),
        );
    }
    lines
}

fn ask(incumbent: &Incumbent, job: &Job<'_>) -> Answer {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/conformance/oracle.py");
    let mut child = Command::new(PYTHON)
        .arg(script)
        .env("PYTHONPATH", &incumbent.python_path)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python");
    let mut stdin = child.stdin.take().expect("the oracle's input");
    let text = serde_json::to_vec(job).expect("a job");
    let writer = thread::spawn(move || stdin.write_all(&text));
    let output = child.wait_with_output().expect("the oracle's answer");
    writer.join().expect("the writer").expect("the oracle's input");
    assert!(output.status.success(), "the oracle failed");
    serde_json::from_slice(&output.stdout).expect("the oracle's answer")
}
