//! Counts failures per jail and prefix in a sliding window.
//!
//! It knows nothing of bans: it says when a threshold is reached and forgets the pair. Memory is bounded whatever
//! comes: so many pairs, each of a fixed size. They are found by hash in sets of eight, each pair in one of two sets,
//! so that a set is full only when nearly all are; then the one of them silent longest gives way.
//!
//! While more than three quarters are taken, the first failure of a pair that is not tracked is only noted by the
//! `doorkeeper` and not counted: a flood of addresses that fail once each then pushes out nobody. The price is that an
//! attacker needs one failure more, and it is said ([`Windows::is_under_pressure`], [`Windows::turned_away`]). Until
//! then every count is exact, up to [`FAILURES_EXACT_MAX`].
//!
//! | module | story |
//! |---|---|
//! | `window` | when the failures of one pair were |
//! | `doorkeeper` | who failed lately, in a few bits |
//! | `page` | the pairs as bytes, to be kept |
#![forbid(unsafe_code)]

use std::{net::IpAddr, time::Duration};

use crate::{net::Prefix, time::Timestamp};

mod doorkeeper;
mod page;
mod window;

use doorkeeper::Doorkeeper;
use page::Changed;
pub use window::FAILURES_EXACT_MAX;
use window::Window;

/// Pairs in a set.
const WAYS: usize = 8;
/// First failures that a generation of the doorkeeper remembers, for each pair that may be tracked.
const DOORKEEPER_SHARE: usize = 16;
/// Pairs looked at in one call of [`Windows::expire`], so that no call is long.
const EXPIRE_STEPS_MAX: usize = 8_192;

/// The index begins with room for so many pairs and grows fourfold, so that the one in use stays in the cache.
const INDEX_PAIRS_MIN: usize = 4_096;

/// No table is larger.
const PAIRS_MAX: usize = 1 << 30;

/// A jail's number, stable across reloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JailKey(pub u32);

/// What a failure came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// So many in the window, fewer than ban.
    Below(u32),
    /// The threshold is reached with this many; the pair starts afresh.
    Reached(u32),
}

/// A pair, and where it seemed to be when it was sought.
#[derive(Clone, Copy, Debug)]
pub struct Sought {
    jail: JailKey,
    prefix: Prefix,
    hash: u64,
    place: Option<usize>,
}

/// The failures of every tracked pair.
#[derive(Debug)]
pub struct Windows {
    index: Index,
    pairs: Vec<Pair>,
    /// Places in `pairs` that hold nobody.
    free: Vec<u32>,
    tracked_max: usize,
    seeds: [u64; 3],
    /// There only under pressure.
    doorkeeper: Option<Doorkeeper>,
    /// Where [`Windows::expire`] goes on.
    hand: usize,
    evicted: u64,
    turned_away: u64,
    changed: Changed,
}

/// A tracked pair; `None` where it was forgotten.
type Pair = Option<(JailKey, Prefix, Window)>;

impl Windows {
    /// Tracks at most `tracked_max` pairs, at least one. The seed decides which pairs share a set; where nobody can
    /// know it, nobody can choose addresses that do.
    pub fn new(tracked_max: usize, seed: u64) -> Self {
        let tracked_max = tracked_max.clamp(1, PAIRS_MAX);
        // SplitMix64, so that seeds that differ little do not.
        let seeds = [1, 2, 3].map(|n| {
            let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(n));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        });
        Self {
            index: Index::new(tracked_max.min(INDEX_PAIRS_MIN)),
            pairs: Vec::new(),
            free: Vec::new(),
            tracked_max,
            seeds,
            doorkeeper: None,
            hand: 0,
            evicted: 0,
            turned_away: 0,
            changed: Changed::default(),
        }
    }

    /// Counts a failure at `at`, where `maxretry` of them within `findtime` reach the threshold.
    pub fn count(
        &mut self,
        jail: JailKey,
        prefix: Prefix,
        at: Timestamp,
        maxretry: u32,
        findtime: Duration,
    ) -> Count {
        self.count_sought(self.seek(jail, prefix), at, maxretry, findtime)
    }

    /// A pair that is to be counted by [`Self::count_sought`].
    pub fn seek(&self, jail: JailKey, prefix: Prefix) -> Sought {
        Sought { jail, prefix, hash: self.hash(jail, prefix), place: None }
    }

    /// Finds out where these pairs are, and reads all that counting them is going to read. Each is somewhere else, and
    /// reads that do not wait for each other the processor does at once.
    pub fn find_all(&self, pairs: &mut [Sought]) {
        let sets = pairs.iter().flat_map(|sought| self.index.sets_of(sought.hash));
        std::hint::black_box(sets.fold(0, |all, set| all ^ self.index.sets[set].tags[0]));
        for sought in &mut *pairs {
            let spot = self.index.tagged(sought.hash).next();
            sought.place = spot.map(|spot| self.index.place(spot));
        }
        let found = pairs.iter().filter_map(|sought| self.pairs.get(sought.place?)?.as_ref());
        std::hint::black_box(found.fold(0, |all, (jail, _, window)| all ^ jail.0 ^ window.newest()));
    }

    /// As [`Self::count`]; the pair may have come, gone or moved since it was sought.
    pub fn count_sought(
        &mut self,
        sought: Sought,
        at: Timestamp,
        maxretry: u32,
        findtime: Duration,
    ) -> Count {
        let Sought { jail, prefix, hash, place } = sought;
        if maxretry <= 1 {
            self.forget(jail, prefix);
            return Count::Reached(1);
        }
        let is_it = |place: &usize| matches!(self.pairs.get(*place), Some(Some((j, p, _))) if *p == prefix && *j == jail);
        let place = place.filter(is_it).or_else(|| Some(self.index.place(self.find(hash, jail, prefix)?)));
        if let Some(place) = place
            && let Some((_, _, window)) = &mut self.pairs[place]
        {
            self.changed.mark(place);
            let count = window.add(at, findtime);
            if count >= maxretry {
                self.forget(jail, prefix);
                return Count::Reached(count);
            }
            return Count::Below(count);
        }
        if self.is_under_pressure() {
            let size = self.tracked_max.saturating_mul(DOORKEEPER_SHARE);
            let doorkeeper = self.doorkeeper.get_or_insert_with(|| Doorkeeper::new(size));
            if !doorkeeper.seen(hash) {
                self.turned_away += 1;
                return Count::Below(1);
            }
        } else if self.doorkeeper.is_some() {
            self.doorkeeper = None;
        }
        self.track(hash, (jail, prefix, Window::new(at, findtime)));
        Count::Below(1)
    }

    /// Forgets the failures of a pair.
    pub fn forget(&mut self, jail: JailKey, prefix: Prefix) {
        if let Some(spot) = self.find(self.hash(jail, prefix), jail, prefix) {
            self.remove(spot);
        }
    }

    /// Forgets pairs whose latest failure is before the `horizon` of their jail. Looks at a part of them each time.
    pub fn expire(&mut self, horizon: impl Fn(JailKey) -> Timestamp) {
        for _ in 0..self.pairs.len().min(EXPIRE_STEPS_MAX) {
            self.hand = if self.hand + 1 < self.pairs.len() { self.hand + 1 } else { 0 };
            if let Some((jail, prefix, window)) = &self.pairs[self.hand]
                && window.latest() < horizon(*jail)
            {
                let (jail, prefix) = (*jail, *prefix);
                self.forget(jail, prefix);
            }
        }
    }

    /// Pairs tracked now.
    pub fn tracked(&self) -> usize {
        self.pairs.len() - self.free.len()
    }

    /// Pairs that gave way to the bound so far.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Whether more than three quarters of the pairs that may be tracked are, so that the first failure of a further
    /// one is only noted.
    pub fn is_under_pressure(&self) -> bool {
        self.tracked() * 4 > self.tracked_max * 3
    }

    /// First failures that were noted and not counted, so far.
    pub fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// Changes the bound. Where fewer than now may be tracked, those silent longest give way.
    pub fn set_tracked_max(&mut self, tracked_max: usize) {
        let tracked_max = tracked_max.clamp(1, PAIRS_MAX);
        if tracked_max == self.tracked_max {
            return;
        }
        let mut pairs: Vec<_> = std::mem::take(&mut self.pairs).into_iter().flatten().collect();
        pairs.sort_by_key(|(_, _, window)| window.latest());
        let too_many = pairs.len().saturating_sub(tracked_max);
        self.evicted += too_many as u64;
        self.index = Index::new(tracked_max.min(INDEX_PAIRS_MIN));
        (self.tracked_max, self.hand) = (tracked_max, 0);
        (self.free, self.doorkeeper) = (Vec::new(), None);
        self.changed.mark_all();
        for pair in pairs.into_iter().skip(too_many) {
            self.track(self.hash(pair.0, pair.1), pair);
        }
    }

    fn find(&self, hash: u64, jail: JailKey, prefix: Prefix) -> Option<Spot> {
        self.index
            .tagged(hash)
            .find(|spot| matches!(&self.pairs[self.index.place(*spot)], Some((j, p, _)) if *p == prefix && *j == jail))
    }

    fn remove(&mut self, spot: Spot) {
        let place = self.index.clear(spot);
        self.changed.mark(place);
        self.pairs[place] = None;
        self.free.push(u32::try_from(place).unwrap_or(u32::MAX));
    }

    /// Tracks a pair that is not tracked yet.
    fn track(&mut self, hash: u64, pair: (JailKey, Prefix, Window)) {
        if self.index.pairs < self.tracked_max
            && (self.tracked() * 4 >= self.index.pairs * 3 || self.index.vacant(hash).is_none())
        {
            self.grow_index();
        }
        let latest = |spot: &Spot| self.pairs[self.index.place(*spot)].as_ref().map(|pair| pair.2.latest());
        let room = self.tracked() < self.tracked_max;
        let mut spot = self.index.vacant(hash);
        if spot.is_none() || !room {
            let neighbours = self.index.taken(hash).min_by_key(latest);
            // With every place taken, but none in these two sets, some pair gives way.
            let victim = neighbours.or_else(|| self.next_tracked()).filter(|_| !room || spot.is_none());
            if let Some(victim) = victim {
                self.remove(victim);
                self.evicted += 1;
                spot = self.index.vacant(hash);
            }
        }
        let Some(spot) = spot else { return };
        let place = match self.free.pop() {
            Some(place) => {
                self.pairs[place as usize] = Some(pair);
                place as usize
            }
            None => {
                // Not doubled as vectors are, so that the bound is not overshot by half.
                if self.pairs.len() == self.pairs.capacity() {
                    let more = (self.pairs.len() / 4).max(64).min(self.tracked_max - self.pairs.len());
                    self.pairs.reserve_exact(more);
                }
                self.pairs.push(Some(pair));
                self.pairs.len() - 1
            }
        };
        self.changed.mark(place);
        self.index.set(spot, hash, place);
    }

    fn grow_index(&mut self) {
        let mut index = Index::new(self.index.pairs.saturating_mul(4).min(self.tracked_max));
        for place in 0..self.pairs.len() {
            let Some((jail, prefix, _)) = &self.pairs[place] else { continue };
            let hash = self.hash(*jail, *prefix);
            match index.vacant(hash) {
                Some(spot) => index.set(spot, hash, place),
                // Two full sets in an index that is a quarter full: hardly ever.
                None => {
                    self.changed.mark(place);
                    self.pairs[place] = None;
                    self.free.push(u32::try_from(place).unwrap_or(u32::MAX));
                    self.evicted += 1;
                }
            }
        }
        self.index = index;
    }

    fn next_tracked(&self) -> Option<Spot> {
        let (jail, prefix, _) =
            self.pairs.iter().cycle().skip(self.hand).take(self.pairs.len()).flatten().next()?;
        self.find(self.hash(*jail, *prefix), *jail, *prefix)
    }

    fn hash(&self, jail: JailKey, prefix: Prefix) -> u64 {
        let (high, low) = match prefix.address() {
            IpAddr::V4(v4) => (1, u64::from(v4.to_bits())),
            IpAddr::V6(v6) => ((v6.to_bits() >> 64) as u64, v6.to_bits() as u64),
        };
        let rest =
            u64::from(jail.0) << 16 | u64::from(prefix.length()) << 1 | u64::from(prefix.address().is_ipv4());
        let [first, second, third] = self.seeds;
        folded(folded(high ^ first, low ^ second) ^ rest, third)
    }
}

/// The halves of the product, folded: every bit of it depends on every bit of both.
fn folded(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

/// Where pairs are, by hash: sets of eight places, each pair in one of the two that its hash names.
#[derive(Debug)]
struct Index {
    /// How many pairs it is made for.
    pairs: usize,
    sets: Vec<Set>,
}

/// Eight places, in one cache line.
#[derive(Clone, Debug, Default)]
#[repr(align(64))]
struct Set {
    /// A part of the hash; 0 where there is no pair.
    tags: [u32; WAYS],
    /// In [`Windows::pairs`].
    places: [u32; WAYS],
}

/// A place in the index: which set, and which of its eight.
type Spot = (usize, usize);

impl Index {
    /// Three quarters full when it holds `pairs`.
    fn new(pairs: usize) -> Self {
        Self { pairs, sets: vec![Set::default(); (pairs / 3 * 4 + 4).div_ceil(WAYS)] }
    }

    fn sets_of(&self, hash: u64) -> [usize; 2] {
        let scaled = |half: u64| ((half * self.sets.len() as u64) >> 32) as usize;
        [scaled(hash >> 32), scaled(hash & 0xFFFF_FFFF)]
    }

    /// Where the hash's pair may be.
    fn tagged(&self, hash: u64) -> impl Iterator<Item = Spot> {
        let tag = tag(hash);
        self.spots(hash, move |other| other == tag)
    }

    /// The places of both sets that are taken.
    fn taken(&self, hash: u64) -> impl Iterator<Item = Spot> {
        self.spots(hash, |tag| tag != 0)
    }

    fn spots(&self, hash: u64, wanted: impl Fn(u32) -> bool) -> impl Iterator<Item = Spot> {
        self.sets_of(hash).into_iter().flat_map(move |set| {
            let mut ways = self.sets[set].ways(&wanted);
            std::iter::from_fn(move || {
                let way = ways.trailing_zeros() as usize;
                ways &= ways.wrapping_sub(1);
                (way < WAYS).then_some((set, way))
            })
        })
    }

    /// A free place in the emptier of the two sets.
    fn vacant(&self, hash: u64) -> Option<Spot> {
        let free = |set: usize| self.sets[set].ways(|tag| tag == 0);
        let [first, second] = self.sets_of(hash);
        let set = if free(second).count_ones() > free(first).count_ones() { second } else { first };
        let ways = free(set);
        (ways != 0).then_some((set, ways.trailing_zeros() as usize))
    }

    fn place(&self, (set, way): Spot) -> usize {
        self.sets[set].places[way] as usize
    }

    fn set(&mut self, (set, way): Spot, hash: u64, place: usize) {
        let set = &mut self.sets[set];
        // No table has more than `PAIRS_MAX`.
        (set.tags[way], set.places[way]) = (tag(hash), place as u32);
    }

    fn clear(&mut self, spot: Spot) -> usize {
        let place = self.place(spot);
        self.sets[spot.0].tags[spot.1] = 0;
        place
    }
}

impl Set {
    /// Those of its places whose tag is wanted, the first one the lowest bit; all are looked at at once.
    fn ways(&self, wanted: impl Fn(u32) -> bool) -> u32 {
        let mut ways = 0;
        for (way, tag) in self.tags.iter().enumerate() {
            ways |= u32::from(wanted(*tag)) << way;
        }
        ways
    }
}

/// 32 bits, never 0. The sets took the bits as they are, so the tag takes a mixture.
fn tag(hash: u64) -> u32 {
    (hash.wrapping_mul(0xA24B_AED4_963E_E407) >> 32) as u32 | 1
}

#[cfg(test)]
mod tests;
