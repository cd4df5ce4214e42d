//! Bans that wait for an ignorecommand's answer, and answers that are remembered.
//!
//! Both are bounded. A question has a deadline, which is kept here and not by whoever runs the command: without an
//! answer by then the ban is made.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use super::{AskId, judge::Candidate};
use crate::{detect::JailKey, net::Prefix, policy::IgnoreCache, time::Timestamp};

/// Bans that may wait at once; further ones are made without asking.
pub const ASKED_MAX: usize = 1_024;

/// Questions under way and answers given.
#[derive(Debug, Default)]
pub(super) struct Asked {
    next: u64,
    waiting: BTreeMap<AskId, (Timestamp, Candidate)>,
    deadlines: BTreeSet<(Timestamp, AskId)>,
    subjects: BTreeSet<(JailKey, Prefix)>,
    answers: BTreeMap<JailKey, Answers>,
}

/// One jail's remembered answers.
#[derive(Debug, Default)]
struct Answers {
    by_address: BTreeMap<IpAddr, (Timestamp, bool)>,
    by_time: BTreeSet<(Timestamp, IpAddr)>,
}

impl Asked {
    /// Lets a ban wait for an answer; gives it back when too many do.
    pub(super) fn wait(
        &mut self,
        candidate: Candidate,
        now: Timestamp,
        timeout: Duration,
    ) -> Result<AskId, Candidate> {
        if self.waiting.len() >= ASKED_MAX {
            return Err(candidate);
        }
        let (id, deadline) = (AskId(self.next), now.saturating_add(timeout));
        self.next += 1;
        self.subjects.insert((candidate.key, candidate.whole));
        self.deadlines.insert((deadline, id));
        self.waiting.insert(id, (deadline, candidate));
        Ok(id)
    }

    /// Whether a ban of this prefix by this jail waits.
    pub(super) fn waits(&self, jail: JailKey, prefix: Prefix) -> bool {
        !self.subjects.is_empty() && self.subjects.contains(&(jail, prefix))
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Those that wait, in the order they were put.
    pub(super) fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.waiting.values().map(|(_, candidate)| candidate)
    }

    /// Takes out the ban that waited for this answer.
    pub(super) fn answered(&mut self, id: AskId) -> Option<Candidate> {
        let (deadline, candidate) = self.waiting.remove(&id)?;
        self.deadlines.remove(&(deadline, id));
        self.subjects.remove(&(candidate.key, candidate.whole));
        Some(candidate)
    }

    /// Takes out a ban that has waited long enough.
    pub(super) fn overdue(&mut self, now: Timestamp) -> Option<Candidate> {
        let (deadline, id) = *self.deadlines.first()?;
        if deadline <= now { self.answered(id) } else { None }
    }

    /// When the next one has.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Remembers an answer as long as the cache's rules say, the oldest giving way to their bound.
    pub(super) fn remember(
        &mut self,
        jail: JailKey,
        address: IpAddr,
        ignore: bool,
        now: Timestamp,
        cache: IgnoreCache,
    ) {
        let answers = self.answers.entry(jail).or_default();
        answers.forget(address);
        answers.by_time.insert((now, address));
        answers.by_address.insert(address, (now, ignore));
        while answers.by_address.len() > cache.count_max
            && let Some((_, address)) = answers.by_time.first().copied()
        {
            answers.forget(address);
        }
    }

    /// The answer given about this address, if it is fresh.
    pub(super) fn remembered(
        &self,
        jail: JailKey,
        address: IpAddr,
        now: Timestamp,
        cache: IgnoreCache,
    ) -> Option<bool> {
        let (at, ignore) = self.answers.get(&jail)?.by_address.get(&address)?;
        (now.saturating_since(*at) < cache.time_max).then_some(*ignore)
    }

    /// Forgets the answers of every jail: the command may be another one now.
    pub(super) fn forget_answers(&mut self) {
        self.answers.clear();
    }
}

impl Answers {
    fn forget(&mut self, address: IpAddr) {
        if let Some((at, _)) = self.by_address.remove(&address) {
            self.by_time.remove(&(at, address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JAIL: JailKey = JailKey(0);
    const CACHE: IgnoreCache = IgnoreCache { count_max: 2, time_max: Duration::from_secs(10) };

    fn address(last: u8) -> IpAddr {
        [203, 0, 113, last].into()
    }

    #[test]
    fn answers_are_remembered_by_the_caches_rules() {
        let mut asked = Asked::default();
        let at = Timestamp::from_secs;
        for (last, ignore) in [(1, true), (2, false), (1, false), (3, true)] {
            asked.remember(JAIL, address(last), ignore, at(last.into()), CACHE);
        }
        let remembered = |last, secs| asked.remembered(JAIL, address(last), at(secs), CACHE);
        // The answer about .1 is the oldest, whatever came of it later.
        assert_eq!([remembered(1, 3), remembered(2, 3), remembered(3, 3)], [None, Some(false), Some(true)]);
        assert_eq!([remembered(2, 11), remembered(2, 12)], [Some(false), None]);
        assert_eq!(asked.remembered(JailKey(1), address(2), at(3), CACHE), None);
    }
}
