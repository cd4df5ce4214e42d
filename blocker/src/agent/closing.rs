//! Ends the connections of who is banned, once the kernel has the ban: on another thread, so that no ban and no line
//! waits for it.
//!
//! One job at a time; what comes meanwhile is the next one, so many bans need one look at the sockets. A look takes at
//! most a bounded share of the time, however many bans there are. Where more are waiting than are worth remembering, and
//! for bans that were put back into a kernel that had lost them, it goes the other way round: who is connected is asked
//! for, and the ledger says who of them is banned.
#![forbid(unsafe_code)]

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::Agent;
use crate::{
    allowlist::PrefixSet,
    enforce::sockets::{self, Banned, Closed, Trouble},
    engine::Change,
    net::{Prefix, Scope},
};

/// Bans whose connections wait to be closed, beyond which all connections are looked at.
const WAITING_MAX: usize = 4_096;
/// Looking at sockets takes at most the so-many-th part of the time.
const SHARE: u32 = 10;

/// What a thread found out, and how long it took.
#[derive(Debug)]
pub(super) struct Done {
    took: Duration,
    outcome: Result<Outcome, Trouble>,
}

#[derive(Debug)]
enum Outcome {
    Closed(Closed),
    /// Who is connected, and whether that is all of them.
    Connected(Vec<IpAddr>, bool),
}

/// What is to be closed, and what was.
#[derive(Debug)]
pub(super) struct Closing {
    /// Why connections are left alone; empty where they are not.
    pub(super) kept: String,
    /// Connections closed.
    pub(super) closed: u64,
    /// Connections that the kernel would not close.
    pub(super) left: u64,
    /// How often the time or the room was over before all were looked at.
    pub(super) cut_short: u64,
    waiting: Vec<(Scope, Prefix)>,
    look_at_all: bool,
    busy: bool,
    not_before: Option<Instant>,
    done: mpsc::UnboundedSender<Done>,
}

impl Closing {
    /// `wanted` by the configuration or not; `done` is told at most one outcome at a time.
    pub(super) fn new(wanted: bool, done: mpsc::UnboundedSender<Done>) -> Self {
        let kept = match wanted.then(sockets::probe) {
            None => "the configuration says so (`enforce.close_connections`)".to_owned(),
            Some(Err(Trouble::Lacking(error) | Trouble::Passing(error))) => error.to_string(),
            Some(Ok(())) => String::new(),
        };
        Self::idle(kept, done)
    }

    fn idle(kept: String, done: mpsc::UnboundedSender<Done>) -> Self {
        Self {
            kept,
            closed: 0,
            left: 0,
            cut_short: 0,
            waiting: Vec::new(),
            look_at_all: false,
            busy: false,
            not_before: None,
            done,
        }
    }

    /// These are in force from now on.
    pub(super) fn banned<'a>(&mut self, changes: impl IntoIterator<Item = &'a Change>) {
        if !self.kept.is_empty() {
            return;
        }
        for change in changes {
            let Change::Ban(ban) = change else { continue };
            if self.waiting.len() >= WAITING_MAX {
                self.look_at_all();
            }
            if self.look_at_all {
                return;
            }
            self.waiting.push((ban.scope.clone(), ban.prefix));
        }
    }

    /// Who is connected is compared with the ledger.
    pub(super) fn look_at_all(&mut self) {
        self.look_at_all = self.kept.is_empty();
        self.waiting = Vec::new();
    }

    /// When [`Agent::close_connections`] is to be called.
    pub(super) fn at(&self) -> Option<Instant> {
        let something = self.look_at_all || !self.waiting.is_empty();
        (something && !self.busy).then(|| self.not_before.unwrap_or_else(Instant::now))
    }
}

impl Agent {
    /// Begins with what is waiting, when its time has come.
    pub(super) fn close_connections(&mut self) {
        if self.closing.at().is_none_or(|at| at > Instant::now()) {
            return;
        }
        let all = std::mem::take(&mut self.closing.look_at_all);
        let mut banned = Banned::default();
        let mut spared = PrefixSet::default();
        for (scope, prefix) in std::mem::take(&mut self.closing.waiting) {
            for prefix in self.engine.spared(prefix) {
                spared.insert(prefix);
            }
            banned.entry(scope).or_default().insert(prefix);
        }
        let done = self.closing.done.clone();
        self.closing.busy = true;
        tokio::task::spawn_blocking(move || {
            let start = Instant::now();
            let outcome = if all {
                sockets::remotes().map(|(addresses, whole)| Outcome::Connected(addresses, whole))
            } else {
                sockets::close(&banned, &spared).map(Outcome::Closed)
            };
            // The loop may have ended meanwhile.
            let _gone = done.send(Done { took: start.elapsed(), outcome });
        });
    }

    /// What came of it.
    pub(super) fn connections_closed(&mut self, done: Done) {
        let closing = &mut self.closing;
        closing.busy = false;
        closing.not_before = Some(Instant::now() + done.took * (SHARE - 1));
        match done.outcome {
            Ok(Outcome::Closed(found)) => {
                closing.closed += found.closed;
                closing.left += found.left;
                closing.cut_short += u64::from(found.cut_short);
                if found.closed > 0 {
                    debug!("{} connections of banned sources closed", found.closed);
                }
            }
            Ok(Outcome::Connected(addresses, whole)) => {
                closing.cut_short += u64::from(!whole);
                for address in addresses {
                    let scopes = self.engine.banned(address).cloned();
                    closing.waiting.extend(scopes.map(|scope| (scope, Prefix::host(address))));
                }
            }
            Err(Trouble::Lacking(error)) => {
                warn!("connections of banned sources stay open: {error}");
                closing.kept = error.to_string();
                closing.look_at_all();
            }
            Err(Trouble::Passing(error)) => {
                warn!("connections of banned sources were not looked at: {error}");
                closing.cut_short += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ledger::{Ban, Origin},
        time::{Timestamp, Until},
    };

    fn closing(kept: &str) -> Closing {
        Closing::idle(kept.to_owned(), mpsc::unbounded_channel().0)
    }

    fn bans(count: usize) -> Vec<Change> {
        let ban = |number: usize| {
            Change::Ban(Ban {
                prefix: Prefix::host(IpAddr::from(u32::try_from(number).unwrap().to_be_bytes())),
                scope: Scope::ALL,
                origin: Origin::Operator,
                since: Timestamp::EPOCH,
                until: Until::Forever,
                failures: 0,
                count: 0,
                reason: String::new(),
            })
        };
        (0..count).map(ban).collect()
    }

    #[test]
    fn too_many_bans_are_not_remembered_but_looked_for() {
        // Changes, waiting then, and whether all connections are looked at.
        for (count, waiting, all) in
            [(0, 0, false), (3, 3, false), (WAITING_MAX, WAITING_MAX, false), (WAITING_MAX + 1, 0, true)]
        {
            let mut closing = closing("");
            closing.banned(&bans(count));
            assert_eq!((closing.waiting.len(), closing.look_at_all), (waiting, all), "{count}");
            assert_eq!(closing.at().is_some(), count > 0);
            closing.banned(&bans(WAITING_MAX));
            assert!(closing.waiting.len() <= WAITING_MAX);
            closing.busy = true;
            assert_eq!(closing.at(), None, "one at a time");
        }
    }

    #[test]
    fn nothing_waits_where_nothing_can_be_closed() {
        let mut closing = closing("this kernel cannot");
        closing.banned(&bans(WAITING_MAX + 1));
        closing.look_at_all();
        assert_eq!(closing.at(), None);
    }
}
