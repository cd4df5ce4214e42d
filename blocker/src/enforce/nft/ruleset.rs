//! The table: sets of one prefix length each, and the chains that look a source up in them.
//!
//! One set a length, looked up by the masked address, makes prefixes plain hash lookups: nested and overlapping bans
//! need no interval set, which would refuse them, and what is listed is what was asked for.
//!
//! ```text
//! chain prerouting (filter, -310)   udp, icmpv6 -> jump upkeep; jump allowed; jump banned
//! chain upkeep                      neighbour discovery and DHCP: accept
//! chain allowed                     ip saddr & mask @allow4_24 accept ...
//! chain banned                      ip saddr & mask @ban4_32 goto dropped ...
//! chain dropped                     counter drop
//! ```
#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    ffi::CString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nftnl::{
    Batch, Chain, ChainType, Hook, MsgType, Policy, ProtoFamily, Rule, Table,
    expr::{
        Cmp, CmpOp, Counter, Expression, Ipv4HeaderField, Ipv6HeaderField, Lookup, Meta, NetworkHeaderField,
        Payload, TransportHeaderField, Verdict,
    },
    nftnl_sys::libc,
    set::Set,
};

use super::{
    socket::Raw,
    uapi,
    wire::{Attributes, message},
};
use crate::net::Prefix;

/// The table's name, in the inet family.
pub(super) const TABLE: &str = "blocker";
/// An empty chain whose name tells which layout the table has; another layout is made anew.
pub(super) const LAYOUT: &str = "layout_1";
/// Before connection tracking (-200) and the raw table (-300), so that a banned packet costs neither.
const PRIORITY: i32 = -310;
/// How often the kernel walks a set for elements that are over. They match no more in any case; a walk each second, the
/// kernel's choice, costs 6 % of a core at a million elements.
const GC_INTERVAL_MS: u32 = 60_000;

const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// One set: what it is for, and the length of its prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SetKind {
    pub(super) allow: bool,
    pub(super) v4: bool,
    pub(super) length: u8,
}

impl SetKind {
    pub(super) fn of(prefix: Prefix, allow: bool) -> Self {
        Self { allow, v4: prefix.address().is_ipv4(), length: prefix.length() }
    }

    /// As `ban4_32` or `allow6_64`.
    pub(super) fn name(self) -> String {
        format!("{}{}_{}", if self.allow { "allow" } else { "ban" }, if self.v4 { 4 } else { 6 }, self.length)
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        let (kind, length) = name.split_once('_')?;
        let (allow, v4) = match kind {
            "ban4" => (false, true),
            "ban6" => (false, false),
            "allow4" => (true, true),
            "allow6" => (true, false),
            _ => return None,
        };
        let length = length.parse().ok().filter(|length| *length <= if v4 { 32 } else { 128 })?;
        Some(Self { allow, v4, length })
    }

    /// The prefix that an element of this set stands for.
    pub(super) fn prefix(self, key: &[u8]) -> Option<Prefix> {
        let address: IpAddr = if self.v4 {
            Ipv4Addr::from(*key.first_chunk::<4>()?).into()
        } else {
            Ipv6Addr::from(*key.first_chunk::<16>()?).into()
        };
        Prefix::new(address, self.length)
    }
}

/// The key of a prefix in its set.
pub(super) fn key(prefix: Prefix) -> Vec<u8> {
    match prefix.address() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn table() -> Table {
    Table::new(c"blocker", ProtoFamily::Inet)
}

fn chain<'a>(name: &str, table: &'a Table) -> Chain<'a> {
    Chain::new(CString::new(name).unwrap_or_default(), table)
}

/// Adds the table with its chains and fixed rules, replacing whatever has its name.
pub(super) fn create(batch: &mut Batch) {
    let table = table();
    // Added first, because deleting what is not there fails the batch.
    batch.add(&table, MsgType::Add);
    batch.add(&table, MsgType::Del);
    batch.add(&table, MsgType::Add);
    let [layout, upkeep, allowed, banned, dropped] =
        [LAYOUT, "upkeep", "allowed", "banned", "dropped"].map(|name| chain(name, &table));
    for chain in [&layout, &upkeep, &allowed, &banned, &dropped] {
        batch.add(chain, MsgType::Add);
    }
    let mut prerouting = chain("prerouting", &table);
    prerouting.set_type(ChainType::Filter);
    prerouting.set_hook(Hook::PreRouting, PRIORITY);
    prerouting.set_policy(Policy::Accept);
    batch.add(&prerouting, MsgType::Add);

    let jump = |name: &str| Verdict::Jump { chain: CString::new(name).unwrap_or_default() };
    let equal = |bytes: &'static [u8]| Cmp::new(CmpOp::Eq, bytes);
    rule(batch, &prerouting, &[&Meta::L4Proto, &equal(&[UDP]), &jump("upkeep")]);
    rule(batch, &prerouting, &[&Meta::L4Proto, &equal(&[ICMPV6]), &jump("upkeep")]);
    rule(batch, &prerouting, &[&jump("allowed")]);
    rule(batch, &prerouting, &[&jump("banned")]);
    rule(batch, &dropped, &[&Counter, &Verdict::Drop]);

    let (v4, v6) = (equal(&[2]), equal(&[10]));
    // The same conditions as in the packet parser of the XDP program. The library's two fields are bytes, whatever
    // their names say; `nft list ruleset` shows it.
    let network = |offset: u32, bytes: u32| {
        Payload::Network(NetworkHeaderField::Raw { offset_bits: offset, length_bits: bytes })
    };
    let transport = |offset: u32, bytes: u32| {
        Payload::Transport(TransportHeaderField::Raw { offset_bits: offset, length_bits: bytes })
    };
    let (at_least, at_most) = (Cmp::new(CmpOp::Gte, &[133_u8][..]), Cmp::new(CmpOp::Lte, &[137_u8][..]));
    rule(
        batch,
        &upkeep,
        &[
            &Meta::NfProto,
            &v6,
            &network(6, 2),
            &equal(&[ICMPV6, 255]),
            &transport(0, 1),
            &at_least,
            &at_most,
            &Verdict::Accept,
        ],
    );
    for ports in [[0_u8, 67, 0, 67], [0, 67, 0, 68], [0, 68, 0, 67]] {
        let (offset_and_more, none): (&[u8], &[u8]) = (&[0x3f, 0xff], &[0, 0]);
        let mask = nftnl::expr::Bitwise::new(offset_and_more, none);
        let ports = Cmp::new(CmpOp::Eq, &ports[..]);
        rule(
            batch,
            &upkeep,
            &[
                &Meta::NfProto,
                &v4,
                &network(0, 1),
                &equal(&[0x45]),
                &network(6, 2),
                &mask,
                &equal(&[0, 0]),
                &network(9, 1),
                &equal(&[UDP]),
                &transport(0, 4),
                &ports,
                &Verdict::Accept,
            ],
        );
    }
    for ports in [[2_u8, 0x22, 2, 0x23], [2, 0x23, 2, 0x22], [2, 0x23, 2, 0x23]] {
        let ports = Cmp::new(CmpOp::Eq, &ports[..]);
        rule(
            batch,
            &upkeep,
            &[
                &Meta::NfProto,
                &v6,
                &network(6, 1),
                &equal(&[UDP]),
                &transport(0, 4),
                &ports,
                &Verdict::Accept,
            ],
        );
    }
}

/// Rules that [`create`] makes; each set adds one.
pub(super) const FIXED_RULES: usize = 12;

fn rule(batch: &mut Batch, chain: &Chain<'_>, expressions: &[&dyn Add]) {
    let mut rule = Rule::new(chain);
    for expression in expressions {
        expression.add_to(&mut rule);
    }
    batch.add(&rule, MsgType::Add);
}

/// Expressions of different types in one list.
trait Add {
    fn add_to(&self, rule: &mut Rule<'_>);
}

impl<E: Expression> Add for E {
    fn add_to(&self, rule: &mut Rule<'_>) {
        rule.add_expr(self);
    }
}

/// Adds the sets in `wanted`, of at most `size` elements, each with the rule that looks a source up in it.
pub(super) fn add_sets(batch: &mut Batch, wanted: &BTreeSet<SetKind>, size: u32) {
    let table = table();
    let (allowed, banned) = (chain("allowed", &table), chain("banned", &table));
    for (id, kind) in (1..).zip(wanted) {
        batch.add(
            &Raw(message(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, 0, &set(*kind, id, size))),
            MsgType::Add,
        );
        let name = CString::new(kind.name()).unwrap_or_default();
        let mask = Prefix::new(
            if kind.v4 { Ipv4Addr::BROADCAST.into() } else { Ipv6Addr::from_bits(u128::MAX).into() },
            kind.length,
        );
        let mask = mask.map(key).unwrap_or_default();
        let nothing = vec![0_u8; mask.len()];
        let masked = nftnl::expr::Bitwise::new(mask.as_slice(), nothing.as_slice());
        let (family, source) = if kind.v4 {
            ([2_u8], Payload::Network(NetworkHeaderField::Ipv4(Ipv4HeaderField::Saddr)))
        } else {
            ([10_u8], Payload::Network(NetworkHeaderField::Ipv6(Ipv6HeaderField::Saddr)))
        };
        let family = Cmp::new(CmpOp::Eq, &family[..]);
        let found = Lookup::new(&Set::<Ipv4Addr>::new_named(&name, id, &table, ProtoFamily::Inet));
        let verdict =
            if kind.allow { Verdict::Accept } else { Verdict::Goto { chain: c"dropped".to_owned() } };
        rule(
            batch,
            if kind.allow { &allowed } else { &banned },
            &[&Meta::NfProto, &family, &source, &masked, &found, &verdict],
        );
    }
}

/// `NFT_MSG_NEWSET`: a hash set of addresses; for bans with timeouts and a counter in each element.
fn set(kind: SetKind, id: u32, size: u32) -> Attributes {
    // The address types of nft(8), which it shows sets by.
    let (key_type, key_bytes) = if kind.v4 { (7, 4) } else { (8, 16) };
    let description = Attributes::default().u32(uapi::NFTA_SET_DESC_SIZE, size);
    let common = Attributes::default()
        .text(uapi::NFTA_SET_TABLE, TABLE)
        .text(uapi::NFTA_SET_NAME, &kind.name())
        .u32(uapi::NFTA_SET_ID, id)
        .u32(uapi::NFTA_SET_KEY_TYPE, key_type)
        .u32(uapi::NFTA_SET_KEY_LEN, key_bytes)
        .nested(uapi::NFTA_SET_DESC, &description);
    if kind.allow {
        return common.u32(uapi::NFTA_SET_FLAGS, 0);
    }
    let zero = Attributes::default().u64(uapi::NFTA_COUNTER_BYTES, 0).u64(uapi::NFTA_COUNTER_PACKETS, 0);
    let counter =
        Attributes::default().text(uapi::NFTA_EXPR_NAME, "counter").nested(uapi::NFTA_EXPR_DATA, &zero);
    common
        .u32(uapi::NFTA_SET_FLAGS, u32::try_from(libc::NFT_SET_TIMEOUT).unwrap_or(0))
        .u32(uapi::NFTA_SET_GC_INTERVAL, GC_INTERVAL_MS)
        .nested(uapi::NFTA_SET_EXPR, &counter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_named_after_what_they_hold() {
        for (text, allow, name) in [
            ("203.0.113.9", false, "ban4_32"),
            ("2001:db8::/64", false, "ban6_64"),
            ("10.0.0.0/8", true, "allow4_8"),
        ] {
            let prefix: Prefix = text.parse().unwrap();
            let kind = SetKind::of(prefix, allow);
            assert_eq!(kind.name(), name);
            assert_eq!(SetKind::from_name(name), Some(kind));
            assert_eq!(kind.prefix(&key(prefix)), Some(prefix));
        }
        for name in ["ban4_33", "ban5_3", "ban4", "other", "ban4_x"] {
            assert_eq!(SetKind::from_name(name), None, "{name}");
        }
    }
}
