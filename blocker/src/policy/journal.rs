//! Which entries of the journal a jail reads, and whose word their text is.
//!
//! Anybody on a host writes to its journal and chooses the message and the name under which it is sent. What journald
//! adds itself it takes from the kernel: the unit and the user of the sender. Only matches that ask for one of those say
//! whose entries they are.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Terms of one source at most.
pub const JOURNAL_TERMS_MAX: usize = 256;
/// The longest name of a field, in bytes (systemd.journal-fields(7)).
const FIELD_BYTES_MAX: usize = 64;
/// Stands for every entry.
const EVERY: &str = "*";
/// Transports that no process of a user can write to.
const KERNEL_TRANSPORTS: [&str; 3] = ["audit", "driver", "kernel"];

/// Entries of the journal, selected as systemd does it (sd_journal_add_match(3)): any of the groups; in a group every
/// field; of a field any of its values.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JournalMatches {
    groups: Vec<JournalGroup>,
}

/// Fields that an entry must have, each with one of these values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JournalGroup {
    fields: BTreeMap<String, BTreeSet<String>>,
}

impl JournalMatches {
    /// Reads `FIELD=value FIELD=value + FIELD=value`, values in quotes where they hold spaces. Texts are alternatives,
    /// as groups with `+` between are. No text at all, or the word `*` for a group, selects every entry.
    ///
    /// # Errors
    /// What is wrong with them, and what to write.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, String> {
        let mut groups = Vec::new();
        let mut terms = 0;
        for text in texts {
            for words in words(text.as_ref())?.split(|word| word == "+") {
                let mut group = JournalGroup::default();
                if matches!(words, [word] if word == EVERY) {
                    groups.push(group);
                    continue;
                }
                for word in words {
                    let (field, value) = term(word)?;
                    group.fields.entry(field.to_owned()).or_default().insert(value.to_owned());
                    terms += 1;
                }
                if group.fields.is_empty() {
                    return Err(
                        "a group of matches is empty; write FIELD=value, and `+` only between".to_owned()
                    );
                }
                groups.push(group);
            }
        }
        if terms > JOURNAL_TERMS_MAX {
            return Err(format!("more than {JOURNAL_TERMS_MAX} matches"));
        }
        if groups.is_empty() {
            groups.push(JournalGroup::default());
        }
        groups.sort();
        groups.dedup();
        Ok(Self { groups })
    }

    /// The alternatives; at least one.
    pub fn groups(&self) -> &[JournalGroup] {
        &self.groups
    }
}

impl fmt::Display for JournalMatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<String> = self.groups.iter().map(ToString::to_string).collect();
        f.write_str(&groups.join(" + "))
    }
}

impl fmt::Display for JournalGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms: Vec<String> = self.terms().map(|(field, value)| shown(field, value)).collect();
        f.write_str(if terms.is_empty() { EVERY } else { "" })?;
        f.write_str(&terms.join(" "))
    }
}

impl JournalGroup {
    /// Every field with every value.
    pub fn terms(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().flat_map(|(field, values)| values.iter().map(|value| (&**field, &**value)))
    }

    /// Whether it asks for something that journald has from the kernel, so that the entries are some daemon's own. Of a
    /// group that does not, only entries of root are read.
    pub fn is_attributed(&self) -> bool {
        self.fields.iter().any(|(field, values)| match field.as_str() {
            "_SYSTEMD_UNIT" | "_SYSTEMD_CGROUP" | "_SYSTEMD_SLICE" | "_UID" => true,
            "_TRANSPORT" => values.iter().all(|value| KERNEL_TRANSPORTS.contains(&value.as_str())),
            _ => false,
        })
    }

    /// Whether an entry with these fields is meant.
    pub fn holds<'a>(&self, value_of: impl Fn(&str) -> Option<&'a [u8]>) -> bool {
        self.fields.iter().all(|(field, values)| {
            value_of(field).is_some_and(|value| values.iter().any(|wanted| wanted.as_bytes() == value))
        })
    }
}

/// One `FIELD=value`.
fn term(word: &str) -> Result<(&str, &str), String> {
    let hint = "write FIELD=value, as in _SYSTEMD_UNIT=ssh.service";
    let (field, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is no match; {hint}"))?;
    let is_name = (1..=FIELD_BYTES_MAX).contains(&field.len())
        && field.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        && !field.starts_with(|first: char| first.is_ascii_digit())
        // The journal's own addresses, which are no fields.
        && !field.starts_with("__");
    if is_name { Ok((field, value)) } else { Err(format!("{field:?} is no field of the journal; {hint}")) }
}

/// Splits at spaces, as a shell does: quotes hold together, a backslash takes the next character as it is.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                let next = characters.next().ok_or("a backslash stands at the end")?;
                word.get_or_insert_default().push(next);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

fn shown(field: &str, value: &str) -> String {
    let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\".contains(&b));
    if plain {
        return format!("{field}={value}");
    }
    format!("{field}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_mean_what_they_mean_to_systemd() {
        for (texts, shown, attributed) in [
            (
                &["_SYSTEMD_UNIT=ssh.service + _COMM=sshd"][..],
                "_COMM=sshd + _SYSTEMD_UNIT=ssh.service",
                &[false, true][..],
            ),
            (
                &["_SYSTEMD_UNIT=ssh.service", "_COMM=sshd"],
                "_COMM=sshd + _SYSTEMD_UNIT=ssh.service",
                &[false, true],
            ),
            (&["_UID=0  _COMM=\"ssh d\" _COMM=b"], "_COMM=b _COMM=\"ssh d\" _UID=0", &[true]),
            (
                &["SYSLOG_IDENTIFIER='a\\b' _EXE=/usr/sbin/a"],
                "SYSLOG_IDENTIFIER=\"a\\\\b\" _EXE=/usr/sbin/a",
                &[false],
            ),
            (&["_TRANSPORT=kernel"], "_TRANSPORT=kernel", &[true]),
            (&["_TRANSPORT=kernel _TRANSPORT=syslog"], "_TRANSPORT=kernel _TRANSPORT=syslog", &[false]),
            (&["_SYSTEMD_USER_UNIT=ssh.service"], "_SYSTEMD_USER_UNIT=ssh.service", &[false]),
            (&[], "*", &[false]),
            (&["* + _UID=0"], "* + _UID=0", &[false, true]),
        ] {
            let matches = JournalMatches::parse(texts).unwrap();
            assert_eq!(matches.to_string(), shown, "{texts:?}");
            let found: Vec<bool> = matches.groups().iter().map(JournalGroup::is_attributed).collect();
            assert_eq!(found, attributed, "{texts:?}");
            assert_eq!(JournalMatches::parse(&[matches.to_string()]), Ok(matches), "{texts:?}");
        }
    }

    #[test]
    fn what_is_no_match_is_refused() {
        let many = "A=1 ".repeat(JOURNAL_TERMS_MAX) + "B=1";
        for text in [
            "ssh.service",
            "=x",
            "lower=x",
            "A=1 +",
            "+ A=1",
            "A=1 + + B=2",
            "A='x",
            "A=x\\",
            "",
            "__CURSOR=x",
            &many,
        ] {
            assert!(JournalMatches::parse(&[text]).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_group_holds_when_each_field_has_one_of_its_values() {
        let matches = JournalMatches::parse(&["A=1 A=2 B=3"]).unwrap();
        for (fields, holds) in [
            (&[("A", "1"), ("B", "3")][..], true),
            (&[("A", "2"), ("B", "3"), ("C", "x")], true),
            (&[("A", "1")], false),
            (&[("A", "3"), ("B", "3")], false),
        ] {
            let value_of =
                |name: &str| fields.iter().find(|(field, _)| *field == name).map(|(_, v)| v.as_bytes());
            assert_eq!(matches.groups()[0].holds(value_of), holds, "{fields:?}");
        }
    }
}
