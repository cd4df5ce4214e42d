//! Which kernel mechanism enforces, and why.
//!
//! `auto` takes XDP where it was built in and every interface takes its program in some mode, else nftables for the whole
//! host; the reason travels with the choice into `status`, because a silent fallback is a surprise at the worst moment.

use crate::{
    config::{AttachMode, Backend, Config, Interfaces, TableKind},
    enforce::{
        EnforceError, Enforcer,
        beside::Beside,
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
                .map(|enforcer| Chosen {
                    enforcer,
                    why: format!("auto: nftables for the whole host, because {refused}"),
                })
                .map_err(|error| EnforceError {
                    hint: format!("{}; before that, {refused}", error.hint),
                    ..error
                }),
        },
    }
}

/// Removes what the other enforcer left in the kernel when it was the chosen one: nobody would read or lift its bans
/// any more. To be called once the chosen one holds the ledger's bans.
pub(super) fn retire_other(config: &Config, chosen: &mut dyn Enforcer) -> Result<(), EnforceError> {
    if chosen.describe().backend == "xdp" {
        return chosen.be_alone(super::now());
    }
    xdp::remove(&config.enforce.pin_dir)
}

fn open_nft(config: &Config) -> Result<Box<dyn Enforcer>, EnforceError> {
    Ok(Box::new(Nft::open_with(nft_options(config))?))
}

fn nft_options(config: &Config) -> nft::Options {
    let options = nft::Options::of(config.policy.limits.bans_max);
    nft::Options { counters: config.enforce.counters.unwrap_or(options.counters), ..options }
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
    let modes = config.enforce.modes.iter().map(|mode| match mode {
        AttachMode::Native => xdp::Mode::Native,
        AttachMode::Dispatcher => xdp::Mode::Dispatcher,
        AttachMode::Tcx => xdp::Mode::Tcx,
        AttachMode::Generic => xdp::Mode::Generic,
    });
    let xdp = xdp::Xdp::open(&xdp::Options {
        interfaces: match &config.enforce.interfaces {
            Interfaces::Named(names) => xdp::Interfaces::Named(names.clone()),
            Interfaces::Auto => xdp::Interfaces::Auto,
        },
        exclude: config.enforce.exclude.clone(),
        modes: modes.collect(),
        // nftables then guards all of the host.
        all: config.enforce.backend == Backend::Auto,
        bans_max: config.policy.limits.bans_max,
        pin_dir: config.enforce.pin_dir.clone(),
        layout: match config.enforce.table {
            TableKind::Buckets => xdp::Layout::Buckets,
            TableKind::Hash => xdp::Layout::Hash,
        },
        exact: config.enforce.exact,
    })?;
    Ok(Box::new(Beside::new(Box::new(xdp), nft_options(config))))
}
