//! The table `inet blocker`: its chains, rules and sets, as messages of a batch.
//!
//! A prefix length has sets of its own, looked up with the masked source address: `ip saddr & 255.0.0.0 @ban4_8`. Every
//! set is a plain hash, so 10.0.0.0/8 and 10.1.0.0/16 are two elements that know nothing of each other, where an
//! interval set refuses the second; each has its own end and its own counter. Longer prefixes are asked first, so a
//! packet counts for the narrowest ban. Sets and their rules are made when a length is first used; a [`Guard`] keeps
//! honest packets from asking all of them, and [`Shards`] keep each small enough to be listed.
//!
//! `accept` and the end of our chain mean the same to other tables: they still judge.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    ffi::CStr,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nftnl::{
    Batch, Chain, ChainType, Hook, MsgType, Policy, ProtoFamily, Rule as LongRule, Table,
    expr::{
        Bitwise, Cmp, CmpOp, Expression, Meta, NetworkHeaderField, Payload, TransportHeaderField,
        Verdict as LongVerdict,
    },
};

use super::{
    guard::Guard,
    message::Message,
    ports::{self, Scopes},
    rule::{Rule, Verdict, no_rules},
    shard::Shards,
};
use crate::net::{Prefix, SCOPES_MAX};

/// The table, in the family `inet`.
pub(super) const TABLE: &str = "blocker";
const TABLE_C: &CStr = c"blocker";
/// Where every banned packet ends, counted.
pub(super) const DROPPED: &str = "dropped";
/// `NF_IP_PRI_RAW_BEFORE_DEFRAG`: before fragments are joined (-400), so each is judged and counted as it came, and
/// before conntrack (-200).
const PRIORITY: i32 = -450;
/// How often the kernel frees expired elements, which it ignores at once. Its own second costs 6 % of a core with a
/// million elements.
const GC_INTERVAL_MS: u32 = 60_000;
/// The longest prefix length that has no more values than one set may well hold: 65,536.
const LENGTH_UNSHARDED_MAX: u8 = 16;
/// The kernel puts a number there.
const MAP: &str = "__map%d";
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// What an element means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// Its sources are dropped.
    Ban,
    /// Its sources pass.
    Allow,
    /// Its sources are dropped when they go to the ports of the list with this number.
    Ports(u8),
}

impl Kind {
    /// Whether it drops.
    pub(super) fn is_ban(self) -> bool {
        self != Self::Allow
    }
}

/// One set: the prefixes of one kind, family and length, or the shard of them that has this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SetId {
    pub(super) kind: Kind,
    pub(super) v6: bool,
    pub(super) length: u8,
    pub(super) shard: Option<u8>,
}

impl SetId {
    /// `ban4_32`, `allow6_64`, `ban4_32_s7`, `ports4_3_32`.
    pub(super) fn name(self) -> String {
        let (root, length) = (root(self.kind, self.v6), self.length);
        match self.shard {
            None => format!("{root}_{length}"),
            Some(shard) => format!("{root}_{length}_s{shard}"),
        }
    }

    /// The set of this name, when it is one of ours.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let (mut kind, rest) = match name.strip_prefix("ban") {
            Some(rest) => (Kind::Ban, rest),
            None => (Kind::Allow, name.strip_prefix("allow").or_else(|| name.strip_prefix("ports"))?),
        };
        let (family, mut rest) = rest.split_once('_')?;
        if name.starts_with("ports") {
            let (number, length) = rest.split_once('_')?;
            kind = Kind::Ports(
                number.parse().ok().filter(|number| (1..=SCOPES_MAX).contains(&usize::from(*number)))?,
            );
            rest = length;
        }
        let (length, shard) = match rest.split_once("_s") {
            None => (rest, None),
            Some((length, shard)) => (length, Some(shard.parse().ok()?)),
        };
        let id = Self { kind, v6: family == "6", length: length.parse().ok()?, shard };
        (id.name() == name && id.length <= if id.v6 { 128 } else { 32 }).then_some(id)
    }

    /// The prefix of an element with this key.
    pub(super) fn prefix(self, key: &[u8]) -> Option<Prefix> {
        let address: IpAddr = if self.v6 {
            Ipv6Addr::from(<[u8; 16]>::try_from(key).ok()?).into()
        } else {
            Ipv4Addr::from(<[u8; 4]>::try_from(key).ok()?).into()
        };
        Prefix::new(address, self.length)
    }

    /// A number for the map that leads to the shards of this length, among those of one transaction.
    fn map_id(self) -> u32 {
        2 + u32::from(self.length) + if self.v6 { 256 } else { 0 }
    }

    fn key_bytes(self) -> u8 {
        if self.v6 { 16 } else { 4 }
    }

    fn mask(self) -> Vec<u8> {
        let bits = if self.v6 { 128 } else { 32 };
        let ones = u128::MAX.checked_shl(bits - u32::from(self.length)).unwrap_or(0);
        if self.v6 { ones.to_be_bytes().to_vec() } else { ones.to_be_bytes()[12..].to_vec() }
    }

    /// A rule that has loaded the key of this length.
    fn rule(self, chain: &str) -> Rule {
        Rule::of(chain).family(self.v6).source(self.v6, self.key_bytes()).masked(&self.mask())
    }

    /// The lookup of this set itself.
    fn lookup(self, chain: &str) -> Message {
        let verdict = match self.kind {
            Kind::Ban | Kind::Ports(_) => Verdict::Goto(DROPPED),
            Kind::Allow => Verdict::Accept,
        };
        self.rule(chain).if_in(&self.name()).verdict(verdict).message(TABLE)
    }
}

/// `ban4`, `allow6`, `ports4_3`: the chain of a kind and family, with which its sets' names begin.
pub(super) fn root(kind: Kind, v6: bool) -> String {
    let family = if v6 { 6 } else { 4 };
    match kind {
        Kind::Ban => format!("ban{family}"),
        Kind::Allow => format!("allow{family}"),
        Kind::Ports(number) => format!("{}_{number}", ports::dispatch(v6)),
    }
}

/// What a set is, as the kernel lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SetFacts {
    pub(super) flags: u32,
    pub(super) key_bytes: u32,
    /// Elements at most; `None` when there is no bound.
    pub(super) size: Option<u32>,
    /// Whether each element gets a counter.
    pub(super) counts: bool,
    /// NFTA_SET_USERDATA.
    pub(super) note: Vec<u8>,
}

/// What distinguishes one table of ours from another.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) bans_max: usize,
    /// Whether each ban counts its packets.
    pub(super) counters: bool,
    pub(super) shards: Shards,
    /// Which lists of ports bans are on.
    pub(super) scopes: Scopes,
}

impl Layout {
    /// The set that holds a prefix.
    pub(super) fn set_of(&self, kind: Kind, prefix: Prefix) -> SetId {
        let v6 = prefix.address().is_ipv6();
        let shard = self.is_sharded(kind, prefix.length()).then(|| match prefix.address() {
            IpAddr::V4(v4) => self.shards.place(&v4.octets()),
            IpAddr::V6(v6) => self.shards.place(&v6.octets()),
        });
        let shard = shard.and_then(|place| u8::try_from(place).ok());
        SetId { kind, v6, length: prefix.length(), shard }
    }

    fn is_sharded(&self, kind: Kind, length: u8) -> bool {
        self.shards.count > 1 && kind == Kind::Ban && length > LENGTH_UNSHARDED_MAX
    }

    /// Bans that fit into one set: half as many again as may be, since expired ones are freed only every minute and
    /// shards are not quite even. The kernel makes room for them at once, 8 bytes each.
    fn capacity(&self, set: SetId) -> u32 {
        let share = match set.shard {
            Some(_) => self.bans_max.div_ceil(usize::try_from(self.shards.count).unwrap_or(1)),
            None => self.bans_max,
        };
        let capacity = u32::try_from(share.saturating_add(share / 2)).unwrap_or(u32::MAX).max(64);
        let values = 1_u32.checked_shl(set.length.into()).unwrap_or(u32::MAX);
        // Expired elements are there beside their successors.
        capacity.min(values.saturating_mul(2).max(64))
    }

    /// Whether a set is as we would make it.
    pub(super) fn makes(&self, name: &str, found: &SetFacts) -> bool {
        if name.starts_with("__map") {
            return found.note == self.map_note();
        }
        self.facts(name).as_ref() == Some(found)
    }

    /// What the set or guard of this name must be; `None` when none of ours has this name.
    fn facts(&self, name: &str) -> Option<SetFacts> {
        if let Some(guard) = Guard::ALL.into_iter().find(|guard| guard.name() == name) {
            return Some(SetFacts {
                key_bytes: guard.key_bytes().into(),
                size: (!guard.is_v6()).then_some(1 << 16),
                note: typeof_source(guard.is_v6(), guard.key_bytes()),
                ..SetFacts::default()
            });
        }
        let set = SetId::from_name(name)?;
        let fits = match set.shard {
            Some(shard) => self.is_sharded(set.kind, set.length) && u32::from(shard) < self.shards.count,
            None => !self.is_sharded(set.kind, set.length),
        };
        let bans = set.kind.is_ban();
        let note = self.scopes.note(set.kind)?;
        fits.then_some(SetFacts {
            flags: if bans { libc::NFT_SET_TIMEOUT as u32 } else { 0 },
            key_bytes: set.key_bytes().into(),
            size: Some(self.capacity(set)),
            counts: bans && self.counters,
            note,
        })
    }

    /// The message that makes the set or guard of this name.
    fn create_set(&self, name: &str) -> Message {
        let facts = self.facts(name).unwrap_or_default();
        // For `nft list`: 7 ipv4_addr, 8 ipv6_addr; 4, a number, for the guards.
        let key_type = match facts.key_bytes {
            _ if SetId::from_name(name).is_none() => 4,
            16 => 8,
            _ => 7,
        };
        let mut message = Message::new(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE);
        // NFTA_SET_TABLE, _NAME, _FLAGS, _KEY_TYPE, _KEY_LEN, _ID, which every set must have.
        message.text(1, TABLE).text(2, name).u32(3, facts.flags).u32(4, key_type).u32(5, facts.key_bytes);
        message.u32(10, 1);
        if let Some(size) = facts.size {
            // NFTA_SET_DESC with NFTA_SET_DESC_SIZE.
            message.nest(9, |m| {
                m.u32(1, size);
            });
        }
        if facts.flags & libc::NFT_SET_TIMEOUT as u32 != 0 {
            // NFTA_SET_GC_INTERVAL.
            message.u32(12, GC_INTERVAL_MS);
        }
        if !facts.note.is_empty() {
            // NFTA_SET_USERDATA.
            message.bytes(13, &facts.note);
        }
        if facts.counts {
            // NFTA_SET_EXPR: every element gets a counter.
            message.nest(17, |m| {
                m.text(1, "counter");
            });
        }
        message
    }

    /// Adds a set, and for a shard the chain that asks it. The rules that lead there are left to [`Self::lookups`].
    pub(super) fn add_set(&self, batch: &mut Batch, set: SetId) {
        batch.add(&self.create_set(&set.name()), MsgType::Add);
        if set.shard.is_some() {
            let chain = set.name();
            batch.add(&create_chain(TABLE, &chain), MsgType::Add);
            batch.add(&set.lookup(&chain), MsgType::Add);
        }
        if matches!(set.kind, Kind::Ports(_)) {
            for chain in [ports::dispatch(set.v6), &root(set.kind, set.v6)] {
                batch.add(&create_chain(TABLE, chain), MsgType::Add);
            }
        }
    }

    /// Adds the map of a rule that leads to these shards of one length. It has no name and goes with its rule, as those
    /// that `nft` writes, which can read its own list again this way.
    fn add_map(&self, batch: &mut Batch, id: u32, shards: &[SetId]) {
        let flags = libc::NFT_SET_ANONYMOUS | libc::NFT_SET_CONSTANT | libc::NFT_SET_MAP;
        let mut map = Message::new(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE);
        // NFTA_SET_TABLE, _NAME, _FLAGS, _KEY_TYPE (a number), _KEY_LEN, _DATA_TYPE, _DESC, _ID, _USERDATA.
        map.text(1, TABLE).text(2, MAP).u32(3, flags as u32).u32(4, 4).u32(5, 4);
        map.u32(6, libc::NFT_DATA_VERDICT).nest(9, |m| {
            m.u32(1, u32::try_from(shards.len()).unwrap_or(0));
        });
        map.u32(10, id).bytes(13, &self.map_note());
        batch.add(&map, MsgType::Add);
        let mut elements = Message::new(libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE);
        // NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS, _SET_ID.
        elements.text(1, TABLE).text(2, MAP).u32(4, id).nest(3, |m| {
            for set in shards {
                // NFTA_LIST_ELEM with NFTA_SET_ELEM_KEY and NFTA_SET_ELEM_DATA.
                m.nest(1, |m| {
                    m.nest(1, |m| {
                        m.bytes(1, &u32::from(set.shard.unwrap_or(0)).to_ne_bytes());
                    });
                    m.nest(2, |m| Verdict::Jump(&set.name()).write(m));
                });
            }
        });
        batch.add(&elements, MsgType::Add);
    }

    /// That the keys are numbers in host order, as `nft` notes it (type 0, 4 bytes, 1), and which shards these are.
    fn map_note(&self) -> Vec<u8> {
        [&[0, 4][..], &1_u32.to_ne_bytes(), &self.shards.note()].concat()
    }

    /// Adds the chains and the guards to a table that is new.
    pub(super) fn create(&self, batch: &mut Batch, table: &Table) {
        for name in CHAINS {
            batch.add(&create_chain(TABLE, name), MsgType::Add);
        }
        let mut base = Chain::new(BASE_C, table);
        base.set_hook(Hook::PreRouting, PRIORITY);
        base.set_type(ChainType::Filter);
        base.set_policy(Policy::Accept);
        batch.add(&base, MsgType::Add);
        for guard in Guard::ALL {
            batch.add(&self.create_set(guard.name()), MsgType::Add);
        }
    }

    /// Replaces the rules that ask sets of one kind and family, longest prefixes first.
    pub(super) fn lookups(&self, batch: &mut Batch, kind: Kind, v6: bool, sets: &BTreeSet<SetId>) {
        let root = &root(kind, v6);
        batch.add(&no_rules(root), MsgType::Del);
        for guard in Guard::ALL.into_iter().filter(|guard| (guard.kind(), guard.is_v6()) == (kind, v6)) {
            batch.add(&no_rules(guard.name()), MsgType::Del);
        }
        let mut lengths: Vec<SetId> = sets
            .iter()
            .filter(|set| (set.kind, set.v6) == (kind, v6))
            .map(|set| SetId { shard: None, ..*set })
            .collect();
        lengths.dedup();
        let mut asked = None;
        for set in lengths.into_iter().rev() {
            let guard = Guard::of(kind, v6, set.length);
            if let Some(guard) = guard.filter(|_| guard != asked) {
                let rule = Rule::of(root).family(v6).source(v6, guard.key_bytes());
                let rule = rule.if_in(guard.name()).verdict(Verdict::Jump(guard.name()));
                batch.add(&rule.message(TABLE), MsgType::Add);
            }
            asked = guard;
            let chain = guard.map_or(root.as_str(), |guard| guard.name());
            if self.is_sharded(kind, set.length) {
                let shards: Vec<SetId> =
                    sets.iter().filter(|one| SetId { shard: None, ..**one } == set).copied().collect();
                self.add_map(batch, set.map_id(), &shards);
                let rule = set.rule(chain).shard(set.key_bytes(), self.shards).by_map(MAP, set.map_id());
                batch.add(&rule.message(TABLE), MsgType::Add);
            } else {
                batch.add(&set.lookup(chain), MsgType::Add);
            }
        }
        if kind == Kind::Ban && ports::any(sets, v6) {
            let rule = Rule::of(root).verdict(Verdict::Goto(ports::dispatch(v6)));
            batch.add(&rule.message(TABLE), MsgType::Add);
        }
    }

    /// Writes every rule but those of shards; `dropped` is what was counted so far.
    pub(super) fn rules(
        &self,
        batch: &mut Batch,
        table: &Table,
        sets: &BTreeSet<SetId>,
        dropped: (u64, u64),
    ) {
        for name in CHAINS.into_iter().chain([BASE]) {
            batch.add(&no_rules(name), MsgType::Del);
        }
        for set in sets.iter().filter(|set| set.shard.is_some()) {
            batch.add(&no_rules(&set.name()), MsgType::Del);
            batch.add(&set.lookup(&set.name()), MsgType::Add);
        }
        for (kind, v6) in [(Kind::Ban, false), (Kind::Ban, true), (Kind::Allow, false), (Kind::Allow, true)] {
            self.lookups(batch, kind, v6, sets);
        }
        for v6 in [false, true] {
            ports::kinds(sets, v6).for_each(|kind| self.lookups(batch, kind, v6, sets));
            ports::dispatch_rules(batch, &self.scopes, v6, sets);
        }
        let drop = Rule::of(DROPPED).counted(dropped).verdict(Verdict::Drop);
        batch.add(&drop.message(TABLE), MsgType::Add);
        for (v6, chain) in [(false, "source4"), (true, "source6")] {
            batch.add(&Rule::of(BASE).family(v6).verdict(Verdict::Goto(chain)).message(TABLE), MsgType::Add);
        }
        link_rules(batch, table);
        for (source, allow, ban) in [("source4", "allow4", "ban4"), ("source6", "allow6", "ban6")] {
            batch.add(&Rule::of(source).verdict(Verdict::Jump(allow)).message(TABLE), MsgType::Add);
            batch.add(&Rule::of(source).verdict(Verdict::Goto(ban)).message(TABLE), MsgType::Add);
        }
    }
}

/// What `nft` notes of a set whose keys are the first bytes of the source address, `typeof @nh,96,16`: pairs of a type
/// and a length, as its own sets show them (byte order 2, big endian; expression 7, payload; base 2, offset, length).
fn typeof_source(v6: bool, bytes: u8) -> Vec<u8> {
    let number = |kind: u8, value: u32| [&[kind, 4][..], &value.to_ne_bytes()].concat();
    let inside = |kind: u8, parts: &[Vec<u8>]| {
        let parts = parts.concat();
        [&[kind, u8::try_from(parts.len()).unwrap_or(0)][..], &parts].concat()
    };
    let offset = if v6 { 64 } else { 96 };
    let payload =
        [number(0, 0), number(1, 0), number(2, 2), number(3, offset), number(4, 8 * u32::from(bytes))];
    [number(0, 2), inside(3, &[number(0, 7), inside(1, &payload)])].concat()
}

/// The table as `nftnl` names it.
pub(super) fn table() -> Table {
    Table::new(TABLE_C, ProtoFamily::Inet)
}

/// The message that makes the table or takes it up, with these `NFT_TABLE_F_*`.
pub(super) fn create_table(name: &str, flags: u32) -> Message {
    let mut message = Message::new(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE | libc::NLM_F_ACK);
    // NFTA_TABLE_NAME, NFTA_TABLE_FLAGS.
    message.text(1, name).u32(2, flags);
    message
}

/// The message that deletes a table with all it holds.
pub(super) fn delete_table(name: &str) -> Message {
    let mut message = Message::new(libc::NFT_MSG_DELTABLE, libc::NLM_F_ACK);
    message.text(1, name);
    message
}

/// What makes a table with a rule that asks for a shard.
pub(super) fn trial_of_shards(table: &str) -> [Message; 3] {
    let shards = Shards { count: 2, seed: 0 };
    let rule = Rule::of(BASE).source(false, 4).shard(4, shards);
    [create_table(table, 0), create_chain(table, BASE), rule.message(table)]
}

fn create_chain(table: &str, name: &str) -> Message {
    let mut message = Message::new(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE | libc::NLM_F_ACK);
    // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME.
    message.text(1, table).text(3, name);
    message
}

/// The chains without a hook, those of shards left out.
const CHAINS: [&str; 12] = [
    DROPPED,
    "allow4",
    "allow6",
    "ban4",
    "ban6",
    "source4",
    "source6",
    "guard_ban4",
    "guard_ban6_long",
    "guard_ban6",
    "guard_allow4",
    "guard_allow6",
];
const BASE: &str = "prerouting";
const BASE_C: &CStr = c"prerouting";

/// A chain as the kernel lists it: its name, and for one with a hook that hook, priority and policy.
pub(super) type ChainFacts = (String, Option<(u32, u32, u32)>);

/// The facts of every chain of a table with these sets.
pub(super) fn chains(sets: &BTreeSet<SetId>) -> BTreeSet<ChainFacts> {
    let hook = (libc::NF_INET_PRE_ROUTING as u32, PRIORITY.cast_unsigned(), libc::NF_ACCEPT as u32);
    let shards = sets.iter().filter(|set| set.shard.is_some()).map(|set| (set.name(), None));
    let plain = CHAINS.into_iter().map(|name| (name.to_owned(), None));
    let on_ports = [false, true].into_iter().flat_map(|v6| {
        let chains = ports::kinds(sets, v6).map(move |kind| root(kind, v6));
        chains.chain(ports::any(sets, v6).then(|| ports::dispatch(v6).to_owned()))
    });
    let on_ports = on_ports.map(|name| (name, None));
    plain.chain(shards).chain(on_ports).chain([(BASE.to_owned(), Some(hook))]).collect()
}

/// The link lives on these also for a banned neighbour: the same frames that the XDP program lets pass.
fn link_rules(batch: &mut Batch, table: &Table) {
    let v4 = Chain::new(c"source4", table);
    // Server 67, client 68, relays 67 to 67 (RFC 2131 4.1); no options and no fragment.
    for ports in [[0, 67, 0, 67], [0, 67, 0, 68], [0, 68, 0, 67]] {
        let mut rule = rule_of(&v4, NFPROTO_IPV4);
        header_is(&mut rule, 9, &[UDP]);
        header_is(&mut rule, 0, &[0x45]);
        rule.add_expr(&header(6, 2));
        rule.add_expr(&Bitwise::new(&[0x3f_u8, 0xff][..], &[0_u8, 0][..]));
        rule.add_expr(&Cmp::new(CmpOp::Eq, &[0_u8, 0][..]));
        ports_are(&mut rule, &ports);
        rule.add_expr(&LongVerdict::Accept);
        batch.add(&rule, MsgType::Add);
    }
    let v6 = Chain::new(c"source6", table);
    // Neighbour discovery: types 133 to 137 with a hop limit of 255 (RFC 4861 7).
    let mut discovery = rule_of(&v6, NFPROTO_IPV6);
    header_is(&mut discovery, 6, &[ICMPV6, 255]);
    discovery.add_expr(&transport(1));
    discovery.add_expr(&Cmp::new(CmpOp::Gte, 133_u8));
    discovery.add_expr(&Cmp::new(CmpOp::Lte, 137_u8));
    discovery.add_expr(&LongVerdict::Accept);
    batch.add(&discovery, MsgType::Add);
    // 546 and 547 (RFC 8415 7.2).
    for ports in [[2, 34, 2, 35], [2, 35, 2, 34], [2, 35, 2, 35]] {
        let mut rule = rule_of(&v6, NFPROTO_IPV6);
        header_is(&mut rule, 6, &[UDP]);
        ports_are(&mut rule, &ports);
        rule.add_expr(&LongVerdict::Accept);
        batch.add(&rule, MsgType::Add);
    }
}

/// A rule for one protocol, said again as in [`Rule::family`].
fn rule_of<'a>(chain: &'a Chain<'_>, protocol: u8) -> LongRule<'a> {
    let mut rule = LongRule::new(chain);
    rule.add_expr(&Meta::NfProto);
    rule.add_expr(&Cmp::new(CmpOp::Eq, protocol));
    rule
}

/// Loads the first bytes behind the IP headers; there are none in later fragments, and the rule does not match.
fn transport(length: u32) -> impl Expression {
    Payload::Transport(TransportHeaderField::Raw { offset_bits: 0, length_bits: length })
}

fn ports_are(rule: &mut LongRule<'_>, ports: &[u8; 4]) {
    rule.add_expr(&transport(4));
    rule.add_expr(&Cmp::new(CmpOp::Eq, &ports[..]));
}

/// Loads `length` bytes of the network header. The library's fields are named for bits and passed on as bytes.
fn header(offset: u32, length: u32) -> impl Expression {
    Payload::Network(NetworkHeaderField::Raw { offset_bits: offset, length_bits: length })
}

fn header_is(rule: &mut LongRule<'_>, offset: u32, bytes: &[u8]) {
    rule.add_expr(&header(offset, u32::try_from(bytes.len()).unwrap_or(0)));
    rule.add_expr(&Cmp::new(CmpOp::Eq, bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(bans_max: usize) -> Layout {
        Layout { bans_max, counters: true, shards: Shards::of(bans_max), scopes: Scopes::default() }
    }

    #[test]
    fn set_names_are_read_as_they_are_written() {
        for (text, name) in [
            ("10.0.0.0/8", "ban4_8"),
            ("203.0.113.9", "ban4_32"),
            ("2001:db8::/64", "ban6_64"),
            ("0.0.0.0/0", "ban4_0"),
        ] {
            let set = layout(1_000).set_of(Kind::Ban, text.parse().unwrap());
            assert_eq!(set.name(), name);
            assert_eq!(SetId::from_name(name), Some(set));
            let sharded = layout(1_000_000).set_of(Kind::Ban, text.parse().unwrap());
            assert_eq!(SetId::from_name(&sharded.name()), Some(sharded));
            assert_eq!(sharded.shard.is_some(), set.length > 16, "{text}");
        }
        for name in
            ["ban4_33", "ban5_8", "ban4_08", "allow6_129", "ban4", "ban4_32_s", "ban4_32_s07", "other", ""]
        {
            assert_eq!(SetId::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn masks_keep_the_leading_bits() {
        for (name, mask) in
            [("ban4_0", vec![0; 4]), ("ban4_9", vec![255, 128, 0, 0]), ("ban4_32", vec![255; 4])]
        {
            assert_eq!(SetId::from_name(name).unwrap().mask(), mask, "{name}");
        }
        assert_eq!(SetId::from_name("ban6_64").unwrap().mask(), [[255; 8], [0; 8]].concat());
    }

    #[test]
    fn sets_have_room_for_what_can_come_and_no_more() {
        for (bans_max, name, size) in [
            (1_000, "ban4_32", Some(1_500)),
            (1, "ban4_32", Some(64)),
            (65_536, "ban4_8", Some(512)),
            (1_000_000, "ban4_32_s0", Some(23_437)),
            (1_000_000, "ban4_32_s64", None),
            (1_000_000, "ban4_32", None),
            (1_000, "ban4_32_s0", None),
            (1_000, "guard_ban4", Some(65_536)),
        ] {
            let facts = layout(bans_max).facts(name);
            assert_eq!(facts.and_then(|facts| facts.size), size, "{bans_max}: {name}");
        }
    }
}
