//! Frames of every kind, made byte by byte, and whether a ban of their source drops them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
const HOST_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);

/// A frame and what is expected of it.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) dropped_when_banned: bool,
}

/// A TCP segment from `source`.
pub(crate) fn tcp(source: IpAddr) -> Vec<u8> {
    match source {
        IpAddr::V4(source) => frame(&[0x08, 0], &ipv4(source, 0x45, 0, 6, &[0; 20])),
        IpAddr::V6(source) => frame(&[0x86, 0xdd], &ipv6(source, 6, 64, &[0; 20])),
    }
}

/// Every kind of frame that names its source, and those that do not.
pub(crate) fn kinds(v4: IpAddr, v6: IpAddr) -> Vec<Kind> {
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (v4, v6) else { panic!("one of each family") };
    let plain4 = ipv4(v4, 0x45, 0, 6, &[0; 20]);
    let plain6 = ipv6(v6, 6, 64, &[0; 20]);
    let dhcp = [0, 68, 0, 67, 0, 8, 0, 0];
    let dhcp6 = [2, 0x22, 2, 0x23, 0, 8, 0, 0];
    let solicitation = [135, 0, 0, 0, 0, 0, 0, 0];
    let kind = |name, bytes, dropped_when_banned| Kind { name, bytes, dropped_when_banned };
    vec![
        kind("TCP over IPv4", frame(&[8, 0], &plain4), true),
        kind("TCP over IPv6", frame(&[0x86, 0xdd], &plain6), true),
        kind("UDP", frame(&[8, 0], &ipv4(v4, 0x45, 0, 17, &[0; 8])), true),
        kind("ICMP", frame(&[8, 0], &ipv4(v4, 0x45, 0, 1, &[8; 8])), true),
        kind("an unknown protocol", frame(&[8, 0], &ipv4(v4, 0x45, 0, 253, &[])), true),
        kind("one VLAN tag", frame(&[0x81, 0, 0, 5, 8, 0], &plain4), true),
        kind("one service tag, IPv6", frame(&[0x88, 0xa8, 0, 5, 0x86, 0xdd], &plain6), true),
        kind("two VLAN tags", frame(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0], &plain4), true),
        kind("IPv4 with options", frame(&[8, 0], &ipv4(v4, 0x4f, 0, 6, &[0; 20])), true),
        kind("a first fragment", frame(&[8, 0], &ipv4(v4, 0x45, 0x2000, 17, &[0; 8])), true),
        kind("a later fragment", frame(&[8, 0], &ipv4(v4, 0x45, 0x00b9, 17, &[9; 8])), true),
        kind("IPv6 hop-by-hop", frame(&[0x86, 0xdd], &ipv6(v6, 0, 64, &[6, 0, 1, 4, 0, 0, 0, 0])), true),
        kind("an IPv6 fragment", frame(&[0x86, 0xdd], &ipv6(v6, 44, 64, &[17, 0, 0, 9, 0, 0, 0, 1])), true),
        kind("echo request over IPv6", frame(&[0x86, 0xdd], &ipv6(v6, 58, 64, &[128; 8])), true),
        kind("neighbour solicitation", frame(&[0x86, 0xdd], &ipv6(v6, 58, 255, &solicitation)), false),
        kind("DHCP", frame(&[8, 0], &ipv4(v4, 0x45, 0, 17, &dhcp)), false),
        kind("DHCPv6", frame(&[0x86, 0xdd], &ipv6(v6, 17, 64, &dhcp6)), false),
        kind("ARP", frame(&[8, 6], &[0; 28]), false),
        kind("three VLAN tags", frame(&[0x81, 0, 0, 5, 0x81, 0, 0, 6, 0x81, 0, 0, 7, 8, 0], &plain4), false),
        kind("PPPoE", frame(&[0x88, 0x64], &plain4), false),
        kind("MPLS", frame(&[0x88, 0x47], &plain4), false),
        kind("IPv4 cut short", frame(&[8, 0], &plain4[..19]), false),
        kind("IPv4 of version 6", frame(&[8, 0], &ipv4(v4, 0x65, 0, 6, &[0; 20])), false),
        kind("nothing behind the EtherType", frame(&[8, 0], &[]), false),
    ]
}

pub(crate) fn frame(ethertype: &[u8], payload: &[u8]) -> Vec<u8> {
    [&MACS, ethertype, payload].concat()
}

/// With a total length and a checksum (RFC 791) that hold, so that the stack looks further; options are no-ops.
pub(crate) fn ipv4(source: Ipv4Addr, first: u8, fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let options = vec![1; usize::from(first & 0xf).saturating_sub(5) * 4];
    let length = u16::try_from(20 + options.len() + payload.len()).expect("a short frame").to_be_bytes();
    let [high, low] = fragment.to_be_bytes();
    let mut header = vec![first, 0, length[0], length[1], 0, 1, high, low, 64, protocol, 0, 0];
    header.extend(source.octets());
    header.extend(HOST_V4.octets());
    header.extend(options);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded");
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header.extend(payload);
    header
}

pub(crate) fn ipv6(source: Ipv6Addr, next_header: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short frame");
    let mut header = vec![0x60, 0, 0, 0, 0, length, next_header, hop_limit];
    header.extend(source.octets());
    header.extend(HOST_V6.octets());
    header.extend(payload);
    header
}

/// A TCP segment behind one VLAN tag.
pub(crate) fn tagged(vlan: u16, source: IpAddr) -> Vec<u8> {
    let plain = tcp(source);
    [&plain[..12], &[0x81, 0], &vlan.to_be_bytes(), &plain[12..]].concat()
}
