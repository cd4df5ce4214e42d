//! The pure state machine: inputs in, commands out, time as an argument.
//!
//! It sees lines, requests and the time, and says what is to be recorded, enforced, answered and told. It knows no
//! clock, no file and no kernel; the same inputs in the same order give the same commands.
//!
//! | module | story |
//! |---|---|
//! | `message` | what goes in and comes out |
//! | `reader` | from a source's lines to failures |
//! | `judge` | from a failure to a ban |
//! | `counted` | what was counted, to be kept and taken up again |
//! | `asked` | bans that wait for an ignorecommand |
//! | `matches` | matched lines, kept for actions |
//! | `acts` | when a jail's actions run |
//! | `operator` | what people ask for |
//! | `queue` | what is to be done, in order |
//! | `diff` | what a kernel lacks of the ledger |
//!
//! Held here, and again by the enforcer and the kernel: no allowlisted or protected address is in a ban, and no wider
//! ban covers a protected one.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use asked::Asked;
use counted::Answered;
use dice::Dice;
use judge::{Batch, Full};
use matches::Matches;
use queue::Queue;
use reader::Reader;

use crate::{
    allowlist::PrefixSet,
    detect::{JailKey, Windows},
    filter::Losses,
    ledger::{Ban, Ledger, Offence, Offenders, Origin},
    net::{Prefix, Scope},
    policy::{Policy, SourceSpec},
    time::Timestamp,
};

mod acts;
mod asked;
mod counted;
mod dice;
mod diff;
mod judge;
mod matches;
mod message;
mod operator;
mod queue;
mod reader;

pub use asked::ASKED_MAX;
pub use counted::{Counted, CountedHead, Owed};
pub use diff::{Difference, Held, diff, diff_allowed};
pub use matches::{MATCH_BYTES_MAX, MATCHES_BYTES_MAX};
pub use message::{
    Act, Ask, AskId, Change, Command, Ending, Event, Input, Occasion, Reading, Request, RequestId, Response,
    SourceId,
};

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
    /// Bans that would have been made if the jail did more than observe.
    pub would_ban: u64,
    /// Bans not made, since the ignorecommand spared the address.
    pub ignored: u64,
    /// Bans made without an answer of the ignorecommand.
    pub unanswered: u64,
    /// What the bounds on its imported filters cost.
    pub losses: Losses,
    /// Bans it would have made that gave way to the bound on those that are imagined at once.
    pub imagined_lost: u64,
}

/// What an engine starts with: what was kept from an earlier life.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Bans, those that are over by now included.
    pub bans: Vec<Ban>,
    /// What operators put on the allowlist.
    pub allow: Vec<Prefix>,
    /// Who was banned before.
    pub offences: Vec<Offence>,
    /// Bans by jails that began lately and after `counted` was kept, the oldest first: jails on the ledger count them,
    /// and the failures that led to them are spent.
    pub recent: Vec<Ban>,
    /// Bans that ended after `counted` was kept, from when until when they were in force.
    pub served: Vec<(Prefix, Scope, Timestamp, Timestamp)>,
    /// What was counted, as [`Engine::counted`] gave it.
    pub counted: Option<(CountedHead, Vec<Vec<u8>>)>,
}

/// Bans that are closed in one call because they are over, so that no call is long.
pub const EXPIRE_AT_ONCE: usize = 1_000;

/// Bans by observing jails that are imagined at once; the one soonest to end gives way.
pub const IMAGINED_MAX: usize = 4_096;

/// The engine's state, for `status`, metrics and persistence.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// By jail, in the policy's order.
    pub jails: Vec<(Arc<str>, JailCounters)>,
    /// How many bans are live, by each who decided on any.
    pub bans: BTreeMap<Origin, usize>,
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
    /// Bans not made because bans had as many different scopes as they may.
    pub scopes_full: u64,
    /// Prefixes the kernel refused when last asked.
    pub refused: Vec<Prefix>,
    /// (prefix, jail) pairs whose earlier bans are remembered.
    pub offenders: usize,
    /// Pairs that gave way to the bound on them.
    pub offenders_gave_way: u64,
    /// Bans that wait for an ignorecommand's answer.
    pub asked: usize,
    /// Bytes of matched lines kept for actions.
    pub matches_bytes: usize,
    /// Prefixes whose lines gave way to the bound on them.
    pub matches_gave_way: u64,
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
    /// Failures of the block at hand that are about to be counted; kept for its memory.
    batch: Batch,
    ledger: Ledger,
    /// The bans of jails that only observe, so that they count as they would if they banned.
    imagined: Ledger,
    offenders: Offenders,
    asked: Asked,
    matches: Matches,
    dice: Dice,
    keys: BTreeMap<Arc<str>, JailKey>,
    answered: Answered,
    /// Whether anything was counted since [`Engine::kept`].
    news: bool,
    /// By key.
    counters: Vec<JailCounters>,
    commands: Queue,
    refused: BTreeSet<Prefix>,
    gave_way: u64,
    table_full: u64,
    scopes_full: u64,
}

/// What is derived from a jail's policy once.
#[derive(Debug)]
struct JailState {
    key: JailKey,
    /// What is only observed has windows of its own.
    observed_key: JailKey,
    ignore: PrefixSet,
    /// Whether it counts other jails' bans.
    on_ledger: bool,
    /// Whether an action wants the matched lines.
    wants_matches: bool,
}

impl Engine {
    /// An engine that holds what was kept. Bans that are over, or lie in the allowlist of this policy, are closed with
    /// a record of it.
    pub fn new(now: Timestamp, policy: Policy, kept: Kept) -> Self {
        let answered = Answered::new(now, &kept);
        let (ledger, gave_way) = Ledger::with(policy.limits.bans_max, kept.bans);
        let mut engine = Self {
            jails: Vec::new(),
            readers: Vec::new(),
            allow: PrefixSet::default(),
            operator_allow: kept.allow.into_iter().collect(),
            protected: PrefixSet::default(),
            windows: Windows::new(policy.limits.tracked_max, policy.seed),
            batch: Batch::default(),
            ledger,
            imagined: Ledger::new(IMAGINED_MAX),
            offenders: Offenders::new(policy.limits.offenders_max),
            asked: Asked::default(),
            matches: Matches::default(),
            dice: Dice::new(policy.seed),
            keys: BTreeMap::new(),
            answered,
            news: false,
            counters: Vec::new(),
            commands: Queue::default(),
            refused: BTreeSet::new(),
            gave_way: 0,
            table_full: 0,
            scopes_full: 0,
            policy,
        };
        for lost in gave_way {
            engine.gave_way(&lost);
        }
        for offence in kept.offences {
            engine.commands.extend(engine.offenders.restore(offence).map(Command::Remember));
        }
        engine.derive(&[]);
        engine.act_changed(&Policy::default());
        engine.lift_allowed();
        engine.expire(now);
        let owed = kept.counted.map(|(head, pages)| engine.take_up(now, head, &pages)).unwrap_or_default();
        engine.recount(now, &kept.recent);
        engine.pay(now, owed);
        if engine.policy.jails.iter().any(|jail| jail.actions.iter().any(|action| action.restored)) {
            let ledger = std::mem::take(&mut engine.ledger);
            ledger.iter().for_each(|ban| engine.act_ban(ban, &[], true));
            engine.ledger = ledger;
        }
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
            Input::Answer { id, ignore } => self.answer(now, id, ignore),
            Input::Stop => {
                let policy = std::mem::take(&mut self.policy);
                self.act_changed(&policy);
                self.policy = policy;
            }
            Input::Tick => {
                self.expire(now);
                self.forget_silent(now);
                self.forget_answered(now);
                let forgotten = self.offenders.forget_old(now, self.policy.remember);
                self.commands.extend(forgotten.into_iter().map(Command::Remember));
            }
        }
    }

    /// The next thing to do, in order.
    pub fn next_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When a [`Input::Tick`] is due, if nothing else happens.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        let ends = [self.ledger.next_end(), self.imagined.next_end(), self.asked.next_deadline()];
        ends.into_iter().flatten().min()
    }

    /// Takes a new policy; windows and bans stay, and so does what unchanged filters remember of their logs. Bans that now lie in the allowlist are lifted.
    pub fn set_policy(&mut self, now: Timestamp, policy: Policy) {
        let before: BTreeSet<Prefix> = self.allowed().into_iter().collect();
        let policy_before = std::mem::replace(&mut self.policy, policy);
        self.derive(&policy_before.sources);
        self.act_changed(&policy_before);
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
        let losses = self.losses();
        let counters_of = |key: JailKey| {
            let mut counters = self.counters_of(key);
            counters.losses += losses.get(&key).copied().unwrap_or_default();
            counters
        };
        Snapshot {
            jails: jails.map(|(jail, state)| (Arc::clone(&jail.name), counters_of(state.key))).collect(),
            bans: self.ledger.by_origin().clone(),
            tracked: self.windows.tracked(),
            evicted: self.windows.evicted(),
            under_pressure: self.windows.is_under_pressure(),
            turned_away: self.windows.turned_away(),
            gave_way: self.gave_way,
            table_full: self.table_full,
            scopes_full: self.scopes_full,
            refused: self.refused.iter().copied().collect(),
            offenders: self.offenders.len(),
            offenders_gave_way: self.offenders.gave_way(),
            asked: self.asked.waiting(),
            matches_bytes: self.matches.bytes(),
            matches_gave_way: self.matches.gave_way(),
        }
    }

    /// The bans the kernel should hold.
    pub fn desired(&self) -> &Ledger {
        &self.ledger
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

    /// What the kernel passes of a banned prefix: the allowlisted and protected prefixes that share an address with it.
    pub fn spared(&self, prefix: Prefix) -> impl Iterator<Item = Prefix> {
        let sets = [&self.allow, &self.protected].into_iter();
        sets.flat_map(move |set| set.covering(prefix).into_iter().chain(set.all_inside(prefix)))
    }

    /// What of this address is banned, unless it is on the allowlist.
    pub fn banned(&self, address: IpAddr) -> impl Iterator<Item = &Scope> {
        let host = Prefix::host(address);
        let is_spared = self.spared(host).next().is_some();
        self.ledger.around(host).map(|ban| &ban.scope).filter(move |_| !is_spared)
    }

    /// Everything the store should hold, to be written over whatever it holds.
    pub fn ledger_changes(&self) -> impl Iterator<Item = Change> {
        let allow = self.operator_allow.iter().map(|prefix| Change::Allow { prefix: *prefix });
        allow.chain(self.ledger.iter().cloned().map(Change::Ban))
    }

    /// All offences the store should hold.
    pub fn offences(&self) -> impl Iterator<Item = Offence> {
        self.offenders.iter()
    }

    /// Rebuilds what follows from the policy; `former` are the sources of the policy before.
    fn derive(&mut self, former: &[SourceSpec]) {
        self.keep_losses();
        let limits = self.policy.limits;
        self.windows.set_tracked_max(limits.tracked_max);
        self.ledger.set_bans_max(limits.bans_max);
        self.allow = self.policy.allow.iter().chain(&self.operator_allow).copied().collect();
        self.protected = self.policy.protected.iter().copied().collect();
        self.offenders.set_offenders_max(limits.offenders_max);
        self.asked.forget_answers();
        self.jails.clear();
        for jail in &self.policy.jails {
            let mut key_of = |name: Arc<str>| {
                let next = JailKey(u32::try_from(self.keys.len()).unwrap_or(u32::MAX));
                *self.keys.entry(name).or_insert(next)
            };
            let reads = |id: &SourceId| self.policy.sources.get(usize::from(id.0));
            self.jails.push(JailState {
                key: key_of(Arc::clone(&jail.name)),
                // No jail's name holds a space.
                observed_key: key_of(format!("{} observed", jail.name).into()),
                ignore: jail.ignoreip.iter().copied().collect(),
                on_ledger: jail.sources.iter().any(|id| reads(id) == Some(&SourceSpec::Ledger)),
                wants_matches: jail.actions.iter().any(|action| action.matches),
            });
        }
        self.counters.resize(self.keys.len(), JailCounters::default());
        let mut readers = std::mem::take(&mut self.readers);
        let sources = self.policy.sources.iter().enumerate().map(|(source, spec)| {
            let place = former.iter().position(|known| known == spec);
            let known = place.and_then(|place| readers.get_mut(place)?.take());
            Some(Reader::new(&self.policy, source, known))
        });
        self.readers = sources.collect();
    }

    fn close(&mut self, prefix: Prefix, scope: &Scope, why: Ending) {
        if let Some(ban) = self.ledger.close(prefix, scope) {
            self.closed(&ban, why);
        }
    }

    fn closed(&mut self, ban: &Ban, why: Ending) {
        let (prefix, scope) = (ban.prefix, ban.scope.clone());
        self.refused.remove(&prefix);
        self.change(Change::Unban { prefix, scope: scope.clone() });
        self.commands.push_back(Command::Note(Event::Unbanned { prefix, scope, why }));
        self.act_unban(ban);
    }

    /// Record, then enforce.
    fn change(&mut self, change: Change) {
        self.commands.push_back(Command::Record(change.clone()));
        self.commands.push_back(Command::Enforce(change));
    }

    /// Closes what is over; of very many bans the first, and the next tick is due at once. The kernel ends each in time
    /// by itself, and one that is over counts as none.
    fn expire(&mut self, now: Timestamp) {
        for _ in 0..EXPIRE_AT_ONCE {
            let Some(ban) = self.ledger.close_over(now) else { break };
            self.closed(&ban, Ending::Expired);
        }
        while self.imagined.close_over(now).is_some() {}
        while let Some(candidate) = self.asked.overdue(now) {
            self.unanswered(now, candidate);
        }
    }

    /// Drops failures that can add up to nothing any more, and those of jails that are gone.
    fn forget_silent(&mut self, now: Timestamp) {
        let mut horizons = vec![now; self.keys.len()];
        for (rules, state) in self.policy.jails.iter().zip(&self.jails) {
            for key in [state.key, state.observed_key] {
                if let Some(horizon) = horizons.get_mut(key.0 as usize) {
                    *horizon = now.saturating_sub(rules.findtime);
                }
            }
        }
        self.matches.expire(horizons.iter().min().copied().unwrap_or(now));
        self.windows.expire(|jail| horizons.get(jail.0 as usize).copied().unwrap_or(now));
    }

    /// Lifts what a new allowlist forbids: bans inside it, and bans that cover a protected address.
    fn lift_allowed(&mut self) -> Vec<Prefix> {
        // The allowlist is short and the ledger long.
        let inside =
            self.allow.iter().chain(self.protected.iter()).flat_map(|prefix| self.ledger.inside(prefix));
        let around = self.protected.iter().flat_map(|prefix| self.ledger.around(prefix));
        let lifted: BTreeSet<(Prefix, Scope)> =
            inside.chain(around).map(|ban| (ban.prefix, ban.scope.clone())).collect();
        for (prefix, scope) in &lifted {
            self.close(*prefix, scope, Ending::Allowlisted);
        }
        let prefixes: BTreeSet<Prefix> = lifted.into_iter().map(|(prefix, _)| prefix).collect();
        prefixes.into_iter().collect()
    }

    fn counters_of(&self, key: JailKey) -> JailCounters {
        self.counters.get(key.0 as usize).copied().unwrap_or_default()
    }

    fn count(&mut self, key: JailKey, add: impl FnOnce(&mut JailCounters)) {
        if let Some(counters) = self.counters.get_mut(key.0 as usize) {
            add(counters);
        }
    }
}
