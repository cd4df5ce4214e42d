//! What the operator wrote: blocker's TOML, its filter files, and fail2ban's files where they are imported.
//!
//! [`load`] reads everything that a configuration names and either hands over a whole [`Config`] or says everything
//! that is wrong with it; it changes nothing, so a reload with a bad file leaves the running agent as it is. Our own
//! files are strict: any error refuses the load. Imported files are taken as they are: what cannot be carried over
//! is a warning that says why, and takes at most its own jail down. No name is resolved and no log is opened here.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::policy::Policy;

mod diagnostic;
mod enforce;
pub mod fail2ban;
mod filters;
mod jails;
mod limits;
mod main_file;
mod own_jails;
mod reader;
mod rules;
mod services;
mod sockets;

pub use diagnostic::{ConfigErrors, DIAGNOSTICS_MAX, Diagnostic, FILE_BYTES_MAX, Severity, place_text};
pub use fail2ban::{read_fail2ban_filter, read_fail2ban_filter_file};
pub use filters::{BUILT_IN, read_filter, read_filter_file};
pub use jails::{JAIL_NAME_BYTES_MAX, JailReport, JailState, Origin, SOURCES_MAX, Setting};

pub use services::service_port;

pub(crate) use diagnostic::suggest;
use diagnostic::{Document, Findings};

/// A configuration in which everything was checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// What the engine decides by; `protected` is empty, since only the running host knows it.
    pub policy: Policy,
    /// Where bans go.
    pub enforce: EnforceConfig,
    /// The control socket; default `/run/blocker/blocker.sock`.
    pub socket: PathBuf,
    /// What outlives a restart; default `/var/lib/blocker`.
    pub state_dir: PathBuf,
    /// Where the fail2ban that is imported keeps its bans, to be taken over once.
    pub former_bans: Option<PathBuf>,
    /// What was not carried over, and why.
    pub warnings: Vec<Diagnostic>,
    /// Every jail that was found, also those that do not run.
    pub jails: Vec<JailReport>,
}

/// `[enforce]`; the size of the ban table is in the policy's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnforceConfig {
    /// Which kernel half; default `auto`.
    pub backend: Backend,
    /// Which interfaces; default `auto`.
    pub interfaces: Interfaces,
    /// Patterns of interfaces that are not meant; default none.
    pub exclude: Vec<String>,
    /// How XDP's program may be attached, in the order in which it is tried; default all, the best first.
    pub modes: Vec<AttachMode>,
    /// Where links and maps are pinned; default `/sys/fs/bpf/blocker`.
    pub pin_dir: PathBuf,
    /// Whether each ban in nftables counts its packets; `None` leaves it to the number of bans.
    pub counters: Option<bool>,
    /// Whether the connections of whoever is banned are closed; default yes.
    pub close_connections: bool,
    /// How bans lie in XDP's maps.
    pub table: TableKind,
    /// Whether a match in the bucket table is compared with the whole prefix.
    pub exact: bool,
}

/// How bans lie in XDP's maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// Fingerprints in buckets; hash maps where the kernel has no such maps.
    Buckets,
    /// The kernel's hash maps and prefix tries.
    Hash,
}

/// Which kernel half drops packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The best that works here.
    Auto,
    /// XDP or nothing.
    Xdp,
    /// nftables or nothing.
    Nftables,
}

/// Where the kernel half is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interfaces {
    /// Every interface that strangers come in by.
    Auto,
    /// These, by name or pattern; those that do not exist yet are waited for.
    Named(Vec<String>),
}

/// A way to attach to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// XDP in the driver.
    Native,
    /// XDP, called by a libxdp dispatcher that is there.
    Dispatcher,
    /// A classifier before all others (Linux 6.6 and later).
    Tcx,
    /// XDP in the stack.
    Generic,
}

/// Reads the configuration at `path` with everything that it names.
///
/// # Errors
/// Everything that is wrong, up to [`DIAGNOSTICS_MAX`] findings, each with file, line, column and key.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let doc = Document::read(path).map_err(|unreadable| ConfigErrors(vec![*unreadable]))?;
    let mut findings = Findings::default();
    let config = main_file::read(&doc, &mut findings);
    findings.finish().map(|warnings| Config { warnings, ..config })
}

/// The first TOML syntax error, with its place; those after it are mostly its consequences.
fn syntax_error(doc: &Document, findings: &mut Findings, errors: &[toml::de::Error]) {
    let Some(error) = errors.first() else { return };
    let span = error.span().unwrap_or(0..0);
    findings.error(doc, span, "", error.message().to_owned(), "");
}
