//! Who sent a message: the kernel's word, and never the sender's.
#![forbid(unsafe_code)]

use std::{
    fmt,
    io::IoSliceMut,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, UnixCredentials, getsockopt, recvmsg,
    sockopt::PeerCredentials,
};
use rustix::net::SocketAddrAny;

use crate::policy::{Access, SocketAddress};

/// Who sends, as the kernel knows it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sender {
    Process(Option<UnixCredentials>),
    Address(Option<SocketAddr>),
}

impl Sender {
    /// Of a connection that was accepted on a socket at `address`.
    pub(super) fn connected(address: &SocketAddress, socket: &OwnedFd, peer: Option<SocketAddrAny>) -> Self {
        match address {
            SocketAddress::Tcp(_) => Self::Address(peer.and_then(|peer| SocketAddr::try_from(peer).ok())),
            _ => Self::Process(getsockopt(socket, PeerCredentials).ok()),
        }
    }

    pub(super) fn may_write(&self, access: &Access, own_user: u32) -> bool {
        match self {
            Self::Process(Some(who)) => access.admits(who.uid(), who.gid(), own_user),
            Self::Address(Some(address)) => access.admits_address(address.ip()),
            Self::Process(None) | Self::Address(None) => false,
        }
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(Some(who)) => {
                write!(f, "user {}, group {}, process {}", who.uid(), who.gid(), who.pid())
            }
            Self::Address(Some(address)) => write!(f, "{}", address.ip().to_canonical()),
            Self::Process(None) | Self::Address(None) => f.write_str("nobody knows who"),
        }
    }
}

/// One datagram.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) length: usize,
    /// It was longer than the buffer.
    pub(super) cut: bool,
    pub(super) sender: Sender,
    /// Datagrams that the kernel has dropped from this socket so far, if it has dropped any.
    pub(super) kernel_dropped: Option<u32>,
}

/// Takes a datagram from a socket at `address`.
pub(super) fn receive(address: &SocketAddress, socket: &OwnedFd, buffer: &mut [u8]) -> nix::Result<Received> {
    match address {
        SocketAddress::Udp(_) => from_address(socket, buffer),
        _ => from_process(socket, buffer),
    }
}

/// From a unix socket. Descriptors that come along find no room beside the credentials, so the kernel closes them.
fn from_process(socket: &OwnedFd, buffer: &mut [u8]) -> nix::Result<Received> {
    let mut space = nix::cmsg_space!(UnixCredentials);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let credentials = message.cmsgs().ok().and_then(|mut parts| {
        parts.find_map(|part| match part {
            ControlMessageOwned::ScmCredentials(who) => Some(who),
            _ => None,
        })
    });
    Ok(Received {
        length: message.bytes,
        cut: message.flags.contains(MsgFlags::MSG_TRUNC),
        sender: Sender::Process(credentials),
        kernel_dropped: None,
    })
}

/// From a UDP socket.
fn from_address(socket: &OwnedFd, buffer: &mut [u8]) -> nix::Result<Received> {
    let mut space = nix::cmsg_space!(u32);
    let mut parts = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
    let kernel_dropped = message.cmsgs().ok().and_then(|mut parts| {
        parts.find_map(|part| match part {
            ControlMessageOwned::RxqOvfl(dropped) => Some(dropped),
            _ => None,
        })
    });
    let address = message.address.and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
    });
    Ok(Received {
        length: message.bytes,
        cut: message.flags.contains(MsgFlags::MSG_TRUNC),
        sender: Sender::Address(address),
        kernel_dropped,
    })
}
