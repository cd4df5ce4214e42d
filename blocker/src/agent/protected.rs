//! Addresses that no log line may get banned: this host's own, its default gateways, its resolvers.
//!
//! Read from `/proc/self/net`, which shows the network namespace of the calling thread, and from `resolv.conf`.
//! What cannot be read protects less, never more, so every gap is returned as a warning.
#![forbid(unsafe_code)]

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::net::{Prefix, parse_address};

/// The protected prefixes found, sorted, and what could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Protected {
    /// Each a single address.
    pub(super) prefixes: Vec<Prefix>,
    /// Sentences for the operator.
    pub(super) warnings: Vec<String>,
}

/// Takes the addresses out of a table's text.
type Reader = fn(&str) -> Vec<IpAddr>;

/// Looks them up now.
pub(super) fn discover() -> Protected {
    let mut found = Protected::default();
    let readers: [(&str, Reader); 5] = [
        ("/proc/self/net/fib_trie", own_v4),
        ("/proc/self/net/if_inet6", own_v6),
        ("/proc/self/net/route", gateways_v4),
        ("/proc/self/net/ipv6_route", gateways_v6),
        ("/etc/resolv.conf", resolvers),
    ];
    for (path, read) in readers {
        match fs::read_to_string(path) {
            Ok(text) => found.prefixes.extend(read(&text).into_iter().map(Prefix::host)),
            // A kernel without IPv6 has no such tables, and a host may have no resolver.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => found.warnings.push(format!(
                "cannot read {path}: {error}; its addresses are not protected, list them in `allowlist`"
            )),
        }
    }
    // What can never be banned anyway only makes the list longer.
    found.prefixes.retain(|prefix| prefix.unbannable().is_none());
    found.prefixes.sort_unstable();
    found.prefixes.dedup();
    found
}

/// `/proc/net/fib_trie`: a line `|-- ADDRESS` followed by `/32 host LOCAL` is an address of this host.
fn own_v4(text: &str) -> Vec<IpAddr> {
    let mut last = None;
    let mut own = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = parse_address(address);
        } else if line.starts_with("/32 host LOCAL") {
            own.extend(last);
        }
    }
    own
}

/// `/proc/net/if_inet6`: 32 hex digits, then index, prefix length, scope, flags and name.
fn own_v6(text: &str) -> Vec<IpAddr> {
    text.lines().filter_map(|line| hex_v6(line.split_ascii_whitespace().next()?)).collect()
}

/// `/proc/net/route`: destination and gateway as the hex of a `u32` in memory order.
fn gateways_v4(text: &str) -> Vec<IpAddr> {
    let route = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        (destination == "00000000" && gateway != 0).then(|| IpAddr::V4(Ipv4Addr::from(gateway.to_ne_bytes())))
    };
    text.lines().filter_map(route).collect()
}

/// `/proc/net/ipv6_route`: destination, its length, source, its length, next hop.
fn gateways_v6(text: &str) -> Vec<IpAddr> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let default = fields.get(1) == Some(&"00");
        hex_v6(fields.get(4).filter(|_| default)?).filter(|hop| !hop.is_unspecified())
    };
    text.lines().filter_map(route).collect()
}

/// `resolv.conf(5)`: `nameserver ADDRESS`, perhaps with a zone.
fn resolvers(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let address = line.trim().strip_prefix("nameserver")?.split_ascii_whitespace().next()?;
        parse_address(address.split('%').next().unwrap_or(address))
    };
    text.lines().filter_map(server).collect()
}

fn hex_v6(hex: &str) -> Option<IpAddr> {
    let bits = u128::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 32)?;
    Some(IpAddr::V6(Ipv6Addr::from_bits(bits)).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let fib = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 198.51.100.0\n        /24 link UNICAST\n     |-- 198.51.100.1\n        /32 host LOCAL\n     |-- 198.51.100.255\n        /32 link BROADCAST\n";
        let inet6 = "20010db8000100000000000000000001 02 40 00 80     eth0\nfe80 02 40 20 80 eth0\n";
        let route = "Iface\tDestination\tGateway \tFlags\neth0\t00000000\tFE6433C6\t0003\neth0\t006433C6\t00000000\t0001\n";
        let route6 = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 20010db80001000000000000000000fe 00000400 00000001 00000000 00000003 eth0\n00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo\n";
        let resolv = "# made by hand\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n nameserver 2001:db8::53\nsearch example.org\n";
        let cases: [(Reader, &str, &[&str]); 5] = [
            (own_v4, fib, &["198.51.100.1"]),
            (own_v6, inet6, &["2001:db8:1::1"]),
            (gateways_v4, route, &["198.51.100.254"]),
            (gateways_v6, route6, &["2001:db8:1::fe"]),
            (resolvers, resolv, &["192.0.2.53", "fe80::1", "2001:db8::53"]),
        ];
        for (read, text, expected) in cases {
            let expected: Vec<IpAddr> = expected.iter().map(|a| a.parse().unwrap()).collect();
            assert_eq!(read(text), expected, "{text}");
            assert_eq!(read("garbage \u{0}\n\n|-- \n"), Vec::<IpAddr>::new());
        }
    }
}
