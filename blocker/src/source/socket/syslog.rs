//! A syslog message (RFC 3164, RFC 5424), and the line that filters are given of it.
//!
//! The line is the one that a syslog daemon would have written to a file, `DATE HOST PROGRAM[PID]: MESSAGE`, so the
//! filters for files read it as they are: the priority and structured data are left out, the date stays as it was sent.
//! What a message lacks is written as what cannot be mistaken: the time of arrival for the date, `-` for host and
//! program. Never is there more than one line, or a part of one.
#![forbid(unsafe_code)]

use std::net::Ipv6Addr;

use crate::{
    filter::date,
    source::line::{Outcome, end, escape, trim_end},
};

/// The highest priority: facility 23, severity 7.
const PRIORITY_MAX: u16 = 191;
/// Bytes in which a date at the start of a message ends.
const DATE_BYTES_MAX: usize = 48;
/// Lengths of RFC 5424, section 6.
const HOST_BYTES_MAX: usize = 255;
const APP_BYTES_MAX: usize = 48;
const PROCESS_BYTES_MAX: usize = 128;
const MESSAGE_ID_BYTES_MAX: usize = 32;
const NAME_BYTES_MAX: usize = 32;
/// Says that what follows is UTF-8, which nobody asked.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Appends the line of one message. `arrived` stands for the date of one that has none.
pub fn write(message: &[u8], arrived: &str, text: &mut Vec<u8>) -> Outcome {
    let message = trim_end(message);
    let (rest, prioritized) = match priority(message) {
        Some(rest) => (rest, true),
        None => (message, false),
    };
    if rest.is_empty() {
        return Outcome::Empty;
    }
    let start = text.len();
    let outcome = match Structured::read(rest).filter(|_| prioritized) {
        Some(message) => {
            message.write(arrived, text);
            Outcome::Line
        }
        None => classic(rest, arrived, text, prioritized),
    };
    end(start, outcome, text)
}

/// What follows `<PRIORITY>`.
fn priority(message: &[u8]) -> Option<&[u8]> {
    let inner = message.strip_prefix(b"<")?;
    let digits = inner.iter().take(3).take_while(|byte| byte.is_ascii_digit()).count();
    let number: u16 = std::str::from_utf8(inner.get(..digits)?).ok()?.parse().ok()?;
    inner.get(digits..)?.strip_prefix(b">").filter(|_| number <= PRIORITY_MAX)
}

/// RFC 3164, with the dates that senders use; the host may be missing, as the C library leaves it out.
fn classic(rest: &[u8], arrived: &str, text: &mut Vec<u8>, prioritized: bool) -> Outcome {
    let date = date_length(rest).filter(|length| matches!(rest.get(*length), None | Some(b' ')));
    let after = match date {
        Some(length) => {
            text.extend_from_slice(rest.get(..length).unwrap_or_default());
            rest.get(length + 1..).unwrap_or_default()
        }
        None => {
            text.extend_from_slice(arrived.as_bytes());
            rest
        }
    };
    text.push(b' ');
    if date.is_none() || names_program(after) {
        text.extend_from_slice(b"- ");
    }
    escape(after, text);
    let is_structured = date.is_none() && rest.first().is_some_and(u8::is_ascii_digit);
    if prioritized && !is_structured { Outcome::Line } else { Outcome::Odd }
}

/// Where the date at the start ends.
fn date_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.get(..DATE_BYTES_MAX).unwrap_or(bytes);
    let ascii = head.iter().take_while(|byte| byte.is_ascii()).count();
    let found = date::find(std::str::from_utf8(head.get(..ascii)?).ok()?)?;
    (found.span.start == 0).then_some(found.span.end)
}

/// Whether the first word is a program (`sshd[42]:`, `su:`) and not a host.
fn names_program(bytes: &[u8]) -> bool {
    let word = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    let is_host = || std::str::from_utf8(word).is_ok_and(|word| word.parse::<Ipv6Addr>().is_ok());
    !word.starts_with(b"[") && (word.contains(&b'[') || (word.ends_with(b":") && !is_host()))
}

/// A message of RFC 5424 without its structured data; `None` stands for the NILVALUE.
struct Structured<'a> {
    date: Option<&'a [u8]>,
    host: Option<&'a [u8]>,
    app: Option<&'a [u8]>,
    process: Option<&'a [u8]>,
    message: &'a [u8],
}

impl<'a> Structured<'a> {
    /// Reads what follows the priority, if all of its header is as the RFC has it.
    fn read(rest: &'a [u8]) -> Option<Self> {
        let mut rest = rest.strip_prefix(b"1 ")?;
        let date = word(&mut rest, DATE_BYTES_MAX)?;
        if date.is_some_and(|date| date_length(date) != Some(date.len())) {
            return None;
        }
        let host = word(&mut rest, HOST_BYTES_MAX)?;
        let app = word(&mut rest, APP_BYTES_MAX)?;
        let process = word(&mut rest, PROCESS_BYTES_MAX)?;
        word(&mut rest, MESSAGE_ID_BYTES_MAX)?;
        let message = match skip_data(rest)? {
            [] => &[],
            [b' ', message @ ..] => message.strip_prefix(BYTE_ORDER_MARK).unwrap_or(message),
            _ => return None,
        };
        Some(Self { date, host, app, process, message })
    }

    fn write(&self, arrived: &str, text: &mut Vec<u8>) {
        text.extend_from_slice(self.date.unwrap_or(arrived.as_bytes()));
        text.push(b' ');
        text.extend_from_slice(self.host.unwrap_or(b"-"));
        text.push(b' ');
        // Without a program's name, the message would stand in its place.
        text.extend_from_slice(self.app.unwrap_or(b"-"));
        if let Some(process) = self.process.filter(|id| id.iter().all(u8::is_ascii_digit)) {
            text.push(b'[');
            text.extend_from_slice(process);
            text.push(b']');
        }
        text.extend_from_slice(b": ");
        escape(self.message, text);
    }
}

/// Takes a word of printable ASCII and the space behind it; inside, `None` for the NILVALUE.
fn word<'a>(rest: &mut &'a [u8], bytes_max: usize) -> Option<Option<&'a [u8]>> {
    let end = rest.iter().take(bytes_max + 1).position(|byte| *byte == b' ')?;
    let (word, after) = rest.split_at(end);
    *rest = after.get(1..)?;
    let fits = !word.is_empty() && word.iter().all(u8::is_ascii_graphic);
    fits.then_some(if word == b"-" { None } else { Some(word) })
}

/// What follows the structured data: `-`, or elements such as `[id name="value"]` with no space between.
fn skip_data(rest: &[u8]) -> Option<&[u8]> {
    if let Some(after) = rest.strip_prefix(b"-") {
        return Some(after);
    }
    let mut rest = rest.strip_prefix(b"[")?;
    loop {
        rest = skip_name(rest)?;
        while let Some(parameter) = rest.strip_prefix(b" ") {
            rest = skip_value(skip_name(parameter)?.strip_prefix(b"=\"")?)?;
        }
        rest = rest.strip_prefix(b"]")?;
        match rest.strip_prefix(b"[") {
            Some(next) => rest = next,
            None => return Some(rest),
        }
    }
}

fn skip_name(rest: &[u8]) -> Option<&[u8]> {
    let is_name = |byte: &&u8| byte.is_ascii_graphic() && !matches!(byte, b'=' | b']' | b'"');
    let length = rest.iter().take_while(is_name).count();
    rest.get(length..).filter(|_| (1..=NAME_BYTES_MAX).contains(&length))
}

/// What follows the quote at the end of a value, in which a backslash takes the next byte's meaning.
fn skip_value(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        let at = memchr::memchr2(b'"', b'\\', rest)?;
        let (byte, after) = rest.get(at..)?.split_first()?;
        rest = match byte {
            b'"' => return Some(after),
            _ => after.get(1..)?,
        };
    }
}
