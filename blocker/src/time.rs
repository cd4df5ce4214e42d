//! Wall-clock instants and spans for CORE, which is handed the time and never asks for it.
//!
//! Formatting for people, zones and log dates live elsewhere; here are only the number and its arithmetic,
//! saturating everywhere so that no clock value can stop the engine.
#![forbid(unsafe_code)]

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The Unix epoch.
    pub const EPOCH: Self = Self(0);

    /// An instant from microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// An instant from whole seconds since the epoch, saturating.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1_000_000))
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// The instant `span` later, saturating.
    #[must_use]
    pub fn saturating_add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(micros(span)))
    }

    /// The instant `span` earlier, saturating.
    #[must_use]
    pub fn saturating_sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(micros(span)))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// When a ban ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Until {
    /// At this instant.
    At(Timestamp),
    /// Never by itself; only an unban lifts it.
    Forever,
}

impl Until {
    /// Whether a ban with this end is over at `now`.
    pub fn is_over(self, now: Timestamp) -> bool {
        matches!(self, Self::At(end) if end <= now)
    }
}

/// How long a ban lasts, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BanTime {
    /// For this long.
    For(Duration),
    /// Until lifted by hand (`-1` in fail2ban, `"permanent"` here).
    Permanent,
}

impl BanTime {
    /// The end of a ban that starts at `start`.
    pub fn from(self, start: Timestamp) -> Until {
        match self {
            Self::For(span) => Until::At(start.saturating_add(span)),
            Self::Permanent => Until::Forever,
        }
    }
}

/// A span of time in fail2ban's notation: a bare number of seconds, or numbers with units as in `1d12h30m`,
/// spaces allowed. Units as fail2ban has them (`man jail.conf`, "TIME ABBREVIATION FORMAT"): `s`, `m`, `h`, `d`,
/// `w`, `mo` (30.44 days), `y` (365.25 days), each also as a longer English word.
///
/// # Errors
/// Says what is wrong with the text and gives an example.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let bad =
        |what: &str| format!("{what} in the time span {text:?}; write for example \"10m\", \"1d12h\" or 600");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(bad("nothing"));
    }
    let mut micros: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| bad("no number where one belongs"))?;
        rest = rest[digits..].trim_start();
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let seconds: u64 = match &rest[..letters] {
            "" | "s" | "ss" | "sec" | "secs" | "second" | "seconds" => 1,
            "m" | "mm" | "min" | "mins" | "minute" | "minutes" => 60,
            "h" | "hh" | "hour" | "hours" => 3_600,
            "d" | "dd" | "day" | "days" => 86_400,
            "w" | "ww" | "week" | "weeks" => 7 * 86_400,
            "mo" | "mon" | "month" | "months" => 2_629_746,
            "y" | "yy" | "year" | "years" => 31_557_600,
            unit => return Err(bad(&format!("unknown unit {unit:?}"))),
        };
        rest = rest[letters..].trim_start();
        micros = number
            .checked_mul(seconds)
            .and_then(|s| s.checked_mul(1_000_000))
            .and_then(|m| micros.checked_add(m))
            .filter(|m| i64::try_from(*m).is_ok())
            .ok_or_else(|| bad("more than 290,000 years"))?;
    }
    Ok(Duration::from_micros(micros))
}

/// A ban time: a span as [`parse_span`] reads it, or `permanent`, `forever` or a negative number for no end.
///
/// # Errors
/// As [`parse_span`]; a zero span is refused too.
pub fn parse_ban_time(text: &str) -> Result<BanTime, String> {
    let trimmed = text.trim();
    if matches!(trimmed, "permanent" | "forever")
        || trimmed.strip_prefix('-').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    {
        return Ok(BanTime::Permanent);
    }
    match parse_span(trimmed)? {
        Duration::ZERO => Err("a ban of no length; write a span such as \"1h\", or \"permanent\"".to_owned()),
        span => Ok(BanTime::For(span)),
    }
}

impl fmt::Display for BanTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For(span) => f.write_str(&span_text(*span)),
            Self::Permanent => f.write_str("permanent"),
        }
    }
}

/// A span as people write it, in at most two units: `1h30m`, `45s`, `2d`.
pub fn span_text(span: Duration) -> String {
    let secs = span.as_secs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let Some(first) = units.iter().position(|(size, _)| secs >= *size) else {
        return "0s".to_owned();
    };
    let (size, name) = units[first];
    let mut text = format!("{}{name}", secs / size);
    if let Some((size, name)) = units.get(first + 1)
        && let left = secs % units[first].0 / size
        && left > 0
    {
        text.push_str(&format!("{left}{name}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_fail2ban_reads_them() {
        for (text, secs) in [
            ("600", 600),
            ("10m", 600),
            ("1d12h30m", 131_400),
            ("1h 30m", 5_400),
            ("1mo", 2_629_746),
            ("1 week", 604_800),
        ] {
            assert_eq!(parse_span(text), Ok(Duration::from_secs(secs)), "{text}");
        }
        for text in ["", "m", "10x", "-5", "99999999999999999999", "9999999999999y"] {
            assert!(parse_span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_negative_ban_time_is_permanent_and_zero_is_refused() {
        assert_eq!(parse_ban_time("-1"), Ok(BanTime::Permanent));
        assert_eq!(parse_ban_time("permanent"), Ok(BanTime::Permanent));
        assert!(parse_ban_time("0").is_err());
        assert!(parse_ban_time("-").is_err());
    }

    #[test]
    fn spans_are_printed_in_two_units() {
        for (secs, text) in [(0, "0s"), (59, "59s"), (90, "1m30s"), (3_600, "1h"), (90_061, "1d1h")] {
            assert_eq!(span_text(Duration::from_secs(secs)), text);
        }
    }
}
