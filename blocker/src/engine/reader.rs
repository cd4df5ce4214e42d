//! From a source's lines to the failures of its jails.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, sync::Arc};

use super::{Engine, Reading, SourceId, judge::Failure};
use crate::{
    detect::JailKey,
    filter::{Filter, Losses, SourceMatcher, Verdict, date::Clock},
    policy::Policy,
    time::Timestamp,
};

/// What reads a source: the filters of all its jails, and which of them are whose.
#[derive(Debug)]
pub(super) struct Reader {
    matcher: SourceMatcher,
    /// By filter: whether its failures ban nobody.
    observes: Vec<bool>,
    /// A jail's index, and the filters it tries in this order.
    jails: Vec<(usize, Vec<usize>)>,
}

impl Reader {
    /// Reads the source with this number; `former` read it before, and what it remembers of the log stays where a
    /// filter is still the same.
    pub(super) fn new(policy: &Policy, source: usize, former: Option<Self>) -> Self {
        let (mut filters, mut jails): (Vec<Arc<Filter>>, Vec<_>) = (Vec::new(), Vec::new());
        for (index, jail) in policy.jails.iter().enumerate() {
            if !jail.sources.iter().any(|id| usize::from(id.0) == source) {
                continue;
            }
            let mut own = Vec::new();
            for filter in &jail.filters {
                let known = filters.iter().position(|known| Arc::ptr_eq(known, filter));
                own.push(known.unwrap_or(filters.len()));
                if known.is_none() {
                    filters.push(Arc::clone(filter));
                }
            }
            jails.push((index, own));
        }
        let observes = filters.iter().map(|filter| filter.observe).collect();
        let mut matcher = SourceMatcher::new(filters);
        if let Some(mut former) = former {
            matcher.adopt(&mut former.matcher);
        }
        matcher.set_bounds(policy.limits.connections_max, policy.limits.joined_bytes_max);
        if let Some(zone) = &policy.zone {
            matcher.set_zone(zone.clone());
        }
        Self { matcher, observes, jails }
    }
}

impl Engine {
    /// Adds what the readers have counted to the jails' counters; new readers begin at 0.
    pub(super) fn keep_losses(&mut self) {
        for (key, losses) in self.losses() {
            self.count(key, |counters| counters.losses += losses);
        }
    }

    /// By jail, as the readers of now have counted it.
    pub(super) fn losses(&self) -> BTreeMap<JailKey, Losses> {
        let mut by_jail = BTreeMap::new();
        for Reader { matcher, jails, .. } in self.readers.iter().flatten() {
            for (jail, filters) in jails {
                let Some(state) = self.jails.get(*jail) else { continue };
                let losses: &mut Losses = by_jail.entry(state.key).or_default();
                for filter in filters {
                    *losses += matcher.losses(*filter);
                }
            }
        }
        by_jail
    }

    pub(super) fn lines(&mut self, now: Timestamp, source: SourceId, block: &[u8], reading: Reading) {
        // Taken out for the scan, since what it finds changes everything else.
        let place = usize::from(source.0);
        let Some(mut reader) = self.readers.get_mut(place).and_then(Option::take) else { return };
        let clock = Clock { now, utc_offset_secs: self.policy.utc_offset_secs };
        let Reader { matcher, observes, jails } = &mut reader;
        matcher.scan(block, clock, |line| {
            for (jail, filters) in &*jails {
                match filters.iter().find_map(|filter| Some((*filter, line.verdict(*filter)?))) {
                    None => {}
                    Some(_) if reading == Reading::Context => {}
                    Some((_, Verdict::NoAddress)) => {
                        self.count_batch(now);
                        self.no_address(*jail);
                    }
                    Some((filter, Verdict::Blame(address))) => {
                        // What the date says is worked out only where it counts.
                        let at = match reading {
                            Reading::CatchingUp => line.date(filter).map_or(now, |date| date.min(now)),
                            Reading::At(at) => at.min(now),
                            Reading::Live | Reading::Context => now,
                        };
                        let observed = observes.get(filter).copied().unwrap_or(false)
                            || self.policy.jails.get(*jail).is_some_and(|jail| jail.observe);
                        self.failure(now, Failure { jail: *jail, address, at, observed }, line.whole());
                    }
                }
            }
        });
        self.count_batch(now);
        if let Some(place) = self.readers.get_mut(place) {
            *place = Some(reader);
        }
    }
}
