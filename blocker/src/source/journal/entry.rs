//! One entry, and the line that filters are given of it.
//!
//! The line is `IDENTIFIER[PID]: MESSAGE`, as a syslog daemon would have written it, without date and host. The name is
//! the sender's own word, so it is taken only where the entry is known to be of the daemon that was asked for; everybody
//! else's is the name of the process. No message has a line break: in the line it is escaped.
#![forbid(unsafe_code)]

use crate::{
    engine::SourceId,
    policy::{JournalGroup, JournalMatches},
    source::{file::LINE_BYTES_MAX, line::escape},
};

/// What a line is made of.
const FIELDS: [&str; 5] = ["MESSAGE", "SYSLOG_IDENTIFIER", "_COMM", "_PID", "_UID"];

/// A source's share of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) source: SourceId,
    pub(super) matches: JournalMatches,
}

/// The fields that are needed of each entry.
pub(super) fn fields(shares: &[Share]) -> Vec<String> {
    let groups = shares.iter().flat_map(|share| share.matches.groups());
    let matched = groups.flat_map(JournalGroup::terms).map(|(field, _)| field.to_owned());
    let mut fields: Vec<String> = FIELDS.iter().map(|field| (*field).to_owned()).chain(matched).collect();
    fields.sort_unstable();
    fields.dedup();
    fields
}

/// The fields of one entry; made once and filled again for the next.
#[derive(Debug)]
pub(super) struct Entry {
    fields: Vec<(String, Option<Vec<u8>>)>,
    /// When journald took it, in microseconds since the epoch.
    pub(super) realtime: u64,
    /// A field did not fit into a line.
    pub(super) too_long: bool,
}

impl Entry {
    pub(super) fn new(fields: &[String]) -> Self {
        let fields = fields.iter().map(|field| (field.clone(), None)).collect();
        Self { fields, realtime: 0, too_long: false }
    }

    pub(super) fn clear(&mut self) {
        self.fields.iter_mut().for_each(|(_, value)| *value = None);
        (self.realtime, self.too_long) = (0, false);
    }

    /// Takes the first value of a field, if it is one of those needed.
    pub(super) fn set(&mut self, field: &[u8], value: &[u8]) {
        let place = self.fields.iter_mut().find(|(name, _)| name.as_bytes() == field);
        if let Some((_, place @ None)) = place {
            *place = Some(value.get(..LINE_BYTES_MAX).unwrap_or(value).to_vec());
            self.too_long |= value.len() > LINE_BYTES_MAX;
        }
    }

    fn get(&self, field: &str) -> Option<&[u8]> {
        self.fields.iter().find(|(name, _)| name == field)?.1.as_deref()
    }

    /// Who sends it under what name, if it is for the jails with these matches and their filters may believe it.
    pub(super) fn sender(&self, matches: &JournalMatches) -> Option<Sender<'_>> {
        let holding = |attributed: bool| {
            let mut groups = matches.groups().iter().filter(move |group| group.is_attributed() == attributed);
            groups.any(|group| group.holds(|field| self.get(field)))
        };
        let process = self.get("_COMM");
        if holding(true) {
            return Some(Sender(self.get("SYSLOG_IDENTIFIER").or(process)));
        }
        // Short-lived senders are gone before journald has looked: then nobody knows what they were.
        let process = process.filter(|_| self.get("_UID") == Some(b"0") && holding(false))?;
        Some(Sender(Some(process)))
    }

    /// Appends its line, unless that is longer than a line may be.
    pub(super) fn write(&self, sender: &Sender<'_>, text: &mut Vec<u8>) -> bool {
        let start = text.len();
        if let Some(name) = sender.0 {
            escape(name, text);
            if let Some(pid) = self.get("_PID") {
                text.push(b'[');
                escape(pid, text);
                text.push(b']');
            }
            text.extend_from_slice(b": ");
        }
        escape(self.get("MESSAGE").unwrap_or_default(), text);
        // Never cut: half an address is the address of a stranger.
        if self.too_long || text.len() - start > LINE_BYTES_MAX {
            text.truncate(start);
            return false;
        }
        text.push(b'\n');
        true
    }
}

/// Under which name an entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sender<'a>(Option<&'a [u8]>);

#[cfg(test)]
mod tests {
    use super::*;

    fn line(matches: &str, fields: &[(&str, &[u8])]) -> Option<String> {
        let matches = JournalMatches::parse(&[matches]).unwrap();
        let share = Share { source: SourceId(0), matches };
        let mut entry = Entry::new(&super::fields(std::slice::from_ref(&share)));
        for (field, value) in fields {
            entry.set(field.as_bytes(), value);
        }
        let mut text = Vec::new();
        let written = entry.write(&entry.sender(&share.matches)?, &mut text);
        written.then(|| String::from_utf8_lossy(&text).into_owned())
    }

    #[test]
    fn the_name_is_believed_of_the_unit_that_was_asked_for_and_of_nobody_else() {
        let sent = |more: &[(&'static str, &'static [u8])]| {
            let mut fields: Vec<(&str, &[u8])> =
                vec![("MESSAGE", b"no"), ("SYSLOG_IDENTIFIER", b"sshd"), ("_PID", b"7")];
            fields.extend(more);
            fields
        };
        let unit = "_SYSTEMD_UNIT=ssh.service + _COMM=sshd";
        let named = "SYSLOG_IDENTIFIER=sshd";
        for (matches, fields, expected) in [
            (unit, sent(&[("_SYSTEMD_UNIT", b"ssh.service"), ("_UID", b"5")]), Some("sshd[7]: no\n")),
            (unit, sent(&[("_COMM", b"sshd"), ("_UID", b"0")]), Some("sshd[7]: no\n")),
            // A user's process may have any name.
            (unit, sent(&[("_COMM", b"sshd"), ("_UID", b"1000")]), None),
            (unit, sent(&[("_COMM", b"logger"), ("_UID", b"0")]), None),
            (unit, sent(&[("_SYSTEMD_UNIT", b"user@1000.service")]), None),
            // root's `logger -t sshd` passes on what it is told.
            (named, sent(&[("_COMM", b"logger"), ("_UID", b"0")]), Some("logger[7]: no\n")),
            (named, sent(&[("_COMM", b"logger"), ("_UID", b"1000")]), None),
            // Gone before journald looked.
            (named, sent(&[("_UID", b"0")]), None),
            ("_UID=33 SYSLOG_IDENTIFIER=sshd", sent(&[("_UID", b"33")]), Some("sshd[7]: no\n")),
            ("_UID=33 SYSLOG_IDENTIFIER=sshd", sent(&[("_UID", b"34")]), None),
        ] {
            assert_eq!(line(matches, &fields).as_deref(), expected, "{matches} {fields:?}");
        }
    }

    #[test]
    fn a_message_is_one_line_or_none() {
        let long = vec![b'x'; LINE_BYTES_MAX - "a: ".len()];
        let longer = vec![b'x'; LINE_BYTES_MAX];
        for (message, lines) in [
            (&b"one\ntwo\r\0three"[..], Some("a: one\\ntwo\\r\\0three\n".to_owned())),
            (b"", Some("a: \n".to_owned())),
            (b"\xff\xfe", Some("a: \u{fffd}\u{fffd}\n".to_owned())),
            (&long, Some(format!("a: {}\n", String::from_utf8_lossy(&long)))),
            (&longer, None),
        ] {
            assert_eq!(line("_UID=0", &[("_UID", b"0"), ("_COMM", b"a"), ("MESSAGE", message)]), lines);
        }
    }
}
