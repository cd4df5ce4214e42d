//! One open inode, read to its end as it grows.
//!
//! The inode is the unit, not the path: a tail keeps reading a file that was renamed or deleted and knows neither its
//! name nor who wants its lines. It keeps no text: an unfinished line is read again from its start when more arrives.
//! That the file was emptied or rewritten is seen by comparing what lies before the position with what was read there.
#![forbid(unsafe_code)]

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use memchr::{memchr, memrchr};
use rustix::fs::SeekFrom;

use super::position::{BEFORE_BYTES, HEAD_BYTES, Mark, Position, born, read_full};
use crate::engine::Reading;

/// The longest line handed out, without its newline; a longer one is skipped and counted. Syslog's own limits are far
/// lower (RFC 5424 section 6.1 asks for 2 KiB).
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// How much before the position is shown again after a restart, in bytes.
const CONTEXT_BYTES: u64 = 64 * 1024;
/// How much is read at once.
pub(crate) const READ_BYTES: usize = 256 * 1024;
/// The size of the buffer all tails share: one read, what lies before it, and the newline added to a last line.
pub(crate) const BUFFER_BYTES: usize = BEFORE_BYTES + READ_BYTES + 1;

/// Which file, whatever its name.
pub(crate) type Identity = (u64, u64);

/// What happened to a file, counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// Bytes handed out.
    pub bytes: u64,
    /// Times the file was emptied or rewritten under the position.
    pub truncated: u64,
    /// Lines over [`LINE_BYTES_MAX`], and fragments of lines whose beginning a truncation took.
    pub skipped: u64,
    /// Lines that hold NUL or what is no UTF-8; they are handed out all the same.
    pub odd_bytes: u64,
}

impl Counters {
    /// Adds another's counts.
    pub(crate) fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.truncated += other.truncated;
        self.skipped += other.skipped;
        self.odd_bytes += other.odd_bytes;
    }
}

/// Receives a run of whole lines; nothing where a line was left out.
pub(crate) type Deliver<'a> = &'a mut dyn FnMut(Reading, &[u8]);

/// An open file and how far it was read.
#[derive(Debug)]
pub(crate) struct Tail {
    file: File,
    pub(crate) id: Identity,
    /// When it was made, as far as that is known.
    born: u64,
    /// The start of the first line not handed out.
    offset: u64,
    /// Where the file ended at the last look, at least `offset`.
    seen: u64,
    /// What lies before `offset`, up to [`BEFORE_BYTES`].
    before: Vec<u8>,
    head: Mark,
    pub(crate) skipping: bool,
    /// What lies before may be the beginning of a container's line; nobody has looked yet.
    pub(crate) unjoined: bool,
    /// The longest line handed out.
    pub(crate) line_bytes_max: usize,
    /// Zero bytes at the start are the hole that a writer without O_APPEND leaves after a truncation.
    after_hole: bool,
    /// What lies before the position is to be shown first.
    context: bool,
    /// Lines that start before this were written while nobody read.
    catch_up_to: u64,
    /// The inotify watch, if one could be had.
    pub(crate) wd: Option<i32>,
    /// There may be something to read.
    pub(crate) dirty: bool,
    /// The file whose name this one took: it is read to its end first.
    pub(crate) after: Option<Identity>,
    /// When a file that lost its name stops being watched; `None` while it has it.
    pub(crate) retire_at: Option<Instant>,
    pub(crate) counters: Counters,
}

impl Tail {
    fn new(file: File, offset: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let mut tail = Self {
            id: (metadata.dev(), metadata.ino()),
            born: born(&metadata),
            file,
            offset,
            seen: offset,
            before: Vec::new(),
            head: Mark::default(),
            skipping: false,
            unjoined: offset > 0,
            line_bytes_max: LINE_BYTES_MAX,
            after_hole: false,
            context: false,
            catch_up_to: 0,
            wd: None,
            dirty: true,
            after: None,
            retire_at: None,
            counters: Counters::default(),
        };
        if offset > 0 {
            let length = offset.min(BEFORE_BYTES as u64);
            tail.before.resize(usize::try_from(length).unwrap_or(0), 0);
            let got = read_full(&tail.file, &mut tail.before, offset - length)?;
            tail.before.truncate(got);
            tail.grow_head()?;
        }
        Ok(tail)
    }

    /// Reads a file from its first byte.
    pub(crate) fn from_start(file: File, reading: Reading) -> io::Result<Self> {
        let mut tail = Self::new(file, 0)?;
        if reading == Reading::CatchingUp {
            tail.catch_up_to = tail.file.metadata()?.len();
        }
        Ok(tail)
    }

    /// Reads what is added after byte `size`, from the start of the line that is unfinished there: its end alone would
    /// be a line nobody wrote.
    pub(crate) fn from_end(file: File, size: u64) -> io::Result<Self> {
        let length = size.min(LINE_BYTES_MAX as u64 + 1);
        let mut last = vec![0; usize::try_from(length).unwrap_or(0)];
        let got = read_full(&file, &mut last, size - length)?;
        last.truncate(got);
        match memrchr(b'\n', &last) {
            Some(newline) => Self::new(file, size - length + newline as u64 + 1),
            None if length == size => Self::new(file, 0),
            None => {
                let mut tail = Self::new(file, size)?;
                tail.skipping = true;
                Ok(tail)
            }
        }
    }

    /// Reads from the line that starts at `offset`; what is there now was written while nobody read.
    pub(crate) fn from_line(file: File, offset: u64) -> io::Result<Self> {
        let mut tail = Self::new(file, offset)?;
        tail.catch_up_to = tail.file.metadata()?.len();
        tail.context = offset > 0;
        Ok(tail)
    }

    /// Goes on where a position says, which must fit.
    pub(crate) fn resume(file: File, position: &Position) -> io::Result<Self> {
        let mut tail = Self::from_line(file, position.offset)?;
        tail.skipping = position.skipping;
        Ok(tail)
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// What lies before the first line that was not handed out, up to so many bytes, and whether that is everything.
    pub(crate) fn before(&self, bytes_max: u64) -> io::Result<(Vec<u8>, bool)> {
        let length = self.offset.min(bytes_max);
        let mut before = vec![0; usize::try_from(length).unwrap_or(0)];
        let got = read_full(&self.file, &mut before, self.offset - length)?;
        before.truncate(got);
        Ok((before, length == self.offset))
    }

    /// How far it was handed out.
    pub(crate) fn position(&self, path: String, departed: bool) -> Position {
        Position {
            v: 1,
            path,
            dev: self.id.0,
            inode: self.id.1,
            born: self.born,
            offset: self.offset,
            skipping: self.skipping,
            departed,
            head: self.head,
            before: Mark::of(&self.before),
        }
    }

    /// Reads once, at most [`READ_BYTES`], and hands out the whole lines. Clears `dirty` at the end of the file.
    ///
    /// Returns whether the file grew.
    pub(crate) fn read(&mut self, buffer: &mut [u8], deliver: Deliver<'_>) -> io::Result<bool> {
        let known = self.before.len();
        let space = buffer.len().min(known + READ_BYTES);
        let buffer = &mut buffer[..space];
        let got = read_full(&self.file, buffer, self.offset - known as u64)?;
        let unfinished = usize::try_from(self.seen - self.offset).unwrap_or(usize::MAX);
        if got < known.saturating_add(unfinished)
            || buffer[..known] != self.before[..]
            || !self.head.holds(&self.file, 0)?
        {
            self.restart();
            return Ok(true);
        }
        if std::mem::take(&mut self.context) {
            self.show_context(deliver)?;
        }
        self.dirty = got == space;
        let data = &buffer[known..got];
        let grew = data.len() > unfinished;
        self.seen = self.offset + data.len() as u64;
        let consumed = self.hand_out(data, deliver);
        if consumed > 0 {
            let end = known + consumed;
            self.before.clear();
            self.before.extend_from_slice(&buffer[end.saturating_sub(BEFORE_BYTES)..end]);
            self.offset += consumed as u64;
            self.grow_head()?;
        }
        Ok(grew)
    }

    /// Shows the whole lines before the position, so that a line behind it is understood that goes on with what they began.
    fn show_context(&self, deliver: Deliver<'_>) -> io::Result<()> {
        let length = self.offset.min(CONTEXT_BYTES);
        let mut context = vec![0; usize::try_from(length).unwrap_or(0)];
        let got = read_full(&self.file, &mut context, self.offset - length)?;
        let lines = &context[..got];
        let start =
            if length < self.offset { memchr(b'\n', lines).map_or(got, |newline| newline + 1) } else { 0 };
        let end = memrchr(b'\n', lines).map_or(0, |newline| newline + 1);
        if start < end {
            deliver(Reading::Context, &lines[start..end]);
        }
        Ok(())
    }

    /// Hands out the last line of a file that is watched no longer, with the newline it never got.
    pub(crate) fn finish(&mut self, buffer: &mut [u8], deliver: Deliver<'_>) -> io::Result<()> {
        let rest = usize::try_from(self.seen - self.offset).unwrap_or(usize::MAX);
        let Some(line) = buffer.get_mut(..=rest).filter(|_| rest > 0 && rest <= LINE_BYTES_MAX) else {
            return Ok(());
        };
        if read_full(&self.file, &mut line[..rest], self.offset)? < rest {
            return Ok(());
        }
        line[rest] = b'\n';
        self.emit(self.offset, line, deliver);
        self.offset = self.seen;
        self.before.clear();
        self.before.extend_from_slice(&line[rest.saturating_sub(BEFORE_BYTES)..rest]);
        self.grow_head()
    }

    /// The file was emptied or rewritten: what it holds now is new.
    fn restart(&mut self) {
        self.counters.truncated += 1;
        // Whoever writes lines in pieces goes on with the second half of the line whose first half is gone.
        if self.seen > self.offset && !self.skipping {
            self.skipping = true;
            self.counters.skipped += 1;
        }
        self.offset = rustix::fs::seek(&self.file, SeekFrom::Data(0)).unwrap_or(0);
        self.seen = self.offset;
        self.before.clear();
        self.head = Mark::default();
        self.after_hole = true;
        self.catch_up_to = 0;
        self.dirty = true;
    }

    /// Hands out the whole lines in `data`, which starts at `offset`; returns how many bytes are done with.
    fn hand_out(&mut self, data: &[u8], deliver: Deliver<'_>) -> usize {
        let mut at = 0;
        if self.after_hole {
            at = data.iter().position(|byte| *byte != 0).unwrap_or(data.len());
            self.after_hole = at == data.len();
        }
        let mut run = at;
        while at < data.len() {
            let rest = &data[at..];
            if self.skipping {
                at += memchr(b'\n', rest).map_or(rest.len(), |newline| {
                    self.skipping = false;
                    newline + 1
                });
                run = at;
                continue;
            }
            let window = &rest[..rest.len().min(self.line_bytes_max + 1)];
            match memrchr(b'\n', window) {
                Some(newline) => at += newline + 1,
                None if window.len() > self.line_bytes_max => {
                    self.emit(self.offset + run as u64, &data[run..at], deliver);
                    deliver(Reading::Live, &[]);
                    self.counters.skipped += 1;
                    self.skipping = true;
                    run = at;
                }
                None => break,
            }
        }
        self.emit(self.offset + run as u64, &data[run..at], deliver);
        at
    }

    /// Hands out a run of lines that starts at a place in the file, split where catching up ends.
    fn emit(&mut self, start: u64, lines: &[u8], deliver: Deliver<'_>) {
        if lines.is_empty() {
            return;
        }
        self.counters.bytes += lines.len() as u64;
        let odd = |bytes: &[u8]| memchr(0, bytes).is_some() || std::str::from_utf8(bytes).is_err();
        if odd(lines) {
            let each = lines.split_inclusive(|byte| *byte == b'\n');
            self.counters.odd_bytes += each.filter(|line| odd(line)).count() as u64;
        }
        let old = usize::try_from(self.catch_up_to.saturating_sub(start)).unwrap_or(usize::MAX);
        // The line that holds the last byte of the old part belongs to it.
        let split = match lines.get(old.saturating_sub(1)..) {
            _ if old == 0 => 0,
            Some(rest) => memchr(b'\n', rest).map_or(lines.len(), |newline| old + newline),
            None => lines.len(),
        };
        let (caught_up, live) = lines.split_at(split.min(lines.len()));
        if !caught_up.is_empty() {
            deliver(Reading::CatchingUp, caught_up);
        }
        if !live.is_empty() {
            deliver(Reading::Live, live);
        }
    }

    /// Makes the mark of the beginning cover what was handed out, up to [`HEAD_BYTES`].
    fn grow_head(&mut self) -> io::Result<()> {
        let covered = self.offset.min(HEAD_BYTES as u64);
        if u64::from(self.head.bytes) < covered {
            let mut head = [0; HEAD_BYTES];
            let head = &mut head[..usize::try_from(covered).unwrap_or(0)];
            let got = read_full(&self.file, head, 0)?;
            self.head = Mark::of(&head[..got]);
        }
        Ok(())
    }

    /// The file lost its name: it is watched this much longer.
    pub(crate) fn retire(&mut self, now: Instant, drain_time: Duration) {
        if self.retire_at.is_none() {
            self.retire_at = Some(now + drain_time);
            self.dirty = true;
        }
    }
}
