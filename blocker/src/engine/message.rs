//! What goes into the engine and what comes out of it, as data.
#![forbid(unsafe_code)]

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    ledger::{Ban, OffenceChange},
    net::{Prefix, Scope},
    policy::{ActionSpec, IgnoreCommand},
    time::{BanTime, Timestamp},
};

/// An index into [`crate::policy::Policy::sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u16);

/// Names the operator's request that a [`Command::Reply`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names the question of a [`Command::Ask`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// Whether lines arrive as they are written, or were written while nobody read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// A failure counts at its arrival; the log's own time is only evidence.
    Live,
    /// A failure counts at its log time, clamped to `[now - findtime, now]`.
    CatchingUp,
    /// The same, of lines whose time the source knows: a failure counts at this time, clamped as well.
    At(Timestamp),
    /// Read before, in another life, and shown again: filters learn what the lines behind belong to, nothing is counted.
    Context,
}

/// What the engine is told.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// A block of whole lines, each ending in a newline (the last one may lack it).
    Lines {
        /// Where they come from.
        source: SourceId,
        /// The bytes, of any encoding.
        block: &'a [u8],
        /// How their time is to be taken.
        reading: Reading,
    },
    /// A person or program asks for something.
    Operator {
        /// Comes back in the reply.
        id: RequestId,
        /// What is asked.
        request: Request,
    },
    /// What the enforcer made of an earlier [`Command::Enforce`].
    Applied {
        /// The change's prefix.
        prefix: Prefix,
        /// Whether the kernel took it.
        ok: bool,
    },
    /// What an ignorecommand said.
    Answer {
        /// Which question it answers; one that is answered or overdue is not.
        id: AskId,
        /// Whether the address is spared; `None` when the command failed.
        ignore: Option<bool>,
    },
    /// Time passed: expire what is over.
    Tick,
    /// The agent is about to end; bans stay in force.
    Stop,
}

/// What the engine wants done, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Write it to the store, durably, before the enforcement that follows it.
    Record(Change),
    /// Make the kernel hold it.
    Enforce(Change),
    /// Write it to the store, in the same transaction as the records beside it.
    Remember(OffenceChange),
    /// Ask an ignorecommand about a ban, and come back with an [`Input::Answer`]; the ban waits.
    Ask(Ask),
    /// Run something for a jail, in its own time. Everything before it must have been enforced.
    Act(Act),
    /// Answer a request; everything before it in the queue must have been carried out.
    Reply(RequestId, Response),
    /// Tell people.
    Note(Event),
}

/// A question to an ignorecommand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Comes back in the answer.
    pub id: AskId,
    /// The jail that would ban.
    pub jail: Arc<str>,
    /// The address in the last failure's line.
    pub address: IpAddr,
    /// Failures that would lead to the ban.
    pub failures: u32,
    /// What to ask, and how long to wait; beyond that the engine no longer does.
    pub command: Arc<IgnoreCommand>,
}

/// A run of a jail's action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// The jail.
    pub jail: Arc<str>,
    /// The action.
    pub action: Arc<ActionSpec>,
    /// What happened.
    pub occasion: Occasion,
}

/// Why an action runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The jail starts.
    Start,
    /// The jail stops.
    Stop,
    /// It banned.
    Ban {
        /// The ban.
        ban: Ban,
        /// The last matched lines, as far as they were kept and are wanted.
        matches: Vec<String>,
        /// Whether a restart restored the ban.
        restored: bool,
    },
    /// Its ban ended.
    Unban {
        /// The ban that was.
        ban: Ban,
    },
}

/// What the kernel, and the store, must do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Drop this prefix until its end, as far as its scope goes; a longer or shorter end replaces the former one.
    Ban(Ban),
    /// Stop dropping it.
    Unban {
        /// Exactly the prefix of the ban.
        prefix: Prefix,
        /// Exactly its scope; bans of other scopes stay.
        #[serde(default, skip_serializing_if = "Scope::is_all")]
        scope: Scope,
    },
    /// Never drop it, also when it lies inside a banned prefix.
    Allow {
        /// The allowlisted prefix.
        prefix: Prefix,
    },
    /// Take it off the allowlist.
    Disallow {
        /// The allowlisted prefix.
        prefix: Prefix,
    },
    /// Lift every ban; the allowlist stays.
    Flush,
}

/// What an operator can ask of the engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Ban a prefix by hand.
    Ban {
        /// Who to drop.
        prefix: Prefix,
        /// What of theirs.
        scope: Scope,
        /// For how long.
        bantime: BanTime,
        /// Why, for the ledger; may be empty.
        reason: String,
    },
    /// Lift the bans on exactly this prefix, or on the aggregated prefix that covers this address.
    Unban {
        /// The prefix or address.
        prefix: Prefix,
        /// Only the ban of this scope; `None` for every one.
        scope: Option<Scope>,
    },
    /// Put on the allowlist, lifting bans that lie inside it.
    Allow {
        /// The prefix.
        prefix: Prefix,
    },
    /// Take off the allowlist what an operator put there.
    Disallow {
        /// The prefix.
        prefix: Prefix,
    },
    /// Lift every ban.
    Flush,
}

/// What an operator's request came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// In force now.
    Banned(Ban),
    /// These bans were lifted; never empty.
    Unbanned {
        /// What was banned.
        prefixes: Vec<Prefix>,
    },
    /// On the allowlist now.
    Allowed {
        /// The prefix.
        prefix: Prefix,
        /// Bans lifted by it.
        lifted: Vec<Prefix>,
    },
    /// Off the allowlist.
    Disallowed {
        /// The prefix.
        prefix: Prefix,
    },
    /// All bans lifted.
    Flushed {
        /// How many there were.
        bans: usize,
    },
    /// Not done, and nothing changed.
    Refused {
        /// Why, and what to do instead; a sentence for the operator.
        reason: String,
    },
}

/// What people are told as it happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A line was blamed on an address.
    Failure {
        /// The jail that counts it.
        jail: Arc<str>,
        /// The address in the line.
        address: IpAddr,
        /// Failures of its prefix in the jail's window, this one included.
        count: u32,
        /// How many of them ban.
        maxretry: u32,
    },
    /// A failure from an allowlisted address, not counted.
    Allowlisted {
        /// The jail that would have counted it.
        jail: Arc<str>,
        /// The address in the line.
        address: IpAddr,
    },
    /// A failure line whose address is missing (`ip=-`) or can be no attacker's; counted, never guessed.
    NoAddress {
        /// The jail whose filter matched.
        jail: Arc<str>,
    },
    /// A ban began or was prolonged.
    Banned(Ban),
    /// A jail that only observes would have banned.
    WouldBan(Ban),
    /// A ban was not made, since the jail's ignorecommand spares the address.
    Ignored {
        /// The jail that would have banned.
        jail: Arc<str>,
        /// The address.
        address: IpAddr,
    },
    /// The jail's ignorecommand failed, was too slow or had too many questions: the ban is made.
    Unanswered {
        /// The jail that bans.
        jail: Arc<str>,
        /// The address.
        address: IpAddr,
    },
    /// A ban ended.
    Unbanned {
        /// Who was banned.
        prefix: Prefix,
        /// What of theirs.
        scope: Scope,
        /// Why it ended.
        why: Ending,
    },
    /// An operator lifted every ban.
    Flushed {
        /// How many there were.
        bans: usize,
    },
    /// A ban by a jail was not made, since it would have covered a protected address.
    Spared {
        /// What would have been banned.
        prefix: Prefix,
        /// The allowlisted or protected prefix.
        allowed: Prefix,
    },
    /// The ban table was full: the automatic ban soonest to expire gave way.
    GaveWay {
        /// The ban that was lifted.
        prefix: Prefix,
    },
    /// The ban table is full of manual bans: this one was not made.
    TableFull {
        /// The ban that was not made.
        prefix: Prefix,
    },
    /// Bans have as many different scopes as they may: this one was not made.
    ScopesFull {
        /// Who would have been banned.
        prefix: Prefix,
        /// What of theirs.
        scope: Scope,
    },
}

/// Why a ban ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Its time was over.
    Expired,
    /// An operator lifted it.
    Operator,
    /// It came to lie inside the allowlist.
    Allowlisted,
}
