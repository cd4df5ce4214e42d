//! JSON as logs hold it, read in place: the members of one object, and the text of a string.
//!
//! Nothing is built and nothing is allocated; what is nested is stepped over, without recursion and to a bounded depth.
//! Structure is held to RFC 8259. Inside strings it is milder, since one bad byte is to hide nothing: control
//! characters stand for themselves, an escape that JSON does not have is text, half of a surrogate pair is U+FFFD.
#![forbid(unsafe_code)]

use memchr::{memchr, memchr2};

/// Objects and arrays inside one another, below the outermost object.
pub const DEPTH_MAX: u32 = 64;

/// What a member holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A string: what stands between its quotes, with escapes as written.
    Text(&'a [u8]),
    /// A number, `true` or `false`, as written.
    Bare(&'a [u8]),
    /// `null`.
    Null,
    /// An object, with its braces.
    Object(&'a [u8]),
    /// An array, with its brackets.
    Array(&'a [u8]),
}

/// Calls `each` with the key, escapes as written, and the value of every member of the object that `text` begins with.
///
/// Returns where the object ends; `None` when it is not JSON or too deep, perhaps after some members.
pub fn members<'a>(text: &'a [u8], mut each: impl FnMut(&'a [u8], Value<'a>)) -> Option<usize> {
    let mut scanner = Scanner { bytes: text, at: 0 };
    scanner.eat(b'{')?;
    scanner.space();
    if scanner.eat(b'}').is_some() {
        return Some(scanner.at);
    }
    loop {
        let key = scanner.key()?;
        each(key, scanner.value()?);
        scanner.space();
        match scanner.next()? {
            b',' => scanner.space(),
            b'}' => return Some(scanner.at),
            _ => return None,
        }
    }
}

/// Appends the text of a string to `out`.
pub fn decode(raw: &[u8], out: &mut Vec<u8>) {
    let mut rest = raw;
    while let Some(at) = memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
        let plain = match rest.first() {
            Some(plain @ (b'"' | b'\\' | b'/')) => *plain,
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') if let Some((c, taken)) = unicode(&rest[1..]) => {
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &rest[1 + taken..];
                continue;
            }
            _ => {
                out.push(b'\\');
                continue;
            }
        };
        out.push(plain);
        rest = &rest[1..];
    }
    out.extend_from_slice(rest);
}

/// Makes one line of what stands in `out` from `start` on: line breaks and NULs as people write them.
pub fn one_line(out: &mut Vec<u8>, start: usize) {
    let mut at = start;
    while let Some(found) = out.get(at..).and_then(|rest| memchr::memchr3(b'\n', b'\r', 0, rest)) {
        at += found;
        let written = match out[at] {
            b'\n' => b'n',
            b'\r' => b'r',
            _ => b'0',
        };
        out[at] = b'\\';
        out.insert(at + 1, written);
        at += 2;
    }
}

/// Whether a key, escapes as written, is this one; `scratch` is kept for its memory.
pub fn is_key(raw: &[u8], key: &[u8], scratch: &mut Vec<u8>) -> bool {
    if memchr(b'\\', raw).is_none() {
        return raw == key;
    }
    scratch.clear();
    decode(raw, scratch);
    scratch == key
}

/// The character behind `\u`, and how many bytes say so.
fn unicode(digits: &[u8]) -> Option<(char, usize)> {
    let first = four_digits(digits)?;
    if (0xD800..0xDC00).contains(&first) {
        let low = digits.get(4..).and_then(|rest| rest.strip_prefix(b"\\u")).and_then(four_digits);
        if let Some(low @ 0xDC00..0xE000) = low {
            let both = 0x1_0000 + ((first - 0xD800) << 10) + (low - 0xDC00);
            return Some((char::from_u32(both).unwrap_or(char::REPLACEMENT_CHARACTER), 10));
        }
    }
    Some((char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), 4))
}

fn four_digits(digits: &[u8]) -> Option<u32> {
    let digits = digits.get(..4).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn eat(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    /// A key and its colon.
    fn key(&mut self) -> Option<&'a [u8]> {
        let key = self.string()?;
        self.space();
        self.eat(b':')?;
        self.space();
        Some(key)
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        self.eat(b'"')?;
        let start = self.at;
        loop {
            self.at += memchr2(b'"', b'\\', self.bytes.get(self.at..)?)?;
            if self.peek() == Some(b'"') {
                self.at += 1;
                return self.bytes.get(start..self.at - 1);
            }
            self.at += 2;
        }
    }

    fn value(&mut self) -> Option<Value<'a>> {
        let start = self.at;
        match self.peek()? {
            b'"' => self.string().map(Value::Text),
            opening @ (b'{' | b'[') => {
                self.nested()?;
                let whole = self.bytes.get(start..self.at)?;
                Some(if opening == b'{' { Value::Object(whole) } else { Value::Array(whole) })
            }
            _ => {
                self.bare()?;
                let word = self.bytes.get(start..self.at)?;
                Some(if word == b"null" { Value::Null } else { Value::Bare(word) })
            }
        }
    }

    fn bare(&mut self) -> Option<()> {
        for word in [&b"true"[..], b"false", b"null"] {
            if self.bytes.get(self.at..)?.starts_with(word) {
                self.at += word.len();
                return Some(());
            }
        }
        let _sign = self.eat(b'-');
        if self.eat(b'0').is_none() {
            self.digits()?;
        }
        if self.eat(b'.').is_some() {
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            let _sign = self.eat(b'-').or_else(|| self.eat(b'+'));
            self.digits()?;
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    /// Steps over an object or array.
    fn nested(&mut self) -> Option<()> {
        // The last bit: whether the innermost one is an object.
        let (mut kinds, mut depth) = (0_u64, 0);
        loop {
            match self.peek()? {
                opening @ (b'{' | b'[') => {
                    if depth == DEPTH_MAX {
                        return None;
                    }
                    self.at += 1;
                    self.space();
                    let is_object = opening == b'{';
                    let is_empty = self.eat(if is_object { b'}' } else { b']' }).is_some();
                    if !is_empty {
                        kinds = kinds << 1 | u64::from(is_object);
                        depth += 1;
                        if is_object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                b'"' => {
                    self.string()?;
                }
                _ => self.bare()?,
            }
            // A value has ended, and with it perhaps what it is in.
            loop {
                if depth == 0 {
                    return Some(());
                }
                self.space();
                match (self.next()?, kinds & 1 == 1) {
                    (b',', is_object) => {
                        self.space();
                        if is_object {
                            self.key()?;
                        }
                        break;
                    }
                    (b'}', true) | (b']', false) => {
                        kinds >>= 1;
                        depth -= 1;
                    }
                    _ => return None,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(raw: &str) -> String {
        let mut out = Vec::new();
        decode(raw.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn strings_are_read_as_json_has_them_and_bad_ones_hide_nothing() {
        for (raw, text) in [
            ("plain é", "plain é"),
            (r#"\"\\\/\b\f\n\r\t"#, "\"\\/\u{8}\u{c}\n\r\t"),
            (r"f\u0061iled \u00e9\u20AC", "failed é€"),
            (r"\ud83d\ude00!", "😀!"),
            (r"\ud83dx \ude00 \ud83d\u0041", "\u{fffd}x \u{fffd} \u{fffd}A"),
            // None of JSON's.
            (r"\x22 \u12 \u+123 \", r"\x22 \u12 \u+123 \"),
        ] {
            assert_eq!(decoded(raw), text, "{raw}");
        }
    }

    #[test]
    fn a_text_becomes_one_line() {
        let mut out = b"a\nb\n".to_vec();
        one_line(&mut out, 2);
        assert_eq!(out, b"a\nb\\n");
        let mut out = b"\r\0".to_vec();
        one_line(&mut out, 0);
        assert_eq!(out, b"\\r\\0");
    }

    #[test]
    fn what_is_no_json_is_refused() {
        let deep = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        let most = DEPTH_MAX as usize;
        for (text, is_json) in [
            ("{}", true),
            (r#"{"a":1,"b":[true,{"c":null},[]],"d":{}}"#, true),
            (" {}", false),
            ("", false),
            ("{", false),
            (r#"{"a"}"#, false),
            (r#"{"a":}"#, false),
            (r#"{"a":1,}"#, false),
            (r#"{"a":[1,]}"#, false),
            (r#"{"a":[1}}"#, false),
            (r#"{"a":{"b":1]}"#, false),
            (r#"{"a":01}"#, false),
            (r#"{"a":1.}"#, false),
            (r#"{"a":-}"#, false),
            (r#"{"a":nul}"#, false),
            (r#"{a:1}"#, false),
            (r#"{"a":"b}"#, false),
            (r#"{"a":"b\"}"#, false),
            (r#"{"a":"b\"#, false),
            (&deep(most), true),
            (&deep(most + 1), false),
            (&format!("{{\"a\":{}", "[{\"a\":".repeat(10_000)), false),
        ] {
            assert_eq!(members(text.as_bytes(), |_, _| {}).is_some(), is_json, "{text:.80}");
        }
    }

    /// Any JSON, with objects of few keys.
    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::btree_map("[a-c\"\\\\\n]{0,3}", inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn check(text: &str) {
        // Read again, since its numbers are not the ones that were written, to the last bit.
        let Ok(serde_json::Value::Object(map)) = serde_json::from_str(text) else { return };
        let mut found = serde_json::Map::new();
        let end = members(text.as_bytes(), |key, value| {
            let text = |raw: &[u8]| decoded(std::str::from_utf8(raw).unwrap());
            let value = match value {
                Value::Text(raw) => text(raw).into(),
                Value::Null => serde_json::Value::Null,
                Value::Bare(raw) | Value::Object(raw) | Value::Array(raw) => {
                    serde_json::from_slice(raw).unwrap()
                }
            };
            found.insert(text(key), value);
        });
        assert_eq!((end, found), (Some(text.len()), map));
    }

    proptest! {
        #[test]
        fn members_are_those_that_a_parser_finds(value in any_json(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            check(&text.unwrap());
        }

        #[test]
        fn what_a_parser_takes_is_taken_and_what_is_torn_is_not(
            value in any_json(), at in any::<prop::sample::Index>(), byte in prop::sample::select(b"{}[]\",:\\0e.-n ".to_vec()),
        ) {
            let mut bytes = serde_json::to_vec(&value).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            prop_assume!(std::str::from_utf8(&bytes).is_ok());
            let parsed = serde_json::from_slice::<serde_json::Value>(&bytes);
            let whole = members(&bytes, |_, _| {}) == Some(bytes.len());
            match parsed {
                Ok(parsed) => prop_assert_eq!(whole, parsed.is_object()),
                // Only in what is escaped is this one milder, and numbers may have any size.
                Err(error) if !bytes.contains(&b'\\') && !error.to_string().contains("out of range") => {
                    prop_assert!(!whole, "{}", String::from_utf8_lossy(&bytes));
                }
                Err(_) => {}
            }
        }
    }
}
