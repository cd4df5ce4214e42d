//! `blocker check`: everything a start would refuse, and what each jail will read and do.

use std::{path::Path, process::ExitCode, sync::Arc};

use serde_json::json;

use super::{complain, exit, say, show};
use crate::{
    config::{self, Config},
    policy::{Jail, SourceSpec},
    time::span_text,
};

/// Checks the configuration at `path`.
pub(super) fn check(path: &Path, as_json: bool) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(errors) => {
            if as_json {
                say(&format!("{:#}\n", json!({ "ok": false, "errors": errors.to_string() })));
            }
            complain(&format!("{errors}"));
            return ExitCode::from(exit::CONFIG);
        }
    };
    let failures: Vec<String> = samples(&config);
    if as_json {
        let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
        let jails: Vec<_> = config.policy.jails.iter().map(|jail| jail_json(&config, jail)).collect();
        let report =
            json!({ "ok": failures.is_empty(), "jails": jails, "warnings": warnings, "samples": failures });
        say(&format!("{report:#}\n"));
    } else {
        for jail in &config.policy.jails {
            say(&jail_text(&config, jail));
        }
        for warning in &config.warnings {
            say(&format!("{}\n", show::clean_lines(&warning.to_string())));
        }
    }
    for failure in &failures {
        complain(failure);
    }
    if failures.is_empty() {
        if !as_json {
            say(&format!("{}: {} jails, no errors\n", path.display(), config.policy.jails.len()));
        }
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::CONFIG)
    }
}

/// Every sample of every filter in use that does not come out as it says.
fn samples(config: &Config) -> Vec<String> {
    let mut seen = Vec::new();
    let mut failures = Vec::new();
    for filter in config.policy.jails.iter().flat_map(|jail| &jail.filters) {
        if !seen.iter().any(|known| Arc::ptr_eq(known, filter)) {
            failures.extend(filter.check_samples().iter().map(ToString::to_string));
            seen.push(Arc::clone(filter));
        }
    }
    failures
}

fn sources(config: &Config, jail: &Jail) -> Vec<String> {
    let specs = jail.sources.iter().filter_map(|id| config.policy.sources.get(usize::from(id.0)));
    specs
        .map(|spec| match spec {
            SourceSpec::File(path) => path.display().to_string(),
            SourceSpec::Socket(path) => format!("{} (socket)", path.display()),
            SourceSpec::Ledger => "bans by other jails".to_owned(),
        })
        .collect()
}

fn jail_text(config: &Config, jail: &Jail) -> String {
    let filters: Vec<String> = jail
        .filters
        .iter()
        .map(|filter| format!("{} ({} samples)", filter.name, filter.samples.len()))
        .collect();
    let ignore = if jail.ignoreip.is_empty() {
        String::new()
    } else {
        let list: Vec<String> = jail.ignoreip.iter().map(ToString::to_string).collect();
        format!("  ignores  {}\n", list.join(", "))
    };
    format!(
        "[{}]\n  reads    {}\n  filters  {}\n  bans     after {} failures in {}, for {}; IPv6 by /{}\n{ignore}",
        show::clean(&jail.name),
        show::clean(&sources(config, jail).join(", ")),
        show::clean(&filters.join(", ")),
        jail.maxretry,
        span_text(jail.findtime),
        jail.bantime,
        jail.ipv6_prefix,
    )
}

fn jail_json(config: &Config, jail: &Jail) -> serde_json::Value {
    json!({
        "name": *jail.name,
        "sources": sources(config, jail),
        "filters": jail.filters.iter().map(|filter| filter.name.to_string()).collect::<Vec<_>>(),
        "maxretry": jail.maxretry,
        "findtime_secs": jail.findtime.as_secs(),
        "bantime": jail.bantime.to_string(),
        "ipv6_prefix": jail.ipv6_prefix,
        "ignoreip": jail.ignoreip,
    })
}
