//! A wire to a host: whole frames, put on it byte by byte as they are.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{Netns, wait_for};

/// How long a queue may be full.
const ROOM_TIME_MAX: Duration = Duration::from_secs(5);

/// A packet socket (packet(7)) on an interface of a namespace.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// Binds to an interface of `netns`; what is sent arrives at the other end of its veth pair.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn new(netns: &Netns, interface: &str) -> Result<Self> {
        netns.enter(|| packet_socket(interface)).map(Self).with_context(|| format!("bind to {interface}"))
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// When the interface takes no frame of this size, or has no room.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the descriptor is open and the frame outlives the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if usize::try_from(sent) == Ok(frame.len()) { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends one frame, once there is room for it.
    ///
    /// # Errors
    /// When the interface takes no frame of this size, or has no room for long.
    pub fn send_whole(&self, frame: &[u8]) -> io::Result<()> {
        let sent = || Some(self.send(frame)).filter(|outcome| !has_no_room(outcome));
        wait_for(ROOM_TIME_MAX, sent).unwrap_or_else(|| self.send(frame))
    }
}

/// Whether the queue behind the interface was full, so that the frame is lost.
fn has_no_room(outcome: &io::Result<()>) -> bool {
    outcome.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOBUFS))
}

fn packet_socket(interface: &str) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: an all-zero sockaddr_ll is a valid value of that plain struct.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    // SAFETY: the name is a C string that outlives the call.
    address.sll_ifindex =
        i32::try_from(unsafe { libc::if_nametoindex(name.as_ptr()) }).map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: the address is of the length given and outlives the call.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
}
