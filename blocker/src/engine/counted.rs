//! What was counted from the lines read so far, to be kept together with how far they were read.
//!
//! Whoever keeps both at one instant, and gives them back, goes on as if nothing had happened: lines behind that instant
//! are read again and counted again. What they led to in the meantime is in the ledger, which is ahead; so failures
//! that a recorded ban has answered, or that came while it was in force, are answered, and count no second time.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    Engine, Kept,
    judge::{Candidate, Cause},
};
use crate::{
    detect::{JailKey, Windows},
    ledger::{Ban, Origin},
    net::{Prefix, Scope},
    time::{Timestamp, Until},
};

/// What the pages of [`Counted`] need to be understood, and bans that were about to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountedHead {
    /// Whose windows these are, by the number on the pages.
    pub jails: Vec<String>,
    /// Bans that waited for an ignorecommand.
    pub owed: Vec<Owed>,
}

/// A ban that waits for an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owed {
    /// Whose.
    pub jail: String,
    /// What counts as one attacker.
    pub whole: Prefix,
    /// What is banned where a neighbour must be spared.
    pub narrow: Prefix,
    /// How many there were.
    pub failures: u32,
    /// Whether the failures were bans by other jails.
    pub on_ledger: bool,
}

/// What an engine has counted, as it stands.
#[derive(Clone, Copy, Debug)]
pub struct Counted<'a> {
    windows: &'a Windows,
    engine: &'a Engine,
}

impl Counted<'_> {
    /// Whether every page that is kept is to be dropped, and those of [`Self::changed_pages`] are all there are.
    pub fn all_changed(&self) -> bool {
        self.windows.all_changed()
    }

    /// All pages, in order.
    pub fn all_pages(&self) -> impl Iterator<Item = u32> {
        self.windows.all_pages()
    }

    /// The pages that changed, in order.
    pub fn changed_pages(&self) -> impl Iterator<Item = u32> {
        self.windows.changed_pages()
    }

    /// A page; `None` where it holds nothing.
    pub fn page(&self, page: u32) -> Option<Vec<u8>> {
        self.windows.page(page)
    }

    /// What goes with the pages.
    pub fn head(&self) -> CountedHead {
        let mut jails = vec![String::new(); self.engine.keys.len()];
        for (name, key) in &self.engine.keys {
            if let Some(jail) = jails.get_mut(key.0 as usize) {
                *jail = name.to_string();
            }
        }
        let owed = self.engine.asked.candidates().map(|candidate| Owed {
            jail: candidate.jail.to_string(),
            whole: candidate.whole,
            narrow: candidate.narrow,
            failures: candidate.failures,
            on_ledger: candidate.cause == Cause::Ledger,
        });
        CountedHead { jails, owed: owed.collect() }
    }
}

/// Failures that are not to be counted when their lines are read again.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// Up to when a jail's failures of a prefix led to a ban that is recorded.
    spent: BTreeMap<(JailKey, Prefix), Timestamp>,
    /// From when until when a prefix was banned that is not any more.
    served: BTreeMap<Prefix, Vec<(Scope, Timestamp, Timestamp)>>,
}

impl Answered {
    /// Bans that ended, whether the ledger knows it or not.
    pub(super) fn new(now: Timestamp, kept: &Kept) -> Self {
        let over = kept.bans.iter().filter_map(|ban| match ban.until {
            Until::At(end) if ban.until.is_over(now) => Some((ban.prefix, ban.scope.clone(), ban.since, end)),
            _ => None,
        });
        let mut answered = Self::default();
        for (prefix, scope, since, end) in over.chain(kept.served.iter().cloned()) {
            answered.served.entry(prefix).or_default().push((scope, since, end));
        }
        answered
    }

    /// Whether a failure of this time, of an address in `whole`, is, in a jail that bans as far as `scope`.
    pub(super) fn holds(
        &self,
        jail: JailKey,
        whole: Prefix,
        host: Prefix,
        scope: &Scope,
        at: Timestamp,
    ) -> bool {
        let served = |prefix| {
            let spans = self.served.get(&prefix);
            let covers = |(of, since, end): &(Scope, _, _)| *since <= at && at < *end && of.covers(scope);
            spans.is_some_and(|spans| spans.iter().any(covers))
        };
        (!self.spent.is_empty() && self.spent.get(&(jail, whole)).is_some_and(|since| at <= *since))
            || (!self.served.is_empty() && (served(whole) || served(host)))
    }
}

impl Engine {
    /// Whether anything was counted since [`Self::kept`] that a restart would not know.
    pub fn has_news(&self) -> bool {
        self.news
    }

    /// What is to be kept.
    pub fn counted(&self) -> Counted<'_> {
        Counted { windows: &self.windows, engine: self }
    }

    /// What [`Self::counted`] gave is kept now.
    pub fn kept(&mut self) {
        self.news = false;
        self.windows.kept();
    }

    /// Takes up what was counted, and returns the bans that waited. Jails that are gone are forgotten.
    pub(super) fn take_up(&mut self, now: Timestamp, head: CountedHead, pages: &[Vec<u8>]) -> Vec<Owed> {
        let by_name = |name: &String| self.keys.get(name.as_str()).copied();
        let keys: Vec<Option<JailKey>> = head.jails.iter().map(by_name).collect();
        for page in pages {
            // Whoever kept them saw that they are whole; one that is none holds nothing to lose.
            let _no_page = self.windows.restore(page, |key| *keys.get(key.0 as usize)?);
        }
        self.forget_silent(now);
        head.owed
    }

    /// Bans of an earlier life that were made after what is taken up was kept. Jails that count bans count them; the
    /// failures they were made for are spent. What those led to then, they did.
    pub(super) fn recount(&mut self, now: Timestamp, recent: &[Ban]) {
        for ban in recent {
            let Origin::Jail(by) = &ban.origin else { continue };
            let made_by = self.policy.jails.iter().position(|jail| jail.name == *by);
            if let Some(jail) = made_by {
                self.spend(jail, ban);
            }
            // As in the life before: bans made for bans are no further failures.
            if made_by.is_some_and(|jail| self.jails.get(jail).is_some_and(|state| state.on_ledger)) {
                continue;
            }
            for (rules, state) in self.policy.jails.iter().zip(&self.jails) {
                if state.on_ledger
                    && ban.since > now.saturating_sub(rules.findtime)
                    && state.ignore.covering(ban.prefix).is_none()
                {
                    self.windows.count(state.key, ban.prefix, ban.since, rules.maxretry, rules.findtime);
                }
            }
        }
        self.forget_answered(now);
    }

    fn spend(&mut self, jail: usize, ban: &Ban) {
        let (Some(rules), Some(state)) = (self.policy.jails.get(jail), self.jails.get(jail)) else { return };
        let address = ban.prefix.address();
        // Of a ban that was narrowed to spare a neighbour, the failures were those of the whole.
        let length = if address.is_ipv6() { rules.ipv6_prefix } else { ban.prefix.length() };
        let length = if state.on_ledger { ban.prefix.length() } else { length };
        let whole = Prefix::new(address, length).unwrap_or(ban.prefix);
        self.windows.forget(state.key, whole);
        self.answered.spent.insert((state.key, whole), ban.since);
    }

    /// Forgets what no line can ask for any more, since it would be too old to count.
    pub(super) fn forget_answered(&mut self, now: Timestamp) {
        let Answered { spent, served } = &mut self.answered;
        if spent.is_empty() && served.is_empty() {
            return;
        }
        let jails = self.policy.jails.iter().zip(&self.jails);
        let horizons: BTreeMap<JailKey, _> =
            jails.map(|(rules, state)| (state.key, now.saturating_sub(rules.findtime))).collect();
        let first = horizons.values().min().copied().unwrap_or(now);
        spent.retain(|(key, _), since| horizons.get(key).is_some_and(|horizon| *since > *horizon));
        served.retain(|_, spans| spans.iter().any(|(.., end)| *end > first));
    }

    /// Asks again about the bans that waited, those that were made in the meantime aside.
    pub(super) fn pay(&mut self, now: Timestamp, owed: Vec<Owed>) {
        for Owed { jail, whole, narrow, failures, on_ledger } in owed {
            let Some(key) = self.keys.get(jail.as_str()).copied() else { continue };
            if self.answered.spent.contains_key(&(key, whole)) || self.asked.waits(key, whole) {
                continue;
            }
            let cause = if on_ledger { Cause::Ledger } else { Cause::Lines };
            let (jail, address, matches) = (Arc::from(jail), narrow.address(), Vec::new());
            self.reached(now, Candidate { key, jail, address, whole, narrow, failures, matches, cause });
        }
    }
}
