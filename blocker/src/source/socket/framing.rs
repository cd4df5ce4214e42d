//! Cuts what comes over a connection into messages: lines, or frames that say their length (RFC 6587).
//!
//! Which of the two a syslog connection has is seen from its first bytes and holds for all of it, so that nothing inside
//! a message of one kind can begin a message of the other. Knows no descriptor and no clock.
#![forbid(unsafe_code)]

use crate::source::file::LINE_BYTES_MAX;

/// Digits of a frame's length at most: a message is never near a gigabyte.
const LENGTH_DIGITS_MAX: usize = 9;
/// A connection that waits keeps no larger buffer.
const IDLE_BYTES_MAX: usize = 4 * 1024;

/// How messages are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A line feed ends each.
    Newline,
    /// Each begins with its length and a space.
    Octets,
}

/// What is cut out of a connection's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut<'a> {
    /// A message, without what framed it.
    Message(&'a [u8]),
    /// A message longer than [`LINE_BYTES_MAX`], of which nothing was kept.
    TooLong,
}

/// The connection says something else than frames; where the next one begins cannot be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfFrame;

/// Bytes of a connection on their way to messages.
#[derive(Debug)]
pub struct Framer {
    /// `None` until the first bytes have shown it.
    framing: Option<Framing>,
    kept: Vec<u8>,
    /// Of `kept`, bytes known to hold no line feed.
    searched: usize,
    skipping: Skipping,
}

/// The rest of a message that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skipping {
    Nothing,
    /// Up to and with the next line feed.
    Line,
    /// So many bytes.
    Bytes(usize),
}

impl Framer {
    /// Of this framing, or whatever the first bytes show.
    pub fn new(framing: Option<Framing>) -> Self {
        Self { framing, kept: Vec::new(), searched: 0, skipping: Skipping::Nothing }
    }

    /// Takes further bytes and hands out what they complete.
    ///
    /// # Errors
    /// When a length was due and something else came: the connection is of no more use.
    pub fn take(&mut self, bytes: &[u8], sink: &mut dyn FnMut(Cut<'_>)) -> Result<(), OutOfFrame> {
        self.kept.extend_from_slice(bytes);
        if self.framing.is_none() {
            self.framing = framing_of(&self.kept);
        }
        let used = match self.framing {
            None => Ok(0),
            Some(Framing::Newline) => Ok(self.lines(sink)),
            Some(Framing::Octets) => self.frames(sink),
        }?;
        self.kept.drain(..used);
        if self.kept.is_empty() && self.kept.capacity() > IDLE_BYTES_MAX {
            self.kept = Vec::new();
        }
        Ok(())
    }

    /// Whether a message has begun that did not end; it is nobody's line, since half an address is a stranger's.
    pub fn is_unfinished(&self) -> bool {
        !self.kept.is_empty() || self.skipping != Skipping::Nothing
    }

    /// Hands out whole lines; says how many bytes were used.
    fn lines(&mut self, sink: &mut dyn FnMut(Cut<'_>)) -> usize {
        let mut start = 0;
        while let Some(at) =
            self.kept.get(start + self.searched..).and_then(|rest| memchr::memchr(b'\n', rest))
        {
            let end = start + self.searched + at;
            self.searched = 0;
            if self.skipping == Skipping::Line {
                self.skipping = Skipping::Nothing;
            } else {
                let line = self.kept.get(start..end).unwrap_or_default();
                sink(if line.len() > LINE_BYTES_MAX { Cut::TooLong } else { Cut::Message(line) });
            }
            start = end + 1;
        }
        self.searched = self.kept.len() - start;
        if self.skipping == Skipping::Line || self.searched > LINE_BYTES_MAX {
            if self.skipping == Skipping::Nothing {
                sink(Cut::TooLong);
                self.skipping = Skipping::Line;
            }
            self.searched = 0;
            return self.kept.len();
        }
        start
    }

    /// Hands out whole frames; says how many bytes were used.
    fn frames(&mut self, sink: &mut dyn FnMut(Cut<'_>)) -> Result<usize, OutOfFrame> {
        let mut start = 0;
        loop {
            let rest = self.kept.get(start..).unwrap_or_default();
            if let Skipping::Bytes(left) = self.skipping {
                let skipped = left.min(rest.len());
                start += skipped;
                if skipped < left {
                    self.skipping = Skipping::Bytes(left - skipped);
                    return Ok(start);
                }
                self.skipping = Skipping::Nothing;
                continue;
            }
            // Some senders end their frames with a line feed all the same.
            if rest.first() == Some(&b'\n') {
                start += 1;
                continue;
            }
            let Some((length, header)) = length_of(rest)? else { return Ok(start) };
            if length > LINE_BYTES_MAX {
                sink(Cut::TooLong);
                self.skipping = Skipping::Bytes(length);
                start += header;
            } else if let Some(message) = rest.get(header..header + length) {
                sink(Cut::Message(message));
                start += header + length;
            } else {
                return Ok(start);
            }
        }
    }
}

/// What the first bytes show; `None` when there are too few.
fn framing_of(bytes: &[u8]) -> Option<Framing> {
    match length_of(bytes) {
        Ok(Some(_)) => Some(Framing::Octets),
        Ok(None) => None,
        Err(OutOfFrame) => Some(Framing::Newline),
    }
}

/// The length at the start of a frame, and how many bytes it takes with its space; `None` when there are too few.
fn length_of(bytes: &[u8]) -> Result<Option<(usize, usize)>, OutOfFrame> {
    let digits = bytes.iter().take(LENGTH_DIGITS_MAX + 1).take_while(|byte| byte.is_ascii_digit()).count();
    let (number, after) = bytes.split_at(digits);
    if digits > LENGTH_DIGITS_MAX || number.first() == Some(&b'0') {
        return Err(OutOfFrame);
    }
    match after.first() {
        None => Ok(None),
        Some(b' ') if digits > 0 => {
            let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
            number.map(|length| Some((length, digits + 1))).ok_or(OutOfFrame)
        }
        Some(_) => Err(OutOfFrame),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOO_LONG: &str = "too long";

    /// Bytes, what is cut out of them, whether something is left over, and whether they are frames.
    type Row<'a> = (&'a str, &'a [&'a str], bool, Result<(), OutOfFrame>);

    fn cut(
        framing: Option<Framing>,
        bytes: &[u8],
        piece: usize,
    ) -> (Vec<String>, bool, Result<(), OutOfFrame>) {
        let mut framer = Framer::new(framing);
        let mut seen = Vec::new();
        let outcome = bytes.chunks(piece).try_for_each(|piece| {
            framer.take(piece, &mut |cut| match cut {
                Cut::Message(message) => seen.push(String::from_utf8_lossy(message).into_owned()),
                Cut::TooLong => seen.push(TOO_LONG.to_owned()),
            })
        });
        (seen, framer.is_unfinished(), outcome)
    }

    #[test]
    fn connections_are_cut_alike_wherever_their_bytes_are_split() {
        let long = "x".repeat(LINE_BYTES_MAX);
        let too_long = "x".repeat(LINE_BYTES_MAX + 1);
        let (kept, lost) = (format!("{long}\nb\n"), format!("{too_long}\nb\n"));
        let (kept_frame, lost_frame) =
            (format!("{} {long}1 b", long.len()), format!("{} {too_long}1 b", too_long.len()));
        let table: &[Row<'_>] = &[
            ("", &[], false, Ok(())),
            ("<1>a\n<2>b\n", &["<1>a", "<2>b"], false, Ok(())),
            ("<1>a\r\n\n<2>b", &["<1>a\r", ""], true, Ok(())),
            ("4 <1>a5 <2>bb", &["<1>a", "<2>bb"], false, Ok(())),
            ("4 <1>a\n5 <2>bb\n", &["<1>a", "<2>bb"], false, Ok(())),
            ("9 <1>a\n<2>b", &["<1>a\n<2>b"], false, Ok(())),
            ("9 <1>a\n<2>", &[], true, Ok(())),
            ("4 <1>a<2>b\n", &["<1>a"], true, Err(OutOfFrame)),
            ("4 <1>a0 ", &["<1>a"], true, Err(OutOfFrame)),
            ("12", &[], true, Ok(())),
            ("2026-11-24T02:47:40Z h p: m\n", &["2026-11-24T02:47:40Z h p: m"], false, Ok(())),
            ("01 a\n", &["01 a"], false, Ok(())),
            ("9999999999 a\n", &["9999999999 a"], false, Ok(())),
            ("<1>a\n4 <1>a", &["<1>a"], true, Ok(())),
            (&kept, &[&long, "b"], false, Ok(())),
            (&lost, &[TOO_LONG, "b"], false, Ok(())),
            (&kept_frame, &[&long, "b"], false, Ok(())),
            (&lost_frame, &[TOO_LONG, "b"], false, Ok(())),
            ("999999999 x", &[TOO_LONG], true, Ok(())),
        ];
        for (bytes, expected, unfinished, outcome) in table {
            for piece in [1, 2, 3, 7, 16 * 1024, 1 << 20] {
                let (seen, is_unfinished, said) = cut(None, bytes.as_bytes(), piece);
                let shown: String = bytes.chars().take(40).collect();
                assert_eq!(&seen, expected, "{shown:?} by {piece}");
                assert_eq!(said, *outcome, "{shown:?} by {piece}");
                if outcome.is_ok() {
                    assert_eq!(is_unfinished, *unfinished, "{shown:?} by {piece}");
                }
            }
        }
        let (lines, ..) = cut(Some(Framing::Newline), b"4 <1>a\n", 1);
        assert_eq!(lines, ["4 <1>a"], "an application's line may begin with a number");
    }

    #[test]
    fn what_has_no_end_is_not_kept() {
        for start in ["", "999999999 "] {
            let mut framer = Framer::new(None);
            let mut cuts = 0;
            framer.take(start.as_bytes(), &mut |_| cuts += 1).unwrap();
            for _ in 0..1_000 {
                framer.take(&[b'x'; 4096], &mut |_| cuts += 1).unwrap();
                assert!(framer.kept.len() <= LINE_BYTES_MAX + 4096, "{}", framer.kept.len());
            }
            assert_eq!(cuts, 1, "it is counted once");
        }
    }
}
