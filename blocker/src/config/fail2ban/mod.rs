//! Reads fail2ban's own files as they are, so that somebody who comes from it changes nothing.
//!
//! | module | story |
//! |---|---|
//! | `ini` | the syntax of one file |
//! | `layers` | which files make up one configuration, in which order |
//! | `interpolate` | `%(x)s` in values |
//! | `tags` | `<x>` in values |
//! | `call` | `NAME[a=1, b=2]` |
//! | `definition` | a file of `filter.d` or `action.d`, with what a jail adds |
//! | `spec`, `read` | what the files say of each jail, expanded |
//! | `server` | what fail2ban.conf says of the database |
//! | `unknown` | options whose names are misspelt |
//! | `span`, `words` | lengths of time, and other values |
//! | `filter` | a filter as a [`crate::filter::FilterSpec`] |
//! | `shell` | values into shell text, as variables |
//! | `action` | actions as ours |
//! | `jail` | jails as ours |
//! | `export` | all of it as TOML |
//!
//! Nothing found here is an error: what cannot be carried over is a warning that names file and line, and takes at most
//! its own jail down. No Python code, no command and no name look-up is ever run here.
#![forbid(unsafe_code)]

mod action;
mod call;
mod definition;
mod export;
mod filter;
mod ini;
mod interpolate;
mod jail;
mod layers;
mod read;
mod server;
mod shell;
mod span;
mod spec;
mod tags;
mod unknown;
mod words;

pub use export::{Exported, FilterPlace, export};
pub(super) use jail::{BanPorts, import};
pub use read::{FAIL2BAN_VERSION, JAILS_MAX};
pub use spec::{ActionUse, FilterUse, JailSpec, LogPath, Text, Wrong};

use std::{collections::BTreeMap, path::Path};

use super::{Diagnostic, diagnostic::Findings};
use crate::filter::FilterSpec;

/// What fail2ban's files below `dir` say about every jail, enabled or not, expanded and not translated, with what is
/// wrong in the files themselves.
pub fn read_jails(dir: &Path) -> (Vec<JailSpec>, Vec<Diagnostic>) {
    let mut findings = Findings::default();
    let jails = read::jails(dir, true, &mut findings).jails;
    // Nothing here is an error, so nothing is lost by taking warnings only.
    (jails, findings.finish().unwrap_or_else(|errors| errors.0))
}

/// Reads the filter `name` of the fail2ban directory `dir`, with the options that `filter = NAME[a=b]` would give it,
/// and what is to be said about its files.
///
/// # Errors
/// A sentence that says why there is no such filter.
pub fn read_fail2ban_filter(
    dir: &Path,
    name: &str,
    options: &BTreeMap<String, String>,
) -> Result<(FilterSpec, Vec<Diagnostic>), String> {
    filter_in(&dir.join("filter.d"), name, options)
}

/// Reads the filter of fail2ban's in the file at `path`, wherever that is, with these options: the file, what belongs to
/// it beside it, and what it includes.
///
/// # Errors
/// A sentence that says why there is no such filter.
pub fn read_fail2ban_filter_file(
    path: &Path,
    options: &BTreeMap<String, String>,
) -> Result<(FilterSpec, Vec<Diagnostic>), String> {
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    filter_in(path.parent().unwrap_or(Path::new("")), &name, options)
}

/// `NAME[a=1, b=2]` apart, as a jail writes it.
///
/// # Errors
/// Says what does not fit.
pub fn read_call(text: &str) -> Result<(String, Vec<(String, String)>), String> {
    call::parse(text).map(|call| (call.name, call.options))
}

fn filter_in(
    home: &Path,
    name: &str,
    options: &BTreeMap<String, String>,
) -> Result<(FilterSpec, Vec<Diagnostic>), String> {
    let mut findings = Findings::default();
    let used = read::filter(home, name, options, &mut findings)?;
    let spec = filter::filter_spec(&used, &BTreeMap::new(), &mut findings);
    let warnings = findings.finish().map_err(|errors| errors.to_string())?;
    Ok((spec, warnings))
}
