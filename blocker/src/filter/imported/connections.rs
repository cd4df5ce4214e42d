//! What is remembered of connections whose lines share an `<F-MLFID>`, until a line says that it was a failure.
//!
//! A daemon says in one line who connects and in another that he failed. The lines between have an identity of the
//! connection in common, commonly host and process id.
#![forbid(unsafe_code)]

use std::{collections::VecDeque, time::Duration};

use super::failure::{Facts, IDENTITIES};
use crate::time::Timestamp;

/// Connections remembered at once; the one known longest gives way. As in fail2ban.
pub const CONNECTIONS_MAX: usize = 100;
/// How long a connection is remembered from its first line on. As in fail2ban.
pub const CONNECTION_SPAN: Duration = Duration::from_secs(300);

/// The connections of one log.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// In the order in which they were first seen.
    known: VecDeque<Connection>,
    /// Connections that gave way before their time.
    pub(super) gave_way: u64,
}

#[derive(Debug)]
struct Connection {
    id: String,
    since: Timestamp,
    facts: Facts,
}

impl Connections {
    /// Merges what a line of the connection `id` says, and how many lines matched, with what is known of it. `None`
    /// when that is no failure, or none yet.
    pub(super) fn merge(
        &mut self,
        id: String,
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
        let facts = match self.place(&id, now) {
            Some(at) => {
                let connection = &mut self.known[at];
                let facts = &mut connection.facts;
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
                    forgotten = self.known.remove(at).map(|connection| connection.facts)?;
                    &mut forgotten
                } else {
                    &mut self.known[at].facts
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

    /// Where the connection is, if it is known and not too old.
    fn place(&mut self, id: &str, now: Timestamp) -> Option<usize> {
        let at = self.known.iter().position(|connection| connection.id == id)?;
        if self.known[at].since <= now.saturating_sub(CONNECTION_SPAN) {
            self.known.remove(at);
            return None;
        }
        Some(at)
    }

    fn remember(&mut self, id: String, facts: Facts, now: Timestamp) -> &mut Connection {
        if self.known.len() >= CONNECTIONS_MAX {
            let oldest = now.saturating_sub(CONNECTION_SPAN);
            while let Some(first) = self.known.pop_front() {
                if first.since > oldest {
                    self.gave_way += 1;
                    break;
                }
            }
        }
        let at = self.known.len();
        self.known.push_back(Connection { id, since: now, facts });
        &mut self.known[at]
    }
}

fn identified(facts: &Facts) -> bool {
    facts.groups.contains_key("fid") || IDENTITIES.iter().any(|group| facts.groups.contains_key(*group))
}
