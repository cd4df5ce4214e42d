//! Bans in nftables: a table of our own whose sets the kernel asks for every packet and expires by itself.
//!
//! One change of the batch is one element; a batch is a few transactions, without an `nft` process. Opening takes over
//! what a table of this name holds, in one transaction: rules are written anew, and where chains or sets are of another
//! layout or size, the whole table is. Bans and counters are kept, and at no instant does a banned packet pass.
//!
//! Where the kernel can (6.9), the table is ours alone while we run: no other program changes it, `nft flush ruleset`
//! leaves it, and it outlives us, for anybody to delete (`nft delete table inet blocker`) or the next agent to take up.
//! Elsewhere it belongs to nobody, and `repair` notices what became of it.
//!
//! It knows nothing of why a prefix is banned. Element timeouts stand still while the machine is suspended; the wall
//! clock is only compared with them.
#![deny(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt::Write as _,
    time::{Duration, Instant},
};

use nftnl::{Batch, MsgType};
use rustix::io::Errno;

use super::{Counters, Description, EnforceError, Enforcer, Entry, Health, Keep};
use crate::{
    engine::Change,
    net::Prefix,
    time::{Timestamp, Until},
};

mod ask;
mod element;
mod guard;
mod layout;
mod message;
mod ports;
mod rule;
mod shard;
#[expect(unsafe_code, reason = "libmnl's socket and setsockopt(2)")]
mod socket;
mod transaction;

use ask::Shape;
use element::{Act, Element};
use guard::Guard;
use layout::{Kind, Layout, SetId};
use message::Message;
use ports::Scopes;
use shard::Shards;
use socket::{Refusal, Socket};
use transaction::guard_keys;

/// `NFT_TABLE_F_OWNER` and `NFT_TABLE_F_PERSIST`.
const OWNER: u32 = 2;
const PERSIST: u32 = 4;
/// A table that lives for the length of a transaction, to see what the kernel can.
const TRIAL: &str = "blocker-trial";
/// Bans up to which each counts its packets unless told otherwise: a counter takes 16 bytes a processor and makes
/// adding a ban three times as slow, so that a million would take 4 s and on 64 processors 1 GiB.
const COUNTED_BANS_MAX: usize = 262_144;
/// How long a table may belong to a process that is just ending.
const PREDECESSOR: Duration = Duration::from_millis(500);
/// Another program's transactions lead to a comparison of all bans, for at most this part of the time.
const COMPARE_SHARE: u32 = 20;

/// How the table is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bans at once. Each set has room for half as many again, since expired ones are freed only every minute.
    pub bans_max: usize,
    /// Whether each ban counts the packets it drops; the total is counted anyway.
    pub counters: bool,
    /// Whether other programs are kept from changing the table, where the kernel can.
    pub owned: bool,
}

impl Options {
    /// The usual ones for so many bans.
    pub fn of(bans_max: usize) -> Self {
        Self { bans_max, counters: bans_max <= COUNTED_BANS_MAX, owned: true }
    }
}

/// The nftables enforcer.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    layout: Layout,
    /// `NFT_TABLE_F_*` that the table shall have.
    flags: u32,
    /// What this kernel lacks, for people.
    lacks: Vec<&'static str>,
    /// Sets that exist, and have their rule.
    sets: BTreeSet<SetId>,
    /// The bans on ports that the kernel may hold, by the number of their list.
    on_ports: BTreeMap<u8, BTreeSet<Prefix>>,
    /// Keys that the guards hold.
    guarded: HashSet<(Guard, u32)>,
    /// How many they were when they were last written anew.
    guarded_fresh: usize,
    /// Handles of everything but elements, as we left it.
    shape: Shape,
    /// The ruleset's number after our last transaction, or our last look.
    generation: Option<u32>,
    /// A repair that `repair` has not reported yet.
    repaired: bool,
    /// Another program's transaction, after which elements were not compared yet.
    doubtful: bool,
    /// When they may be compared again, and how long the last listing took.
    compare_at: Instant,
    listing: Duration,
}

impl Nft {
    /// Takes over the table `inet blocker` of the calling thread's network namespace, or makes it, with room for
    /// `bans_max` bans.
    ///
    /// # Errors
    /// As [`Self::open_with`].
    pub fn open(bans_max: usize) -> Result<Self, EnforceError> {
        Self::open_with(Options::of(bans_max))
    }

    /// As [`Self::open`], with every choice.
    ///
    /// # Errors
    /// When CAP_NET_ADMIN or nf_tables is missing, when another process owns the table, or when a table of this name
    /// is not one of ours.
    pub fn open_with(options: Options) -> Result<Self, EnforceError> {
        let mut this = Self::connect(options)?;
        let what = "set up the nftables table inet blocker";
        this.refuse_strangers_table().map_err(|refusal| error(what, &refusal))?;
        if options.owned && this.kernel_takes(&[layout::create_table(TRIAL, OWNER | PERSIST)]) {
            this.flags = OWNER | PERSIST;
        } else if options.owned {
            this.lacks.push("table flags owner and persist (Linux 6.9), so others can change it");
        }
        if this.layout.shards.count > 1 && !this.kernel_takes(&layout::trial_of_shards(TRIAL)) {
            this.layout.shards = Shards::NONE;
            this.lacks.push("the expression jhash (nft_hash), so that many bans are slow to list");
        }
        let patient_until = Instant::now() + PREDECESSOR;
        loop {
            match this.rebuild() {
                Ok(()) => {
                    this.generation = this.ask_generation().map_err(|refusal| error(what, &refusal))?;
                    return Ok(this);
                }
                Err(Refusal { errno: Errno::PERM, explanation })
                    if !explanation.is_empty() && Instant::now() < patient_until =>
                {
                    // Nothing tells when the kernel has let go of a table.
                    std::thread::sleep(PREDECESSOR / 50);
                }
                Err(refusal) => return Err(error(what, &refusal)),
            }
        }
    }

    fn connect(options: Options) -> Result<Self, EnforceError> {
        let socket = Socket::open().map_err(|refusal| error("open nftables", &refusal))?;
        let Options { bans_max, counters, .. } = options;
        Ok(Self {
            socket,
            layout: Layout { bans_max, counters, shards: Shards::of(bans_max), scopes: Scopes::default() },
            flags: 0,
            lacks: Vec::new(),
            sets: BTreeSet::new(),
            on_ports: BTreeMap::new(),
            guarded: HashSet::new(),
            guarded_fresh: 0,
            shape: Shape::new(),
            generation: None,
            repaired: false,
            doubtful: false,
            compare_at: Instant::now(),
            listing: Duration::ZERO,
        })
    }

    /// Looks at the table of this network namespace without taking it over: for benchmarks, to see what another process
    /// made the kernel hold. Changes are refused where that process owns the table.
    ///
    /// # Errors
    /// When the capability or nf_tables is missing, or there is no such table.
    pub fn look() -> Result<Self, EnforceError> {
        let mut this = Self::connect(Options::of(1))?;
        let facts =
            this.ask_sets().map_err(|refusal| error("look at the nftables table inet blocker", &refusal))?;
        this.sets = facts.keys().filter_map(|name| SetId::from_name(name)).collect();
        Ok(this)
    }

    /// Whether this network namespace has a table of ours; makes none.
    ///
    /// # Errors
    /// When the capability or nf_tables is missing.
    pub fn exists() -> Result<bool, EnforceError> {
        let mut this = Self::connect(Options::of(1))?;
        let what = "look for the nftables table inet blocker";
        let table = this.ask_table().map_err(|refusal| error(what, &refusal))?;
        Ok(table.is_some() && this.refuse_strangers_table().is_ok())
    }

    /// Removes our table from this network namespace, when there is one.
    ///
    /// # Errors
    /// When the capability or nf_tables is missing, or another process owns the table.
    pub fn remove() -> Result<(), EnforceError> {
        let mut this = Self::connect(Options::of(1))?;
        match this.refuse_strangers_table() {
            Ok(()) => Box::new(this).close(Keep::Nothing),
            Err(Refusal { errno: Errno::EXIST, .. }) => Ok(()),
            Err(refusal) => Err(error("look for the nftables table inet blocker", &refusal)),
        }
    }

    /// Somebody else's table of our name is not ours to replace.
    fn refuse_strangers_table(&mut self) -> Result<(), Refusal> {
        if self.ask_table()?.is_none() {
            return Ok(());
        }
        let chains = self.ask_chains()?;
        let sets = self.ask_sets()?;
        let is_ours = chains.iter().any(|(name, _)| name == layout::DROPPED)
            || (chains.is_empty() && sets.keys().all(|name| SetId::from_name(name).is_some()));
        if is_ours {
            return Ok(());
        }
        let names: Vec<&str> =
            chains.iter().map(|(name, _)| &name[..]).chain(sets.keys().map(|n| &n[..])).collect();
        let explanation =
            format!("a table of this name is there and not blocker's: it holds {}", names.join(", "));
        Err(Refusal { errno: Errno::EXIST, explanation })
    }

    /// Whether the kernel takes these messages, about a table of their own that is deleted in the same transaction.
    fn kernel_takes(&mut self, messages: &[Message]) -> bool {
        let mut batch = Batch::new();
        for message in messages {
            batch.add(message, MsgType::Add);
        }
        batch.add(&layout::delete_table(TRIAL), MsgType::Del);
        self.send(batch).is_ok()
    }

    /// Makes the table what it must be, in one transaction, and keeps what it holds. Where table, chains and sets are
    /// as they must be, only rules and guards are written anew, so that taking over many bans costs little.
    fn rebuild(&mut self) -> Result<(), Refusal> {
        let found = self.ask_table()?;
        if let Some(owner) = found.and_then(|table| table.owner)
            && owner != self.socket.port()
        {
            let explanation = format!("the table belongs to another process, perhaps {owner}");
            return Err(Refusal { errno: Errno::PERM, explanation });
        }
        let exists = found.is_some();
        let facts = if exists { self.ask_sets()? } else { BTreeMap::new() };
        let noted = facts.values().find_map(|facts| Shards::from_note(&facts.note));
        if let Some(noted) = noted.filter(|noted| noted.count == self.layout.shards.count) {
            self.layout.shards = noted;
        }
        let mut held: BTreeSet<SetId> = facts.keys().filter_map(|name| SetId::from_name(name)).collect();
        // On which ports the bans of a set are must be known: they are not to be widened.
        held.retain(|set| match set.kind {
            Kind::Ban | Kind::Allow => true,
            Kind::Ports(number) => facts
                .get(&set.name())
                .and_then(|facts| ports::from_note(&facts.note))
                .is_some_and(|scope| self.layout.scopes.adopt(number, &scope)),
        });
        let dropped = if exists { self.ask_dropped()? } else { (0, 0) };
        let fits = self.fits(found.map(|table| table.flags), &facts, &held)?;

        let layout = self.layout.clone();
        self.on_ports.clear();
        let mut elements: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();
        let mut keys = BTreeSet::new();
        for set in &held {
            // Where the sets stay, only what is behind guards has to be known.
            let on_ports = matches!(set.kind, Kind::Ports(_));
            if fits && !on_ports && Guard::of(set.kind, set.v6, set.length).is_none() {
                continue;
            }
            for element in self.ask_elements(*set)? {
                self.see(set.kind, element.prefix, true);
                keys.extend(guard_keys(set.kind, element.prefix));
                if !fits {
                    let (packets, bytes) =
                        if layout.counters { (element.packets, element.bytes) } else { (0, 0) };
                    let to = layout.set_of(set.kind, element.prefix);
                    elements.entry(to).or_default().push(Element { packets, bytes, ..element });
                }
            }
        }
        let table = layout::table();
        let mut batch = Batch::new();
        if !fits && exists {
            batch.add(&table, MsgType::Del);
        }
        if !fits || self.flags != 0 {
            batch.add(&layout::create_table(layout::TABLE, self.flags), MsgType::Add);
        }
        let mut sets = held;
        if fits {
            for guard in Guard::ALL {
                element::clear(&mut batch, guard.name());
            }
        } else {
            layout.create(&mut batch, &table);
            sets = BTreeSet::new();
            for set in elements.keys() {
                layout.add_set(&mut batch, *set);
                sets.insert(*set);
            }
        }
        layout.rules(&mut batch, &table, &sets, dropped);
        self.guard(&mut batch, &keys);
        for (set, elements) in &elements {
            element::write(&mut batch, Act::Add, *set, elements);
        }
        self.send(batch)?;
        self.sets = sets;
        self.guarded_fresh = keys.len();
        self.guarded = keys.into_iter().collect();
        self.shape = self.ask_shape()?;
        Ok(())
    }

    /// Whether the table may stay as it is, apart from its rules.
    fn fits(
        &mut self,
        flags: Option<u32>,
        facts: &BTreeMap<String, layout::SetFacts>,
        sets: &BTreeSet<SetId>,
    ) -> Result<bool, Refusal> {
        // One that outlived its owner has lost that flag, and has it back when it is taken up.
        let table = flags.is_some_and(|flags| flags | (self.flags & OWNER) == self.flags);
        let guards = Guard::ALL.iter().all(|guard| facts.contains_key(guard.name()));
        let as_made = facts.iter().all(|(name, facts)| self.layout.makes(name, facts));
        Ok(table && guards && as_made && self.ask_chains()? == layout::chains(sets))
    }

    /// Commits a batch that changes something, and keeps count.
    fn send(&mut self, batch: Batch) -> Result<(), Refusal> {
        self.socket.commit(batch)?;
        // The kernel leaves out 0.
        self.generation = self.generation.map(|number| number.wrapping_add(1).max(1));
        Ok(())
    }

    /// Puts the table back when anybody changed it; nobody did when the ruleset's number is where we left it.
    fn rebuild_if_changed(&mut self) -> Result<(), Refusal> {
        let generation = self.ask_generation()?;
        if generation.is_some() && generation == self.generation {
            return Ok(());
        }
        self.generation = generation;
        if self.ask_shape()? == self.shape {
            // Elements have no handles. Of a table that is ours alone nobody else takes any.
            self.doubtful |= self.flags & OWNER == 0;
        } else {
            // Not twice, when it fails.
            self.generation = None;
            self.rebuild()?;
            self.generation = self.ask_generation()?;
            self.repaired = true;
        }
        Ok(())
    }
}

impl Enforcer for Nft {
    fn apply(&mut self, batch: &[Change], now: Timestamp) -> Result<(), EnforceError> {
        self.apply_changes(batch, now)
    }

    fn entries(&mut self, now: Timestamp) -> Result<Vec<Entry>, EnforceError> {
        let start = Instant::now();
        let mut entries = Vec::new();
        for set in self.sets.clone().into_iter().filter(|set| set.kind.is_ban()) {
            let Some(scope) = self.layout.scopes.scope(set.kind) else { continue };
            let elements =
                self.ask_elements(set).map_err(|refusal| error("read the bans from nftables", &refusal))?;
            entries.extend(elements.into_iter().map(|element| Entry {
                prefix: element.prefix,
                scope: scope.clone(),
                until: match element.left_ms {
                    Some(left) => Until::At(now.saturating_add(Duration::from_millis(left))),
                    None => Until::Forever,
                },
                packets: element.packets,
            }));
        }
        entries.retain(|entry| !entry.until.is_over(now));
        entries.sort_unstable_by(|a, b| (&a.scope, a.prefix).cmp(&(&b.scope, b.prefix)));
        self.listing = start.elapsed();
        Ok(entries)
    }

    fn allowed(&mut self) -> Result<Vec<Prefix>, EnforceError> {
        let mut allowed = Vec::new();
        for set in self.sets.clone().into_iter().filter(|set| set.kind == Kind::Allow) {
            let elements = self
                .ask_elements(set)
                .map_err(|refusal| error("read the allowlist from nftables", &refusal))?;
            allowed.extend(elements.into_iter().map(|element| element.prefix));
        }
        allowed.sort_unstable();
        Ok(allowed)
    }

    fn counters(&mut self) -> Result<Counters, EnforceError> {
        let (packets, bytes) =
            self.ask_dropped().map_err(|refusal| error("read the counters from nftables", &refusal))?;
        Ok(Counters { packets, bytes })
    }

    fn repair(&mut self) -> Result<Health, EnforceError> {
        self.rebuild_if_changed()
            .map_err(|refusal| error("repair the nftables table inet blocker", &refusal))?;
        if std::mem::take(&mut self.repaired) {
            self.doubtful = false;
            return Ok(Health::Repaired);
        }
        let now = Instant::now();
        if self.doubtful && self.compare_at <= now {
            self.doubtful = false;
            self.compare_at = now + self.listing * COMPARE_SHARE;
            return Ok(Health::Doubtful);
        }
        Ok(Health::Sound)
    }

    fn describe(&self) -> Description {
        let mut reason =
            "drops before conntrack and on every interface; XDP would drop earlier and cost less".to_owned();
        if self.flags & OWNER != 0 {
            reason.push_str("; the table is ours alone and outlives `nft flush ruleset`");
        }
        if !self.layout.counters {
            reason.push_str("; bans have no counters of their own, only the total");
        }
        for lacks in &self.lacks {
            let _infallible = write!(reason, "; this kernel lacks {lacks}");
        }
        Description {
            backend: "nftables",
            attachments: vec!["table inet blocker, prerouting, every interface: priority -450".to_owned()],
            reason,
        }
    }

    fn close(mut self: Box<Self>, keep: Keep) -> Result<(), EnforceError> {
        if keep == Keep::InForce {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.add(&layout::table(), MsgType::Del);
        match self.send(batch) {
            Ok(()) | Err(Refusal { errno: Errno::NOENT, .. }) => Ok(()),
            Err(refusal) => Err(error("delete the nftables table inet blocker", &refusal)),
        }
    }
}

fn error(what: &str, refusal: &Refusal) -> EnforceError {
    let errno = refusal.errno;
    let hint = match errno {
        Errno::PERM if !refusal.explanation.is_empty() => {
            "is another blocker running? Stop it, or `nft list tables` names who holds the table"
        }
        Errno::PERM | Errno::ACCESS => "nftables needs the capability CAP_NET_ADMIN",
        Errno::NFILE => "raise `[enforce] max_bans` and restart",
        Errno::EXIST if !refusal.explanation.is_empty() => {
            "rename it, or `nft delete table inet blocker` if nobody needs it"
        }
        Errno::NOENT | Errno::INTR | Errno::EXIST | Errno::BUSY => {
            "is another program changing nftables? The agent repairs the table by itself"
        }
        Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::OPNOTSUPP | Errno::INVAL | Errno::PROTO => {
            "does this kernel have nf_tables? Try `modprobe nf_tables`"
        }
        Errno::NOMEM | Errno::NOBUFS | Errno::MSGSIZE => {
            "the kernel is short of memory for it; fewer bans at once (`[enforce] max_bans`) need less"
        }
        _ => "",
    };
    let mut cause = match errno {
        Errno::NFILE => "the set is full (ENFILE)".to_owned(),
        _ => std::io::Error::from(errno).to_string(),
    };
    if !refusal.explanation.is_empty() {
        let _infallible = write!(cause, " ({})", refusal.explanation);
    }
    EnforceError { what: what.to_owned(), cause, hint: hint.to_owned(), prefix: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_do_next() {
        for (errno, explanation, says) in [
            (Errno::PERM, "", "CAP_NET_ADMIN"),
            (Errno::PERM, "the table belongs to another process, perhaps 7", "another blocker"),
            (Errno::NFILE, "", "max_bans"),
            (Errno::EXIST, "a table of this name is there", "nft delete table inet blocker"),
            (Errno::EXIST, "", "another program"),
            (Errno::NOENT, "", "another program"),
            (Errno::INTR, "the rules changed during each of 10 readings", "another program"),
            // What kernels without nfnetlink, without nf_tables and without its expressions answer.
            (Errno::PROTONOSUPPORT, "", "modprobe nf_tables"),
            (Errno::INVAL, "", "modprobe nf_tables"),
            (Errno::OPNOTSUPP, "", "modprobe nf_tables"),
            (Errno::NOBUFS, "", "short of memory"),
            (Errno::NOMEM, "", "short of memory"),
        ] {
            let error = error("do it", &Refusal { errno, explanation: explanation.to_owned() });
            assert!(error.hint.contains(says), "{error}");
            assert!(error.to_string().starts_with("do it: "), "{error}");
            assert!(error.cause.contains(explanation), "{error}");
        }
    }
}
