//! What the engine is to do, as data: the configuration after everything in it was checked.
#![forbid(unsafe_code)]

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{engine::SourceId, filter::Filter, net::Prefix, time::BanTime};

/// Everything the engine decides by.
#[derive(Clone, Debug, Default)]
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
    /// Seconds that local time is ahead of UTC, for log dates that name no zone.
    pub utc_offset_secs: i32,
}

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
}

/// Where lines come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceSpec {
    /// A log file by path; the last component may be a glob pattern (`*`, `?`).
    File(PathBuf),
    /// A unix datagram socket that applications write lines to.
    Socket(PathBuf),
}

/// Bounds, each counted when it bites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bans at once; default 65,536.
    pub bans_max: usize,
    /// (jail, prefix) pairs whose failures are tracked at once; default 131,072.
    pub tracked_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bans_max: 65_536, tracked_max: 131_072 }
    }
}
