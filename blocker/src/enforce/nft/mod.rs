//! Bans in nftables: a table of our own whose sets the kernel asks for every packet and expires by itself.
//!
//! One change of the batch is one element; a batch is one transaction, without an `nft` process. The table belongs to
//! nobody while no agent runs, so it keeps dropping, and an administrator can always delete it (`nft delete table
//! inet blocker`); `repair` notices. Opening takes over what a table of this name holds, whoever made it, in one
//! transaction: rules are written anew, and where chains or sets are of another layout or size, the whole table is. Bans
//! and counters are kept, and at no instant does a banned packet pass.
//!
//! It knows nothing of why a prefix is banned. Element timeouts stand still while the machine is suspended; the wall
//! clock is only compared with them.
#![deny(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
};

use nftnl::{Batch, MsgType};
use rustix::io::Errno;

use super::{Counters, Description, EnforceError, Enforcer, Entry, Health, Keep};
use crate::{
    engine::Change,
    net::{Prefix, Scope},
    time::{Timestamp, Until},
};

mod layout;
mod message;
#[expect(unsafe_code, reason = "libmnl's socket and setsockopt(2)")]
mod socket;

use layout::{Kind, SetId, TABLE};
use message::{Attributes, Message, attributes_of};
use socket::{Refusal, Socket};

/// Elements of one message, about 90 bytes each: its list must stay below 64 KiB.
const MESSAGE_ELEMENTS_MAX: usize = 500;
/// Changes of one transaction; a larger batch is several.
const TRANSACTION_CHANGES_MAX: usize = 65_536;
/// Up to so many changes, elements are asked for one by one; above, whole sets are read.
const SINGLE_QUESTIONS_MAX: usize = 64;
/// An end that is nearer than this to the one asked for stays: entries are true to within a second.
const NEAR_MS: u64 = 100;
/// The longest timeout of an element, 584 years in milliseconds: the kernel keeps nanoseconds in 64 bits
/// (`nf_msecs_to_jiffies64`).
const TIMEOUT_MS_MAX: u64 = u64::MAX / 1_000_000 - 1;
const RELOAD_HINT: &str = "is another program changing nftables? The agent repairs the table by itself";

/// The nftables enforcer.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    bans_max: usize,
    /// Sets that exist, and have their rule.
    sets: BTreeSet<SetId>,
    /// Handles of everything but elements, as we left it.
    shape: Shape,
    /// A repair that `repair` has not reported yet.
    repaired: bool,
}

/// Kind, name, handle and flags of table, chains, sets and rules. Handles are never used twice in a table, so what
/// was made anew or replaced differs.
type Shape = BTreeSet<(u8, String, u64, u32)>;

/// One element as the kernel has it.
#[derive(Clone, Copy, Debug)]
struct Element {
    prefix: Prefix,
    /// Milliseconds that are left; `None` for ever.
    left_ms: Option<u64>,
    packets: u64,
    bytes: u64,
}

/// What the kernel shall hold for a prefix.
#[derive(Clone, Copy, Debug)]
enum Goal {
    /// An element, for so many milliseconds or for ever.
    Held(Option<u64>),
    /// None.
    Gone,
}

type Wish = (Kind, Prefix, Goal);

impl Nft {
    /// Takes over the table `inet blocker` of the calling thread's network namespace, or makes it. Each set has room
    /// for `bans_max` elements and half as many again, since expired ones are freed only every minute.
    ///
    /// # Errors
    /// When CAP_NET_ADMIN or nf_tables is missing.
    pub fn open(bans_max: usize) -> Result<Self, EnforceError> {
        let socket = Socket::open().map_err(|refusal| error("open nftables", &refusal))?;
        let mut this = Self { socket, bans_max, sets: BTreeSet::new(), shape: Shape::new(), repaired: false };
        this.rebuild().map_err(|refusal| error("set up the nftables table inet blocker", &refusal))?;
        Ok(this)
    }

    /// Whether this network namespace has a table of ours; makes none.
    ///
    /// # Errors
    /// When the capability or nf_tables is missing.
    pub fn exists() -> Result<bool, EnforceError> {
        let socket = Socket::open().map_err(|refusal| error("open nftables", &refusal))?;
        let mut this =
            Self { socket, bans_max: 1, sets: BTreeSet::new(), shape: Shape::new(), repaired: false };
        let table = this
            .ask_table()
            .map_err(|refusal| error("look for the nftables table inet blocker", &refusal))?;
        Ok(table.is_some())
    }

    fn capacity(&self) -> u32 {
        u32::try_from(self.bans_max.saturating_add(self.bans_max / 2)).unwrap_or(u32::MAX).max(64)
    }

    /// Makes the table what it must be, in one transaction, and keeps what it holds. Where table, chains and sets are
    /// as they must be, only the rules are written anew, so that taking over many bans costs nothing.
    fn rebuild(&mut self) -> Result<(), Refusal> {
        let found = self.ask_table()?;
        let exists = found.is_some();
        let (sets, sets_fit) = if exists { self.ask_sets()? } else { (BTreeSet::new(), false) };
        let dropped = if exists { self.ask_dropped()? } else { (0, 0) };
        let fits =
            sets_fit && found.is_some_and(|(_, flags)| flags == 0) && self.ask_chains()? == layout::chains();
        let table = layout::table();
        let mut batch = Batch::new();
        if !fits {
            if exists {
                batch.add(&table, MsgType::Del);
            }
            layout::create(&mut batch, &table);
            for set in &sets {
                batch.add(&set.create(self.capacity()), MsgType::Add);
            }
        }
        layout::rules(&mut batch, &table, &sets, dropped);
        if !fits {
            for set in &sets {
                add_elements(&mut batch, libc::NFT_MSG_NEWSETELEM, *set, &self.ask_elements(*set)?);
            }
        }
        self.socket.commit(batch)?;
        self.sets = sets;
        self.shape = self.ask_shape()?;
        Ok(())
    }

    /// Makes these wishes true in one transaction, or none of them.
    fn commit(&mut self, flush: bool, wishes: &[Wish]) -> Result<(), Refusal> {
        let known = if flush { HashMap::new() } else { self.ask_known(wishes)? };
        let table = layout::table();
        let mut batch = Batch::new();
        let mut sets = self.sets.clone();
        let held = wishes.iter().filter(|(.., goal)| matches!(goal, Goal::Held(_)));
        sets.extend(held.map(|(kind, prefix, _)| SetId::of(*kind, *prefix)));
        let made: BTreeSet<SetId> = sets.difference(&self.sets).copied().collect();
        for set in &made {
            batch.add(&set.create(self.capacity()), MsgType::Add);
        }
        for like in one_of_each(&made) {
            layout::lookups(&mut batch, &table, like, sets.iter().copied());
        }
        if flush {
            for set in self.sets.iter().filter(|set| set.kind == Kind::Ban) {
                batch.add(&element_list(libc::NFT_MSG_DELSETELEM, *set), MsgType::Del);
            }
        }
        // A timeout is renewed by `add, delete, add`: kernels before 6.12 ignore the new one of an element that is
        // there, and the first `add` keeps the `delete` from failing when the element expires just now.
        let mut old: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();
        let mut new: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();
        for (kind, prefix, goal) in wishes {
            let set = SetId::of(*kind, *prefix);
            let found = known.get(&(*kind, *prefix)).copied();
            if let (Some(found), Goal::Held(left_ms)) = (found, goal)
                && is_near(found.left_ms, *left_ms)
            {
                continue;
            }
            if let Some(found) = found {
                old.entry(set).or_default().push(found);
            }
            if let Goal::Held(left_ms) = goal {
                let (packets, bytes) = found.map_or((0, 0), |found| (found.packets, found.bytes));
                let element = Element { prefix: *prefix, left_ms: *left_ms, packets, bytes };
                new.entry(set).or_default().push(element);
            }
        }
        for kind in [libc::NFT_MSG_NEWSETELEM, libc::NFT_MSG_DELSETELEM] {
            for (set, elements) in &old {
                add_elements(&mut batch, kind, *set, elements);
            }
        }
        for (set, elements) in &new {
            add_elements(&mut batch, libc::NFT_MSG_NEWSETELEM, *set, elements);
        }
        self.socket.commit(batch)?;
        if !made.is_empty() {
            self.sets = sets;
            self.shape = self.ask_shape()?;
        }
        Ok(())
    }

    /// As `commit`, and when it is refused, its halves: so that one bad change stops only itself. The first refusal
    /// comes back with its prefix.
    fn commit_in_parts(&mut self, wishes: &[Wish]) -> Result<(), (Refusal, Option<Prefix>)> {
        let Err(refusal) = self.commit(false, wishes) else { return Ok(()) };
        if wishes.len() < 2 || refusal.errno == Errno::PERM {
            return Err((refusal, wishes.first().map(|(_, prefix, _)| *prefix)));
        }
        let (first, second) = wishes.split_at(wishes.len() / 2);
        let first = self.commit_in_parts(first);
        let second = self.commit_in_parts(second);
        first.and(second)
    }

    /// What the kernel holds of these prefixes.
    fn ask_known(&mut self, wishes: &[Wish]) -> Result<HashMap<(Kind, Prefix), Element>, Refusal> {
        let mut known = HashMap::new();
        let sets: BTreeSet<SetId> =
            wishes.iter().map(|(kind, prefix, _)| SetId::of(*kind, *prefix)).collect();
        if wishes.len() <= SINGLE_QUESTIONS_MAX {
            for (kind, prefix, _) in wishes {
                if let Some(element) = self.ask_element(*kind, *prefix)? {
                    known.insert((*kind, *prefix), element);
                }
            }
        } else {
            for set in sets.intersection(&self.sets.clone()) {
                let elements = self.ask_elements(*set)?;
                known.extend(elements.into_iter().map(|element| ((set.kind, element.prefix), element)));
            }
        }
        Ok(known)
    }

    fn ask_element(&mut self, kind: Kind, prefix: Prefix) -> Result<Option<Element>, Refusal> {
        let set = SetId::of(kind, prefix);
        if !self.sets.contains(&set) {
            return Ok(None);
        }
        let mut question = element_list(libc::NFT_MSG_GETSETELEM, set);
        question.nest(3, |m| {
            m.nest(1, |m| key(m, prefix));
        });
        let mut found = None;
        let asked = self.socket.ask(&question, &mut |body| {
            if let Some(body) = body {
                found = elements(set, body).next();
            }
        });
        match asked {
            Ok(()) => Ok(found),
            // Also when the set itself is gone: the transaction will say so.
            Err(Refusal { errno: Errno::NOENT, .. }) => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    fn ask_elements(&mut self, set: SetId) -> Result<Vec<Element>, Refusal> {
        let mut question = Message::new(libc::NFT_MSG_GETSETELEM, libc::NLM_F_DUMP);
        question.text(1, TABLE).text(2, &set.name());
        // A resized hash may show an element twice.
        let mut found = BTreeMap::new();
        self.socket.ask(&question, &mut |body| match body {
            Some(body) => found.extend(elements(set, body).map(|element| (element.prefix, element))),
            None => found.clear(),
        })?;
        Ok(found.into_values().collect())
    }

    /// Handle and flags of the table, or `None`.
    fn ask_table(&mut self) -> Result<Option<(u64, u32)>, Refusal> {
        let mut question = Message::new(libc::NFT_MSG_GETTABLE, 0);
        question.text(1, TABLE);
        let mut found = None;
        let asked = self.socket.ask(&question, &mut |body| {
            if let Some(attributes) = body.map(attributes_of) {
                // NFTA_TABLE_FLAGS, NFTA_TABLE_HANDLE.
                found = Some((attributes.u64(4).unwrap_or(0), attributes.u32(2).unwrap_or(0)));
            }
        });
        match asked {
            Ok(()) => Ok(found),
            Err(Refusal { errno: Errno::NOENT, .. }) => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Our sets, and whether every set of the table is one and as we would make it.
    fn ask_sets(&mut self) -> Result<(BTreeSet<SetId>, bool), Refusal> {
        let mut question = Message::new(libc::NFT_MSG_GETSET, libc::NLM_F_DUMP);
        question.text(1, TABLE);
        let capacity = self.capacity();
        let (mut sets, mut fit) = (BTreeSet::new(), true);
        self.socket.ask(&question, &mut |body| match body.map(attributes_of) {
            Some(found) => {
                let set = found.text(2).and_then(SetId::from_name);
                sets.extend(set);
                // NFTA_SET_FLAGS, NFTA_SET_KEY_LEN, NFTA_SET_DESC with NFTA_SET_DESC_SIZE.
                // No flags are no attribute.
                let shape = found.u32(5).map(|key_bytes| (found.u32(3).unwrap_or(0), key_bytes));
                let size = found.nested(9).and_then(|description| description.u32(1));
                fit &= set.is_some_and(|set| shape == Some(set.shape())) && size == Some(capacity);
            }
            None => (sets, fit) = (BTreeSet::new(), true),
        })?;
        Ok((sets, fit))
    }

    fn ask_chains(&mut self) -> Result<BTreeSet<layout::ChainFacts>, Refusal> {
        let mut question = Message::new(libc::NFT_MSG_GETCHAIN, libc::NLM_F_DUMP);
        question.text(1, TABLE);
        let mut chains = BTreeSet::new();
        self.socket.ask(&question, &mut |body| match body.map(attributes_of) {
            Some(found) if found.text(1) == Some(TABLE) => {
                // NFTA_CHAIN_HOOK with NFTA_HOOK_HOOKNUM and NFTA_HOOK_PRIORITY, NFTA_CHAIN_POLICY.
                let hook = found.nested(4).and_then(|hook| Some((hook.u32(1)?, hook.u32(2)?, found.u32(5)?)));
                chains.insert((found.text(3).unwrap_or_default().to_owned(), hook));
            }
            Some(_) => {}
            None => chains.clear(),
        })?;
        Ok(chains)
    }

    /// Packets and bytes counted by the rule that drops.
    fn ask_dropped(&mut self) -> Result<(u64, u64), Refusal> {
        let mut question = Message::new(libc::NFT_MSG_GETRULE, libc::NLM_F_DUMP);
        question.text(1, TABLE).text(2, layout::DROPPED);
        let mut found = (0, 0);
        let asked = self.socket.ask(&question, &mut |body| match body.map(attributes_of) {
            Some(rule) if rule.text(2) == Some(layout::DROPPED) => {
                let expressions = rule.nested(4).into_iter().flat_map(Attributes::iter);
                if let Some(counted) = expressions.filter_map(|(_, bytes)| counter(Attributes(bytes))).next()
                {
                    found = counted;
                }
            }
            Some(_) => {}
            None => found = (0, 0),
        });
        match asked {
            Ok(()) | Err(Refusal { errno: Errno::NOENT, .. }) => Ok(found),
            Err(refusal) => Err(refusal),
        }
    }

    fn ask_shape(&mut self) -> Result<Shape, Refusal> {
        let mut shape = Shape::new();
        let Some((handle, flags)) = self.ask_table()? else { return Ok(shape) };
        // For each: the question, and the attributes with name, handle and what else may be changed in place:
        // NFTA_CHAIN_POLICY, NFTA_SET_FLAGS.
        for (kind, question, name, handle, extra) in [
            (1, libc::NFT_MSG_GETCHAIN, 3, 2, 5),
            (2, libc::NFT_MSG_GETSET, 2, 16, 3),
            (3, libc::NFT_MSG_GETRULE, 2, 3, 0),
        ] {
            let mut question = Message::new(question, libc::NLM_F_DUMP);
            question.text(1, TABLE);
            let mut part = Shape::new();
            self.socket.ask(&question, &mut |body| match body.map(attributes_of) {
                Some(found) if found.text(1) == Some(TABLE) => {
                    let name = found.text(name).unwrap_or_default().to_owned();
                    part.insert((kind, name, found.u64(handle).unwrap_or(0), found.u32(extra).unwrap_or(0)));
                }
                Some(_) => {}
                None => part.clear(),
            })?;
            shape.extend(part);
        }
        shape.insert((0, TABLE.to_owned(), handle, flags));
        Ok(shape)
    }

    fn rebuild_if_changed(&mut self) -> Result<(), Refusal> {
        if self.ask_shape()? != self.shape {
            self.rebuild()?;
            self.repaired = true;
        }
        Ok(())
    }
}

impl Enforcer for Nft {
    fn apply(&mut self, batch: &[Change], now: Timestamp) -> Result<(), EnforceError> {
        let (flush, wishes) = wishes(batch, now);
        let what = || format!("write {} changes to nftables", batch.len());
        let mut first_error = batch.iter().find_map(|change| match change {
            Change::Ban(ban) if !ban.scope.is_all() => Some(EnforceError {
                what: format!("ban {} on {}", ban.prefix, ban.scope),
                cause: "nftables bans on all ports only here".to_owned(),
                hint: "ban on all ports".to_owned(),
                prefix: Some(ban.prefix),
            }),
            _ => None,
        });
        let mut flush = flush;
        let mut parts = wishes.chunks(TRANSACTION_CHANGES_MAX);
        // A flush goes with the first part, so that what stays banned is never free.
        while let Some(part) = parts.next().or(flush.then_some(&[])) {
            let mut done = self.commit(flush, part);
            if done.as_ref().is_err_and(|refusal| refusal.errno == Errno::NOENT) {
                // The table or a chain of it was deleted under us: put it back, and say so in `repair`.
                done = self.rebuild_if_changed().and_then(|()| self.commit(flush, part));
            }
            if done.is_err() && flush {
                done = self.commit(true, &[]).and_then(|()| self.commit(false, part));
            }
            flush = false;
            if done.is_err()
                && let Err((refusal, prefix)) = self.commit_in_parts(part)
            {
                let mut what = what();
                if let Some(prefix) = prefix {
                    let _infallible = write!(what, ": {prefix}");
                }
                first_error.get_or_insert(EnforceError { prefix, ..error(&what, &refusal) });
            } else if let Err(refusal) = done
                && part.is_empty()
            {
                first_error.get_or_insert(error(&what(), &refusal));
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn entries(&mut self, now: Timestamp) -> Result<Vec<Entry>, EnforceError> {
        let mut entries = Vec::new();
        for set in self.sets.clone().into_iter().filter(|set| set.kind == Kind::Ban) {
            let elements = match self.ask_elements(set) {
                Ok(elements) => elements,
                Err(Refusal { errno: Errno::NOENT, .. }) => Vec::new(),
                Err(refusal) => return Err(error("read the bans from nftables", &refusal)),
            };
            entries.extend(elements.into_iter().map(|element| Entry {
                prefix: element.prefix,
                scope: Scope::ALL,
                until: match element.left_ms {
                    Some(left) => Until::At(now.saturating_add(std::time::Duration::from_millis(left))),
                    None => Until::Forever,
                },
                packets: element.packets,
            }));
        }
        entries.retain(|entry| !entry.until.is_over(now));
        entries.sort_unstable_by_key(|entry| entry.prefix);
        Ok(entries)
    }

    fn allowed(&mut self) -> Result<Vec<Prefix>, EnforceError> {
        let mut allowed = Vec::new();
        for set in self.sets.clone().into_iter().filter(|set| set.kind == Kind::Allow) {
            match self.ask_elements(set) {
                Ok(elements) => allowed.extend(elements.into_iter().map(|element| element.prefix)),
                Err(Refusal { errno: Errno::NOENT, .. }) => {}
                Err(refusal) => return Err(error("read the allowlist from nftables", &refusal)),
            }
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
        Ok(if std::mem::take(&mut self.repaired) { Health::Repaired } else { Health::Sound })
    }

    fn describe(&self) -> Description {
        Description {
            backend: "nftables",
            attachments: vec!["table inet blocker, prerouting, every interface: priority -450".to_owned()],
            reason: "drops before conntrack and on every interface; XDP would drop earlier and cost less"
                .to_owned(),
        }
    }

    fn close(mut self: Box<Self>, keep: Keep) -> Result<(), EnforceError> {
        if keep == Keep::InForce {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.add(&layout::table(), MsgType::Del);
        match self.socket.commit(batch) {
            Ok(()) | Err(Refusal { errno: Errno::NOENT, .. }) => Ok(()),
            Err(refusal) => Err(error("delete the nftables table inet blocker", &refusal)),
        }
    }
}

/// What a batch comes to: whether bans are flushed first, and the last word on each prefix, in the order in which
/// the prefixes were first named.
fn wishes(batch: &[Change], now: Timestamp) -> (bool, Vec<Wish>) {
    let mut flush = false;
    let mut wishes: Vec<Wish> = Vec::with_capacity(batch.len());
    let mut places: HashMap<(Kind, Prefix), usize> = HashMap::with_capacity(batch.len());
    for change in batch {
        let (kind, prefix, goal) = match change {
            // Never widened: whoever bans on some ports wants the others open. `apply` says so.
            Change::Ban(ban) if !ban.scope.is_all() => continue,
            Change::Unban { scope, .. } if !scope.is_all() => continue,
            Change::Ban(ban) => (Kind::Ban, ban.prefix, goal(ban.until, now)),
            Change::Unban { prefix, .. } => (Kind::Ban, *prefix, Goal::Gone),
            Change::Allow { prefix } => (Kind::Allow, *prefix, Goal::Held(None)),
            Change::Disallow { prefix } => (Kind::Allow, *prefix, Goal::Gone),
            Change::Flush => {
                flush = true;
                wishes.retain(|(kind, ..)| *kind == Kind::Allow);
                places = wishes
                    .iter()
                    .enumerate()
                    .map(|(place, (kind, prefix, _))| ((*kind, *prefix), place))
                    .collect();
                continue;
            }
        };
        match places.get(&(kind, prefix)).and_then(|place| wishes.get_mut(*place)) {
            Some(wish) => wish.2 = goal,
            None => {
                places.insert((kind, prefix), wishes.len());
                wishes.push((kind, prefix, goal));
            }
        }
    }
    (flush, wishes)
}

fn goal(until: Until, now: Timestamp) -> Goal {
    match until {
        Until::Forever => Goal::Held(None),
        Until::At(_) if until.is_over(now) => Goal::Gone,
        Until::At(end) => {
            let left = end.saturating_since(now).as_micros().div_ceil(1_000);
            Goal::Held(Some(u64::try_from(left).unwrap_or(u64::MAX).min(TIMEOUT_MS_MAX)))
        }
    }
}

/// Whether an element already ends when it shall, as those do that a restarted agent asks for again.
fn is_near(left_ms: Option<u64>, wanted_ms: Option<u64>) -> bool {
    match (left_ms, wanted_ms) {
        (Some(left), Some(wanted)) => left.abs_diff(wanted) <= NEAR_MS,
        (left, wanted) => left == wanted,
    }
}

/// One set for each chain that asks any of these.
fn one_of_each(sets: &BTreeSet<SetId>) -> impl Iterator<Item = SetId> {
    let chains: BTreeMap<(Kind, bool), SetId> = sets.iter().map(|set| ((set.kind, set.v6), *set)).collect();
    chains.into_values()
}

fn element_list(kind: libc::c_int, set: SetId) -> Message {
    let flags = match kind {
        libc::NFT_MSG_NEWSETELEM => libc::NLM_F_CREATE | libc::NLM_F_ACK,
        libc::NFT_MSG_DELSETELEM => libc::NLM_F_ACK,
        _ => 0,
    };
    let mut message = Message::new(kind, flags);
    message.text(1, TABLE).text(2, &set.name());
    message
}

fn add_elements(batch: &mut Batch, kind: libc::c_int, set: SetId, elements: &[Element]) {
    let adds = kind == libc::NFT_MSG_NEWSETELEM;
    for part in elements.chunks(MESSAGE_ELEMENTS_MAX) {
        let mut message = element_list(kind, set);
        // NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_LIST_ELEM.
        message.nest(3, |m| {
            for element in part {
                m.nest(1, |m| {
                    key(m, element.prefix);
                    if adds && let Some(left) = element.left_ms {
                        m.u64(4, left.max(1));
                    }
                    if adds && element.packets > 0 {
                        m.nest(7, |m| layout::counter(m, element.packets, element.bytes));
                    }
                });
            }
        });
        batch.add(&message, if adds { MsgType::Add } else { MsgType::Del });
    }
}

/// NFTA_SET_ELEM_KEY with NFTA_DATA_VALUE.
fn key(message: &mut Message, prefix: Prefix) {
    message.nest(1, |m| {
        match prefix.address() {
            std::net::IpAddr::V4(v4) => m.bytes(1, &v4.octets()),
            std::net::IpAddr::V6(v6) => m.bytes(1, &v6.octets()),
        };
    });
}

/// The elements of one answer.
fn elements(set: SetId, body: &[u8]) -> impl Iterator<Item = Element> {
    let list = attributes_of(body).nested(3).into_iter().flat_map(Attributes::iter);
    list.filter_map(move |(_, element)| {
        let element = Attributes(element);
        let prefix = set.prefix(element.nested(1)?.get(1)?)?;
        // NFTA_SET_ELEM_EXPIRATION is what is left; NFTA_SET_ELEM_EXPR, or in a list NFTA_SET_ELEM_EXPRESSIONS.
        let expression = element.nested(7).or_else(|| element.nested(11)?.nested(1));
        let (packets, bytes) = expression.and_then(counter).unwrap_or((0, 0));
        let left_ms = element.get(4).and_then(|_| element.u64(5));
        Some(Element { prefix, left_ms, packets, bytes })
    })
}

/// Packets and bytes, when the expression is a counter.
fn counter(expression: Attributes<'_>) -> Option<(u64, u64)> {
    let data = expression.text(1).filter(|name| *name == "counter").and_then(|_| expression.nested(2))?;
    Some((data.u64(2)?, data.u64(1)?))
}

fn error(what: &str, refusal: &Refusal) -> EnforceError {
    let hint = match refusal.errno {
        Errno::PERM | Errno::ACCESS => "nftables needs the capability CAP_NET_ADMIN",
        Errno::NFILE => "the set is full; raise `[enforce] max_bans` and restart",
        Errno::NOENT | Errno::INTR | Errno::EXIST | Errno::BUSY => RELOAD_HINT,
        Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::OPNOTSUPP | Errno::INVAL | Errno::PROTO => {
            "does this kernel have nf_tables? Try `modprobe nf_tables`"
        }
        Errno::NOMEM | Errno::NOBUFS | Errno::MSGSIZE => "the kernel is short of memory",
        _ => "",
    };
    let mut cause = std::io::Error::from(refusal.errno).to_string();
    if refusal.errno == Errno::NFILE {
        "no room in the set (ENFILE)".clone_into(&mut cause);
    }
    if !refusal.explanation.is_empty() {
        let _infallible = write!(cause, " ({})", refusal.explanation);
    }
    EnforceError { what: what.to_owned(), cause, hint: hint.to_owned(), prefix: None }
}
