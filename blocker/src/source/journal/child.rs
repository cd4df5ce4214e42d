//! `journalctl` as a child process, for machines that have it and not libsystemd.
//!
//! It writes the export format (systemd.io/JOURNAL_EXPORT_FORMATS), which says how long a value is that holds a line
//! break, so that no value can pass for a field.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read as _},
    os::fd::{AsFd as _, BorrowedFd},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use memchr::memchr;

use super::{Trouble, entry::Entry, library::wait_for, position::JournalPosition};
use crate::{policy::JournalGroup, source::file::LINE_BYTES_MAX};

const PROGRAM: &str = "journalctl";
const READ_BYTES: usize = 64 * 1024;
/// So much of a field is kept: its name, and one byte more than a line may have.
const KEPT_BYTES: usize = LINE_BYTES_MAX + 128;

/// A running `journalctl`; killed and reaped when dropped.
pub(super) struct Journalctl {
    process: Child,
    output: ChildStdout,
    buffer: Vec<u8>,
    /// What of the buffer was not parsed yet.
    rest: std::ops::Range<usize>,
    export: Export,
}

impl Journalctl {
    pub(super) fn start(
        namespace: Option<&str>,
        groups: &[&JournalGroup],
        fields: &[String],
        position: &JournalPosition,
    ) -> Result<Self, Trouble> {
        let mut command = Command::new(PROGRAM);
        command.args(["--quiet", "--no-pager", "--follow", "--no-tail", "--output=export"]);
        command.arg(format!("--output-fields={}", fields.join(",")));
        command.args(namespace.map(|namespace| format!("--namespace={namespace}")));
        command.arg(match &position.cursor {
            Some(cursor) => format!("--after-cursor={cursor}"),
            None => {
                format!("--since=@{}.{:06}", position.realtime / 1_000_000, position.realtime % 1_000_000)
            }
        });
        for (index, group) in groups.iter().enumerate() {
            command.args((index > 0).then_some("+"));
            command.args(super::terms(group));
        }
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().map_err(|error| {
            Trouble::Absent(format!("neither libsystemd nor `{PROGRAM}` reads the journal: {error}"))
        })?;
        let Some(output) = process.stdout.take() else {
            return Err(Trouble::Absent(format!("`{PROGRAM}` has no output")));
        };
        let set = rustix::io::ioctl_fionbio(&output, true);
        let child =
            Self { process, output, buffer: vec![0; READ_BYTES], rest: 0..0, export: Export::default() };
        set.map_err(|error| Trouble::Absent(format!("read from `{PROGRAM}`: {error}")))?;
        Ok(child)
    }

    /// Reads the next entry, if there is a whole one.
    pub(super) fn next(&mut self, entry: &mut Entry) -> Result<bool, Trouble> {
        loop {
            let data = self.buffer.get(self.rest.clone()).unwrap_or_default();
            let (taken, whole) = self.export.take(data, entry).map_err(Trouble::Broken)?;
            self.rest.start += taken;
            if whole {
                return Ok(true);
            }
            match self.output.read(&mut self.buffer) {
                Ok(0) => return Err(Trouble::Absent(self.last_words())),
                Ok(bytes) => self.rest = 0..bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.rest = 0..0;
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Trouble::Absent(format!("read from `{PROGRAM}`: {error}"))),
            }
        }
    }

    /// The name of the last entry.
    pub(super) fn cursor(&self) -> Option<String> {
        (!self.export.cursor.is_empty()).then(|| self.export.cursor.clone())
    }

    /// Waits until there is more, `stop` is readable, or the time is over.
    pub(super) fn wait(&mut self, stop: BorrowedFd<'_>, time: Duration) {
        wait_for([self.output.as_fd(), stop], time);
    }

    fn last_words(&mut self) -> String {
        let mut said = Vec::new();
        if let Some(errors) = self.process.stderr.take() {
            // It has ended, or closed its output to end.
            let _unread = errors.take(1024).read_to_end(&mut said);
        }
        format!("`{PROGRAM}` ended: {}", String::from_utf8_lossy(&said).trim())
    }
}

impl Drop for Journalctl {
    fn drop(&mut self) {
        let _already_dead = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// Whether there is an entry for one of the groups.
pub(super) fn has_any(groups: &[&JournalGroup]) -> Result<bool, Trouble> {
    let mut command = Command::new(PROGRAM);
    command.args(["--quiet", "--no-pager", "--lines=1", "--output=cat", "--output-fields=_PID"]);
    for (index, group) in groups.iter().enumerate() {
        command.args((index > 0).then_some("+"));
        command.args(super::terms(group));
    }
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| Trouble::Absent(format!("start `{PROGRAM}`: {error}")))?;
    Ok(!output.stdout.is_empty())
}

/// Where in an entry the parser is.
#[derive(Debug, Default)]
enum Expect {
    /// `NAME=value`, `NAME` alone, or the empty line at the end.
    #[default]
    Line,
    /// Eight bytes: the length of the value.
    Length { name: Vec<u8> },
    /// So much more of the value.
    Value { name: Vec<u8>, left: u64 },
    /// The newline behind such a value.
    End,
}

/// Takes entries apart, in whatever pieces they come; keeps at most one field.
#[derive(Debug, Default)]
struct Export {
    expect: Expect,
    /// What of the present field has come, up to [`KEPT_BYTES`].
    kept: Vec<u8>,
    begun: bool,
    cursor: String,
}

impl Export {
    /// Returns how much was taken, and whether an entry is whole now.
    fn take(&mut self, data: &[u8], entry: &mut Entry) -> Result<(usize, bool), String> {
        let mut at = 0;
        while let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) {
            match &mut self.expect {
                Expect::Line => {
                    let newline = memchr(b'\n', rest);
                    keep(&mut self.kept, &rest[..newline.unwrap_or(rest.len())]);
                    at += newline.map_or(rest.len(), |newline| newline + 1);
                    if newline.is_none() {
                        break;
                    }
                    let line = std::mem::take(&mut self.kept);
                    if line.is_empty() {
                        if std::mem::take(&mut self.begun) {
                            return Ok((at, true));
                        }
                    } else if let Some(equals) = memchr(b'=', &line) {
                        self.field(&line[..equals], &line[equals + 1..], entry);
                    } else {
                        self.expect = Expect::Length { name: line };
                    }
                }
                Expect::Length { name } => {
                    let wanted = (8 - self.kept.len()).min(rest.len());
                    keep(&mut self.kept, &rest[..wanted]);
                    at += wanted;
                    if let Ok(bytes) = <[u8; 8]>::try_from(self.kept.as_slice()) {
                        self.kept.clear();
                        let (name, left) = (std::mem::take(name), u64::from_le_bytes(bytes));
                        self.expect = Expect::Value { name, left };
                        if left == 0 {
                            self.value(entry);
                        }
                    }
                }
                Expect::Value { left, .. } => {
                    let wanted = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    keep(&mut self.kept, &rest[..wanted]);
                    *left -= wanted as u64;
                    at += wanted;
                    if *left == 0 {
                        self.value(entry);
                    }
                }
                Expect::End => {
                    if rest.first() != Some(&b'\n') {
                        return Err(format!("`{PROGRAM}` does not write its export format"));
                    }
                    at += 1;
                    self.expect = Expect::Line;
                }
            }
        }
        Ok((at, false))
    }

    fn value(&mut self, entry: &mut Entry) {
        if let Expect::Value { name, .. } = std::mem::replace(&mut self.expect, Expect::End) {
            let value = std::mem::take(&mut self.kept);
            self.field(&name, &value, entry);
        }
    }

    fn field(&mut self, name: &[u8], value: &[u8], entry: &mut Entry) {
        if !std::mem::replace(&mut self.begun, true) {
            entry.clear();
        }
        let text = || std::str::from_utf8(value).unwrap_or_default();
        match name {
            b"__CURSOR" => self.cursor = text().to_owned(),
            b"__REALTIME_TIMESTAMP" => entry.realtime = text().parse().unwrap_or(0),
            _ => entry.set(name, value),
        }
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = KEPT_BYTES - kept.len().min(KEPT_BYTES);
    kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::SourceId,
        policy::JournalMatches,
        source::journal::entry::{Share, fields},
    };

    fn binary(name: &str, value: &[u8]) -> Vec<u8> {
        let mut bytes = format!("{name}\n").into_bytes();
        bytes.extend((value.len() as u64).to_le_bytes());
        bytes.extend(value);
        bytes.push(b'\n');
        bytes
    }

    #[test]
    fn entries_come_out_whole_in_whatever_pieces_they_come_in() {
        let matches = JournalMatches::parse(&["_UID=0"]).unwrap();
        let share = Share { source: SourceId(0), matches };
        let mut text =
            b"__CURSOR=a\n__REALTIME_TIMESTAMP=5\n_UID=0\n_COMM=x\nMESSAGE=one=1\n\n__CURSOR=b\n_UID=0\n"
                .to_vec();
        text.extend(binary("MESSAGE", b"two\n\n_UID=1\nMESSAGE=x"));
        text.extend(b"MESSAGE=second\n\n__CURSOR=c\n_UID=1\n");
        text.extend(binary("MESSAGE", b""));
        text.extend(b"\n__CURSOR=d\n_UID=0\n");
        text.extend(binary("MESSAGE", &vec![b'x'; KEPT_BYTES + 5]));
        text.extend(b"\n__CURSOR=e\n_UID=0\nMESSAGE=last\n\n");
        for piece in [1, 2, 7, text.len()] {
            let mut entry = Entry::new(&fields(std::slice::from_ref(&share)));
            let (mut export, mut seen) = (Export::default(), Vec::new());
            for mut data in text.chunks(piece) {
                while !data.is_empty() {
                    let (taken, whole) = export.take(data, &mut entry).unwrap();
                    data = &data[taken..];
                    if whole {
                        let mut line = Vec::new();
                        let written =
                            entry.sender(&share.matches).map(|sender| entry.write(&sender, &mut line));
                        seen.push((export.cursor.clone(), written, String::from_utf8(line).unwrap()));
                    }
                }
            }
            let expected = [
                ("a", Some(true), "x: one=1\n"),
                ("b", Some(true), "two\\n\\n_UID=1\\nMESSAGE=x\n"),
                ("c", None, ""),
                ("d", Some(false), ""),
                ("e", Some(true), "last\n"),
            ];
            let expected =
                expected.map(|(cursor, written, line)| (cursor.to_owned(), written, line.to_owned()));
            assert_eq!(seen, expected, "in pieces of {piece}");
        }
        let mut entry = Entry::new(&[]);
        let broken = Export::default().take(b"MESSAGE\n\x01\0\0\0\0\0\0\0ab", &mut entry);
        assert!(broken.is_err());
    }
}
