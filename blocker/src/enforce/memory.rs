//! The enforcer that only remembers: the oracle of the conformance suite.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::{Counters, Description, EnforceError, Enforcer, Entry, Health, Keep};
use crate::{
    engine::Change,
    net::Prefix,
    time::{Timestamp, Until},
};

/// Holds what a kernel would hold.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    bans: BTreeMap<Prefix, Until>,
    allowed: BTreeSet<Prefix>,
}

impl Memory {
    /// Whether a packet of this source would be dropped at `now`.
    pub fn drops(&self, source: Prefix, now: Timestamp) -> bool {
        let banned = self.bans.iter().any(|(prefix, until)| prefix.covers(source) && !until.is_over(now));
        banned && !self.allowed.iter().any(|prefix| prefix.covers(source))
    }
}

impl Enforcer for Memory {
    fn apply(&mut self, batch: &[Change], now: Timestamp) -> Result<(), EnforceError> {
        for change in batch {
            match change {
                Change::Ban(ban) if ban.until.is_over(now) => drop(self.bans.remove(&ban.prefix)),
                Change::Ban(ban) => drop(self.bans.insert(ban.prefix, ban.until)),
                Change::Unban { prefix } => drop(self.bans.remove(prefix)),
                Change::Allow { prefix } => drop(self.allowed.insert(*prefix)),
                Change::Disallow { prefix } => drop(self.allowed.remove(prefix)),
                Change::Flush => self.bans.clear(),
            }
        }
        Ok(())
    }

    fn entries(&mut self, now: Timestamp) -> Result<Vec<Entry>, EnforceError> {
        let live = self.bans.iter().filter(|(_, until)| !until.is_over(now));
        Ok(live.map(|(prefix, until)| Entry { prefix: *prefix, until: *until, packets: 0 }).collect())
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
