//! Who sent a frame, and whether it is one of the few that are never dropped.
//!
//! Only the fixed part of the IP header is needed for the first, and each fragment has it; options, extension headers
//! and everything behind them are not looked at. A frame that is not understood has no source and passes.

/// Bytes of a frame, wherever they are.
pub trait Frame {
    /// `N` bytes from `offset`; `None` when the frame ends before.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

impl Frame for [u8] {
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

/// A source address, in network order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// IPv4.
    V4([u8; 4]),
    /// IPv6.
    V6([u8; 16]),
}

/// What was understood of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sent it.
    pub source: Source,
    /// Where its IP header begins.
    pub ip_offset: usize,
}

/// Where the EtherType is in an untagged frame (IEEE 802.3).
const ETHERTYPE_OFFSET: usize = 12;
/// EtherType and tag control, before the next EtherType (IEEE 802.1Q).
const VLAN_BYTES: usize = 4;
const VLAN: u16 = 0x8100;
const VLAN_SERVICE: u16 = 0x88a8;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// So many bytes of a frame are enough to say everything that is said here of it: two VLAN tags, an IPv6 header, and
/// the ports behind it.
pub const HEADERS_MAX: usize = ETHERTYPE_OFFSET + 2 + 2 * VLAN_BYTES + 40 + 4;

/// Reads the source of a frame with up to two VLAN tags.
#[inline(always)]
pub fn parse<F: Frame + ?Sized>(frame: &F) -> Option<Packet> {
    parse_stripped(frame, false)
}

/// As [`parse`], of a frame whose outer tag may have been taken off.
#[inline(always)]
pub fn parse_stripped<F: Frame + ?Sized>(frame: &F, is_stripped: bool) -> Option<Packet> {
    let mut offset = ETHERTYPE_OFFSET;
    let mut ethertype = u16::from_be_bytes(frame.bytes(offset)?);
    if is_vlan(ethertype) {
        offset += VLAN_BYTES;
        ethertype = u16::from_be_bytes(frame.bytes(offset)?);
        if is_vlan(ethertype) && !is_stripped {
            offset += VLAN_BYTES;
            ethertype = u16::from_be_bytes(frame.bytes(offset)?);
        }
    }
    parse_ip(frame, offset + 2, ethertype)
}

/// Reads the source of a packet that has nothing before its IP header.
#[inline(always)]
pub fn parse_bare<F: Frame + ?Sized>(packet: &F) -> Option<Packet> {
    let version: [u8; 1] = packet.bytes(0)?;
    match version[0] >> 4 {
        4 => parse_ip(packet, 0, IPV4),
        6 => parse_ip(packet, 0, IPV6),
        _ => None,
    }
}

#[inline(always)]
fn parse_ip<F: Frame + ?Sized>(frame: &F, ip_offset: usize, ethertype: u16) -> Option<Packet> {
    match ethertype {
        IPV4 => {
            // RFC 791 3.1: version in the first four bits, the source in bytes 12 to 15.
            let header: [u8; 20] = frame.bytes(ip_offset)?;
            let source = Source::V4([header[12], header[13], header[14], header[15]]);
            (header[0] >> 4 == 4).then_some(Packet { source, ip_offset })
        }
        IPV6 => {
            // RFC 8200 3: version in the first four bits, the source in bytes 8 to 23.
            let version: [u8; 1] = frame.bytes(ip_offset)?;
            let source: [u8; 32] = frame.bytes(ip_offset + 8)?;
            let mut address = [0; 16];
            address.copy_from_slice(&source[..16]);
            (version[0] >> 4 == 6).then_some(Packet { source: Source::V6(address), ip_offset })
        }
        _ => None,
    }
}

#[inline(always)]
fn is_vlan(ethertype: u16) -> bool {
    ethertype == VLAN || ethertype == VLAN_SERVICE
}

const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Whether a frame is neighbour discovery or DHCP, without which a link does not work: never dropped, not even from
/// a banned source. ARP carries no IP header and has no source here.
#[inline(always)]
pub fn is_link_upkeep<F: Frame + ?Sized>(frame: &F, packet: &Packet) -> bool {
    link_upkeep(frame, packet).unwrap_or(false)
}

/// `None` when the frame ends before that can be told.
#[inline(always)]
fn link_upkeep<F: Frame + ?Sized>(frame: &F, packet: &Packet) -> Option<bool> {
    match packet.source {
        Source::V4(_) => is_dhcp_v4(frame, packet.ip_offset),
        Source::V6(_) => is_upkeep_v6(frame, packet.ip_offset),
    }
}

#[inline(always)]
fn is_dhcp_v4<F: Frame + ?Sized>(frame: &F, ip_offset: usize) -> Option<bool> {
    let header: [u8; 20] = frame.bytes(ip_offset)?;
    // DHCP is sent without options and is never a fragment (RFC 2131 2).
    let whole = header[0] == 0x45 && u16::from_be_bytes([header[6], header[7]]) & 0x3fff == 0;
    // The stack cuts a packet to its total length: ports behind that are padding.
    let has_ports = u16::from_be_bytes([header[2], header[3]]) >= 24;
    if header[9] != UDP || !whole || !has_ports {
        return Some(false);
    }
    let ports: [u8; 4] = frame.bytes(ip_offset + 20)?;
    let (from, to) = (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]]));
    // Server 67, client 68; relays speak from 67 to 67 (RFC 2131 4.1).
    Some(matches!((from, to), (67, 67 | 68) | (68, 67)))
}

#[inline(always)]
fn is_upkeep_v6<F: Frame + ?Sized>(frame: &F, ip_offset: usize) -> Option<bool> {
    let next: [u8; 4] = frame.bytes(ip_offset + 4)?;
    let [high, low, next_header, hop_limit] = next;
    // As for IPv4: what lies behind the payload length is none of the packet.
    let payload = u16::from_be_bytes([high, low]);
    if next_header != ICMPV6 && next_header != UDP {
        return Some(false);
    }
    let after: [u8; 4] = frame.bytes(ip_offset + 40)?;
    Some(match next_header {
        // RFC 4861 7: types 133 to 137, and a hop limit of 255 proves that they are of this link.
        ICMPV6 => payload >= 1 && hop_limit == 255 && after[0] >= 133 && after[0] <= 137,
        UDP if payload >= 4 => {
            let (from, to) =
                (u16::from_be_bytes([after[0], after[1]]), u16::from_be_bytes([after[2], after[3]]));
            // Client 546, server and relay 547 (RFC 8415 7.2).
            matches!((from, to), (546, 547) | (547, 546 | 547))
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    const V4: [u8; 4] = [203, 0, 113, 9];
    const V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

    fn frame(parts: &[&[u8]]) -> Vec<u8> {
        [&MACS[..]].iter().chain(parts).copied().flatten().copied().collect()
    }

    fn ipv4(first: u8, fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let [high, low] = fragment.to_be_bytes();
        let mut header = vec![first, 0, 0, 40, 0, 1, high, low, 64, protocol, 0, 0];
        header.extend(V4);
        header.extend([198, 51, 100, 1]);
        header.extend(vec![1; usize::from(first & 0xf).saturating_sub(5) * 4]);
        header.extend(payload);
        header
    }

    fn ipv6(next_header: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0, 0, 20, next_header, hop_limit];
        header.extend(V6);
        header.extend([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        header.extend(payload);
        header
    }

    #[test]
    fn the_source_is_found_in_every_kind_of_frame() {
        let (v4, v6) = (Some(Source::V4(V4)), Some(Source::V6(V6)));
        let plain4 = ipv4(0x45, 0, 6, &[0; 20]);
        let plain6 = ipv6(6, 64, &[0; 20]);
        let cases: Vec<(&str, Vec<u8>, Option<Source>)> = vec![
            ("IPv4", frame(&[&[8, 0], &plain4]), v4),
            ("IPv6", frame(&[&[0x86, 0xdd], &plain6]), v6),
            ("one tag", frame(&[&[0x81, 0, 0, 5, 8, 0], &plain4]), v4),
            ("service tag", frame(&[&[0x88, 0xa8, 0, 5, 0x86, 0xdd], &plain6]), v6),
            ("two tags", frame(&[&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0], &plain4]), v4),
            ("three tags", frame(&[&[0x81, 0, 0, 5, 0x81, 0, 0, 6, 0x81, 0, 0, 7, 8, 0], &plain4]), None),
            ("IPv4 with options", frame(&[&[8, 0], &ipv4(0x4f, 0, 6, &[0; 20])]), v4),
            ("IPv4 with a header length of zero", frame(&[&[8, 0], &ipv4(0x40, 0, 6, &[])]), v4),
            ("a later fragment", frame(&[&[8, 0], &ipv4(0x45, 0x00b9, 17, &[9; 8])]), v4),
            (
                "IPv6 behind a hop-by-hop header",
                frame(&[&[0x86, 0xdd], &ipv6(0, 64, &[6, 0, 1, 4, 0, 0, 0, 0])]),
                v6,
            ),
            ("an IPv6 fragment", frame(&[&[0x86, 0xdd], &ipv6(44, 64, &[17, 0, 0, 9, 0, 0, 0, 1])]), v6),
            ("the header and nothing more", frame(&[&[8, 0], &plain4[..20]]), v4),
            ("IPv6 header and nothing more", frame(&[&[0x86, 0xdd], &plain6[..40]]), v6),
            ("IPv4 cut short", frame(&[&[8, 0], &plain4[..19]]), None),
            ("IPv6 cut short", frame(&[&[0x86, 0xdd], &plain6[..39]]), None),
            ("IPv4 that says it is version 6", frame(&[&[8, 0], &ipv4(0x65, 0, 6, &[0; 20])]), None),
            ("IPv6 that says it is version 4", frame(&[&[0x86, 0xdd], &plain4, &[0; 20]]), None),
            ("ARP", frame(&[&[8, 6], &[0; 28]]), None),
            ("PPPoE", frame(&[&[0x88, 0x64], &plain4]), None),
            ("MPLS", frame(&[&[0x88, 0x47], &plain4]), None),
            ("a tag and nothing behind it", frame(&[&[0x81, 0, 0, 5]]), None),
            ("no EtherType", MACS.to_vec(), None),
            ("nothing", Vec::new(), None),
        ];
        for (name, bytes, source) in cases {
            assert_eq!(parse(bytes.as_slice()).map(|packet| packet.source), source, "{name}");
        }
    }

    #[test]
    fn only_neighbour_discovery_and_dhcp_keep_the_link_up() {
        let ports = |from: u16, to: u16| [from.to_be_bytes(), to.to_be_bytes()].concat();
        let (mut cut4, mut cut6) = (ipv4(0x45, 0, 17, &ports(68, 67)), ipv6(17, 64, &ports(546, 547)));
        cut4[3] = 23;
        cut6[5] = 3;
        let cases: Vec<(&str, Vec<u8>, bool)> = vec![
            ("DHCP request", frame(&[&[8, 0], &ipv4(0x45, 0, 17, &ports(68, 67))]), true),
            ("DHCP answer", frame(&[&[8, 0], &ipv4(0x45, 0x4000, 17, &ports(67, 68))]), true),
            ("DHCP ports in a fragment", frame(&[&[8, 0], &ipv4(0x45, 0x2000, 17, &ports(68, 67))]), false),
            (
                "UDP to the DHCP port from elsewhere",
                frame(&[&[8, 0], &ipv4(0x45, 0, 17, &ports(4000, 67))]),
                false,
            ),
            ("TCP with the DHCP ports", frame(&[&[8, 0], &ipv4(0x45, 0, 6, &ports(68, 67))]), false),
            ("neighbour solicitation", frame(&[&[0x86, 0xdd], &ipv6(58, 255, &[135, 0, 0, 0])]), true),
            (
                "solicitation from off the link",
                frame(&[&[0x86, 0xdd], &ipv6(58, 64, &[135, 0, 0, 0])]),
                false,
            ),
            ("echo request", frame(&[&[0x86, 0xdd], &ipv6(58, 255, &[128, 0, 0, 0])]), false),
            ("DHCP ports behind the total length", frame(&[&[8, 0], &cut4]), false),
            ("DHCPv6 ports behind the payload length", frame(&[&[0x86, 0xdd], &cut6]), false),
            ("DHCPv6 solicit", frame(&[&[0x86, 0xdd], &ipv6(17, 64, &ports(546, 547))]), true),
            ("DNS over IPv6", frame(&[&[0x86, 0xdd], &ipv6(17, 64, &ports(546, 53))]), false),
            ("IPv6 with no payload", frame(&[&[0x86, 0xdd], &ipv6(17, 64, &[])]), false),
        ];
        for (name, bytes, upkeep) in cases {
            let packet = parse(bytes.as_slice()).unwrap();
            assert_eq!(is_link_upkeep(bytes.as_slice(), &packet), upkeep, "{name}");
        }
    }

    #[test]
    fn a_tag_that_was_taken_off_counts_as_one() {
        let inner = ipv4(0x45, 0, 6, &[0; 20]);
        let tag = [0x81, 0, 0, 5];
        for (tags, is_stripped, found) in [
            (0, false, true),
            (2, false, true),
            (3, false, false),
            (0, true, true),
            (1, true, true),
            (2, true, false),
        ] {
            let tagged = frame(&[&tag.repeat(tags), &[8, 0], &inner]);
            let is_found = parse_stripped(tagged.as_slice(), is_stripped).is_some();
            assert_eq!(is_found, found, "{tags} tags, one more taken off: {is_stripped}");
        }
    }

    #[test]
    fn a_packet_without_a_link_header_is_read_by_its_version() {
        let v4 = ipv4(0x45, 0, 6, &[]);
        assert_eq!(parse_bare(v4.as_slice()).unwrap().source, Source::V4([203, 0, 113, 9]));
        let v6 = ipv6(58, 255, &[135, 0, 0, 0]);
        let packet = parse_bare(v6.as_slice()).unwrap();
        assert!(matches!(packet, Packet { source: Source::V6(_), ip_offset: 0 }));
        assert!(is_link_upkeep(v6.as_slice(), &packet));
        for (name, bytes) in [("nothing", &[][..]), ("cut short", &v4[..19]), ("version 5", &[0x55; 60])] {
            assert_eq!(parse_bare(bytes), None, "{name}");
        }
    }

    #[test]
    fn no_bytes_panic() {
        // Every prefix of every frame kind, with each byte turned over once.
        let kinds = [
            frame(&[&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0], &ipv4(0x45, 0, 17, &[0, 68, 0, 67])]),
            frame(&[&[0x86, 0xdd], &ipv6(58, 255, &[135, 0, 0, 0])]),
        ];
        for whole in kinds {
            for length in 0..=whole.len() {
                for turned in 0..length {
                    let mut bytes = whole[..length].to_vec();
                    bytes[turned] = !bytes[turned];
                    if let Some(packet) = parse(bytes.as_slice()) {
                        is_link_upkeep(bytes.as_slice(), &packet);
                    }
                }
            }
        }
    }
}
