//! What the engine is to do, as data: the configuration after everything in it was checked.
#![forbid(unsafe_code)]

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::tz::TimeZone;

use crate::{
    engine::SourceId,
    filter::{
        Filter,
        imported::{CONNECTIONS_MAX, JOINED_BYTES_MAX},
    },
    net::{Prefix, Scope},
    time::BanTime,
};

mod action;
mod escalation;
mod formula;
mod journal;
mod socket;

pub use action::{
    ACTION_TIMEOUT, ActionSpec, CommandLine, IGNORE_TIMEOUT, IgnoreCache, IgnoreCommand, TIMEOUT_MAX,
};
pub use escalation::{Escalation, MULTIPLIERS_MAX};
pub use formula::{FORMULA_BYTES_MAX, FORMULA_DEFAULT, FORMULA_DEPTH_MAX, Formula, FormulaError, Known};
pub use journal::{JOURNAL_TERMS_MAX, JournalGroup, JournalMatches};
pub use socket::{Access, Form, SOCKET_MODE, SOCKETS_MAX, SocketAddress, SocketLimits, SocketSpec};

/// Most lines that may be kept with the failures of one address.
pub const MATCHES_MAX: u32 = 100;

/// Everything the engine decides by.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The enabled jails.
    pub jails: Vec<Jail>,
    /// Every source some jail reads, each once; [`SourceId`] is an index into it.
    pub sources: Vec<SourceSpec>,
    /// Addresses never dropped: the configured allowlist.
    pub allow: Vec<Prefix>,
    /// What blocker adds by itself: own addresses, default gateways, resolvers. Never dropped either.
    pub protected: Vec<Prefix>,
    /// Bounds on what is kept.
    pub limits: Limits,
    /// How long after its end a ban counts as an earlier one; fail2ban's `dbpurgeage`, which counts from its begin.
    pub remember: Duration,
    /// Seconds that local time is ahead of UTC, for log dates that name no zone.
    pub utc_offset_secs: i32,
    /// The zone that is from, for imported filters: the offset of a date in the log may be another than today's.
    pub zone: Option<TimeZone>,
    /// Decides which addresses share a place in the table of failures, and the random parts of escalated bans. Only the first policy's counts; it should be
    /// unknown to attackers, and equal where equal lives are to be equal.
    pub seed: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            jails: Vec::new(),
            sources: Vec::new(),
            allow: Vec::new(),
            protected: Vec::new(),
            limits: Limits::default(),
            remember: REMEMBER,
            utc_offset_secs: 0,
            zone: None,
            seed: 0,
        }
    }
}

/// How long earlier bans are remembered where nobody says. fail2ban's day is too short for its own `recidive`.
pub const REMEMBER: Duration = Duration::from_secs(30 * 86_400);

/// Sources, filters, and when to ban.
#[derive(Clone, Debug)]
pub struct Jail {
    /// Its name, unique.
    pub name: Arc<str>,
    /// What it reads.
    pub sources: Vec<SourceId>,
    /// What makes a line a failure; the first filter that matches wins.
    pub filters: Vec<Arc<Filter>>,
    /// This many failures within `findtime` ban; at least 1.
    pub maxretry: u32,
    /// The window in which failures add up.
    pub findtime: Duration,
    /// How long a ban lasts.
    pub bantime: BanTime,
    /// Addresses this jail does not count.
    pub ignoreip: Vec<Prefix>,
    /// IPv6 attackers are counted and banned by their prefix of this length (1 to 128), since they rotate inside it.
    pub ipv6_prefix: u8,
    /// How bans of those who were banned before grow; `None`: they do not.
    pub escalation: Option<Arc<Escalation>>,
    /// Whom to ask before a ban.
    pub ignore_command: Option<Arc<IgnoreCommand>>,
    /// Whether failures of this host's own addresses are left out. They are never banned in any case.
    pub ignoreself: bool,
    /// Whether it counts and reports only, and bans nobody.
    pub observe: bool,
    /// What to run for its bans.
    pub actions: Vec<Arc<ActionSpec>>,
    /// So many of the last matched lines are kept for actions that want them.
    pub maxmatches: u32,
    /// What of an attacker's its bans drop.
    pub scope: Scope,
    /// What another program's configuration, which it was read from, would drop of it: shown, never enforced.
    pub ports: Scope,
}

impl Default for Jail {
    /// fail2ban's defaults, with no name, sources or filters.
    fn default() -> Self {
        Self {
            name: "".into(),
            sources: Vec::new(),
            filters: Vec::new(),
            maxretry: 5,
            findtime: Duration::from_secs(600),
            bantime: BanTime::For(Duration::from_secs(600)),
            ignoreip: Vec::new(),
            ipv6_prefix: 64,
            escalation: None,
            ignore_command: None,
            ignoreself: true,
            observe: false,
            actions: Vec::new(),
            maxmatches: 0,
            scope: Scope::ALL,
            ports: Scope::ALL,
        }
    }
}

/// Where lines come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceSpec {
    /// A log file by path; any component may be a glob pattern (`*`, `?`, `[a-z]`).
    File(PathBuf),
    /// The log of a container, as its runtime writes it; a path as above.
    Container(PathBuf, ContainerFormat),
    /// A socket that applications or syslog daemons write to.
    Socket(SocketSpec),
    /// The agent's standard input.
    Stdin,
    /// Entries of systemd's journal.
    Journal {
        /// Which ones.
        matches: JournalMatches,
        /// The journal namespace (systemd-journald.service(8)); `None` for the host's own journal.
        namespace: Option<String>,
    },
    /// Our own ledger: each ban opened by another jail counts as one failure of its prefix.
    Ledger,
}

/// What a container runtime writes around the lines of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContainerFormat {
    /// Docker's json-file: a JSON object for each line.
    Docker,
    /// The Container Runtime Interface, as containerd and CRI-O write it: time, stream and a tag before each line.
    Cri,
    /// One of both; each record shows which.
    Either,
}

impl SourceSpec {
    /// A log file, of a container if it is where only runtimes write: Docker's and the kubelet's directories, which are
    /// root's.
    pub fn log(path: PathBuf) -> Self {
        let is_docker = path.starts_with("/var/lib/docker/containers")
            && path.to_str().is_some_and(|path| path.ends_with("-json.log"));
        let is_kubelet = path.starts_with("/var/log/pods") || path.starts_with("/var/log/containers");
        match (is_docker, is_kubelet) {
            (true, _) => Self::Container(path, ContainerFormat::Docker),
            (_, true) => Self::Container(path, ContainerFormat::Either),
            _ => Self::File(path),
        }
    }
}

/// Bounds, each counted when it bites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bans at once; default 65,536.
    pub bans_max: usize,
    /// (jail, prefix) pairs whose failures are tracked at once; default 131,072.
    pub tracked_max: usize,
    /// (prefix, jail) pairs whose earlier bans are remembered; default 65,536.
    pub offenders_max: usize,
    /// Connections that an imported filter remembers of one source, by `<F-MLFID>`; default 100.
    pub connections_max: usize,
    /// Bytes of the lines that an imported filter with `maxlines` joins; default 262,144.
    pub joined_bytes_max: usize,
    /// Bounds on sockets.
    pub sockets: SocketLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bans_max: 65_536,
            tracked_max: 131_072,
            offenders_max: 65_536,
            connections_max: CONNECTIONS_MAX,
            joined_bytes_max: JOINED_BYTES_MAX,
            sockets: SocketLimits::default(),
        }
    }
}
