//! Which kernel mechanism enforces, and why.
//!
//! `auto` takes XDP where it was built in and the interfaces take it, else nftables; the reason travels with the
//! choice into `status`, because a silent fallback is a surprise at the worst moment.

use std::fs;

use crate::{
    config::{Backend, Config, Interfaces, TableKind},
    enforce::{
        EnforceError, Enforcer,
        nft::{self, Nft},
        xdp,
    },
};

/// What a binary without the XDP object says, at start and in `status`.
pub(super) const XDP_NOT_BUILT_IN: &str =
    "XDP was not built into this binary; `cargo xtask build --release` builds one that has it";

/// An enforcer, and why it is this one.
pub(super) struct Chosen {
    /// Open and adopted.
    pub(super) enforcer: Box<dyn Enforcer>,
    /// One sentence for `status`.
    pub(super) why: String,
}

/// Opens the enforcer the configuration asks for.
///
/// # Errors
/// When none can be had, with every reason.
pub(super) fn choose(config: &Config) -> Result<Chosen, EnforceError> {
    match config.enforce.backend {
        Backend::Xdp => open_xdp(config)
            .map(|enforcer| Chosen { enforcer, why: "xdp, as the configuration asks".to_owned() }),
        Backend::Nftables => open_nft(config)
            .map(|enforcer| Chosen { enforcer, why: "nftables, as the configuration asks".to_owned() }),
        Backend::Auto => match open_xdp(config) {
            Ok(enforcer) => {
                Ok(Chosen { enforcer, why: "auto: XDP is the fastest and was to be had".to_owned() })
            }
            Err(refused) => open_nft(config)
                .map(|enforcer| Chosen { enforcer, why: format!("auto: nftables, because {refused}") })
                .map_err(|error| EnforceError {
                    hint: format!("{}; before that, {refused}", error.hint),
                    ..error
                }),
        },
    }
}

/// Removes what the other enforcer left in the kernel when it was the chosen one: nobody would read or lift its bans
/// any more. To be called once the chosen one holds the ledger's bans.
pub(super) fn retire_other(config: &Config, chosen: &str) -> Result<(), EnforceError> {
    if chosen == "xdp" {
        return Nft::remove();
    }
    xdp::remove(&config.enforce.pin_dir)
}

fn open_nft(config: &Config) -> Result<Box<dyn Enforcer>, EnforceError> {
    let mut options = nft::Options::of(config.policy.limits.bans_max);
    options.counters = config.enforce.counters.unwrap_or(options.counters);
    Ok(Box::new(Nft::open_with(options)?))
}

fn open_xdp(config: &Config) -> Result<Box<dyn Enforcer>, EnforceError> {
    if !xdp::is_built_in() {
        return Err(EnforceError {
            what: "attach XDP".to_owned(),
            cause: XDP_NOT_BUILT_IN.to_owned(),
            hint: String::new(),
            prefix: None,
        });
    }
    let interfaces = match &config.enforce.interfaces {
        Interfaces::Named(names) => names.clone(),
        Interfaces::Auto => automatic()?,
    };
    let xdp = xdp::Xdp::open(&xdp::Options {
        interfaces,
        bans_max: config.policy.limits.bans_max,
        pin_dir: config.enforce.pin_dir.clone(),
        layout: match config.enforce.table {
            TableKind::Buckets => xdp::Layout::Buckets,
            TableKind::Hash => xdp::Layout::Hash,
        },
        exact: config.enforce.exact,
    })?;
    Ok(Box::new(xdp))
}

/// The interfaces that strangers come in by: those with a default route, or where there is none, those with any.
fn automatic() -> Result<Vec<String>, EnforceError> {
    // Unlike /sys/class/net, these show the network namespace of the caller.
    let v4 = fs::read_to_string("/proc/self/net/route").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/self/net/ipv6_route").unwrap_or_default();
    let names = facing(&v4, &v6);
    if names.is_empty() {
        return Err(EnforceError {
            what: "find interfaces to attach XDP to".to_owned(),
            cause: "no interface but loopback has a route".to_owned(),
            hint: "bring one up, or name them in `[enforce] interfaces`".to_owned(),
            prefix: None,
        });
    }
    Ok(names)
}

/// The names in the kernel's two routing tables, as [`automatic`] chooses among them.
fn facing(v4: &str, v6: &str) -> Vec<String> {
    let v4 = v4.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        Some((fields.next()?, fields.next()? == "00000000"))
    });
    let v6 = v6.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let default = fields.nth(1)? == "00";
        Some((fields.last()?, default))
    });
    let routed: Vec<(&str, bool)> = v4.chain(v6).filter(|(name, _)| *name != "lo").collect();
    let any_default = routed.iter().any(|(_, default)| *default);
    let mut names: Vec<String> = routed
        .iter()
        .filter(|(_, default)| *default || !any_default)
        .map(|(name, _)| (*name).to_owned())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "Iface\tDestination\tGateway\neth0\t00000000\tFE6433C6\neth1\t0000000A\t00000000\n";
    const V6: &str = "20010db8000100000000000000000000 40 0 00 0 0 0 0 0 eth2\n\
                      00000000000000000000000000000000 00 0 00 0 0 0 0 0 lo\n";

    #[test]
    fn the_default_route_decides_and_without_one_every_route() {
        assert_eq!(facing(V4, V6), ["eth0"]);
        let no_default: String =
            V4.lines().filter(|line| !line.starts_with("eth0")).map(|l| format!("{l}\n")).collect();
        assert_eq!(facing(&no_default, V6), ["eth1", "eth2"]);
        assert_eq!(facing("", "garbage"), Vec::<String>::new());
    }
}
