//! Commands that operators have run: what to run when somebody is banned, and whom to ask before.
//!
//! Only what they are; nothing here runs anything. A value, such as an address, reaches a command as an environment
//! variable and never as part of its text.
#![forbid(unsafe_code)]

use std::{fmt, sync::Arc, time::Duration};

/// How long an action may run where nobody says: fail2ban's own bound.
pub const ACTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an ignorecommand may run where nobody says: the ban waits for it.
pub const IGNORE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest a command may be given.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(3_600);

/// A command, as it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandLine {
    /// This program with these arguments, with no shell between; never empty.
    Program(Vec<String>),
    /// Text for `/bin/sh -c`; values are in its environment.
    Shell(String),
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(parts) => f.write_str(&parts.join(" ")),
            Self::Shell(text) => f.write_str(text),
        }
    }
}

/// What to run when a jail bans and unbans. The kernel drops first; this runs beside it, in its own time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionSpec {
    /// Its name, unique in the jail.
    pub name: Arc<str>,
    /// Run when the jail starts.
    pub start: Option<CommandLine>,
    /// Run when the jail stops.
    pub stop: Option<CommandLine>,
    /// Run for each ban.
    pub ban: Option<CommandLine>,
    /// Run when the ban ends.
    pub unban: Option<CommandLine>,
    /// A run that takes longer is killed.
    pub timeout: Duration,
    /// Further variables of its environment.
    pub environment: Vec<(String, String)>,
    /// Whether bans that a restart restored are given to `ban` once more (fail2ban's `norestored = 0`).
    pub restored: bool,
    /// Whether it wants the matched lines, `BLOCKER_MATCHES`.
    pub matches: bool,
}

impl ActionSpec {
    /// An action that does nothing yet.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            start: None,
            stop: None,
            ban: None,
            unban: None,
            timeout: ACTION_TIMEOUT,
            environment: Vec::new(),
            restored: false,
            matches: false,
        }
    }
}

/// Asked before a jail bans: exit status 0 spares the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoreCommand {
    /// What to run.
    pub command: CommandLine,
    /// Without an answer for so long, the ban is made.
    pub timeout: Duration,
    /// Whether answers are remembered.
    pub cache: Option<IgnoreCache>,
}

/// How long the answers of an [`IgnoreCommand`] are remembered, by address: fail2ban's `ignorecache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IgnoreCache {
    /// So many addresses.
    pub count_max: usize,
    /// For so long.
    pub time_max: Duration,
}

impl Default for IgnoreCache {
    fn default() -> Self {
        Self { count_max: 100, time_max: Duration::from_secs(300) }
    }
}
