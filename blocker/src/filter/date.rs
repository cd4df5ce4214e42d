//! Finds the date a log line carries, so that it can be cut out and the rest be matched.
//!
//! Reads by hand, at the start of the line or directly behind a `[`, and nowhere else: the prefilter relies on a
//! cut never joining text other than `[` and `]`. From a line of JSON nothing is cut; [`find_in_json`] knows its date.
//! Knows no time zone but the offset it is given.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::time::Timestamp;

mod json;
pub(super) use json::Time;
pub use json::find_in_json;

/// How many opening brackets of one line are looked behind.
const BRACKETS_MAX: usize = 8;

const DAY_SECS: i64 = 86_400;

/// What the reader of a line knows of the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// The present; decides the year of dates that have none.
    pub now: Timestamp,
    /// Seconds that local time is ahead of UTC, for dates that name no zone.
    pub utc_offset_secs: i32,
}

/// A date in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The bytes it occupies, without brackets or quotes around it.
    pub span: Range<usize>,
    date: Date,
}

/// What a date says. The instant is worked out only when somebody asks: a line that arrives as it is written counts
/// at its arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Date {
    Epoch { micros: i64 },
    Civil { year: Option<i64>, month: i64, day: i64, time: TimeOfDay, zone: Option<i64> },
}

impl Found {
    /// The instant it names; `None` for a 29 February without a year when neither this year nor its neighbours has one.
    pub fn at(&self, clock: Clock) -> Option<Timestamp> {
        let (year, month, day, time, zone) = match self.date {
            Date::Epoch { micros } => return Some(Timestamp::from_micros(micros)),
            Date::Civil { year, month, day, time, zone } => (year, month, day, time, zone),
        };
        if let Some(year) = year {
            return instant(year, month, day, time, zone, clock);
        }
        let local_days =
            clock.now.as_secs().saturating_add(i64::from(clock.utc_offset_secs)).div_euclid(DAY_SECS);
        let this_year = year_of(local_days);
        let latest = clock.now.as_secs().saturating_add(DAY_SECS);
        // New Year's Eve read on the day after, or read where it is already the new year.
        [this_year + 1, this_year, this_year - 1]
            .into_iter()
            .filter_map(|year| instant(year, month, day, time, zone, clock))
            .find(|at| at.as_secs() <= latest)
    }
}

/// The first date at the start of `line` or behind one of its first brackets.
///
/// Forms: `2026-11-24 02:47:40,414` and `2026/11/24 02:47:40` (also with `T`, a fraction, `Z`, `+01:00`), syslog's
/// `Nov 24 02:47:40` (RFC 3164, no year: the one that puts it nearest before now + 1 day), the C library's
/// `Tue Nov 24 02:47:40 2026`, `24/Nov/2026:02:47:40 +0000` (the common log format), BIND's
/// `24-Nov-2026 02:47:40.123`, xrdp's `20261124-02:47:40`, seconds since the epoch.
pub fn find(line: &str) -> Option<Found> {
    let bytes = line.as_bytes();
    let mut start = bytes.iter().take_while(|b| **b == b' ').count();
    // RFC 3164 and 5424 put `<priority>` first when the bytes come from a socket.
    if bytes.get(start) == Some(&b'<')
        && let digits = bytes[start + 1..].iter().take(3).take_while(|b| b.is_ascii_digit()).count()
        && digits > 0
        && bytes.get(start + 1 + digits) == Some(&b'>')
    {
        start += digits + 2;
    }
    if let Some(found) = date_at(bytes, start) {
        return Some(found);
    }
    // In an object of JSON, text in brackets is most likely a client's.
    if bytes.get(start) == Some(&b'{') {
        return None;
    }
    memchr::memchr_iter(b'[', bytes)
        .take(BRACKETS_MAX)
        .find_map(|open| date_at(bytes, open + 1).filter(|found| bytes.get(found.span.end) == Some(&b']')))
}

fn date_at(bytes: &[u8], start: usize) -> Option<Found> {
    let mut cursor = Cursor { bytes, at: start };
    let date = form(&mut cursor)?;
    cursor.at_border().then_some(Found { span: start..cursor.at, date })
}

/// A date in any form; they differ in their first bytes.
fn form(c: &mut Cursor<'_>) -> Option<Date> {
    match c.peek()? {
        b'0'..=b'9' => match [2, 4, 8].map(|at| c.bytes.get(c.at + at)) {
            [_, Some(b'-' | b'/'), _] => numeric(c),
            [Some(b'-' | b'/'), ..] => common_log(c),
            [_, _, Some(b'-')] => compact(c),
            _ => epoch(c),
        },
        b'A'..=b'Z' | b'a'..=b'z' => named(c),
        _ => None,
    }
}

/// `2026-11-24 02:47:40`, with `/` for `-`, `T` for the space, a fraction, a zone.
fn numeric(c: &mut Cursor<'_>) -> Option<Date> {
    let year = c.number(4, 4)?;
    let separator = c.one_of(b"-/")?;
    let month = c.number(2, 2)?;
    c.byte(separator)?;
    let day = c.number(2, 2)?;
    c.one_of(b"T ")?;
    // MariaDB pads the hour with a space.
    let hour_digits = if c.byte(b' ').is_some() { 1 } else { 2 };
    let time = c.time(hour_digits)?;
    let zone = c.zone();
    civil(Some(year), month, day, time, zone)
}

/// `24/Nov/2026:02:47:40 +0000`, and BIND's `24-Nov-2026 02:47:40.123`.
fn common_log(c: &mut Cursor<'_>) -> Option<Date> {
    let day = c.number(2, 2)?;
    let separator = c.one_of(b"/-")?;
    let month = c.month()?;
    c.byte(separator)?;
    let year = c.number(4, 4)?;
    c.one_of(b": ")?;
    let time = c.time_of_day()?;
    let zone = c.zone();
    civil(Some(year), month, day, time, zone)
}

/// xrdp's `20261124-02:47:40`.
fn compact(c: &mut Cursor<'_>) -> Option<Date> {
    let (year, month, day) = (c.number(4, 4)?, c.number(2, 2)?, c.number(2, 2)?);
    c.byte(b'-')?;
    let time = c.time_of_day()?;
    civil(Some(year), month, day, time, None)
}

/// `1732416460` or `1732416460.123`: ten or eleven digits.
fn epoch(c: &mut Cursor<'_>) -> Option<Date> {
    let secs = c.number(10, 11)?;
    let micros = c.fraction();
    Some(Date::Epoch { micros: secs * 1_000_000 + micros })
}

/// `[Tue ]Nov 24 [2026 ]02:47:40[.123][ 2026]`; the year at the end only when the weekday is there, since else the
/// host name follows.
fn named(c: &mut Cursor<'_>) -> Option<Date> {
    let weekday = c.weekday();
    let month = c.month()?;
    c.byte(b' ')?;
    let _ = c.byte(b' ');
    let day = c.number(1, 2)?;
    c.byte(b' ')?;
    let before = c.at;
    let mut year = c.number(4, 4).filter(|_| c.byte(b' ').is_some());
    if year.is_none() {
        c.at = before;
    }
    let time = c.time_of_day()?;
    if weekday && year.is_none() {
        let end = c.at;
        year = c.byte(b' ').and_then(|_| c.number(4, 4)).filter(|_| c.at_border());
        if year.is_none() {
            c.at = end;
        }
    }
    let zone = c.zone();
    civil(year, month, day, time, zone)
}

/// Hour, minute, second as seconds of the day, and microseconds.
type TimeOfDay = (i64, i64);

/// A date, if there is such a day; in some year where it names none.
fn civil(year: Option<i64>, month: i64, day: i64, time: TimeOfDay, zone: Option<i64>) -> Option<Date> {
    let leap = year.is_none_or(|year| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0);
    let days_in_month = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    let exists = year.is_none_or(|year| (1970..=9999).contains(&year)) && (1..=days_in_month).contains(&day);
    exists.then_some(Date::Civil { year, month, day, time, zone })
}

fn instant(
    year: i64,
    month: i64,
    day: i64,
    time: TimeOfDay,
    zone: Option<i64>,
    clock: Clock,
) -> Option<Timestamp> {
    civil(Some(year), month, day, time, zone)?;
    let offset = zone.unwrap_or(i64::from(clock.utc_offset_secs));
    let (secs, micros) = time;
    let utc = days_from_civil(year, month, day) * DAY_SECS + secs - offset;
    Some(Timestamp::from_micros(utc * 1_000_000 + micros))
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar; years begin in March, so that the leap day is last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 1
        - 719_468
}

fn year_of(days: i64) -> i64 {
    // The mean Gregorian year is 365.2425 days, so the guess is off by one at most.
    let guess = 1970 + (days * 10_000).div_euclid(3_652_425);
    [guess + 1, guess].into_iter().find(|year| days_from_civil(*year, 1, 1) <= days).unwrap_or(guess - 1)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn byte(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.at += 1)
    }

    fn one_of(&mut self, wanted: &[u8]) -> Option<u8> {
        let byte = self.peek().filter(|b| wanted.contains(b))?;
        self.at += 1;
        Some(byte)
    }

    /// Whether a word can end here. What goes on was something else than a date; and cut off from its beginning, the
    /// rest of `1732416460::4` would be an address that nobody wrote.
    fn at_border(&self) -> bool {
        // A byte that is no ASCII belongs to a letter, for all that is known here.
        let in_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii();
        match self.peek() {
            None => true,
            Some(b'.' | b':' | b'-') => !self
                .bytes
                .get(self.at + 1)
                .is_some_and(|next| in_word(*next) || matches!(next, b'.' | b':' | b'-')),
            Some(byte) => !in_word(byte),
        }
    }

    /// At least `min` and at most `max` digits.
    fn number(&mut self, min: usize, max: usize) -> Option<i64> {
        let mut number = 0;
        let mut digits = 0;
        while digits < max
            && let Some(byte) = self.peek().filter(u8::is_ascii_digit)
        {
            number = number * 10 + i64::from(byte - b'0');
            digits += 1;
            self.at += 1;
        }
        (digits >= min).then_some(number)
    }

    /// `.123` or `,123` as microseconds, further digits dropped; zero when there is none.
    fn fraction(&mut self) -> i64 {
        let start = self.at;
        if self.one_of(b".,").is_none() || !self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at = start;
            return 0;
        }
        let mut micros = 0;
        let mut unit = 100_000;
        while let Some(byte) = self.peek().filter(u8::is_ascii_digit) {
            micros += i64::from(byte - b'0') * unit;
            unit /= 10;
            self.at += 1;
        }
        micros
    }

    fn time_of_day(&mut self) -> Option<TimeOfDay> {
        self.time(2)
    }

    /// A time of day whose hour has so many digits.
    fn time(&mut self, hour_digits: usize) -> Option<TimeOfDay> {
        let hour = self.number(hour_digits, hour_digits)?;
        self.byte(b':')?;
        let minute = self.number(2, 2)?;
        self.byte(b':')?;
        let second = self.number(2, 2)?;
        // Second 60 is a leap second.
        (hour < 24 && minute < 60 && second <= 60)
            .then(|| (hour * 3600 + minute * 60 + second, self.fraction()))
    }

    /// `Z`, `+01:00`, `-0500`, the signed ones also behind a space; in seconds ahead of UTC.
    fn zone(&mut self) -> Option<i64> {
        let start = self.at;
        if self.byte(b'Z').is_some() {
            if !self.at_border() {
                self.at = start;
                return None;
            }
            return Some(0);
        }
        let _ = self.byte(b' ');
        let offset = self.one_of(b"+-").and_then(|sign| {
            let hours = self.number(2, 2)?;
            let _ = self.byte(b':');
            let minutes = self.number(2, 2)?;
            let secs = hours * 3600 + minutes * 60;
            (self.at_border() && hours <= 14 && minutes < 60).then_some(if sign == b'-' {
                -secs
            } else {
                secs
            })
        });
        if offset.is_none() {
            self.at = start;
        }
        offset
    }

    fn month(&mut self) -> Option<i64> {
        const MONTHS: [&[u8; 3]; 12] =
            [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
        let name = self.bytes.get(self.at..self.at + 3)?;
        let index = MONTHS.iter().position(|month| month.as_slice() == name)?;
        self.at += 3;
        i64::try_from(index + 1).ok()
    }

    /// `Tue ` or `Tue, `.
    fn weekday(&mut self) -> bool {
        const DAYS: [&[u8; 3]; 7] = [b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun"];
        let named = self.bytes.get(self.at..self.at + 3).is_some_and(|name| DAYS.iter().any(|d| *d == name));
        let start = self.at;
        if named {
            self.at += 3;
            let _ = self.byte(b',');
            if self.byte(b' ').is_some() {
                return true;
            }
        }
        self.at = start;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-24 13:00:00 UTC.
    const NOW: i64 = 1_795_525_200;

    #[test]
    fn every_form_is_found_and_cut() {
        for (line, rest, secs) in [
            ("2026-11-24 02:47:40,414 WARNING x", " WARNING x", 1_795_488_460),
            ("2026-11-24T02:47:40.123456+01:00 host x", " host x", 1_795_484_860),
            ("2026-11-24T02:47:40Z x", " x", 1_795_488_460),
            ("[2026-11-24 02:47:40 +0000] [7] x", "[] [7] x", 1_795_488_460),
            ("2026/11/24 02:47:40 [error] x", " [error] x", 1_795_488_460),
            ("2026-11-24  2:47:40 12 [Warning] x", " 12 [Warning] x", 1_795_488_460),
            ("Nov 24 02:47:40 host sshd[1]: x", " host sshd[1]: x", 1_795_488_460),
            ("<38>Nov  4 02:47:40 2026 x", "<38> 2026 x", 1_793_760_460),
            ("Nov 25 13:00:01 host x", " host x", 1_764_075_601),
            ("[Tue Nov 24 02:47:40.1 2026] [x]", "[] [x]", 1_795_488_460),
            ("203.0.113.9 - - [24/Nov/2026:02:47:40 +0000] \"GET", "203.0.113.9 - - [] \"GET", 1_795_488_460),
            ("24-Nov-2026 02:47:40.123 client x", " client x", 1_795_488_460),
            ("[20261124-02:47:40] [INFO ] x", "[] [INFO ] x", 1_795_488_460),
            ("1732416460|WARNING|x", "|WARNING|x", 1_732_416_460),
            ("[1732416460.123] x", "[] x", 1_732_416_460),
        ] {
            let clock = Clock { now: Timestamp::from_secs(NOW), utc_offset_secs: 0 };
            let found = find(line).unwrap_or_else(|| panic!("no date in {line}"));
            assert_eq!(format!("{}{}", &line[..found.span.start], &line[found.span.end..]), rest);
            assert_eq!(found.at(clock).map(Timestamp::as_secs), Some(secs), "{line}");
        }
    }

    #[test]
    fn what_is_no_date_is_left_alone() {
        for line in [
            "",
            "[",
            "<1",
            "203.0.113.9 - x",
            "2026-13-24 02:47:40 x",
            "2026-02-30 02:47:40 x",
            "Nov 24 25:00:00 x",
            "17324164600000 x",
            "user 2026-11-24 02:47:40",
            "x [2026-11-24 02:47:40 y",
            "20261324-02:47:40 x",
            "24-Nov/2026 02:47:40 x",
            "Növ 24 02:47:40",
            r#" {"uri":"/[2026-11-24 02:47:40]"}"#,
        ] {
            assert_eq!(find(line), None, "{line}");
        }
    }

    #[test]
    fn what_a_cut_leaves_begins_no_token_that_the_line_does_not_have() {
        // Each ends in an address, or a part of one, that is part of a longer word in the line.
        for line in [
            "2333333333::4+:651 1\0\0\u{6}by 999.8:0",
            "1732416460::4",
            "1732416460:198.51.100.1",
            "1732416460.9.198.51.100.1",
            "1732416460-198.51.100.1",
            "1732416460_198.51.100.1",
            "1732416460é198.51.100.1",
            "<38>1732416460:db8::1",
            "2026-11-24 02:47:40::1",
            "2026-11-24T02:47:40Z:198.51.100.1",
            "2026/11/24 02:47:40.1.198.51.100.1",
            "24/Nov/2026:02:47:40:db8::1",
            "24-Nov-2026 02:47:40.123-198.51.100.1",
            "20261124-02:47:40::1",
            "Nov 24 02:47:40:198.51.100.1",
            "Nov 24 2026 02:47:40.1::1",
        ] {
            assert_eq!(find(line), None, "{line}");
        }
        // An optional part that would end so is no part of the date.
        for (line, rest) in [
            ("Tue Nov 24 02:47:40 2001:db8::1 x", " 2001:db8::1 x"),
            ("Nov 24 02:47:40 -0500:db8::1 x", " -0500:db8::1 x"),
            ("Nov 24 02:47:40: host x", ": host x"),
            ("2026-11-24 02:47:40 - x", " - x"),
            ("1732416460: x", ": x"),
            ("1732416460 ::4", " ::4"),
        ] {
            let found = find(line).unwrap_or_else(|| panic!("no date in {line}"));
            assert_eq!(format!("{}{}", &line[..found.span.start], &line[found.span.end..]), rest);
        }
    }

    #[test]
    fn a_date_without_zone_is_local() {
        let at = |line, clock| find(line).and_then(|found| found.at(clock)).map(Timestamp::as_secs);
        let clock = Clock { now: Timestamp::from_secs(NOW), utc_offset_secs: 3600 };
        assert_eq!(at("2026-11-24 02:47:40 x", clock), Some(1_795_484_860));
        // In a zone ahead of UTC the new year comes first.
        let clock = Clock { now: Timestamp::from_secs(1_798_760_000), utc_offset_secs: 7200 };
        assert_eq!(at("Jan  1 01:00:00 h x", clock), Some(1_798_758_000));
        // A day that neither 2025, 2026 nor 2027 has is cut out of the line all the same.
        let clock = Clock { now: Timestamp::from_secs(NOW), utc_offset_secs: 0 };
        assert_eq!(at("Feb 29 01:00:00 h x", clock), None);
        assert_eq!(find("Feb 29 01:00:00 h x").map(|found| found.span), Some(0..15));
    }
}
