//! The agent's own enforcers, filled with bans of the population.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use blocker::{
    enforce::{Enforcer, xdp},
    engine::Change,
    ledger::{Ban, Origin},
    net::{Prefix, Scope},
    time::{Timestamp, Until},
};
use xtask::lab::{Netns, agent::remove_pins};

use crate::spray::{Family, Program};

/// A kind of table that the XDP program can ask.
#[derive(Debug)]
pub(crate) struct Kind {
    /// As `[enforce] table` names it.
    pub(crate) name: &'static str,
    /// Whether the targets are set for it.
    pub(crate) judged: bool,
    /// What selects it.
    choose: fn(&mut xdp::Options),
}

/// One row for each.
pub(crate) const KINDS: [Kind; 2] = [
    Kind { name: "buckets", judged: true, choose: |options| options.layout = xdp::Layout::Buckets },
    Kind { name: "hash", judged: false, choose: |options| options.layout = xdp::Layout::Hash },
];

/// The size of the table when nobody says.
const BANS_MAX_DEFAULT: u64 = 65_536;

/// An interface of its own with the agent's program on it.
pub(crate) struct Ours {
    enforcer: Option<Box<xdp::Xdp>>,
    pins: PathBuf,
    _netns: Netns,
    _peer: Netns,
}

impl Ours {
    /// In a new namespace, with room for `bans`.
    pub(crate) fn open(kind: &Kind, bans: u64) -> Result<Self> {
        let (netns, peer) = (Netns::new("ours")?, Netns::new("peer")?);
        netns.link("eth0", &peer, "eth0")?;
        let pins = PathBuf::from("/sys/fs/bpf/blocker-bench");
        remove_pins(&pins);
        let enforcer = netns.enter(|| open_here(kind, bans, pins.clone()))?;
        Ok(Self { enforcer: Some(Box::new(enforcer)), pins, _netns: netns, _peer: peer })
    }

    pub(crate) fn enforcer(&mut self) -> &mut xdp::Xdp {
        self.enforcer.as_mut().expect("open until it is dropped")
    }

    /// The program, to be run or read.
    pub(crate) fn program(&mut self) -> Result<Program> {
        let fd = self.enforcer().program_fd().context("the enforcer has no program")?;
        Ok(Program { fd, frags: true })
    }

    /// Packets dropped so far.
    pub(crate) fn dropped(&mut self) -> Result<u64> {
        Ok(self.enforcer().counters()?.packets)
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.enforcer = None;
        remove_pins(&self.pins);
    }
}

/// The enforcer on `eth0` of the caller's namespace.
pub(crate) fn open_here(kind: &Kind, bans: u64, pins: PathBuf) -> Result<xdp::Xdp> {
    let bans_max = usize::try_from(bans.max(BANS_MAX_DEFAULT))?;
    let mut options = xdp::Options {
        interfaces: xdp::Interfaces::Named(vec!["eth0".to_owned()]),
        bans_max,
        pin_dir: pins,
        layout: xdp::Layout::Hash,
        ..xdp::Options::default()
    };
    (kind.choose)(&mut options);
    Ok(xdp::Xdp::open(&options)?)
}

/// The wall clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp::from_secs(i64::try_from(since.as_secs()).unwrap_or(0))
}

/// A ban for an hour.
pub(crate) fn ban(prefix: Prefix, now: Timestamp) -> Change {
    Change::Ban(Ban {
        prefix,
        scope: Scope::ALL,
        origin: Origin::Operator,
        since: now,
        until: Until::At(now.saturating_add(Duration::from_secs(3_600))),
        failures: 0,
        count: 0,
        reason: String::new(),
    })
}

/// Bans of the first sources of the population: an address, or an IPv6 network.
pub(crate) fn bans(family: Family, numbers: std::ops::Range<u64>, now: Timestamp) -> Vec<Change> {
    let length = match family {
        Family::V4 => 32,
        Family::V6 => 64,
    };
    numbers
        .filter_map(|number| Prefix::new(family.source(number), length))
        .map(|prefix| ban(prefix, now))
        .collect()
}

/// Wider bans, of sources whose numbers nobody else has: what a long-lived host gathers of them.
pub(crate) fn prefixes(family: Family, now: Timestamp) -> Vec<Change> {
    let lengths = match family {
        Family::V4 => [(24, 1_000), (20, 100), (16, 20)],
        Family::V6 => [(56, 1_000), (48, 100), (32, 20)],
    };
    let mut number = 1 << 23;
    let mut changes = Vec::new();
    for (length, count) in lengths {
        for _ in 0..count {
            number += 1;
            changes.extend(Prefix::new(family.source(number), length).map(|prefix| ban(prefix, now)));
        }
    }
    changes
}

/// Puts bans into an enforcer.
pub(crate) fn fill(enforcer: &mut dyn Enforcer, changes: &[Change]) -> Result<()> {
    Ok(enforcer.apply(changes, now())?)
}
