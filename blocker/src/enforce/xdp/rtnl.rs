//! The interfaces of this network namespace, and word that something about them has changed.
//!
//! What has changed is not taken from the messages: any of them, also those that were lost, means that all interfaces
//! are to be looked at again. So nothing can go out of step with the kernel.
//!
//! Only a few attributes are needed, and each is read by its own length; what a newer kernel adds is stepped over.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::SocketAddrNetlink,
        recv, send, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

/// Interfaces that are looked at; the kernel tells the oldest first.
pub(super) const INTERFACES_MAX: usize = 16_384;
/// A dump that interfaces changed under is begun again so often.
const ATTEMPTS: usize = 5;
/// How long an answer may take that the kernel gives at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Messages taken at a time; further ones are for the next.
const CHANGES_MAX: usize = 4_096;
/// The kernel fills at most so much at a time (netlink(7), `NETLINK_SKB` of rtnetlink dumps).
const BUFFER_BYTES: usize = 32 << 10;

// linux/netlink.h
pub(super) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub(super) const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER_BYTES: usize = 16;
// linux/rtnetlink.h
pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR. Not routes: a router's change all the time.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
const RT_SCOPE_LINK: u8 = 253;
/// Leave statistics out: RTEXT_FILTER_SKIP_STATS.
const SKIP_STATISTICS: u32 = 1 << 3;
// linux/if_link.h
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
pub(super) const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
pub(super) const IFLA_XDP_PROG_ID: u16 = 4;
// linux/if.h
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;

/// An interface, as far as it matters for attaching to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    /// Set up by whoever administers it; there may still be no carrier.
    pub(super) up: bool,
    pub(super) loopback: bool,
    /// What is before the packet: ARPHRD_ETHER and its kin.
    pub(super) link_layer: u16,
    pub(super) mtu: u32,
    /// `veth`, `bond`, `vlan`; empty for hardware.
    pub(super) kind: String,
    /// The bridge or bond that it is part of.
    pub(super) master: Option<u32>,
    /// The interface in this namespace that it stands on.
    pub(super) lower: Option<u32>,
    /// A program that is attached by XDP, ours or not.
    pub(super) program: Option<u32>,
    /// It has an address that is good beyond the link.
    pub(super) has_address: bool,
    /// A default route leaves by it.
    pub(super) has_default: bool,
}

/// Every interface, in the order they were made.
pub(super) fn interfaces() -> io::Result<Vec<Interface>> {
    let mut found = Vec::new();
    dump(RTM_GETLINK, &mut |kind, payload| {
        if kind == RTM_NEWLINK
            && found.len() < INTERFACES_MAX
            && let Some(interface) = interface(payload)
        {
            found.push(interface);
        }
    })?;
    let mut addressed = BTreeSet::new();
    dump(RTM_GETADDR, &mut |kind, payload| {
        if kind == RTM_NEWADDR {
            addressed.extend(addressed_interface(payload));
        }
    })?;
    // Unlike /proc/net, these show the network namespace of the calling thread.
    let table = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    let default = defaults(&table("route"), &table("ipv6_route"));
    for interface in &mut found {
        interface.has_address = addressed.contains(&interface.index);
        interface.has_default = default.contains(&interface.name);
    }
    Ok(found)
}

/// Readable once anything about interfaces or their addresses has changed.
#[derive(Debug)]
pub(super) struct Watch(OwnedFd);

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        let socket = netlink(SocketFlags::NONBLOCK)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self(socket))
    }

    /// Whether anything has changed since the last time.
    pub(super) fn take(&self) -> bool {
        let mut changed = false;
        // A message is one datagram; what does not fit is cut off, and not needed.
        let mut buffer = [0_u8; HEADER_BYTES];
        for _ in 0..CHANGES_MAX {
            match recv(&self.0, &mut buffer[..], RecvFlags::TRUNC) {
                // Lost messages are changes, too.
                Ok(_) | Err(Errno::NOBUFS) => changed = true,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        changed
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub(super) fn netlink(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC | flags, None)?)
}

/// Asks for all of a kind, and once more where something changed meanwhile.
fn dump(request: u16, take: &mut dyn FnMut(u16, &[u8])) -> io::Result<()> {
    let mut whole = Vec::new();
    for _ in 0..ATTEMPTS {
        whole.clear();
        if dump_once(request, &mut whole)? {
            break;
        }
    }
    for (kind, payload) in &whole {
        take(*kind, payload);
    }
    Ok(())
}

/// Whether the kernel says that it is consistent.
fn dump_once(request: u16, whole: &mut Vec<(u16, Vec<u8>)>) -> io::Result<bool> {
    let socket = netlink(SocketFlags::empty())?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    send(&socket, &ask(request), SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut consistent = true;
    loop {
        let (_, length) = match recv(&socket, buffer.as_mut_slice(), RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            received => received?,
        };
        for (kind, flags, payload) in messages(buffer.get(..length).unwrap_or_default()) {
            consistent &= flags & NLM_F_DUMP_INTR == 0;
            match kind {
                NLMSG_DONE => return Ok(consistent),
                NLMSG_ERROR => {
                    let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return Err(io::Error::from_raw_os_error(code.saturating_neg()));
                }
                _ => whole.push((kind, payload.to_vec())),
            }
        }
        if length == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
    }
}

/// A request with the longest of the headers that the kernel wants (`struct ifinfomsg`, zeros), and what to leave out.
fn ask(request: u16) -> Vec<u8> {
    let mut message = Vec::with_capacity(40);
    message.extend(40_u32.to_ne_bytes());
    message.extend(request.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 16]);
    message.extend(8_u16.to_ne_bytes());
    message.extend(IFLA_EXT_MASK.to_ne_bytes());
    message.extend(SKIP_STATISTICS.to_ne_bytes());
    message
}

/// The messages in a datagram: type, flags, payload. Ends at the first that is malformed.
pub(super) fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER_BYTES] = rest.first_chunk()?;
        let length = usize::try_from(word(header, 0)?).ok()?;
        let message = rest.get(..length)?;
        let payload = message.get(HEADER_BYTES..)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((half(header, 4)?, half(header, 6)?, payload))
    })
}

/// The attributes in a payload: type and value. Ends at the first that is malformed.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(rest, 0)?);
        let kind = half(rest, 2)? & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn half(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

pub(super) fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

/// `struct ifinfomsg` and its attributes.
fn interface(payload: &[u8]) -> Option<Interface> {
    let (link_layer, index, flags) = (half(payload, 2)?, word(payload, 4)?, word(payload, 8)?);
    let mut found = Interface {
        index,
        up: flags & IFF_UP != 0,
        loopback: flags & IFF_LOOPBACK != 0,
        link_layer,
        ..Interface::default()
    };
    let mut is_elsewhere = false;
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => found.name = text(value),
            IFLA_MTU => found.mtu = word(value, 0)?,
            IFLA_LINK => found.lower = word(value, 0).filter(|lower| *lower != 0 && *lower != index),
            IFLA_LINK_NETNSID => is_elsewhere = true,
            IFLA_MASTER => found.master = word(value, 0),
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                found.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
            }
            IFLA_XDP => {
                let program = attributes(value).find(|(kind, _)| *kind == IFLA_XDP_PROG_ID);
                found.program = program.and_then(|(_, value)| word(value, 0)).filter(|id| *id != 0);
            }
            _ => {}
        }
    }
    if is_elsewhere {
        found.lower = None;
    }
    (!found.name.is_empty()).then_some(found)
}

/// `struct ifaddrmsg`: the interface of an address that is good beyond its link.
fn addressed_interface(payload: &[u8]) -> Option<u32> {
    let scope = *payload.get(3)?;
    (scope < RT_SCOPE_LINK).then(|| word(payload, 4)).flatten()
}

/// The names of interfaces that a default route leaves by, from the kernel's two tables.
fn defaults(v4: &str, v6: &str) -> BTreeSet<String> {
    let v4 = v4.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (name, destination, mask) = (fields.next()?, fields.next()?, fields.nth(5)?);
        (destination == "00000000" && mask == "00000000").then(|| name.to_owned())
    });
    let v6 = v6.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let is_default = fields.nth(1)? == "00";
        let name = fields.next_back()?;
        (is_default && name != "lo").then(|| name.to_owned())
    });
    v4.chain(v6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn link(index: u32, flags: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut payload = vec![0, 0];
        payload.extend(1_u16.to_ne_bytes());
        payload.extend(index.to_ne_bytes());
        payload.extend(flags.to_ne_bytes());
        payload.extend([0; 4]);
        payload.extend(attributes.concat());
        let mut message = u32::try_from(HEADER_BYTES + payload.len()).unwrap().to_ne_bytes().to_vec();
        message.extend(RTM_NEWLINK.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(payload);
        message
    }

    #[test]
    fn an_interface_is_read_with_what_it_is_made_of() {
        let info = attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, b"vlan\0"));
        let xdp = attribute(
            IFLA_XDP | 0x8000,
            &[attribute(2, &[1]), attribute(IFLA_XDP_PROG_ID, &[7, 0, 0, 0])].concat(),
        );
        let message = link(
            5,
            IFF_UP,
            &[
                attribute(IFLA_IFNAME, b"eth0.5\0"),
                attribute(9_999, b"of a kernel to come"),
                attribute(IFLA_MTU, &9_000_u32.to_ne_bytes()),
                attribute(IFLA_LINK, &2_u32.to_ne_bytes()),
                attribute(IFLA_MASTER, &9_u32.to_ne_bytes()),
                info,
                xdp,
            ],
        );
        let whole = [message.clone(), link(6, 0, &[attribute(IFLA_IFNAME, b"wan\0")])].concat();
        let found: Vec<Interface> =
            messages(&whole).filter_map(|(_, _, payload)| interface(payload)).collect();
        let expected = Interface {
            index: 5,
            name: "eth0.5".to_owned(),
            up: true,
            link_layer: 1,
            mtu: 9_000,
            kind: "vlan".to_owned(),
            master: Some(9),
            lower: Some(2),
            program: Some(7),
            ..Interface::default()
        };
        assert_eq!(found[0], expected);
        assert_eq!((found[1].name.as_str(), found[1].up), ("wan", false));
        // Cut anywhere, turned over anywhere: less is found, and nothing panics.
        for length in 0..message.len() {
            for turned in 0..length {
                let mut bytes = message[..length].to_vec();
                bytes[turned] = !bytes[turned];
                let _less = messages(&bytes).filter_map(|(_, _, payload)| interface(payload)).count();
            }
        }
    }

    #[test]
    fn what_a_lower_interface_in_another_namespace_is_called_here_does_not_count() {
        let elsewhere = [
            attribute(IFLA_IFNAME, b"eth0\0"),
            attribute(IFLA_LINK, &2_u32.to_ne_bytes()),
            attribute(IFLA_LINK_NETNSID, &0_u32.to_ne_bytes()),
        ];
        let message = link(5, IFF_UP, &elsewhere);
        let (_, _, payload) = messages(&message).next().unwrap();
        assert_eq!(interface(payload).unwrap().lower, None);
    }

    #[test]
    fn default_routes_are_those_of_every_address() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\tFE6433C6\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  eth1\t00000000\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n\
                  eth2\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n";
        let v6 = "20010db8000100000000000000000000 40 0 00 0 0 0 0 0 eth3\n\
                  00000000000000000000000000000000 00 0 00 0 0 0 0 0 lo\n\
                  00000000000000000000000000000000 00 0 00 0 0 0 0 0 eth4\n";
        assert_eq!(defaults(v4, v6).into_iter().collect::<Vec<_>>(), ["eth0", "eth4"]);
        assert!(defaults("", "garbage").is_empty());
    }

    #[test]
    fn the_loopback_of_this_very_host_is_found() {
        let found = interfaces().unwrap();
        assert!(found.iter().any(|interface| interface.loopback && interface.name == "lo"), "{found:?}");
    }
}
