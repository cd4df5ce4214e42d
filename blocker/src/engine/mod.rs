//! The pure state machine: inputs in, commands out, time as an argument.
//!
//! It sees lines, requests and the time, and says what is to be recorded, enforced, answered and told. It knows no
//! clock, no file and no kernel; the same inputs in the same order give the same commands.
//!
//! Held here, and again by the enforcer and the kernel: no allowlisted or protected address is in a ban, and no wider
//! ban covers a protected one.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use crate::{
    allowlist::PrefixSet,
    detect::{Count, JailKey, Windows},
    filter::{Filter, SourceMatcher, Verdict, date::Clock},
    ledger::{Ban, Ledger, Opened, Origin},
    net::Prefix,
    policy::Policy,
    time::{BanTime, Timestamp, Until},
};

mod message;

pub use message::{Change, Command, Ending, Event, Input, Reading, Request, RequestId, Response, SourceId};

/// The widest prefix an operator may ban: wider ones hold too many strangers to be one attacker.
pub const BAN_LENGTH_MIN_V4: u8 = 8;
/// As [`BAN_LENGTH_MIN_V4`], for IPv6: the smallest allocation of a registry to a provider is a /32 (RFC 7020's
/// practice), so a /16 spans thousands of providers.
pub const BAN_LENGTH_MIN_V6: u8 = 16;
/// Ends that differ by no more than this are the same: kernel clocks are read back through the wall clock.
pub const END_TOLERANCE: Duration = Duration::from_secs(1);
/// The longest reason an operator may give, in bytes.
pub const REASON_BYTES_MAX: usize = 256;

/// What happened in a jail since the agent started, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JailCounters {
    /// Lines blamed on an address and counted.
    pub failures: u64,
    /// Failures from allowlisted addresses, not counted.
    pub allowlisted: u64,
    /// Failure lines without a usable address.
    pub no_address: u64,
    /// Failures of addresses that were banned already.
    pub already_banned: u64,
    /// Bans made.
    pub bans: u64,
    /// Bans not made, to spare a protected address.
    pub spared: u64,
}

/// The engine's state, for `status`, metrics and persistence.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// By jail, in the policy's order.
    pub jails: Vec<(Arc<str>, JailCounters)>,
    /// Live bans, by prefix.
    pub bans: Vec<Ban>,
    /// (jail, prefix) pairs whose failures are tracked.
    pub tracked: usize,
    /// Pairs that gave way to the bound on them.
    pub evicted: u64,
    /// Whether so many pairs are tracked that the first failure of a further one is noted and not counted.
    pub under_pressure: bool,
    /// First failures that were noted and not counted.
    pub turned_away: u64,
    /// Automatic bans that gave way to the bound on bans.
    pub gave_way: u64,
    /// Bans not made because the ledger was full of manual ones.
    pub table_full: u64,
    /// Prefixes the kernel refused when last asked.
    pub refused: Vec<Prefix>,
}

/// Decides.
#[derive(Debug)]
pub struct Engine {
    policy: Policy,
    jails: Vec<JailState>,
    /// By source; empty only while its block is scanned.
    readers: Vec<Option<Reader>>,
    /// Configured and operators' allowlist together; what the kernel passes.
    allow: PrefixSet,
    operator_allow: BTreeSet<Prefix>,
    protected: PrefixSet,
    windows: Windows,
    ledger: Ledger,
    keys: BTreeMap<Arc<str>, JailKey>,
    counters: BTreeMap<JailKey, JailCounters>,
    commands: VecDeque<Command>,
    refused: BTreeSet<Prefix>,
    gave_way: u64,
    table_full: u64,
}

/// What is derived from a jail's policy once.
#[derive(Debug)]
struct JailState {
    key: JailKey,
    ignore: PrefixSet,
}

/// What reads a source: the filters of all its jails, and which of them are whose.
#[derive(Debug)]
struct Reader {
    matcher: SourceMatcher,
    /// A jail's index, and the filters it tries in this order.
    jails: Vec<(usize, Vec<usize>)>,
}

impl Reader {
    fn new(policy: &Policy, source: usize) -> Self {
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
        Self { matcher: SourceMatcher::new(filters), jails }
    }
}

impl Engine {
    /// An engine that holds the stored bans and operators' allowlist. Bans that are over, or lie in the allowlist of
    /// this policy, are closed with a record of it.
    pub fn new(now: Timestamp, policy: Policy, bans: Vec<Ban>, operator_allow: Vec<Prefix>) -> Self {
        let mut engine = Self {
            jails: Vec::new(),
            readers: Vec::new(),
            allow: PrefixSet::default(),
            operator_allow: operator_allow.into_iter().collect(),
            protected: PrefixSet::default(),
            windows: Windows::new(policy.limits.tracked_max, policy.seed),
            ledger: Ledger::new(policy.limits.bans_max),
            keys: BTreeMap::new(),
            counters: BTreeMap::new(),
            commands: VecDeque::new(),
            refused: BTreeSet::new(),
            gave_way: 0,
            table_full: 0,
            policy,
        };
        for ban in bans {
            if let Opened::Yes { gave_way: Some(lost) } = engine.ledger.open(ban) {
                engine.gave_way += 1;
                engine.commands.push_back(Command::Note(Event::GaveWay { prefix: lost.prefix }));
            }
        }
        engine.derive();
        engine.lift_allowed();
        engine.expire(now);
        engine
    }

    /// Takes one input; what comes of it is in [`Self::next_command`].
    pub fn handle(&mut self, now: Timestamp, input: Input<'_>) {
        match input {
            Input::Lines { source, block, reading } => self.lines(now, source, block, reading),
            Input::Operator { id, request } => {
                let response = self.operator(now, request);
                self.commands.push_back(Command::Reply(id, response));
            }
            Input::Applied { prefix, ok: true } => {
                self.refused.remove(&prefix);
            }
            Input::Applied { prefix, ok: false } => {
                self.refused.insert(prefix);
            }
            Input::Tick => {
                self.expire(now);
                self.forget_silent(now);
            }
        }
    }

    /// The next thing to do, in order.
    pub fn next_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When a [`Input::Tick`] is due, if nothing else happens.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        self.ledger.next_end()
    }

    /// Takes a new policy; windows and bans stay. Bans that now lie in the allowlist are lifted.
    pub fn set_policy(&mut self, now: Timestamp, policy: Policy) {
        let before: BTreeSet<Prefix> = self.allowed().into_iter().collect();
        self.policy = policy;
        self.derive();
        let after: BTreeSet<Prefix> = self.allowed().into_iter().collect();
        self.lift_allowed();
        for prefix in before.difference(&after) {
            self.commands.push_back(Command::Enforce(Change::Disallow { prefix: *prefix }));
        }
        for prefix in after.difference(&before) {
            self.commands.push_back(Command::Enforce(Change::Allow { prefix: *prefix }));
        }
        self.expire(now);
    }

    /// What `status` shows.
    pub fn snapshot(&self) -> Snapshot {
        let jails = self.policy.jails.iter().zip(&self.jails);
        Snapshot {
            jails: jails.map(|(jail, state)| (Arc::clone(&jail.name), self.counters_of(state.key))).collect(),
            bans: self.ledger.iter().cloned().collect(),
            tracked: self.windows.tracked(),
            evicted: self.windows.evicted(),
            under_pressure: self.windows.is_under_pressure(),
            turned_away: self.windows.turned_away(),
            gave_way: self.gave_way,
            table_full: self.table_full,
            refused: self.refused.iter().copied().collect(),
        }
    }

    /// The bans the kernel should hold, by prefix.
    pub fn desired(&self) -> Vec<Ban> {
        self.ledger.iter().cloned().collect()
    }

    /// How many bans there are.
    pub fn bans(&self) -> usize {
        self.ledger.len()
    }

    /// The prefixes the kernel should pass inside banned ones, in order.
    pub fn allowed(&self) -> Vec<Prefix> {
        let mut all: Vec<Prefix> = self.allow.iter().chain(self.protected.iter()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Everything the store should hold, to be written over whatever it holds.
    pub fn ledger_changes(&self) -> Vec<Change> {
        let allow = self.operator_allow.iter().map(|prefix| Change::Allow { prefix: *prefix });
        allow.chain(self.ledger.iter().cloned().map(Change::Ban)).collect()
    }

    /// Rebuilds what follows from the policy.
    fn derive(&mut self) {
        let limits = self.policy.limits;
        self.windows.set_tracked_max(limits.tracked_max);
        self.ledger.set_bans_max(limits.bans_max);
        self.allow = self.policy.allow.iter().chain(&self.operator_allow).copied().collect();
        self.protected = self.policy.protected.iter().copied().collect();
        self.jails.clear();
        for jail in &self.policy.jails {
            let next = JailKey(u32::try_from(self.keys.len()).unwrap_or(u32::MAX));
            let key = *self.keys.entry(Arc::clone(&jail.name)).or_insert(next);
            self.jails.push(JailState { key, ignore: jail.ignoreip.iter().copied().collect() });
        }
        let sources = 0..self.policy.sources.len();
        self.readers = sources.map(|source| Some(Reader::new(&self.policy, source))).collect();
    }

    fn lines(&mut self, now: Timestamp, source: SourceId, block: &[u8], reading: Reading) {
        // Taken out for the scan, since what it finds changes everything else.
        let place = usize::from(source.0);
        let Some(mut reader) = self.readers.get_mut(place).and_then(Option::take) else { return };
        let clock = Clock { now, utc_offset_secs: self.policy.utc_offset_secs };
        let Reader { matcher, jails } = &mut reader;
        matcher.scan(block, clock, |line| {
            for (jail, filters) in &*jails {
                match filters.iter().find_map(|filter| Some((*filter, line.verdict(*filter)?))) {
                    None => {}
                    Some((_, Verdict::NoAddress)) => self.no_address(*jail),
                    Some((filter, Verdict::Blame(address))) => {
                        let at = match (reading, line.date(filter)) {
                            (Reading::CatchingUp, Some(date)) => date.min(now),
                            _ => now,
                        };
                        self.failure(now, *jail, address, at);
                    }
                }
            }
        });
        if let Some(place) = self.readers.get_mut(place) {
            *place = Some(reader);
        }
    }

    fn failure(&mut self, now: Timestamp, jail: usize, address: IpAddr, at: Timestamp) {
        let (Some(rules), Some(state)) = (self.policy.jails.get(jail), self.jails.get(jail)) else { return };
        let (key, name) = (state.key, Arc::clone(&rules.name));
        let (maxretry, findtime, bantime) = (rules.maxretry, rules.findtime, rules.bantime);
        let host = Prefix::host(address);
        if host.unbannable().is_some() {
            return self.no_address(jail);
        }
        if at <= now.saturating_sub(findtime) {
            // Read late, and too old to count by its log time.
            return;
        }
        if [&self.allow, &self.protected, &state.ignore].iter().any(|set| set.covering(host).is_some()) {
            self.count(key, |counters| counters.allowlisted += 1);
            return self.commands.push_back(Command::Note(Event::Allowlisted { jail: name, address }));
        }
        let length = if address.is_ipv6() { rules.ipv6_prefix } else { host.length() };
        let whole = Prefix::new(address, length).unwrap_or(host);
        if self
            .ledger
            .covering(whole)
            .or_else(|| self.ledger.covering(host))
            .is_some_and(|ban| !ban.until.is_over(now))
        {
            return self.count(key, |counters| counters.already_banned += 1);
        }
        self.count(key, |counters| counters.failures += 1);
        let (Count::Below(count) | Count::Reached(count)) =
            self.windows.count(key, whole, at, maxretry, findtime);
        self.commands.push_back(Command::Note(Event::Failure {
            jail: Arc::clone(&name),
            address,
            count,
            maxretry,
        }));
        if count < maxretry {
            return;
        }
        // A neighbour in the same prefix may be one that must never be dropped: then only the attacker is.
        let spared = [&self.allow, &self.protected].iter().find_map(|set| set.inside(whole));
        if let Some(allowed) = spared {
            self.count(key, |counters| counters.spared += 1);
            self.commands.push_back(Command::Note(Event::Spared { prefix: whole, allowed }));
        }
        let prefix = if spared.is_some() { host } else { whole };
        self.count(key, |counters| counters.bans += 1);
        self.open(Ban {
            prefix,
            origin: Origin::Jail(name),
            since: now,
            until: bantime.from(now),
            failures: count,
            reason: String::new(),
        });
    }

    fn no_address(&mut self, jail: usize) {
        let (Some(rules), Some(state)) = (self.policy.jails.get(jail), self.jails.get(jail)) else { return };
        let (key, name) = (state.key, Arc::clone(&rules.name));
        self.count(key, |counters| counters.no_address += 1);
        self.commands.push_back(Command::Note(Event::NoAddress { jail: name }));
    }

    /// Opens a ban in the ledger and queues what follows; false when the ledger is full.
    fn open(&mut self, ban: Ban) -> bool {
        match self.ledger.open(ban.clone()) {
            Opened::Full => {
                self.table_full += 1;
                self.commands.push_back(Command::Note(Event::TableFull { prefix: ban.prefix }));
                return false;
            }
            Opened::Yes { gave_way: Some(lost) } => {
                self.gave_way += 1;
                self.change(Change::Unban { prefix: lost.prefix });
                self.commands.push_back(Command::Note(Event::GaveWay { prefix: lost.prefix }));
            }
            Opened::Yes { gave_way: None } => {}
        }
        self.change(Change::Ban(ban.clone()));
        self.commands.push_back(Command::Note(Event::Banned(ban)));
        true
    }

    fn close(&mut self, prefix: Prefix, why: Ending) {
        self.ledger.close(prefix);
        self.closed(prefix, why);
    }

    fn closed(&mut self, prefix: Prefix, why: Ending) {
        self.refused.remove(&prefix);
        self.change(Change::Unban { prefix });
        self.commands.push_back(Command::Note(Event::Unbanned { prefix, why }));
    }

    /// Record, then enforce.
    fn change(&mut self, change: Change) {
        self.commands.push_back(Command::Record(change.clone()));
        self.commands.push_back(Command::Enforce(change));
    }

    fn expire(&mut self, now: Timestamp) {
        while let Some(ban) = self.ledger.close_over(now) {
            self.closed(ban.prefix, Ending::Expired);
        }
    }

    /// Drops failures that can add up to nothing any more, and those of jails that are gone.
    fn forget_silent(&mut self, now: Timestamp) {
        let mut horizons = vec![now; self.keys.len()];
        for (rules, state) in self.policy.jails.iter().zip(&self.jails) {
            if let Some(horizon) = horizons.get_mut(state.key.0 as usize) {
                *horizon = now.saturating_sub(rules.findtime);
            }
        }
        self.windows.expire(|jail| horizons.get(jail.0 as usize).copied().unwrap_or(now));
    }

    /// Lifts what a new allowlist forbids: bans inside it, and bans that cover a protected address.
    fn lift_allowed(&mut self) -> Vec<Prefix> {
        let forbidden = |prefix: Prefix| {
            self.allow.covering(prefix).is_some() || self.protected.overlapping(prefix).is_some()
        };
        let lifted: Vec<Prefix> =
            self.ledger.iter().map(|ban| ban.prefix).filter(|prefix| forbidden(*prefix)).collect();
        for prefix in &lifted {
            self.close(*prefix, Ending::Allowlisted);
        }
        lifted
    }

    fn operator(&mut self, now: Timestamp, request: Request) -> Response {
        match request {
            Request::Ban { prefix, bantime, reason } => self.ban(now, prefix, bantime, reason),
            Request::Unban { prefix } => self.unban(prefix),
            Request::Allow { prefix } => self.allow(prefix),
            Request::Disallow { prefix } => self.disallow(prefix),
            Request::Flush => {
                let prefixes: Vec<Prefix> = self.ledger.iter().map(|ban| ban.prefix).collect();
                for prefix in &prefixes {
                    self.ledger.close(*prefix);
                    self.commands
                        .push_back(Command::Note(Event::Unbanned { prefix: *prefix, why: Ending::Operator }));
                }
                self.refused.clear();
                self.change(Change::Flush);
                Response::Flushed { bans: prefixes.len() }
            }
        }
    }

    fn ban(&mut self, now: Timestamp, prefix: Prefix, bantime: BanTime, mut reason: String) -> Response {
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
            origin: Origin::Operator,
            since: now,
            until: bantime.from(now),
            failures: 0,
            reason,
        };
        if self.open(ban.clone()) {
            Response::Banned(ban)
        } else {
            let reason = format!(
                "the ban table holds {} manual bans and is full; lift one with `blocker unban`, or raise `[enforce] max_bans`",
                self.ledger.len()
            );
            Response::Refused { reason }
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

    fn unban(&mut self, prefix: Prefix) -> Response {
        let found = self.ledger.get(prefix).or_else(|| self.ledger.covering(prefix)).map(|ban| ban.prefix);
        match found {
            // A /64 may have been banned for one address of it: its owner names the address.
            Some(banned) if banned == prefix || prefix.is_host() => {
                self.close(banned, Ending::Operator);
                Response::Unbanned { prefixes: vec![banned] }
            }
            Some(wider) => {
                let reason = format!(
                    "{prefix} is not banned by itself but lies in the banned {wider}; unban that, or `blocker allow {prefix}`"
                );
                Response::Refused { reason }
            }
            None => {
                let inside: Vec<Prefix> = self
                    .ledger
                    .iter()
                    .map(|ban| ban.prefix)
                    .filter(|banned| prefix.covers(*banned))
                    .collect();
                if inside.is_empty() {
                    return Response::Refused {
                        reason: format!("{prefix} is not banned; `blocker bans` lists what is"),
                    };
                }
                for banned in &inside {
                    self.close(*banned, Ending::Operator);
                }
                Response::Unbanned { prefixes: inside }
            }
        }
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

    fn counters_of(&self, key: JailKey) -> JailCounters {
        self.counters.get(&key).copied().unwrap_or_default()
    }

    fn count(&mut self, key: JailKey, add: impl FnOnce(&mut JailCounters)) {
        add(self.counters.entry(key).or_default());
    }
}

/// The changes that make a kernel holding `actual` hold `desired`: what it lacks or ends at another time is banned,
/// what it has too much is unbanned.
pub fn diff(desired: &[Ban], actual: &[(Prefix, Until)]) -> Vec<Change> {
    let held: BTreeMap<Prefix, Until> = actual.iter().copied().collect();
    let wanted: BTreeSet<Prefix> = desired.iter().map(|ban| ban.prefix).collect();
    let too_much =
        held.keys().filter(|prefix| !wanted.contains(prefix)).map(|prefix| Change::Unban { prefix: *prefix });
    let lacking = desired
        .iter()
        .filter(|ban| !held.get(&ban.prefix).is_some_and(|until| same_end(ban.until, *until)))
        .map(|ban| Change::Ban(ban.clone()));
    too_much.chain(lacking).collect()
}

/// As [`diff`], for the allowlist.
pub fn diff_allowed(desired: &[Prefix], actual: &[Prefix]) -> Vec<Change> {
    let (wanted, held): (BTreeSet<_>, BTreeSet<_>) = (desired.iter().collect(), actual.iter().collect());
    let too_much = held.difference(&wanted).map(|prefix| Change::Disallow { prefix: **prefix });
    let lacking = wanted.difference(&held).map(|prefix| Change::Allow { prefix: **prefix });
    too_much.chain(lacking).collect()
}

fn same_end(a: Until, b: Until) -> bool {
    match (a, b) {
        (Until::Forever, Until::Forever) => true,
        (Until::At(a), Until::At(b)) => a.max(b).saturating_since(a.min(b)) <= END_TOLERANCE,
        _ => false,
    }
}
