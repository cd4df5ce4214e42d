//! The first judge: the pure parser, over the plainest set of bans.

use std::{net::IpAddr, time::SystemTime};

use blocker::{
    enforce::{Enforcer as _, memory::Memory},
    engine::Change,
    ledger::{Ban, Origin},
    net::{Prefix, Scope},
    time::{Timestamp, Until},
};
use blocker_ebpf::packet::{self, Source};

use super::generate::{ALLOWED, BANNED};

pub(crate) fn now() -> Timestamp {
    Timestamp::EPOCH.saturating_add(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

/// What makes an enforcer hold [`BANNED`] and [`ALLOWED`].
pub(crate) fn changes() -> Vec<Change> {
    let ban = |text: &str| {
        Change::Ban(Ban {
            prefix: text.parse().unwrap(),
            scope: Scope::ALL,
            origin: Origin::Operator,
            since: now(),
            until: Until::Forever,
            failures: 0,
            count: 0,
            reason: String::new(),
        })
    };
    let allowed = ALLOWED.iter().map(|text| Change::Allow { prefix: text.parse().unwrap() });
    BANNED.iter().map(|text| ban(text)).chain(allowed).collect()
}

/// The pure parser over the plainest set of bans.
pub(crate) struct Parser(Memory);

impl Parser {
    pub(crate) fn new() -> Self {
        let mut memory = Memory::default();
        memory.apply(&changes(), now()).unwrap();
        Self(memory)
    }

    pub(crate) fn drops_source(&self, source: IpAddr) -> bool {
        // An IPv4-mapped source in an IPv6 header is nobody's: no answer to it would get there.
        source == source.to_canonical() && self.0.drops(Prefix::host(source), now())
    }

    /// The source, where the frame says one and is not kept for the link's sake.
    pub(crate) fn source(frame: &[u8]) -> Option<IpAddr> {
        let packet = packet::parse(frame)?;
        let source = match packet.source {
            Source::V4(octets) => octets.into(),
            Source::V6(octets) => octets.into(),
        };
        (!packet::is_link_upkeep(frame, &packet)).then_some(source)
    }

    pub(crate) fn drops(&self, frame: &[u8]) -> bool {
        Self::source(frame).is_some_and(|source| self.drops_source(source))
    }
}

/// The frame without its outer tags, but for two.
pub(crate) fn with_two_tags(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let is_tag = |frame: &[u8], at: usize| matches!(frame.get(at..at + 2), Some([0x81, 0] | [0x88, 0xa8]));
    while (0..3).all(|tag| is_tag(&frame, 12 + 4 * tag)) {
        frame.drain(12..16);
    }
    frame
}
