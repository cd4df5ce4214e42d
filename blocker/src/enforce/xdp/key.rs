//! Which map a prefix lives in, and under which key.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use aya::maps::lpm_trie;
use blocker_ebpf::{ALLOW_V4, ALLOW_V6, BANS_V4, BANS_V6, BANS_V6_64, PREFIXES_V4, PREFIXES_V6};

use crate::net::Prefix;

/// A key of one of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    V4([u8; 4]),
    V6([u8; 16]),
    V6Half([u8; 8]),
    Trie4(u32, [u8; 4]),
    Trie6(u32, [u8; 16]),
}

/// A map, and whether it is a prefix trie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) map: &'static str,
    pub(super) is_trie: bool,
}

/// Where a ban of `prefix` belongs.
pub(super) fn of_ban(prefix: Prefix) -> (Place, Key) {
    let length = u32::from(prefix.length());
    let hash = |map| Place { map, is_trie: false };
    let in_trie = |map| Place { map, is_trie: true };
    match prefix.address() {
        IpAddr::V4(address) if length == 32 => (hash(BANS_V4), Key::V4(address.octets())),
        IpAddr::V4(address) => (in_trie(PREFIXES_V4), Key::Trie4(length, address.octets())),
        IpAddr::V6(address) if length == 128 => (hash(BANS_V6), Key::V6(address.octets())),
        IpAddr::V6(address) if length == 64 => {
            let [a, b, c, d, e, f, g, h, ..] = address.octets();
            (hash(BANS_V6_64), Key::V6Half([a, b, c, d, e, f, g, h]))
        }
        IpAddr::V6(address) => (in_trie(PREFIXES_V6), Key::Trie6(length, address.octets())),
    }
}

/// Where an allowlisted prefix belongs.
pub(super) fn of_allow(prefix: Prefix) -> (&'static str, Key) {
    let length = u32::from(prefix.length());
    match prefix.address() {
        IpAddr::V4(address) => (ALLOW_V4, Key::Trie4(length, address.octets())),
        IpAddr::V6(address) => (ALLOW_V6, Key::Trie6(length, address.octets())),
    }
}

/// A trie's key in the library's form.
pub(super) fn trie<K: aya::Pod>(length: u32, data: K) -> lpm_trie::Key<K> {
    lpm_trie::Key::new(length, data)
}

impl Key {
    /// The prefix it stands for.
    pub(super) fn prefix(self) -> Option<Prefix> {
        let narrow = |length| u8::try_from(length).ok();
        match self {
            Self::V4(address) => Some(Prefix::host(address.into())),
            Self::V6(address) => Prefix::new(address.into(), 128),
            Self::V6Half(network) => {
                let mut address = [0; 16];
                address.iter_mut().zip(network).for_each(|(byte, of_network)| *byte = of_network);
                Prefix::new(address.into(), 64)
            }
            Self::Trie4(length, address) => Prefix::new(address.into(), narrow(length)?),
            Self::Trie6(length, address) => Prefix::new(address.into(), narrow(length)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_has_a_place_and_comes_back_from_it() {
        for (text, map) in [
            ("203.0.113.9", BANS_V4),
            ("10.0.0.0/8", PREFIXES_V4),
            ("2001:db8::1", BANS_V6),
            ("2001:db8::/64", BANS_V6_64),
            ("2001:db8::/63", PREFIXES_V6),
            ("2001:db8::/65", PREFIXES_V6),
        ] {
            let prefix: Prefix = text.parse().unwrap();
            let (place, key) = of_ban(prefix);
            assert_eq!((place.map, key.prefix()), (map, Some(prefix)));
            assert_eq!(of_allow(prefix).1.prefix(), Some(prefix));
        }
    }
}
