//! Connections of sources that are banned now: ended at both sides, so that no worker waits for a host whose packets
//! no longer arrive.
//!
//! Asked and told through sock_diag(7), which knows the sockets of one network namespace, that of the calling thread:
//! those of containers with a namespace of their own stay. A dump is streamed; the kernel leaves out what is not asked
//! for where there are few prefixes. Nothing here is decided: who is banned and who is spared is said by the caller.
//! Everything is bounded by [`TIME_MAX`].
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
        sockopt,
    },
};

use super::{
    EnforceError,
    netlink::{Message, array, replies},
};
use crate::{
    allowlist::PrefixSet,
    net::{Prefix, Protocol, Scope},
};

/// The longest that one call takes.
pub const TIME_MAX: Duration = Duration::from_secs(5);
/// Remote addresses of one [`remotes`].
pub const REMOTES_MAX: usize = 65_536;
/// Connections found before they are destroyed; where there are more, the dump is begun again.
const FOUND_MAX: usize = 16_384;
/// Up to so many prefixes, the kernel filters: it checks a filter in quadratic time.
const FILTER_PREFIXES_MAX: usize = 64;
/// The kernel fills at most 32 KiB a datagram of a dump (`netlink_dump`).
const BUFFER_BYTES: usize = 32_768;

// linux/sock_diag.h, linux/inet_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_JMP: u8 = 1;
const INET_DIAG_BC_D_COND: u8 = 8;
/// `struct inet_diag_sockid` behind the four bytes of `struct inet_diag_msg` and the eight of `struct inet_diag_req_v2`.
const ID_BYTES: usize = 48;
const INODE_OFFSET: usize = 68;

const INET: u8 = 2;
const INET6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Every state (linux/tcp_states.h) of a connection whose end somebody may wait for: not TIME_WAIT, CLOSE, LISTEN.
const TCP_STATES: u32 = bit(1) | bit(2) | bit(3) | bit(4) | bit(5) | bit(8) | bit(9) | bit(11);
/// A connected UDP socket is "established".
const UDP_STATES: u32 = bit(1);

const DESTROY: &str = "destroy connections";

const fn bit(state: u32) -> u32 {
    1 << state
}

/// Which sockets a dump is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    family: u8,
    protocol: u8,
}

const KINDS: [Kind; 4] = [
    Kind { family: INET, protocol: TCP },
    Kind { family: INET6, protocol: TCP },
    Kind { family: INET, protocol: UDP },
    Kind { family: INET6, protocol: UDP },
];

/// What came of [`close`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Connections destroyed.
    pub closed: u64,
    /// Connections that the kernel would not destroy.
    pub left: u64,
    /// Whether the time was over before all were looked at.
    pub cut_short: bool,
}

/// Who is banned, by what of theirs is.
pub type Banned = BTreeMap<Scope, PrefixSet>;

/// Why connections were not closed.
#[derive(Debug)]
pub enum Trouble {
    /// Something is missing, a kernel's option or a capability, and will be the next time.
    Lacking(EnforceError),
    /// It may work the next time.
    Passing(EnforceError),
}

/// Whether the kernel can destroy sockets.
///
/// # Errors
/// When it cannot, with what it lacks.
pub fn probe() -> Result<(), Trouble> {
    let mut diag = Diag::open()?;
    // From nowhere to nowhere: there is no such socket.
    let nobody = Connection { kind: KINDS[0], id: [0; ID_BYTES], inode: 0 };
    match diag.destroy(&nobody) {
        Ok(()) | Err(Errno::NOENT | Errno::STALE) => Ok(()),
        Err(errno) => Err(trouble(DESTROY, errno)),
    }
}

/// Destroys every TCP connection and connected UDP socket whose other end is in `banned`, with this end on a port that is
/// meant, and not in `spared`. Both ends are told: whoever reads here gets ECONNABORTED, the other side a reset.
///
/// # Errors
/// When sockets cannot be listed, or the kernel does not destroy any.
pub fn close(banned: &Banned, spared: &PrefixSet) -> Result<Closed, Trouble> {
    let until = Instant::now() + TIME_MAX;
    let mut diag = Diag::open()?;
    let mut outcome = Closed::default();
    for kind in KINDS {
        let Some(filter) = filter(kind, banned) else { continue };
        loop {
            let (mut found, mut full) = (Vec::new(), false);
            let whole = diag.dump(kind, &filter, until, &mut |connection| {
                let remote = Prefix::host(connection.remote());
                let is_banned = banned.iter().any(|(scope, prefixes)| {
                    scope.drops(connection.local()) && prefixes.covering(remote).is_some()
                });
                if !is_banned || spared.covering(remote).is_some() {
                    return;
                }
                if found.len() < FOUND_MAX {
                    found.push(connection);
                } else {
                    full = true;
                }
            })?;
            let before = outcome.closed;
            for connection in &found {
                match diag.destroy(connection) {
                    Ok(()) => outcome.closed += 1,
                    // It ended meanwhile.
                    Err(Errno::NOENT | Errno::STALE) => {}
                    Err(errno @ Errno::PERM) => return Err(trouble(DESTROY, errno)),
                    // Nobody has it any more, and kernels before 6.12 leave the rest to its timer.
                    Err(_) if connection.inode == 0 => {}
                    Err(_) => outcome.left += 1,
                }
                if Instant::now() > until {
                    break;
                }
            }
            if !whole || Instant::now() > until {
                return Ok(Closed { cut_short: true, ..outcome });
            }
            if !full || outcome.closed == before {
                outcome.cut_short |= full;
                break;
            }
        }
    }
    Ok(outcome)
}

/// Who is connected with this host, over TCP or a connected UDP socket, in order and each once; and whether that is all
/// of them.
///
/// # Errors
/// When sockets cannot be listed.
pub fn remotes() -> Result<(Vec<IpAddr>, bool), Trouble> {
    let until = Instant::now() + TIME_MAX;
    let mut diag = Diag::open()?;
    let (mut remotes, mut all) = (BTreeSet::new(), true);
    for kind in KINDS {
        let whole = diag.dump(kind, &[], until, &mut |connection| {
            let remote = connection.remote();
            if remotes.len() < REMOTES_MAX {
                remotes.insert(remote);
            } else {
                all &= remotes.contains(&remote);
            }
        })?;
        all &= whole;
    }
    Ok((remotes.into_iter().collect(), all))
}

/// One connection as the kernel names it.
#[derive(Clone, Copy, Debug)]
struct Connection {
    kind: Kind,
    /// `struct inet_diag_sockid`: ports, addresses, interface and cookie.
    id: [u8; ID_BYTES],
    /// 0 where no process has it.
    inode: u32,
}

impl Connection {
    /// From a `struct inet_diag_msg`.
    fn read(kind: Kind, body: &[u8]) -> Option<Self> {
        let [family] = array(body, 0)?;
        let inode = u32::from_ne_bytes(array(body, INODE_OFFSET)?);
        (family == kind.family).then_some(Self { kind, id: array(body, 4)?, inode })
    }

    /// The address of the other end; of an IPv4 connection over an IPv6 socket the IPv4 address.
    fn remote(&self) -> IpAddr {
        let mut address = [0; 16];
        address.copy_from_slice(&self.id[20..36]);
        if self.kind.family == INET {
            let [a, b, c, d, ..] = address;
            Ipv4Addr::new(a, b, c, d).into()
        } else {
            IpAddr::from(Ipv6Addr::from(address)).to_canonical()
        }
    }

    /// Protocol and port of this end.
    fn local(&self) -> Option<(Protocol, u16)> {
        let protocol = if self.kind.protocol == TCP { Protocol::Tcp } else { Protocol::Udp };
        Some((protocol, u16::from_be_bytes(array(&self.id, 0)?)))
    }
}

/// A netlink socket to sock_diag. The kernel answers while a request is being sent or an answer taken, so nothing here
/// waits.
struct Diag {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Diag {
    fn open() -> Result<Self, Trouble> {
        let open = || {
            let socket = socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                Some(netlink::SOCK_DIAG),
            )?;
            sockopt::set_socket_recv_buffer_size(&socket, 8 * BUFFER_BYTES)?;
            Ok(socket)
        };
        let socket = open().map_err(|errno| trouble("open a sock_diag socket", errno))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Hands every connection of a kind that passes `filter` to `take`; false when the time was over before.
    fn dump(
        &mut self,
        kind: Kind,
        filter: &[u8],
        until: Instant,
        take: &mut dyn FnMut(Connection),
    ) -> Result<bool, Trouble> {
        let failed = |errno| trouble("list connections", errno);
        let states = if kind.protocol == TCP { TCP_STATES } else { UDP_STATES };
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        self.send(SOCK_DIAG_BY_FAMILY, flags, kind, states, &[0; ID_BYTES], filter).map_err(failed)?;
        while let Some(length) = self.receive().map_err(failed)? {
            for reply in replies(&self.buffer[..length]).filter(|reply| reply.sequence == self.sequence) {
                match reply.outcome() {
                    Some(_) if i32::from(reply.kind) == libc::NLMSG_DONE => return Ok(true),
                    // Without the kernel's udp_diag there is no list of UDP sockets.
                    Some(Err(Errno::NOENT)) if kind.protocol == UDP => return Ok(true),
                    Some(outcome) => return Err(failed(outcome.err().unwrap_or(Errno::PROTO))),
                    None => {
                        if let Some(connection) = Connection::read(kind, reply.body) {
                            take(connection);
                        }
                    }
                }
            }
            if Instant::now() > until {
                // What is left of the dump ends with its socket.
                *self = Self::open()?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn destroy(&mut self, connection: &Connection) -> Result<(), Errno> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        self.send(SOCK_DESTROY, flags, connection.kind, u32::MAX, &connection.id, &[])?;
        while let Some(length) = self.receive()? {
            for reply in replies(&self.buffer[..length]).filter(|reply| reply.sequence == self.sequence) {
                if let Some(outcome) = reply.outcome() {
                    return outcome;
                }
            }
        }
        Err(Errno::PROTO)
    }

    /// Sends a `struct inet_diag_req_v2`, and a filter behind it.
    fn send(
        &mut self,
        message: u16,
        flags: libc::c_int,
        kind: Kind,
        states: u32,
        id: &[u8; ID_BYTES],
        filter: &[u8],
    ) -> Result<(), Errno> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let header = [&[kind.family, kind.protocol, 0, 0], &states.to_ne_bytes()[..], id].concat();
        let mut request = Message::request(message, flags, &header);
        if !filter.is_empty() {
            request.bytes(INET_DIAG_REQ_BYTECODE, filter);
        }
        let bytes = request.finish(self.sequence);
        send(&self.socket, &bytes, SendFlags::empty()).map(drop)
    }

    fn receive(&mut self) -> Result<Option<usize>, Errno> {
        match recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok((length, whole)) if whole <= length => Ok(Some(length)),
            Ok(_) => Err(Errno::MSGSIZE),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

fn trouble(what: &str, errno: Errno) -> Trouble {
    let lacking = match errno {
        Errno::OPNOTSUPP => "this kernel was built without CONFIG_INET_DIAG_DESTROY",
        Errno::NOENT => "this kernel was built without CONFIG_INET_DIAG, or cannot load it as a module",
        Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT => "the kernel, or a sandbox, lets nobody use sock_diag",
        Errno::PERM | Errno::ACCESS => "this needs the capability CAP_NET_ADMIN",
        _ => "",
    };
    let error = EnforceError {
        what: what.to_owned(),
        cause: errno.to_string(),
        hint: lacking.to_owned(),
        prefix: None,
    };
    if lacking.is_empty() { Trouble::Passing(error) } else { Trouble::Lacking(error) }
}

/// The kernel's filter for connections with these prefixes; empty where the prefixes are too many for one, and `None`
/// where no connection of this kind can be meant.
fn filter(kind: Kind, banned: &Banned) -> Option<Vec<u8>> {
    // An IPv6 socket also has the connections of IPv4 ones, by IPv4-mapped addresses; the kernel knows.
    let fitting = || {
        let prefixes = banned.values().flat_map(PrefixSet::iter);
        prefixes.filter(|prefix| kind.family == INET6 || prefix.address().is_ipv4())
    };
    fitting().next()?;
    let few: Vec<Prefix> = fitting().take(FILTER_PREFIXES_MAX + 1).collect();
    Some(if few.len() > FILTER_PREFIXES_MAX { Vec::new() } else { any_of(&few) })
}

/// "The other end is in one of these": each condition is followed by a jump to the end, which accepts, and skips it
/// where it does not hold; behind the last one is a jump past the end, which rejects. (`inet_diag_bc_run`)
fn any_of(prefixes: &[Prefix]) -> Vec<u8> {
    const OP_BYTES: usize = 4;
    let conditions: Vec<Vec<u8>> = prefixes.iter().map(|prefix| condition(*prefix)).collect();
    let mut left: usize = conditions.iter().map(|condition| 2 * OP_BYTES + condition.len()).sum();
    let mut code = Vec::with_capacity(left);
    for condition in conditions {
        let (yes, jump) = (OP_BYTES + condition.len(), OP_BYTES);
        left -= yes;
        // Behind the last condition there is nothing to skip to: that, too, is past the end.
        let no = if left == jump { yes + 2 * jump } else { yes + jump };
        code.extend(op(INET_DIAG_BC_D_COND, yes, no));
        code.extend(condition);
        code.extend(op(INET_DIAG_BC_JMP, jump, left));
        left -= jump;
    }
    code
}

/// `struct inet_diag_bc_op`.
fn op(code: u8, yes: usize, no: usize) -> [u8; 4] {
    let [low, high] = u16::try_from(no).unwrap_or(u16::MAX).to_ne_bytes();
    [code, u8::try_from(yes).unwrap_or(u8::MAX), low, high]
}

/// `struct inet_diag_hostcond` with its address, of any port.
fn condition(prefix: Prefix) -> Vec<u8> {
    let mut bytes = match prefix.address() {
        IpAddr::V4(_) => vec![INET, prefix.length(), 0, 0],
        IpAddr::V6(_) => vec![INET6, prefix.length(), 0, 0],
    };
    bytes.extend((-1_i32).to_ne_bytes());
    match prefix.address() {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with a filter (`inet_diag_bc_run`), for the codes that are used here.
    fn accepts(code: &[u8], remote: IpAddr) -> bool {
        let (mut at, mut steps) = (0_usize, 0);
        while at < code.len() {
            steps += 1;
            assert!(steps <= code.len(), "it does not end");
            let (kind, yes) = (code[at], usize::from(code[at + 1]));
            let no = usize::from(u16::from_ne_bytes([code[at + 2], code[at + 3]]));
            let holds = kind == INET_DIAG_BC_D_COND && {
                let (family, length) = (code[at + 4], code[at + 5]);
                let address = &code[at + 12..];
                let address: IpAddr = if family == INET {
                    <[u8; 4]>::try_from(&address[..4]).unwrap().into()
                } else {
                    <[u8; 16]>::try_from(&address[..16]).unwrap().into()
                };
                Prefix::new(address, length).unwrap().contains(remote)
            };
            // `inet_diag_bc_audit`.
            for jump in [yes, no] {
                assert!(jump >= 4 && jump % 4 == 0 && jump <= code.len() - at + 4, "{jump} at {at}");
            }
            at += if holds { yes } else { no };
        }
        at == code.len()
    }

    fn set(prefixes: &[&str]) -> Banned {
        let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        BTreeMap::from([(Scope::ALL, prefixes)])
    }

    #[test]
    fn a_filter_accepts_what_any_of_its_prefixes_contains() {
        let prefixes = ["203.0.113.9", "10.0.0.0/8", "2001:db8::/32", "2001:db9::5"];
        let addresses =
            ["203.0.113.9", "203.0.113.10", "10.255.0.1", "11.0.0.1", "2001:db8:1::1", "2001:db9::5", "::1"];
        for count in 1..=prefixes.len() {
            let banned = set(&prefixes[..count]);
            let code = filter(KINDS[1], &banned).unwrap();
            for address in addresses {
                let address: IpAddr = address.parse().unwrap();
                let expected = banned[&Scope::ALL].covering(Prefix::host(address)).is_some();
                assert_eq!(accepts(&code, address), expected, "{address} in {:?}", &prefixes[..count]);
            }
        }
    }

    #[test]
    fn what_is_lacking_is_told_from_what_may_pass() {
        for (errno, lacking) in [
            (Errno::OPNOTSUPP, "CONFIG_INET_DIAG_DESTROY"),
            (Errno::NOENT, "CONFIG_INET_DIAG"),
            (Errno::PERM, "CAP_NET_ADMIN"),
            (Errno::AFNOSUPPORT, "sandbox"),
            (Errno::NOBUFS, ""),
            (Errno::MFILE, ""),
        ] {
            match trouble(DESTROY, errno) {
                Trouble::Lacking(error) => {
                    assert!(!lacking.is_empty() && error.hint.contains(lacking), "{error}");
                }
                Trouble::Passing(error) => assert!(lacking.is_empty(), "{error}"),
            }
        }
    }

    #[test]
    fn a_kind_is_listed_only_where_it_can_hold_a_banned_source() {
        assert_eq!(filter(KINDS[0], &set(&["2001:db8::/32"])), None);
        assert!(filter(KINDS[1], &set(&["10.0.0.0/8"])).is_some(), "IPv4-mapped");
        assert_eq!(filter(KINDS[0], &set(&[])), None);
        let many: PrefixSet = (0..100_u8).map(|n| Prefix::host(IpAddr::from([203, 0, 113, n]))).collect();
        assert_eq!(
            filter(KINDS[0], &BTreeMap::from([(Scope::ALL, many)])),
            Some(Vec::new()),
            "not filtered in the kernel"
        );
    }
}
