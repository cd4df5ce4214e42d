//! Bans in an nftables table of our own, written over netlink; no `nft` process, no foreign table touched.
//!
//! Elements carry their timeout, so the kernel ends bans without an agent; the table stays when the agent goes, and is
//! adopted when it comes back. What the table looks like is in `ruleset`, what goes over the wire in `wire`.
#![deny(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    time::Duration,
};

use nftnl::{Batch, MsgType, nftnl_sys::libc};

use super::{Counters, Description, EnforceError, Enforcer, Entry, Health, Keep};
use crate::{
    engine::Change,
    net::Prefix,
    time::{Timestamp, Until},
};

mod ruleset;
mod socket;
mod uapi;
mod wire;

use ruleset::{SetKind, TABLE, key};
use socket::{Netlink, RAW_BYTES_MAX, Raw};
use wire::{Attributes, Attrs, message};

/// Elements in one message; the kernel's attribute lengths are 16 bits, and the library cuts longer ones silently.
const ELEMENTS_PER_MESSAGE: usize = 500;
/// Elements changed in one transaction.
const ELEMENTS_PER_BATCH: usize = 10_000;
/// The longest timeout the kernel takes is in jiffies of 64 bits; this one is beyond every operator.
const TIMEOUT_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The nftables enforcer.
pub struct Nft {
    netlink: Netlink,
    sets: BTreeSet<SetKind>,
    bans_max: u32,
}

impl fmt::Debug for Nft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nft").field("sets", &self.sets).finish_non_exhaustive()
    }
}

fn refused(what: &str, error: &io::Error) -> EnforceError {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "this needs the capability CAP_NET_ADMIN: run as root, or with the shipped systemd unit"
        }
        // What the kernel answers when a set is full.
        Some(libc::ENFILE) => "the set is full; raise `[enforce] max_bans` and restart",
        Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => {
            "this kernel has no nf_tables; load it with `modprobe nf_tables`"
        }
        _ => "",
    };
    EnforceError { what: what.to_owned(), cause: error.to_string(), hint: hint.to_owned(), prefix: None }
}

/// What becomes of a prefix; of several changes to one, the last counts.
#[derive(Clone, Copy, Debug)]
enum Put {
    /// In, for this long or without end.
    In(Option<Duration>),
    Out,
}

impl Nft {
    /// Adopts the table of this network namespace, or makes it. Each set holds at most `bans_max` elements.
    ///
    /// # Errors
    /// When the capability or nf_tables is missing.
    pub fn open(bans_max: usize) -> Result<Self, EnforceError> {
        let netlink =
            Netlink::open().map_err(|error| refused("open a netlink socket to nftables", &error))?;
        let bans_max = u32::try_from(bans_max.max(1)).unwrap_or(u32::MAX);
        let mut nft = Self { netlink, sets: BTreeSet::new(), bans_max };
        nft.sets = nft.sets_in_kernel()?;
        if !nft.is_whole()? {
            nft.sets.clear();
            nft.make()?;
        }
        Ok(nft)
    }

    fn make(&mut self) -> Result<(), EnforceError> {
        let mut batch = Batch::new();
        ruleset::create(&mut batch);
        ruleset::add_sets(&mut batch, &self.sets, self.bans_max);
        self.netlink.send(batch).map_err(|error| refused("make the nftables table inet blocker", &error))
    }

    fn list<T>(
        &mut self,
        what: &str,
        kind: i32,
        attributes: &Attributes,
        each: impl FnMut(Attrs<'_>) -> Option<T>,
    ) -> Result<Vec<T>, EnforceError> {
        let mut each = each;
        self.netlink
            .dump(kind, attributes, |message| each(message.attributes()))
            .map_err(|error| refused(what, &error))
    }

    /// Our sets as the kernel lists them.
    fn sets_in_kernel(&mut self) -> Result<BTreeSet<SetKind>, EnforceError> {
        let of_table = Attributes::default().text(uapi::NFTA_SET_TABLE, TABLE);
        let names = self.list("list the nftables sets", libc::NFT_MSG_GETSET, &of_table, |set| {
            let ours = set.text(uapi::NFTA_SET_TABLE) == Some(TABLE);
            ours.then(|| SetKind::from_name(set.text(uapi::NFTA_SET_NAME)?)).flatten()
        })?;
        Ok(names.into_iter().collect())
    }

    /// Whether the table has our layout, the sets we know of, and every rule.
    fn is_whole(&mut self) -> Result<bool, EnforceError> {
        let of_table = Attributes::default().text(uapi::NFTA_RULE_TABLE, TABLE);
        let chains = self.list("list the nftables chains", libc::NFT_MSG_GETCHAIN, &of_table, |chain| {
            let ours = chain.text(uapi::NFTA_CHAIN_TABLE) == Some(TABLE);
            ours.then(|| chain.text(uapi::NFTA_CHAIN_NAME).map(str::to_owned)).flatten()
        })?;
        if !chains.iter().any(|name| name == ruleset::LAYOUT)
            || !chains.iter().any(|name| name == "prerouting")
        {
            return Ok(false);
        }
        let rules = self.list("list the nftables rules", libc::NFT_MSG_GETRULE, &of_table, |rule| {
            (rule.text(uapi::NFTA_RULE_TABLE) == Some(TABLE)).then_some(())
        })?;
        Ok(rules.len() == ruleset::FIXED_RULES + self.sets.len() && self.sets_in_kernel()? == self.sets)
    }

    /// Puts these prefixes in or out, in one transaction.
    fn transact(&mut self, puts: &[(SetKind, Prefix, Put)]) -> io::Result<()> {
        let mut batch = Batch::new();
        let wanted: BTreeSet<SetKind> = puts.iter().map(|(kind, ..)| *kind).collect();
        let new: BTreeSet<SetKind> = wanted.difference(&self.sets).copied().collect();
        ruleset::add_sets(&mut batch, &new, self.bans_max);
        for kind in wanted {
            let of_set: Vec<_> =
                puts.iter().filter(|(of, ..)| *of == kind).map(|(_, prefix, put)| (*prefix, *put)).collect();
            for part in of_set.chunks(ELEMENTS_PER_MESSAGE) {
                // Deleting what is not there fails the batch, and adding what is there may keep the old timeout:
                // added, deleted and added again it is as asked, on every kernel.
                let all: Vec<_> = part.iter().map(|(prefix, _)| (*prefix, None)).collect();
                let put_in: Vec<_> = part
                    .iter()
                    .filter_map(|(prefix, put)| match put {
                        Put::In(timeout) => Some((*prefix, *timeout)),
                        Put::Out => None,
                    })
                    .collect();
                elements(&mut batch, libc::NFT_MSG_NEWSETELEM, kind, &all);
                elements(&mut batch, libc::NFT_MSG_DELSETELEM, kind, &all);
                elements(&mut batch, libc::NFT_MSG_NEWSETELEM, kind, &put_in);
            }
        }
        self.netlink.send(batch)?;
        self.sets.extend(new);
        Ok(())
    }

    /// As [`Self::transact`]; when the kernel refuses, by halves, so that all but the refused are done.
    fn put(&mut self, puts: &[(SetKind, Prefix, Put)]) -> Result<(), EnforceError> {
        let mut first = Ok(());
        for part in puts.chunks(ELEMENTS_PER_BATCH) {
            let Err(error) = self.transact(part) else { continue };
            let outcome = match part {
                [] => Ok(()),
                [(_, prefix, _)] => {
                    let error = refused(&format!("change {prefix} in the nftables table"), &error);
                    Err(EnforceError { prefix: Some(*prefix), ..error })
                }
                _ => {
                    let (left, right) = part.split_at(part.len() / 2);
                    let left = self.put(left);
                    let right = self.put(right);
                    left.and(right)
                }
            };
            first = first.and(outcome);
        }
        first
    }

    /// Empties every ban set.
    fn flush(&mut self) -> Result<(), EnforceError> {
        let mut batch = Batch::new();
        for kind in self.sets.iter().filter(|kind| !kind.allow) {
            let whole_set = Attributes::default()
                .text(uapi::NFTA_SET_ELEM_LIST_TABLE, TABLE)
                .text(uapi::NFTA_SET_ELEM_LIST_SET, &kind.name());
            batch.add(&Raw(message(libc::NFT_MSG_DELSETELEM, 0, 0, &whole_set)), MsgType::Del);
        }
        self.netlink.send(batch).map_err(|error| refused("empty the nftables sets", &error))
    }

    /// Hands every element of a set, its prefix first, to `each`.
    fn read<T>(
        &mut self,
        kind: SetKind,
        mut each: impl FnMut(Prefix, Attrs<'_>) -> Option<T>,
    ) -> Result<Vec<T>, EnforceError> {
        let of_set = Attributes::default()
            .text(uapi::NFTA_SET_ELEM_LIST_TABLE, TABLE)
            .text(uapi::NFTA_SET_ELEM_LIST_SET, &kind.name());
        let lists =
            self.list("list the nftables elements", libc::NFT_MSG_GETSETELEM, &of_set, |message| {
                let elements = message.nested(uapi::NFTA_SET_ELEM_LIST_ELEMENTS)?;
                let found = elements.all(uapi::NFTA_LIST_ELEM).filter_map(|element| {
                    let key = element.nested(uapi::NFTA_SET_ELEM_KEY)?.get(uapi::NFTA_DATA_VALUE)?;
                    each(kind.prefix(key)?, element)
                });
                Some(found.collect::<Vec<_>>())
            })?;
        Ok(lists.into_iter().flatten().collect())
    }
}

/// Adds a message about these elements, or none when there are none.
fn elements(batch: &mut Batch, kind: i32, set: SetKind, elements: &[(Prefix, Option<Duration>)]) {
    if elements.is_empty() {
        return;
    }
    let list = elements.iter().fold(Attributes::default(), |list, (prefix, timeout)| {
        let value = Attributes::default().bytes(uapi::NFTA_DATA_VALUE, &key(*prefix));
        let mut element = Attributes::default().nested(uapi::NFTA_SET_ELEM_KEY, &value);
        if let Some(timeout) = timeout {
            let millis = u64::try_from(timeout.min(&TIMEOUT_MAX).as_millis()).unwrap_or(u64::MAX).max(1);
            element = element.u64(uapi::NFTA_SET_ELEM_TIMEOUT, millis);
        }
        list.nested(uapi::NFTA_LIST_ELEM, &element)
    });
    debug_assert!(list.len() < RAW_BYTES_MAX, "{ELEMENTS_PER_MESSAGE} elements fit into a message");
    let of_set = Attributes::default()
        .text(uapi::NFTA_SET_ELEM_LIST_TABLE, TABLE)
        .text(uapi::NFTA_SET_ELEM_LIST_SET, &set.name())
        .nested(uapi::NFTA_SET_ELEM_LIST_ELEMENTS, &list);
    let (flags, how) =
        if kind == libc::NFT_MSG_NEWSETELEM { (libc::NLM_F_CREATE, MsgType::Add) } else { (0, MsgType::Del) };
    batch.add(&Raw(message(kind, flags, 0, &of_set)), how);
}

/// The counter among these expressions: packets and bytes.
fn counter(expression: Attrs<'_>) -> Option<Counters> {
    if expression.text(uapi::NFTA_EXPR_NAME) != Some("counter") {
        return None;
    }
    let data = expression.nested(uapi::NFTA_EXPR_DATA)?;
    Some(Counters {
        packets: data.u64(uapi::NFTA_COUNTER_PACKETS)?,
        bytes: data.u64(uapi::NFTA_COUNTER_BYTES)?,
    })
}

impl Enforcer for Nft {
    fn apply(&mut self, batch: &[Change], now: Timestamp) -> Result<(), EnforceError> {
        let mut puts: BTreeMap<(SetKind, Prefix), Put> = BTreeMap::new();
        let mut flush = false;
        for change in batch {
            let (prefix, allow, put) = match change {
                Change::Ban(ban) => {
                    let put = match ban.until {
                        Until::Forever => Put::In(None),
                        Until::At(end) if end <= now => Put::Out,
                        Until::At(end) => Put::In(Some(end.saturating_since(now))),
                    };
                    (ban.prefix, false, put)
                }
                Change::Unban { prefix } => (*prefix, false, Put::Out),
                Change::Allow { prefix } => (*prefix, true, Put::In(None)),
                Change::Disallow { prefix } => (*prefix, true, Put::Out),
                Change::Flush => {
                    puts.retain(|(kind, _), _| kind.allow);
                    flush = true;
                    continue;
                }
            };
            puts.insert((SetKind::of(prefix, allow), prefix), put);
        }
        let flushed = if flush { self.flush() } else { Ok(()) };
        // What is out of a set that does not exist is out already.
        puts.retain(|(kind, _), put| matches!(put, Put::In(_)) || self.sets.contains(kind));
        let puts: Vec<_> = puts.into_iter().map(|((kind, prefix), put)| (kind, prefix, put)).collect();
        flushed.and(self.put(&puts))
    }

    fn entries(&mut self, now: Timestamp) -> Result<Vec<Entry>, EnforceError> {
        let mut entries = Vec::new();
        for kind in self.sets.clone().into_iter().filter(|kind| !kind.allow) {
            entries.extend(self.read(kind, |prefix, element| {
                let timeout = element.u64(uapi::NFTA_SET_ELEM_TIMEOUT);
                let left = element.u64(uapi::NFTA_SET_ELEM_EXPIRATION);
                let until = match (timeout, left) {
                    (None, _) => Until::Forever,
                    (Some(_), Some(left)) if left > 0 => {
                        Until::At(now.saturating_add(Duration::from_millis(left)))
                    }
                    _ => return None,
                };
                let counted = element.nested(uapi::NFTA_SET_ELEM_EXPR).and_then(counter).unwrap_or_default();
                Some(Entry { prefix, until, packets: counted.packets })
            })?);
        }
        entries.sort_unstable_by_key(|entry| entry.prefix);
        Ok(entries)
    }

    fn allowed(&mut self) -> Result<Vec<Prefix>, EnforceError> {
        let mut allowed = Vec::new();
        for kind in self.sets.clone().into_iter().filter(|kind| kind.allow) {
            allowed.extend(self.read(kind, |prefix, _| Some(prefix))?);
        }
        allowed.sort_unstable();
        Ok(allowed)
    }

    fn counters(&mut self) -> Result<Counters, EnforceError> {
        let of_chain =
            Attributes::default().text(uapi::NFTA_RULE_TABLE, TABLE).text(uapi::NFTA_RULE_CHAIN, "dropped");
        let counted = self.list("read the nftables counter", libc::NFT_MSG_GETRULE, &of_chain, |rule| {
            let dropped = rule.text(uapi::NFTA_RULE_CHAIN) == Some("dropped");
            let expressions = rule.nested(uapi::NFTA_RULE_EXPRESSIONS).filter(|_| dropped)?;
            expressions.all(uapi::NFTA_LIST_ELEM).find_map(counter)
        })?;
        Ok(counted.first().copied().unwrap_or_default())
    }

    fn repair(&mut self) -> Result<Health, EnforceError> {
        if self.is_whole()? {
            return Ok(Health::Sound);
        }
        self.make()?;
        Ok(Health::Repaired)
    }

    fn describe(&self) -> Description {
        Description {
            backend: "nftables",
            attachments: vec!["table inet blocker, hook prerouting".to_owned()],
            reason: String::new(),
        }
    }

    fn close(mut self: Box<Self>, keep: Keep) -> Result<(), EnforceError> {
        if keep == Keep::InForce {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.add(&nftnl::Table::new(c"blocker", nftnl::ProtoFamily::Inet), MsgType::Del);
        self.netlink.send(batch).map_err(|error| refused("delete the nftables table inet blocker", &error))
    }
}
