//! The syntax of fail2ban's files, which is that of Python's `configparser` with inline comments.
//!
//! Sections, `key = value` or `key : value`, values that go on in indented lines, comment lines with `#` or `;`, and
//! inline comments that begin with a space and `;` (fail2ban sets these up). Every line of a value keeps its
//! place. What values mean, and which file comes before which, is not known here; nothing here can fail, a line
//! that fits nowhere is a finding and is skipped.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::{
    config::diagnostic::{Document, Findings},
    filter::Place,
};

/// One line of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ValueLine {
    pub(super) text: String,
    pub(super) at: Place,
}

/// A value: its lines, the first one perhaps empty.
pub(super) type RawValue = Vec<ValueLine>;

/// The options of one section by name; names are lower case, as `configparser` makes them.
pub(super) type Section = BTreeMap<String, RawValue>;

/// A file, its sections in order of first appearance.
#[derive(Clone, Debug, Default)]
pub(super) struct Ini {
    pub(super) sections: Vec<(String, Place, Section)>,
}

impl Ini {
    fn section_mut(&mut self, name: &str, at: Place) -> &mut Section {
        let index = match self.sections.iter().position(|(known, ..)| known == name) {
            Some(index) => index,
            None => {
                self.sections.push((name.to_owned(), at, Section::new()));
                self.sections.len() - 1
            }
        };
        &mut self.sections[index].2
    }

    #[cfg(test)]
    fn get(&self, section: &str, option: &str) -> Option<Vec<&str>> {
        let (.., options) = self.sections.iter().find(|(name, ..)| name == section)?;
        Some(options.get(option)?.iter().map(|line| line.text.as_str()).collect())
    }
}

/// Parses a whole document.
pub(super) fn parse(doc: &Document, findings: &mut Findings) -> Ini {
    let mut ini = Ini::default();
    let mut section: Option<(String, Place)> = None;
    // The option that indented lines continue, and how far it was indented itself.
    let mut open: Option<(String, usize)> = None;
    let mut offset = 0;
    for line in doc.text.split_inclusive('\n') {
        let start = offset;
        offset += line.len();
        let body = line.trim_end();
        let text = body.trim_start();
        let indent = body.len() - text.len();
        let at = start + indent;
        if text.starts_with(['#', ';']) {
            continue;
        }
        if text.is_empty() {
            // An empty line neither ends a value nor adds to it in any way that a list of lines would show.
            continue;
        }
        let text = without_inline_comment(text);
        let span = at..at + text.len();
        if let Some((option, depth)) = &open
            && indent > *depth
            && let Some((name, place)) = &section
        {
            let line = ValueLine { text: text.to_owned(), at: doc.place(at) };
            if let Some(value) = ini.section_mut(name, place.clone()).get_mut(option) {
                value.push(line);
            }
            continue;
        }
        open = None;
        if let Some(header) = text.strip_prefix('[')
            && let Some(end) = header.rfind(']')
        {
            let (name, place) = (header[..end].to_owned(), doc.place(at));
            ini.section_mut(&name, place.clone());
            section = Some((name, place));
            continue;
        }
        let Some((name, place)) = &section else {
            let hint = "put a section header such as [DEFAULT] or [Definition] before it";
            findings.warn(
                doc,
                span,
                "",
                "this line stands before any section and is not read".to_owned(),
                hint,
            );
            continue;
        };
        let Some(split) = text.find(['=', ':']) else {
            let hint = "write `option = value`; indent a line that goes on with the value above it";
            findings.warn(doc, span, name, "this line is no option and is not read".to_owned(), hint);
            continue;
        };
        let option = text[..split].trim_end().to_lowercase();
        let value = text[split + 1..].trim();
        let value_at = at + text.len() - text[split + 1..].trim_start().len();
        let line = ValueLine { text: value.to_owned(), at: doc.place(value_at) };
        ini.section_mut(name, place.clone()).insert(option.clone(), vec![line]);
        open = Some((option, indent));
    }
    ini
}

/// Cuts at the first ` ;`, as fail2ban's `inline_comment_prefixes = ';'` does.
fn without_inline_comment(text: &str) -> &str {
    text.char_indices()
        .zip(text.char_indices().skip(1))
        .find(|((_, before), (_, c))| before.is_whitespace() && *c == ';')
        .map_or(text, |((at, _), _)| text[..at].trim_end())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> (Ini, Vec<String>) {
        let doc = Document::new(Path::new("/x/jail.local"), text.to_owned());
        let mut findings = Findings::default();
        let ini = parse(&doc, &mut findings);
        let warnings = findings.finish().unwrap_or_else(|e| panic!("{e}"));
        (ini, warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn values_are_read_as_configparser_reads_them() {
        let table: &[(&str, Option<&[&str]>)] = &[
            ("[s]\nk = v\n", Some(&["v"])),
            ("[s]\nk: v\n", Some(&["v"])),
            ("[s]\nK=v = w\n", Some(&["v = w"])),
            ("[s]\nk =\n", Some(&[""])),
            ("[s]\nk = a\n  b\n\tc\n", Some(&["a", "b", "c"])),
            ("[s]\nk = a\n# comment\n  ; comment\n\n  b\n", Some(&["a", "b"])),
            ("[s]\nk = a ; comment\n", Some(&["a"])),
            ("[s]\nk = a;b\n", Some(&["a;b"])),
            ("[s]\nk = a # b\n", Some(&["a # b"])),
            ("[s]\r\nk = a\r\n b\r\n", Some(&["a", "b"])),
            ("[s]\nk = a\n[t]\nk = b\n[s]\nk = c\n", Some(&["c"])),
            ("[s]\nk = a\n [x]\n", Some(&["a", "[x]"])),
            ("[s]\n", None),
        ];
        for (text, expected) in table {
            assert_eq!(read(text).0.get("s", "k").as_deref(), *expected, "{text:?}");
        }
    }

    #[test]
    fn every_line_of_a_value_keeps_its_place() {
        let (ini, _) = read("[s]\nk = a\n\n   b\n");
        let (.., section) = &ini.sections[0];
        let places: Vec<_> = section["k"].iter().map(|line| (line.at.line, line.at.column)).collect();
        assert_eq!(places, [(2, 5), (4, 4)]);
    }

    #[test]
    fn a_line_that_fits_nowhere_is_a_warning_with_its_place() {
        for (text, place) in [("k = v\n", "/x/jail.local:1:1"), ("[s]\nnonsense\n", "/x/jail.local:2:1")] {
            let (_, warnings) = read(text);
            assert!(warnings.len() == 1 && warnings[0].starts_with(place), "{warnings:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            read(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn no_arrangement_of_its_own_characters_makes_it_panic(text in "[\\[\\]=:;# \t\r\na-bé%()s<>]{0,200}") {
            read(&text);
        }
    }
}
