//! A host whose guard is tried, a peer that says nothing by itself, and a counter of the kernel's behind the guard.

use anyhow::{Context, Result};

use super::Netns;

/// The host, reached at `eth0` by 02:00:00:00:00:01, and its peer at the other end.
///
/// # Errors
/// With what `ip` said.
pub fn hosts() -> Result<(Netns, Netns)> {
    let (host, peer) = (Netns::new("host")?, Netns::new("peer")?);
    host.link("eth0", &peer, "eth0")?;
    host.ip("addr add 198.51.100.1/24 dev eth0")?;
    host.ip("addr add 2001:db8:1::1/64 dev eth0 nodad")?;
    host.ip("link set eth0 address 02:00:00:00:00:01")?;
    peer.sysctl("net/ipv6/conf/eth0/disable_ipv6", "1")?;
    Ok((host, peer))
}

/// Has the kernel count by these rules, each with a counter, what comes in as far as a chain of this priority.
///
/// # Errors
/// With what `nft` said.
pub fn watch(host: &Netns, priority: i32, rules: &[&str]) -> Result<()> {
    let chain = format!("add chain inet witness seen {{ type filter hook prerouting priority {priority}; }}");
    host.run("nft", &["add table inet witness"])?;
    host.run("nft", &[&chain])?;
    for rule in rules {
        host.run("nft", &[&format!("add rule inet witness seen {rule}")])?;
    }
    Ok(())
}

/// The packets that each rule has counted.
///
/// # Errors
/// With what `nft` said, or where that is not understood.
pub fn seen(host: &Netns) -> Result<Vec<u64>> {
    let text = host.run("nft", &["list", "chain", "inet", "witness", "seen"])?;
    let counts =
        text.split("counter packets ").skip(1).map(|rest| rest.split(' ').next().unwrap_or_default());
    counts.map(|count| count.parse().with_context(|| format!("{count:?} in {text}"))).collect()
}
