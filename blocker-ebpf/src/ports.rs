//! Bans on some ports: where a frame goes, and what the program and the agent must agree on for it.
//!
//! The few scopes in use have numbers. [`PORTS`] says for each port in which of them it is, [`SCOPED`] holds the bans of
//! all of them. A frame is only looked at this closely while there is such a ban, and one whose port cannot be told
//! passes.

use crate::packet::{Frame, Packet, Source};

/// In which scopes each port is: for each, a [`PortScopes`].
pub const PORTS: &str = "PORTS";
/// Bans on some ports.
pub const SCOPED: &str = "SCOPED";
/// What the agent tells the program of them.
pub const SCOPED_STATE: &str = "SCOPED_STATE";

/// Scopes at once; a bit each, of which the lowest is not used.
pub const SCOPES_MAX: usize = 15;
/// Protocols with ports: TCP, UDP, SCTP, DCCP (IANA's assigned numbers), in the order of their lanes.
pub const PROTOCOLS: [u8; 4] = [6, 17, 132, 33];
/// A lane of 16 bits for each protocol, a bit for each scope.
pub type PortScopes = u64;
/// One for each port.
pub const PORTS_ENTRIES: u32 = 65_536;
/// Prefix lengths of one family that bans on ports may have at once.
pub const LENGTHS_MAX: usize = 8;

/// Length of the prefix, 4 or 6, number of the scope, nothing; then the masked address, an IPv4 one in its first bytes.
pub type ScopedKey = [u8; 20];
/// As [`crate::BanValue`], without the length.
pub type ScopedValue = [u64; 3];

/// A prefix length in use, with one added; 0 ends the list. The longest first, for IPv4 and for IPv6.
pub type ScopedState = [[u8; LENGTHS_MAX]; 2];

/// Headers between the fixed IPv6 header and the ports that are looked past.
pub const EXTENSIONS_MAX: usize = 8;
/// How far from the IPv6 header ports are looked for, at most.
pub const PORTS_OFFSET_MAX: usize = 1_024;

/// The lane of a protocol in a [`PortScopes`].
#[inline(always)]
pub fn lane(protocol: u8) -> Option<u32> {
    match protocol {
        6 => Some(0),
        17 => Some(16),
        132 => Some(32),
        33 => Some(48),
        _ => None,
    }
}

/// The key of a ban.
#[inline(always)]
pub fn scoped_key(scope: u8, source: &Source, length: u8) -> ScopedKey {
    let mut key = [0; 20];
    let (family, address) = match source {
        Source::V4(v4) => {
            let masked = u32::from_be_bytes(*v4) & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            let mut address = [0; 16];
            address[..4].copy_from_slice(&masked.to_be_bytes());
            (4, address)
        }
        Source::V6(v6) => {
            let (mut high, mut low) = ([0; 8], [0; 8]);
            high.copy_from_slice(&v6[..8]);
            low.copy_from_slice(&v6[8..]);
            let ones = |bits: u32| u64::MAX.checked_shl(64 - bits).unwrap_or(0);
            let length = u32::from(length);
            let (in_high, in_low) = if length > 64 { (64, length - 64) } else { (length, 0) };
            let mut address = [0; 16];
            address[..8].copy_from_slice(&(u64::from_be_bytes(high) & ones(in_high)).to_be_bytes());
            address[8..].copy_from_slice(&(u64::from_be_bytes(low) & ones(in_low)).to_be_bytes());
            (6, address)
        }
    };
    [key[0], key[1], key[2]] = [length, family, scope];
    key[4..].copy_from_slice(&address);
    key
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const IPV6_BYTES: usize = 40;
/// Source and destination port, with which all four headers begin.
const PORTS_BYTES: usize = 4;

/// The protocol and the destination port of a whole packet or a first fragment. `None` where there is none, or it is
/// behind more headers than are looked past.
#[inline(always)]
pub fn destination<F: Frame + ?Sized>(frame: &F, packet: &Packet) -> Option<(u8, u16)> {
    match packet.source {
        Source::V4(_) => destination_v4(frame, packet.ip_offset),
        Source::V6(_) => destination_v6(frame, packet.ip_offset),
    }
}

#[inline(always)]
fn destination_v4<F: Frame + ?Sized>(frame: &F, ip_offset: usize) -> Option<(u8, u16)> {
    let header: [u8; 20] = frame.bytes(ip_offset)?;
    let header_bytes = usize::from(header[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // Only the first fragment has ports, and what lies behind the total length is none of the packet (RFC 791 3.1).
    let is_later = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    if header_bytes < 20 || is_later || total < header_bytes + PORTS_BYTES {
        return None;
    }
    lane(header[9])?;
    let port = frame.bytes(ip_offset + header_bytes + 2)?;
    Some((header[9], u16::from_be_bytes(port)))
}

#[inline(always)]
fn destination_v6<F: Frame + ?Sized>(frame: &F, ip_offset: usize) -> Option<(u8, u16)> {
    let [high, low, mut next]: [u8; 3] = frame.bytes(ip_offset + 4)?;
    let end = IPV6_BYTES + usize::from(u16::from_be_bytes([high, low]));
    let mut offset = IPV6_BYTES;
    for _ in 0..=EXTENSIONS_MAX {
        if lane(next).is_some() {
            if offset + PORTS_BYTES > end {
                return None;
            }
            let port = frame.bytes(ip_offset + offset + 2)?;
            return Some((next, u16::from_be_bytes(port)));
        }
        // RFC 8200 4, RFC 4302 2.2.
        let [behind, length, high, low]: [u8; 4] = frame.bytes(ip_offset + offset)?;
        offset += match next {
            HOP_BY_HOP | ROUTING | DESTINATION => (usize::from(length) + 1) * 8,
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            FRAGMENT if u16::from_be_bytes([high, low]) & 0xfff8 == 0 => 8,
            _ => return None,
        };
        if offset > PORTS_OFFSET_MAX {
            return None;
        }
        next = behind;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;

    fn v4(first: u8, fragment: u16, protocol: u8, total: u16, port: u16) -> Vec<u8> {
        let ([high, low], [long, short]) = (fragment.to_be_bytes(), total.to_be_bytes());
        let mut frame = vec![0; 12];
        frame.extend([8, 0, first, 0, long, short, 0, 1, high, low, 64, protocol, 0, 0]);
        frame.extend([203, 0, 113, 9, 198, 51, 100, 1]);
        frame.extend(vec![1; usize::from(first & 0xf).saturating_sub(5) * 4]);
        frame.extend(4_000_u16.to_be_bytes());
        frame.extend(port.to_be_bytes());
        frame.extend([0; 16]);
        frame
    }

    /// Behind these headers: number and bytes each.
    fn v6(headers: &[(u8, Vec<u8>)], protocol: u8, port: u16) -> Vec<u8> {
        let next = |at: usize| headers.get(at).map_or(protocol, |(number, _)| *number);
        let mut payload = Vec::new();
        for (at, (_, bytes)) in headers.iter().enumerate() {
            payload.push(next(at + 1));
            payload.extend(&bytes[1..]);
        }
        payload.extend(4_000_u16.to_be_bytes());
        payload.extend(port.to_be_bytes());
        payload.extend([0; 16]);
        let [high, low] = u16::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, next(0), 64]);
        frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        frame.extend([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    }

    /// What it is, the frame, and where it goes.
    type Case = (&'static str, Vec<u8>, Option<(u8, u16)>);

    #[test]
    fn the_port_is_found_where_the_stack_finds_it() {
        let tagged = |tags: &[u8], frame: Vec<u8>| [&frame[..12], tags, &frame[12..]].concat();
        let options = |bytes: u8| [&[0, bytes / 8 - 1][..], &vec![0; usize::from(bytes) - 2]].concat();
        let fragment = |field: u16| [&[0, 0][..], &field.to_be_bytes(), &[0, 0, 0, 7]].concat();
        let authentication = [&[0, 4][..], &[0; 22]].concat();
        let long = || (60, [&[0, 255][..], &[0; 2_046]].concat());
        let tcp = |port| Some((6, port));
        let cases: Vec<Case> = vec![
            ("IPv4", v4(0x45, 0, 6, 40, 22), tcp(22)),
            ("UDP", v4(0x45, 0x4000, 17, 40, 53), Some((17, 53))),
            ("SCTP", v4(0x45, 0, 132, 40, 9), Some((132, 9))),
            ("DCCP", v4(0x45, 0, 33, 40, 9), Some((33, 9))),
            ("ICMP", v4(0x45, 0, 1, 40, 22), None),
            ("GRE", v4(0x45, 0, 47, 40, 22), None),
            ("with options", v4(0x4f, 0, 6, 80, 22), tcp(22)),
            ("a header that is too short", v4(0x44, 0, 6, 40, 22), None),
            ("the first fragment", v4(0x45, 0x2000, 6, 40, 22), tcp(22)),
            ("a later fragment", v4(0x45, 0x2001, 6, 40, 22), None),
            ("the last fragment", v4(0x45, 0x00b9, 6, 40, 22), None),
            ("ports behind the total length", v4(0x45, 0, 6, 23, 22), None),
            ("cut before the port", v4(0x45, 0, 6, 40, 22)[..14 + 23].to_vec(), None),
            ("one tag", tagged(&[0x81, 0, 0, 5], v4(0x45, 0, 6, 40, 22)), tcp(22)),
            ("two tags", tagged(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6], v6(&[], 6, 22)), tcp(22)),
            ("IPv6", v6(&[], 6, 22), tcp(22)),
            ("ICMPv6", v6(&[], 58, 22), None),
            ("hop-by-hop", v6(&[(0, options(8))], 6, 22), tcp(22)),
            ("routing", v6(&[(43, options(24))], 17, 53), Some((17, 53))),
            ("destination options", v6(&[(60, options(16))], 6, 22), tcp(22)),
            ("authentication", v6(&[(51, authentication)], 6, 22), tcp(22)),
            ("three", v6(&[(0, options(8)), (43, options(8)), (60, options(8))], 6, 22), tcp(22)),
            ("an atomic fragment", v6(&[(44, fragment(0))], 6, 22), tcp(22)),
            ("the first fragment of IPv6", v6(&[(0, options(8)), (44, fragment(1))], 6, 22), tcp(22)),
            ("a later fragment of IPv6", v6(&[(44, fragment(9))], 6, 22), None),
            ("options behind a later fragment", v6(&[(44, fragment(8)), (60, options(8))], 6, 22), None),
            ("as many headers as are looked past", v6(&vec![(60, options(8)); 8], 6, 22), tcp(22)),
            ("one header too many", v6(&vec![(60, options(8)); 9], 6, 22), None),
            ("headers too long", v6(&[long()], 6, 22), None),
            ("encrypted", v6(&[(50, options(8))], 6, 22), None),
            ("no next header", v6(&[(59, options(8))], 6, 22), None),
            ("cut inside an extension", v6(&[(60, options(16))], 6, 22)[..14 + 43].to_vec(), None),
        ];
        for (name, frame, expected) in cases {
            let packet = parse(frame.as_slice()).unwrap();
            assert_eq!(destination(frame.as_slice(), &packet), expected, "{name}");
        }
        // Behind the payload length is nothing of the packet.
        let mut short = v6(&[], 6, 22);
        short[18..20].copy_from_slice(&[0, 3]);
        assert_eq!(destination(short.as_slice(), &parse(short.as_slice()).unwrap()), None);
    }

    #[test]
    fn no_bytes_panic() {
        for whole in
            [v4(0x46, 0x2000, 6, 44, 22), v6(&[(0, vec![0; 8]), (44, vec![0; 8]), (51, vec![0; 12])], 17, 53)]
        {
            for length in 0..=whole.len() {
                for turned in 0..length {
                    let mut bytes = whole[..length].to_vec();
                    bytes[turned] = !bytes[turned];
                    if let Some(packet) = parse(bytes.as_slice()) {
                        destination(bytes.as_slice(), &packet);
                    }
                }
            }
        }
    }

    #[test]
    fn a_key_has_the_leading_bits_and_no_other() {
        let six = Source::V6([0xff; 16]);
        for length in 0..=128_u8 {
            let key = scoped_key(3, &six, length);
            let ones: u32 = key[4..].iter().map(|byte| byte.count_ones()).sum();
            assert_eq!((key[..4].to_vec(), ones), (vec![length, 6, 3, 0], length.into()));
            assert_eq!(u128::from_be_bytes(key[4..].try_into().unwrap()).leading_ones(), length.into());
        }
        for length in 0..=32_u8 {
            let key = scoped_key(15, &Source::V4([0xff; 4]), length);
            assert_eq!(key[..4], [length, 4, 15, 0]);
            assert_eq!(u32::from_be_bytes(key[4..8].try_into().unwrap()).leading_ones(), length.into());
            assert_eq!(key[8..], [0; 12]);
        }
    }

    #[test]
    fn every_protocol_has_a_lane_of_its_own() {
        for (place, protocol) in PROTOCOLS.into_iter().enumerate() {
            assert_eq!(lane(protocol), u32::try_from(16 * place).ok());
        }
        assert_eq!((0..=255).filter_map(lane).count(), PROTOCOLS.len());
    }
}
