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

use crate::enforce::netlink::{Attributes, Message, Reply, half, replies, word};

/// Interfaces that are looked at; the kernel tells the oldest first.
pub(super) const INTERFACES_MAX: usize = 16_384;
/// A dump that interfaces changed under is begun again so often.
const ATTEMPTS: usize = 5;
/// How long an answer may take that the kernel gives at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// Messages taken at a time; further ones are for the next.
const CHANGES_MAX: usize = 4_096;
/// What is kept of a message that only says that something changed.
const HEADER_BYTES: usize = 16;
/// The kernel fills at most so much at a time (netlink(7), `NETLINK_SKB` of rtnetlink dumps).
const BUFFER_BYTES: usize = 32 << 10;

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

fn netlink(flags: SocketFlags) -> io::Result<OwnedFd> {
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
    // The longest of the headers that the kernel wants (`struct ifinfomsg`, zeros), and what to leave out.
    let mut message = Message::request(request, libc::NLM_F_DUMP, &[0; 16]);
    message.bytes(IFLA_EXT_MASK, &SKIP_STATISTICS.to_ne_bytes());
    let mut consistent = true;
    ask(&message, |reply| {
        consistent &= i32::from(reply.flags) & libc::NLM_F_DUMP_INTR == 0;
        let outcome = reply.outcome();
        if outcome.is_none() {
            whole.push((reply.kind, reply.body.to_vec()));
        }
        outcome
    })?;
    Ok(consistent)
}

/// Sends a request and hands over what is answered, until that was all.
pub(super) fn ask(
    message: &Message,
    mut take: impl FnMut(Reply<'_>) -> Option<Result<(), Errno>>,
) -> io::Result<()> {
    let socket = netlink(SocketFlags::empty())?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    send(&socket, &message.finish(0), SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let (_, length) = match recv(&socket, buffer.as_mut_slice(), RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            received => received?,
        };
        for reply in replies(buffer.get(..length).unwrap_or_default()) {
            if let Some(outcome) = take(reply) {
                return Ok(outcome?);
            }
        }
        if length == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
    }
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
    for (kind, value) in Attributes(payload.get(16..)?).iter() {
        match kind {
            IFLA_IFNAME => found.name = text(value),
            IFLA_MTU => found.mtu = word(value, 0)?,
            IFLA_LINK => found.lower = word(value, 0).filter(|lower| *lower != 0 && *lower != index),
            IFLA_LINK_NETNSID => is_elsewhere = true,
            IFLA_MASTER => found.master = word(value, 0),
            IFLA_LINKINFO => {
                found.kind = Attributes(value).get(IFLA_INFO_KIND).map(text).unwrap_or_default();
            }
            IFLA_XDP => {
                let program = Attributes(value).get(IFLA_XDP_PROG_ID);
                found.program = program.and_then(|value| word(value, 0)).filter(|id| *id != 0);
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

    fn link(index: u32, flags: u32, fill: impl FnOnce(&mut Message)) -> Vec<u8> {
        let header = [&[0, 0, 1, 0], &index.to_ne_bytes()[..], &flags.to_ne_bytes(), &[0; 4]].concat();
        let mut message = Message::request(RTM_NEWLINK, 0, &header);
        fill(&mut message);
        message.finish(0)
    }

    #[test]
    fn an_interface_is_read_with_what_it_is_made_of() {
        let message = link(5, IFF_UP, |message| {
            message
                .text(IFLA_IFNAME, "eth0.5")
                .bytes(9_999, b"of a kernel to come")
                .bytes(IFLA_MTU, &9_000_u32.to_ne_bytes())
                .bytes(IFLA_LINK, &2_u32.to_ne_bytes())
                .bytes(IFLA_MASTER, &9_u32.to_ne_bytes())
                .nest(IFLA_LINKINFO, |info| {
                    info.text(IFLA_INFO_KIND, "vlan");
                })
                .nest(IFLA_XDP, |xdp| {
                    xdp.bytes(2, &[1]).bytes(IFLA_XDP_PROG_ID, &[7, 0, 0, 0]);
                });
        });
        let other = link(6, 0, |message| {
            message.text(IFLA_IFNAME, "wan");
        });
        let read = |bytes: &[u8]| -> Vec<Interface> {
            replies(bytes).filter_map(|reply| interface(reply.body)).collect()
        };
        let found = read(&[message.clone(), other].concat());
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
                let _less = read(&bytes);
            }
        }
    }

    #[test]
    fn what_a_lower_interface_in_another_namespace_is_called_here_does_not_count() {
        let message = link(5, IFF_UP, |message| {
            message
                .text(IFLA_IFNAME, "eth0")
                .bytes(IFLA_LINK, &2_u32.to_ne_bytes())
                .bytes(IFLA_LINK_NETNSID, &0_u32.to_ne_bytes());
        });
        let reply = replies(&message).next().unwrap();
        assert_eq!(interface(reply.body).unwrap().lower, None);
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
