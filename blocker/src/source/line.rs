//! What a message that is no syslog becomes: one line, whatever is in it.
#![forbid(unsafe_code)]

use memchr::memchr3;

use super::file::LINE_BYTES_MAX;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A line.
    Line,
    /// A line, though the message keeps to no standard.
    Odd,
    /// There was nothing in it.
    Empty,
    /// Nothing: the line would be too long, and is never cut, since half an address is the address of a stranger.
    TooLong,
}

/// Appends the message as a line with its newline.
pub fn write(message: &[u8], text: &mut Vec<u8>) -> Outcome {
    let message = trim_end(message);
    if message.is_empty() {
        return Outcome::Empty;
    }
    let start = text.len();
    if message.first() == Some(&b'{') {
        // Between the parts of a JSON object a line break is a space, and in them there is none.
        replace(message, |_| b" ", text);
    } else {
        escape(message, text);
    }
    end(start, Outcome::Line, text)
}

/// Ends the line that was begun at `start`, or takes it back when it is too long.
pub(super) fn end(start: usize, outcome: Outcome, text: &mut Vec<u8>) -> Outcome {
    if text.len() - start > LINE_BYTES_MAX {
        text.truncate(start);
        return Outcome::TooLong;
    }
    text.push(b'\n');
    outcome
}

/// Without line breaks and NULs at its end.
pub(super) fn trim_end(message: &[u8]) -> &[u8] {
    let kept = message.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r' | 0)).map_or(0, |last| last + 1);
    message.get(..kept).unwrap_or_default()
}

/// Line breaks and NULs as people write them; everything else as it is. A backslash is no part of a host or a daemon's
/// name, so what stands behind a line break can never pass for a line of its own.
pub(super) fn escape(bytes: &[u8], text: &mut Vec<u8>) {
    let name = |byte| match byte {
        b'\n' => &b"\\n"[..],
        b'\r' => b"\\r",
        _ => b"\\0",
    };
    replace(bytes, name, text);
}

fn replace(mut bytes: &[u8], by: impl Fn(u8) -> &'static [u8], text: &mut Vec<u8>) {
    while let Some(at) = memchr3(b'\n', b'\r', 0, bytes) {
        let (before, rest) = bytes.split_at(at);
        text.extend_from_slice(before);
        if let Some((byte, after)) = rest.split_first() {
            text.extend_from_slice(by(*byte));
            bytes = after;
        }
    }
    text.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        for (message, line, outcome) in [
            (&b"one"[..], &b"one\n"[..], Outcome::Line),
            (b"one\n", b"one\n", Outcome::Line),
            (b"one\r\n\0", b"one\n", Outcome::Line),
            (b"one\ntwo\r\nthree\0four\n", b"one\\ntwo\\r\\nthree\\0four\n", Outcome::Line),
            (b"{\"msg\":\n \"x\"\r\n}\n", b"{\"msg\":  \"x\"  }\n", Outcome::Line),
            (b"\xff\t\x1b[0m", b"\xff\t\x1b[0m\n", Outcome::Line),
            (b"", b"", Outcome::Empty),
            (b"\r\n\n", b"", Outcome::Empty),
        ] {
            let mut text = Vec::new();
            assert_eq!((write(message, &mut text), &text[..]), (outcome, line), "{message:?}");
        }
        let mut text = b"before\n".to_vec();
        assert_eq!(write(&vec![b'x'; LINE_BYTES_MAX + 1], &mut text), Outcome::TooLong);
        let breaks = [vec![b'\n'; LINE_BYTES_MAX - 1], vec![b'x']].concat();
        assert_eq!(write(&breaks, &mut text), Outcome::TooLong, "its line breaks take two bytes each");
        assert_eq!(text, b"before\n");
    }
}
