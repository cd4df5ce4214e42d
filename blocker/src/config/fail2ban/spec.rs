//! What fail2ban's files say about a jail, with everything expanded and nothing translated yet.
//!
//! Types only: [`super::read`] fills them from files, [`super::jail`] makes jails of ours of them.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, path::PathBuf, rc::Rc};

use super::layers::Layers;
use crate::filter::{Pattern, Place};

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The whole value; lines are apart by `\n`.
    pub text: String,
    /// The place of its first line with text.
    pub at: Place,
}

/// A jail, expanded.
#[derive(Clone, Debug)]
pub struct JailSpec {
    /// Its section.
    pub name: String,
    /// Where the section begins.
    pub at: Place,
    /// Whether it says so.
    pub enabled: bool,
    /// `auto`, `systemd`, `polling` and so on.
    pub backend: Text,
    /// Whether it reads the journal.
    pub journal: bool,
    /// Every option of its own that is set, by name, those of a filter left out.
    pub options: BTreeMap<&'static str, Text>,
    /// What it reads.
    pub logpath: Vec<LogPath>,
    /// Its filter with the jail's patterns over it; `None` when it names none or it cannot be read.
    pub filter: Option<FilterUse>,
    /// What it has done, in order.
    pub actions: Vec<ActionUse>,
    /// What cannot be read.
    pub wrong: Vec<Wrong>,
}

/// A file that a jail reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPath {
    /// The path, perhaps with a pattern.
    pub path: PathBuf,
    /// `head` or `tail`: where fail2ban begins to read it.
    pub from: String,
    /// Where it is named.
    pub at: Place,
}

/// A filter as a jail uses it.
#[derive(Clone, Debug)]
pub struct FilterUse {
    /// Its name.
    pub name: String,
    /// Its first file.
    pub path: PathBuf,
    /// Options given to it.
    pub given: Vec<(String, String)>,
    /// `logtype`: `file` or `journal`, or as the filter or jail says.
    pub logtype: String,
    /// Patterns of failures, in order.
    pub failregex: Vec<Pattern>,
    /// Patterns that take a failure back.
    pub ignoreregex: Vec<Pattern>,
    /// The pattern that comes first.
    pub prefregex: Option<Pattern>,
    /// Forms of dates.
    pub datepattern: Option<Pattern>,
    /// How many lines a pattern sees.
    pub maxlines: Option<Text>,
    /// Whether names are resolved.
    pub usedns: Option<Text>,
    /// What selects entries of the journal, each as one line.
    pub journalmatch: Vec<Text>,
    /// For showing its lines.
    pub(super) layers: Rc<Layers>,
}

/// An action as a jail uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionUse {
    /// Its name in the jail: `actname`, or that of its file.
    pub name: String,
    /// The file it is in, without `.conf`; with `.py` it is a Python class.
    pub file: String,
    /// Its options: commands, and what stands as `<tag>` in them, expanded as far as no ban is needed to do so.
    pub options: BTreeMap<String, String>,
    /// Where the jail names it.
    pub at: Place,
}

/// Something that cannot be read, and what is lost by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The option, or empty for the whole jail.
    pub option: String,
    /// Where it is.
    pub at: Place,
    /// What is wrong.
    pub what: String,
    /// What to write instead; may be empty.
    pub hint: String,
}
