//! Filters on a field of JSON lines: what a filter's patterns see, whatever way a logger writes JSON.

use std::{fmt::Write as _, net::IpAddr, path::Path, sync::Arc};

use blocker::{
    config::read_filter,
    filter::{Clock, Filter, LINE_BYTES_MAX, SourceMatcher, Verdict, lint, lint::mutate::Mutator},
    time::Timestamp,
};
use proptest::prelude::*;

const CLOCK: Clock = Clock { now: Timestamp::from_secs(1_795_525_200), utc_offset_secs: 0 };

const FILTER: &str = r#"
field = "msg"
newline_safe = ["file", "journal", "socket"]
failregex = ['^login failed from <ADDR> as "[^"]*"$', '^(?:bad|wrong) password: <ADDR>$']
[[sample]]
line = '{"level":"warn","msg":"login failed from 203.0.113.9 as \"bob\""}'
host = "203.0.113.9"
[[sample]]
line = '{"msg":"wrong password: 2001:db8::9"}'
host = "2001:db8::9"
[[sample]]
line = 'wrong password: 203.0.113.9'
[[sample]]
line = '{"text":"wrong password: 203.0.113.9"}'
"#;

fn filter(text: &str) -> Arc<Filter> {
    let spec = read_filter(text, Path::new("json.toml")).unwrap_or_else(|errors| panic!("{errors}"));
    Arc::new(Filter::compile(spec).unwrap_or_else(|error| panic!("{error}")))
}

fn blamed(matcher: &mut SourceMatcher, block: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    matcher.scan(block.as_bytes(), CLOCK, |line| match line.verdict(0) {
        Some(Verdict::Blame(address)) => found.push(address),
        Some(Verdict::NoAddress) | None => {}
    });
    found
}

#[test]
fn samples_are_raw_lines() {
    assert_eq!(filter(FILTER).check_samples(), []);
}

#[test]
fn the_field_decides_and_what_cannot_be_read_is_counted() {
    let mut matcher = SourceMatcher::new(vec![filter(FILTER)]);
    let long = format!("{{\"x\":\"{}\",\"msg\":\"bad password: 203.0.113.9\"}}", "x".repeat(LINE_BYTES_MAX));
    let deep =
        format!("{{\"x\":{}1{},\"msg\":\"bad password: 203.0.113.9\"}}", "[".repeat(99), "]".repeat(99));
    for (line, blames, not_json, no_field) in [
        (r#"{"msg":"bad password: 203.0.113.9"}"#, true, 0, 0),
        (r#"app[3]: {"msg":"bad password: 203.0.113.9"}"#, true, 0, 0),
        (r#"{"msg":"\u0062ad \u0070assword\u003a 203.0.113.9"}"#, true, 0, 0),
        (r#"{"msg":"login failed from 203.0.113.9 as \"a\nb\""}"#, true, 0, 0),
        // The text of another field, or of the line.
        (r#"{"user":"bad password: 203.0.113.9","msg":"welcome"}"#, false, 0, 0),
        (r#"{"user":"bad password: 203.0.113.9"}"#, false, 0, 1),
        (r#"{"msg":["bad password: 203.0.113.9"]}"#, false, 0, 1),
        (r#"{"msg":"bad password: 203.0.113.9","msg":"x"}"#, false, 1, 0),
        (r#"bad password: 203.0.113.9"#, false, 1, 0),
        (r#"{"msg":"bad password: 203.0.113.9""#, false, 1, 0),
        (&deep, false, 1, 0),
        (&long, false, 0, 0),
        // Nothing in them speaks for a failure: they are not read as JSON.
        ("{broken", false, 0, 0),
        (r#"{"msg":"welcome"}"#, false, 0, 0),
    ] {
        let before = matcher.losses(0);
        let found = blamed(&mut matcher, &format!("{line}\n"));
        let losses = matcher.losses(0);
        let counted = (losses.not_json - before.not_json, losses.no_field - before.no_field);
        assert_eq!((found.len(), counted), (usize::from(blames), (not_json, no_field)), "{line:.100}");
    }
    assert_eq!(matcher.lines_too_long(), 1);
}

#[test]
fn a_filter_on_a_field_and_one_on_the_line_read_one_source() {
    let of_line = filter(r#"failregex = ['^\{"msg":"bad password: <ADDR>"\}$']"#);
    let mut matcher = SourceMatcher::new(vec![of_line, filter(FILTER)]);
    let mut verdicts = Vec::new();
    let block = "{\"msg\":\"bad password: 203.0.113.9\"}\nbad password: 203.0.113.9\n{\"msg\":\"wrong password: 203.0.113.9\"}\n";
    matcher.scan(block.as_bytes(), CLOCK, |line| {
        verdicts.push((line.verdict(0).is_some(), line.verdict(1).is_some()));
    });
    assert_eq!(verdicts, [(true, true), (false, false), (false, true)]);
}

#[test]
fn proof_and_mutants_are_of_the_text() {
    let safe = read_filter(FILTER, Path::new("json.toml")).expect("the filter is read");
    let proofs = lint::lint(&safe, lint::PRODUCT_STATES_MAX);
    assert!(proofs.iter().all(|proof| proof.safety == lint::Safety::Safe), "{proofs:#?}");
    let mutation = Mutator::new(&safe, filter(FILTER), &[]).run(1, 2_000);
    assert_eq!(mutation.forged, None);
    assert!(mutation.fields > 0);
    // Who is logged may write what the daemon writes behind the name.
    let forgeable = "field = 'a.msg'\nfailregex = ['^no (.*?) from <ADDR>']\n[[sample]]\nline = '{\"a\":{\"msg\":\"no bob from 203.0.113.9\"}}'\nhost = '203.0.113.9'\n";
    let spec = read_filter(forgeable, Path::new("json.toml")).expect("the filter is read");
    let forged = Mutator::new(&spec, filter(forgeable), &[]).run(1, 5_000).forged.expect("it can be forged");
    assert_eq!(blamed(&mut SourceMatcher::new(vec![filter(forgeable)]), &forged.line), [forged.planted]);
}

/// Writes a string with each character escaped in one of the ways there are.
fn written(text: &str, ways: &[u8]) -> String {
    let mut out = String::from("\"");
    for (at, c) in text.chars().enumerate() {
        match (ways.get(at % ways.len().max(1)).copied().unwrap_or(0), c) {
            (0, _) => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    write!(out, "\\u{unit:04x}").expect("a string takes it");
                }
            }
            (_, '"' | '\\') => out.extend(['\\', c]),
            (1, '/') => out += "\\/",
            (_, '\n') => out += "\\n",
            (_, c) => out.push(c),
        }
    }
    out + "\""
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn no_way_of_writing_json_hides_a_failure(
        user in "[a-z/\\\\é😀\n ]{0,8}", ways in prop::collection::vec(0..20_u8, 1..40), escape_key in any::<bool>(),
    ) {
        let mut matcher = SourceMatcher::new(vec![filter(FILTER)]);
        let text = written(&format!("login failed from 203.0.113.9 as \"{user}\""), &ways);
        let key = if escape_key { "\"m\\u0073g\"" } else { "\"msg\"" };
        let line = format!("{{\"a\":[1,{{}}],{key} : {text}}}\n");
        prop_assert_eq!(blamed(&mut matcher, &line).len(), 1, "{}", line);
    }
}
