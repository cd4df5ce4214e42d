//! XDP for bans on all ports, and nftables beside it for those on some.
//!
//! The XDP program asks for a source and nothing else, without a call on an honest packet's way; to find a port behind
//! options and extension headers would cost every packet. Nearly no ban is on some ports, and the stack, where nftables
//! looks, has found the port anyway. So the table `inet blocker` is made with the first such ban, and goes with the last.
#![forbid(unsafe_code)]

use std::{collections::BTreeSet, fmt, os::fd::BorrowedFd};

use super::{
    Counters, Description, EnforceError, Enforcer, Entry, Health, Keep,
    nft::{self, Nft},
};
use crate::{
    engine::Change,
    net::{Prefix, Scope},
    time::Timestamp,
};

/// Two enforcers as one.
pub struct Beside {
    all_ports: Box<dyn Enforcer>,
    /// Open while there are bans on ports, or may be.
    on_ports: Option<Box<Nft>>,
    /// Why a table that is there was not taken up.
    refused: Option<EnforceError>,
    /// The bans on ports that the kernel may hold.
    held: BTreeSet<(Scope, Prefix)>,
    options: nft::Options,
    /// What tables counted that are gone.
    gone: Counters,
}

impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beside").field("on_ports", &self.on_ports).finish_non_exhaustive()
    }
}

impl Beside {
    /// Takes up an nftables table that is there: it may hold bans on ports of an earlier life. Where it cannot be taken
    /// up, [`Self::be_alone`] says why.
    pub fn new(all_ports: Box<dyn Enforcer>, options: nft::Options) -> Self {
        // Where nftables cannot be had there is no table.
        let is_there = Nft::exists().unwrap_or(false);
        let (on_ports, refused) = match is_there.then(|| Nft::open_with(options)).transpose() {
            Ok(nft) => (nft.map(Box::new), None),
            Err(error) => (None, Some(error)),
        };
        Self { all_ports, on_ports, refused, held: BTreeSet::new(), options, gone: Counters::default() }
    }

    /// The table, made if there is none, with the allowlist in it.
    fn table(&mut self, now: Timestamp) -> Result<&mut Nft, EnforceError> {
        let nft = match self.on_ports.take() {
            Some(nft) => nft,
            None => {
                let mut nft = Box::new(Nft::open_with(self.options)?);
                let allowed = self.all_ports.allowed()?;
                let allow: Vec<Change> = allowed.into_iter().map(|prefix| Change::Allow { prefix }).collect();
                nft.apply(&allow, now)?;
                nft
            }
        };
        Ok(self.on_ports.insert(nft))
    }

    fn apply_on_ports(&mut self, batch: &[Change], now: Timestamp) -> Result<(), EnforceError> {
        let is_ban = |change: &Change| matches!(change, Change::Ban(_));
        if self.on_ports.is_none() && !batch.iter().any(is_ban) {
            return Ok(());
        }
        let outcome = self.table(now)?.apply(batch, now);
        for change in batch {
            match change {
                Change::Ban(ban) if ban.until.is_over(now) => {
                    self.held.remove(&(ban.scope.clone(), ban.prefix));
                }
                Change::Ban(ban) => drop(self.held.insert((ban.scope.clone(), ban.prefix))),
                Change::Unban { prefix, scope } => drop(self.held.remove(&(scope.clone(), *prefix))),
                Change::Flush => self.held.clear(),
                Change::Allow { .. } | Change::Disallow { .. } => {}
            }
        }
        let lifts = batch.iter().any(|change| matches!(change, Change::Unban { .. } | Change::Flush));
        if outcome.is_ok() && lifts && self.held.is_empty() {
            self.give_up_empty(now)?;
        }
        outcome
    }

    /// Without a ban the table would only cost packets.
    fn give_up_empty(&mut self, now: Timestamp) -> Result<(), EnforceError> {
        let Some(mut nft) = self.on_ports.take() else { return Ok(()) };
        let left = nft.entries(now)?;
        if left.is_empty() {
            let Counters { packets, bytes } = nft.counters()?;
            self.gone.packets += packets;
            self.gone.bytes += bytes;
            return nft.close(Keep::Nothing);
        }
        self.held.extend(left.into_iter().map(|entry| (entry.scope, entry.prefix)));
        self.on_ports = Some(nft);
        Ok(())
    }
}

/// Whether a change concerns bans on all ports, and whether those on some.
fn concerns(change: &Change) -> (bool, bool) {
    match change {
        Change::Ban(ban) => (ban.scope.is_all(), !ban.scope.is_all()),
        Change::Unban { scope, .. } => (scope.is_all(), !scope.is_all()),
        Change::Allow { .. } | Change::Disallow { .. } | Change::Flush => (true, true),
    }
}

impl Enforcer for Beside {
    fn apply(&mut self, batch: &[Change], now: Timestamp) -> Result<(), EnforceError> {
        if self.on_ports.is_none() && batch.iter().all(|change| concerns(change).0) {
            return self.all_ports.apply(batch, now);
        }
        let on_ports: Vec<Change> = batch.iter().filter(|change| concerns(change).1).cloned().collect();
        let all_ports: Vec<Change> = batch.iter().filter(|change| concerns(change).0).cloned().collect();
        let outcome = self.all_ports.apply(&all_ports, now);
        outcome.and(self.apply_on_ports(&on_ports, now))
    }

    fn entries(&mut self, now: Timestamp) -> Result<Vec<Entry>, EnforceError> {
        let mut entries = self.all_ports.entries(now)?;
        if let Some(nft) = &mut self.on_ports {
            // Those on all ports are of a life with nftables alone, and go in `be_alone`.
            entries.extend(nft.entries(now)?.into_iter().filter(|entry| !entry.scope.is_all()));
        }
        Ok(entries)
    }

    fn allowed(&mut self) -> Result<Vec<Prefix>, EnforceError> {
        let allowed = self.all_ports.allowed()?;
        if let Some(nft) = &mut self.on_ports {
            // Nobody who is never dropped may be lacking in one of both; no end is compared with this time.
            let beside: BTreeSet<Prefix> = nft.allowed()?.into_iter().collect();
            let lacking = allowed.iter().filter(|prefix| !beside.contains(prefix));
            let lacking: Vec<Change> = lacking.map(|prefix| Change::Allow { prefix: *prefix }).collect();
            if !lacking.is_empty() {
                nft.apply(&lacking, Timestamp::EPOCH)?;
            }
        }
        Ok(allowed)
    }

    fn counters(&mut self) -> Result<Counters, EnforceError> {
        let mut sum = self.all_ports.counters()?;
        let beside = self.on_ports.as_mut().map(|nft| nft.counters()).transpose()?.unwrap_or_default();
        for more in [beside, self.gone] {
            sum.packets += more.packets;
            sum.bytes += more.bytes;
        }
        Ok(sum)
    }

    fn repair(&mut self) -> Result<Health, EnforceError> {
        let first = self.all_ports.repair();
        let second = self.on_ports.as_mut().map_or(Ok(Health::Sound), |nft| nft.repair());
        Ok(match (first?, second?) {
            (Health::Sound, Health::Sound) => Health::Sound,
            (Health::Repaired, _) | (_, Health::Repaired) => Health::Repaired,
            _ => Health::Doubtful,
        })
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = self.all_ports.notes();
        notes.extend(self.on_ports.iter().flat_map(|nft| nft.notes()));
        notes
    }

    fn troubles(&self) -> Vec<String> {
        let mut troubles = self.all_ports.troubles();
        troubles.extend(self.on_ports.iter().flat_map(|nft| nft.troubles()));
        troubles
    }

    fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.all_ports.changes()
    }

    fn describe(&self) -> Description {
        let mut description = self.all_ports.describe();
        if let Some(nft) = &self.on_ports {
            let beside = nft.describe().attachments.into_iter();
            description.attachments.extend(beside.map(|at| format!("bans on some ports: {at}")));
        }
        description
    }

    fn be_alone(&mut self, now: Timestamp) -> Result<(), EnforceError> {
        self.all_ports.be_alone(now)?;
        if let Some(refused) = self.refused.take() {
            return Err(refused);
        }
        let Some(nft) = &mut self.on_ports else { return Nft::remove() };
        let (mut too_much, mut held) = (Vec::new(), BTreeSet::new());
        for Entry { prefix, scope, .. } in nft.entries(now)? {
            if scope.is_all() {
                too_much.push(Change::Unban { prefix, scope });
            } else {
                held.insert((scope, prefix));
            }
        }
        let allowed: BTreeSet<Prefix> = self.all_ports.allowed()?.into_iter().collect();
        let stale = nft.allowed()?.into_iter().filter(|prefix| !allowed.contains(prefix));
        too_much.extend(stale.map(|prefix| Change::Disallow { prefix }));
        self.held = held;
        if self.held.is_empty() {
            self.on_ports.take().map_or(Ok(()), |nft| nft.close(Keep::Nothing))
        } else {
            nft.apply(&too_much, now)
        }
    }

    fn close(mut self: Box<Self>, keep: Keep) -> Result<(), EnforceError> {
        let beside = self.on_ports.take().map_or(Ok(()), |nft| nft.close(keep));
        self.all_ports.close(keep).and(beside)
    }
}
