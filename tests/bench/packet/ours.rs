//! The agent's own enforcers, filled with bans of the population.

use std::{
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use blocker::{
    enforce::{Enforcer, xdp},
    engine::Change,
    ledger::{Ban, Origin},
    net::{Prefix, Scope},
    time::{Timestamp, Until},
};
use xtask::lab::{Netns, agent::remove_pins};

use crate::{
    spray::{Family, Program},
    syscalls::{self, MapFacts},
};

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

/// How long a million bans may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bans handed over at once, so that patience can end: a transaction of nftables.
const PART: usize = 65_536;

/// An interface of its own with the agent's program on it.
pub(crate) struct Ours {
    enforcer: Box<xdp::Xdp>,
    _pins: Pins,
    _netns: Netns,
    _peer: Netns,
}

impl Ours {
    /// In a new namespace, with room for `bans`.
    pub(crate) fn open(kind: &Kind, bans: u64) -> Result<Self> {
        let (netns, peer) = (Netns::new("ours")?, Netns::new("peer")?);
        netns.link("eth0", &peer, "eth0")?;
        let pins = Pins(Path::new("/sys/fs/bpf").join(netns.name()));
        let enforcer = netns.enter(|| open_here(kind, bans, &pins))?;
        Ok(Self { enforcer: Box::new(enforcer), _pins: pins, _netns: netns, _peer: peer })
    }

    pub(crate) fn enforcer(&mut self) -> &mut xdp::Xdp {
        &mut self.enforcer
    }

    /// The program, to be run or read.
    pub(crate) fn program(&mut self) -> Result<Program> {
        let fd = self.enforcer().program_fd().context("the enforcer has no program")?;
        Ok(Program { fd, frags: true })
    }

    /// Its maps, and what they weigh.
    pub(crate) fn maps(&mut self) -> Result<Vec<MapFacts>> {
        Ok(syscalls::maps_of(self.program()?.fd.as_raw_fd())?)
    }

    /// Packets dropped so far.
    pub(crate) fn dropped(&mut self) -> Result<u64> {
        Ok(self.enforcer().counters()?.packets)
    }
}

/// A folder of pins; what is pinned there ends with this.
#[derive(Debug)]
pub(crate) struct Pins(pub(crate) PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        remove_pins(&self.0);
    }
}

/// The enforcer on `eth0` of the caller's namespace.
pub(crate) fn open_here(kind: &Kind, bans: u64, pins: &Pins) -> Result<xdp::Xdp> {
    let bans_max = usize::try_from(bans.max(BANS_MAX_DEFAULT))?;
    let mut options = xdp::Options {
        interfaces: xdp::Interfaces::Named(vec!["eth0".to_owned()]),
        bans_max,
        pin_dir: pins.0.clone(),
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

/// Puts bans into an enforcer, at most for [`PATIENCE`].
pub(crate) fn fill(enforcer: &mut dyn Enforcer, changes: &[Change]) -> Result<()> {
    let (began, now) = (Instant::now(), now());
    let mut done = 0;
    for part in changes.chunks(PART) {
        ensure!(
            began.elapsed() < PATIENCE,
            "{done} of {} bans took {:.0} s, and the rest is not waited for",
            changes.len(),
            began.elapsed().as_secs_f64()
        );
        enforcer.apply(part, now)?;
        done += part.len();
    }
    Ok(())
}
