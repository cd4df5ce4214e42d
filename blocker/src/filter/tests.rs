//! Every shipped filter through the whole engine of this module, against the plainest evaluation there is: line by line,
//! every pattern in order, by captures.

use std::{cell::RefCell, collections::BTreeSet, path::Path, sync::LazyLock};

use proptest::prelude::*;

use super::{regexp::LONG_BYTES, *};
use crate::config::{BUILT_IN, read_filter};

static SHIPPED: LazyLock<Vec<Arc<Filter>>> = LazyLock::new(|| {
    let compile = |(name, text): &(&str, &str)| {
        let spec = read_filter(text, Path::new(name)).unwrap_or_else(|e| panic!("{e:?}"));
        Arc::new(Filter::compile(spec).unwrap_or_else(|e| panic!("{e}")))
    };
    BUILT_IN.iter().map(compile).collect()
});

fn plainly(filter: &Filter, line: &[u8]) -> Option<Verdict> {
    let Rules::Native(native) = &filter.rules else { return None };
    let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
    let text = match date::find(&line) {
        Some(found) => format!("{}{}", &line[..found.span.start], &line[found.span.end..]),
        None => line,
    };
    let (mut content, mut outer) = (text.as_str(), None);
    if let Some(prefregex) = &native.prefregex {
        let hit = prefregex.find(&text)?;
        outer = hit.host.and_then(|span| whole_address(&text, span));
        content = hit.content.map_or(content, |span| &text[span]);
    }
    let blamed = native.failregex.iter().find_map(|pattern| pattern.blames_plainly(content)?.or(outer));
    let verdict = match blamed {
        Some(address) => Verdict::Blame(address),
        None => {
            native.noaddress.iter().any(|pattern| pattern.is_match(content)).then_some(Verdict::NoAddress)?
        }
    };
    (!native.ignoreregex.iter().any(|pattern| pattern.is_match(content))).then_some(verdict)
}

/// All filters on one source, and what each makes of which line.
fn together(block: &[u8]) -> Vec<(usize, Verdict)> {
    thread_local! {
        static MATCHER: RefCell<SourceMatcher> = RefCell::new(SourceMatcher::new(SHIPPED.clone()));
    }
    let mut found = Vec::new();
    MATCHER.with_borrow_mut(|matcher| {
        matcher.scan(block, SAMPLE_CLOCK, |line| {
            found.extend((0..SHIPPED.len()).filter_map(|filter| Some((filter, line.verdict(filter)?))));
        });
    });
    found
}

fn check(block: &[u8]) -> Result<(), TestCaseError> {
    let mut wanted = Vec::new();
    for line in block.split(|byte| *byte == b'\n') {
        let verdicts =
            SHIPPED.iter().enumerate().map(|(index, filter)| Some((index, plainly(filter, line)?)));
        wanted.extend(verdicts.flatten());
    }
    let found = together(block);
    let differs = (0..found.len().max(wanted.len())).find(|at| found.get(*at) != wanted.get(*at));
    let shown = differs.map(|at| (found.get(at), wanted.get(at)));
    prop_assert!(differs.is_none(), "{:?} in {}", shown, String::from_utf8_lossy(block));
    Ok(())
}

#[test]
fn all_samples_in_one_log_come_out_as_they_do_plainly() {
    let lines: Vec<&str> =
        SHIPPED.iter().flat_map(|filter| &filter.samples).map(|sample| sample.line.as_str()).collect();
    for line in &lines {
        check(line.as_bytes()).unwrap();
    }
    check(lines.join("\n").as_bytes()).unwrap();
    check(lines.join("\r\n").as_bytes()).unwrap();
}

#[test]
fn a_failure_in_a_shipped_sample_of_json_counts_at_its_own_time() {
    // What the samples say in their own words.
    const TIMES: [(&str, i64); 3] = [
        ("2026-11-24", 1_795_488_460),
        ("2016-11-24", 1_479_955_660),
        (r#""ts":1764000000.1234567"#, 1_764_000_000),
    ];
    let mut dated: BTreeSet<&str> = BTreeSet::new();
    for filter in SHIPPED.iter() {
        let mut matcher = SourceMatcher::new(vec![filter.clone()]);
        let is_json = |sample: &&Sample| sample.host.is_some() && sample.line.trim_start().starts_with('{');
        for sample in filter.samples.iter().filter(is_json) {
            let says = |(text, _): &&(&str, i64)| sample.line.contains(text);
            let wanted = TIMES.iter().rev().find(says).map(|(_, secs)| *secs);
            let mut date = None;
            matcher.scan(sample.line.as_bytes(), SAMPLE_CLOCK, |line| date = line.date(0));
            assert_eq!(date.map(Timestamp::as_secs), wanted, "{}: {}", filter.name, sample.line);
            if date.is_some() {
                dated.insert(&filter.name);
            }
        }
    }
    let wanted = [
        "authelia",
        "caddy",
        "gitlab",
        "grafana",
        "keycloak-json",
        "miniflux",
        "mongodb",
        "mysqld-json",
        "nextcloud",
        "owncloud",
        "postgresql-json",
        "traefik",
    ];
    assert_eq!(dated, wanted.into(), "filters whose samples of JSON have a date");
}

/// What hostile or odd text puts into a line.
const PIECES: &[&[u8]] = &[
    b"198.51.100.1",
    b"2001:db8::1",
    b"::ffff:198.51.100.1",
    b"999.1.1.1",
    b"1.2.3.4.5",
    b"::",
    b"[",
    b"]",
    b"\"",
    b" ",
    b".",
    b":",
    b",",
    b"'",
    b"\\",
    b"\xff",
    b"\xc3\xa9",
    b"\r",
    b" from ",
    b" by ",
    b" port 22",
    b", client: ",
    b"9",
    b"Nov 24 02:47:40 ",
    b"[24/Nov/2026:02:47:40 +0000]",
    b"user=",
    b"=",
    b"a",
    b":443",
    b"(",
    b")",
    b"",
];

/// A sample with pieces put into it, cut out of it, or of another one.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let samples = SHIPPED.iter().flat_map(|filter| &filter.samples).count();
    let edit = (any::<prop::sample::Index>(), 0_usize..12, prop::sample::select(PIECES));
    (0..samples, 0..samples, prop::collection::vec(edit, 0..6), any::<bool>()).prop_map(
        |(index, other, edits, mixed)| {
            let sample = |index| {
                let mut all = SHIPPED.iter().flat_map(|filter| &filter.samples);
                all.nth(index).map_or(&b""[..], |sample| sample.line.as_bytes())
            };
            let mut line = sample(index).to_vec();
            if mixed {
                line.extend_from_slice(sample(other));
            }
            for (at, cut, piece) in edits {
                let at = at.index(line.len() + 1);
                let end = (at + cut / 2).min(line.len());
                line.splice(at..end, piece.iter().copied());
            }
            line
        },
    )
}

/// Long enough for what long lines are looked at with.
fn padded() -> impl Strategy<Value = Vec<u8>> {
    (mutated(), any::<prop::sample::Index>(), prop::sample::select(PIECES)).prop_map(
        |(mut line, at, piece)| {
            let at = at.index(line.len() + 1);
            let pad = piece.repeat((LONG_BYTES + 64) / piece.len().max(1));
            line.splice(at..at, pad);
            line
        },
    )
}

#[test]
fn what_a_slower_engine_does_is_done_and_counted() {
    let pattern = Pattern { text: r"^x(?:[ab]*a[ab]{14}c|[ab]+) <ADDR>$".to_owned(), at: Place::default() };
    let spec = FilterSpec { name: "x".to_owned(), failregex: vec![pattern], ..FilterSpec::default() };
    let mut matcher = SourceMatcher::new(vec![Arc::new(Filter::compile(spec).unwrap())]);
    let mut seed = 1_u32;
    let random = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if seed >> 31 == 0 { 'a' } else { 'b' }
    });
    let text: String = random.take(60_000).collect();
    for (line, slow) in [(format!("x{} 192.0.2.9", &text[..200]), 0), (format!("x{text} 192.0.2.9"), 1)] {
        let mut found = None;
        matcher.scan(line.as_bytes(), SAMPLE_CLOCK, |line| found = line.verdict(0));
        assert_eq!(found, Some(Verdict::Blame("192.0.2.9".parse().unwrap())));
        assert_eq!(matcher.losses(0).slow, slow);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn long_lines_come_out_as_they_do_plainly(line in padded()) {
        check(&line)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn mutated_samples_come_out_as_they_do_plainly(lines in prop::collection::vec(mutated(), 1..4)) {
        check(&lines.join(&b'\n'))?;
    }
}
