//! Which frames the kernel hands to nftables: what its stack accepts, before it has looked at any rule.
//!
//! A model of `__netif_receive_skb_core`, `ip_rcv_core` and `ip6_rcv_core`, written from what they are documented to
//! check, and held to what a counter of the kernel's says. Only frames inside can be compared with what XDP makes of
//! them: those outside end in the kernel and reach nobody.

use std::net::Ipv6Addr;

use super::generate::HOST_MAC;

/// What becomes of a frame before nftables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// nftables judges it.
    Judged,
    /// It ends, or it is not IP and no business of a chain for IP.
    Elsewhere,
    /// Hop-by-hop options are read before; what of them is accepted is left to the kernel.
    Unsure,
}

/// The fate of a frame on an Ethernet interface at [`HOST_MAC`] without VLAN interfaces.
pub(crate) fn fate(frame: &[u8]) -> Fate {
    let Some((destination, _)) = frame.split_first_chunk::<6>() else { return Fate::Elsewhere };
    // For others, and so not for the stack; for all or many is for us, too.
    if *destination != HOST_MAC && destination[0] & 1 == 0 {
        return Fate::Elsewhere;
    }
    let mut at = 12;
    loop {
        match read(frame, at) {
            Some(0x0800) => return ipv4(&frame[at + 2..]),
            Some(0x86dd) => return ipv6(&frame[at + 2..]),
            // Any number of tags that name no VLAN are taken off, where two bytes follow the inner EtherType.
            Some(0x8100 | 0x88a8) if read(frame, at + 6).is_some() => {
                if read(frame, at + 2).is_none_or(|control| control & 0x0fff != 0) {
                    return Fate::Elsewhere;
                }
                at += 4;
            }
            _ => return Fate::Elsewhere,
        }
    }
}

fn read(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn ipv4(packet: &[u8]) -> Fate {
    let accepted = || -> Option<bool> {
        let header = packet.first_chunk::<20>()?;
        let header_bytes = 4 * usize::from(header[0] & 0xf);
        let with_options = packet.get(..header_bytes.max(20))?;
        let sum: u32 = with_options.chunks(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]]))).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        Some(
            header[0] >> 4 == 4
                && header_bytes >= 20
                && (folded & 0xffff) + (folded >> 16) == 0xffff
                && (header_bytes..=packet.len()).contains(&length),
        )
    };
    if accepted() == Some(true) { Fate::Judged } else { Fate::Elsewhere }
}

fn ipv6(packet: &[u8]) -> Fate {
    let Some(header) = packet.first_chunk::<40>() else { return Fate::Elsewhere };
    let address = |at: usize| Ipv6Addr::from(*header[at..].first_chunk::<16>().expect("inside"));
    let (source, destination) = (address(8), address(24));
    let scope = header[25] & 0xf;
    let forbidden = source.is_loopback()
        || destination.is_loopback()
        || source.is_multicast()
        || (destination.is_multicast() && scope < 2);
    let (length, next) = (usize::from(u16::from_be_bytes([header[4], header[5]])), header[6]);
    let is_jumbo = length == 0 && next == 0;
    if header[0] >> 4 != 6 || forbidden || (!is_jumbo && 40 + length > packet.len()) {
        return Fate::Elsewhere;
    }
    if next == 0 { Fate::Unsure } else { Fate::Judged }
}
