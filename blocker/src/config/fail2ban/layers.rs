//! Which files make up one fail2ban configuration, and in which order they override one another.
//!
//! For a base name: `BASE.conf`, `BASE.d/*.conf`, `BASE.local`, `BASE.d/*.local`; around each file what its
//! `[INCLUDES]` name, `before` it and `after` it, each with its own `.local`. A later value wins; the value it hides
//! stays readable as `known/OPTION`. Values are raw here, nothing is expanded.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::ini::{self, RawValue, Section};
use crate::{
    config::diagnostic::{Diagnostic, Document, Findings, Severity},
    filter::Place,
};

/// Files of one configuration at most, includes among them.
pub(super) const FILES_MAX: usize = 256;

/// How deep includes may nest.
const INCLUDE_DEPTH_MAX: usize = 16;

/// All files of one configuration, laid over one another.
#[derive(Clone, Debug, Default)]
pub(super) struct Layers {
    /// `[DEFAULT]`: seen from every section.
    pub(super) defaults: Section,
    /// The other sections, without `[INCLUDES]`.
    pub(super) sections: BTreeMap<String, Section>,
    /// The sections in order of first appearance, with their place.
    pub(super) order: Vec<(String, Place)>,
    /// The documents, for showing their lines.
    pub(super) docs: Vec<Document>,
}

impl Layers {
    /// An option of a section or of `[DEFAULT]`, raw.
    pub(super) fn get(&self, section: &str, option: &str) -> Option<&RawValue> {
        self.sections.get(section).and_then(|s| s.get(option)).or_else(|| self.defaults.get(option))
    }

    /// Whether the option is written in the section itself.
    pub(super) fn is_own(&self, section: &str, option: &str) -> bool {
        self.sections.get(section).is_some_and(|s| s.contains_key(option))
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
}

/// Reads `BASE` (a path without extension) with everything that belongs to it.
pub(super) fn read(base: &Path, findings: &mut Findings) -> Layers {
    let mut reading = Reading { layers: Layers::default(), findings, files: 0 };
    let with = |extension: &str| {
        let mut path = base.as_os_str().to_owned();
        path.push(extension);
        PathBuf::from(path)
    };
    let dir = with(".d");
    let mut files = vec![with(".conf")];
    files.extend(listing(&dir, "conf"));
    files.push(with(".local"));
    files.extend(listing(&dir, "local"));
    for file in files.iter().filter(|file| file.exists()) {
        reading.file(file, &mut Vec::new());
    }
    reading.layers
}

/// The files of a directory with this extension, sorted by name.
fn listing(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .take(FILES_MAX)
        .collect();
    files.sort_unstable();
    files
}

struct Reading<'f> {
    layers: Layers,
    findings: &'f mut Findings,
    files: usize,
}

impl Reading<'_> {
    /// Reads one file and what it includes; `within` are the files that include it.
    fn file(&mut self, path: &Path, within: &mut Vec<PathBuf>) {
        self.files += 1;
        if self.files > FILES_MAX || within.len() >= INCLUDE_DEPTH_MAX {
            if self.files <= FILES_MAX + 1 {
                let message = "too many files include one another; this one is not read".to_owned();
                self.findings.push(Diagnostic::about_file(Severity::Warning, path, message, ""));
            }
            return;
        }
        let doc = match Document::read_lossy(path) {
            Ok(doc) => doc,
            Err(unreadable) => {
                self.findings.push(Diagnostic { severity: Severity::Warning, ..*unreadable });
                return;
            }
        };
        let ini = ini::parse(&doc, self.findings);
        self.layers.docs.push(doc);
        let includes = |option: &str| -> RawValue {
            let section = ini.sections.iter().find(|(name, ..)| name == "INCLUDES");
            section.and_then(|(.., options)| options.get(option)).cloned().unwrap_or_default()
        };
        within.push(path.to_owned());
        self.included(path, &includes("before"), within);
        self.merge(&ini);
        self.included(path, &includes("after"), within);
        within.pop();
    }

    fn included(&mut self, from: &Path, lines: &[ini::ValueLine], within: &mut Vec<PathBuf>) {
        for line in lines.iter().filter(|line| !line.text.is_empty()) {
            // An absolute name replaces the directory.
            let path = from.parent().unwrap_or(Path::new("")).join(&line.text);
            if within.contains(&path) {
                let message = format!("{:?} includes itself; it is read once", line.text);
                self.warn(line, message, "");
                continue;
            }
            let local = path.extension().is_some_and(|e| e == "conf").then(|| path.with_extension("local"));
            if path.exists() {
                self.file(&path, within);
            } else if path.extension().is_none_or(|e| e != "local") {
                // A `.local` file is the site's own and need not be there; any other was expected.
                let message = format!("there is no file {}; what it defines is missing", path.display());
                self.warn(line, message, "copy it from the fail2ban package if a pattern here needs it");
            }
            if let Some(local) = local.filter(|local| local.exists() && !within.contains(local)) {
                self.file(&local, within);
            }
        }
    }

    fn warn(&mut self, line: &ini::ValueLine, message: String, hint: &str) {
        let diagnostic = self.layers.diagnostic(&line.at, "INCLUDES", message, hint);
        self.findings.push(diagnostic);
    }

    fn merge(&mut self, ini: &ini::Ini) {
        for (name, at, options) in &ini.sections {
            match name.as_str() {
                "INCLUDES" => {}
                "DEFAULT" => self.layers.defaults.extend(options.clone()),
                _ => {
                    if !self.layers.order.iter().any(|(known, _)| known == name) {
                        self.layers.order.push((name.clone(), at.clone()));
                    }
                    let section = self.layers.sections.entry(name.clone()).or_default();
                    let known: Section = section
                        .iter()
                        .filter(|(option, _)| !option.starts_with("known/"))
                        .map(|(option, value)| (format!("known/{option}"), value.clone()))
                        .collect();
                    section.extend(known);
                    section.extend(options.clone());
                }
            }
        }
    }
}
