//! Addresses and prefixes, strictly.
//!
//! What is not an address in the form of RFC 4291 / dotted decimal is not an address: no octal, hex or short
//! forms, no zone ids, no digits of other scripts. `::ffff:a.b.c.d` becomes IPv4, so one attacker has one name.
#![forbid(unsafe_code)]

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

mod scope;

pub use scope::{PORT_RANGES_MAX, PortRange, Protocol, SCOPES_MAX, Scope};

/// The longest text that can be an address: eight groups of four, the last two as dotted decimal (RFC 4291 2.2).
pub const ADDRESS_BYTES_MAX: usize = 45;

/// Reads a whole token as an address; `None` for anything else. An IPv4-mapped IPv6 address becomes IPv4.
pub fn parse_address(token: &str) -> Option<IpAddr> {
    if token.len() > ADDRESS_BYTES_MAX {
        return None;
    }
    if !token.contains(':') {
        return parse_v4(token.as_bytes()).map(IpAddr::V4);
    }
    // std refuses octal-looking parts, short forms and zone ids, and reads ASCII digits only.
    token.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// As std does, in a third of the time: nearly every failure is of such an address.
fn parse_v4(token: &[u8]) -> Option<Ipv4Addr> {
    let (mut octets, mut part) = ([0; 4], 0);
    let (mut value, mut digits) = (0_u16, 0);
    for byte in token {
        match byte {
            b'0'..=b'9' if digits == 0 || value > 0 => {
                value = value * 10 + u16::from(byte - b'0');
                digits += 1;
                if value > 255 {
                    return None;
                }
            }
            b'.' if digits > 0 && part < 3 => {
                octets[part] = u8::try_from(value).ok()?;
                part += 1;
                (value, digits) = (0, 0);
            }
            _ => return None,
        }
    }
    octets[3] = u8::try_from(value).ok()?;
    (part == 3 && digits > 0).then(|| octets.into())
}

/// An address range in CIDR form; the host bits are always zero and IPv4-mapped ranges are IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The range of `length` leading bits around `address`; `None` when the length does not fit the family.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (address, length) = match (address, address.to_canonical()) {
            (IpAddr::V6(_), IpAddr::V4(v4)) if length >= 96 => (IpAddr::V4(v4), length - 96),
            (IpAddr::V6(v6), IpAddr::V4(_)) => (IpAddr::V6(v6), length),
            (_, canonical) => (canonical, length),
        };
        let address = match address {
            IpAddr::V4(v4) if length <= 32 => IpAddr::V4(Ipv4Addr::from_bits(
                v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0),
            )),
            IpAddr::V6(v6) if length <= 128 => IpAddr::V6(Ipv6Addr::from_bits(
                v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0),
            )),
            _ => return None,
        };
        Some(Self { address, length })
    }

    /// The range that holds this address alone.
    pub fn host(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// The first address, host bits zero.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Leading bits that count: 0 to 32 for IPv4, 0 to 128 for IPv6.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Whether this is exactly one address.
    pub fn is_host(self) -> bool {
        self.length == self.length_max()
    }

    /// The length of a single address in this family: 32 or 128.
    pub fn length_max(self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// Whether `address` lies inside.
    pub fn contains(self, address: IpAddr) -> bool {
        self.covers(Self::host(address))
    }

    /// Whether every address of `other` lies inside.
    pub fn covers(self, other: Self) -> bool {
        self.length <= other.length && self.agrees(other, self.length)
    }

    /// Whether the first `length` bits are the same, in the same family.
    fn agrees(self, other: Self, length: u8) -> bool {
        let skipped = u32::from(self.length_max() - length);
        match (self.address, other.address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (a.to_bits() ^ b.to_bits()).checked_shr(skipped).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                (a.to_bits() ^ b.to_bits()).checked_shr(skipped).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.agrees(other, self.length.min(other.length))
    }

    /// Why this range must never be banned, or `None` when it may be: unspecified, loopback, link-local, multicast
    /// and broadcast addresses (RFC 6890) are no attackers, and banning them would cut the host off from itself.
    pub fn unbannable(self) -> Option<&'static str> {
        // Every failure asks this, so nothing is parsed here.
        const fn v4(a: u8, b: u8, length: u8) -> Prefix {
            Prefix { address: IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)), length }
        }
        const fn v6(first: u16, last: u16, length: u8) -> Prefix {
            Prefix { address: IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last)), length }
        }
        const BROADCAST: Prefix = Prefix { address: IpAddr::V4(Ipv4Addr::BROADCAST), length: 32 };
        const NEVER: [(Prefix, &str); 9] = [
            (v4(0, 0, 8), "\"this network\" (0.0.0.0/8)"),
            (v4(127, 0, 8), "loopback (127.0.0.0/8)"),
            (v4(169, 254, 16), "link-local (169.254.0.0/16)"),
            (v4(224, 0, 4), "multicast (224.0.0.0/4)"),
            (BROADCAST, "broadcast"),
            (v6(0, 0, 128), "unspecified (::)"),
            (v6(0, 1, 128), "loopback (::1)"),
            (v6(0xfe80, 0, 10), "link-local (fe80::/10)"),
            (v6(0xff00, 0, 8), "multicast (ff00::/8)"),
        ];
        // All but the widest prefixes are told from these by their first byte.
        let first = match self.address {
            IpAddr::V4(v4) => v4.octets()[0],
            IpAddr::V6(v6) => v6.octets()[0],
        };
        let suspicious = match self.address {
            IpAddr::V4(_) => matches!(first, 0 | 127 | 169 | 224..),
            IpAddr::V6(_) => matches!(first, 0 | 0xfe | 0xff),
        };
        if self.length >= 8 && !suspicious {
            return None;
        }
        NEVER.iter().find_map(|(range, why)| self.overlaps(*range).then_some(*why))
    }
}

/// How many prefixes of each length a set holds: what covers an address is then looked for in few places, and in none
/// where the set is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// Lengths in use and their counts, ascending.
    v4: Vec<(u8, usize)>,
    v6: Vec<(u8, usize)>,
}

impl Lengths {
    /// A prefix has come.
    pub fn add(&mut self, prefix: Prefix) {
        let lengths = self.of_mut(prefix);
        match lengths.binary_search_by_key(&prefix.length, |(length, _)| *length) {
            Ok(at) => lengths[at].1 += 1,
            Err(at) => lengths.insert(at, (prefix.length, 1)),
        }
    }

    /// A prefix that was added has gone.
    pub fn remove(&mut self, prefix: Prefix) {
        let lengths = self.of_mut(prefix);
        if let Ok(at) = lengths.binary_search_by_key(&prefix.length, |(length, _)| *length) {
            lengths[at].1 -= 1;
            if lengths[at].1 == 0 {
                lengths.remove(at);
            }
        }
    }

    /// The prefixes that cover `prefix` and have a length in use, the widest first.
    pub fn covering(&self, prefix: Prefix) -> impl DoubleEndedIterator<Item = Prefix> {
        let lengths = if prefix.address.is_ipv4() { &self.v4 } else { &self.v6 };
        let wide = lengths.iter().take_while(move |(length, _)| *length <= prefix.length).count();
        lengths[..wide].iter().filter_map(move |(length, _)| Prefix::new(prefix.address, *length))
    }

    fn of_mut(&mut self, prefix: Prefix) -> &mut Vec<(u8, usize)> {
        if prefix.address.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }
}

impl fmt::Display for Prefix {
    /// A single address without its length, anything wider as `address/length`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() { self.address.fmt(f) } else { write!(f, "{}/{}", self.address, self.length) }
    }
}

impl FromStr for Prefix {
    type Err = String;

    /// `ADDRESS` or `ADDRESS/LENGTH`; set host bits are an error, since they show that something else was meant.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address_text, length_text) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let Some(canonical) = parse_address(address_text) else {
            return Err(format!(
                "{text:?} is not an IP address or prefix; write for example 203.0.113.9 or 2001:db8::/64"
            ));
        };
        let Some(length_text) = length_text else { return Ok(Self::host(canonical)) };
        let address: IpAddr = address_text.parse().unwrap_or(canonical);
        let plain = !length_text.is_empty()
            && length_text.len() <= 3
            && length_text.bytes().all(|b| b.is_ascii_digit());
        let prefix =
            plain.then(|| length_text.parse().ok()).flatten().and_then(|length| Self::new(address, length));
        let Some(prefix) = prefix else {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            return Err(format!("{text:?}: the prefix length must be a number from 0 to {longest}"));
        };
        if prefix.address != canonical && prefix.address != address {
            return Err(format!("{text:?} has bits set to the right of its length; did you mean {prefix}?"));
        }
        Ok(prefix)
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn an_address_is_what_std_takes_for_one(
            token in prop_oneof!["[0-9]{1,4}(\\.[0-9]{1,4}){2,4}", "[012:.x ]{0,16}", "[0-2]?[0-9]?[0-9](\\.[0-2]?[0-9]?[0-9]){3}"],
        ) {
            let wanted = token.parse::<IpAddr>().ok().map(|address| address.to_canonical());
            prop_assert_eq!(parse_address(&token), wanted, "{}", token);
        }
    }

    #[test]
    fn each_part_of_an_address_is_read_as_std_reads_it() {
        // Nothing, every number of up to three digits with and without zeros in front, and some that are longer.
        let mut parts: Vec<String> =
            ["", "0000", "0001", "1000", "2550", "65537", "4294967297", "0x1", "+1", " 1", "1 ", "\u{661}"]
                .map(str::to_owned)
                .into();
        for number in 0..1_000 {
            parts.extend([format!("{number}"), format!("{number:02}"), format!("{number:03}")]);
        }
        for part in &parts {
            for token in [
                part.clone(),
                format!("{part}.2.3.4"),
                format!("1.{part}.3.4"),
                format!("1.2.{part}.4"),
                format!("1.2.3.{part}"),
                format!("1.2.{part}"),
                format!("1.{part}"),
                format!("1.2.3.4.{part}"),
                format!("{part}.{part}.{part}.{part}"),
            ] {
                let wanted = token.parse::<IpAddr>().ok();
                assert_eq!(parse_address(&token), wanted, "{token:?}");
            }
        }
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn only_whole_rfc_forms_are_addresses() {
        for (token, address) in [
            ("203.0.113.9", "203.0.113.9"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("::FFFF:cb00:7109", "203.0.113.9"),
        ] {
            assert_eq!(parse_address(token), Some(address.parse().unwrap()), "{token}");
        }
        for token in [
            "",
            "1.2.3",
            "1.2.3.4.5",
            "01.2.3.4",
            "0x1.2.3.4",
            "999.1.1.1",
            "1.2.3.4 ",
            "fe80::1%eth0",
            "١.2.3.4",
            "1.2.3.4/32",
            "[::1]",
            ":::1",
        ] {
            assert_eq!(parse_address(token), None, "{token}");
        }
    }

    #[test]
    fn prefixes_are_read_and_printed() {
        for (text, printed) in [
            ("203.0.113.9", "203.0.113.9"),
            ("203.0.113.9/32", "203.0.113.9"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:db8::/64", "2001:db8::/64"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ] {
            assert_eq!(prefix(text).to_string(), printed, "{text}");
        }
        for text in ["10.0.0.1/8", "10.0.0.0/33", "::/129", "1.2.3.4/", "1.2.3.4/+8", "1.2.3.4/08888", "x/8"]
        {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_cover_and_overlap() {
        assert!(prefix("10.0.0.0/8").covers(prefix("10.1.0.0/16")));
        assert!(!prefix("10.1.0.0/16").covers(prefix("10.0.0.0/8")));
        assert!(prefix("10.1.0.0/16").overlaps(prefix("10.0.0.0/8")));
        assert!(!prefix("0.0.0.0/0").covers(prefix("::1")));
        assert!(prefix("2001:db8::/64").contains("2001:db8::dead".parse().unwrap()));
    }

    #[test]
    fn addresses_that_are_no_attacker_are_unbannable() {
        for text in [
            "127.0.0.1",
            "0.0.0.0",
            "0.0.0.0/0",
            "224.0.0.1",
            "255.255.255.255",
            "fe80::1",
            "::1",
            "ff02::1",
            "::/0",
        ] {
            assert!(prefix(text).unbannable().is_some(), "{text}");
        }
        for text in ["203.0.113.9", "10.0.0.0/8", "2001:db8::/64"] {
            assert_eq!(prefix(text).unbannable(), None, "{text}");
        }
    }
}
