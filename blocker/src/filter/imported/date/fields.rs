//! From the parts of a date to the instant they name.
//!
//! What is missing is filled in as fail2ban does: no year means the last one that puts the date no later than a day
//! from now, no date means today or yesterday, no zone means the log's.
#![forbid(unsafe_code)]

use jiff::{
    Span,
    civil::{Date, DateTime},
    tz::{Offset, TimeZone},
};

use super::zone::offset_secs;
use crate::time::Timestamp;

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const DAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

/// The parts of a date as they stand in the line, each under the letter that `strptime` has for it.
pub(super) type Parts<'a> = [(char, &'a str)];

/// The instant that `parts` name, in `zone` unless they name one themselves; `None` when there is no such date.
pub(super) fn instant(parts: &Parts<'_>, zone: &TimeZone, now: Timestamp) -> Option<Timestamp> {
    let get = |letter: char| parts.iter().find(|(known, _)| *known == letter).map(|(_, text)| *text);
    let number = |letter: char| get(letter).map(|text| text.trim_start().parse::<i16>().ok());
    let small = |letter: char| get(letter).map(|text| text.trim_start().parse::<i8>().ok());
    let now_local = local(now, zone)?;
    let mut year = match (number('Y'), number('y')) {
        (Some(year), _) => Some(year?),
        (None, Some(year)) => Some(year.map(|year| if year <= 2000 { year + 2000 } else { year })?),
        (None, None) => None,
    };
    let assumed_year = year.is_none();
    let in_year = *year.get_or_insert_with(|| now_local.year());
    let mut month = match (small('m'), get('b').or_else(|| get('B'))) {
        (Some(month), _) => Some(month?),
        (None, Some(name)) => Some(index_of(&MONTHS, name)? + 1),
        (None, None) => None,
    };
    let mut day = match small('d') {
        Some(day) => Some(day?),
        None => None,
    };
    if month.is_none() || day.is_none() {
        let of_year = match number('j') {
            Some(day) => Some(day?),
            None => week_day(&get, in_year),
        };
        if let Some(of_year) = of_year {
            let date = Date::new(in_year, 1, 1)
                .ok()?
                .checked_add(Span::new().try_days(i64::from(of_year) - 1).ok()?)
                .ok()?;
            (year, month, day) = (Some(date.year()), Some(date.month()), Some(date.day()));
        }
    }
    let assumed_today = month.is_none() && day.is_none();
    if assumed_today {
        (month, day) = (Some(now_local.month()), Some(now_local.day()));
    }
    let hour = match (small('H'), small('I')) {
        (Some(hour), _) => hour?,
        (None, Some(hour)) => twelve_hours(hour?, get('p')),
        (None, None) => 0,
    };
    let or_zero = |field: Option<Option<i8>>| field.unwrap_or(Some(0));
    // A leap second is the second before it.
    let second = or_zero(small('S'))?.min(59);
    let mut date = DateTime::new(year?, month?, day?, hour, or_zero(small('M'))?, second, 0).ok()?;
    let offset = match get('z').or_else(|| get('Z')) {
        Some(text) => Some(offset_secs(text)?),
        None => None,
    };
    if let Some(offset) = offset {
        date = date.checked_sub(Span::new().try_seconds(i64::from(offset)).ok()?).ok()?;
    }
    if assumed_today && date > now_local {
        date = date.checked_sub(Span::new().days(1)).ok()?;
    }
    if assumed_year && date > now_local.checked_add(Span::new().days(1)).ok()? {
        let date_before = Date::new(year? - 1, month?, day?).ok()?;
        date = date_before.to_datetime(date.time());
    }
    let zone = if offset.is_some() { TimeZone::UTC } else { zone.clone() };
    let instant = zone.to_ambiguous_timestamp(date).compatible().ok()?;
    Some(Timestamp::from_micros(instant.as_microsecond()))
}

fn local(at: Timestamp, zone: &TimeZone) -> Option<DateTime> {
    Some(zone.to_datetime(jiff::Timestamp::from_microsecond(at.as_micros()).ok()?))
}

/// A zone as `logtimezone` names it.
pub(in crate::filter) fn zone_of(text: &str) -> Option<TimeZone> {
    Some(TimeZone::fixed(Offset::from_seconds(offset_secs(text)?).ok()?))
}

/// The place of a name, or of the three letters it begins with, whatever its case.
fn index_of(names: &[&str], name: &str) -> Option<i8> {
    let name = name.to_lowercase();
    let found =
        names.iter().position(|known| *known == name || (name.len() == 3 && known.starts_with(&name)))?;
    i8::try_from(found).ok()
}

fn twelve_hours(hour: i8, half: Option<&str>) -> i8 {
    match (half.is_some_and(|half| half.eq_ignore_ascii_case("pm")), hour) {
        (false, 12) => 0,
        (true, hour) if hour < 12 => hour + 12,
        (_, hour) => hour,
    }
}

/// The day of the year from a week's number (`%U` from Sunday, `%W` from Monday) and a day's name or number.
fn week_day<'a>(get: &impl Fn(char) -> Option<&'a str>, year: i16) -> Option<i16> {
    let (week, from_monday) = match (get('U'), get('W')) {
        (Some(week), _) => (week, false),
        (None, Some(week)) => (week, true),
        (None, None) => return None,
    };
    let week: i16 = week.parse().ok()?;
    // Monday is 0.
    let mut day = match (get('a').or_else(|| get('A')), get('w')) {
        (Some(name), _) => i16::from(index_of(&DAYS, name)?),
        (None, Some(number)) => (number.parse::<i16>().ok()? + 6) % 7,
        (None, None) => return None,
    };
    let mut first = i16::from(Date::new(year, 1, 1).ok()?.weekday().to_monday_zero_offset());
    if !from_monday {
        first = (first + 1) % 7;
        day = (day + 1) % 7;
    }
    let days_before_week_one = (7 - first) % 7;
    Some(if week == 0 { 1 + day - first } else { 1 + days_before_week_one + 7 * (week - 1) + day })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-24 13:00:00 UTC.
    const NOW: i64 = 1_795_525_200;

    #[test]
    fn what_is_missing_is_filled_in() {
        for (parts, secs) in [
            (
                &[('Y', "2026"), ('m', "11"), ('d', "24"), ('H', "02"), ('M', "47"), ('S', "40")][..],
                1_795_488_460,
            ),
            (&[('b', "nov"), ('d', "24"), ('H', "2"), ('M', "47"), ('S', "40")], 1_795_488_460),
            (&[('b', "Dec"), ('d', " 1"), ('H', "0")], 1_764_547_200),
            (&[('H', "12"), ('M', "00")], 1_795_521_600),
            (&[('H', "14"), ('M', "00")], 1_795_442_400),
            (&[('Y', "2026"), ('j', "328"), ('I', "02"), ('p', "PM")], 1_795_528_800),
            (&[('y', "26"), ('B', "November"), ('d', "24"), ('z', "+0200")], 1_795_471_200),
            (&[('Y', "2026"), ('W', "47"), ('a', "Tue")], 1_795_478_400),
        ] {
            let at = instant(parts, &TimeZone::UTC, Timestamp::from_secs(NOW));
            assert_eq!(at.map(Timestamp::as_secs), Some(secs), "{parts:?}");
        }
    }

    #[test]
    fn what_is_no_date_is_none() {
        for parts in [
            &[('Y', "2026"), ('m', "2"), ('d', "30")][..],
            &[('b', "Foo"), ('d', "1")],
            &[('Y', "2026"), ('m', "2"), ('d', "3"), ('z', "error")],
        ] {
            assert_eq!(instant(parts, &TimeZone::UTC, Timestamp::from_secs(NOW)), None, "{parts:?}");
        }
    }
}
