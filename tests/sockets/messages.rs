//! What a message becomes: tables of both RFCs and of what senders make of them, and any bytes at all.

use blocker::source::{
    file::LINE_BYTES_MAX,
    line::{self, Outcome},
    socket::syslog,
};
use proptest::prelude::*;

const ARRIVED: &str = "2026-11-25T13:00:00Z";

/// What a syslog message becomes, without its newline.
fn line_of(message: &[u8]) -> (Outcome, Vec<u8>) {
    let mut text = b"before\n".to_vec();
    let outcome = syslog::write(message, ARRIVED, &mut text);
    let line = text.strip_prefix(b"before\n").expect("what was there stays").to_vec();
    match line.split_last() {
        Some((last, line)) => {
            assert_eq!(*last, b'\n');
            (outcome, line.to_vec())
        }
        None => (outcome, Vec::new()),
    }
}

/// Messages of both RFCs and of what senders make of them, each with the line that the filters for files read.
#[test]
fn syslog_messages_become_the_lines_of_a_file() {
    for (message, line) in [
        // RFC 3164, section 5.4, with what daemons send in place of its names.
        (
            "<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick",
            "Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick",
        ),
        (
            "<38>Nov  4 02:47:40 web sshd[42]: Invalid user a from 203.0.113.9",
            "Nov  4 02:47:40 web sshd[42]: Invalid user a from 203.0.113.9",
        ),
        // The C library names no host.
        ("<38>Nov  4 02:47:40 sshd[42]: x", "Nov  4 02:47:40 - sshd[42]: x"),
        ("<38>Nov  4 02:47:40 su: x", "Nov  4 02:47:40 - su: x"),
        ("<38>Nov  4 02:47:40 2001:db8::1 sshd[42]: x", "Nov  4 02:47:40 2001:db8::1 sshd[42]: x"),
        ("<38>Nov  4 02:47:40 2001:db8:: sshd[42]: x", "Nov  4 02:47:40 2001:db8:: sshd[42]: x"),
        ("<38>Nov  4 02:47:40 [2001:db8::1] sshd[42]: x", "Nov  4 02:47:40 [2001:db8::1] sshd[42]: x"),
        // rsyslog forwards with the long date.
        (
            "<38>2026-11-24T02:47:40.123456+01:00 web sshd[42]: x",
            "2026-11-24T02:47:40.123456+01:00 web sshd[42]: x",
        ),
        ("<38>2026-11-24T02:47:40Z web sshd[42]: x", "2026-11-24T02:47:40Z web sshd[42]: x"),
        // No date: as it arrived.
        ("<38>sshd[42]: x", "2026-11-25T13:00:00Z - sshd[42]: x"),
        ("<14>WARNING django.auth login failed", "2026-11-25T13:00:00Z - WARNING django.auth login failed"),
        ("<38>Nov 31 02:47:40 web sshd[42]: x", "2026-11-25T13:00:00Z - Nov 31 02:47:40 web sshd[42]: x"),
        // RFC 5424, section 6.5.
        (
            "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \u{feff}'su root' failed for lonvick",
            "2003-10-11T22:14:15.003Z mymachine.example.com su: 'su root' failed for lonvick",
        ),
        (
            "<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time",
            "2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc[8710]: %% It's time",
        ),
        (
            "<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 [exampleSDID@32473 iut=\"3\" eventSource=\"Application\" eventID=\"1011\"] An entry",
            "2003-10-11T22:14:15.003Z mymachine.example.com evntslog: An entry",
        ),
        (
            "<165>1 2003-10-11T22:14:15.003Z h a - ID47 [a@1 x=\"3\"][b@2 class=\"high\"]",
            "2003-10-11T22:14:15.003Z h a: ",
        ),
        (
            "<165>1 2003-10-11T22:14:15Z h a 7 - [a x=\"q\\\"] \\\\\" y=\"\\]\"] m",
            "2003-10-11T22:14:15Z h a[7]: m",
        ),
        ("<38>1 - - - - - - m", "2026-11-25T13:00:00Z - -: m"),
        ("<38>1 2003-10-11T22:14:15Z h a worker7 - - m", "2003-10-11T22:14:15Z h a: m"),
        ("<38>1 2003-10-11T22:14:15Z h sshd 7 - -", "2003-10-11T22:14:15Z h sshd[7]: "),
        // One message, one line.
        (
            "<38>Nov  4 02:47:40 web app: a\nNov  4 02:47:40 web sshd[1]: b\r\n",
            "Nov  4 02:47:40 web app: a\\nNov  4 02:47:40 web sshd[1]: b",
        ),
        ("<38>1 - h a - - - a\n<38>b\0\0", "2026-11-25T13:00:00Z h a: a\\n<38>b"),
        ("<38>a\0b\rc\n", "2026-11-25T13:00:00Z - a\\0b\\rc"),
    ] {
        let (outcome, said) = line_of(message.as_bytes());
        assert_eq!((outcome, String::from_utf8_lossy(&said).as_ref()), (Outcome::Line, line), "{message:?}");
    }
}

#[test]
fn what_keeps_to_no_rfc_is_a_line_that_says_so_or_nothing() {
    let now = |rest: &str| format!("{ARRIVED} - {rest}");
    for (message, line) in [
        ("no priority", now("no priority")),
        ("<>x", now("<>x")),
        ("<192>x", now("<192>x")),
        ("<-1>x", now("<-1>x")),
        ("<0034>x", now("<0034>x")),
        ("< 34>x", now("< 34>x")),
        ("Nov  4 02:47:40 web sshd[42]: x", "Nov  4 02:47:40 web sshd[42]: x".to_owned()),
        ("1 2003-10-11T22:14:15Z h sshd 7 - - m", now("1 2003-10-11T22:14:15Z h sshd 7 - - m")),
        // Structured, but not as the RFC has it: nothing of it is believed to be a header.
        ("<38>2 - h a - - - m", now("2 - h a - - - m")),
        ("<38>1 yesterday h a - - - m", now("1 yesterday h a - - - m")),
        ("<38>1 - h a - - m", now("1 - h a - - m")),
        ("<38>1 - h  a - - - m", now("1 - h  a - - - m")),
        ("<38>1 - h a - - [x", now("1 - h a - - [x")),
        ("<38>1 - h a - - [x y=\"] m", now("1 - h a - - [x y=\"] m")),
        ("<38>1 - h a - - [x y=\"\\", now("1 - h a - - [x y=\"\\")),
        ("<38>1 - h a - - []m", now("1 - h a - - []m")),
        ("<38>1 - h a\u{e9} - - - m", now("1 - h a\u{e9} - - - m")),
    ] {
        let (outcome, said) = line_of(message.as_bytes());
        assert_eq!(
            (outcome, String::from_utf8_lossy(&said).as_ref()),
            (Outcome::Odd, line.as_str()),
            "{message:?}"
        );
    }
    for empty in ["", "\n", "\0\r\n", "<38>", "<38>\n"] {
        assert_eq!(line_of(empty.as_bytes()), (Outcome::Empty, Vec::new()), "{empty:?}");
    }
    let long = format!("<38>Nov  4 02:47:40 h a: {}", "x".repeat(LINE_BYTES_MAX));
    assert_eq!(line_of(long.as_bytes()), (Outcome::TooLong, Vec::new()), "never cut");
}

/// Bytes as they are, and messages with bytes put in and taken out.
fn messages() -> impl Strategy<Value = Vec<u8>> {
    let examples = prop::sample::select(vec![
        &b"<34>Oct 11 22:14:15 mymachine su[1]: 'su root' failed"[..],
        b"<165>1 2003-10-11T22:14:15.003Z h a 7 ID47 [a@1 x=\"3\\\"\"][b@2 class=\"high\"] \xef\xbb\xbfm",
        b"<38>1 - - - - - - m",
    ]);
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let mutated = (examples, any::<prop::sample::Index>(), 0_usize..20, bytes()).prop_map(
        |(example, at, taken, put)| {
            let mut message = example.to_vec();
            let at = at.index(message.len());
            let end = (at + taken).min(message.len());
            message.splice(at..end, put);
            message
        },
    );
    prop_oneof![prop::collection::vec(any::<u8>(), 0..300), mutated]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_one_line_at_most(message in messages()) {
        type Form = fn(&[u8], &mut Vec<u8>) -> Outcome;
        let forms: [Form; 2] = [line::write, |message, text| syslog::write(message, ARRIVED, text)];
        for form in forms {
            let mut text = Vec::new();
            let outcome = form(&message, &mut text);
            let breaks = text.iter().filter(|byte| **byte == b'\n').count();
            prop_assert!(text.len() <= 2 * message.len() + ARRIVED.len() + 16, "{} of {}", text.len(), message.len());
            match outcome {
                Outcome::Line | Outcome::Odd => prop_assert!(breaks == 1 && text.ends_with(b"\n"), "{text:?}"),
                Outcome::Empty | Outcome::TooLong => prop_assert!(text.is_empty(), "{text:?}"),
            }
            prop_assert!(!text.contains(&b'\r') && !text.contains(&0), "{text:?}");
        }
    }
}
