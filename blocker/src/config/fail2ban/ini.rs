//! The syntax of fail2ban's files, which is that of Python's `configparser` with inline comments.
//!
//! Sections, `key = value` or `key : value`, values that go on in deeper indented lines with empty lines among them,
//! comment lines with `#` or `;`, and inline comments that begin with a space and `;` (fail2ban sets these up). Every
//! line of a value keeps its place. What values mean, and which file comes before which, is not known here. Nothing
//! here can fail: where fail2ban would refuse the whole file (a line that fits nowhere, an option given twice), it is
//! a finding, and the line is skipped or the later one wins.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};

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

/// A value: its lines, any but the last perhaps empty.
pub(super) type RawValue = Vec<ValueLine>;

/// The whole value as one text.
pub(super) fn text_of(value: &[ValueLine]) -> String {
    let mut text = String::new();
    for (index, line) in value.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        text.push_str(&line.text);
    }
    text
}

/// A text as a value, every line of it at the same place.
pub(super) fn value_at(text: &str, at: &Place) -> RawValue {
    text.split('\n').map(|text| ValueLine { text: text.to_owned(), at: at.clone() }).collect()
}

/// The options of one section by name; names are lower case, as `configparser` makes them.
pub(super) type Section = BTreeMap<String, RawValue>;

/// A file, its sections in order of first appearance.
#[derive(Clone, Debug, Default)]
pub(super) struct Ini {
    pub(super) sections: Vec<(String, Place, Section)>,
}

/// Python's `str.isspace`, which also knows the four separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Parses a whole document.
pub(super) fn parse(doc: &Document, findings: &mut Findings) -> Ini {
    let mut parsing = Parsing {
        doc,
        findings,
        ini: Ini::default(),
        known: HashMap::new(),
        section: None,
        open: None,
        said_lossy: false,
    };
    let mut offset = 0;
    let mut rest = doc.text.strip_prefix('\u{feff}').inspect(|_| offset = 3).unwrap_or(&doc.text);
    while !rest.is_empty() {
        // Python's text files end lines at \n, \r\n and a lone \r.
        let end = rest.find(['\n', '\r']).unwrap_or(rest.len());
        let next = end + if rest[end..].starts_with("\r\n") { 2 } else { usize::from(end < rest.len()) };
        parsing.line(&rest[..end], offset);
        offset += next;
        rest = &rest[next..];
    }
    parsing.close();
    parsing.ini
}

struct Parsing<'a> {
    doc: &'a Document,
    findings: &'a mut Findings,
    ini: Ini,
    /// Where each section is in `ini`.
    known: HashMap<String, usize>,
    section: Option<usize>,
    /// The option that indented lines continue, and how far it was indented itself.
    open: Option<(String, usize)>,
    /// Whether it was said that bytes are no UTF-8; once for a file.
    said_lossy: bool,
}

impl Parsing<'_> {
    fn line(&mut self, line: &str, start: usize) {
        let (body, commented) = without_comment(line);
        let text = body.trim_matches(is_space);
        if text.is_empty() {
            // An empty line is part of a value that goes on after it; a comment is not.
            if !commented && let Some(value) = self.open_value() {
                let at = Place::default();
                value.push(ValueLine { text: String::new(), at });
            }
            return;
        }
        if self.doc.is_lossy
            && !self.said_lossy
            && let Some(at) = body.find(char::REPLACEMENT_CHARACTER)
        {
            self.said_lossy = true;
            let span = start + at..start + at + char::REPLACEMENT_CHARACTER.len_utf8();
            let message = "this is no UTF-8, and what stands here matches nothing";
            self.findings.warn(self.doc, span, "", message.to_owned(), "save the file as UTF-8");
        }
        let before = &body[..body.len() - body.trim_start_matches(is_space).len()];
        let (indent, at) = (before.chars().count(), start + before.len());
        if self.open.as_ref().is_some_and(|(_, depth)| indent > *depth) {
            let line = ValueLine { text: text.to_owned(), at: self.doc.place(at) };
            if let Some(value) = self.open_value() {
                value.push(line);
            }
            return;
        }
        self.close();
        let header = text.strip_prefix('[').and_then(|rest| rest.rfind(']').map(|end| &rest[..end]));
        if let Some(name) = header.filter(|name| !name.is_empty()) {
            self.section = Some(self.open_section(name, at));
            return;
        }
        self.option(text, at, indent);
    }

    fn option(&mut self, text: &str, at: usize, indent: usize) {
        let span = at..at + text.len();
        let Some(section) = self.section else {
            let message = "this line stands before any section and is not read".to_owned();
            let hint = "put a section header such as [DEFAULT] or [Definition] before it";
            self.findings.warn(self.doc, span, "", message, hint);
            return;
        };
        let (name, _, options) = &mut self.ini.sections[section];
        let split = text.find(['=', ':']).map(|split| (text[..split].trim_end_matches(is_space), split));
        let Some((option, split)) = split.filter(|(option, _)| !option.is_empty()) else {
            let hint = "write `option = value`; indent a line that goes on with the value above it";
            let message = "this line is no option and is not read".to_owned();
            self.findings.warn(self.doc, span, name, message, hint);
            return;
        };
        let option = option.to_lowercase();
        let value = text[split + 1..].trim_start_matches(is_space);
        let line = ValueLine { text: value.to_owned(), at: self.doc.place(at + text.len() - value.len()) };
        if options.insert(option.clone(), vec![line]).is_some() {
            let message = "this option stands twice in one section; the later one is used".to_owned();
            let hint = "fail2ban refuses such a file; take one of the two out";
            self.findings.warn(self.doc, span, &format!("{name}.{option}"), message, hint);
        }
        self.open = Some((option, indent));
    }

    fn open_section(&mut self, name: &str, at: usize) -> usize {
        if let Some(index) = self.known.get(name) {
            return *index;
        }
        let index = self.ini.sections.len();
        self.ini.sections.push((name.to_owned(), self.doc.place(at), Section::new()));
        self.known.insert(name.to_owned(), index);
        index
    }

    fn open_value(&mut self) -> Option<&mut RawValue> {
        let (option, _) = self.open.as_ref()?;
        self.ini.sections[self.section?].2.get_mut(option)
    }

    /// Ends the open value; empty lines at its end are none of its.
    fn close(&mut self) {
        if let Some(value) = self.open_value() {
            let lines = value.iter().rposition(|line| !line.text.is_empty()).map_or(1, |last| last + 1);
            value.truncate(lines);
        }
        self.open = None;
    }
}

/// The line without its comment, and whether it had one: the whole line after `#` or `;`, or all after a space and
/// `;`, as fail2ban's `inline_comment_prefixes = ';'` has it.
fn without_comment(line: &str) -> (&str, bool) {
    if line.trim_start_matches(is_space).starts_with(['#', ';']) {
        return ("", true);
    }
    let cut = line.match_indices(';').find(|(at, _)| line[..*at].ends_with(is_space));
    cut.map_or((line, false), |(at, _)| (&line[..at], true))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn get<'a>(ini: &'a Ini, section: &str, option: &str) -> Option<Vec<&'a str>> {
        let (.., options) = ini.sections.iter().find(|(name, ..)| name == section)?;
        Some(options.get(option)?.iter().map(|line| line.text.as_str()).collect())
    }

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
            ("[s]\nk = a\n# comment\n  ; comment\n\n  b\n\n", Some(&["a", "", "b"])),
            ("[s]\nk = a\n\n\n", Some(&["a"])),
            ("[s]\nk =\n  a\n", Some(&["", "a"])),
            ("[s]\nk = a\r b\rl = c\r", Some(&["a", "b"])),
            ("[s]\nk = a\n\x1c\x1c b\n", Some(&["a", "b"])),
            ("\u{feff}[s]\nk = a\n", Some(&["a"])),
            ("  [s]\n  k = a\n  b = c\n", Some(&["a"])),
            ("[s]\nk = a\n;\n b\n", Some(&["a", "b"])),
            ("[s]\nk = ; a\n b\n", Some(&["", "b"])),
            ("[s]\nK : = a\n", Some(&["= a"])),
            ("[s] junk\nk = a\n", Some(&["a"])),
            ("[s]\nk = a ; comment\n", Some(&["a"])),
            ("[s]\nk = a;b\n", Some(&["a;b"])),
            ("[s]\nk = a # b\n", Some(&["a # b"])),
            ("[s]\r\nk = a\r\n b\r\n", Some(&["a", "b"])),
            ("[s]\nk = a\n[t]\nk = b\n[s]\nk = c\n", Some(&["c"])),
            ("[s]\nk = a\n [x]\n", Some(&["a", "[x]"])),
            ("[s]\n", None),
        ];
        for (text, expected) in table {
            assert_eq!(get(&read(text).0, "s", "k").as_deref(), *expected, "{text:?}");
        }
    }

    #[test]
    fn every_line_of_a_value_keeps_its_place() {
        let (ini, _) = read("[s]\nk = a\n\n   b\n");
        let (.., section) = &ini.sections[0];
        let places: Vec<_> = section["k"].iter().map(|line| (line.at.line, line.at.column)).collect();
        assert_eq!(places, [(2, 5), (0, 0), (4, 4)]);
    }

    #[test]
    fn a_line_that_fits_nowhere_is_a_warning_with_its_place() {
        for (text, place) in [
            ("k = v\n", "/x/jail.local:1:1"),
            ("[s]\nnonsense\n", "/x/jail.local:2:1"),
            ("[s]\n= v\n", "/x/jail.local:2:1"),
            ("[]\n", "/x/jail.local:1:1"),
            ("[s]\nk = 1\nk = 2\n", "/x/jail.local:3:1"),
        ] {
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
