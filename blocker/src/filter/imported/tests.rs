//! Imported filters over logs: what each line comes to, given the lines before it.

use std::sync::Arc;

use jiff::tz::TimeZone;

use super::{CONNECTION_SPAN, CONNECTIONS_MAX, Fail2banOptions};
use crate::{
    filter::{Clock, Dialect, Filter, FilterSpec, Pattern, Place, SourceMatcher},
    time::Timestamp,
};

/// 2026-11-24 13:00:00 UTC.
const NOW: i64 = 1_795_525_200;

fn pattern(text: &str) -> Pattern {
    Pattern { text: text.to_owned(), at: Place::default() }
}

fn spec(prefregex: &str, failregex: &[&str], ignoreregex: &[&str], fail2ban: Fail2banOptions) -> FilterSpec {
    FilterSpec {
        name: "test".to_owned(),
        dialect: Dialect::Fail2ban,
        prefregex: (!prefregex.is_empty()).then(|| pattern(prefregex)),
        failregex: failregex.iter().map(|text| pattern(text)).collect(),
        ignoreregex: ignoreregex.iter().map(|text| pattern(text)).collect(),
        fail2ban,
        ..FilterSpec::default()
    }
}

fn matcher(spec: FilterSpec) -> SourceMatcher {
    SourceMatcher::new(vec![Arc::new(Filter::compile(spec).unwrap_or_else(|error| panic!("{error}")))])
}

/// What a line comes to: the address and how many lines it took, `-` for nobody's failure, nothing for none.
fn seen(matcher: &mut SourceMatcher, line: &[u8], now: i64) -> String {
    let mut seen = String::new();
    let clock = Clock { now: Timestamp::from_secs(now), utc_offset_secs: 0 };
    matcher.scan(line, clock, |line| {
        // However often it is asked, the line was there once.
        assert_eq!(line.verdict(0), line.verdict(0));
        if let Some(failure) = line.failure(0) {
            let who = failure.address.map_or("-".to_owned(), |address| address.to_string());
            seen = format!("{who} {}", failure.attempts);
        }
    });
    seen
}

fn check(mut matcher: SourceMatcher, log: &[(&str, &str)]) {
    for (at, (line, wanted)) in log.iter().enumerate() {
        assert_eq!(seen(&mut matcher, line.as_bytes(), NOW), *wanted, "line {at}: {line}");
    }
}

const PREFIX: &str = r"^ d\[<F-MLFID>\d+</F-MLFID>\]: <F-CONTENT>.+</F-CONTENT>$";

fn daemon() -> SourceMatcher {
    let patterns = [
        "^<F-NOFAIL>connect</F-NOFAIL> from <ADDR>$",
        "^wrong password for <F-USER>\\S+</F-USER>$",
        "^<F-MLFGAINED>welcome</F-MLFGAINED> <F-USER>\\S+</F-USER>$",
        "^<F-MLFFORGET><F-NOFAIL>bye</F-NOFAIL></F-MLFFORGET>$",
        "^<F-MLFFORGET>thrown out</F-MLFFORGET>$",
    ];
    matcher(spec(PREFIX, &patterns, &["for guest$"], Fail2banOptions::default()))
}

#[test]
fn lines_of_one_connection_are_one_story() {
    const D: &str = "Nov 24 12:59:59";
    let line = |text: &str| format!("{D} d[{}]: {}", &text[..1], &text[2..]);
    for story in [
        // The address is in another line than the failure.
        &[("1 connect from 192.0.2.1", ""), ("1 wrong password for a", "192.0.2.1 2"), ("1 bye", "")][..],
        // Connections are kept apart, and one that is over is forgotten.
        &[
            ("1 connect from 192.0.2.1", ""),
            ("2 connect from 192.0.2.2", ""),
            ("1 wrong password for a", "192.0.2.1 2"),
            ("2 wrong password for a", "192.0.2.2 2"),
            ("1 bye", ""),
            ("1 wrong password for a", ""),
        ],
        // A failure of whom nobody knows yet waits for the address.
        &[("3 wrong password for a", ""), ("3 connect from 192.0.2.3", "192.0.2.3 2")],
        // Who is let in is no attacker, unless another user was tried before.
        &[("1 connect from 192.0.2.1", ""), ("1 welcome a", ""), ("1 bye", "")],
        &[
            ("1 connect from 192.0.2.1", ""),
            ("1 wrong password for a", "192.0.2.1 2"),
            ("1 welcome b", "192.0.2.1 1"),
        ],
        &[("1 connect from 192.0.2.1", ""), ("1 thrown out", "192.0.2.1 2")],
        &[("1 connect from 192.0.2.1", ""), ("1 wrong password for guest", "")],
        // No whole address is nobody's.
        &[("1 connect from 999.0.2.1", ""), ("1 wrong password for a", "- 2")],
    ] {
        let lines: Vec<(String, &str)> = story.iter().map(|(text, wanted)| (line(text), *wanted)).collect();
        let log: Vec<(&str, &str)> = lines.iter().map(|(line, wanted)| (line.as_str(), *wanted)).collect();
        check(daemon(), &log);
    }
}

#[test]
fn connections_give_way_by_number_and_by_age_and_are_counted() {
    let say = |matcher: &mut SourceMatcher, id: usize, text: &str, now: i64| {
        seen(matcher, format!("Nov 24 12:59:59 d[{id}]: {text}").as_bytes(), now)
    };
    let mut many = daemon();
    for id in 0..=CONNECTIONS_MAX {
        say(&mut many, id, "connect from 192.0.2.1", NOW);
    }
    assert_eq!(say(&mut many, 0, "wrong password for a", NOW), "");
    assert_eq!(say(&mut many, 2, "wrong password for a", NOW), "192.0.2.1 2");
    assert!(many.losses(0).connections > 0);
    let mut old = daemon();
    say(&mut old, 1, "connect from 192.0.2.1", NOW);
    let span = i64::try_from(CONNECTION_SPAN.as_secs()).unwrap();
    assert_eq!(say(&mut old, 1, "wrong password for a", NOW + span - 1), "192.0.2.1 2");
    assert_eq!(say(&mut old, 1, "wrong password for a", NOW + span), "");
    assert_eq!(old.losses(0).connections, 0);
}

#[test]
fn several_lines_are_one_text_and_those_that_matched_are_used_up() {
    let options = Fail2banOptions { maxlines: 4, ..Fail2banOptions::default() };
    let patterns = [r"^ open (?P<id>\d+) <ADDR>$<SKIPLINES>^ refused (?P=id)$"];
    let log = |text: &str| matcher(spec("", &[text], &["guest"], options.clone()));
    check(
        log(patterns[0]),
        &[
            ("Nov 24 12:59:59 open 1 192.0.2.1", ""),
            ("Nov 24 12:59:59 open 2 192.0.2.2", ""),
            ("Nov 24 12:59:59 refused 1", "192.0.2.1 2"),
            // The line that was passed over is still there, the ones that matched are not.
            ("Nov 24 12:59:59 refused 1", ""),
            ("Nov 24 12:59:59 refused 2", "192.0.2.2 2"),
            ("Nov 24 12:59:59 open 3 192.0.2.3", ""),
            ("a", ""),
            ("b", ""),
            ("c", ""),
            ("Nov 24 12:59:59 refused 3", ""),
        ],
    );
    check(
        log(r"^ open (?P<id>\d+) \S+ <ADDR>$<SKIPLINES>^ refused (?P=id)$"),
        &[
            ("Nov 24 12:59:59 open 1 guest 192.0.2.1", ""),
            ("Nov 24 12:59:59 refused 1", ""),
            ("Nov 24 12:59:59 open 1 bob 192.0.2.1", ""),
            ("Nov 24 12:59:59 refused 1", "192.0.2.1 2"),
        ],
    );
}

#[test]
fn options_change_what_a_pattern_sees() {
    let with = |change: fn(&mut Fail2banOptions)| {
        let mut options = Fail2banOptions::default();
        change(&mut options);
        options
    };
    for (options, pattern, line, wanted) in [
        (with(|_| {}), "^ bad <HOST>$", &b"Nov 24 12:59:59 bad 192.0.2.1"[..], "192.0.2.1 1"),
        // A name is somebody, but no address.
        (with(|_| {}), "^ bad <HOST>$", b"Nov 24 12:59:59 bad host.example", "- 1"),
        (with(|o| o.addresses_only = true), "^ bad <HOST>$", b"Nov 24 12:59:59 bad host.example", ""),
        (with(|o| o.journal = true), "^bad <HOST>$", b"bad 192.0.2.1", "192.0.2.1 1"),
        (with(|o| o.journal = true), "^ bad <HOST>$", b"Nov 24 12:59:59 bad 192.0.2.1", ""),
        (
            with(|o| o.logencoding = Some(pattern("latin1"))),
            "^ b\u{e4}d <HOST>$",
            b"Nov 24 12:59:59 b\xe4d 192.0.2.1",
            "192.0.2.1 1",
        ),
        (with(|_| {}), "^ b\\Wd <HOST>$", b"Nov 24 12:59:59 b\xe4d 192.0.2.1", "192.0.2.1 1"),
        (
            with(|o| o.datepattern = Some(pattern("^<%Y-%j>"))),
            "^ bad <HOST>$",
            b"<2026-328> bad 192.0.2.1",
            "192.0.2.1 1",
        ),
        (
            with(|o| o.datepattern = Some(pattern("{NONE}"))),
            "^Nov 24 12:59:59 bad <HOST>$",
            b"Nov 24 12:59:59 bad 192.0.2.1",
            "192.0.2.1 1",
        ),
        (with(|_| {}), "^ bad <SUBNET>$", b"Nov 24 12:59:59 bad 192.0.2.0/24", "192.0.2.0 1"),
        (with(|_| {}), "^ bad <F-ID/>$", b"Nov 24 12:59:59 bad 192.0.2.1", "192.0.2.1 1"),
        (with(|_| {}), "^ bad <F-ID/>$", b"Nov 24 12:59:59 bad session-7", "- 1"),
        (with(|_| {}), "^ <F-NOFAIL>bad</F-NOFAIL> <HOST>$", b"Nov 24 12:59:59 bad 192.0.2.1", ""),
        (with(|_| {}), "^ <F-MLFGAINED>in</F-MLFGAINED> <HOST>$", b"Nov 24 12:59:59 in 192.0.2.1", ""),
    ] {
        let line_text = String::from_utf8_lossy(line);
        let mut matcher = matcher(spec("", &[pattern], &[], options));
        assert_eq!(seen(&mut matcher, line, NOW), wanted, "{pattern} on {line_text}");
    }
}

#[test]
fn groups_of_several_names_are_joined() {
    let patterns = [
        r"^ alt (?:<F-USER>a\w*</F-USER>|<F-ALT_USER>b\w*</F-ALT_USER>|<F-ALT_USER_1>c\w*</F-ALT_USER_1>) <ADDR>$",
        r"^ pair <F-USER>\w+</F-USER>@<F-TUPLE_USER>\w+</F-TUPLE_USER> <ADDR>$",
    ];
    let mut matcher = matcher(spec("", &patterns, &[], Fail2banOptions::default()));
    for (line, wanted) in [
        ("alt ann 192.0.2.1", r#"Text("ann")"#),
        ("alt bob 192.0.2.1", r#"Text("bob")"#),
        ("alt cid 192.0.2.1", r#"Text("cid")"#),
        ("pair bob@home 192.0.2.1", r#"Tuple([Some("bob"), Some("home")])"#),
    ] {
        let mut user = String::new();
        let clock = Clock { now: Timestamp::from_secs(NOW), utc_offset_secs: 0 };
        matcher.scan(format!("Nov 24 12:59:59 {line}").as_bytes(), clock, |line| {
            user = line.failure(0).map_or(String::new(), |failure| format!("{:?}", failure.groups["user"]));
        });
        assert_eq!(user, wanted, "{line}");
    }
}

#[test]
fn dates_are_in_the_zone_of_the_log_and_carry_over_for_a_minute() {
    let options =
        |zone: Option<&str>| Fail2banOptions { logtimezone: zone.map(pattern), ..Fail2banOptions::default() };
    for (zone, line, secs) in [
        (None, "2026-11-24 12:59:59 bad 192.0.2.1", NOW - 1),
        (Some("UTC+0200"), "2026-11-24 14:59:59 bad 192.0.2.1", NOW - 1),
        (Some("CET"), "Nov 24 13:59:59 bad 192.0.2.1", NOW - 1),
        // What the line itself says is better.
        (Some("CET"), "2026-11-24T12:59:59Z bad 192.0.2.1", NOW - 1),
    ] {
        let mut matcher = matcher(spec("", &["bad <ADDR>$"], &[], options(zone)));
        let mut dates = Vec::new();
        for (line, now) in [(line, NOW), ("bad 192.0.2.1", NOW + 58), ("bad 192.0.2.1", NOW + 60)] {
            let clock = Clock { now: Timestamp::from_secs(now), utc_offset_secs: 0 };
            matcher.scan(line.as_bytes(), clock, |line| dates.push(line.date(0).map(Timestamp::as_secs)));
        }
        assert_eq!(dates, [Some(secs), Some(secs), None], "{line}");
    }
    // Summer and winter are as the zone has them, not as the clock's offset is today.
    let mut matcher = matcher(spec("", &["bad <ADDR>$"], &[], options(None)));
    matcher.set_zone(TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0").unwrap());
    let mut dates = Vec::new();
    for line in ["2026-11-24 13:59:59 bad 192.0.2.1", "2026-07-24 14:59:59 bad 192.0.2.1"] {
        let clock = Clock { now: Timestamp::from_secs(NOW), utc_offset_secs: 0 };
        matcher.scan(line.as_bytes(), clock, |line| dates.push(line.date(0).map(Timestamp::as_secs)));
    }
    assert_eq!(dates, [Some(NOW - 1), Some(NOW - 123 * 86_400 - 1)]);
    let error = Filter::compile(spec("", &["bad <ADDR>$"], &[], options(Some("Moon")))).unwrap_err();
    assert!(error.to_string().contains("no time zone"), "{error}");
}

#[test]
fn a_pattern_that_takes_too_many_steps_is_given_up_and_counted() {
    let again = r"^ (?P<q>a)(?:(?P=q)|(?P=q)a)+Z <ADDR>$";
    let mut matcher = matcher(spec("", &[again], &[], Fail2banOptions::default()));
    let hostile = format!("Nov 24 12:59:59 {}bZ 192.0.2.1", "a".repeat(2_000));
    assert_eq!(seen(&mut matcher, b"Nov 24 12:59:59 aaaZ 192.0.2.1", NOW), "192.0.2.1 1");
    assert_eq!(matcher.losses(0).gave_up, 0);
    seen(&mut matcher, hostile.as_bytes(), NOW);
    let gave_up = matcher.losses(0).gave_up;
    assert_eq!(seen(&mut matcher, b"Nov 24 12:59:59 aaaZ 192.0.2.1", NOW), "192.0.2.1 1");
    assert_eq!((gave_up, matcher.losses(0).gave_up), (1, 1));
}
