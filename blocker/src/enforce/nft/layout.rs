//! The table `inet blocker`: its chains, rules and sets, as messages of a batch.
//!
//! A prefix length has a set of its own, looked up with the masked source address: `ip saddr & 255.0.0.0 @ban4_8`.
//! Every set is a plain hash, so 10.0.0.0/8 and 10.1.0.0/16 are two elements that know nothing of each other, where
//! an interval set refuses the second; each has its own end and its own counter. Longer prefixes are asked first, so a
//! packet counts for the narrowest ban. Sets and their rules are made when a length is first used.
//!
//! `accept` and the end of our chain mean the same to other tables: they still judge.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    ffi::{CStr, CString},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nftnl::{
    Batch, Chain, ChainType, Hook, MsgType, Policy, ProtoFamily, Rule, Table,
    expr::{
        Bitwise, Cmp, CmpOp, Expression, Ipv4HeaderField, Ipv6HeaderField, Lookup, Meta, NetworkHeaderField,
        Payload, TransportHeaderField, Verdict,
    },
    set::Set,
};

use super::message::Message;
use crate::net::Prefix;

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
}

/// One set: the prefixes of one kind, family and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SetId {
    pub(super) kind: Kind,
    pub(super) v6: bool,
    pub(super) length: u8,
}

impl SetId {
    /// The set that holds a prefix.
    pub(super) fn of(kind: Kind, prefix: Prefix) -> Self {
        Self { kind, v6: prefix.address().is_ipv6(), length: prefix.length() }
    }

    /// `ban4_32`, `allow6_64`.
    pub(super) fn name(self) -> String {
        let kind = if self.kind == Kind::Ban { "ban" } else { "allow" };
        format!("{kind}{}_{}", if self.v6 { 6 } else { 4 }, self.length)
    }

    /// The set of this name, when it is one of ours.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let (kind, rest) = match name.strip_prefix("ban") {
            Some(rest) => (Kind::Ban, rest),
            None => (Kind::Allow, name.strip_prefix("allow")?),
        };
        let (family, length) = rest.split_once('_')?;
        let id = Self { kind, v6: family == "6", length: length.parse().ok()? };
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

    /// The message that makes the set, with room for `capacity` elements.
    pub(super) fn create(self, capacity: u32) -> Message {
        let mut message = Message::new(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE | libc::NLM_F_ACK);
        // NFTA_SET_TABLE, _NAME, _FLAGS, _KEY_TYPE (7 ipv4_addr, 8 ipv6_addr, for `nft list`), _KEY_LEN, _ID.
        message.text(1, TABLE).text(2, &self.name());
        let (flags, key_bytes) = self.shape();
        message.u32(3, flags).u32(4, if self.v6 { 8 } else { 7 }).u32(5, key_bytes);
        // NFTA_SET_DESC with NFTA_SET_DESC_SIZE.
        message.nest(9, |m| {
            m.u32(1, capacity);
        });
        message.u32(10, 1);
        if self.kind == Kind::Ban {
            // NFTA_SET_GC_INTERVAL; NFTA_SET_EXPR: every element gets a counter.
            message.u32(12, GC_INTERVAL_MS).nest(17, |m| {
                m.text(1, "counter");
            });
        }
        message
    }

    /// NFTA_SET_FLAGS and NFTA_SET_KEY_LEN.
    pub(super) fn shape(self) -> (u32, u32) {
        let flags = if self.kind == Kind::Ban { libc::NFT_SET_TIMEOUT as u32 } else { 0 };
        (flags, if self.v6 { 16 } else { 4 })
    }

    fn chain(self) -> CString {
        CString::new(format!(
            "{}{}",
            if self.kind == Kind::Ban { "ban" } else { "allow" },
            if self.v6 { 6 } else { 4 }
        ))
        .unwrap_or_default()
    }

    fn mask(self) -> Vec<u8> {
        let bits = if self.v6 { 128 } else { 32 };
        let ones = u128::MAX.checked_shl(bits - u32::from(self.length)).unwrap_or(0);
        if self.v6 { ones.to_be_bytes().to_vec() } else { ones.to_be_bytes()[12..].to_vec() }
    }
}

/// The table as `nftnl` names it.
pub(super) fn table() -> Table {
    Table::new(TABLE_C, ProtoFamily::Inet)
}

/// The chains without a hook.
const CHAINS: [&CStr; 7] = [c"dropped", c"allow4", c"allow6", c"ban4", c"ban6", c"source4", c"source6"];
const BASE: &CStr = c"prerouting";

/// Adds the table and its chains.
pub(super) fn create(batch: &mut Batch, table: &Table) {
    batch.add(table, MsgType::Add);
    for name in CHAINS {
        batch.add(&Chain::new(name, table), MsgType::Add);
    }
    let mut base = Chain::new(BASE, table);
    base.set_hook(Hook::PreRouting, PRIORITY);
    base.set_type(ChainType::Filter);
    base.set_policy(Policy::Accept);
    batch.add(&base, MsgType::Add);
}

/// A chain as the kernel lists it: its name, and for one with a hook that hook, priority and policy.
pub(super) type ChainFacts = (String, Option<(u32, u32, u32)>);

/// The facts of every chain that [`create`] makes.
pub(super) fn chains() -> BTreeSet<ChainFacts> {
    let facts = |name: &CStr, hook| (name.to_string_lossy().into_owned(), hook);
    let hook = (libc::NF_INET_PRE_ROUTING as u32, PRIORITY.cast_unsigned(), libc::NF_ACCEPT as u32);
    CHAINS.map(|name| facts(name, None)).into_iter().chain([facts(BASE, Some(hook))]).collect()
}

/// Writes every rule, with one lookup for each of `sets`; `dropped` is what was counted so far.
pub(super) fn rules(batch: &mut Batch, table: &Table, sets: &BTreeSet<SetId>, dropped: (u64, u64)) {
    for name in CHAINS.into_iter().chain([BASE]) {
        batch.add(&no_rules(name), MsgType::Del);
    }
    for (kind, v6) in [(Kind::Ban, false), (Kind::Ban, true), (Kind::Allow, false), (Kind::Allow, true)] {
        lookups(batch, table, SetId { kind, v6, length: 0 }, sets.iter().copied());
    }
    let base = Chain::new(BASE, table);
    batch.add(&drop_rule(dropped), MsgType::Add);
    for (protocol, chain) in [(NFPROTO_IPV4, c"source4"), (NFPROTO_IPV6, c"source6")] {
        let mut rule = rule_of(&base, protocol);
        rule.add_expr(&Verdict::Goto { chain: chain.to_owned() });
        batch.add(&rule, MsgType::Add);
    }
    // The link lives on these also for a banned neighbour: the same frames that the XDP program lets pass.
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
        rule.add_expr(&Verdict::Accept);
        batch.add(&rule, MsgType::Add);
    }
    let v6 = Chain::new(c"source6", table);
    // Neighbour discovery: types 133 to 137 with a hop limit of 255 (RFC 4861 7).
    let mut discovery = rule_of(&v6, NFPROTO_IPV6);
    header_is(&mut discovery, 6, &[ICMPV6, 255]);
    discovery.add_expr(&transport(1));
    discovery.add_expr(&Cmp::new(CmpOp::Gte, 133_u8));
    discovery.add_expr(&Cmp::new(CmpOp::Lte, 137_u8));
    discovery.add_expr(&Verdict::Accept);
    batch.add(&discovery, MsgType::Add);
    // 546 and 547 (RFC 8415 7.2).
    for ports in [[2, 34, 2, 35], [2, 35, 2, 34], [2, 35, 2, 35]] {
        let mut rule = rule_of(&v6, NFPROTO_IPV6);
        header_is(&mut rule, 6, &[UDP]);
        ports_are(&mut rule, &ports);
        rule.add_expr(&Verdict::Accept);
        batch.add(&rule, MsgType::Add);
    }
    for (source, jumps) in [(&v4, [c"allow4", c"ban4"]), (&v6, [c"allow6", c"ban6"])] {
        for (name, last) in jumps.into_iter().zip([false, true]) {
            let mut rule = Rule::new(source);
            let chain = name.to_owned();
            rule.add_expr(&if last { Verdict::Goto { chain } } else { Verdict::Jump { chain } });
            batch.add(&rule, MsgType::Add);
        }
    }
}

/// Replaces the rules of the chain that asks sets like `like`: one rule for each of `sets` of that kind and family.
pub(super) fn lookups(
    batch: &mut Batch,
    table: &Table,
    like: SetId,
    sets: impl DoubleEndedIterator<Item = SetId>,
) {
    let chain = Chain::new(like.chain(), table);
    batch.add(&no_rules(&like.chain()), MsgType::Del);
    for set in sets.filter(|set| set.chain() == like.chain()).rev() {
        let mut rule = rule_of(&chain, if set.v6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 });
        let name = CString::new(set.name()).unwrap_or_default();
        let lookup = if set.v6 {
            rule.add_expr(&Payload::Network(NetworkHeaderField::Ipv6(Ipv6HeaderField::Saddr)));
            Lookup::new(&Set::<Ipv6Addr>::new_named(&name, 0, table, ProtoFamily::Inet))
        } else {
            rule.add_expr(&Payload::Network(NetworkHeaderField::Ipv4(Ipv4HeaderField::Saddr)));
            Lookup::new(&Set::<Ipv4Addr>::new_named(&name, 0, table, ProtoFamily::Inet))
        };
        let mask = set.mask();
        if mask.iter().any(|byte| *byte != 0xff) {
            let zero = vec![0_u8; mask.len()];
            rule.add_expr(&Bitwise::new(&mask[..], &zero[..]));
        }
        rule.add_expr(&lookup);
        rule.add_expr(&match set.kind {
            Kind::Ban => Verdict::Goto { chain: c"dropped".to_owned() },
            Kind::Allow => Verdict::Accept,
        });
        batch.add(&rule, MsgType::Add);
    }
}

/// Deletes every rule of a chain: NFTA_RULE_TABLE and NFTA_RULE_CHAIN, and no handle.
fn no_rules(chain: &CStr) -> Message {
    let mut message = Message::new(libc::NFT_MSG_DELRULE, libc::NLM_F_ACK);
    message.text(1, TABLE).text(2, &chain.to_string_lossy());
    message
}

/// `counter packets P bytes B drop`; `nftnl` cannot give a counter its first value.
fn drop_rule((packets, bytes): (u64, u64)) -> Message {
    let mut message =
        Message::new(libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND | libc::NLM_F_ACK);
    // NFTA_RULE_TABLE, _CHAIN, _EXPRESSIONS.
    message.text(1, TABLE).text(2, DROPPED).nest(4, |m| {
        m.nest(1, |m| counter(m, packets, bytes));
        m.nest(1, |m| {
            // NFTA_IMMEDIATE_DREG is the verdict register, NFTA_IMMEDIATE_DATA a verdict of NF_DROP.
            m.text(1, "immediate").nest(2, |m| {
                m.u32(1, libc::NFT_REG_VERDICT as u32).nest(2, |m| {
                    m.nest(2, |m| {
                        m.u32(1, libc::NF_DROP as u32);
                    });
                });
            });
        });
    });
    message
}

/// A counter expression with its first values (NFTA_EXPR_NAME, NFTA_EXPR_DATA, NFTA_COUNTER_BYTES, _PACKETS).
pub(super) fn counter(message: &mut Message, packets: u64, bytes: u64) {
    message.text(1, "counter").nest(2, |m| {
        m.u64(1, bytes).u64(2, packets);
    });
}

/// A rule for one protocol. The chain has judged that already; said again, `nft list` shows addresses as addresses.
fn rule_of<'a>(chain: &'a Chain<'_>, protocol: u8) -> Rule<'a> {
    let mut rule = Rule::new(chain);
    rule.add_expr(&Meta::NfProto);
    rule.add_expr(&Cmp::new(CmpOp::Eq, protocol));
    rule
}

/// Loads the first bytes behind the IP headers; there are none in later fragments, and the rule does not match.
fn transport(length: u32) -> impl Expression {
    Payload::Transport(TransportHeaderField::Raw { offset_bits: 0, length_bits: length })
}

fn ports_are(rule: &mut Rule<'_>, ports: &[u8; 4]) {
    rule.add_expr(&transport(4));
    rule.add_expr(&Cmp::new(CmpOp::Eq, &ports[..]));
}

/// Loads `length` bytes of the network header. The library's fields are named for bits and passed on as bytes.
fn header(offset: u32, length: u32) -> impl Expression {
    Payload::Network(NetworkHeaderField::Raw { offset_bits: offset, length_bits: length })
}

fn header_is(rule: &mut Rule<'_>, offset: u32, bytes: &[u8]) {
    rule.add_expr(&header(offset, u32::try_from(bytes.len()).unwrap_or(0)));
    rule.add_expr(&Cmp::new(CmpOp::Eq, bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_names_are_read_as_they_are_written() {
        for (text, name) in [
            ("10.0.0.0/8", "ban4_8"),
            ("203.0.113.9", "ban4_32"),
            ("2001:db8::/64", "ban6_64"),
            ("0.0.0.0/0", "ban4_0"),
        ] {
            let set = SetId::of(Kind::Ban, text.parse().unwrap());
            assert_eq!(set.name(), name);
            assert_eq!(SetId::from_name(name), Some(set));
        }
        for name in ["ban4_33", "ban5_8", "ban4_08", "allow6_129", "ban4", "other", ""] {
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
}
