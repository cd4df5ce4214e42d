//! What is remembered of connections whose lines share an `<F-MLFID>`, until a line says that it was a failure.
//!
//! A daemon says in one line who connects and in another that he failed. The lines between have an identity of the
//! connection in common, commonly host and process id.
#![forbid(unsafe_code)]

use std::{
    collections::{
        BTreeMap,
        btree_map::{Entry, OccupiedEntry},
    },
    sync::Arc,
    time::Duration,
};

use super::failure::{Facts, IDENTITIES};
use crate::time::Timestamp;

/// Connections remembered at once where nobody says; the one known longest gives way. As in fail2ban.
pub const CONNECTIONS_MAX: usize = 100;
/// How long a connection is remembered from its first line on. As in fail2ban.
pub const CONNECTION_SPAN: Duration = Duration::from_secs(300);

/// The connections of one log.
#[derive(Debug)]
pub(super) struct Connections {
    /// By number, in the order in which they were first seen.
    known: BTreeMap<u64, Connection>,
    numbers: BTreeMap<Arc<str>, u64>,
    next: u64,
    max: usize,
    /// Connections that gave way before their time.
    pub(super) gave_way: u64,
}

#[derive(Debug)]
struct Connection {
    id: Arc<str>,
    since: Timestamp,
    facts: Facts,
}

impl Default for Connections {
    fn default() -> Self {
        Self { known: BTreeMap::new(), numbers: BTreeMap::new(), next: 0, max: CONNECTIONS_MAX, gave_way: 0 }
    }
}

impl Connections {
    /// Changes the bound; those over it give way as further ones come.
    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max.max(1);
    }

    /// Merges what a line of the connection `id` says, and how many lines matched, with what is known of it. `None`
    /// when that is no failure, or none yet.
    pub(super) fn merge(
        &mut self,
        id: &str,
        mut fresh: Facts,
        matched: u32,
        now: Timestamp,
    ) -> Option<Facts> {
        let mut gained = fresh.says("mlfgained");
        let mut nofail = gained || fresh.says("nofail");
        if gained
            && !fresh.says("nofail")
            && let Some(text) = fresh.groups.get("mlfgained").cloned()
        {
            fresh.groups.insert("nofail".into(), text);
        }
        let forget = fresh.take("mlfforget");
        let mut forgotten;
        let facts = match self.find(id, now) {
            Some(mut connection) => {
                let facts = &mut connection.get_mut().facts;
                facts.note_user(fresh.groups.get("user"));
                // Whether it is a failure is only for the last line to say.
                let was_nofail = facts.take("nofail") | facts.take("mlfgained");
                if gained {
                    facts.pending = false;
                }
                if !was_nofail && !facts.pending {
                    facts.matches = 0;
                }
                facts.update(fresh);
                if forget {
                    forgotten = connection.remove().facts;
                    self.numbers.remove(id);
                    &mut forgotten
                } else {
                    &mut connection.into_mut().facts
                }
            }
            None if forget => {
                forgotten = fresh;
                &mut forgotten
            }
            None => {
                let user = fresh.groups.get("user").cloned();
                fresh.note_user(user.as_ref());
                &mut self.remember(id, fresh, now).facts
            }
        };
        // Several users tried in one connection: that one of them succeeded in the end excuses nothing.
        if std::mem::take(&mut facts.pending) || facts.users.len() > 1 {
            facts.take("nofail");
            facts.take("mlfgained");
            (nofail, gained) = (false, false);
        }
        if !nofail {
            let before = std::mem::take(&mut facts.nofail_matches) + facts.matches;
            facts.matches = before + if gained { 0 } else { matched };
        } else if !forget {
            facts.nofail_matches += matched;
        }
        if facts.says("nofail") {
            return None;
        }
        if !identified(facts) {
            facts.pending = true;
            return None;
        }
        Some(facts.clone())
    }

    /// The connection, if it is known and not too old.
    fn find(&mut self, id: &str, now: Timestamp) -> Option<OccupiedEntry<'_, u64, Connection>> {
        let number = *self.numbers.get(id)?;
        let Entry::Occupied(connection) = self.known.entry(number) else { return None };
        if connection.get().since <= now.saturating_sub(CONNECTION_SPAN) {
            connection.remove();
            self.numbers.remove(id);
            return None;
        }
        Some(connection)
    }

    fn remember(&mut self, id: &str, facts: Facts, now: Timestamp) -> &mut Connection {
        let oldest = now.saturating_sub(CONNECTION_SPAN);
        while self.known.len() >= self.max
            && let Some((_, first)) = self.known.pop_first()
        {
            self.numbers.remove(&first.id);
            self.gave_way += u64::from(first.since > oldest);
        }
        let (id, number): (Arc<str>, u64) = (id.into(), self.next);
        self.next += 1;
        self.numbers.insert(Arc::clone(&id), number);
        self.known.entry(number).or_insert(Connection { id, since: now, facts })
    }
}

fn identified(facts: &Facts) -> bool {
    facts.groups.contains_key("fid") || IDENTITIES.iter().any(|group| facts.groups.contains_key(*group))
}
