//! Bans on some ports: each list of ports in use has a number, and with it sets and chains of its own.
//!
//! `ports4` and `ports6` are asked after everything else and exist only while there is such a ban. They have a rule for
//! each range of ports, which leads to the chain that asks the sets of its list; the kernel finds the port behind options
//! and extension headers. Later fragments have no ports and pass. Which list a number means is noted in its sets, so that
//! a later agent finds it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use nftnl::{Batch, MsgType};

use super::{
    Nft,
    layout::{self, Kind, SetId, TABLE},
    message::Message,
    rule::{Rule, Verdict, no_rules},
    socket::Refusal,
};
use crate::net::{PortRange, Protocol, SCOPES_MAX, Scope};

/// What begins our note in a set's user data: a type that `nft` has no use for. How many bytes follow is next.
const NOTE: u8 = 201;
/// Protocol, first and last port.
const RANGE_BYTES: usize = 5;

/// The scopes in use, by number; all ports are none of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Scopes(BTreeMap<u8, Scope>);

impl Scopes {
    /// What bans of this scope are, where it has a number or needs none.
    pub(super) fn kind(&self, scope: &Scope) -> Option<Kind> {
        if scope.is_all() {
            return Some(Kind::Ban);
        }
        let number = self.0.iter().find(|(_, known)| *known == scope).map(|(number, _)| *number);
        number.map(Kind::Ports)
    }

    /// Gives this scope a number if it has none; false when all are taken.
    pub(super) fn take(&mut self, scope: &Scope) -> bool {
        if self.kind(scope).is_some() {
            return true;
        }
        let free = (1..=SCOPES_MAX).filter_map(|n| u8::try_from(n).ok()).find(|n| !self.0.contains_key(n));
        free.is_some_and(|number| self.0.insert(number, scope.clone()).is_none())
    }

    /// The scope of a number that a table names; false when it contradicts what is known.
    pub(super) fn adopt(&mut self, number: u8, scope: &Scope) -> bool {
        *self.0.entry(number).or_insert_with(|| scope.clone()) == *scope
    }

    /// What is dropped by bans of this kind; nothing to go by where that is not known.
    pub(super) fn scope(&self, kind: Kind) -> Option<Scope> {
        match kind {
            Kind::Ports(number) => self.0.get(&number).cloned(),
            Kind::Ban | Kind::Allow => Some(Scope::ALL),
        }
    }

    fn numbers(&self) -> impl Iterator<Item = u8> {
        self.0.keys().copied()
    }

    fn forget(&mut self, number: u8) {
        self.0.remove(&number);
    }

    /// What is noted in a set of this kind.
    pub(super) fn note(&self, kind: Kind) -> Option<Vec<u8>> {
        let Kind::Ports(number) = kind else { return Some(Vec::new()) };
        let ranges = self.0.get(&number)?.ranges();
        let bytes = u8::try_from(ranges.len() * RANGE_BYTES).ok()?;
        let mut note = vec![NOTE, bytes];
        for range in ranges {
            note.push(range.protocol.number());
            note.extend(range.first.to_be_bytes());
            note.extend(range.last.to_be_bytes());
        }
        Some(note)
    }
}

/// Reads such a note.
pub(super) fn from_note(note: &[u8]) -> Option<Scope> {
    let ranges = note.strip_prefix(&[NOTE, u8::try_from(note.len().checked_sub(2)?).ok()?])?;
    let ranges: Option<Vec<PortRange>> = ranges
        .chunks(RANGE_BYTES)
        .map(|bytes| {
            let [number, a, b, c, d] = bytes.try_into().ok()?;
            let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.number() == number)?;
            let (first, last) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            (first <= last).then_some(PortRange { protocol, first, last })
        })
        .collect();
    Scope::ports(ranges?).ok()
}

/// The chain that finds out where a packet goes.
pub(super) fn dispatch(v6: bool) -> &'static str {
    if v6 { "ports6" } else { "ports4" }
}

/// Whether any of these sets is asked for its ports.
pub(super) fn any(sets: &BTreeSet<SetId>, v6: bool) -> bool {
    kinds(sets, v6).next().is_some()
}

/// The kinds of these sets that are on ports, each once.
pub(super) fn kinds(sets: &BTreeSet<SetId>, v6: bool) -> impl Iterator<Item = Kind> {
    let on_ports = sets.iter().filter(move |set| set.v6 == v6 && matches!(set.kind, Kind::Ports(_)));
    on_ports.map(|set| set.kind).collect::<BTreeSet<Kind>>().into_iter()
}

/// Replaces the rules that lead from a port to the chains of the lists it is in.
pub(super) fn dispatch_rules(batch: &mut Batch, scopes: &Scopes, v6: bool, sets: &BTreeSet<SetId>) {
    if !any(sets, v6) {
        return;
    }
    batch.add(&no_rules(dispatch(v6)), MsgType::Del);
    let fragment = Rule::of(dispatch(v6)).family(v6).later_fragment(v6).verdict(Verdict::Accept);
    batch.add(&fragment.message(TABLE), MsgType::Add);
    for kind in kinds(sets, v6) {
        let Some(scope) = scopes.scope(kind) else { continue };
        for range in scope.ranges() {
            let rule = Rule::of(dispatch(v6)).destined(range.protocol.number(), range.first, range.last);
            let rule = rule.verdict(Verdict::Jump(&layout::root(kind, v6)));
            batch.add(&rule.message(TABLE), MsgType::Add);
        }
    }
}

impl Nft {
    /// Takes the numbers, sets and chains away that no ban needs any more.
    pub(super) fn retire_scopes(&mut self) -> Result<(), Refusal> {
        let unused = |number: &u8| self.on_ports.get(number).is_none_or(|prefixes| prefixes.is_empty());
        let unused: BTreeSet<Kind> = self.layout.scopes.numbers().filter(unused).map(Kind::Ports).collect();
        if unused.is_empty() {
            return Ok(());
        }
        let gone: Vec<SetId> = self.sets.iter().filter(|set| unused.contains(&set.kind)).copied().collect();
        for set in &gone {
            // Somebody else's, or what a transaction left that was said to have failed.
            for element in self.ask_elements(*set)? {
                self.see(set.kind, element.prefix, true);
            }
        }
        let is_empty = |kind: &Kind| match kind {
            Kind::Ports(number) => self.on_ports.get(number).is_none_or(BTreeSet::is_empty),
            Kind::Ban | Kind::Allow => false,
        };
        let unused: BTreeSet<Kind> = unused.into_iter().filter(is_empty).collect();
        let gone: BTreeSet<SetId> = gone.into_iter().filter(|set| unused.contains(&set.kind)).collect();
        let sets: BTreeSet<SetId> = self.sets.difference(&gone).copied().collect();
        if !gone.is_empty() {
            let mut batch = Batch::new();
            for v6 in [false, true].into_iter().filter(|v6| any(&gone, *v6)) {
                self.layout.lookups(&mut batch, Kind::Ban, v6, &sets);
                batch.add(&no_rules(dispatch(v6)), MsgType::Del);
                dispatch_rules(&mut batch, &self.layout.scopes, v6, &sets);
                for kind in kinds(&gone, v6) {
                    let chain = layout::root(kind, v6);
                    batch.add(&no_rules(&chain), MsgType::Del);
                    batch.add(&no_chain(&chain), MsgType::Del);
                }
                if !any(&sets, v6) {
                    batch.add(&no_chain(dispatch(v6)), MsgType::Del);
                }
            }
            for set in &gone {
                batch.add(&no_set(&set.name()), MsgType::Del);
            }
            self.send(batch)?;
            self.sets = sets;
            self.shape = self.ask_shape()?;
        }
        for kind in unused {
            if let Kind::Ports(number) = kind {
                self.layout.scopes.forget(number);
                self.on_ports.remove(&number);
            }
        }
        Ok(())
    }

    /// Notes that the kernel holds a ban, or not, where it is on ports.
    pub(super) fn see(&mut self, kind: Kind, prefix: crate::net::Prefix, held: bool) {
        let Kind::Ports(number) = kind else { return };
        let prefixes = self.on_ports.entry(number).or_default();
        if held {
            prefixes.insert(prefix);
        } else {
            prefixes.remove(&prefix);
        }
    }
}

/// NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME.
fn no_chain(name: &str) -> Message {
    let mut message = Message::new(libc::NFT_MSG_DELCHAIN, 0);
    message.text(1, TABLE).text(3, name);
    message
}

/// NFTA_SET_TABLE, NFTA_SET_NAME.
fn no_set(name: &str) -> Message {
    let mut message = Message::new(libc::NFT_MSG_DELSET, 0);
    message.text(1, TABLE).text(2, name);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_nothing_else_is() {
        let many: Vec<String> = (0..32).map(|n| format!("{}-{}", 10 * n, 10 * n + 1)).collect();
        for text in ["22", "0-65535/udp", "22,80,53/udp,9/sctp,5004/dccp", &many.join(",")] {
            let scope: Scope = text.parse().unwrap();
            let mut scopes = Scopes::default();
            assert!(scopes.take(&scope));
            let note = scopes.note(Kind::Ports(1)).unwrap();
            assert_eq!(from_note(&note), Some(scope), "{text}");
            for length in 0..note.len() {
                assert_eq!(from_note(&note[..length]), None, "{text}: {length}");
            }
        }
        for note in
            [&[201, 0][..], &[201, 5, 6, 0, 9, 0, 8], &[201, 5, 1, 0, 9, 0, 9], &[200, 5, 6, 0, 9, 0, 9]]
        {
            assert_eq!(from_note(note), None, "{note:?}");
        }
    }

    #[test]
    fn numbers_are_given_once_and_given_again_when_they_are_free() {
        let scope = |port: usize| port.to_string().parse::<Scope>().unwrap();
        let mut scopes = Scopes::default();
        assert!((1..=SCOPES_MAX).all(|port| scopes.take(&scope(port)) && scopes.take(&scope(port))));
        assert!(!scopes.take(&scope(99)) && scopes.take(&Scope::ALL) && scopes.kind(&scope(99)).is_none());
        scopes.forget(7);
        assert!(scopes.take(&scope(99)) && !scopes.take(&scope(100)));
        assert_eq!(
            (scopes.kind(&scope(99)), scopes.kind(&Scope::ALL)),
            (Some(Kind::Ports(7)), Some(Kind::Ban))
        );
        assert!(scopes.adopt(7, &scope(99)) && !scopes.adopt(7, &scope(7)));
    }
}
