//! The table against what it stands for: every interleaving of one reader with short histories of the writer, and long
//! histories beside a plain set.

use std::collections::{BTreeMap, BTreeSet};

use blocker_ebpf::packet::Source;

use crate::net::Prefix;

mod flat;
mod histories;
mod interleavings;
mod prefilter;

/// What the table stands for.
#[derive(Clone, Debug, Default)]
pub(super) struct Plain {
    pub(super) bans: BTreeMap<Prefix, u32>,
    pub(super) allowed: BTreeSet<Prefix>,
}

impl Plain {
    pub(super) fn drops(&self, source: Prefix, now: u32) -> bool {
        let banned = self.bans.iter().any(|(prefix, end)| prefix.covers(source) && *end > now);
        banned && !self.allowed.iter().any(|prefix| prefix.covers(source))
    }
}

pub(super) fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

pub(super) const NOW: u32 = 100;

pub(super) fn source_of(text: &str) -> Source {
    match prefix(text).address() {
        std::net::IpAddr::V4(address) => Source::V4(address.octets()),
        std::net::IpAddr::V6(address) => Source::V6(address.octets()),
    }
}
