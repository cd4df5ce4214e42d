//! `status`: what the engine, the kernel, the sources and the process say of themselves, in one answer.

use std::{collections::BTreeMap, fs};

use serde_json::Value;

use super::{Agent, backend::XDP_NOT_BUILT_IN, reconcile};
use crate::{
    control::protocol::{Backend, CallError, JailStatus, SourceStatus, Status},
    enforce::xdp,
    engine::Ending,
    ledger::Origin,
    net::Scope,
    policy::{Jail, SourceSpec},
};

/// Who decided, as people read it.
pub(super) fn origin(origin: &Origin) -> &str {
    match origin {
        Origin::Jail(name) => name,
        Origin::Operator => "operator",
    }
}

pub(super) fn ending(why: Ending) -> &'static str {
    match why {
        Ending::Expired => "its time is over",
        Ending::Operator => "by an operator",
        Ending::Allowlisted => "allowlisted now",
    }
}

impl Agent {
    pub(super) fn status(&mut self) -> Result<Value, CallError> {
        let snapshot = self.engine.snapshot();
        let description = self.enforcer.describe();
        let under_way = self.upkeep.is_running().then(|| reconcile::UNDER_WAY.to_owned());
        let wrong = [&self.degraded.enforcer, &self.degraded.store, &under_way];
        let mut degraded: Vec<String> = wrong.into_iter().flatten().cloned().collect();
        degraded.extend(self.enforcer.troubles());
        let counters = self.enforcer.counters().unwrap_or_else(|error| {
            degraded.push(error.to_string());
            Default::default()
        });
        let bans_of: BTreeMap<&str, usize> =
            snapshot.bans.iter().map(|(by, bans)| (origin(by), *bans)).collect();
        let jails = snapshot.jails.iter().map(|(name, counters)| JailStatus {
            name: name.to_string(),
            failures: counters.failures,
            allowlisted: counters.allowlisted,
            no_address: counters.no_address,
            already_banned: counters.already_banned,
            bans_made: counters.bans,
            bans: bans_of.get(&**name).copied().unwrap_or(0),
            scope: self.jail(name).map_or(Scope::ALL, |jail| jail.scope.clone()),
            observe: self.jail(name).is_some_and(|jail| jail.observe),
            would_ban: counters.would_ban,
            ignored: counters.ignored,
            unanswered: counters.unanswered,
            spared: counters.spared,
            imagined_lost: counters.imagined_lost,
            not_json: counters.losses.not_json,
            no_field: counters.losses.no_field,
            gave_up: counters.losses.gave_up,
            connections_lost: counters.losses.connections,
            joined_lines_lost: counters.losses.lines,
            slow_searches: counters.losses.slow,
            actions: self.runner.status(name),
        });
        let reason = if description.reason.is_empty() {
            self.why.clone()
        } else {
            format!("{}; {}", self.why, description.reason)
        };
        let mut warnings = self.warnings.clone();
        warnings.extend(self.sockets.troubles());
        if !xdp::is_built_in() {
            warnings.push(XDP_NOT_BUILT_IN.to_owned());
        }
        if snapshot.under_pressure {
            warnings.push(format!(
                "failures of {} addresses are tracked, more than three quarters of the most that may be: the first failure of a further address is noted and not counted ({} so far); raise `limits.max_tracked` if there is memory for it",
                snapshot.tracked, snapshot.turned_away
            ));
        }
        let status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_secs: self.started.elapsed().as_secs(),
            health: if degraded.is_empty() { "ok" } else { "degraded" }.to_owned(),
            degraded,
            backend: Backend {
                name: description.backend.to_owned(),
                attachments: description.attachments,
                reason,
                notes: self.enforcer.notes(),
            },
            xdp_built_in: xdp::is_built_in(),
            jails: jails.collect(),
            sources: self.sources(),
            bans: self.engine.bans(),
            bans_max: self.config.policy.limits.bans_max,
            tracked: snapshot.tracked,
            tracked_max: self.config.policy.limits.tracked_max,
            tracked_evicted: snapshot.evicted,
            tracked_turned_away: snapshot.turned_away,
            bans_refused: snapshot.gave_way + snapshot.table_full,
            scopes_refused: snapshot.scopes_full,
            offenders: snapshot.offenders,
            offenders_max: self.config.policy.limits.offenders_max,
            offenders_gave_way: snapshot.offenders_gave_way,
            asked: snapshot.asked,
            matches_bytes: snapshot.matches_bytes,
            matches_gave_way: snapshot.matches_gave_way,
            packets: counters.packets,
            bytes: counters.bytes,
            connections_closed: self.closing.closed,
            connections_left: self.closing.left,
            connections_cut_short: self.closing.cut_short,
            connections_kept: self.closing.kept.clone(),
            allowed: self.engine.allowed(),
            allowed_by_operators: self.engine.operator_allow(),
            rss_bytes: rss_bytes(),
            log_lines_dropped: self.options.log_unwritten.dropped_lines() as u64,
            warnings,
        };
        serde_json::to_value(status).map_err(|error| CallError::failed(&error.to_string()))
    }

    fn jail(&self, name: &str) -> Option<&Jail> {
        self.config.policy.jails.iter().find(|jail| *jail.name == *name)
    }

    fn sources(&self) -> Vec<SourceStatus> {
        let files = self.files.status().into_iter().map(|file| SourceStatus {
            path: file.path.display().to_string(),
            state: file.state,
            bytes: file.bytes,
            counters: nonzero(file.counters),
        });
        let sockets = self.sockets.status().into_iter().map(|socket| SourceStatus {
            path: socket.name,
            state: socket.state,
            bytes: socket.bytes,
            counters: nonzero(socket.counters),
        });
        let journals = self.journal.status().into_iter().map(|journal| SourceStatus {
            path: journal.name,
            state: journal.state,
            bytes: journal.bytes,
            counters: nonzero(journal.counters),
        });
        files.chain(journals).chain(sockets).chain(self.stdin()).collect()
    }

    /// Standard input, where a jail reads it or it is read.
    fn stdin(&self) -> Option<SourceStatus> {
        let is_wanted = self.config.policy.sources.contains(&SourceSpec::Stdin);
        let path = "standard input".to_owned();
        match &self.stdin {
            Some(stdin) => Some(SourceStatus {
                path,
                state: if is_wanted { stdin.state() } else { "no jail reads it any more".to_owned() },
                bytes: stdin.bytes(),
                counters: nonzero(stdin.counters()),
            }),
            None if is_wanted => Some(SourceStatus {
                path,
                state: "not read: start the agent with --stdin".to_owned(),
                bytes: 0,
                counters: Vec::new(),
            }),
            None => None,
        }
    }
}

fn nonzero(counters: Vec<(&'static str, u64)>) -> Vec<(String, u64)> {
    let counters = counters.into_iter().filter(|(_, count)| *count > 0);
    counters.map(|(name, count)| (name.to_owned(), count)).collect()
}

/// Resident memory of this process (proc(5), `statm`).
fn rss_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
