//! fail2ban's spans of time: `600`, `10m`, `1d12h30m`, `1 week`, `1year - 6mo`, `60*24`, `-1`.
//!
//! A unit stands for a factor and space between two numbers for a plus; what is then left is arithmetic.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::ini::is_space;
use crate::{policy::Formula, time::BanTime};

/// Units, in any case of letters. A year is 365.25 days and a month the twelfth part of it.
const UNITS: [(&[&str], &str); 7] = [
    (&["s", "ss", "se", "sec", "second", "seconds"], "1"),
    (&["m", "mm", "mi", "min", "minute", "minutes"], "60"),
    (&["h", "hh", "ho", "hou", "hour", "hours"], "3600"),
    (&["d", "dd", "da", "day", "days"], "86400"),
    (&["w", "ww", "we", "wee", "week", "weeks"], "604800"),
    (&["mo", "mon", "month", "months"], "2629800"),
    (&["y", "yy", "ye", "yea", "year", "years"], "31557600"),
];

/// Seconds, perhaps negative.
///
/// # Errors
/// Says what is no span and gives an example.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    let bad = |what: String| format!("{what} in the time span {text:?}; write for example 10m, 1d12h or 600");
    if text.trim_matches(is_space).is_empty() {
        return Err(bad("nothing".to_owned()));
    }
    let mut expression = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        if word > 0 {
            // Another name of Python's cannot stand here: there is none that a span needs.
            let name = rest[..word].to_ascii_lowercase();
            let factor = UNITS.iter().find(|(names, _)| names.contains(&name.as_str()));
            let Some((_, factor)) =
                factor.filter(|_| expression.ends_with(|c: char| c.is_ascii_digit() || c == ' '))
            else {
                return Err(bad(format!("unknown unit {:?}", &rest[..word])));
            };
            expression.truncate(expression.trim_end().len());
            expression.push('*');
            expression.push_str(factor);
            // `1d12h` is `1d 12h`.
            expression.push(' ');
            rest = &rest[word..];
            continue;
        }
        if c.is_ascii_digit() && expression.ends_with(' ') {
            let before = expression.trim_end().len();
            if expression[..before].ends_with(|c: char| c.is_ascii_digit()) {
                expression.truncate(before);
                expression.push('+');
            }
        }
        if is_space(c) {
            if !expression.ends_with(' ') {
                expression.push(' ');
            }
        } else {
            expression.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    Formula::constant(expression.trim()).map_err(|error| bad(error.what))
}

/// A span that is not negative.
///
/// # Errors
/// As [`seconds`], and for a negative or endless one.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let seconds = seconds(text)?;
    let micros =
        Duration::try_from_secs_f64(seconds).map_err(|_| format!("{text:?} is no length of time"))?;
    // What a clock counts in.
    Ok(Duration::from_micros(u64::try_from(micros.as_micros()).unwrap_or(u64::MAX)))
}

/// How long a ban lasts; a negative number is without end.
///
/// # Errors
/// As [`seconds`], and for a ban of less than a second.
pub(super) fn ban_time(text: &str) -> Result<BanTime, String> {
    match seconds(text)? {
        seconds if seconds < 0.0 => Ok(BanTime::Permanent),
        seconds if seconds < 1.0 => Err("a ban of less than a second".to_owned()),
        _ => span(text).map(BanTime::For),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spans_come_to_what_fail2ban_makes_of_them() {
        for (text, expected) in [
            ("600", Some(600.0)),
            ("10m", Some(600.0)),
            ("1d12h30m", Some(131_400.0)),
            ("1h 30m", Some(5_400.0)),
            ("1 week", Some(604_800.0)),
            ("1hour+30min", Some(5_400.0)),
            ("1year-6mo", Some(15_778_800.0)),
            ("6 months", Some(15_778_800.0)),
            ("0d 1h 30m", Some(5_400.0)),
            ("1.5H", Some(5_400.0)),
            ("60*24", Some(1_440.0)),
            ("-1", Some(-1.0)),
            ("2 * (1h + 5)", Some(7_210.0)),
            ("1mo", Some(2_629_800.0)),
            ("", None),
            ("m", None),
            ("10x", None),
            ("ten", None),
            ("__import__('os')", None),
        ] {
            assert_eq!(seconds(text).ok(), expected, "{text}");
        }
        assert_eq!(ban_time("-1"), Ok(BanTime::Permanent));
        assert!(ban_time("0").is_err() && span("-5").is_err() && span("1e300").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[0-9a-zA-Z .+*()/-]{0,40}|.{0,20}") {
            let _read = (span(&text), ban_time(&text));
        }
    }
}
