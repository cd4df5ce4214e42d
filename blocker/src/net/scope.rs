//! What of a banned source is dropped: everything it sends, or what it sends to some ports.
//!
//! Nearly every ban is on all ports, which costs nothing here. A list of ports is sorted, without overlaps and bounded, so
//! that two that mean the same are equal. Names of services are looked up by whoever reads them, not here.
#![forbid(unsafe_code)]

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize, de};

/// Ranges of ports in one scope: a packet is held against all of them.
pub const PORT_RANGES_MAX: usize = 32;
/// Scopes other than [`Scope::ALL`] that bans in force may have at once: the kernel looks a source up in each of those
/// that its packet's port is in.
pub const SCOPES_MAX: usize = 15;

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
    Udp,
    /// SCTP (RFC 9260).
    Sctp,
    /// DCCP (RFC 4340).
    Dccp,
}

impl Protocol {
    /// All of them; each has its destination port in the third and fourth byte of its header.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::Sctp, Self::Dccp];

    /// The number in an IP header, as IANA assigned it.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Dccp => 33,
        }
    }

    /// The name in /etc/protocols, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Dccp => "dccp",
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|protocol| protocol.name() == name);
        found.ok_or_else(|| format!("{name:?} is no protocol with ports: write tcp, udp, sctp or dccp"))
    }
}

/// Ports of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// Whose.
    pub protocol: Protocol,
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl PortRange {
    /// Whether a packet of this protocol to this port is meant.
    pub fn contains(self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && (self.first..=self.last).contains(&port)
    }

    /// Reads `22`, `ssh`, `8000-8010`, `8000:8010`, each with `/tcp` or another protocol behind it, tcp where there is
    /// none. What is no number is looked up in `services`.
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub fn parse(text: &str, services: &dyn Fn(&str) -> Option<u16>) -> Result<Self, String> {
        let (ports, protocol) = match text.split_once('/') {
            Some((ports, protocol)) => (ports, protocol.parse()?),
            None => (text, Protocol::Tcp),
        };
        let port = |word: &str| {
            let number = word.bytes().all(|b| b.is_ascii_digit()).then(|| word.parse().ok());
            number.unwrap_or_else(|| services(word))
        };
        if let Some(port) = port(ports) {
            return Ok(Self { protocol, first: port, last: port });
        }
        // Names may hold a `-` themselves.
        let Some((first, last)) = ports.split_once(':').or_else(|| ports.split_once('-')) else {
            return Err(match ports.bytes().all(|b| b.is_ascii_digit()) {
                true => format!("{ports:?} is no port: they go from 0 to 65535"),
                false => format!("there is no service {ports:?}"),
            });
        };
        let end = |word| port(word).ok_or_else(|| format!("{word:?} in {ports:?} is no port"));
        let (first, last) = (end(first)?, end(last)?);
        if first > last {
            return Err(format!("{ports:?} goes from a higher port to a lower one"));
        }
        Ok(Self { protocol, first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last != self.first {
            write!(f, "-{}", self.last)?;
        }
        write!(f, "/{}", self.protocol.name())
    }
}

/// What of a source is dropped. Bans of one prefix with different scopes stand beside each other.
///
/// In order: all ports come first.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(Option<Arc<Vec<PortRange>>>);

impl Scope {
    /// Every packet, whatever is in it.
    pub const ALL: Self = Self(None);

    /// First fragments and whole packets to these ports. Ranges that touch become one.
    ///
    /// # Errors
    /// When there is none, or more than [`PORT_RANGES_MAX`] are left.
    pub fn ports(ranges: impl IntoIterator<Item = PortRange>) -> Result<Self, String> {
        let mut ranges: Vec<PortRange> = ranges.into_iter().collect();
        ranges.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(before)
                    if before.protocol == range.protocol && range.first <= before.last.saturating_add(1) =>
                {
                    before.last = before.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        match merged.len() {
            0 => Err("no port is named".to_owned()),
            1..=PORT_RANGES_MAX => Ok(Self(Some(Arc::new(merged)))),
            many => Err(format!("{many} ranges of ports are more than {PORT_RANGES_MAX}")),
        }
    }

    /// Reads `all`, or ports as [`PortRange::parse`] does, with commas between.
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub fn parse(text: &str, services: &dyn Fn(&str) -> Option<u16>) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::ALL);
        }
        let ranges: Result<Vec<_>, _> =
            text.split(',').map(|word| PortRange::parse(word.trim(), services)).collect();
        Self::ports(ranges?)
    }

    /// Whether it is every packet.
    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// The ports, sorted and apart from each other; empty for all.
    pub fn ranges(&self) -> &[PortRange] {
        self.0.as_ref().map_or(&[], |ranges| ranges)
    }

    /// Whether whatever `other` drops is dropped by this one, too.
    pub fn covers(&self, other: &Self) -> bool {
        let Some(ranges) = &self.0 else { return true };
        let within = |inner: &PortRange| {
            ranges.iter().any(|range| {
                range.protocol == inner.protocol && range.first <= inner.first && inner.last <= range.last
            })
        };
        !other.is_all() && other.ranges().iter().all(within)
    }

    /// Whether a packet to this port is dropped; `None` is one whose ports cannot be told.
    pub fn drops(&self, to: Option<(Protocol, u16)>) -> bool {
        let Some(ranges) = &self.0 else { return true };
        to.is_some_and(|(protocol, port)| ranges.iter().any(|range| range.contains(protocol, port)))
    }
}

impl fmt::Display for Scope {
    /// `all`, or as `22/tcp,8000-8010/tcp`; read again by [`FromStr`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_all() {
            return f.write_str("all");
        }
        for (index, range) in self.ranges().iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            range.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Scope {
    type Err = String;

    /// Numbers only.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text, &|_| None)
    }
}

impl Serialize for Scope {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(name: &str) -> Option<u16> {
        [("ssh", 22), ("ftp-data", 20), ("http", 80)]
            .into_iter()
            .find(|(known, _)| *known == name)
            .map(|s| s.1)
    }

    #[test]
    fn what_means_the_same_is_equal_and_written_in_one_way() {
        for (text, expected) in [
            ("all", "all"),
            ("22", "22/tcp"),
            ("ssh", "22/tcp"),
            ("ftp-data", "20/tcp"),
            ("8000:8010", "8000-8010/tcp"),
            ("80, 22,22/tcp", "22/tcp,80/tcp"),
            ("20-22,21-30,31", "20-31/tcp"),
            ("53/udp,53", "53/tcp,53/udp"),
            ("0-65535/sctp, 65535/sctp", "0-65535/sctp"),
            ("ssh:http/dccp", "22-80/dccp"),
        ] {
            let scope = Scope::parse(text, &services).unwrap();
            assert_eq!(scope.to_string(), expected, "{text}");
            assert_eq!(expected.parse(), Ok(scope.clone()), "{text}");
            let json = serde_json::to_string(&scope).unwrap();
            assert_eq!(serde_json::from_str::<Scope>(&json).unwrap(), scope, "{json}");
        }
    }

    #[test]
    fn what_is_no_list_of_ports_is_refused_with_a_reason() {
        let many = (0..33).map(|n| (2 * n).to_string()).collect::<Vec<_>>().join(",");
        for (text, says) in [
            ("", "\"\" is no port"),
            ("22,", "\"\" is no port"),
            ("sssh", "no service \"sssh\""),
            ("65536", "0 to 65535"),
            ("99999999999", "0 to 65535"),
            ("+22", "no service"),
            ("22/icmp", "no protocol with ports"),
            ("22/", "no protocol with ports"),
            ("30-20", "from a higher port"),
            ("ssh-x", "\"x\" in \"ssh-x\""),
            (&many, "33 ranges of ports are more than 32"),
        ] {
            let error = Scope::parse(text, &services).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_scope_covers_what_lies_in_it_and_drops_what_it_names() {
        let scope = |text: &str| text.parse::<Scope>().unwrap();
        for (outer, inner, expected) in [
            ("all", "all", true),
            ("all", "22", true),
            ("22", "all", false),
            ("0-65535", "all", false),
            ("20-30", "22,25-30", true),
            ("20-30", "22/udp", false),
            ("22,80", "22-80", false),
        ] {
            assert_eq!(scope(outer).covers(&scope(inner)), expected, "{outer} {inner}");
        }
        let scope = scope("22,8000-8010,53/udp");
        for (to, expected) in [
            (Some((Protocol::Tcp, 22)), true),
            (Some((Protocol::Udp, 22)), false),
            (Some((Protocol::Tcp, 8_010)), true),
            (Some((Protocol::Tcp, 8_011)), false),
            (Some((Protocol::Udp, 53)), true),
            (None, false),
        ] {
            assert_eq!((scope.drops(to), Scope::ALL.drops(to)), (expected, true), "{to:?}");
        }
    }
}
