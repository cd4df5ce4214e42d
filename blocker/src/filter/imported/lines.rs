//! The last lines of a log, for patterns that span several (`maxlines`).
//!
//! A pattern sees them joined. Lines that took part in a match are dropped, those it passed over stay for the next.
#![forbid(unsafe_code)]

use std::{collections::VecDeque, ops::Range};

/// Lines that may be joined at most, whatever `maxlines` asks for.
pub const JOINED_LINES_MAX: usize = 128;
/// Bytes of joined lines at most where nobody says; the oldest lines give way.
pub const JOINED_BYTES_MAX: usize = 256 << 10;

/// The lines that a pattern sees.
#[derive(Debug)]
pub(super) struct Lines {
    lines: VecDeque<String>,
    max: usize,
    bytes_max: usize,
    bytes: usize,
    /// Lines that gave way to the bound on bytes.
    pub(super) gave_way: u64,
}

impl Lines {
    pub(super) fn new(max: usize) -> Self {
        let max = max.clamp(1, JOINED_LINES_MAX);
        Self { lines: VecDeque::new(), max, bytes_max: JOINED_BYTES_MAX, bytes: 0, gave_way: 0 }
    }

    /// Changes the bound on bytes; lines over it give way as the next one comes.
    pub(super) fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// Adds a line, without its line break.
    pub(super) fn push(&mut self, line: String) {
        self.bytes += line.len() + 1;
        self.lines.push_back(line);
        while self.lines.len() > self.max || (self.bytes > self.bytes_max && self.lines.len() > 1) {
            self.gave_way += u64::from(self.lines.len() <= self.max);
            self.bytes -= self.lines.pop_front().map_or(0, |gone| gone.len() + 1);
        }
    }

    /// All of them, each with a line break behind it.
    pub(super) fn join_into(&self, text: &mut String) {
        text.clear();
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
    }

    /// The lines that a match at `span` of the joined `text` holds, but for those `skipped`; and the ones it leaves.
    pub(super) fn part(&self, text: &str, span: &Range<usize>, skipped: &str) -> (Vec<String>, Vec<String>) {
        let start = text[..span.start + usize::from(text[span.start..].starts_with('\n'))]
            .rfind('\n')
            .map_or(0, |at| at + 1);
        let from = text.floor_char_boundary(span.end.saturating_sub(1));
        let end = text[from..].find('\n').map_or(text.len(), |at| from + at + 1);
        let count = |to: usize| text[..to].matches('\n').count().min(self.lines.len());
        let (first, last) = (count(start), count(end).max(count(start)));
        let all = |range: Range<usize>| self.lines.range(range).cloned();
        let mut matched: Vec<String> = all(first..last).collect();
        let mut left: Vec<String> = all(0..first).collect();
        let mut at = 0;
        for line in skipped.lines() {
            if let Some(found) = matched.iter().skip(at).position(|own| own == line) {
                left.push(matched.remove(at + found));
                at += found;
            }
        }
        left.extend(all(last..self.lines.len()));
        (matched, left)
    }

    /// Keeps only these.
    pub(super) fn keep(&mut self, lines: Vec<String>) {
        self.bytes = lines.iter().map(|line| line.len() + 1).sum();
        self.lines = lines.into();
    }
}
