//! Who was banned before, how often and by whom: what escalation goes by.
//!
//! It outlives the bans themselves, for as long as the policy remembers and in a table of bounded size; the offender
//! whose last ban ended first is forgotten first.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::Ban;
use crate::{
    net::Prefix,
    time::{Timestamp, Until},
};

/// Offenders forgotten by age in one call, so that no call is long.
const FORGET_AT_ONCE: usize = 1_000;

/// The bans that one jail made of one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offence {
    /// Who.
    pub prefix: Prefix,
    /// By which jail.
    pub jail: Arc<str>,
    /// How often.
    pub bans: u32,
    /// When the last of these bans was to end.
    pub until: Until,
}

/// What the store must do to remember the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OffenceChange {
    /// It is this from now on.
    Set(Offence),
    /// These bans count no more.
    Forget {
        /// Whose.
        prefix: Prefix,
        /// Those of this jail.
        jail: Arc<str>,
    },
    /// No earlier ban counts.
    ForgetAll,
}

/// All offences, by prefix and jail.
#[derive(Clone, Debug, Default)]
pub struct Offenders {
    offences: BTreeMap<(Prefix, Arc<str>), (u32, Until)>,
    by_end: BTreeSet<(Until, Prefix, Arc<str>)>,
    offenders_max: usize,
    gave_way: u64,
}

impl Offenders {
    /// Remembers at most `offenders_max` offences.
    pub fn new(offenders_max: usize) -> Self {
        Self { offenders_max, ..Self::default() }
    }

    /// Changes the bound; what is over it is forgotten as further offences come.
    pub fn set_offenders_max(&mut self, offenders_max: usize) {
        self.offenders_max = offenders_max;
    }

    /// How often this jail, or any where none is named, banned exactly this prefix.
    pub fn bans(&self, prefix: Prefix, jail: Option<&Arc<str>>) -> u32 {
        match jail {
            Some(jail) => self.offences.get(&(prefix, Arc::clone(jail))).map_or(0, |(bans, _)| *bans),
            None => self.of(prefix).fold(0, |sum, offence| sum.saturating_add(offence.bans)),
        }
    }

    /// The offences of exactly this prefix.
    pub fn of(&self, prefix: Prefix) -> impl Iterator<Item = Offence> {
        // The empty name comes before every other.
        let from = (prefix, Arc::from(""));
        self.offences.range(from..).take_while(move |((of, _), _)| *of == prefix).map(offence)
    }

    /// Remembers a jail's ban; says what the store must do.
    pub fn add(&mut self, ban: &Ban, jail: &Arc<str>) -> Vec<OffenceChange> {
        let bans = self.bans(ban.prefix, Some(jail)).saturating_add(1);
        let offence = Offence { prefix: ban.prefix, jail: Arc::clone(jail), bans, until: ban.until };
        let mut changes = vec![OffenceChange::Set(offence.clone())];
        changes.extend(self.restore(offence));
        changes
    }

    /// Takes what was remembered elsewhere; says what gave way to the bound.
    pub fn restore(&mut self, offence: Offence) -> Option<OffenceChange> {
        let Offence { prefix, jail, bans, until } = offence;
        self.remove(prefix, &jail);
        self.by_end.insert((until, prefix, Arc::clone(&jail)));
        self.offences.insert((prefix, jail), (bans, until));
        if self.offences.len() <= self.offenders_max {
            return None;
        }
        self.gave_way += 1;
        self.forget_first()
    }

    /// Forgets a prefix, as if it had never been banned.
    pub fn forgive(&mut self, prefix: Prefix) -> Vec<OffenceChange> {
        let offences: Vec<Offence> = self.of(prefix).collect();
        offences
            .into_iter()
            .map(|Offence { prefix, jail, .. }| {
                self.remove(prefix, &jail);
                OffenceChange::Forget { prefix, jail }
            })
            .collect()
    }

    /// Forgets everybody.
    pub fn forgive_all(&mut self) -> Option<OffenceChange> {
        let any = !self.offences.is_empty();
        self.offences.clear();
        self.by_end.clear();
        any.then_some(OffenceChange::ForgetAll)
    }

    /// Forgets those whose last ban ended `remember` before `now` or earlier; some of them, when they are many.
    pub fn forget_old(&mut self, now: Timestamp, remember: Duration) -> Vec<OffenceChange> {
        let horizon = now.saturating_sub(remember);
        let mut changes = Vec::new();
        while changes.len() < FORGET_AT_ONCE
            && self.by_end.first().is_some_and(|(until, ..)| until.is_over(horizon))
        {
            changes.extend(self.forget_first());
        }
        changes
    }

    fn forget_first(&mut self) -> Option<OffenceChange> {
        let (_, prefix, jail) = self.by_end.pop_first()?;
        self.offences.remove(&(prefix, Arc::clone(&jail)));
        Some(OffenceChange::Forget { prefix, jail })
    }

    fn remove(&mut self, prefix: Prefix, jail: &Arc<str>) {
        if let Some((_, until)) = self.offences.remove(&(prefix, Arc::clone(jail))) {
            self.by_end.remove(&(until, prefix, Arc::clone(jail)));
        }
    }

    /// All of them, by prefix.
    pub fn iter(&self) -> impl Iterator<Item = Offence> {
        self.offences.iter().map(offence)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.offences.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.offences.is_empty()
    }

    /// How many gave way to the bound so far.
    pub fn gave_way(&self) -> u64 {
        self.gave_way
    }
}

fn offence(((prefix, jail), (bans, until)): (&(Prefix, Arc<str>), &(u32, Until))) -> Offence {
    Offence { prefix: *prefix, jail: Arc::clone(jail), bans: *bans, until: *until }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ledger::Origin, net::Scope};

    fn add(offenders: &mut Offenders, last: u8, jail: &str, end: i64) -> Vec<OffenceChange> {
        let jail: Arc<str> = jail.into();
        let ban = Ban {
            prefix: Prefix::host([203, 0, 113, last].into()),
            scope: Scope::ALL,
            origin: Origin::Jail(Arc::clone(&jail)),
            since: Timestamp::EPOCH,
            until: Until::At(Timestamp::from_secs(end)),
            failures: 5,
            count: 1,
            reason: String::new(),
        };
        offenders.add(&ban, &jail)
    }

    fn prefix(last: u8) -> Prefix {
        Prefix::host([203, 0, 113, last].into())
    }

    #[test]
    fn bans_are_counted_by_jail_and_over_all() {
        let mut offenders = Offenders::new(9);
        for (jail, end) in [("a", 10), ("a", 30), ("b", 20)] {
            add(&mut offenders, 1, jail, end);
        }
        add(&mut offenders, 2, "a", 10);
        let bans = |jail: Option<&str>| offenders.bans(prefix(1), jail.map(Arc::from).as_ref());
        assert_eq!([bans(Some("a")), bans(Some("b")), bans(Some("c")), bans(None)], [2, 1, 0, 3]);
        assert_eq!(offenders.len(), 3);
    }

    #[test]
    fn the_one_whose_ban_ended_first_gives_way_to_the_bound() {
        let mut offenders = Offenders::new(2);
        add(&mut offenders, 1, "a", 30);
        add(&mut offenders, 2, "a", 10);
        let changes = add(&mut offenders, 3, "a", 20);
        let forgotten = OffenceChange::Forget { prefix: prefix(2), jail: "a".into() };
        assert!(changes.contains(&forgotten), "{changes:?}");
        assert_eq!((offenders.len(), offenders.gave_way()), (2, 1));
    }

    #[test]
    fn age_counts_from_the_end_of_the_last_ban() {
        let mut offenders = Offenders::new(9);
        add(&mut offenders, 1, "a", 10);
        add(&mut offenders, 1, "a", 50);
        add(&mut offenders, 2, "a", 10);
        let forget = |offenders: &mut Offenders, now| {
            offenders.forget_old(Timestamp::from_secs(now), Duration::from_secs(100)).len()
        };
        assert_eq!([forget(&mut offenders, 109), forget(&mut offenders, 110)], [0, 1]);
        assert_eq!(offenders.bans(prefix(1), None), 2);
        assert_eq!(forget(&mut offenders, 150), 1);
        assert!(offenders.is_empty() && offenders.by_end.is_empty());
    }

    #[test]
    fn who_is_forgiven_starts_afresh() {
        let mut offenders = Offenders::new(9);
        add(&mut offenders, 1, "a", 10);
        add(&mut offenders, 1, "b", 10);
        add(&mut offenders, 2, "a", 10);
        assert_eq!(offenders.forgive(prefix(1)).len(), 2);
        assert_eq!((offenders.bans(prefix(1), None), offenders.bans(prefix(2), None)), (0, 1));
        assert_eq!(offenders.forgive_all(), Some(OffenceChange::ForgetAll));
        assert!(offenders.is_empty() && offenders.by_end.is_empty());
    }
}
