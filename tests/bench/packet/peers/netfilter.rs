//! nftables, ipset and iptables, set up by their own tools as their manuals or fail2ban would have them.

use std::{fmt::Write as _, fs, ops::Range};

use anyhow::{Result, ensure};
use xtask::lab::{Netns, Scratch, run};

use crate::spray::Family;

/// The port that fail2ban's chain is asked for.
pub(crate) const PORT: u16 = 22;

/// A timeout set with room for `size` elements, asked before everything else, as blocker's own table is.
pub(crate) fn nft_set(netns: &Netns, size: u64, numbers: Range<u64>) -> Result<()> {
    nft(
        netns,
        &format!(
            "table ip peer {{\n set banned {{ type ipv4_addr; flags timeout; timeout 1h; gc-interval 1m; size {size}; }}\n \
             chain early {{ type filter hook prerouting priority raw; policy accept; ip saddr @banned drop; }}\n}}\n"
        ),
    )?;
    nft_add(netns, numbers)
}

/// More elements, in one transaction.
pub(crate) fn nft_add(netns: &Netns, numbers: Range<u64>) -> Result<()> {
    let addresses: Vec<String> = numbers.map(|number| Family::V4.source(number).to_string()).collect();
    if addresses.is_empty() {
        return Ok(());
    }
    nft(netns, &format!("add element ip peer banned {{ {} }}\n", addresses.join(",")))
}

fn nft(netns: &Netns, text: &str) -> Result<()> {
    from_file(netns, text, "nft", &["-f"])
}

/// An ipset with timeouts and room for `size` members, asked in the raw table.
pub(crate) fn ipset(netns: &Netns, size: u64, numbers: Range<u64>) -> Result<()> {
    installed("ipset", "ipset")?;
    installed("iptables", "iptables")?;
    netns.run("ipset", &["create", "banned", "hash:ip", "timeout", "3600", "maxelem", &size.to_string()])?;
    ipset_add(netns, numbers)?;
    let rule = ["-t", "raw", "-I", "PREROUTING", "-m", "set", "--match-set", "banned", "src", "-j", "DROP"];
    netns.run("iptables", &rule).map(drop)
}

/// More members, by one process.
pub(crate) fn ipset_add(netns: &Netns, numbers: Range<u64>) -> Result<()> {
    let mut text = String::new();
    for number in numbers {
        let _infallible = writeln!(text, "add banned {}", Family::V4.source(number));
    }
    from_file(netns, &text, "ipset", &["restore", "-file"])
}

/// A chain of one rule for each ban, as fail2ban's action iptables-multiport makes it.
pub(crate) fn chain(netns: &Netns, numbers: Range<u64>) -> Result<()> {
    installed("iptables", "iptables")?;
    let mut text = "*filter\n:f2b-sshd - [0:0]\n".to_owned();
    let _infallible = writeln!(text, "-A INPUT -p tcp -m multiport --dports {PORT} -j f2b-sshd");
    for number in numbers {
        let source = Family::V4.source(number);
        let _infallible =
            writeln!(text, "-A f2b-sshd -s {source} -j REJECT --reject-with icmp-port-unreachable");
    }
    text += "-A f2b-sshd -j RETURN\nCOMMIT\n";
    from_file(netns, &text, "iptables-restore", &["--noflush"])
}

/// One ban more, as fail2ban adds it.
pub(crate) fn chain_insert(netns: &Netns, number: u64) -> Result<()> {
    let source = Family::V4.source(number).to_string();
    let rule = ["-I", "f2b-sshd", "1", "-s", &source, "-j", "REJECT"];
    netns.run("iptables", &[rule.as_slice(), &["--reject-with", "icmp-port-unreachable"]].concat()).map(drop)
}

pub(crate) fn installed(tool: &str, package: &str) -> Result<()> {
    ensure!(xtask::setup::has(tool), "{tool} is not installed (Debian's {package})");
    Ok(())
}

fn from_file(netns: &Netns, text: &str, tool: &str, arguments: &[&str]) -> Result<()> {
    let scratch = Scratch::new("peer")?;
    let file = scratch.join("commands");
    fs::write(&file, text)?;
    run(netns.command(tool).args(arguments).arg(&file)).map(drop)
}
