//! Other tools that drop by source address, each in a namespace of its own.

use anyhow::Result;

pub(crate) mod netfilter;
pub(crate) mod xdp_filter;

/// What `ip -json link show` says of the XDP program on `eth0`.
pub(crate) fn attached_program(netns: &xtask::lab::Netns) -> Result<Option<u32>> {
    let text = netns.ip("-json link show dev eth0")?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    Ok(links[0]["xdp"]["prog"]["id"].as_u64().map(u32::try_from).transpose()?)
}
