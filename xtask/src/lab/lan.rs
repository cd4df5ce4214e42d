//! One local network: a host to be protected, clients around it, and a switch between them.
//!
//! The switch is a bridge in a namespace of its own, so the host has one interface, `eth0`, as real ones do, and
//! frames reach it unchanged, VLAN tags included.

use std::net::IpAddr;

use anyhow::Result;

use super::Netns;

/// The host's IPv4 address (RFC 5737).
pub const HOST_V4: &str = "198.51.100.1";
/// The host's IPv6 address (RFC 3849).
pub const HOST_V6: &str = "2001:db8:1::1";

/// A host with one interface `eth0`, and its clients.
#[derive(Debug)]
pub struct Lan {
    /// The protected host, at [`HOST_V4`] and [`HOST_V6`].
    pub host: Netns,
    /// The clients, in the order they were added.
    pub clients: Vec<Client>,
    switch: Netns,
}

/// A machine that talks to the host.
#[derive(Debug)]
pub struct Client {
    /// Its namespace; its interface is `eth0`.
    pub netns: Netns,
    /// Its IPv4 address.
    pub v4: IpAddr,
    /// Its IPv6 address, alone in its /64.
    pub v6: IpAddr,
}

impl Lan {
    /// A host and no client yet.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn new() -> Result<Self> {
        let (switch, host) = (Netns::new("switch")?, Netns::new("host")?);
        switch.ip("link add br0 type bridge mcast_snooping 0 forward_delay 0")?;
        switch.ip("link set br0 up")?;
        host.link("eth0", &switch, "host")?;
        switch.ip("link set host master br0")?;
        host.ip(&format!("addr add {HOST_V4}/24 dev eth0"))?;
        host.ip(&format!("addr add {HOST_V6}/64 dev eth0 nodad"))?;
        Ok(Self { host, clients: Vec::new(), switch })
    }

    /// Adds a client whose last address part is `number` (2 to 254): `198.51.100.N` and `2001:db8:N::N`. Each has a
    /// /64 of its own, since that is what is banned.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn add_client(&mut self, label: &str, number: u8) -> Result<&Client> {
        let netns = Netns::new(label)?;
        let port = format!("p{number}");
        netns.link("eth0", &self.switch, &port)?;
        self.switch.ip(&format!("link set {port} master br0"))?;
        let v4 = format!("198.51.100.{number}");
        let v6 = format!("2001:db8:{number}::{number}");
        netns.ip(&format!("addr add {v4}/24 dev eth0"))?;
        netns.ip(&format!("addr add {v6}/64 dev eth0 nodad"))?;
        netns.ip(&format!("-6 route add {HOST_V6}/128 dev eth0 src {v6}"))?;
        self.host.ip(&format!("-6 route add 2001:db8:{number}::/64 dev eth0"))?;
        self.clients.push(Client { netns, v4: v4.parse()?, v6: v6.parse()? });
        Ok(&self.clients[self.clients.len() - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{missing, skipped};

    #[test]
    fn clients_reach_the_host_in_both_families() {
        if let Some(reason) = missing() {
            return skipped("clients_reach_the_host_in_both_families", &reason);
        }
        let mut lan = Lan::new().unwrap();
        lan.add_client("honest", 7).unwrap();
        for address in [HOST_V4, HOST_V6] {
            let address: IpAddr = address.parse().unwrap();
            let listener = lan.host.enter(|| std::net::TcpListener::bind((address, 80)).unwrap());
            let reached = lan.clients[0].netns.enter(|| std::net::TcpStream::connect((address, 80)).unwrap());
            let peer = reached.local_addr().unwrap().ip();
            assert!(peer == lan.clients[0].v4 || peer == lan.clients[0].v6, "{peer}");
            drop(listener);
        }
    }
}
