//! The enforcer that only remembers: the oracle of the conformance suite.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::{Counters, Description, EnforceError, Enforcer, Entry, Health, Keep};
use crate::{
    engine::Change,
    net::{Prefix, Protocol, Scope},
    time::{Timestamp, Until},
};

/// Holds what a kernel would hold.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    bans: BTreeMap<(Scope, Prefix), Until>,
    allowed: BTreeSet<Prefix>,
}

impl Memory {
    /// Whether a packet of this source would be dropped at `now`, wherever it goes.
    pub fn drops(&self, source: Prefix, now: Timestamp) -> bool {
        self.drops_to(source, None, now)
    }

    /// Whether a packet of this source to this port would be dropped at `now`; `None` where the packet shows no port.
    pub fn drops_to(&self, source: Prefix, to: Option<(Protocol, u16)>, now: Timestamp) -> bool {
        let mut bans = self.bans.iter();
        let banned = bans
            .any(|((scope, prefix), until)| prefix.covers(source) && scope.drops(to) && !until.is_over(now));
        banned && !self.allowed.iter().any(|prefix| prefix.covers(source))
    }
}

impl Enforcer for Memory {
    fn apply(&mut self, batch: &[Change], now: Timestamp) -> Result<(), EnforceError> {
        for change in batch {
            match change {
                Change::Ban(ban) if ban.until.is_over(now) => {
                    self.bans.remove(&(ban.scope.clone(), ban.prefix));
                }
                Change::Ban(ban) => drop(self.bans.insert((ban.scope.clone(), ban.prefix), ban.until)),
                Change::Unban { prefix, scope } => drop(self.bans.remove(&(scope.clone(), *prefix))),
                Change::Allow { prefix } => drop(self.allowed.insert(*prefix)),
                Change::Disallow { prefix } => drop(self.allowed.remove(prefix)),
                Change::Flush => self.bans.clear(),
            }
        }
        Ok(())
    }

    fn entries(&mut self, now: Timestamp) -> Result<Vec<Entry>, EnforceError> {
        let live = self.bans.iter().filter(|(_, until)| !until.is_over(now));
        let entry = |((scope, prefix), until): (&(Scope, Prefix), &Until)| Entry {
            prefix: *prefix,
            scope: scope.clone(),
            until: *until,
            packets: 0,
        };
        Ok(live.map(entry).collect())
    }

    fn allowed(&mut self) -> Result<Vec<Prefix>, EnforceError> {
        Ok(self.allowed.iter().copied().collect())
    }

    fn counters(&mut self) -> Result<Counters, EnforceError> {
        Ok(Counters::default())
    }

    fn repair(&mut self) -> Result<Health, EnforceError> {
        Ok(Health::Sound)
    }

    fn describe(&self) -> Description {
        let reason = "nothing is dropped".to_owned();
        Description { backend: "memory", attachments: Vec::new(), reason }
    }

    fn close(self: Box<Self>, _keep: Keep) -> Result<(), EnforceError> {
        Ok(())
    }
}
