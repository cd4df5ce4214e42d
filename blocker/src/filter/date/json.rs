//! Finds the date in a line that is one JSON object.
//!
//! It is the value of a member of the object itself that is named as loggers name their time, the usual name first, and
//! that is a date as a whole. Strings are read to their closing quote, whatever is escaped in them, and what lies deeper
//! is passed over: no user name, path or header can pose as the date, nor push it aside. The date is not cut out, since
//! patterns of JSON lines read whole members.
#![forbid(unsafe_code)]

use super::{Cursor, Date, Found, form};
use crate::filter::json::{self, Value};

/// What members are called that say when the line was written, the usual first.
const NAMES: [&[u8]; 7] = [b"time", b"timestamp", b"@timestamp", b"ts", b"datetime", b"date", b"t"];

/// The date of `line`, if it is one JSON object that says it: a string in one of the forms that [`super::find`] knows,
/// seconds since the epoch, or milli-, micro- or nanoseconds of them, or MongoDB's `{"$date":".."}`.
///
/// One walk along the line, without a copy of anything.
pub fn find_in_json(line: &str) -> Option<Found> {
    let object = line.trim_start();
    let mut time = Time::default();
    json::members(object.as_bytes(), |name, value| time.see(name, value))?;
    let mut found = time.date()?;
    let before = line.len() - object.len() + time.text_at(object.as_bytes());
    found.span = before + found.span.start..before + found.span.end;
    Some(found)
}

/// The member seen so far that says the time, by the place of its name, its text and the date in it.
#[derive(Default)]
pub(in crate::filter) struct Time<'a>(Option<(usize, &'a [u8], Found)>);

impl<'a> Time<'a> {
    /// Looks at a member of the object.
    pub(in crate::filter) fn see(&mut self, name: &[u8], value: Value<'a>) {
        if let Some(place) = NAMES.iter().position(|known| *known == name)
            && self.0.as_ref().is_none_or(|(best, ..)| place < *best)
            && let Some((text, date)) = date_of(value)
        {
            self.0 = Some((place, text, Found { span: 0..text.len(), date }));
        }
    }

    /// The date, with its place in its own text.
    pub(in crate::filter) fn date(&self) -> Option<Found> {
        self.0.as_ref().map(|(.., found)| found.clone())
    }

    /// Where its text begins in the object.
    fn text_at(&self, object: &[u8]) -> usize {
        self.0.as_ref().map_or(0, |(_, text, _)| text.as_ptr().addr() - object.as_ptr().addr())
    }
}

/// The text that is a date, and which.
fn date_of(value: Value<'_>) -> Option<(&[u8], Date)> {
    match value {
        Value::Text(text) => Some((text, date_in_string(text)?)),
        Value::Bare(text) => {
            let mut cursor = Cursor { bytes: text, at: 0 };
            let date = number(&mut cursor)?;
            (cursor.at == text.len()).then_some((text, date))
        }
        Value::Object(object) => {
            let mut only = None;
            let mut count = 0;
            json::members(object, |name, value| {
                count += 1;
                if let (b"$date", Value::Text(text)) = (name, value) {
                    only = Some(text);
                }
            })?;
            let text = only.filter(|_| count == 1)?;
            Some((text, date_in_string(text)?))
        }
        Value::Null | Value::Array(_) => None,
    }
}

/// The date that a string is as a whole.
fn date_in_string(text: &[u8]) -> Option<Date> {
    let mut cursor = Cursor { bytes: text, at: 0 };
    let mut date = form(&mut cursor)?;
    let is_name = |name: &[u8]| (1..=5).contains(&name.len()) && name.iter().all(u8::is_ascii_uppercase);
    let rest = &text[cursor.at..];
    match rest.strip_prefix(b" ") {
        None if rest.is_empty() => {}
        // PostgreSQL names its zone: a name other than UTC's is taken for that of the host.
        Some(name) if is_name(name) => {
            if let (b"UTC" | b"GMT", Date::Civil { zone: zone @ None, .. }) = (name, &mut date) {
                *zone = Some(0);
            }
        }
        _ => return None,
    }
    Some(date)
}

/// Seconds since the epoch, or finer units, told by their digits.
fn number(c: &mut Cursor<'_>) -> Option<Date> {
    let start = c.at;
    let count = c.number(10, 16)?;
    let digits = c.at - start;
    if digits == 16 && c.number(3, 3).is_none() && c.at - start > digits {
        return None;
    }
    let fraction = c.fraction();
    let micros = match digits {
        10 | 11 => count * 1_000_000 + fraction,
        13 => count * 1_000 + fraction / 1_000,
        // Nanoseconds are microseconds with three digits more.
        16 => count,
        _ => return None,
    };
    Some(Date::Epoch { micros })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{filter::Clock, time::Timestamp};

    fn micros(line: &str) -> Option<i64> {
        let clock = Clock { now: Timestamp::from_secs(1_795_525_200), utc_offset_secs: 3_600 };
        find_in_json(line)?.at(clock).map(Timestamp::as_micros)
    }

    #[test]
    fn the_time_of_an_object_is_found_wherever_it_stands() {
        for (line, date, wanted) in [
            (
                r#"{"level":"error","ts":1764000000.1234567,"x":1}"#,
                "1764000000.1234567",
                1_764_000_000_123_456,
            ),
            (r#"{"time":1764000000123,"pid":1}"#, "1764000000123", 1_764_000_000_123_000),
            (r#"{"ts":1764000000123.4567}"#, "1764000000123.4567", 1_764_000_000_123_456),
            (r#"{"ts":1764000000123456}"#, "1764000000123456", 1_764_000_000_123_456),
            (r#"{"ts":1764000000123456789}"#, "1764000000123456789", 1_764_000_000_123_456),
            (r#"{"ts":"1764000000.5"}"#, "1764000000.5", 1_764_000_000_500_000),
            (
                r#"  { "a" : [{"time":1}] , "time" : "2026-11-24T02:47:40Z" }"#,
                "2026-11-24T02:47:40Z",
                1_795_488_460_000_000,
            ),
            (
                r#"{"@timestamp":"2026-11-24T02:47:40.123+01:00"}"#,
                "2026-11-24T02:47:40.123+01:00",
                1_795_484_860_123_000,
            ),
            (
                r#"{"t":{"$date":"2026-11-24T02:47:40.123+00:00"},"s":"I"}"#,
                "2026-11-24T02:47:40.123+00:00",
                1_795_488_460_123_000,
            ),
            (
                r#"{"timestamp":"2026-11-24 02:47:40.123 UTC","x":1}"#,
                "2026-11-24 02:47:40.123 UTC",
                1_795_488_460_123_000,
            ),
            // The clock's offset, in both.
            (r#"{"timestamp":"2026-11-24 02:47:40 CET"}"#, "2026-11-24 02:47:40 CET", 1_795_484_860_000_000),
            (r#"{"time":"2026/11/24 02:47:40"}"#, "2026/11/24 02:47:40", 1_795_484_860_000_000),
            (r#"{"time":"24/Nov/2026:02:47:40 +0000"}"#, "24/Nov/2026:02:47:40 +0000", 1_795_488_460_000_000),
            (
                r#"{"t":1764000000,"time":"2026-11-24T02:47:40Z","ts":1}"#,
                "2026-11-24T02:47:40Z",
                1_795_488_460_000_000,
            ),
            // Named as a time, but none.
            (r#"{"time":0.25,"t":"never","ts":1764000000}"#, "1764000000", 1_764_000_000_000_000),
        ] {
            let found = find_in_json(line).unwrap_or_else(|| panic!("no date in {line}"));
            assert_eq!(&line[found.span], date);
            assert_eq!(micros(line), Some(wanted), "{line}");
        }
    }

    #[test]
    fn no_text_in_an_object_is_its_time() {
        let real = 1_795_488_460_000_000;
        for (line, wanted) in [
            (r#"{"user":"x\",\"time\":\"2020-01-01T00:00:00Z","time":"2026-11-24T02:47:40Z"}"#, Some(real)),
            (r#"{"user":"x\\","time":"2026-11-24T02:47:40Z"}"#, Some(real)),
            (r#"{"user":"time","a":"2020-01-01T00:00:00Z","time":"2026-11-24T02:47:40Z"}"#, Some(real)),
            (r#"{"request":{"time":"2020-01-01T00:00:00Z"},"time":"2026-11-24T02:47:40Z"}"#, Some(real)),
            (
                r#"{"list":["time","2020-01-01T00:00:00Z",{"ts":1}],"time":"2026-11-24T02:47:40Z"}"#,
                Some(real),
            ),
            (r#"{"time":"2026-11-24T02:47:40Z","x":1,"ts":1577836800}"#, Some(real)),
            (r#"{"uri":"/[2020-01-01 00:00:00]","time":"2026-11-24T02:47:40Z"}"#, Some(real)),
            // A time that is no more than the beginning of a value is none.
            (r#"{"time":"2026-11-24T02:47:40Z bob"}"#, None),
            (r#"{"time":"2026-11-24T02:47:40Z\""}"#, None),
            (r#"{"time":"bob 2026-11-24T02:47:40Z"}"#, None),
            (r#"{"time":1764000000x}"#, None),
            (r#"{"time":-1764000000}"#, None),
            (r#"{"time":1764000000e3}"#, None),
            (r#"{"time":176400000012}"#, None),
            (r#"{"time":17640000001234567}"#, None),
            (r#"{"time":9999999999999999999}"#, Some(9_999_999_999_999_999)),
            (r#"{"time":99999999999999999999}"#, None),
            (r#"{"t":{"$date":"2026-11-24T02:47:40Z","x":1}}"#, None),
            (r#"{"t":{"date":"2026-11-24T02:47:40Z"}}"#, None),
            (r#"{"time2":"2026-11-24T02:47:40Z"}"#, None),
            // Behind the object, in no object, in half of one.
            (r#"{} "time":"2026-11-24T02:47:40Z"}"#, None),
            (r#"["time":"2026-11-24T02:47:40Z"]"#, None),
            (r#"x {"time":"2026-11-24T02:47:40Z"}"#, None),
            (r#"{"time" "2026-11-24T02:47:40Z"}"#, None),
            (r#"{"time":"2026-11-24T02:47:40Z"#, None),
            (r#"{"time":"2026-11-24T02:47:40Z\"#, None),
            (r#"{"time"#, None),
            (r#"{"t":{"#, None),
            ("{", None),
            ("", None),
        ] {
            assert_eq!(micros(line), wanted, "{line}");
        }
    }
}
