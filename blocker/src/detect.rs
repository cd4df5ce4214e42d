//! Counts failures per jail and prefix in a sliding window.
//!
//! Exact timestamps, as many as `maxretry` needs; the number of pairs tracked is bounded, and the pair silent longest
//! gives way. It knows nothing of bans: it says when a threshold is reached and forgets the pair.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use crate::{net::Prefix, time::Timestamp};

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

/// The failures of every tracked pair.
#[derive(Debug)]
pub struct Windows {
    tracked: HashMap<(JailKey, Prefix), VecDeque<Timestamp>>,
    by_latest: BTreeSet<(Timestamp, JailKey, Prefix)>,
    tracked_max: usize,
    evicted: u64,
}

impl Windows {
    /// Tracks at most `tracked_max` pairs, at least one.
    pub fn new(tracked_max: usize) -> Self {
        Self {
            tracked: HashMap::new(),
            by_latest: BTreeSet::new(),
            tracked_max: tracked_max.max(1),
            evicted: 0,
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
        if maxretry <= 1 {
            self.forget(jail, prefix);
            return Count::Reached(1);
        }
        let times = self.tracked.entry((jail, prefix)).or_default();
        if let Some(latest) = times.back() {
            self.by_latest.remove(&(*latest, jail, prefix));
        }
        // Lines of several sources may arrive out of order; the window is kept in order of time.
        let place = times.partition_point(|time| *time <= at);
        times.insert(place, at);
        let latest = *times.back().unwrap_or(&at);
        let horizon = latest.saturating_sub(findtime);
        while times.front().is_some_and(|time| *time <= horizon) {
            times.pop_front();
        }
        let count = u32::try_from(times.len()).unwrap_or(u32::MAX);
        if count >= maxretry {
            self.tracked.remove(&(jail, prefix));
            return Count::Reached(count);
        }
        self.by_latest.insert((latest, jail, prefix));
        if self.tracked.len() > self.tracked_max
            && let Some((_, jail, prefix)) = self.by_latest.pop_first()
        {
            self.tracked.remove(&(jail, prefix));
            self.evicted += 1;
        }
        Count::Below(count)
    }

    /// Forgets the failures of a pair.
    pub fn forget(&mut self, jail: JailKey, prefix: Prefix) {
        if let Some(latest) = self.tracked.remove(&(jail, prefix)).and_then(|times| times.back().copied()) {
            self.by_latest.remove(&(latest, jail, prefix));
        }
    }

    /// Forgets pairs whose latest failure is before `horizon`, at most a thousand a call, so that no call is long.
    pub fn expire(&mut self, horizon: Timestamp) {
        for _ in 0..1_000 {
            match self.by_latest.first() {
                Some((latest, jail, prefix)) if *latest < horizon => {
                    let (jail, prefix) = (*jail, *prefix);
                    self.forget(jail, prefix);
                }
                _ => break,
            }
        }
    }

    /// Pairs tracked now.
    pub fn tracked(&self) -> usize {
        self.tracked.len()
    }

    /// Pairs that gave way to the bound so far.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Changes the bound; pairs over it give way as further ones come.
    pub fn set_tracked_max(&mut self, tracked_max: usize) {
        self.tracked_max = tracked_max.max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JAIL: JailKey = JailKey(0);

    fn prefix(last: u8) -> Prefix {
        Prefix::host([203, 0, 113, last].into())
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    #[test]
    fn only_failures_within_findtime_add_up() {
        let mut windows = Windows::new(10);
        let mut count = |secs| windows.count(JAIL, prefix(1), at(secs), 3, Duration::from_secs(10));
        assert_eq!(count(0), Count::Below(1));
        assert_eq!(count(5), Count::Below(2));
        assert_eq!(count(11), Count::Below(2));
        assert_eq!(count(12), Count::Reached(3));
        assert_eq!(count(13), Count::Below(1));
    }

    #[test]
    fn lines_out_of_order_count_once_each() {
        let mut windows = Windows::new(10);
        let mut count = |secs| windows.count(JAIL, prefix(1), at(secs), 3, Duration::from_secs(10));
        assert_eq!([count(100), count(95), count(99)], [Count::Below(1), Count::Below(2), Count::Reached(3)]);
    }

    #[test]
    fn the_bound_holds_and_the_silent_pair_gives_way() {
        let mut windows = Windows::new(2);
        for last in 1..=3 {
            windows.count(JAIL, prefix(last), at(last.into()), 3, Duration::from_secs(100));
        }
        assert_eq!((windows.tracked(), windows.evicted()), (2, 1));
        assert_eq!(windows.count(JAIL, prefix(3), at(4), 3, Duration::from_secs(100)), Count::Below(2));
        windows.expire(at(4));
        assert_eq!(windows.tracked(), 1);
    }
}
