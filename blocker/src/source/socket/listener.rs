//! A socket that is listened on: how it is made, and what is counted of it.
//!
//! A unix socket's file takes the place of one that nobody listens to, and goes with the listener. Credentials are asked
//! for before a socket has a name, so that no message arrives without.
#![forbid(unsafe_code)]

use std::{
    fs::{self, Permissions},
    io,
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Instant,
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt,
};

use crate::policy::{Access, SocketAddress, SocketSpec};

/// Connections that wait to be accepted; the kernel turns further ones away.
const BACKLOG: i32 = 128;
/// What UDP may hold in the kernel, as far as it lets us (`net.core.rmem_max`).
const KERNEL_BUFFER_BYTES: usize = 1 << 20;

/// Names and values of what is counted of one socket.
macro_rules! counters {
    ($($(#[doc = $what:literal])+ $name:ident,)+) => {
        /// What is counted of one socket.
        #[derive(Clone, Copy, Debug, Default)]
        pub(super) struct Counters {
            $($(#[doc = $what])+ pub(super) $name: u64,)+
        }

        impl Counters {
            pub(super) fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }
        }
    };
}

counters! {
    /// Bytes of lines handed over.
    bytes,
    /// Lines handed over.
    lines,
    /// Messages and connections of senders who may not write.
    refused,
    /// Lines that the loop was too slow for.
    dropped,
    /// Messages that the kernel had no room for.
    kernel_dropped,
    /// Messages over 64 KiB.
    too_long,
    /// Messages with nothing in them.
    empty,
    /// Messages that keep to no RFC; a line each all the same.
    malformed,
    /// Connections closed because their bytes were no frames.
    out_of_frame,
    /// Connections that ended in the middle of a message, which was thrown away.
    unfinished,
    /// Connections turned away because there were too many.
    turned_away,
    /// Connections closed for saying nothing.
    idle_closed,
    /// Times that the kernel could not give a message or a connection.
    failed,
}

/// A socket that is listened on.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) spec: SocketSpec,
    pub(super) access: Access,
    pub(super) socket: OwnedFd,
    pub(super) counters: Counters,
    /// Who was refused last.
    pub(super) refused_last: Option<String>,
    /// Not looked at before then, since the kernel had no descriptor or memory.
    pub(super) paused_until: Option<Instant>,
    /// Dropped with it.
    _file: Option<SocketFile>,
}

impl Listener {
    /// # Errors
    /// What is in the way, and what to do.
    pub(super) fn open(spec: &SocketSpec) -> io::Result<Self> {
        let access = spec.access.clone().unwrap_or_default();
        let (socket, file) = match &spec.address {
            SocketAddress::Datagram(path) => unix(path, SocketType::DGRAM, &access)?,
            SocketAddress::Stream(path) => unix(path, SocketType::STREAM, &access)?,
            SocketAddress::Udp(address) => (inet(*address, SocketType::DGRAM)?, None),
            SocketAddress::Tcp(address) => (inet(*address, SocketType::STREAM)?, None),
        };
        Ok(Self {
            spec: spec.clone(),
            access,
            socket,
            counters: Counters::default(),
            refused_last: None,
            paused_until: None,
            _file: file,
        })
    }

    pub(super) fn refuse(&mut self, whom: impl FnOnce() -> String) {
        self.counters.refused += 1;
        self.refused_last = Some(whom());
    }
}

fn with(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn inet(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
        .map_err(io::Error::from)
        .map_err(|error| {
            let advice = "the unit must allow it: RestrictAddressFamilies=AF_INET AF_INET6 in a drop-in";
            with(&format!("no socket for {address}; {advice}"), &error)
        })?;
    if address.is_ipv6() {
        // An address is what it says: IPv4 has a listener of its own.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if kind == SocketType::STREAM {
        // Connections of an earlier life that linger do not keep the next one from listening.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    } else {
        let _as_far_as_it_goes = sockopt::set_socket_recv_buffer_size(&socket, KERNEL_BUFFER_BYTES);
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RxqOvfl, &1)?;
    }
    bind(&socket, &address).map_err(io::Error::from).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "a port under 1024 needs CAP_NET_BIND_SERVICE; take a higher one"
            }
            io::ErrorKind::AddrInUse => "another process has it: stop that or choose another port",
            io::ErrorKind::AddrNotAvailable => "no interface has this address yet",
            _ => "it cannot be bound",
        };
        with(&format!("{address}: {advice}"), &error)
    })?;
    if kind == SocketType::STREAM {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

fn unix(path: &Path, kind: SocketType, access: &Access) -> io::Result<(OwnedFd, Option<SocketFile>)> {
    let at = path.display();
    make_way(path)?;
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if kind == SocketType::DGRAM {
        sockopt::set_socket_passcred(&socket, true)?;
    }
    bind(&socket, &SocketAddrUnix::new(path)?).map_err(io::Error::from).map_err(|error| {
        with(&format!("{at} cannot be made; the directory must exist and let the agent's user write"), &error)
    })?;
    let metadata = fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), id: (metadata.dev(), metadata.ino()) };
    if access.owner.is_some() || access.group.is_some() {
        std::os::unix::fs::lchown(path, access.owner, access.group).map_err(|error| {
            with(&format!("{at} cannot be given to its owner; the unit needs CAP_CHOWN"), &error)
        })?;
    }
    fs::set_permissions(path, Permissions::from_mode(access.mode)).map_err(|error| {
        with(&format!("{at} cannot be given its mode; the unit needs CAP_FOWNER"), &error)
    })?;
    if kind == SocketType::STREAM {
        listen(&socket, BACKLOG)?;
    }
    Ok((socket, Some(file)))
}

/// Removes a socket that nobody listens to, and nothing else.
fn make_way(path: &Path) -> io::Result<()> {
    let at = path.display();
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        let what = format!("{at} is there and is no socket: move it away or choose another path");
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    let asked = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    // A socket of the other kind that lives says EPROTOTYPE.
    if connect(&asked, &SocketAddrUnix::new(path)?) != Err(rustix::io::Errno::CONNREFUSED) {
        let what = format!("another process listens on {at}: stop it or choose another path");
        return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
    }
    fs::remove_file(path)
        .map_err(|error| with(&format!("cannot replace {at}, which nobody listens to"), &error))
}

/// The file of a unix socket; removed when it is dropped, if it is still this one.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.id);
        if ours {
            // The next start replaces a dead socket; there is nobody to tell here.
            let _left = fs::remove_file(&self.path);
        }
    }
}
