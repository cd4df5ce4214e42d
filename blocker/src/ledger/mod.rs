//! All bans, in memory. The kernel is a cache of the ledger.
//!
//! It holds what was decided and finds what ends next; it decides nothing itself.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    net::{Lengths, Prefix},
    time::{Timestamp, Until},
};

mod offenders;

pub use offenders::{Offence, OffenceChange, Offenders};

/// One ban and why it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// What is dropped.
    pub prefix: Prefix,
    /// Who decided.
    pub origin: Origin,
    /// When it began.
    pub since: Timestamp,
    /// When it ends.
    pub until: Until,
    /// Failures that led to it; 0 for an operator's.
    pub failures: u32,
    /// Which ban of this prefix by its jail it is, the first one 1; 0 for an operator's, and where it is not known.
    #[serde(default)]
    pub count: u32,
    /// An operator's reason, or empty.
    pub reason: String,
}

/// Who decided on a ban.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A jail, automatically.
    Jail(#[serde(with = "arc_str")] Arc<str>),
    /// A person, with `blocker ban`.
    Operator,
}

mod arc_str {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(deserializer).map(Arc::from)
    }
}

/// What opening a ban did to the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It is new, or has taken the place of the former ban of this prefix.
    Yes {
        /// An automatic ban that gave way because the ledger was full.
        gave_way: Option<Ban>,
    },
    /// The ledger is full of manual bans.
    Full,
}

/// All live bans, by prefix and by end.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    bans: BTreeMap<Prefix, Ban>,
    by_end: BTreeSet<(Until, Prefix)>,
    automatic_by_end: BTreeSet<(Until, Prefix)>,
    /// Every failure asks what covers it.
    lengths: Lengths,
    bans_max: usize,
}

impl Ledger {
    /// An empty ledger of at most `bans_max` bans.
    pub fn new(bans_max: usize) -> Self {
        Self { bans_max, ..Self::default() }
    }

    /// Changes the bound; bans over it stay until they end.
    pub fn set_bans_max(&mut self, bans_max: usize) {
        self.bans_max = bans_max;
    }

    /// Opens a ban, replacing one of the same prefix. When full, the automatic ban soonest to end gives way.
    pub fn open(&mut self, ban: Ban) -> Opened {
        let mut gave_way = None;
        if self.close(ban.prefix).is_none() && self.bans.len() >= self.bans_max {
            let Some((_, prefix)) = self.automatic_by_end.first().copied() else { return Opened::Full };
            gave_way = self.close(prefix);
        }
        self.by_end.insert((ban.until, ban.prefix));
        if ban.origin != Origin::Operator {
            self.automatic_by_end.insert((ban.until, ban.prefix));
        }
        self.lengths.add(ban.prefix);
        self.bans.insert(ban.prefix, ban);
        Opened::Yes { gave_way }
    }

    /// Ends the ban of exactly this prefix.
    pub fn close(&mut self, prefix: Prefix) -> Option<Ban> {
        let ban = self.bans.remove(&prefix)?;
        self.by_end.remove(&(ban.until, prefix));
        self.automatic_by_end.remove(&(ban.until, prefix));
        self.lengths.remove(prefix);
        Some(ban)
    }

    /// Ends one ban that is over at `now`, the earliest first.
    pub fn close_over(&mut self, now: Timestamp) -> Option<Ban> {
        let (until, prefix) = self.by_end.first().copied()?;
        if until.is_over(now) { self.close(prefix) } else { None }
    }

    /// When the next ban ends.
    pub fn next_end(&self) -> Option<Timestamp> {
        match self.by_end.first()?.0 {
            Until::At(end) => Some(end),
            Until::Forever => None,
        }
    }

    /// The ban of exactly this prefix.
    pub fn get(&self, prefix: Prefix) -> Option<&Ban> {
        self.bans.get(&prefix)
    }

    /// The narrowest ban that covers all of `prefix`.
    pub fn covering(&self, prefix: Prefix) -> Option<&Ban> {
        self.lengths.covering(prefix).rev().find_map(|wider| self.bans.get(&wider))
    }

    /// All bans, by prefix.
    pub fn iter(&self) -> impl Iterator<Item = &Ban> {
        self.bans.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bans.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bans.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ban(last: u8, end: Option<i64>, origin: Origin) -> Ban {
        Ban {
            prefix: Prefix::host([203, 0, 113, last].into()),
            origin,
            since: Timestamp::EPOCH,
            until: end.map_or(Until::Forever, |end| Until::At(Timestamp::from_secs(end))),
            failures: 0,
            count: 0,
            reason: String::new(),
        }
    }

    #[test]
    fn the_automatic_ban_soonest_to_end_gives_way_and_a_manual_one_never() {
        let jail = || Origin::Jail("sshd".into());
        let mut ledger = Ledger::new(2);
        ledger.open(ban(1, Some(10), Origin::Operator));
        ledger.open(ban(2, Some(20), jail()));
        assert_eq!(
            ledger.open(ban(3, None, jail())),
            Opened::Yes { gave_way: Some(ban(2, Some(20), jail())) }
        );
        ledger.open(ban(4, Some(5), Origin::Operator));
        assert_eq!(ledger.open(ban(5, None, jail())), Opened::Full);
        assert_eq!(ledger.len(), 2);
    }

    #[test]
    fn the_narrowest_ban_that_covers_is_found_and_none_that_ended() {
        let mut ledger = Ledger::new(9);
        let wide: Prefix = "203.0.113.0/24".parse().unwrap();
        let host = Prefix::host([203, 0, 113, 1].into());
        ledger.open(Ban { prefix: wide, ..ban(0, None, Origin::Operator) });
        ledger.open(ban(1, None, Origin::Operator));
        let covering = |ledger: &Ledger, prefix| ledger.covering(prefix).map(|ban| ban.prefix);
        assert_eq!(covering(&ledger, host), Some(host));
        ledger.close(host);
        assert_eq!(covering(&ledger, host), Some(wide));
        assert_eq!(covering(&ledger, "203.0.112.0/23".parse().unwrap()), None);
        ledger.close(wide);
        assert_eq!(covering(&ledger, host), None);
    }

    #[test]
    fn bans_end_in_order_and_a_replaced_one_does_not_end_early() {
        let mut ledger = Ledger::new(9);
        ledger.open(ban(1, Some(10), Origin::Operator));
        ledger.open(ban(1, Some(30), Origin::Operator));
        ledger.open(ban(2, Some(20), Origin::Operator));
        let now = Timestamp::from_secs(25);
        assert_eq!(ledger.close_over(now).map(|ban| ban.prefix), Some(Prefix::host([203, 0, 113, 2].into())));
        assert_eq!(ledger.close_over(now), None);
        assert_eq!(ledger.next_end(), Some(Timestamp::from_secs(30)));
    }
}
