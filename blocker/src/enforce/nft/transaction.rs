//! A batch of changes, turned into what the kernel shall hold and into transactions that make it so.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
};

use nftnl::Batch;
use rustix::io::Errno;

use super::{
    Nft,
    element::{self, Act, Element},
    error,
    guard::Guard,
    layout::{Kind, SetId},
    ports::{self, Scopes},
    socket::Refusal,
};
use crate::{
    enforce::{EnforceError, scopes_full},
    engine::Change,
    net::Prefix,
    time::{Timestamp, Until},
};

/// Changes of one transaction; a larger batch is several.
///
/// Measured with 50,000 bans, the better of two, per second without and with counters of their own: 100 a transaction
/// 860,000 and 207,000; 500 690,000 and 247,000; 1,000 836,000 and 270,000; 5,000 926,000 and 327,000; 10,000 936,000
/// and 360,000; 50,000 652,000 and 395,000. A million in one transaction gains nothing and takes 90 MB at once.
const CHANGES_MAX: usize = 16_384;
/// An end that is nearer than this to the one asked for stays: entries are true to within a second.
const NEAR_MS: u64 = 100;
/// The longest timeout of an element, 584 years in milliseconds: the kernel keeps nanoseconds in 64 bits
/// (`nf_msecs_to_jiffies64`).
const TIMEOUT_MS_MAX: u64 = u64::MAX / 1_000_000 - 1;
/// Keys of guards beyond those that were needed when they were last written, before they are written anew.
const GUARD_KEYS_STALE_MAX: usize = 65_536;

/// What the kernel shall hold for a prefix.
#[derive(Clone, Copy, Debug)]
enum Goal {
    /// An element, for so many milliseconds or for ever.
    Held(Option<u64>),
    /// None.
    Gone,
}

type Wish = (Kind, Prefix, Goal);
type Known = HashMap<(Kind, Prefix), Element>;

impl Nft {
    /// Makes all these changes, in as few transactions as are quick.
    pub(super) fn apply_changes(&mut self, changes: &[Change], now: Timestamp) -> Result<(), EnforceError> {
        let flushed = changes.iter().rposition(|change| matches!(change, Change::Flush));
        // Of what came before a flush, only the allowlist lasts.
        let (before, after) = changes.split_at(flushed.unwrap_or(0));
        let allowlist = |change: &&Change| matches!(change, Change::Allow { .. } | Change::Disallow { .. });
        let mut lasting = before.iter().filter(allowlist).chain(after).peekable();
        let mut flush = flushed.is_some();
        let mut first_error = None;
        while lasting.peek().is_some() {
            // A flush goes with the first part, so that what stays banned is never free.
            let mut part = Vec::new();
            let mut full = None;
            for change in lasting.by_ref().take(CHANGES_MAX) {
                if let Change::Ban(ban) = change
                    && !self.layout.scopes.take(&ban.scope)
                {
                    full = Some(ban);
                    break;
                }
                part.push(change);
            }
            let part = wishes(part.into_iter(), &self.layout.scopes, now);
            let mut done = self.apply_part(std::mem::take(&mut flush), &part);
            // What is not taken away now is the next time.
            let _later = self.retire_scopes();
            if let Some(ban) = full {
                // What came before may have made room.
                if self.layout.scopes.take(&ban.scope) {
                    let again = wishes([Change::Ban(ban.clone())].iter(), &self.layout.scopes, now);
                    done = done.and(self.apply_part(false, &again));
                } else {
                    first_error.get_or_insert(scopes_full(ban));
                }
            }
            if let Err((refusal, prefix)) = done {
                let mut what = format!("write {} changes to nftables", changes.len());
                if let Some(prefix) = prefix {
                    let _infallible = write!(what, ": {prefix}");
                }
                first_error.get_or_insert(EnforceError { prefix, ..error(&what, &refusal) });
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn apply_part(&mut self, flush: bool, wishes: &[Wish]) -> Result<(), (Refusal, Option<Prefix>)> {
        let mut done = self.commit(flush, wishes);
        if done.as_ref().is_err_and(|refusal| refusal.errno == Errno::NOENT) {
            // The table or a chain of it was deleted under us: put it back, and say so in `repair`.
            done = self.rebuild_if_changed().and_then(|()| self.commit(flush, wishes));
        }
        if done.is_ok() {
            return done.map_err(|refusal| (refusal, None));
        }
        if flush {
            self.commit(true, &[]).map_err(|refusal| (refusal, None))?;
        }
        self.commit_in_parts(wishes)
    }

    /// As `commit`, and when it is refused, its halves: so that one bad change stops only itself. The first refusal
    /// comes back with its prefix.
    fn commit_in_parts(&mut self, wishes: &[Wish]) -> Result<(), (Refusal, Option<Prefix>)> {
        let Err(refusal) = self.commit(false, wishes) else { return Ok(()) };
        if wishes.len() < 2 || refusal.errno == Errno::PERM {
            return Err((refusal, wishes.first().map(|(_, prefix, _)| *prefix)));
        }
        let (first, second) = wishes.split_at(wishes.len() / 2);
        let first = self.commit_in_parts(first);
        let second = self.commit_in_parts(second);
        first.and(second)
    }

    /// Makes these wishes true in one transaction, or none of them. Nearly every ban is a new one, and it is the
    /// kernel that says so when one is not.
    fn commit(&mut self, flush: bool, wishes: &[Wish]) -> Result<(), Refusal> {
        // After a flush there are no bans.
        let may_be_there = wishes.iter().filter(|(kind, ..)| !flush || *kind == Kind::Allow);
        let place = |(kind, prefix, _): &Wish| (*kind, *prefix);
        let gone = may_be_there.clone().filter(|(.., goal)| matches!(goal, Goal::Gone)).map(place);
        let known = self.ask_known(gone)?;
        match self.write(flush, wishes, &known, Act::AddNew) {
            Err(Refusal { errno: Errno::EXIST, .. }) => {
                let known = self.ask_known(may_be_there.map(place))?;
                self.write(flush, wishes, &known, Act::Add)
            }
            done => done,
        }
    }

    /// Writes one transaction, given what is there of the prefixes it changes.
    fn write(&mut self, flush: bool, wishes: &[Wish], known: &Known, add: Act) -> Result<(), Refusal> {
        let layout = self.layout.clone();
        let mut batch = Batch::new();
        let mut sets = self.sets.clone();
        let mut keys: BTreeSet<(Guard, u32)> = BTreeSet::new();
        // A timeout is renewed by `add, delete, add`: kernels before 6.12 ignore the new one of an element that is
        // there, and the first `add` keeps the `delete` from failing when the element expires just now.
        let mut old: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();
        let mut new: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();
        for (kind, prefix, goal) in wishes {
            let set = layout.set_of(*kind, *prefix);
            let found = known.get(&(*kind, *prefix)).copied();
            if let (Some(found), Goal::Held(left_ms)) = (found, goal)
                && is_near(found.left_ms, *left_ms)
            {
                continue;
            }
            if let Some(found) = found {
                old.entry(set).or_default().push(found);
            }
            if let Goal::Held(left_ms) = goal {
                let (packets, bytes) = found.map_or((0, 0), |found| (found.packets, found.bytes));
                let element = Element { prefix: *prefix, left_ms: *left_ms, packets, bytes };
                new.entry(set).or_default().push(element);
                keys.extend(guard_keys(*kind, *prefix));
            }
        }
        let made: Vec<SetId> = new.keys().copied().filter(|set| !sets.contains(set)).collect();
        for set in &made {
            layout.add_set(&mut batch, *set);
            sets.insert(*set);
        }
        let chains: BTreeSet<(Kind, bool)> = made.iter().map(|set| (set.kind, set.v6)).collect();
        for (kind, v6) in &chains {
            layout.lookups(&mut batch, *kind, *v6, &sets);
        }
        for v6 in [false, true] {
            if chains.iter().any(|(kind, family)| matches!(kind, Kind::Ports(_)) && *family == v6) {
                layout.lookups(&mut batch, Kind::Ban, v6, &sets);
                ports::dispatch_rules(&mut batch, &layout.scopes, v6, &sets);
            }
        }
        if flush {
            let guards = Guard::ALL.into_iter().filter(|guard| guard.kind() == Kind::Ban);
            let names = self.sets.iter().filter(|set| set.kind.is_ban()).map(|set| set.name());
            for name in names.chain(guards.map(|guard| guard.name().to_owned())) {
                element::clear(&mut batch, &name);
            }
        } else {
            keys.retain(|key| !self.guarded.contains(key));
        }
        self.guard(&mut batch, &keys);
        for act in [Act::Add, Act::Delete] {
            for (set, elements) in &old {
                element::write(&mut batch, act, *set, elements);
            }
        }
        for (set, elements) in &new {
            element::write(&mut batch, add, *set, elements);
        }
        if !flush && old.is_empty() && new.is_empty() {
            self.see_all(wishes);
            return Ok(());
        }
        self.send(batch)?;
        if flush {
            self.on_ports.clear();
            self.guarded.retain(|(guard, _)| guard.kind() == Kind::Allow);
        }
        self.see_all(wishes);
        self.guarded.extend(keys);
        if !made.is_empty() {
            self.sets = sets;
            self.shape = self.ask_shape()?;
        }
        if self.guarded.len() > self.guarded_fresh + GUARD_KEYS_STALE_MAX {
            self.rebuild()?;
        }
        Ok(())
    }

    /// Notes what became of the wishes that are about ports.
    fn see_all(&mut self, wishes: &[Wish]) {
        for (kind, prefix, goal) in wishes.iter().filter(|(kind, ..)| matches!(kind, Kind::Ports(_))) {
            self.see(*kind, *prefix, matches!(goal, Goal::Held(_)));
        }
    }

    /// Writes keys of guards.
    pub(super) fn guard(&self, batch: &mut Batch, keys: &BTreeSet<(Guard, u32)>) {
        for guard in Guard::ALL {
            let keys: Vec<u32> = keys.range((guard, 0)..=(guard, u32::MAX)).map(|(_, key)| *key).collect();
            element::write_guard(batch, guard, &keys);
        }
    }
}

/// The keys of guards that a prefix needs.
pub(super) fn guard_keys(kind: Kind, prefix: Prefix) -> impl Iterator<Item = (Guard, u32)> {
    let guard = Guard::of(kind, prefix.address().is_ipv6(), prefix.length());
    guard.into_iter().flat_map(move |guard| guard.keys(prefix).map(move |key| (guard, key)))
}

/// What changes come to: the last word on each prefix, in the order in which the prefixes were first named.
fn wishes<'a>(changes: impl Iterator<Item = &'a Change>, scopes: &Scopes, now: Timestamp) -> Vec<Wish> {
    let mut wishes: Vec<Wish> = Vec::with_capacity(changes.size_hint().0);
    let mut places: HashMap<(Kind, Prefix), usize> = HashMap::with_capacity(changes.size_hint().0);
    for change in changes {
        let (kind, prefix, goal) = match change {
            // Of a scope without a number there is none to lift.
            Change::Ban(ban) => match scopes.kind(&ban.scope) {
                Some(kind) => (kind, ban.prefix, goal(ban.until, now)),
                None => continue,
            },
            Change::Unban { prefix, scope } => match scopes.kind(scope) {
                Some(kind) => (kind, *prefix, Goal::Gone),
                None => continue,
            },
            Change::Allow { prefix } => (Kind::Allow, *prefix, Goal::Held(None)),
            Change::Disallow { prefix } => (Kind::Allow, *prefix, Goal::Gone),
            // Of the part that it begins.
            Change::Flush => continue,
        };
        match places.get(&(kind, prefix)).and_then(|place| wishes.get_mut(*place)) {
            Some(wish) => wish.2 = goal,
            None => {
                places.insert((kind, prefix), wishes.len());
                wishes.push((kind, prefix, goal));
            }
        }
    }
    wishes
}

fn goal(until: Until, now: Timestamp) -> Goal {
    match until {
        Until::Forever => Goal::Held(None),
        Until::At(_) if until.is_over(now) => Goal::Gone,
        Until::At(end) => {
            let left = end.saturating_since(now).as_micros().div_ceil(1_000);
            Goal::Held(Some(u64::try_from(left).unwrap_or(u64::MAX).min(TIMEOUT_MS_MAX)))
        }
    }
}

/// Whether an element already ends when it shall, as those do that a restarted agent asks for again.
fn is_near(left_ms: Option<u64>, wanted_ms: Option<u64>) -> bool {
    match (left_ms, wanted_ms) {
        (Some(left), Some(wanted)) => left.abs_diff(wanted) <= NEAR_MS,
        (left, wanted) => left == wanted,
    }
}
