//! Filters on one field of JSON lines: the field's text is what their patterns see.
//!
//! A line is one JSON object, alone or behind the head that syslog or the journal puts before a message. Anything else
//! before it could be text of whoever is logged, who would then choose what is read. For the same reason a field that
//! is there twice is nobody's: parsers differ in which they take. What cannot be read is counted.
#![forbid(unsafe_code)]

use std::fmt;

use super::{
    date::{self, Clock},
    json::{self, Value},
    prefilter::Required,
};
use crate::time::Timestamp;

/// Objects that a field may be inside of, and itself.
pub const PARTS_MAX: usize = 8;
/// What of the raw line a piece of a pattern's text must have to be looked for.
const PIECE_BYTES_MIN: usize = 3;

/// A member of a JSON object, or of an object in it: `msg`, `request.remote_ip`; a dot in a name is written `\.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPath {
    text: String,
    names: Vec<Vec<u8>>,
}

impl FieldPath {
    /// Reads it as a filter file has it.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut names = vec![Vec::new()];
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            let byte = match byte {
                b'.' => {
                    names.push(Vec::new());
                    continue;
                }
                b'\\' => match bytes.next() {
                    Some(plain @ (b'.' | b'\\')) => plain,
                    _ => return Err("a backslash stands before a dot or another backslash only".to_owned()),
                },
                byte => byte,
            };
            names.last_mut().unwrap_or(&mut Vec::new()).push(byte);
        }
        if names.iter().any(Vec::is_empty) {
            return Err("a name in it is empty".to_owned());
        }
        if names.len() > PARTS_MAX {
            return Err(format!("it is inside more than {} objects", PARTS_MAX - 1));
        }
        Ok(Self { text: text.to_owned(), names })
    }

    /// The text of this field in `line`; `None` when there is none that could be read.
    pub fn text_in(&self, line: &str) -> Option<String> {
        let mut field = Field::new(self.clone());
        field.read(line).map(str::to_owned)
    }

    /// A line with this text in this field.
    pub fn line_with(&self, text: &str) -> String {
        let mut line = String::new();
        for name in &self.names {
            line.push('{');
            push_quoted(&String::from_utf8_lossy(name), &mut line);
            line.push(':');
        }
        push_quoted(text, &mut line);
        line.extend(self.names.iter().map(|_| '}'));
        line
    }

    /// What a line must hold for the field's text to hold what is required of it.
    ///
    /// Any character may be escaped as `\uXXXX`, and some in two characters; the rest is as it is. So the line holds
    /// `\u`, or the longest piece of the text without the latter.
    pub(super) fn required(required: Required) -> Required {
        let mut of_line = Vec::new();
        for literal in required? {
            // May stand for one control character, which need not be escaped at all.
            if literal.windows(2).any(|pair| matches!(pair, [b'\\', b'n' | b'r' | b'0'])) {
                return None;
            }
            let pieces = literal.split(|byte| matches!(byte, b'"' | b'\\' | b'/') || byte.is_ascii_control());
            let piece = pieces.max_by_key(|piece| piece.len())?;
            if piece.len() < PIECE_BYTES_MIN {
                return None;
            }
            of_line.push(piece.to_vec());
        }
        of_line.push(b"\\u".to_vec());
        Some(of_line)
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn push_quoted(text: &str, line: &mut String) {
    line.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => line.extend(['\\', c]),
            c if c.is_control() => *line += &format!("\\u{:04x}", u32::from(c)),
            c => line.push(c),
        }
    }
    line.push('"');
}

/// A field, and its text in the line at hand.
#[derive(Debug)]
pub(super) struct Field {
    path: FieldPath,
    /// Without its date, when there is one; kept for its memory.
    text: String,
    is_there: bool,
    date: Option<date::Found>,
    /// Keys with escapes; kept for its memory.
    key: Vec<u8>,
    /// Lines that are not one JSON object, or have the field twice.
    pub(super) not_json: u64,
    /// Lines in which the field is not there or no text.
    pub(super) no_field: u64,
}

/// Why there is no text.
enum Miss {
    NotJson,
    NoField,
}

impl Field {
    pub(super) fn new(path: FieldPath) -> Self {
        Self {
            path,
            text: String::new(),
            is_there: false,
            date: None,
            key: Vec::new(),
            not_json: 0,
            no_field: 0,
        }
    }

    /// Forgets the line at hand.
    pub(super) fn clear(&mut self) {
        (self.is_there, self.date) = (false, None);
    }

    /// What the patterns see of the line at hand.
    pub(super) fn text(&self) -> Option<&str> {
        self.is_there.then_some(&*self.text)
    }

    /// The date in the text, or that of the object.
    pub(super) fn date(&self, clock: Clock) -> Option<Timestamp> {
        self.date.as_ref()?.at(clock)
    }

    /// Takes a line, and what cannot be used of it to the counters.
    pub(super) fn read(&mut self, line: &str) -> Option<&str> {
        self.clear();
        match self.find(line) {
            Ok(()) => self.is_there = true,
            Err(Miss::NotJson) => self.not_json += 1,
            Err(Miss::NoField) => self.no_field += 1,
        }
        self.text()
    }

    fn find(&mut self, line: &str) -> Result<(), Miss> {
        let object = line.get(start_of_object(line).ok_or(Miss::NotJson)?..).unwrap_or("").trim_end();
        let mut time = date::Time::default();
        let mut value = self.look_in(object, 0, |key, value| time.see(key, value))?;
        for depth in 1..self.path.names.len() {
            let Value::Object(inner) = value else { return Err(Miss::NoField) };
            let inner = std::str::from_utf8(inner).map_err(|_| Miss::NotJson)?;
            value = self.look_in(inner, depth, |_, _| {})?;
        }
        let mut bytes = std::mem::take(&mut self.text).into_bytes();
        bytes.clear();
        match value {
            Value::Text(raw) => json::decode(raw, &mut bytes),
            Value::Bare(raw) => bytes.extend_from_slice(raw),
            Value::Null | Value::Object(_) | Value::Array(_) => {
                self.text = String::from_utf8(bytes).unwrap_or_default();
                return Err(Miss::NoField);
            }
        }
        json::one_line(&mut bytes, 0);
        self.text = String::from_utf8(bytes).map_err(|_| Miss::NotJson)?;
        self.date = date::find(&self.text);
        if let Some(found) = &self.date {
            self.text.replace_range(found.span.clone(), "");
        } else {
            self.date = time.date();
        }
        Ok(())
    }

    /// The value of the name at this depth of the path, in the object that `text` is.
    fn look_in<'a>(
        &mut self,
        text: &'a str,
        depth: usize,
        mut each: impl FnMut(&'a [u8], Value<'a>),
    ) -> Result<Value<'a>, Miss> {
        let (name, scratch) = (&self.path.names[depth], &mut self.key);
        let (mut found, mut times) = (None, 0);
        let end = json::members(text.as_bytes(), |key, value| {
            each(key, value);
            if json::is_key(key, name, scratch) {
                times += 1;
                found = Some(value);
            }
        });
        match found {
            _ if end != Some(text.len()) || times > 1 => Err(Miss::NotJson),
            None => Err(Miss::NoField),
            Some(value) => Ok(value),
        }
    }
}

/// Where the object of a line begins: at once, or behind the head of a syslog or journal line, `NAME[PID]: ` with a date
/// and perhaps a host before it, or nothing.
fn start_of_object(line: &str) -> Option<usize> {
    let brace = memchr::memchr(b'{', line.as_bytes())?;
    let head = &line[..brace];
    if head.trim_start().is_empty() {
        return Some(brace);
    }
    let (dated, rest) = match date::find(head) {
        Some(found) if found.span.start == 0 || head.starts_with('<') => (true, &head[found.span.end..]),
        _ => (false, head),
    };
    let mut words = rest.split_ascii_whitespace().rev().peekable();
    // What libumberlog and rsyslog put before JSON.
    words.next_if_eq(&"@cee:");
    let (name, pid) = words.next()?.strip_suffix("]:")?.rsplit_once('[')?;
    let is_tag = !name.is_empty() && !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit());
    let is_host = |word: &str| !word.ends_with(':');
    let hosts = usize::from(dated);
    let is_head = words.clone().count() <= hosts && words.all(is_host);
    (is_tag && is_head && head.ends_with([' ', ':'])).then_some(brace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_or_said_to_be_missing() {
        const NOT_JSON: Option<&str> = Some("no JSON");
        const NO_FIELD: Option<&str> = Some("no field");
        for (path, line, text, miss) in [
            ("msg", r#"{"msg":"bad login"}"#, "bad login", None),
            ("msg", "  { \"a\" : [ {} ] , \"msg\" : \"x\" } \r", "x", None),
            ("msg", r#"{"m\u0073g":"\u0062ad \"login\""}"#, "bad \"login\"", None),
            // One line, whatever is in it; a date of its own is cut out.
            ("msg", r#"{"msg":"a\nb\r\u0000c"}"#, r"a\nb\r\0c", None),
            ("msg", r#"{"msg":"2026-11-24 02:47:40 no"}"#, " no", None),
            ("request.remote_ip", r#"{"request":{"remote_ip":"203.0.113.9"}}"#, "203.0.113.9", None),
            (r"log\.level", r#"{"log.level":"warn","log":{"level":"x"}}"#, "warn", None),
            (r"a\\b", r#"{"a\\b":"x"}"#, "x", None),
            ("n", r#"{"n":-1.5e3}"#, "-1.5e3", None),
            ("n", r#"{"n":true}"#, "true", None),
            ("n", r#"{"n":null}"#, "", NO_FIELD),
            ("n", r#"{"n":["a"]}"#, "", NO_FIELD),
            ("n", r#"{"n":{}}"#, "", NO_FIELD),
            ("n", "{}", "", NO_FIELD),
            ("n.m", r#"{"n":"m"}"#, "", NO_FIELD),
            // Only of the outermost object.
            ("msg", r#"{"a":{"msg":"forged"}}"#, "", NO_FIELD),
            // Twice is nobody's.
            ("msg", r#"{"msg":"a","msg":"b"}"#, "", NOT_JSON),
            ("msg", r#"{"msg":"a","\u006dsg":"b"}"#, "", NOT_JSON),
            ("a.b", r#"{"a":{"b":"x","b":"y"}}"#, "", NOT_JSON),
            // The whole line or nothing.
            ("msg", r#"{"msg":"a"} b"#, "", NOT_JSON),
            ("msg", r#"{"msg":"a"}{"msg":"b"}"#, "", NOT_JSON),
            ("msg", r#"{"msg":"a""#, "", NOT_JSON),
            ("msg", r#"["msg"]"#, "", NOT_JSON),
            ("msg", "", "", NOT_JSON),
            // Behind a head that no user writes.
            ("msg", r#"app[7]: {"msg":"a"}"#, "a", None),
            ("msg", r#"Nov 24 02:47:40 web app[7]: {"msg":"a"}"#, "a", None),
            ("msg", r#"<13>2026-11-24T02:47:40Z web app[7]: @cee: {"msg":"a"}"#, "a", None),
            ("msg", r#"app[7]: error: {"msg":"forged"}"#, "", NOT_JSON),
            ("msg", r#"error: {"msg":"forged"}"#, "", NOT_JSON),
            ("msg", r#"Nov 24 02:47:40 web app[7]: bob x[7]: {"msg":"forged"}"#, "", NOT_JSON),
            ("msg", r#"Nov 24 02:47:40 app[7]: x[7]: {"msg":"forged"}"#, "", NOT_JSON),
            ("msg", r#"bob app[7]: {"msg":"forged"}"#, "", NOT_JSON),
            ("msg", r#"app[7]:x{"msg":"forged"}"#, "", NOT_JSON),
        ] {
            let mut field = Field::new(FieldPath::parse(path).unwrap());
            let found = field.read(line).map(str::to_owned);
            assert_eq!(found.as_deref(), miss.is_none().then_some(text), "{path} in {line}");
            let counted = [(field.not_json, NOT_JSON), (field.no_field, NO_FIELD)];
            assert_eq!(
                counted.iter().find(|(count, _)| *count > 0).and_then(|(_, what)| *what),
                miss,
                "{line}"
            );
        }
    }

    #[test]
    fn the_date_is_that_of_the_text_or_of_the_object() {
        let clock = Clock { now: Timestamp::from_secs(1_795_500_000), utc_offset_secs: 0 };
        let noon = Some(Timestamp::from_secs(1_795_478_400));
        for (line, date) in [
            (r#"{"time":"2026-11-24T00:00:00Z","msg":"x"}"#, noon),
            (r#"{"msg":"x","@timestamp":"2026-11-24T00:00:00.000Z"}"#, noon),
            (r#"{"ts":1795478400,"msg":"x"}"#, noon),
            (r#"{"msg":"2026-11-24T00:00:00Z x","time":"2020-01-01T00:00:00Z"}"#, noon),
            (r#"{"time":"yesterday","msg":"x"}"#, None),
            (r#"{"msg":"x"}"#, None),
        ] {
            let mut field = Field::new(FieldPath::parse("msg").unwrap());
            assert!(field.read(line).is_some());
            assert_eq!(field.date(clock), date, "{line}");
        }
    }

    #[test]
    fn paths_are_checked() {
        for (text, fits) in [
            ("a", true),
            ("a.b.c.d.e.f.g.h", true),
            ("a.b.c.d.e.f.g.h.i", false),
            ("", false),
            ("a..b", false),
            (".a", false),
            (r"a\", false),
            (r"a\n", false),
        ] {
            assert_eq!(FieldPath::parse(text).is_ok(), fits, "{text:?}");
        }
    }

    #[test]
    fn a_line_made_of_a_text_has_it() {
        for path in ["a", "a.b", r"a\.b.c"] {
            let path = FieldPath::parse(path).unwrap();
            for text in ["", "x \"y\" \\ é", "\u{7f}\t"] {
                assert_eq!(path.text_in(&path.line_with(text)).as_deref(), Some(text));
            }
        }
    }

    #[test]
    fn what_a_line_must_hold_cannot_be_escaped_away() {
        let text = |texts: &[&str]| Some(texts.iter().map(|text| text.as_bytes().to_vec()).collect());
        for (required, of_line) in [
            (None, None),
            (text(&["login failed"]), text(&["login failed", "\\u"])),
            (text(&["user=\"bob\" failed", "abc"]), text(&[" failed", "abc", "\\u"])),
            (text(&["a/b/cde"]), text(&["cde", "\\u"])),
            (text(&["a/b\"c"]), None),
            (text(&[r"failed\nlogin"]), None),
        ] {
            assert_eq!(FieldPath::required(required), of_line);
        }
    }
}
