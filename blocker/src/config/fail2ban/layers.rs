//! Which files make up one fail2ban configuration, and in which order they override one another.
//!
//! For a base name: `BASE.conf`, `BASE.d/*.conf`, `BASE.local`, `BASE.d/*.local`; around each file what its
//! `[INCLUDES]` name, `before` it and `after` it, each with its own `.local`. A later value wins; the value it hides
//! stays readable as `known/OPTION`. Values are raw here, nothing is expanded.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use super::{
    ini::{self, Ini, RawValue, Section},
    interpolate::{self, Vars},
};
use crate::{
    config::diagnostic::{Diagnostic, Document, Findings, Severity},
    filter::Place,
};

/// Files that those of one configuration may include.
const FILES_MAX: usize = 256;

/// Files of one directory that are read.
const LISTED_MAX: usize = 1_024;

/// Entries of one directory that are looked at.
const ENTRIES_MAX: usize = 65_536;

/// How deep includes may nest.
const INCLUDE_DEPTH_MAX: usize = 16;

/// Every file of one load, each read and parsed once: filters share their includes.
#[derive(Debug, Default)]
pub(super) struct Files {
    read: HashMap<PathBuf, Option<Parsed>>,
}

/// A file's text and what is in it.
type Parsed = (Rc<Document>, Rc<Ini>);

impl Files {
    /// The file at `path`; `None` when it cannot be read, which is said once.
    fn get(&mut self, path: &Path, findings: &mut Findings) -> Option<Parsed> {
        if let Some(known) = self.read.get(path) {
            return known.clone();
        }
        let found = match Document::read_lossy(path) {
            Ok(doc) => {
                let ini = ini::parse(&doc, findings);
                Some((Rc::new(doc), Rc::new(ini)))
            }
            Err(unreadable) => {
                findings.push(Diagnostic { severity: Severity::Warning, ..*unreadable });
                None
            }
        };
        self.read.insert(path.to_owned(), found.clone());
        found
    }

    /// Reads `BASE` (a path without extension) with everything that belongs to it.
    pub(super) fn layers(&mut self, base: &Path, findings: &mut Findings) -> Layers {
        let mut reading = Reading { layers: Layers::default(), files: self, findings, count: 0 };
        let with = |extension: &str| {
            let mut path = base.as_os_str().to_owned();
            path.push(extension);
            PathBuf::from(path)
        };
        let mut listed = listing(&with(".d"), reading.findings);
        let locals = listed.split_off(listed.partition_point(|file| has_extension(file, "conf")));
        let mut files = vec![with(".conf")];
        files.extend(listed);
        files.push(with(".local"));
        files.extend(locals);
        files.retain(|file| is_there(file));
        for file in &files {
            reading.file(file, &mut Vec::new());
            // A file in the directory brings its own `.local`, which otherwise has its turn.
            let local = file.with_extension("local");
            if !files.contains(&local) && is_there(&local) {
                reading.file(&local, &mut Vec::new());
            }
        }
        reading.layers
    }
}

/// All files of one configuration, laid over one another.
#[derive(Clone, Debug, Default)]
pub(super) struct Layers {
    /// `[DEFAULT]`: seen from every section.
    pub(super) defaults: Section,
    /// The other sections.
    pub(super) sections: BTreeMap<String, Section>,
    /// What later files hid, by section: `%(known/x)s`.
    pub(super) known: BTreeMap<String, Section>,
    /// The sections in order of first appearance, with their place.
    pub(super) order: Vec<(String, Place)>,
    /// The documents, for showing their lines.
    pub(super) docs: Vec<Rc<Document>>,
}

impl Layers {
    /// An option of a section or of `[DEFAULT]`, raw.
    pub(super) fn get(&self, section: &str, option: &str) -> Option<&RawValue> {
        self.own(section, option).or_else(|| self.defaults.get(option))
    }

    /// An option written in the section itself.
    pub(super) fn own(&self, section: &str, option: &str) -> Option<&RawValue> {
        self.sections.get(section)?.get(option)
    }

    /// A finding at a place in one of the documents.
    pub(super) fn diagnostic(&self, at: &Place, key: &str, message: String, hint: &str) -> Diagnostic {
        match self.docs.iter().find(|doc| doc.path == at.path && at.line > 0) {
            Some(doc) => {
                let start = doc.offset(at);
                let rest = doc.text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or("");
                doc.diagnostic(Severity::Warning, start..start + rest.trim_end().len(), key, message, hint)
            }
            None => Diagnostic {
                place: at.clone(),
                key: key.to_owned(),
                ..Diagnostic::about_file(Severity::Warning, &at.path, message, hint)
            },
        }
    }

    fn merge(&mut self, ini: &Ini) {
        for (header, at, options) in &ini.sections {
            if header == "DEFAULT" {
                self.defaults.extend(options.clone());
                continue;
            }
            // `[Init?family=inet6]` holds the options of `[Init]` for that case.
            let (name, condition) = condition(header).unwrap_or((header, ""));
            let options: Section = options
                .iter()
                .map(|(option, value)| (format!("{option}{condition}"), value.clone()))
                .collect();
            if !self.sections.contains_key(name) {
                self.order.push((name.to_owned(), at.clone()));
                self.sections.insert(name.to_owned(), options);
                continue;
            }
            let section = self.sections.entry(name.to_owned()).or_default();
            let hidden = options.keys().filter_map(|option| section.get_key_value(option));
            let hidden: Section = hidden.map(|(option, value)| (option.clone(), value.clone())).collect();
            self.known.entry(name.to_owned()).or_default().extend(hidden);
            section.extend(options);
        }
    }
}

/// `NAME?CONDITION` apart, the condition with its question mark.
pub(super) fn condition(name: &str) -> Option<(&str, &str)> {
    let at = name.find('?')?;
    let (plain, condition) = name.split_at(at);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    (!plain.is_empty() && condition.len() > 1 && plain.chars().all(is_word)).then_some((plain, condition))
}

/// Whether there is anything of this name. What cannot be looked at is: that it cannot is to be said.
pub(super) fn is_there(path: &Path) -> bool {
    !path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// The `.conf` files of a directory sorted by name, then the `.local` ones; hidden ones are none of them.
fn listing(dir: &Path, findings: &mut Findings) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            if is_there(dir) {
                let message = format!("cannot list this directory: {error}");
                let hint = "check its permissions; what is in it is not in force";
                findings.push(Diagnostic::about_file(Severity::Warning, dir, message, hint));
            }
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> = entries
        .take(ENTRIES_MAX)
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| has_extension(path, "conf") || has_extension(path, "local"))
        .filter(|path| path.file_name().is_none_or(|name| !name.as_encoded_bytes().starts_with(b".")))
        .collect();
    files.sort_unstable_by(|a, b| (has_extension(a, "local"), a).cmp(&(has_extension(b, "local"), b)));
    if let Some(first) = files.get(LISTED_MAX) {
        let message = format!("more than {LISTED_MAX} files here; this one and those after it are not read");
        let hint = "put what they say into fewer files";
        findings.push(Diagnostic::about_file(Severity::Warning, first, message, hint));
    }
    files.truncate(LISTED_MAX);
    files
}

struct Reading<'f> {
    layers: Layers,
    files: &'f mut Files,
    findings: &'f mut Findings,
    count: usize,
}

impl Reading<'_> {
    /// Reads one file and what it includes; `within` are the files that include it.
    fn file(&mut self, path: &Path, within: &mut Vec<PathBuf>) {
        self.count += usize::from(!within.is_empty());
        if self.count > FILES_MAX || within.len() >= INCLUDE_DEPTH_MAX {
            if self.count <= FILES_MAX + 1 {
                let message = "too many files include one another; this one is not read".to_owned();
                let hint = "take its name out of `before` or `after`";
                self.findings.push(Diagnostic::about_file(Severity::Warning, path, message, hint));
            }
            return;
        }
        let Some((doc, ini)) = self.files.get(path, self.findings) else { return };
        self.layers.docs.push(doc);
        let (before, after) = self.includes(&ini);
        self.included(path, &before, within);
        self.layers.merge(&ini);
        self.included(path, &after, within);
    }

    /// What the file names in `[INCLUDES]`, expanded with its own options alone.
    fn includes(&mut self, ini: &Ini) -> (RawValue, RawValue) {
        const SECTION: &str = "INCLUDES";
        let mut alone = Layers::default();
        alone.merge(ini);
        let mut lines = |option: &str| match interpolate::value(&alone, SECTION, option, &Vars::new()) {
            Some(Ok(lines)) if alone.sections.contains_key(SECTION) => lines,
            Some(Err(why)) if alone.sections.contains_key(SECTION) => {
                if let Some(at) = alone.get(SECTION, option).and_then(|lines| lines.first()) {
                    let message = format!("nothing is included here: {why}");
                    self.findings.push(self.layers.diagnostic(&at.at, SECTION, message, ""));
                }
                RawValue::new()
            }
            _ => RawValue::new(),
        };
        (lines("before"), lines("after"))
    }

    fn included(&mut self, from: &Path, lines: &[ini::ValueLine], within: &mut Vec<PathBuf>) {
        for line in lines.iter().filter(|line| !line.text.is_empty()) {
            // An absolute name replaces the directory.
            let path = from.parent().unwrap_or(Path::new("")).join(&line.text);
            if path == from || within.contains(&path) {
                let message = format!("{:?} includes itself; it is read once", line.text);
                self.warn(line, message, "");
                continue;
            }
            within.push(from.to_owned());
            let local = path.with_extension("local");
            if is_there(&path) {
                self.file(&path, within);
            } else if path != local {
                // A `.local` file is the site's own and need not be there; any other was expected.
                let message = format!("there is no file {}; what it defines is missing", path.display());
                self.warn(line, message, "copy it from the fail2ban package if a pattern here needs it");
            }
            if path != local && is_there(&local) && !within.contains(&local) {
                self.file(&local, within);
            }
            within.pop();
        }
    }

    fn warn(&mut self, line: &ini::ValueLine, message: String, hint: &str) {
        let diagnostic = self.layers.diagnostic(&line.at, "INCLUDES", message, hint);
        self.findings.push(diagnostic);
    }
}
