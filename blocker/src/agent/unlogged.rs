//! Jails whose logs are not there: where their daemon's entries are in the journal, that is read; else nothing fails, and
//! nobody is banned either. The operator is to know of both.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    engine::SourceId,
    filter::Dialect,
    policy::{Jail, JournalMatches, Policy, SourceSpec},
    source::{file, journal},
};

/// A jail that reads the journal in place of its logs.
#[derive(Clone, Debug)]
pub struct Instead {
    jail: Arc<str>,
    /// What it reads once one of its logs is there.
    logs: Vec<SourceId>,
    /// What the operator is to know.
    pub note: String,
}

/// Has the jails read the journal of whose logs none is there, if their filters name entries of it and it has some.
/// Jails of fail2ban's say themselves where they read. What it did, for each.
pub fn read_journal_instead(policy: &mut Policy) -> Vec<Instead> {
    let mut all = Vec::new();
    for index in 0..policy.jails.len() {
        let Some(jail) = policy.jails.get(index) else { break };
        let absent = absent(policy, jail);
        let ours = jail.filters.iter().map(|filter| filter.spec());
        let named: Vec<&String> =
            ours.filter(|spec| spec.dialect == Dialect::Native).flat_map(|spec| &spec.journalmatch).collect();
        if absent.is_empty() || named.is_empty() {
            continue;
        }
        let Ok(matches) = JournalMatches::parse(&named) else { continue };
        if !journal::has(&matches) {
            continue;
        }
        let note = format!(
            "[{}] none of its logs is there: {}. The journal is read until they are: {matches}",
            jail.name,
            listed(&absent)
        );
        let spec = SourceSpec::Journal { matches, namespace: None };
        let known = policy.sources.iter().position(|known| *known == spec);
        let source = known.unwrap_or(policy.sources.len());
        let Ok(source) = u16::try_from(source) else { continue };
        if known.is_none() {
            policy.sources.push(spec);
        }
        if let Some(jail) = policy.jails.get_mut(index) {
            let logs = std::mem::replace(&mut jail.sources, vec![SourceId(source)]);
            all.push(Instead { jail: Arc::clone(&jail.name), logs, note });
        }
    }
    all
}

/// Has the jails read their logs again of which one is there by now; returns those, which are no longer among `all`.
pub(super) fn read_logs_again(policy: &mut Policy, all: &mut Vec<Instead>) -> Vec<Instead> {
    let specs = &policy.sources;
    let is_there = |id: &SourceId| specs.get(usize::from(id.0)).and_then(path_of).is_some_and(file::is_there);
    let appeared: Vec<Instead> = all.extract_if(.., |instead| instead.logs.iter().any(is_there)).collect();
    for instead in &appeared {
        if let Some(jail) = policy.jails.iter_mut().find(|jail| jail.name == instead.jail) {
            jail.sources.clone_from(&instead.logs);
        }
    }
    appeared
}

/// Says so, and what to do, of a jail that reads files of which none is there.
pub fn unlogged(policy: &Policy, jail: &Jail) -> Option<String> {
    let absent = absent(policy, jail);
    (!absent.is_empty()).then(|| {
        format!(
            "[{}] none of its logs is there: {}. They are read as soon as they are. If the daemon writes to the journal \
             only, write `journal = [\"_SYSTEMD_UNIT=...\"]` instead, or have rsyslog write them",
            jail.name,
            listed(&absent)
        )
    })
}

/// The logs of a jail that reads nothing else, if none of them is there.
fn absent(policy: &Policy, jail: &Jail) -> Vec<PathBuf> {
    let specs = jail.sources.iter().filter_map(|id| policy.sources.get(usize::from(id.0)));
    let absent = specs.map(|spec| path_of(spec).filter(|path| !file::is_there(path)).map(Path::to_owned));
    absent.collect::<Option<_>>().unwrap_or_default()
}

fn path_of(spec: &SourceSpec) -> Option<&Path> {
    match spec {
        SourceSpec::File(path) | SourceSpec::Container(path, _) => Some(path),
        SourceSpec::Socket(_) | SourceSpec::Stdin | SourceSpec::Journal { .. } | SourceSpec::Ledger => None,
    }
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
