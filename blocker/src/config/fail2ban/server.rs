//! What fail2ban.conf says of the database: where it is, and how long bans are remembered in it.
#![forbid(unsafe_code)]

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    ini::{RawValue, text_of},
    interpolate::{self, Vars},
    layers::{Files, Layers},
    read::place_of,
    span,
};
use crate::{config::diagnostic::Findings, policy::REMEMBER};

const SECTION: &str = "Definition";
/// fail2ban's `dbfile` where no file sets one.
const DATABASE: &str = "/var/lib/fail2ban/fail2ban.sqlite3";

/// fail2ban's memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// Where it keeps its bans; `None` when it keeps none.
    pub(crate) bans: Option<PathBuf>,
    /// How long earlier bans are to count, where that is longer than they count here.
    pub(crate) remember: Option<Duration>,
}

/// Reads fail2ban.conf below `dir` with what belongs to it.
pub(super) fn memory(dir: &Path, findings: &mut Findings) -> Memory {
    let layers = Files::default().layers(&dir.join("fail2ban"), findings);
    let bans = match interpolate::value(&layers, SECTION, "dbfile", &Vars::new()) {
        None => Some(DATABASE.to_owned()),
        Some(Ok(value)) => Some(text_of(&value)),
        Some(Err(why)) => {
            let message = format!("its bans are not taken over: {why}");
            warn(&layers, findings, "dbfile", message, "write the path itself");
            None
        }
    };
    let bans = bans.map(PathBuf::from).filter(|path| path.is_absolute());
    let value = interpolate::value(&layers, SECTION, "dbpurgeage", &Vars::new());
    let said = value.map(|value: Result<RawValue, String>| span::span(&text_of(&value?)));
    let remember = match said {
        Some(Ok(remember)) => Some(remember).filter(|remember| *remember > REMEMBER),
        Some(Err(why)) => {
            let message = format!("this is not used, 30 days are: {why}");
            warn(&layers, findings, "dbpurgeage", message, "write for example 1y");
            None
        }
        None => None,
    };
    Memory { bans, remember }
}

fn warn(layers: &Layers, findings: &mut Findings, option: &str, message: String, hint: &str) {
    let at = layers.get(SECTION, option).map(|value| place_of(value)).unwrap_or_default();
    findings.push(layers.diagnostic(&at, option, message, hint));
}
