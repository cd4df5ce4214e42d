//! Every shipped filter compiles, is linear, and makes of its samples what they say; and the filters people bring.

use proptest::prelude::*;
use std::{cell::RefCell, fs, net::IpAddr, path::PathBuf, sync::Arc};

use blocker::{
    filter::{Clock, Dialect, Filter, FilterSpec, Pattern, Place, Sample, SourceMatcher, Verdict},
    time::Timestamp,
};

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern { text: (*text).to_owned(), at: Place::default() }).collect()
}

fn shipped() -> Vec<Arc<Filter>> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/filters"));
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .map(|path| {
            let table: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
            let list = |key: &str| {
                let texts = table.get(key).and_then(|v| v.as_array()).cloned().unwrap_or_default();
                let texts: Vec<_> = texts.iter().map(|v| v.as_str().unwrap()).collect();
                patterns(&texts)
            };
            let samples = table["sample"].as_array().unwrap().iter().map(|sample| Sample {
                line: sample["line"].as_str().unwrap().to_owned(),
                host: sample.get("host").map(|host| host.as_str().unwrap().to_owned()),
                at: Place { path: path.clone(), ..Place::default() },
            });
            let spec = FilterSpec {
                name: path.file_stem().unwrap().to_string_lossy().into_owned(),
                failregex: list("failregex"),
                ignoreregex: list("ignoreregex"),
                noaddress: list("noaddress"),
                samples: samples.collect(),
                path: path.clone(),
                ..FilterSpec::default()
            };
            Arc::new(Filter::compile(spec).unwrap_or_else(|e| panic!("{e}")))
        })
        .collect()
}

#[test]
fn shipped_filters_make_of_their_samples_what_they_say() {
    let filters = shipped();
    assert!(filters.len() >= 2);
    for filter in filters {
        assert!(
            filter.samples.iter().any(|s| s.host.is_some()),
            "{} has no sample that matches",
            filter.name
        );
        assert!(
            filter.samples.iter().any(|s| s.host.is_none()),
            "{} has no sample that must not",
            filter.name
        );
        let failures = filter.check_samples();
        assert!(failures.is_empty(), "{failures:#?}");
    }
}

/// Filters that see failures of other filters' daemons too.
const GENERIC: [&str; 1] = ["pam-generic"];

#[test]
fn no_shipped_filter_blames_for_a_failure_of_another() {
    let filters = shipped();
    let mut block = Vec::new();
    let mut wanted = Vec::new();
    for (index, filter) in filters.iter().enumerate().filter(|(_, f)| !GENERIC.contains(&&*f.name)) {
        for sample in &filter.samples {
            if let Some(host) = &sample.host {
                block.extend_from_slice(sample.line.as_bytes());
                block.extend_from_slice(b"\r\nnoise 203.0.113.77\n\n");
                wanted.push((&*filters[index].name, Verdict::Blame(parse(host)), &*sample.line));
            }
        }
    }
    let mut found = Vec::new();
    SourceMatcher::new(filters.clone()).scan(&block, clock(), |line| {
        found.extend((0..filters.len()).filter_map(|i| Some((&*filters[i].name, line.verdict(i)?))));
    });
    found.retain(|(name, verdict)| !GENERIC.contains(name) && *verdict != Verdict::NoAddress);
    for (found, (name, verdict, line)) in found.iter().zip(&wanted) {
        assert_eq!(*found, (*name, *verdict), "{line}");
    }
    assert_eq!(found.len(), wanted.len());
}

fn parse(host: &str) -> IpAddr {
    blocker::net::parse_address(host).unwrap()
}

fn clock() -> Clock {
    Clock { now: Timestamp::from_secs(1_795_525_200), utc_offset_secs: 0 }
}

/// What a filter of one pattern makes of a line: the address, `-` for none named, nothing for no failure.
fn verdict(dialect: Dialect, pattern: &str, line: &[u8]) -> String {
    let spec = FilterSpec {
        name: "test".to_owned(),
        dialect,
        failregex: patterns(&[pattern]),
        noaddress: patterns(&["ip=- "]),
        ..FilterSpec::default()
    };
    let filter = Arc::new(Filter::compile(spec).unwrap_or_else(|e| panic!("{pattern}: {e}")));
    let mut found = String::new();
    SourceMatcher::new(vec![filter]).scan(line, clock(), |line| match line.verdict(0) {
        Some(Verdict::Blame(address)) => found.push_str(&address.to_string()),
        Some(Verdict::NoAddress) => found.push('-'),
        None => {}
    });
    found
}

#[test]
fn native_patterns_see_the_line_without_its_date() {
    const DJANGO: &str =
        r#"^\s*(?:\[?[A-Z]+\]? )?django\.auth login failed ip=<ADDR> user="(?:[^"\\]|\\.)*"$"#;
    for (line, found) in [
        (
            &b"2026-11-24 02:47:40,414 WARNING django.auth login failed ip=203.0.113.9 user=\"bob\""[..],
            "203.0.113.9",
        ),
        (b"django.auth login failed ip=2001:db8::1 user=\"b\\nip=1.2.3.4\"\r\n", "2001:db8::1"),
        (b"django.auth login failed ip=- user=\"bob\"", "-"),
        (b"x django.auth login failed ip=203.0.113.9 user=\"bob\"", ""),
        (b"django.auth login failed ip=203.0.113.9 user=\"bob\" ip=1.2.3.4 user=\"\"", ""),
        (b"django.auth login failed ip=203.0.113.9 user=\"b\xFFb\"\nx\n", "203.0.113.9"),
        (b"django.auth login failed ip=999.1.1.1 user=\"bob\"", ""),
        (b"django.auth login failed ip=01.2.3.4 user=\"bob\"", ""),
    ] {
        assert_eq!(verdict(Dialect::Native, DJANGO, line), found, "{}", String::from_utf8_lossy(line));
    }
}

#[test]
fn fail2ban_patterns_match_as_they_do_there() {
    for (pattern, line, found) in [
        ("Login Fail.*by <HOST>", "1732416460|WARNING|Login Fail 'bob' by 203.0.113.9", "203.0.113.9"),
        ("Login Fail.*by <HOST>", "1732416460|WARNING|Login Fail 'bob' by 203.0.113.9.", "203.0.113.9"),
        ("Login Fail.*by <HOST>", "Login Fail 'by 1.2.3.4' by 2001:db8::1", "2001:db8::1"),
        ("Login Fail.*by <HOST>", "Login Fail 'bob' by ", ""),
        ("Login Fail.*by <HOST>", "Login Fail 'bob' by 1.2.3.4.5", "-"),
        ("Login Fail.*by <HOST>$", "Login Fail 'bob' by host.example", "-"),
        (
            r"^\[\] \[error\] client \[<HOST>\] (?!ok)no$",
            "[Tue Nov 24 02:47:40 2026] [error] client [::1:2] no",
            "::1:2",
        ),
        (
            r"^\[\] \[error\] client <HOST> (?!ok)no$",
            "[Tue Nov 24 02:47:40 2026] [error] client [2001:db8::1] no",
            "2001:db8::1",
        ),
        (
            r"^<HOST> - \S+ \[\] .GET (?!/ok)",
            "203.0.113.9 - - [24/Nov/2026:02:47:40 +0000] \"GET /no",
            "203.0.113.9",
        ),
        (r"^<HOST> - \S+ \[\] .GET (?!/ok)", "203.0.113.9 - - [24/Nov/2026:02:47:40 +0000] \"GET /ok", ""),
        (r"^ <F-NOFAIL>Connection</F-NOFAIL> from <HOST>", "Nov 24 02:47:40 Connection from 203.0.113.9", ""),
        (r"(?P<q>['x]).*(?P=q) from <ADDR>$", "'a' from 203.0.113.9", "203.0.113.9"),
        // The line break is a part of what a pattern sees.
        (r"from <ADDR>\Z", "from 203.0.113.9", ""),
        (r"from <ADDR>\s\Z", "from 203.0.113.9", "203.0.113.9"),
        // Greedy text before the address leaves a part of it, which is nobody's.
        ("(?:a|b).*<ADDR>", "b 203.0.113.99", "-"),
        ("(?:a|b).* <ADDR>", "b 203.0.113.99", "203.0.113.99"),
        ("id <F-ID>\\S+</F-ID>", "id 203.0.113.9", "203.0.113.9"),
    ] {
        assert_eq!(verdict(Dialect::Fail2ban, pattern, line.as_bytes()), found, "{pattern} on {line}");
    }
}

#[test]
fn a_pattern_that_cannot_be_used_is_refused_with_its_place_and_a_hint() {
    for (dialect, pattern, what) in [
        (Dialect::Native, "failed for .*", "where the address is"),
        (Dialect::Native, "(<ADDR>", "does not compile"),
        (Dialect::Native, "(?!x)<ADDR>", "look-around"),
        (Dialect::Native, "<F-USER>x</F-USER> <ADDR>", "<F-USER>"),
        (Dialect::Fail2ban, "no address here", "says nowhere who failed"),
        (Dialect::Fail2ban, "(<HOST>", "does not compile"),
    ] {
        let at = Place { path: "f.toml".into(), line: 3, column: 5 };
        let spec = FilterSpec {
            dialect,
            failregex: vec![Pattern { text: pattern.to_owned(), at }],
            ..FilterSpec::default()
        };
        let message = Filter::compile(spec).unwrap_err().to_string();
        assert!(message.starts_with("f.toml:3:5: ") && message.contains("; "), "{message}");
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn a_sample_that_does_not_come_out_is_named() {
    let sample = |line: &str, host: Option<&str>| Sample {
        line: line.to_owned(),
        host: host.map(str::to_owned),
        at: Place { path: "f.toml".into(), line: 9, column: 1 },
    };
    let spec = FilterSpec {
        failregex: patterns(&["bad <ADDR>$"]),
        samples: vec![
            sample("bad 1.2.3.4", Some("1.2.3.4")),
            sample("bad 1.2.3.4", Some("1.2.3.5")),
            sample("bad 1.2.3.4", None),
            sample("good 1.2.3.4", Some("1.2.3.4")),
            sample("bad 1.2.3.4", Some("localhost")),
        ],
        ..FilterSpec::default()
    };
    let failures = Arc::new(Filter::compile(spec).unwrap()).check_samples();
    assert_eq!(failures.len(), 4);
    assert!(failures.iter().all(|f| f.to_string().starts_with("f.toml:9:1: ")));
}

#[test]
fn a_line_over_the_limit_is_skipped_and_counted() {
    let spec = FilterSpec { failregex: patterns(&["bad <ADDR>"]), ..FilterSpec::default() };
    let mut matcher = SourceMatcher::new(vec![Arc::new(Filter::compile(spec).unwrap())]);
    let mut block = vec![b'x'; 70_000];
    block.extend_from_slice(b"bad 1.2.3.4\nbad 1.2.3.5\n");
    let mut found = Vec::new();
    matcher.scan(&block, clock(), |line| found.extend(line.verdict(0)));
    assert_eq!(found, [Verdict::Blame(parse("1.2.3.5"))]);
    assert_eq!(matcher.lines_too_long(), 1);
}

/// Pieces of real and hostile lines.
const PIECES: &[&[u8]] = &[
    b"Nov 24 02:47:40 ",
    b"2026-11-24T02:47:40Z ",
    b"2026/11/24 02:47:40 ",
    b"[",
    b"]",
    b"web sshd[1]: ",
    b"sshd[1]: ",
    b"Failed password for ",
    b"invalid user ",
    b"Invalid user ",
    b"root",
    b" from ",
    b"203.0.113.9",
    b"2001:db8::1",
    b" port 22",
    b" ssh2",
    b"[error] 1#1: *5 ",
    b"user \"",
    b"\": password mismatch",
    b", client: ",
    b", server: _",
    b", request: \"GET",
    b"\n",
    b"\r\n",
    b"\xff",
    b"\xc3",
    b"\x00",
    b" ",
    b":",
    b".",
    b"9",
    b"[preauth]",
    b"Connection closed by authenticating user ",
    b"(",
    b"\xe2\x80\xa8",
    b"<38>",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_prefilter_hides_no_failure_whatever_the_bytes(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40),
    ) {
        // Built once: an automaton over every shipped filter costs more than a case.
        thread_local! {
            static MATCHERS: RefCell<(usize, SourceMatcher, SourceMatcher)> = {
                let filters = shipped();
                let every_line = FilterSpec { failregex: patterns(&["<ADDR>"]), ..FilterSpec::default() };
                let mut with_all = filters.clone();
                with_all.push(Arc::new(Filter::compile(every_line).unwrap()));
                RefCell::new((filters.len(), SourceMatcher::new(filters), SourceMatcher::new(with_all)))
            };
        }
        let block = pieces.concat();
        MATCHERS.with_borrow_mut(|(filters, matcher, with_all)| {
            let run = |matcher: &mut SourceMatcher| {
                let mut found = Vec::new();
                matcher.scan(&block, clock(), |line| {
                    found.extend((0..*filters).filter_map(|i| Some((i, line.verdict(i)?, line.date(i)))));
                });
                found
            };
            prop_assert_eq!(run(matcher), run(with_all));
            Ok(())
        })?;
    }
}

/// What daemons write around text that an attacker chooses at `@`, and bytes that the text cannot hold.
const HOSTILE: [(&str, &str, &str); 9] = [
    (
        "sshd",
        "Nov 24 02:47:40 web sshd[1]: Failed password for invalid user @ from 203.0.113.9 port 4 ssh2",
        "\n\r",
    ),
    ("sshd", "Nov 24 02:47:40 web sshd[1]: Invalid user @ from 203.0.113.9 port 4", "\n\r"),
    ("sshd", "Nov 24 02:47:40 web sshd[1]: Invalid user @ from 203.0.113.9", "\n\r"),
    (
        "sshd",
        "Nov 24 02:47:40 web sshd[1]: Connection reset by authenticating user @ 203.0.113.9 port 4 [preauth]",
        "\n\r",
    ),
    (
        "sshd",
        "Nov 24 02:47:40 web sshd[1]: Connection closed by invalid user @ 203.0.113.9 port 4 [preauth]",
        "\n\r",
    ),
    (
        "sshd",
        "Nov 24 02:47:40 web sshd[1]: Failed none for invalid user @ from 203.0.113.9 port 4 ssh2",
        "\n\r",
    ),
    ("sshd", "Nov 24 02:47:40 web app: @", "\n\r"),
    (
        "nginx-http-auth",
        "2026/11/24 02:47:40 [error] 1#1: *5 user \"@\" was not found in \"/etc/p\", client: 203.0.113.9, server: _, request: \"GET / HTTP/1.1\", host: \"h\"",
        ":",
    ),
    (
        "nginx-http-auth",
        "2026/11/24 02:47:40 [error] 1#1: *5 user \"x\": password mismatch, client: 203.0.113.9, server: _, request: \"GET @ HTTP/1.1\", host: \"h\"",
        "\n\r",
    ),
];

/// What an attacker would write there.
const WORDS: &[&str] = &[
    " ",
    "\n",
    "\"",
    ":",
    "from ",
    " from 198.51.100.1",
    " port 22",
    " ssh2",
    " [preauth]",
    "198.51.100.1",
    ": RSA SHA256:x",
    "sshd[1]: ",
    "Failed password for ",
    "invalid user ",
    "root",
    "Invalid user ",
    "authenticating user ",
    "web ",
    "Nov 24 02:47:40 ",
    "2026/11/24 02:47:40 ",
    "[error] 1#1: *5 ",
    "user \"",
    " was not found in \"/x\"",
    ", client: ",
    ": password mismatch",
    ", server: _",
    ", request: \"GET / HTTP/1.1\"",
    "2001:db8::bad",
    "Connection closed by ",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn text_that_an_attacker_chooses_moves_no_blame(
        template in prop::sample::select(&HOSTILE[..]),
        words in prop::collection::vec(prop::sample::select(WORDS), 0..12),
    ) {
        thread_local! {
            static FILTERS: Vec<Arc<Filter>> = shipped();
        }
        let (name, line, excluded) = template;
        let text: String = words.concat().chars().filter(|c| !excluded.contains(*c)).collect();
        let filters: Vec<_> = FILTERS.with(Clone::clone).into_iter().filter(|f| *f.name == *name).collect();
        let line = line.replacen('@', &text, 1);
        let mut blamed = Vec::new();
        SourceMatcher::new(filters).scan(line.as_bytes(), clock(), |line| blamed.extend(line.verdict(0)));
        blamed.retain(|verdict| *verdict != Verdict::Blame(parse("203.0.113.9")));
        prop_assert_eq!(blamed, [], "{}", line);
    }
}
