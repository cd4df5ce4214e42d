//! The bans in maps of either layout, and how they get from one into the other.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, PerCpuValues},
};
use blocker_ebpf::{TOTALS, Totals};

use super::{
    EnforceError, Layout, Options, chain,
    hash::Hash,
    programs::Programs,
    refused,
    table::{AHEAD, Buckets, Shape},
};
use crate::{
    ledger::Ban,
    net::Prefix,
    time::{Timestamp, Until},
};

#[derive(Debug)]
pub(super) enum Bans {
    Buckets(Box<Buckets>),
    Hash(Hash),
}

/// A ban as a kernel holds it: on no clock, but so long to go, or without end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) prefix: Prefix,
    pub(super) left: Option<Duration>,
    pub(super) packets: u64,
}

impl Bans {
    pub(super) fn load(layout: Layout, pins: &Path, options: &Options) -> Result<Self, EnforceError> {
        match layout {
            Layout::Buckets => {
                let shape = Shape { bans_max: options.bans_max.max(1), exact: options.exact };
                Ok(Self::Buckets(Box::new(Buckets::load(pins, shape)?)))
            }
            Layout::Hash => Hash::load(pins, options.bans_max).map(Self::Hash),
        }
    }

    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        match self {
            Self::Buckets(table) => table.ebpf(),
            Self::Hash(hash) => hash.ebpf(),
        }
    }

    pub(super) fn programs(&mut self) -> Programs<'_> {
        match self {
            Self::Buckets(table) => table.programs(),
            Self::Hash(hash) => hash.programs(),
        }
    }

    pub(super) fn pinned(&self) -> Vec<(&'static str, PathBuf)> {
        match self {
            Self::Buckets(table) => table.pinned(),
            Self::Hash(hash) => hash.pinned(),
        }
    }

    pub(super) fn begin(&mut self) -> Result<(), EnforceError> {
        match self {
            Self::Buckets(table) => table.begin(),
            Self::Hash(_) => Ok(()),
        }
    }

    /// A ban of this prefix comes soon.
    pub(super) fn expect(&mut self, prefix: Prefix) {
        if let Self::Buckets(table) = self {
            table.expect(prefix);
        }
    }

    /// This and the next two may answer with a table that has to take the place of the one in force.
    pub(super) fn ban(&mut self, held: &Held) -> Result<Option<Box<Buckets>>, EnforceError> {
        match self {
            Self::Buckets(table) => table.ban(held),
            Self::Hash(hash) => hash.ban(held).map(|()| None),
        }
    }

    pub(super) fn allow(&mut self, prefixes: &[Prefix]) -> Result<Option<Box<Buckets>>, EnforceError> {
        match self {
            Self::Buckets(table) => table.allow(prefixes),
            Self::Hash(hash) => prefixes.iter().try_for_each(|prefix| hash.allow(*prefix)).map(|()| None),
        }
    }

    pub(super) fn disallow(&mut self, prefix: Prefix) -> Result<Option<Box<Buckets>>, EnforceError> {
        match self {
            Self::Buckets(table) => table.disallow(prefix),
            Self::Hash(hash) => hash.disallow(prefix).map(|()| None),
        }
    }

    pub(super) fn unban(&mut self, prefix: Prefix) -> Result<(), EnforceError> {
        match self {
            Self::Buckets(table) => table.unban(prefix),
            Self::Hash(hash) => hash.unban(prefix),
        }
    }

    pub(super) fn flush(&mut self) -> Result<(), EnforceError> {
        match self {
            Self::Buckets(table) => table.flush(),
            Self::Hash(hash) => hash.flush(),
        }
    }

    pub(super) fn held(&mut self) -> Result<Vec<Held>, EnforceError> {
        match self {
            Self::Buckets(table) => table.held(),
            Self::Hash(hash) => hash.held(),
        }
    }

    pub(super) fn allowed(&mut self) -> Result<Vec<Prefix>, EnforceError> {
        match self {
            Self::Buckets(table) => Ok(table.allowed()),
            Self::Hash(hash) => hash.allowed(),
        }
    }

    pub(super) fn totals(&mut self) -> Result<PerCpuArray<&mut MapData, Totals>, EnforceError> {
        let map = self.ebpf().map_mut(TOTALS).ok_or_else(|| {
            refused("find the totals", "the built-in object has none", "build blocker again")
        })?;
        PerCpuArray::try_from(map).map_err(|error| refused("read the totals", chain(&error), ""))
    }

    /// Dropped packets and bytes, over all CPUs.
    pub(super) fn sums(&mut self) -> Result<Totals, EnforceError> {
        let of_cpus =
            self.totals()?.get(&0, 0).map_err(|error| refused("read the totals", chain(&error), ""))?;
        Ok(of_cpus.iter().fold([0, 0], |[packets, bytes], of_cpu| [packets + of_cpu[0], bytes + of_cpu[1]]))
    }

    /// Takes over what the maps of another layout hold. Nothing reads these maps yet.
    pub(super) fn take_over(mut self, other: &mut Self) -> Result<Self, EnforceError> {
        self.begin()?;
        let allowed = other.allowed()?;
        if let Some(anew) = self.allow(&allowed)? {
            self = Self::Buckets(anew);
        }
        let held = other.held()?;
        if let Self::Hash(hash) = &mut self {
            hash.ban_all(&held)?;
        } else {
            for (index, ban) in held.iter().enumerate() {
                if let Some(ahead) = held.get(index + AHEAD) {
                    self.expect(ahead.prefix);
                }
                if let Some(anew) = self.ban(ban)? {
                    self = Self::Buckets(anew);
                }
            }
        }
        let (own, more) = (self.sums()?, other.sums()?);
        let failed = |cause: String| refused("carry the totals over", cause, "");
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed(error.to_string()))?;
        let mut values: Vec<Totals> = vec![[0, 0]; cpus];
        if let Some(first) = values.first_mut() {
            *first = [own[0] + more[0], own[1] + more[1]];
        }
        let values = PerCpuValues::try_from(values).map_err(|error| failed(error.to_string()))?;
        self.totals()?.set(0, values, 0).map_err(|error| failed(chain(&error)))?;
        Ok(self)
    }
}

pub(super) fn held(ban: &Ban, now: Timestamp) -> Held {
    let left = match ban.until {
        Until::Forever => None,
        Until::At(end) => Some(end.saturating_since(now)),
    };
    Held { prefix: ban.prefix, left, packets: 0 }
}
