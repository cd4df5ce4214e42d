//! `blocker check`: everything a start would refuse, and what each jail will read and do.

use std::{path::Path, process::ExitCode, sync::Arc};

use serde_json::json;

use super::{complain, doubts, exit, say, show};
use crate::{
    agent::{read_journal_instead, unlogged},
    config::{self, Config},
    filter::Filter,
    policy::{ActionSpec, Jail, SourceSpec},
    time::span_text,
};

/// Checks the configuration at `path`.
pub(super) fn check(path: &Path, as_json: bool) -> ExitCode {
    let mut config = match config::load(path) {
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
    let doubts = doubts::of(&config);
    let instead = read_journal_instead(&mut config.policy);
    let unlogged = config.policy.jails.iter().filter_map(|jail| unlogged(&config.policy, jail));
    let unlogged: Vec<String> = instead
        .into_iter()
        .map(|one| one.note)
        .chain(unlogged)
        .map(|warning| format!("warning: {warning}"))
        .collect();
    if as_json {
        let warnings = config.warnings.iter().map(ToString::to_string);
        let warnings: Vec<String> = unlogged.into_iter().chain(warnings).chain(doubts).collect();
        let jails: Vec<_> = config.policy.jails.iter().map(|jail| jail_json(&config, jail)).collect();
        let report =
            json!({ "ok": failures.is_empty(), "jails": jails, "warnings": warnings, "samples": failures });
        say(&format!("{report:#}\n"));
    } else {
        for jail in &config.policy.jails {
            say(&jail_text(&config, jail));
        }
        for warning in &unlogged {
            say(&format!("{}\n", show::clean(warning)));
        }
        for warning in &config.warnings {
            say(&format!("{}\n", show::clean_lines(&warning.to_string())));
        }
        for doubt in &doubts {
            say(&format!("{}\n", show::clean(doubt)));
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
            SourceSpec::Container(path, _) => format!("{} (a container's log)", path.display()),
            SourceSpec::Socket(spec) => format!("{spec} from {}", spec.writers()),
            SourceSpec::Stdin => "standard input".to_owned(),
            SourceSpec::Journal { matches, namespace: None } => format!("the journal: {matches}"),
            SourceSpec::Journal { matches, namespace: Some(name) } => {
                format!("the journal {name}: {matches}")
            }
            SourceSpec::Ledger => "bans by other jails".to_owned(),
        })
        .collect()
}

fn jail_text(config: &Config, jail: &Jail) -> String {
    let filter = |filter: &Arc<Filter>| {
        let observes = if filter.observe { ", observes only" } else { "" };
        format!("{} ({} samples{observes})", filter.name, filter.samples.len())
    };
    let filters: Vec<String> = jail.filters.iter().map(filter).collect();
    let ignored: Vec<String> = jail.ignoreip.iter().map(ToString::to_string).collect();
    let bans = format!(
        "after {} failures in {}, for {}; IPv6 by /{}",
        jail.maxretry,
        span_text(jail.findtime),
        jail.bantime,
        jail.ipv6_prefix
    );
    let mut lines = vec![
        ("reads", sources(config, jail).join(", ")),
        ("filters", filters.join(", ")),
        (if jail.observe { "observes" } else { "bans" }, bans),
        ("ignores", ignored.join(", ")),
    ];
    if let Some(escalation) = &jail.escalation {
        lines.push(("grows", escalation.to_string()));
    }
    if let Some(asked) = &jail.ignore_command {
        lines.push(("asks", format!("{}; bans after {}", asked.command, span_text(asked.timeout))));
    }
    if !jail.ignoreself {
        lines.push(("counts", "this host's own addresses, too; they are never banned".to_owned()));
    }
    lines.extend(jail.actions.iter().map(|action| ("runs", action_text(action))));
    let mut text = format!("[{}]\n", show::clean(&jail.name));
    for (label, what) in lines.iter().filter(|(_, what)| !what.is_empty()) {
        text.push_str(&format!("  {label:<8} {}\n", show::clean(what)));
    }
    text
}

fn action_text(action: &ActionSpec) -> String {
    let runs =
        [("start", &action.start), ("stop", &action.stop), ("ban", &action.ban), ("unban", &action.unban)];
    let runs: Vec<&str> = runs.iter().filter(|(_, run)| run.is_some()).map(|(on, _)| *on).collect();
    format!("{} on {}; killed after {}", action.name, runs.join(", "), span_text(action.timeout))
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
        "ignoreself": jail.ignoreself,
        "observe": jail.observe,
        "escalation": jail.escalation.as_ref().map(ToString::to_string),
        "ignorecommand": jail.ignore_command.as_ref().map(|asked| asked.command.to_string()),
        "actions": jail.actions.iter().map(|action| action.name.to_string()).collect::<Vec<_>>(),
    })
}
