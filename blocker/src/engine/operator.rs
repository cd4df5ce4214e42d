//! What operators ask of the engine, and why it says no.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use super::{
    BAN_LENGTH_MIN_V4, BAN_LENGTH_MIN_V6, Change, Command, Ending, Engine, Event, Full, REASON_BYTES_MAX,
    Request, Response,
};
use crate::{
    ledger::{Ban, Ledger, Origin},
    net::{Prefix, SCOPES_MAX, Scope},
    time::{BanTime, Timestamp},
};

impl Engine {
    pub(super) fn operator(&mut self, now: Timestamp, request: Request) -> Response {
        match request {
            Request::Ban { prefix, scope, bantime, reason } => self.ban(now, prefix, scope, bantime, reason),
            Request::Unban { prefix, scope } => self.unban(prefix, scope.as_ref()),
            Request::Allow { prefix } => self.allow(prefix),
            Request::Disallow { prefix } => self.disallow(prefix),
            Request::Flush => {
                let bans = std::mem::replace(&mut self.ledger, Ledger::new(self.policy.limits.bans_max));
                self.commands.push_back(Command::Note(Event::Flushed { bans: bans.len() }));
                self.refused.clear();
                self.change(Change::Flush);
                bans.iter().for_each(|ban| self.act_unban(ban));
                self.commands.extend(self.offenders.forgive_all().map(Command::Remember));
                Response::Flushed { bans: bans.len() }
            }
        }
    }

    fn ban(
        &mut self,
        now: Timestamp,
        prefix: Prefix,
        scope: Scope,
        bantime: BanTime,
        mut reason: String,
    ) -> Response {
        if let Some(refusal) = self.refusal(prefix) {
            return Response::Refused { reason: refusal };
        }
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        let ban = Ban {
            prefix,
            scope,
            origin: Origin::Operator,
            since: now,
            until: bantime.from(now),
            failures: 0,
            count: 0,
            reason,
        };
        match self.open(&ban, &[]) {
            Ok(()) => Response::Banned(ban),
            Err(Full::Bans) => {
                let reason = format!(
                    "the ban table holds {} manual bans and is full; lift one with `blocker unban`, or raise `[enforce] max_bans`",
                    self.ledger.len()
                );
                Response::Refused { reason }
            }
            Err(Full::Scopes) => {
                let reason = format!(
                    "bans are on {SCOPES_MAX} different lists of ports already, and there can be no more; ban on all ports, or on a list that `blocker bans` shows"
                );
                Response::Refused { reason }
            }
        }
    }

    /// Why an operator's ban is refused, and what to do instead.
    fn refusal(&self, prefix: Prefix) -> Option<String> {
        let (length_min, family) = if prefix.address().is_ipv4() {
            (BAN_LENGTH_MIN_V4, "IPv4")
        } else {
            (BAN_LENGTH_MIN_V6, "IPv6")
        };
        if prefix.length() < length_min {
            return Some(format!(
                "{prefix} is wider than /{length_min}, the widest {family} ban; ban narrower prefixes one by one"
            ));
        }
        if let Some(why) = prefix.unbannable() {
            return Some(format!("{prefix} holds {why} addresses, which are never dropped"));
        }
        if let Some(protected) = self.protected.overlapping(prefix) {
            return Some(format!(
                "{prefix} covers {protected}, which is this host's own address, its gateway or its resolver; ban a narrower prefix beside it"
            ));
        }
        let allowed = self.allow.covering(prefix)?;
        let how = if self.operator_allow.contains(&allowed) {
            format!("take it off with `blocker disallow {allowed}` first")
        } else {
            "take it off `allowlist` in the configuration and `blocker reload` first".to_owned()
        };
        Some(format!("{prefix} lies in the allowlisted {allowed}; {how}"))
    }

    fn unban(&mut self, prefix: Prefix, scope: Option<&Scope>) -> Response {
        let narrowest = |covered: Prefix| match scope {
            Some(scope) => self.ledger.covering(covered, scope).filter(|ban| ban.scope == *scope),
            None => self.ledger.covering_in_part(covered),
        };
        match narrowest(prefix).map(|ban| ban.prefix) {
            // A /64 may have been banned for one address of it: its owner names the address.
            Some(banned) if banned == prefix || prefix.is_host() => {
                self.pardon(banned, scope);
                Response::Unbanned { prefixes: vec![banned] }
            }
            Some(wider) => {
                let reason = format!(
                    "{prefix} is not banned by itself but lies in the banned {wider}; unban that, or `blocker allow {prefix}`"
                );
                Response::Refused { reason }
            }
            None => {
                let meant = |ban: &&Ban| scope.is_none_or(|scope| ban.scope == *scope);
                let inside: BTreeSet<Prefix> =
                    self.ledger.inside(prefix).filter(meant).map(|ban| ban.prefix).collect();
                if inside.is_empty() {
                    let on = scope.map_or_else(String::new, |scope| format!(" on {scope}"));
                    return Response::Refused {
                        reason: format!("{prefix} is not banned{on}; `blocker bans` lists what is"),
                    };
                }
                for banned in &inside {
                    self.pardon(*banned, scope);
                }
                Response::Unbanned { prefixes: inside.into_iter().collect() }
            }
        }
    }

    /// Lifts the bans of a prefix, and forgets that they and earlier ones were: whom an operator lets go starts afresh.
    fn pardon(&mut self, prefix: Prefix, scope: Option<&Scope>) {
        let scopes: Vec<Scope> = match scope {
            Some(scope) => vec![scope.clone()],
            None => self.ledger.of(prefix).map(|ban| ban.scope.clone()).collect(),
        };
        for scope in &scopes {
            self.close(prefix, scope, Ending::Operator);
        }
        let forgotten = self.offenders.forgive(prefix);
        self.commands.extend(forgotten.into_iter().map(Command::Remember));
    }

    fn allow(&mut self, prefix: Prefix) -> Response {
        self.operator_allow.insert(prefix);
        self.allow.insert(prefix);
        self.change(Change::Allow { prefix });
        Response::Allowed { prefix, lifted: self.lift_allowed() }
    }

    fn disallow(&mut self, prefix: Prefix) -> Response {
        if !self.operator_allow.remove(&prefix) {
            let reason = if self.policy.allow.contains(&prefix) {
                format!(
                    "{prefix} is on the configuration's allowlist; take it off there and `blocker reload`"
                )
            } else {
                format!(
                    "{prefix} was not put on the allowlist by `blocker allow`; `blocker status` lists what was"
                )
            };
            return Response::Refused { reason };
        }
        self.commands.push_back(Command::Record(Change::Disallow { prefix }));
        if !self.policy.allow.contains(&prefix) {
            self.allow.remove(prefix);
            if !self.protected.contains(prefix) {
                self.commands.push_back(Command::Enforce(Change::Disallow { prefix }));
            }
        }
        Response::Disallowed { prefix }
    }

    /// The prefixes operators put on the allowlist.
    pub fn operator_allow(&self) -> Vec<Prefix> {
        self.operator_allow.iter().copied().collect()
    }
}
