//! From a failure to a ban: who is counted, who is spared, whom to ask, for how long.
#![forbid(unsafe_code)]

use std::{net::IpAddr, sync::Arc};

use super::{Ask, Change, Command, Engine, Event};
use crate::{
    detect::{self, Count, JailKey},
    ledger::{Ban, Opened, Origin},
    net::Prefix,
    policy::{Escalation, IgnoreCommand},
    time::Timestamp,
};

/// Failures that are counted together.
pub(super) const BATCH_MAX: usize = 64;

/// A line that was blamed on an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    /// The jail's index.
    pub(super) jail: usize,
    /// Whom it names.
    pub(super) address: IpAddr,
    /// When it counts.
    pub(super) at: Timestamp,
    /// Whether it can ban nobody.
    pub(super) observed: bool,
}

/// Failures that are about to be counted, in order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    failures: Vec<(Failure, Prefix)>,
    /// What counts as one attacker: those of the same place in `failures`.
    pairs: Vec<detect::Sought>,
}

/// Enough failures for a ban.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) key: JailKey,
    pub(super) jail: Arc<str>,
    /// Named by the last failure; of a ban in the ledger its first address.
    pub(super) address: IpAddr,
    /// What counts as one attacker.
    pub(super) whole: Prefix,
    /// What is banned where a neighbour in `whole` must be spared.
    pub(super) narrow: Prefix,
    pub(super) failures: u32,
    pub(super) matches: Vec<String>,
    pub(super) cause: Cause,
}

/// Why a ban is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// There are as many bans as there may be, all of them manual.
    Bans,
    /// Bans have as many different scopes as they may.
    Scopes,
}

/// What a candidate's failures were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Lines.
    Lines,
    /// Lines that ban nobody.
    Observed,
    /// Bans by other jails; the prefix may be banned at this moment.
    Ledger,
}

impl Engine {
    /// Takes a failure: counts it, or puts it to those that [`Self::count_batch`] counts together.
    pub(super) fn failure(&mut self, now: Timestamp, failure: Failure, line: &str) {
        let (Some(rules), Some(state)) = (self.policy.jails.get(failure.jail), self.jails.get(failure.jail))
        else {
            return;
        };
        let host = Prefix::host(failure.address);
        let length = if failure.address.is_ipv6() { rules.ipv6_prefix } else { host.length() };
        let whole = Prefix::new(failure.address, length).unwrap_or(host);
        let window = if failure.observed { state.observed_key } else { state.key };
        let pair = self.windows.seek(window, whole);
        if state.wants_matches {
            self.count_batch(now);
            return self.judge(now, failure, whole, pair, line);
        }
        self.batch.failures.push((failure, whole));
        self.batch.pairs.push(pair);
        if self.batch.pairs.len() >= BATCH_MAX {
            self.count_batch(now);
        }
    }

    /// Counts the failures that wait for it.
    pub(super) fn count_batch(&mut self, now: Timestamp) {
        let Batch { mut failures, mut pairs } = std::mem::take(&mut self.batch);
        self.windows.find_all(&mut pairs);
        for ((failure, whole), pair) in failures.drain(..).zip(pairs.drain(..)) {
            self.judge(now, failure, whole, pair, "");
        }
        self.batch = Batch { failures, pairs };
    }

    fn judge(&mut self, now: Timestamp, failure: Failure, whole: Prefix, pair: detect::Sought, line: &str) {
        let Failure { jail, address, at, observed } = failure;
        let (Some(rules), Some(state)) = (self.policy.jails.get(jail), self.jails.get(jail)) else { return };
        let (maxretry, findtime) = (rules.maxretry, rules.findtime);
        let host = Prefix::host(address);
        if host.unbannable().is_some() {
            return self.no_address(jail);
        }
        if at <= now.saturating_sub(findtime) {
            // Read late, and too old to count by its log time.
            return;
        }
        let key = state.key;
        if self.is_passed(jail, host) {
            let name = Arc::clone(&rules.name);
            self.count(key, |counters| counters.allowlisted += 1);
            return self.commands.push_back(Command::Note(Event::Allowlisted { jail: name, address }));
        }
        self.news = true;
        let (window, ledger) =
            if observed { (state.observed_key, &self.imagined) } else { (key, &self.ledger) };
        let live = |prefix| ledger.covering(prefix, &rules.scope).is_some_and(|ban| !ban.until.is_over(now));
        if live(whole)
            || (whole != host && live(host))
            || self.asked.waits(key, whole)
            || self.answered.holds(window, whole, host, &rules.scope, at)
        {
            return self.count(key, |counters| counters.already_banned += 1);
        }
        let name = Arc::clone(&rules.name);
        let lines_kept = if state.wants_matches { rules.maxmatches } else { 0 };
        let count = self.weigh(jail, whole, pair, at);
        self.count(key, |counters| counters.failures += 1);
        if lines_kept > 0 && !observed {
            let lines_kept = usize::try_from(lines_kept).unwrap_or(usize::MAX);
            self.matches.push(key, whole, at, line, lines_kept);
        }
        if count < maxretry {
            return self.commands.push_failure(name, address, count, maxretry);
        }
        self.commands.push_failure(Arc::clone(&name), address, count, maxretry);
        let matches = if lines_kept > 0 { self.matches.take(key, whole) } else { Vec::new() };
        let cause = if observed { Cause::Observed } else { Cause::Lines };
        self.reached(
            now,
            Candidate { key, jail: name, address, whole, narrow: host, failures: count, matches, cause },
        );
    }

    /// Counts a failure, of a known offender several times, and says how many there are now.
    fn weigh(&mut self, jail: usize, prefix: Prefix, pair: detect::Sought, at: Timestamp) -> u32 {
        let Some(rules) = self.policy.jails.get(jail) else { return 0 };
        let weight = match &rules.escalation {
            Some(_) => Escalation::weight(self.offenders.bans(prefix, Some(&rules.name)), rules.maxretry),
            None => 1,
        };
        let mut counted = Count::Below(0);
        for _ in 0..weight {
            counted = self.windows.count_sought(pair, at, rules.maxretry, rules.findtime);
            if matches!(counted, Count::Reached(_)) {
                break;
            }
        }
        let (Count::Below(count) | Count::Reached(count)) = counted;
        count
    }

    /// Another jail's ban, to the jails that count those.
    pub(super) fn feed_ledger_jails(&mut self, now: Timestamp, ban: &Ban) {
        let Origin::Jail(by) = &ban.origin else { return };
        // Bans made for bans are no further failures, or two such jails would answer each other for ever.
        if self.jails.iter().zip(&self.policy.jails).any(|(state, jail)| state.on_ledger && jail.name == *by)
        {
            return;
        }
        for index in 0..self.jails.len() {
            if self.jails.get(index).is_some_and(|state| state.on_ledger) {
                self.ledger_failure(now, index, ban);
            }
        }
    }

    fn ledger_failure(&mut self, now: Timestamp, jail: usize, ban: &Ban) {
        let (Some(rules), Some(state)) = (self.policy.jails.get(jail), self.jails.get(jail)) else { return };
        self.news = true;
        let (name, maxretry, key) = (Arc::clone(&rules.name), rules.maxretry, state.key);
        let (prefix, address) = (ban.prefix, ban.prefix.address());
        if state.ignore.covering(prefix).is_some() {
            return self.count(key, |counters| counters.allowlisted += 1);
        }
        let (window, cause) =
            if rules.observe { (state.observed_key, Cause::Observed) } else { (key, Cause::Ledger) };
        let count = self.weigh(jail, prefix, self.windows.seek(window, prefix), now);
        self.count(key, |counters| counters.failures += 1);
        let event = Event::Failure { jail: Arc::clone(&name), address, count, maxretry };
        self.commands.push_back(Command::Note(event));
        if count >= maxretry && !self.asked.waits(key, prefix) {
            let (whole, narrow, matches) = (prefix, prefix, Vec::new());
            self.reached(
                now,
                Candidate { key, jail: name, address, whole, narrow, failures: count, matches, cause },
            );
        }
    }

    /// Whether failures of this address do not count in this jail.
    fn is_passed(&self, jail: usize, host: Prefix) -> bool {
        let (Some(rules), Some(state)) = (self.policy.jails.get(jail), self.jails.get(jail)) else {
            return true;
        };
        self.allow.covering(host).is_some()
            || (rules.ignoreself && self.protected.covering(host).is_some())
            || state.ignore.covering(host).is_some()
    }

    /// The threshold is reached: asks first, where the jail has somebody to ask.
    pub(super) fn reached(&mut self, now: Timestamp, candidate: Candidate) {
        let jail = self.policy.jails.iter().find(|jail| jail.name == candidate.jail);
        let command = jail.and_then(|jail| jail.ignore_command.clone());
        let Some(command) = command.filter(|_| candidate.cause != Cause::Observed) else {
            return self.conclude(now, candidate);
        };
        let known = command
            .cache
            .and_then(|cache| self.asked.remembered(candidate.key, candidate.address, now, cache));
        match known {
            Some(true) => self.ignored(&candidate),
            Some(false) => self.conclude(now, candidate),
            None => self.ask(now, candidate, command),
        }
    }

    fn ask(&mut self, now: Timestamp, candidate: Candidate, command: Arc<IgnoreCommand>) {
        let (jail, address, failures) = (Arc::clone(&candidate.jail), candidate.address, candidate.failures);
        match self.asked.wait(candidate, now, command.timeout) {
            Ok(id) => {
                self.commands.push_back(Command::Ask(Ask { id, jail, address, failures, command }));
            }
            Err(candidate) => self.unanswered(now, candidate),
        }
    }

    /// An ignorecommand has said whether to spare an address, or failed to.
    pub(super) fn answer(&mut self, now: Timestamp, id: super::AskId, ignore: Option<bool>) {
        let Some(candidate) = self.asked.answered(id) else { return };
        self.news = true;
        let jail = self.policy.jails.iter().find(|jail| jail.name == candidate.jail);
        let cache = jail.and_then(|jail| jail.ignore_command.as_ref()).and_then(|command| command.cache);
        if let (Some(ignore), Some(cache)) = (ignore, cache) {
            self.asked.remember(candidate.key, candidate.address, ignore, now, cache);
        }
        match ignore {
            Some(true) => self.ignored(&candidate),
            Some(false) => self.conclude(now, candidate),
            None => self.unanswered(now, candidate),
        }
    }

    fn ignored(&mut self, candidate: &Candidate) {
        self.count(candidate.key, |counters| counters.ignored += 1);
        let (jail, address) = (Arc::clone(&candidate.jail), candidate.address);
        self.commands.push_back(Command::Note(Event::Ignored { jail, address }));
    }

    /// An attacker must not be spared for having slowed the command down.
    pub(super) fn unanswered(&mut self, now: Timestamp, candidate: Candidate) {
        self.news = true;
        self.count(candidate.key, |counters| counters.unanswered += 1);
        let (jail, address) = (Arc::clone(&candidate.jail), candidate.address);
        self.commands.push_back(Command::Note(Event::Unanswered { jail, address }));
        self.conclude(now, candidate);
    }

    /// Makes the ban, unless what has changed since its failures forbids it.
    fn conclude(&mut self, now: Timestamp, candidate: Candidate) {
        let Candidate { key, jail: name, whole, narrow, failures, matches, cause, .. } = candidate;
        let Some(index) = self.policy.jails.iter().position(|jail| jail.name == name) else { return };
        if self.is_passed(index, narrow) {
            return self.count(key, |counters| counters.allowlisted += 1);
        }
        // A neighbour in the same prefix may be one that must never be dropped: then only the attacker is.
        let spared = |prefix| [&self.allow, &self.protected].iter().find_map(|set| set.overlapping(prefix));
        let (prefix, in_whole) = match spared(whole) {
            None => (whole, None),
            Some(allowed) => (narrow, Some(allowed)),
        };
        let in_narrow = in_whole.and_then(|_| spared(narrow));
        if let Some(allowed) = in_whole {
            self.count(key, |counters| counters.spared += 1);
            self.commands.push_back(Command::Note(Event::Spared { prefix: whole, allowed }));
        }
        if in_narrow.is_some() {
            return;
        }
        let Some(rules) = self.policy.jails.get(index) else { return };
        let count = self.offenders.bans(prefix, Some(&name)).saturating_add(1);
        let bantime = match &rules.escalation {
            None => rules.bantime,
            Some(escalation) => {
                let jail = (!escalation.overalljails).then_some(&name);
                let earlier = self.offenders.bans(prefix, jail);
                escalation.ban_time(rules.bantime, earlier, self.dice.roll())
            }
        };
        let until = bantime.from(now);
        let ban = Ban {
            prefix,
            scope: rules.scope.clone(),
            origin: Origin::Jail(name),
            since: now,
            until,
            failures,
            count,
            reason: String::new(),
        };
        if cause == Cause::Observed {
            self.count(key, |counters| counters.would_ban += 1);
            if let Opened::Yes { gave_way: Some(Ban { origin: Origin::Jail(jail), .. }) } =
                self.imagined.open(ban.clone())
                && let Some(key) = self.keys.get(&jail).copied()
            {
                self.count(key, |counters| counters.imagined_lost += 1);
            }
            return self.commands.push_back(Command::Note(Event::WouldBan(ban)));
        }
        if let Some(live) = self.ledger.covering(prefix, &ban.scope).filter(|live| !live.until.is_over(now)) {
            let gives_way = cause == Cause::Ledger && live.origin != Origin::Operator && live.until < until;
            if !gives_way {
                return self.count(key, |counters| counters.already_banned += 1);
            }
        }
        self.count(key, |counters| counters.bans += 1);
        // That it was not made is counted, and told to people.
        let _full = self.open(&ban, &matches);
    }

    /// Opens a ban in the ledger and queues what follows.
    pub(super) fn open(&mut self, ban: &Ban, matches: &[String]) -> Result<(), Full> {
        let replaced = self.ledger.get(ban.prefix, &ban.scope).cloned();
        match self.ledger.open(ban.clone()) {
            Opened::Full => {
                self.table_full += 1;
                self.commands.push_back(Command::Note(Event::TableFull { prefix: ban.prefix }));
                return Err(Full::Bans);
            }
            Opened::ScopesFull => {
                self.scopes_full += 1;
                let (prefix, scope) = (ban.prefix, ban.scope.clone());
                self.commands.push_back(Command::Note(Event::ScopesFull { prefix, scope }));
                return Err(Full::Scopes);
            }
            Opened::Yes { gave_way: Some(lost) } => self.gave_way(&lost),
            Opened::Yes { gave_way: None } => {}
        }
        if let Origin::Jail(jail) = &ban.origin {
            let remembered = self.offenders.add(ban, jail);
            self.commands.extend(remembered.into_iter().map(Command::Remember));
        }
        self.change(Change::Ban(ban.clone()));
        self.commands.push_back(Command::Note(Event::Banned(ban.clone())));
        self.act_ban(ban, matches, false);
        if let Some(replaced) = replaced {
            self.act_unban(&replaced);
        }
        self.feed_ledger_jails(ban.since, ban);
        Ok(())
    }

    /// An automatic ban has left the ledger, to keep to the bound.
    pub(super) fn gave_way(&mut self, lost: &Ban) {
        self.gave_way += 1;
        self.change(Change::Unban { prefix: lost.prefix, scope: lost.scope.clone() });
        self.commands.push_back(Command::Note(Event::GaveWay { prefix: lost.prefix }));
        self.act_unban(lost);
    }

    pub(super) fn no_address(&mut self, jail: usize) {
        let (Some(rules), Some(state)) = (self.policy.jails.get(jail), self.jails.get(jail)) else { return };
        let (key, name) = (state.key, Arc::clone(&rules.name));
        self.count(key, |counters| counters.no_address += 1);
        self.commands.push_back(Command::Note(Event::NoAddress { jail: name }));
    }
}
