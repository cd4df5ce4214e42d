//! What container runtimes write around the lines of containers: Docker's json-file records and the lines of the
//! Container Runtime Interface, taken off again.
//!
//! A runtime cuts long lines into records; they are joined again, each of the two streams for itself, up to the length
//! that a line may have. What a container wrote as one line stays one: a line break inside it is written as `\n`. Each
//! record says when it was written, which is the time of its line when catching up.
#![forbid(unsafe_code)]

use memchr::memchr;

use super::tail::{Deliver, LINE_BYTES_MAX};
use crate::{
    engine::Reading,
    filter::{
        Clock, date,
        json::{self, Value},
    },
    policy::ContainerFormat,
    time::Timestamp,
};

/// The longest record: a runtime cuts at 16 KiB, each byte of which may be written as `\u00XX`.
pub(crate) const RECORD_BYTES_MAX: usize = 128 * 1024;
/// How far back a file is looked at for the beginning of a line that is unfinished where reading starts.
pub(crate) const REJOIN_BYTES_MAX: u64 = 512 * 1024;

/// What was done to the records of one file name, counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unwrapped {
    /// Records that are none.
    pub malformed: u64,
    /// Lines that would be longer than [`LINE_BYTES_MAX`] once joined.
    pub too_long: u64,
}

/// Takes off the wrapping of one file and its successors.
#[derive(Debug)]
pub(crate) struct Unwrapper {
    format: ContainerFormat,
    /// By stream.
    unfinished: [Option<Unfinished>; 2],
    pub(crate) counters: Unwrapped,
}

/// A line of which more is to come; nothing once it is too long, or where its beginning is not known: the rest of a line
/// may be whatever its author likes.
type Unfinished = Option<Vec<u8>>;

/// One record.
struct Record<'a> {
    stream: usize,
    /// More of its line is in the next record of the stream.
    is_partial: bool,
    time: &'a [u8],
    text: Text<'a>,
}

enum Text<'a> {
    Plain(&'a [u8]),
    /// A JSON string, with escapes as written.
    Json(&'a [u8]),
}

impl Unwrapper {
    pub(crate) fn new(format: ContainerFormat) -> Self {
        Self { format, unfinished: [None, None], counters: Unwrapped::default() }
    }

    /// Takes the records before the place where reading starts, for lines that go on there; they may begin in the middle
    /// of a record unless they are all there are.
    pub(crate) fn rejoin(&mut self, records: &[u8], are_all: bool) {
        if !are_all {
            self.gap();
        }
        let whole = if are_all { 0 } else { memchr(b'\n', records).map_or(records.len(), |end| end + 1) };
        let records = records.get(whole..).unwrap_or_default();
        let counters = self.counters;
        self.feed(Reading::Live, records, &mut |_, _| {});
        self.counters = counters;
        for (stream, unfinished) in self.unfinished.iter_mut().enumerate() {
            let mut all =
                records.split(|byte| *byte == b'\n').filter_map(|record| record_of(self.format, record));
            // Where nothing is heard of a stream for so long, none of its lines is open.
            if unfinished.is_some() && !all.any(|record| record.stream == stream) {
                *unfinished = None;
            }
        }
    }

    /// Shows what was handed out before, and takes nothing of it: what goes on behind it [`Self::rejoin`] has taken.
    pub(crate) fn show(&self, records: &[u8], deliver: Deliver<'_>) {
        let mut apart = Self::new(self.format);
        apart.gap();
        apart.feed(Reading::Context, records, deliver);
    }

    /// A record was left out, of whichever stream: what follows may be the rest of its line.
    pub(crate) fn gap(&mut self) {
        self.unfinished = [Some(None), Some(None)];
    }

    /// The file was emptied: the rest of an unfinished line is gone, or does not follow.
    pub(crate) fn cut(&mut self) {
        for unfinished in self.unfinished.iter_mut().flatten() {
            self.counters.too_long += u64::from(unfinished.take().is_some());
        }
    }

    /// Hands out the lines in a block of whole records.
    pub(crate) fn feed(&mut self, reading: Reading, block: &[u8], deliver: Deliver<'_>) {
        let mut lines = Vec::with_capacity(block.len());
        let mut run = reading;
        let mut rest = block;
        while !rest.is_empty() {
            let end = memchr(b'\n', rest).unwrap_or(rest.len());
            let record = rest.get(..end).unwrap_or_default();
            rest = rest.get(end + 1..).unwrap_or_default();
            if record.trim_ascii().is_empty() {
                continue;
            }
            let Some(record) = record_of(self.format, record) else {
                self.counters.malformed += 1;
                continue;
            };
            if reading == Reading::CatchingUp {
                let of_record = written_at(record.time).map_or(reading, Reading::At);
                if of_record != run {
                    hand_out(run, &mut lines, deliver);
                    run = of_record;
                }
            }
            self.take(&record, &mut lines);
        }
        hand_out(run, &mut lines, deliver);
    }

    fn take(&mut self, record: &Record<'_>, lines: &mut Vec<u8>) {
        let unfinished = &mut self.unfinished[record.stream];
        let is_joined = record.is_partial || unfinished.is_some();
        if record.is_partial && unfinished.is_none() {
            *unfinished = Some(Some(Vec::new()));
        }
        let start = lines.len();
        let text = match unfinished {
            None => Some(&mut *lines),
            Some(unfinished) => unfinished.as_mut(),
        };
        if let Some(text) = text {
            let from = text.len();
            record.text.append_to(text);
            json::one_line(text, from);
            let begins = if is_joined { 0 } else { from };
            if text.len() - begins > LINE_BYTES_MAX {
                self.counters.too_long += 1;
                match unfinished {
                    None => {
                        lines.truncate(start);
                        return;
                    }
                    Some(unfinished) => *unfinished = None,
                }
            }
        }
        if record.is_partial {
            return;
        }
        match unfinished.take() {
            None => lines.push(b'\n'),
            Some(Some(text)) => {
                lines.extend_from_slice(&text);
                lines.push(b'\n');
            }
            Some(None) => {}
        }
    }
}

fn record_of(format: ContainerFormat, record: &[u8]) -> Option<Record<'_>> {
    match format {
        ContainerFormat::Docker => docker(record),
        ContainerFormat::Cri => cri(record),
        ContainerFormat::Either if record.first() == Some(&b'{') => docker(record),
        ContainerFormat::Either => cri(record),
    }
}

fn hand_out(reading: Reading, lines: &mut Vec<u8>, deliver: Deliver<'_>) {
    if !lines.is_empty() {
        deliver(reading, lines);
        lines.clear();
    }
}

fn stream_of(name: &[u8]) -> Option<usize> {
    [&b"stdout"[..], b"stderr"].iter().position(|stream| *stream == name)
}

/// When a record was written, by its runtime.
pub(crate) fn date_of(format: ContainerFormat, record: &[u8]) -> Option<Timestamp> {
    written_at(record_of(format, record)?.time)
}

/// The time a record was written, to the second, so that lines of one second go together.
fn written_at(time: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(time).ok()?;
    // A record's time names its zone.
    let clock = Clock { now: Timestamp::EPOCH, utc_offset_secs: 0 };
    let found = date::find(text).filter(|found| found.span == (0..text.len()))?;
    Some(Timestamp::from_secs(found.at(clock)?.as_secs()))
}

/// `{"log":"text\n","stream":"stdout","attrs":{..},"time":"2026-11-24T02:47:40.123456789Z"}`; the text of a line that goes
/// on has no `\n`.
fn docker(record: &[u8]) -> Option<Record<'_>> {
    let record = record.trim_ascii_end();
    let (mut log, mut stream, mut time) = (None, None, &b""[..]);
    let end = json::members(record, |key, value| {
        let Value::Text(raw) = value else { return };
        match key {
            b"log" => log = Some(raw),
            b"stream" => stream = stream_of(raw),
            b"time" => time = raw,
            _ => {}
        }
    })?;
    let (log, stream) = (log?, stream?);
    if end != record.len() {
        return None;
    }
    let line = ends_a_line(log);
    Some(Record { stream, is_partial: line.is_none(), time, text: Text::Json(line.unwrap_or(log)) })
}

/// The text of a JSON string without the line break at its end, if there is one.
fn ends_a_line(raw: &[u8]) -> Option<&[u8]> {
    let line = raw.strip_suffix(b"\\n").or_else(|| raw.strip_suffix(b"\\u000a"));
    let line = line.or_else(|| raw.strip_suffix(b"\\u000A"))?;
    // A backslash before it would make it text.
    let backslashes = line.iter().rev().take_while(|byte| **byte == b'\\').count();
    let line = (backslashes % 2 == 0).then_some(line)?;
    // As in a file, a carriage return before it is a part of it.
    let shorter = line.strip_suffix(b"\\r").unwrap_or(line);
    let backslashes = shorter.iter().rev().take_while(|byte| **byte == b'\\').count();
    Some(if backslashes % 2 == 0 { shorter } else { line })
}

/// `2026-11-24T02:47:40.123456789Z stdout F text`; `P` where the line goes on, and perhaps more tags, parted by colons.
fn cri(record: &[u8]) -> Option<Record<'_>> {
    let mut parts = record.splitn(4, |byte| *byte == b' ');
    let time =
        parts.next().filter(|time| time.len() >= 20 && time[0].is_ascii_digit() && time[10] == b'T')?;
    let stream = stream_of(parts.next()?)?;
    let tag = parts.next()?.split(|byte| *byte == b':').next()?;
    let is_partial = match tag {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    let text = parts.next().unwrap_or_default();
    let text = if is_partial { text } else { text.strip_suffix(b"\r").unwrap_or(text) };
    Some(Record { stream, is_partial, time, text: Text::Plain(text) })
}

impl Text<'_> {
    fn append_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Plain(text) => out.extend_from_slice(text),
            Self::Json(raw) => json::decode(raw, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unwrapped(
        format: ContainerFormat,
        reading: Reading,
        blocks: &[&str],
    ) -> (Vec<(Reading, String)>, Unwrapped) {
        let mut unwrapper = Unwrapper::new(format);
        let mut found = Vec::new();
        for block in blocks {
            unwrapper.feed(reading, block.as_bytes(), &mut |reading, lines| {
                found.push((reading, String::from_utf8_lossy(lines).into_owned()));
            });
        }
        (found, unwrapper.counters)
    }

    #[test]
    fn records_become_the_lines_that_were_written() {
        let out = |text: &str| {
            format!("{{\"log\":\"{text}\",\"stream\":\"stdout\",\"time\":\"2026-11-24T02:47:40.1Z\"}}\n")
        };
        let err = |text: &str| out(text).replace("stdout", "stderr");
        let cri = |stream: &str, tag: &str, text: &str| {
            format!("2026-11-24T02:47:40.1+01:00 {stream} {tag} {text}\n")
        };
        let half = "x".repeat(40_000);
        let (docker, runtime) = (ContainerFormat::Docker, ContainerFormat::Cri);
        for (format, records, lines, malformed, too_long) in [
            (docker, out(r"a \u0062\t\ud83d\ude00 \\n\r\n"), "a b\t😀 \\n\n".to_owned(), 0, 0),
            (docker, out(r"one\ntwo\u0000\n"), "one\\ntwo\\0\n".to_owned(), 0, 0),
            (docker, out(r"\n"), "\n".to_owned(), 0, 0),
            // Joined by stream.
            (docker, out("a") + &err(r"x\n") + &out("b") + &err("y") + &out(r"c\n") + &err(r"z\n"), "x\nabc\nyz\n".to_owned(), 0, 0),
            (docker, out(r"ends in a backslash \\n") + &out(r"\n"), "ends in a backslash \\n\n".to_owned(), 0, 0),
            (docker, r#"{"log":"a\n","stream":"stdout","attrs":{"log":"b\n","tag":"t"},"time":"2026-11-24T02:47:40Z"}"#.to_owned() + "\n", "a\n".to_owned(), 0, 0),
            (docker, out(&half) + &out(&half) + &out(r"no\n") + &out(r"a\n"), "a\n".to_owned(), 0, 1),
            (docker, "text\n{\"log\":\"a\\n\"}\n{\"log\":\"a\\n\",\"stream\":\"x\"}\n{\"log\":\n\n".to_owned() + &out(r"a\n"), "a\n".to_owned(), 4, 0),
            (runtime, cri("stdout", "F", "a  b") + &cri("stderr", "F:x", ""), "a  b\n\n".to_owned(), 0, 0),
            (runtime, cri("stdout", "P", "a ") + &cri("stderr", "F", "e") + &cri("stdout", "F", "b\r"), "e\na b\n".to_owned(), 0, 0),
            (runtime, "2026-11-24 stdout F a\n2026-11-24T02:47:40.1Z stdlog F a\n2026-11-24T02:47:40.1Z stdout X a\n2026-11-24T02:47:40.1Z\n".to_owned(), String::new(), 4, 0),
            (runtime, out(r"a\n"), String::new(), 1, 0),
            (ContainerFormat::Either, out(r"a\n") + &cri("stdout", "F", "b"), "a\nb\n".to_owned(), 0, 0),
        ] {
            // Where the blocks end makes no difference.
            let singly: Vec<&str> = records.split_inclusive('\n').collect();
            for blocks in [&[records.as_str()][..], &singly] {
                let (found, counters) = unwrapped(format, Reading::Live, blocks);
                let found: String = found.into_iter().map(|(_, lines)| lines).collect();
                assert_eq!(found, lines, "{records:.200}");
                assert_eq!((counters.malformed, counters.too_long), (malformed, too_long), "{records:.200}");
            }
        }
    }

    #[test]
    fn lines_of_the_past_have_the_time_of_their_record() {
        let records = "2026-11-24T00:00:00.1Z stdout F a\n2026-11-24T00:00:00.9Z stdout F b\n2026-11-24T01:00:01+01:00 stdout F c\n";
        let noon = Timestamp::from_secs(1_795_478_400);
        let at = |secs, text: &str| {
            (Reading::At(noon.saturating_add(std::time::Duration::from_secs(secs))), text.to_owned())
        };
        let (found, _) = unwrapped(ContainerFormat::Cri, Reading::CatchingUp, &[records]);
        assert_eq!(found, [at(0, "a\nb\n"), at(1, "c\n")]);
        let (found, _) = unwrapped(ContainerFormat::Cri, Reading::Live, &[records]);
        assert_eq!(found, [(Reading::Live, "a\nb\nc\n".to_owned())]);
    }

    #[test]
    fn what_goes_on_where_reading_starts_is_joined_or_left_out() {
        let cri =
            |stream: &str, tag: &str, text: &str| format!("2026-11-24T00:00:00Z {stream} {tag} {text}\n");
        let end = cri("stdout", "F", "end") + &cri("stderr", "F", "e");
        for (before, are_all, lines) in [
            (cri("stdout", "F", "a") + &cri("stdout", "P", "b "), true, "b end\ne\n"),
            (cri("stdout", "F", "a") + &cri("stdout", "P", "b "), false, "e\n"),
            ("half\n".to_owned() + &cri("stdout", "F", "a") + &cri("stdout", "P", "b "), false, "b end\ne\n"),
            ("half\n".to_owned() + &cri("stderr", "P", "b "), false, "end\n"),
            ("half\n".to_owned(), false, "end\ne\n"),
            (String::new(), true, "end\ne\n"),
        ] {
            let mut unwrapper = Unwrapper::new(ContainerFormat::Cri);
            unwrapper.rejoin(before.as_bytes(), are_all);
            let mut found = Vec::new();
            unwrapper.feed(Reading::Live, end.as_bytes(), &mut |_, text| found.extend_from_slice(text));
            assert_eq!(String::from_utf8_lossy(&found), lines, "{before} {are_all}");
        }
    }

    #[test]
    fn what_follows_a_record_that_was_left_out_is_no_line() {
        let forged = "2026-11-24T00:00:00Z stdout P no from 203.0.113.9\n2026-11-24T00:00:00Z stdout F !\n2026-11-24T00:00:00Z stdout F x\n";
        let mut unwrapper = Unwrapper::new(ContainerFormat::Cri);
        unwrapper.gap();
        let mut found = Vec::new();
        unwrapper.feed(Reading::Live, forged.as_bytes(), &mut |_, text| found.extend_from_slice(text));
        assert_eq!(found, b"x\n");
    }
}
