//! All bans, in memory. The kernel is a cache of the ledger.
//!
//! It holds what was decided and finds what ends next; it decides nothing itself.
#![forbid(unsafe_code)]

use std::{
    borrow::Borrow,
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    net::{Lengths, Prefix, SCOPES_MAX, Scope},
    time::{Timestamp, Until},
};

mod offenders;

pub use offenders::{Offence, OffenceChange, Offenders};

/// One ban and why it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// Who is dropped.
    pub prefix: Prefix,
    /// What of theirs is: everything, or what goes to some ports.
    #[serde(default, skip_serializing_if = "Scope::is_all")]
    pub scope: Scope,
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
    /// It is new, or has taken the place of the former ban of this prefix and scope.
    Yes {
        /// An automatic ban that gave way because the ledger was full.
        gave_way: Option<Ban>,
    },
    /// The ledger is full of manual bans.
    Full,
    /// Bans have [`SCOPES_MAX`] other scopes already.
    ScopesFull,
}

/// All live bans, by prefix and by end, those of each scope for themselves.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    all_ports: Table,
    /// Those on some ports; none is empty.
    on_ports: BTreeMap<Scope, Table>,
    by_origin: BTreeMap<Origin, usize>,
    bans_max: usize,
}

/// The bans of one scope.
///
/// Made for a million of them: each is held once, and its end once more.
#[derive(Clone, Debug, Default)]
struct Table {
    bans: BTreeSet<ByPrefix>,
    /// Those of operators, and all others, of which the first gives way.
    manual_by_end: BTreeSet<ByEnd>,
    automatic_by_end: BTreeSet<ByEnd>,
    /// Every failure asks what covers it.
    lengths: Lengths,
}

/// A ban that is found by its prefix.
#[derive(Clone, Debug)]
struct ByPrefix(Ban);

impl Borrow<Prefix> for ByPrefix {
    fn borrow(&self) -> &Prefix {
        &self.0.prefix
    }
}

impl PartialEq for ByPrefix {
    fn eq(&self, other: &Self) -> bool {
        self.0.prefix == other.0.prefix
    }
}

impl Eq for ByPrefix {}

impl PartialOrd for ByPrefix {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByPrefix {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.prefix.cmp(&other.0.prefix)
    }
}

/// When a ban ends, in microseconds since the epoch; the last of them stands for never.
type ByEnd = (i64, Prefix);

const NEVER: i64 = i64::MAX;

fn by_end(ban: &Ban) -> ByEnd {
    match ban.until {
        Until::At(end) => (end.as_micros(), ban.prefix),
        Until::Forever => (NEVER, ban.prefix),
    }
}

impl Table {
    /// In one go: a tree that is built from a sorted list is faster to build, and smaller, than one that grew.
    fn with(bans: Vec<Ban>) -> Self {
        let mut this = Self { bans: bans.into_iter().map(ByPrefix).collect(), ..Self::default() };
        let ends = |manual: bool| {
            let bans = this.bans.iter().map(|ByPrefix(ban)| ban);
            bans.filter(|ban| (ban.origin == Origin::Operator) == manual).map(by_end).collect()
        };
        (this.manual_by_end, this.automatic_by_end) = (ends(true), ends(false));
        for ByPrefix(ban) in &this.bans {
            this.lengths.add(ban.prefix);
        }
        this
    }

    fn open(&mut self, ban: Ban) {
        self.ends_like(&ban).insert(by_end(&ban));
        self.lengths.add(ban.prefix);
        self.bans.insert(ByPrefix(ban));
    }

    fn close(&mut self, prefix: Prefix) -> Option<Ban> {
        let ByPrefix(ban) = self.bans.take(&prefix)?;
        self.ends_like(&ban).remove(&by_end(&ban));
        self.lengths.remove(prefix);
        Some(ban)
    }

    fn ends_like(&mut self, ban: &Ban) -> &mut BTreeSet<ByEnd> {
        if ban.origin == Origin::Operator { &mut self.manual_by_end } else { &mut self.automatic_by_end }
    }

    fn first_end(&self) -> Option<ByEnd> {
        let firsts = [self.manual_by_end.first(), self.automatic_by_end.first()];
        firsts.into_iter().flatten().min().copied()
    }

    fn get(&self, prefix: Prefix) -> Option<&Ban> {
        self.bans.get(&prefix).map(|ByPrefix(ban)| ban)
    }

    /// The widest first.
    fn around(&self, prefix: Prefix) -> impl DoubleEndedIterator<Item = &Ban> {
        self.lengths.covering(prefix).filter_map(|wider| self.get(wider))
    }

    fn behind(&self, last: Option<Prefix>) -> impl Iterator<Item = &Ban> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.bans.range::<Prefix, _>((from, Bound::Unbounded)).map(|ByPrefix(ban)| ban)
    }
}

impl Ledger {
    /// An empty ledger of at most `bans_max` bans.
    pub fn new(bans_max: usize) -> Self {
        Self { bans_max, ..Self::default() }
    }

    /// A ledger of these bans, and of those the ones that gave way to the bounds: the automatic ones soonest to end
    /// first, and those of one scope too many.
    pub fn with(bans_max: usize, mut bans: Vec<Ban>) -> (Self, Vec<Ban>) {
        let (mut this, mut lost) = (Self::new(bans_max), Vec::new());
        let mut on_ports: BTreeMap<Scope, Vec<Ban>> = BTreeMap::new();
        for ban in bans.extract_if(.., |ban| !ban.scope.is_all()) {
            if on_ports.len() < SCOPES_MAX || on_ports.contains_key(&ban.scope) {
                on_ports.entry(ban.scope.clone()).or_default().push(ban);
            } else {
                lost.push(ban);
            }
        }
        this.all_ports = Table::with(bans);
        this.on_ports = on_ports.into_iter().map(|(scope, bans)| (scope, Table::with(bans))).collect();
        let mut by_origin = BTreeMap::new();
        this.iter().for_each(|ban| count(&mut by_origin, &ban.origin));
        this.by_origin = by_origin;
        while this.len() > bans_max
            && let Some((_, prefix, scope)) = this.first_automatic()
        {
            lost.extend(this.close(prefix, &scope));
        }
        (this, lost)
    }

    /// Changes the bound; bans over it stay until they end.
    pub fn set_bans_max(&mut self, bans_max: usize) {
        self.bans_max = bans_max;
    }

    /// Opens a ban, replacing one of the same prefix and scope. When full, the automatic ban soonest to end gives way.
    pub fn open(&mut self, ban: Ban) -> Opened {
        let mut gave_way = None;
        if self.close(ban.prefix, &ban.scope).is_none() {
            if self.table(&ban.scope).is_none() && self.on_ports.len() >= SCOPES_MAX {
                return Opened::ScopesFull;
            }
            if self.len() >= self.bans_max {
                let Some((_, prefix, scope)) = self.first_automatic() else { return Opened::Full };
                gave_way = self.close(prefix, &scope);
            }
        }
        count(&mut self.by_origin, &ban.origin);
        let table = if ban.scope.is_all() {
            &mut self.all_ports
        } else {
            self.on_ports.entry(ban.scope.clone()).or_default()
        };
        table.open(ban);
        Opened::Yes { gave_way }
    }

    /// Ends the ban of exactly this prefix and scope.
    pub fn close(&mut self, prefix: Prefix, scope: &Scope) -> Option<Ban> {
        let table = if scope.is_all() { &mut self.all_ports } else { self.on_ports.get_mut(scope)? };
        let ban = table.close(prefix)?;
        if table.bans.is_empty() {
            self.on_ports.remove(scope);
        }
        if let Some(bans) = self.by_origin.get_mut(&ban.origin) {
            *bans -= 1;
            if *bans == 0 {
                self.by_origin.remove(&ban.origin);
            }
        }
        Some(ban)
    }

    /// Ends one ban that is over at `now`, the earliest first.
    pub fn close_over(&mut self, now: Timestamp) -> Option<Ban> {
        let (end, prefix, scope) = self.earliest(Table::first_end)?;
        if end != NEVER && end <= now.as_micros() { self.close(prefix, &scope) } else { None }
    }

    /// When the next ban ends.
    pub fn next_end(&self) -> Option<Timestamp> {
        let (end, ..) = self.earliest(Table::first_end)?;
        (end != NEVER).then_some(Timestamp::from_micros(end))
    }

    fn first_automatic(&self) -> Option<(i64, Prefix, Scope)> {
        self.earliest(|table| table.automatic_by_end.first().copied())
    }

    /// The earliest of what each table has first.
    fn earliest(&self, first: impl Fn(&Table) -> Option<ByEnd>) -> Option<(i64, Prefix, Scope)> {
        let firsts = self.tables().filter_map(|(scope, table)| first(table).map(|first| (first, scope)));
        firsts.min().map(|((end, prefix), scope)| (end, prefix, scope.clone()))
    }

    /// The ban of exactly this prefix and scope.
    pub fn get(&self, prefix: Prefix, scope: &Scope) -> Option<&Ban> {
        self.table(scope)?.get(prefix)
    }

    /// The bans of exactly this prefix, the one on all ports first.
    pub fn of(&self, prefix: Prefix) -> impl Iterator<Item = &Ban> {
        self.tables().filter_map(move |(_, table)| table.get(prefix))
    }

    /// The narrowest ban that drops all that `scope` does of all of `prefix`.
    pub fn covering(&self, prefix: Prefix, scope: &Scope) -> Option<&Ban> {
        let tables = self.tables().filter(|(wider, _)| wider.covers(scope));
        narrowest(tables.filter_map(|(_, table)| table.around(prefix).next_back()))
    }

    /// The narrowest ban that covers all of `prefix`, whatever its scope.
    pub fn covering_in_part(&self, prefix: Prefix) -> Option<&Ban> {
        narrowest(self.tables().filter_map(|(_, table)| table.around(prefix).next_back()))
    }

    /// All bans that cover all of `prefix`, whatever their scopes.
    pub fn around(&self, prefix: Prefix) -> impl Iterator<Item = &Ban> {
        self.tables().flat_map(move |(_, table)| table.around(prefix))
    }

    /// The bans that lie inside `prefix`, by scope and prefix.
    pub fn inside(&self, prefix: Prefix) -> impl Iterator<Item = &Ban> {
        // In order of address then length: what lies inside starts at the prefix's own address.
        self.tables().flat_map(move |(_, table)| {
            let from = table.bans.range::<Prefix, _>(prefix..).map(|ByPrefix(ban)| ban);
            from.take_while(move |ban| prefix.contains(ban.prefix.address()))
                .filter(move |ban| prefix.covers(ban.prefix))
        })
    }

    /// All bans, by scope, those on all ports first, and prefix.
    pub fn iter(&self) -> impl Iterator<Item = &Ban> {
        self.iter_after(None)
    }

    /// The bans behind the one of this scope and prefix, or all of them, in the order of [`Self::iter`].
    pub fn iter_after(&self, last: Option<(&Scope, Prefix)>) -> impl Iterator<Item = &Ban> {
        let tables = self.tables().filter(move |(scope, _)| last.is_none_or(|(last, _)| *scope >= last));
        tables.flat_map(move |(scope, table)| {
            table.behind(last.filter(|(last, _)| *last == scope).map(|(_, prefix)| prefix))
        })
    }

    /// How many bans there are by each who decided on any.
    pub fn by_origin(&self) -> &BTreeMap<Origin, usize> {
        &self.by_origin
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tables().map(|(_, table)| table.bans.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn table(&self, scope: &Scope) -> Option<&Table> {
        if scope.is_all() { Some(&self.all_ports) } else { self.on_ports.get(scope) }
    }

    fn tables(&self) -> impl Iterator<Item = (&Scope, &Table)> {
        std::iter::once((&Scope::ALL, &self.all_ports)).chain(&self.on_ports)
    }
}

/// Of equally narrow ones the first.
fn narrowest<'a>(bans: impl Iterator<Item = &'a Ban>) -> Option<&'a Ban> {
    bans.min_by_key(|ban| std::cmp::Reverse(ban.prefix.length()))
}

fn count(by_origin: &mut BTreeMap<Origin, usize>, origin: &Origin) {
    match by_origin.get_mut(origin) {
        Some(bans) => *bans += 1,
        None => drop(by_origin.insert(origin.clone(), 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ban(last: u8, end: Option<i64>, origin: Origin) -> Ban {
        Ban {
            prefix: Prefix::host([203, 0, 113, last].into()),
            scope: Scope::ALL,
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
        let covering = |ledger: &Ledger, prefix| ledger.covering(prefix, &Scope::ALL).map(|ban| ban.prefix);
        assert_eq!(covering(&ledger, host), Some(host));
        ledger.close(host, &Scope::ALL);
        assert_eq!(covering(&ledger, host), Some(wide));
        assert_eq!(covering(&ledger, "203.0.112.0/23".parse().unwrap()), None);
        ledger.close(wide, &Scope::ALL);
        assert_eq!(covering(&ledger, host), None);
    }

    #[test]
    fn a_ledger_made_at_once_is_the_one_that_grew() {
        let jail = |name: &str| Origin::Jail(name.into());
        let bans = [
            ban(7, Some(10), Origin::Operator),
            ban(2, Some(20), jail("sshd")),
            ban(3, None, jail("web")),
            Ban { scope: "22".parse().unwrap(), ..ban(9, Some(15), jail("sshd")) },
            Ban { scope: "80".parse().unwrap(), ..ban(4, Some(5), jail("web")) },
            ban(5, None, Origin::Operator),
        ];
        for bans_max in 0..=bans.len() {
            let (mut made, lost) = Ledger::with(bans_max, bans.to_vec());
            let lost: Vec<u8> = lost.iter().map(last).collect();
            // The manual ones stay whatever the bound is.
            assert_eq!(lost, [4, 9, 2, 3][..bans.len().saturating_sub(bans_max).min(4)], "{bans_max}");
            let mut grown = Ledger::new(bans.len());
            for ban in bans.iter().filter(|ban| !lost.contains(&last(ban))) {
                grown.open(ban.clone());
            }
            assert_eq!(made.iter().collect::<Vec<_>>(), grown.iter().collect::<Vec<_>>());
            assert_eq!(made.by_origin(), grown.by_origin());
            assert_eq!(made.by_origin().values().sum::<usize>(), made.len());
            loop {
                assert_eq!(made.next_end(), grown.next_end());
                let now = Timestamp::from_secs(100);
                let ended = made.close_over(now);
                assert_eq!(ended, grown.close_over(now));
                if ended.is_none() {
                    break;
                }
            }
        }
    }

    #[test]
    fn what_lies_inside_a_prefix_is_found_and_nothing_beside_it() {
        let prefixes = ["10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "10.1.0.0", "10.1.255.255", "10.2.0.0"];
        let bans = prefixes
            .iter()
            .map(|prefix| Ban { prefix: prefix.parse().unwrap(), ..ban(0, None, Origin::Operator) });
        let (ledger, _) = Ledger::with(9, bans.collect());
        let inside = |prefix: &str| -> Vec<String> {
            ledger.inside(prefix.parse().unwrap()).map(|ban| ban.prefix.to_string()).collect()
        };
        assert_eq!(inside("10.1.0.0/16"), ["10.1.0.0/16", "10.1.0.0/24", "10.1.0.0", "10.1.255.255"]);
        assert_eq!(inside("10.1.0.0/17"), ["10.1.0.0/24", "10.1.0.0"]);
        assert_eq!(inside("10.2.0.0"), ["10.2.0.0"]);
        assert_eq!(inside("11.0.0.0/8"), [""; 0]);
        assert_eq!(inside("0.0.0.0/0").len(), 6);
    }

    fn last(ban: &Ban) -> u8 {
        match ban.prefix.address() {
            std::net::IpAddr::V4(address) => address.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        }
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

    #[test]
    fn bans_of_one_prefix_stand_beside_each_other_by_scope_and_end_on_their_own() {
        let scope = |text: &str| text.parse::<Scope>().unwrap();
        let on = |last, ports: &str, end| Ban { scope: scope(ports), ..ban(last, end, Origin::Operator) };
        let mut ledger = Ledger::new(9);
        for (ports, end) in [("22", Some(30)), ("80,443", Some(20)), ("all", Some(10)), ("22", Some(40))] {
            ledger.open(on(1, ports, end));
        }
        let host = Prefix::host([203, 0, 113, 1].into());
        let scopes = |ledger: &Ledger| ledger.of(host).map(|ban| ban.scope.to_string()).collect::<Vec<_>>();
        assert_eq!((scopes(&ledger).join(" "), ledger.len()), ("all 22/tcp 80/tcp,443/tcp".to_owned(), 3));
        let covering = |ledger: &Ledger, ports: &str| {
            ledger.covering(host, &scope(ports)).map(|ban| ban.scope.to_string())
        };
        assert_eq!(covering(&ledger, "22-23").as_deref(), Some("all"));
        let ended: Vec<_> = std::iter::from_fn(|| ledger.close_over(Timestamp::from_secs(20))).collect();
        assert_eq!(
            ended.iter().map(|ban| ban.scope.to_string()).collect::<Vec<_>>(),
            ["all", "80/tcp,443/tcp"]
        );
        assert_eq!((covering(&ledger, "22").as_deref(), covering(&ledger, "22-23")), (Some("22/tcp"), None));
        assert_eq!(ledger.covering_in_part(host).map(|ban| ban.scope.clone()), Some(scope("22")));
        assert_eq!(ledger.next_end(), Some(Timestamp::from_secs(40)));
    }

    #[test]
    fn scopes_are_bounded_and_one_that_no_ban_has_any_more_makes_room() {
        let on = |port: usize| Ban {
            scope: port.to_string().parse().unwrap(),
            ..ban(1, Some(10), Origin::Operator)
        };
        let mut ledger = Ledger::new(99);
        for port in 1..=SCOPES_MAX {
            assert_eq!(ledger.open(on(port)), Opened::Yes { gave_way: None });
        }
        assert_eq!(ledger.open(on(99)), Opened::ScopesFull);
        assert_eq!(ledger.open(ban(1, None, Origin::Operator)), Opened::Yes { gave_way: None });
        let one = on(1);
        ledger.close(one.prefix, &one.scope);
        assert_eq!(ledger.open(on(99)), Opened::Yes { gave_way: None });
    }
}
