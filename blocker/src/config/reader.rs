//! Reads TOML tables key by key, so that every refusal names its place and its key.
//!
//! serde could fill structs, but its messages for a wrong type name neither the key's path nor the alternatives, and
//! it stops at the first. Here a wrong value is reported and reading goes on; the caller takes no configuration in
//! which anything was reported. Knows types and spellings, not what a key means.
#![forbid(unsafe_code)]

use std::{net::IpAddr, ops::Range, path::Path, path::PathBuf, time::Duration};

use toml::{
    Spanned,
    de::{DeInteger, DeTable, DeValue},
};

use super::diagnostic::{Document, Findings, suggest};
use crate::{
    filter::{Pattern, Place},
    net::Prefix,
    time::{self, BanTime},
};

pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// One table of a document, and where findings about it go.
pub(super) struct Reader<'a> {
    pub(super) doc: &'a Document,
    pub(super) findings: &'a mut Findings,
}

/// A table with its full key.
#[derive(Clone, Copy)]
pub(super) struct Table<'t> {
    pub(super) entries: &'t DeTable<'t>,
    pub(super) key: &'t str,
}

impl<'t> Table<'t> {
    /// The full key of an entry.
    pub(super) fn key_of(self, name: &str) -> String {
        if self.key.is_empty() { name.to_owned() } else { format!("{}.{name}", self.key) }
    }

    fn entry(self, name: &str) -> Option<&'t Value<'t>> {
        self.entries.iter().find(|(key, _)| key.get_ref().as_ref() == name).map(|(_, value)| value)
    }
}

impl Reader<'_> {
    pub(super) fn error(&mut self, span: Range<usize>, key: &str, message: String, hint: &str) {
        self.findings.error(self.doc, span, key, message, hint);
    }

    /// Reports every key that is not in `known`.
    pub(super) fn only(&mut self, table: Table<'_>, known: &[&str]) {
        for key in table.entries.keys() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let hint = suggest(name, known.iter().copied());
                self.error(key.span(), &table.key_of(name), "there is no such key".to_owned(), &hint);
            }
        }
    }

    fn wrong_type(&mut self, value: &Value<'_>, key: &str, wanted: &str) {
        let found = value.get_ref().type_str();
        self.error(value.span(), key, format!("this is a TOML {found}"), &format!("write {wanted}"));
    }

    /// A table under `name`.
    pub(super) fn table<'t>(
        &mut self,
        table: Table<'t>,
        name: &str,
    ) -> Option<(&'t DeTable<'t>, Range<usize>)> {
        let value = table.entry(name)?;
        match value.get_ref() {
            DeValue::Table(inner) => Some((inner, value.span())),
            _ => {
                let key = table.key_of(name);
                self.wrong_type(value, &key, &format!("a table: [{key}]"));
                None
            }
        }
    }

    pub(super) fn value<'t>(&self, table: Table<'t>, name: &str) -> Option<&'t Value<'t>> {
        table.entry(name)
    }

    pub(super) fn boolean(&mut self, table: Table<'_>, name: &str) -> Option<(bool, Place)> {
        let value = table.entry(name)?;
        match value.get_ref() {
            DeValue::Boolean(truth) => Some((*truth, self.doc.place(value.span().start))),
            _ => {
                self.wrong_type(value, &table.key_of(name), "true or false");
                None
            }
        }
    }

    pub(super) fn text<'t>(&mut self, table: Table<'t>, name: &str) -> Option<(&'t str, Range<usize>)> {
        let value = table.entry(name)?;
        match value.get_ref() {
            DeValue::String(text) => Some((text.as_ref(), value.span())),
            _ => {
                self.wrong_type(value, &table.key_of(name), "a string in quotes");
                None
            }
        }
    }

    /// A list of strings; each wrong element is reported and left out.
    pub(super) fn texts<'t>(&mut self, table: Table<'t>, name: &str) -> Option<Vec<(&'t str, Range<usize>)>> {
        let value = table.entry(name)?;
        let key = table.key_of(name);
        let DeValue::Array(list) = value.get_ref() else {
            self.wrong_type(value, &key, "a list of strings: [\"...\", \"...\"]");
            return None;
        };
        let mut texts = Vec::new();
        for element in list.iter() {
            match element.get_ref() {
                DeValue::String(text) => texts.push((text.as_ref(), element.span())),
                _ => self.wrong_type(element, &key, "a string in quotes"),
            }
        }
        Some(texts)
    }

    /// An integer within `bounds`.
    pub(super) fn number(
        &mut self,
        table: Table<'_>,
        name: &str,
        bounds: Range<u64>,
    ) -> Option<(u64, Place)> {
        let value = table.entry(name)?;
        let key = table.key_of(name);
        let wanted = format!("a number from {} to {}", bounds.start, bounds.end - 1);
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type(value, &key, &wanted);
            return None;
        };
        match integer_of(integer).and_then(|n| u64::try_from(n).ok()).filter(|n| bounds.contains(n)) {
            Some(number) => Some((number, self.doc.place(value.span().start))),
            None => {
                let hint = format!("write {wanted}");
                self.error(value.span(), &key, format!("{} is out of range", integer.as_str()), &hint);
                None
            }
        }
    }

    /// A list of integers within `bounds`; each wrong element is reported and left out.
    pub(super) fn numbers(&mut self, table: Table<'_>, name: &str, bounds: Range<u64>) -> Option<Vec<u64>> {
        let value = table.entry(name)?;
        let key = table.key_of(name);
        let DeValue::Array(list) = value.get_ref() else {
            self.wrong_type(value, &key, "a list of numbers: [1, 2, 4]");
            return None;
        };
        let wanted = format!("a number from {} to {}", bounds.start, bounds.end - 1);
        let mut numbers = Vec::new();
        for element in list.iter() {
            let number = match element.get_ref() {
                DeValue::Integer(integer) => integer_of(integer).and_then(|n| u64::try_from(n).ok()),
                _ => None,
            };
            match number.filter(|number| bounds.contains(number)) {
                Some(number) => numbers.push(number),
                None => {
                    let hint = format!("write {wanted}");
                    self.error(element.span(), &key, "this is no number that fits".to_owned(), &hint);
                }
            }
        }
        Some(numbers)
    }

    /// A span of time or an integer of seconds, as text for the parsers in [`time`].
    fn span_text(&mut self, table: Table<'_>, name: &str, wanted: &str) -> Option<(String, Range<usize>)> {
        let value = table.entry(name)?;
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(integer) => match integer_of(integer) {
                Some(seconds) => seconds.to_string(),
                None => integer.as_str().to_owned(),
            },
            _ => {
                self.wrong_type(value, &table.key_of(name), wanted);
                return None;
            }
        };
        Some((text, value.span()))
    }

    pub(super) fn find_time(&mut self, table: Table<'_>, name: &str) -> Option<(Duration, Place)> {
        let (text, span) = self.span_text(table, name, "a span such as \"10m\", or seconds")?;
        let read = time::parse_span(&text).and_then(|find_time| {
            if find_time.is_zero() { Err("a window of no length".to_owned()) } else { Ok(find_time) }
        });
        match read {
            Ok(find_time) => Some((find_time, self.doc.place(span.start))),
            Err(message) => {
                self.error(span, &table.key_of(name), message, "write a span such as \"10m\", or seconds");
                None
            }
        }
    }

    /// As [`Self::find_time`], and it may be of no length.
    pub(super) fn span(&mut self, table: Table<'_>, name: &str) -> Option<(Duration, Place)> {
        let wanted = "a span such as \"10m\", or seconds";
        let (text, span) = self.span_text(table, name, wanted)?;
        match time::parse_span(&text) {
            Ok(length) => Some((length, self.doc.place(span.start))),
            Err(message) => {
                self.error(span, &table.key_of(name), message, &format!("write {wanted}"));
                None
            }
        }
    }

    pub(super) fn ban_time(&mut self, table: Table<'_>, name: &str) -> Option<(BanTime, Place)> {
        let wanted = "a span such as \"1h\", seconds, or \"permanent\"";
        let (text, span) = self.span_text(table, name, wanted)?;
        match time::parse_ban_time(&text) {
            Ok(ban_time) => Some((ban_time, self.doc.place(span.start))),
            Err(message) => {
                self.error(span, &table.key_of(name), message, &format!("write {wanted}"));
                None
            }
        }
    }

    pub(super) fn prefixes(&mut self, table: Table<'_>, name: &str) -> Option<(Vec<Prefix>, Place)> {
        let at = self.doc.place(table.entry(name)?.span().start);
        let key = table.key_of(name);
        let mut prefixes = Vec::new();
        for (text, span) in self.texts(table, name)? {
            match text.parse::<Prefix>() {
                Ok(prefix) => prefixes.push(prefix),
                Err(message) => {
                    let hint = if text.parse::<IpAddr>().is_err() && !text.contains('/') {
                        "names are not resolved: write the addresses themselves"
                    } else {
                        ""
                    };
                    self.error(span, &key, message, hint);
                }
            }
        }
        Some((prefixes, at))
    }

    /// Patterns of a filter, each with its place; an empty one would match every line and is refused.
    pub(super) fn patterns(&mut self, table: Table<'_>, name: &str) -> Vec<Pattern> {
        let mut patterns = Vec::new();
        for (text, span) in self.texts(table, name).unwrap_or_default() {
            if text.trim().is_empty() {
                let key = table.key_of(name);
                self.error(span, &key, "an empty pattern matches every line".to_owned(), "take it out");
            } else {
                patterns.push(Pattern { text: text.to_owned(), at: self.doc.place(span.start) });
            }
        }
        patterns
    }

    /// Takes a path from the table, where it has a good one.
    pub(super) fn path_into(&mut self, table: Table<'_>, name: &str, path: &mut PathBuf) {
        if let Some((text, span)) = self.text(table, name)
            && let Some(absolute) = self.absolute(text, span, &table.key_of(name))
        {
            *path = absolute;
        }
    }

    /// A path of something that exists at run time: absolute, since a daemon's working directory means nothing.
    pub(super) fn absolute(&mut self, text: &str, span: Range<usize>, key: &str) -> Option<PathBuf> {
        let message = if text.is_empty() {
            "this path is empty".to_owned()
        } else if text.contains('\0') {
            "a path cannot hold a NUL byte".to_owned()
        } else if !Path::new(text).is_absolute() {
            format!("{text:?} is a relative path")
        } else {
            return Some(PathBuf::from(text));
        };
        self.error(span, key, message, "write the whole path, from the leading `/` on");
        None
    }
}

fn integer_of(integer: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}
