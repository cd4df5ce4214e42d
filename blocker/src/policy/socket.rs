//! Sockets that lines come from: where they are, what a message in them is, and who may write.
#![forbid(unsafe_code)]

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use crate::net::Prefix;

/// Sockets at most, over all jails.
pub const SOCKETS_MAX: usize = 64;
/// The mode of a socket's file where nobody says: who may write is decided by the sender's user, and who may reach it
/// by its directory.
pub const SOCKET_MODE: u32 = 0o666;

/// A socket that is listened on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketSpec {
    /// Where.
    pub address: SocketAddress,
    /// What a message is.
    pub form: Form,
    /// Who may write; `None` where no jail says, and then [`Access::default`] holds.
    pub access: Option<Access>,
}

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SocketAddress {
    /// A unix datagram socket.
    Datagram(PathBuf),
    /// A unix stream socket.
    Stream(PathBuf),
    /// UDP on this address.
    Udp(SocketAddr),
    /// TCP on this address.
    Tcp(SocketAddr),
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// A line, or a JSON object.
    Line,
    /// A syslog message (RFC 3164, RFC 5424).
    Syslog,
}

/// Who may write to a socket, and whose its file is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// Users who may write to a unix socket, beside root and the agent's own.
    pub users: Vec<u32>,
    /// Groups whose members may, by the group the sender's process runs under.
    pub groups: Vec<u32>,
    /// The mode of the file.
    pub mode: u32,
    /// Its owner; the agent's user where nobody says.
    pub owner: Option<u32>,
    /// Its group.
    pub group: Option<u32>,
    /// Senders whose UDP and TCP is taken.
    pub allow: Vec<Prefix>,
}

impl Default for Access {
    /// Root and the agent itself on unix sockets, this host on UDP and TCP.
    fn default() -> Self {
        let loopback = ["127.0.0.0/8", "::1"].into_iter().filter_map(|prefix| prefix.parse().ok());
        Self {
            users: Vec::new(),
            groups: Vec::new(),
            mode: SOCKET_MODE,
            owner: None,
            group: None,
            allow: loopback.collect(),
        }
    }
}

impl Access {
    /// Whether a process of this user and group may write, where `own` is the agent's user.
    pub fn admits(&self, user: u32, group: u32, own: u32) -> bool {
        user == 0 || user == own || self.users.contains(&user) || self.groups.contains(&group)
    }

    /// Whether messages from this address are taken.
    pub fn admits_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allow.iter().any(|prefix| prefix.contains(address))
    }
}

impl SocketSpec {
    /// Who may write, in words.
    pub fn writers(&self) -> String {
        let default = Access::default();
        let access = self.access.as_ref().unwrap_or(&default);
        let all: Vec<String> = match self.address {
            SocketAddress::Udp(_) | SocketAddress::Tcp(_) => {
                access.allow.iter().map(ToString::to_string).collect()
            }
            SocketAddress::Datagram(_) | SocketAddress::Stream(_) => ["root".to_owned()]
                .into_iter()
                .chain(access.users.iter().filter(|user| **user != 0).map(|user| format!("user {user}")))
                .chain(access.groups.iter().map(|group| format!("group {group}")))
                .collect(),
        };
        if all.is_empty() { "nobody".to_owned() } else { all.join(", ") }
    }
}

/// As the configuration has it.
impl fmt::Display for SocketSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.address, self.form) {
            (SocketAddress::Datagram(path), Form::Line) => write!(f, "{}", path.display()),
            (SocketAddress::Datagram(path), Form::Syslog) => write!(f, "unix://{}", path.display()),
            (SocketAddress::Stream(path), _) => write!(f, "{} (stream)", path.display()),
            (SocketAddress::Udp(address), _) => write!(f, "udp://{address}"),
            (SocketAddress::Tcp(address), _) => write!(f, "tcp://{address}"),
        }
    }
}

/// Bounds on all sockets together, but for the queue, which each has to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketLimits {
    /// Connections at once; default 256.
    pub connections_max: usize,
    /// How long a connection may complete no message; default an hour.
    pub idle: Duration,
    /// Bytes of one socket's lines that wait for the engine; default 1,048,576.
    pub queue_bytes_max: usize,
}

impl Default for SocketLimits {
    fn default() -> Self {
        Self { connections_max: 256, idle: Duration::from_secs(3_600), queue_bytes_max: 1 << 20 }
    }
}
