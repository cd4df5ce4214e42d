//! Frames made at random, and what is known of each by how it was made.
//!
//! Deterministic by its seed. Most are whole; the rest lies about its lengths and versions, is cut short, or has bytes
//! turned over.

use std::{
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// How many there are.
pub(crate) const FRAMES: usize = 20_000;
/// No driver and no socket hands over less than an Ethernet header.
pub(crate) const ETHERNET_BYTES: usize = 14;

fn seed() -> u64 {
    env::var("BLOCKER_SEED").ok().map_or(5, |seed| seed.parse().expect("BLOCKER_SEED is a number"))
}

/// All of them, by the seed.
pub(crate) fn frames() -> impl Iterator<Item = Made> {
    let mut dice = Dice::new(seed());
    (0..FRAMES).map(move |_| frame(&mut dice))
}

/// For whoever wants to see it again.
pub(crate) fn shown(made: &Made) -> String {
    let hex: String = made.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("BLOCKER_SEED={}: {}: {hex}", seed(), made.what)
}

pub(crate) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const STRANGER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
pub(crate) const HOST_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);

/// What is known of a frame by how it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Truth {
    /// It is never dropped: it says no source that is understood, or the link needs it.
    Passes,
    /// Its source alone decides.
    BySource(IpAddr),
    /// It was damaged after it was made, and could have become anything.
    Damaged,
}

/// A frame.
pub(crate) struct Made {
    pub(crate) what: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) truth: Truth,
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough for test data, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True `percent` times of a hundred.
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }
}

/// Sources that are banned, allowlisted inside a ban, next to one, and never bannable.
const SOURCES_V4: [&str; 16] = [
    "203.0.113.9",
    "203.0.113.9",
    "203.0.113.10",
    "20.1.2.3",
    "20.255.255.255",
    "20.85.0.1",
    "20.84.255.255",
    "21.0.0.0",
    "10.1.1.1",
    "10.1.1.2",
    "198.51.100.2",
    "0.0.0.0",
    "255.255.255.255",
    "127.0.0.1",
    "224.0.0.1",
    "169.254.1.1",
];
const SOURCES_V6: [&str; 14] = [
    "2001:db8:66::9",
    "2001:db8:66::ffff:1",
    "2001:db8:66:1::9",
    "2001:db8:5::5",
    "2001:db8:5::6",
    "2001:db9:1::1",
    "2001:db9:7::1",
    "2001:dba::1",
    "fe80::1",
    "::",
    "::1",
    "ff02::1",
    "::ffff:203.0.113.9",
    "2001:db8:1::2",
];

/// What is banned, and what is allowlisted, of which [`SOURCES_V4`] and [`SOURCES_V6`] are.
pub(crate) const BANNED: [&str; 7] = [
    "203.0.113.9",
    "20.0.0.0/8",
    "10.1.1.0/31",
    "2001:db8:66::/64",
    "2001:db8:5::5",
    "2001:db9::/32",
    "203.0.113.250",
];
pub(crate) const ALLOWED: [&str; 2] = ["20.85.0.0/16", "2001:db9:7::/48"];

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// One frame.
fn frame(dice: &mut Dice) -> Made {
    let destination = match dice.below(10) {
        0 => [0xff; 6],
        1 => STRANGER_MAC,
        _ => HOST_MAC,
    };
    let mut bytes = [destination, PEER_MAC].concat();
    let tags = if dice.chance(55) { 0 } else { dice.below(5) };
    // A tag of VLAN 0 says a priority and no VLAN; the stack takes what is behind it for the host's own.
    let vlans: &[u16] = if dice.chance(60) { &[0] } else { &[0, 5, 4094] };
    for _ in 0..tags {
        bytes.extend(dice.pick(&[0x8100_u16, 0x88a8]).to_be_bytes());
        bytes.extend((dice.pick(vlans) | u16::from(dice.byte() & 7) << 13).to_be_bytes());
    }
    let (what, mut truth, ip_bytes) = match dice.below(10) {
        0 => (other(dice, &mut bytes), Truth::Passes, 0),
        1..=5 => {
            bytes.extend([0x08, 0x00]);
            let (what, truth) = ipv4(dice, &mut bytes);
            (what, truth, 20)
        }
        _ => {
            bytes.extend([0x86, 0xdd]);
            let (what, truth) = ipv6(dice, &mut bytes);
            (what, truth, 40)
        }
    };
    let mut what = format!("{tags} tags, {what}");
    if tags > 2 {
        truth = Truth::Passes;
    }
    if dice.chance(20) {
        // Ethernet pads what is short, and more may follow than the IP header says.
        let padding = dice.below(64);
        bytes.extend(dice.bytes(padding));
    }
    match dice.below(12) {
        0 => {
            let whole = 14 + 4 * tags + ip_bytes;
            bytes.truncate(dice.below(bytes.len() + 1));
            what.push_str(&format!(", cut to {}", bytes.len()));
            if bytes.len() < whole {
                truth = Truth::Passes;
            } else if truth == Truth::Passes {
                // Neighbour discovery and DHCP that lost what says so.
                truth = Truth::Damaged;
            }
        }
        1 => {
            for _ in 0..=dice.below(3) {
                let (at, bit) = (dice.below(bytes.len()), dice.below(8));
                bytes[at] ^= 1 << bit;
                what.push_str(&format!(", bit {bit} of byte {at} turned"));
            }
            truth = Truth::Damaged;
        }
        _ => {}
    }
    Made { what, bytes, truth }
}

/// What is neither IPv4 nor IPv6 to Ethernet, whatever is inside.
fn other(dice: &mut Dice, bytes: &mut Vec<u8>) -> String {
    // ARP, RARP, PPPoE discovery and session, MPLS, an unknown tag, 802.1X, LLDP, a length (802.3), none.
    let kinds: [u16; 12] =
        [0x0806, 0x0806, 0x8035, 0x8863, 0x8864, 0x8847, 0x8848, 0x9100, 0x888e, 0x88cc, 0x0040, 0x0000];
    let kind = if dice.chance(85) { dice.pick(&kinds) } else { (dice.u16() & 0x00ff) | 0x6000 };
    bytes.extend(kind.to_be_bytes());
    match kind {
        0x0806 => {
            bytes.extend([0, 1, 8, 0, 6, 4, 0, dice.pick(&[1, 2])]);
            bytes.extend(PEER_MAC);
            bytes.extend(source_v4(dice).octets());
            bytes.extend([0; 6]);
            bytes.extend(HOST_V4.octets());
        }
        0x8864 => bytes.extend([0x11, 0, 0, 1, 0, 60, 0, 0x21]),
        0x8847 | 0x8848 => bytes.extend([0, 0, 0x11, 64]),
        _ => {}
    }
    if kind != 0x0806 {
        ipv4(dice, bytes);
    }
    format!("EtherType {kind:04x}")
}

fn source_v4(dice: &mut Dice) -> Ipv4Addr {
    dice.pick(&SOURCES_V4).parse().expect("an address")
}

fn source_v6(dice: &mut Dice) -> Ipv6Addr {
    dice.pick(&SOURCES_V6).parse().expect("an address")
}

fn ipv4(dice: &mut Dice, bytes: &mut Vec<u8>) -> (String, Truth) {
    let source = source_v4(dice);
    let version = if dice.chance(93) { 4 } else { dice.pick(&[0_u8, 5, 6, 15]) };
    let options = if dice.chance(75) { 0 } else { 4 * dice.below(11) };
    // A header length that is not the header's.
    let words = if dice.chance(92) { 5 + options / 4 } else { dice.below(16) };
    let lies_about_itself = words != 5 + options / 4;
    let fragment = match dice.below(8) {
        0 => 0x2000,
        1 => 0x2000 | (dice.u16() & 0x1fff),
        2 => 1 + (dice.u16() & 0x0fff),
        3 => 0x4000,
        _ => 0,
    };
    let (protocol, is_dhcp, payload) = match dice.below(8) {
        0 | 1 => {
            let ports = dice.pick(&[[0, 68, 0, 67], [0, 67, 0, 68], [0, 67, 0, 67]]);
            let rest = dice.bytes(4);
            (UDP, true, [&ports[..], &rest].concat())
        }
        2 => (UDP, false, [&[0x80, 1, 0, 67][..], &dice.bytes(8)].concat()),
        // The ports of DHCP, over something else.
        3 => (TCP, false, [&[0, 68, 0, 67][..], &dice.bytes(16)].concat()),
        4 => (1, false, [&[8, 0][..], &dice.bytes(6)].concat()),
        5 => (dice.pick(&[0, 2, 4, 41, 47, 50, 51, 132, 253, 255]), false, dice.bytes(24)),
        6 => (TCP, false, Vec::new()),
        _ => (TCP, false, dice.bytes(20)),
    };
    let whole = u16::try_from(20 + options + payload.len()).expect("short");
    let length = if dice.chance(85) {
        whole
    } else {
        let lies = [0, 19, 20, 23, 24, whole - 1, whole + 1, u16::MAX, dice.u16()];
        dice.pick(&lies)
    };
    let start = bytes.len();
    bytes.extend([version << 4 | u8::try_from(words).expect("four bits"), dice.byte()]);
    bytes.extend(length.to_be_bytes());
    bytes.extend(dice.u16().to_be_bytes());
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([1 + dice.byte() / 2, protocol, 0, 0]);
    bytes.extend(source.octets());
    bytes.extend(HOST_V4.octets());
    let options = if dice.chance(50) { vec![1; options] } else { dice.bytes(options) };
    bytes.extend(options);
    let covered = (start + 4 * words).clamp(start + 20, bytes.len());
    let checksum = if dice.chance(94) { checksum(&bytes[start..covered]) } else { dice.u16() };
    bytes[start + 10..start + 12].copy_from_slice(&checksum.to_be_bytes());
    bytes.extend(payload);
    let what = format!(
        "IPv{version} of {source}, {words} words, length {length} of {whole}, fragment {fragment:04x}, protocol {protocol}{}",
        if is_dhcp { " (DHCP)" } else { "" }
    );
    let truth = match (version, is_dhcp) {
        (4, true) if length != whole || lies_about_itself => Truth::Damaged,
        (4, true) if words == 5 && fragment & 0x3fff == 0 => Truth::Passes,
        (4, _) => Truth::BySource(source.into()),
        _ => Truth::Passes,
    };
    (what, truth)
}

/// RFC 1071.
fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded")
}

fn ipv6(dice: &mut Dice, bytes: &mut Vec<u8>) -> (String, Truth) {
    let source = source_v6(dice);
    let version = if dice.chance(93) { 6 } else { dice.pick(&[0_u8, 4, 5, 7]) };
    let mut hop_limit = dice.pick(&[0, 1, 64, 255]);
    let (mut next, is_upkeep, mut payload) = match dice.below(8) {
        0 => {
            hop_limit = 255;
            let rest = dice.bytes(23);
            (ICMPV6, true, [&[133 + u8::try_from(dice.below(5)).expect("small")][..], &rest].concat())
        }
        // Neighbour discovery that came over a router, and other messages.
        1 => (ICMPV6, hop_limit == 255, [&[135][..], &dice.bytes(23)].concat()),
        2 => (ICMPV6, false, [&[dice.pick(&[1, 128, 129, 130, 132, 138, 143])][..], &dice.bytes(7)].concat()),
        3 => {
            let ports = dice.pick(&[[2, 34, 2, 35], [2, 35, 2, 34], [2, 35, 2, 35]]);
            (UDP, true, [&ports[..], &dice.bytes(4)].concat())
        }
        4 => (UDP, false, [&[2, 34, 0, 53][..], &dice.bytes(4)].concat()),
        5 => (TCP, false, [&[2, 34, 2, 35][..], &dice.bytes(16)].concat()),
        6 => (dice.pick(&[4, 41, 47, 50, 51, 59, 132, 253]), false, dice.bytes(24)),
        _ => (TCP, false, Vec::new()),
    };
    let upkeep_in_the_open = is_upkeep;
    let mut headers = 0;
    while headers < 4 && dice.chance(25) {
        headers += 1;
        let header = match dice.below(4) {
            // Hop-by-hop and destination options: padding of four bytes.
            0 => (0, vec![next, 0, 1, 4, 0, 0, 0, 0]),
            1 => (60, vec![next, 0, 1, 4, 0, 0, 0, 0]),
            2 => (43, vec![next, 0, dice.pick(&[0, 4]), 0, 0, 0, 0, 0]),
            _ => {
                let [high, low] = (dice.u16() & dice.pick(&[0xfff9, 1, 0])).to_be_bytes();
                (44, vec![next, 0, high, low, 0, 0, 0, 1])
            }
        };
        next = header.0;
        payload = [header.1, payload].concat();
    }
    let whole = u16::try_from(payload.len()).expect("short");
    let length = if dice.chance(85) {
        whole
    } else {
        dice.pick(&[0, 1, 3, 4, whole.saturating_sub(1), whole + 1, u16::MAX])
    };
    bytes.extend([version << 4 | dice.byte() & 0xf, dice.byte(), dice.byte(), dice.byte()]);
    bytes.extend(length.to_be_bytes());
    bytes.extend([next, hop_limit]);
    bytes.extend(source.octets());
    bytes
        .extend(dice.pick(&[HOST_V6, HOST_V6, HOST_V6, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)]).octets());
    bytes.extend(payload);
    let what = format!(
        "IPv{version} of {source}, length {length} of {whole}, {headers} extension headers, next {next}, hop limit {hop_limit}{}",
        if is_upkeep { " (upkeep)" } else { "" }
    );
    let truth = match (version, upkeep_in_the_open && headers == 0) {
        (6, true) if length != whole => Truth::Damaged,
        (6, true) => Truth::Passes,
        (6, false) => Truth::BySource(source.into()),
        _ => Truth::Passes,
    };
    (what, truth)
}
