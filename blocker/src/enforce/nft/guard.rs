//! What spares an honest packet the lookup of every prefix length.
//!
//! Each length in use is one lookup, about 80 ns; thirteen of them cost an honest packet 1.1 us. A guard is one small
//! set before them: the /16 of IPv4 (a bitmap of 16 KiB in the kernel) or the /32 of IPv6 that hold any such prefix.
//! A packet from elsewhere asks no further; an interval set, the other way, takes 0.4 us and refuses nested bans.
//!
//! A guard may say yes too often, as for bans that ended, and never no too often: its keys are written in the
//! transaction that writes the prefix, and go only when the guards are written anew.
#![forbid(unsafe_code)]

use std::{net::IpAddr, ops::RangeInclusive};

use super::layout::Kind;
use crate::net::Prefix;

/// A group of prefix lengths that is asked only where its guard says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Guard {
    /// IPv4 bans of 8 to 31 bits.
    Ban4,
    /// IPv6 bans of 65 to 127 bits.
    BanLong6,
    /// IPv6 bans of 32 to 63 bits.
    Ban6,
    /// The IPv4 allowlist from 8 bits on.
    Allow4,
    /// The IPv6 allowlist from 32 bits on.
    Allow6,
}

impl Guard {
    /// All of them.
    pub(super) const ALL: [Self; 5] = [Self::Ban4, Self::BanLong6, Self::Ban6, Self::Allow4, Self::Allow6];

    /// The guard of a prefix length; what is asked of every packet, or too wide to be counted out, has none.
    pub(super) fn of(kind: Kind, v6: bool, length: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|guard| (guard.kind(), guard.is_v6()) == (kind, v6) && guard.lengths().contains(&length))
    }

    /// Of its set, and of the chain that it leads to.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ban4 => "guard_ban4",
            Self::BanLong6 => "guard_ban6_long",
            Self::Ban6 => "guard_ban6",
            Self::Allow4 => "guard_allow4",
            Self::Allow6 => "guard_allow6",
        }
    }

    pub(super) fn kind(self) -> Kind {
        if matches!(self, Self::Allow4 | Self::Allow6) { Kind::Allow } else { Kind::Ban }
    }

    pub(super) fn is_v6(self) -> bool {
        !matches!(self, Self::Ban4 | Self::Allow4)
    }

    /// Bytes of a key: the first of the source address.
    pub(super) fn key_bytes(self) -> u8 {
        if self.is_v6() { 4 } else { 2 }
    }

    fn lengths(self) -> RangeInclusive<u8> {
        match self {
            Self::Ban4 => 8..=31,
            Self::BanLong6 => 65..=127,
            Self::Ban6 => 32..=63,
            Self::Allow4 => 8..=32,
            Self::Allow6 => 32..=128,
        }
    }

    /// The keys that a prefix of this guard's needs: one, or for IPv4 shorter than /16 up to 256.
    pub(super) fn keys(self, prefix: Prefix) -> RangeInclusive<u32> {
        match prefix.address() {
            IpAddr::V4(v4) => {
                let first = v4.to_bits() >> 16;
                let shorter = 16_u8.saturating_sub(prefix.length()).min(15);
                first..=first | ((1 << shorter) - 1)
            }
            IpAddr::V6(v6) => {
                let first = u32::try_from(v6.to_bits() >> 96).unwrap_or(u32::MAX);
                first..=first
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_a_guarded_prefix_has_its_key() {
        for (text, guard, first, last) in [
            ("20.85.170.0/24", Guard::Ban4, 0x1455, 0x1455),
            ("20.85.0.0/16", Guard::Ban4, 0x1455, 0x1455),
            ("20.84.0.0/15", Guard::Ban4, 0x1454, 0x1455),
            ("20.0.0.0/8", Guard::Ban4, 0x1400, 0x14ff),
            ("2001:db8::/32", Guard::Ban6, 0x2001_0db8, 0x2001_0db8),
            ("2001:db8:1:2:3::/80", Guard::BanLong6, 0x2001_0db8, 0x2001_0db8),
        ] {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(Guard::of(Kind::Ban, prefix.address().is_ipv6(), prefix.length()), Some(guard));
            assert_eq!(guard.keys(prefix), first..=last, "{text}");
        }
        for (v6, length) in [(false, 32), (false, 7), (false, 0), (true, 128), (true, 64), (true, 31)] {
            assert_eq!(Guard::of(Kind::Ban, v6, length), None, "{length}");
        }
    }
}
