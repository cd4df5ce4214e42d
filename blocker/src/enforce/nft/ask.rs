//! What the kernel holds: the table's parts, its elements, and whether anybody changed them.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use rustix::io::Errno;

use super::{
    Nft,
    element::{self, Element, counted},
    layout::{self, ChainFacts, Kind, SetFacts, SetId, TABLE},
    message::{Attributes, Message, attributes_of},
    socket::Refusal,
};
use crate::net::Prefix;

/// How often a listing that shows an element twice is begun again.
const LISTING_TRIES_MAX: u32 = 10;
/// How long the kernel may take to resize a hash of some ten thousand elements.
const RESIZE: Duration = Duration::from_millis(5);

/// Kind, name, handle and flags of table, chains, sets and rules. Handles are never used twice in a table, so what
/// was made anew or replaced differs.
pub(super) type Shape = BTreeSet<(u8, String, u64, u32)>;

/// The table itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableFacts {
    handle: u64,
    pub(super) flags: u32,
    /// The socket that may change it, where only one may: mostly the number of its process.
    pub(super) owner: Option<u32>,
}

impl Nft {
    /// The table of ours, or `None`.
    pub(super) fn ask_table(&mut self) -> Result<Option<TableFacts>, Refusal> {
        let mut question = Message::new(libc::NFT_MSG_GETTABLE, 0);
        question.text(1, TABLE);
        let mut found = None;
        let asked = self.socket.ask(&question, &mut |body| {
            if let Some(attributes) = body.map(attributes_of) {
                // NFTA_TABLE_HANDLE, NFTA_TABLE_FLAGS, NFTA_TABLE_OWNER.
                found = Some(TableFacts {
                    handle: attributes.u64(4).unwrap_or(0),
                    flags: attributes.u32(2).unwrap_or(0),
                    owner: attributes.u32(7),
                });
            }
        });
        or_absent(asked)?;
        Ok(found)
    }

    /// Every set, map and guard of the table.
    pub(super) fn ask_sets(&mut self) -> Result<BTreeMap<String, SetFacts>, Refusal> {
        let mut question = Message::new(libc::NFT_MSG_GETSET, libc::NLM_F_DUMP);
        question.text(1, TABLE);
        let mut sets = BTreeMap::new();
        self.socket.ask(&question, &mut |body| match body.map(attributes_of) {
            Some(found) if found.text(1) == Some(TABLE) => {
                // NFTA_SET_FLAGS, no attribute when there are none; NFTA_SET_KEY_LEN; NFTA_SET_DESC with
                // NFTA_SET_DESC_SIZE; NFTA_SET_EXPR; NFTA_SET_USERDATA.
                let facts = SetFacts {
                    flags: found.u32(3).unwrap_or(0),
                    key_bytes: found.u32(5).unwrap_or(0),
                    size: found.nested(9).and_then(|description| description.u32(1)),
                    counts: found.get(17).is_some(),
                    note: found.get(13).unwrap_or_default().to_vec(),
                };
                sets.insert(found.text(2).unwrap_or_default().to_owned(), facts);
            }
            Some(_) => {}
            None => sets.clear(),
        })?;
        Ok(sets)
    }

    pub(super) fn ask_chains(&mut self) -> Result<BTreeSet<ChainFacts>, Refusal> {
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
    pub(super) fn ask_dropped(&mut self) -> Result<(u64, u64), Refusal> {
        let mut question = Message::new(libc::NFT_MSG_GETRULE, libc::NLM_F_DUMP);
        question.text(1, TABLE).text(2, layout::DROPPED);
        let mut found = (0, 0);
        let asked = self.socket.ask(&question, &mut |body| match body.map(attributes_of) {
            Some(rule) if rule.text(2) == Some(layout::DROPPED) => {
                let expressions = rule.nested(4).into_iter().flat_map(Attributes::iter);
                if let Some(values) = expressions.filter_map(|(_, bytes)| counted(Attributes(bytes))).next() {
                    found = values;
                }
            }
            Some(_) => {}
            None => found = (0, 0),
        });
        or_absent(asked)?;
        Ok(found)
    }

    pub(super) fn ask_shape(&mut self) -> Result<Shape, Refusal> {
        let mut shape = Shape::new();
        let Some(table) = self.ask_table()? else { return Ok(shape) };
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
        shape.insert((0, TABLE.to_owned(), table.handle, table.flags));
        Ok(shape)
    }

    /// The number of the ruleset, which grows by one with each transaction of anybody; `None` when it is not told.
    pub(super) fn ask_generation(&mut self) -> Result<Option<u32>, Refusal> {
        let mut found = None;
        self.socket.ask(&Message::new(libc::NFT_MSG_GETGEN, 0), &mut |body| {
            // NFTA_GEN_ID.
            found = body.map(attributes_of).and_then(|attributes| attributes.u32(1)).or(found);
        })?;
        Ok(found)
    }

    /// What the kernel holds of these prefixes, asked one by one: a set is never listed for it.
    pub(super) fn ask_known(
        &mut self,
        prefixes: impl Iterator<Item = (Kind, Prefix)>,
    ) -> Result<HashMap<(Kind, Prefix), Element>, Refusal> {
        let layout = self.layout.clone();
        let there = prefixes.map(|(kind, prefix)| (kind, prefix, layout.set_of(kind, prefix)));
        let there: Vec<_> = there.filter(|(.., set)| self.sets.contains(set)).collect();
        let mut known = HashMap::new();
        let mut refused = None;
        let questions = there.iter().map(|(_, prefix, set)| element::question(*set, *prefix));
        self.socket.ask_each(questions, &mut |place, answer| {
            let Some((kind, prefix, set)) = there.get(place).copied() else { return };
            match answer {
                Ok(body) => {
                    if let Some(element) = element::read(set, body).next() {
                        known.insert((kind, prefix), element);
                    }
                }
                // Also when the set itself is gone: the transaction will say so.
                Err(Refusal { errno: Errno::NOENT, .. }) => {}
                Err(refusal) => refused = Some(refusal),
            }
        })?;
        refused.map_or(Ok(known), Err)
    }

    /// Every element of a set; none when the set is gone.
    ///
    /// The kernel goes on with a listing at the place that it has counted to. When the hash is resized meanwhile, as
    /// after many new bans, the order is another one, and as many elements are left out as come twice.
    pub(super) fn ask_elements(&mut self, set: SetId) -> Result<Vec<Element>, Refusal> {
        for tries in 1..=LISTING_TRIES_MAX {
            let mut found = self.ask_elements_once(set)?;
            let listed = found.len();
            found.sort_unstable_by_key(|element| element.prefix);
            found.dedup_by_key(|element| element.prefix);
            if found.len() == listed {
                return Ok(found);
            }
            // The kernel tells nobody when it has done.
            std::thread::sleep(RESIZE * tries);
        }
        Err(Refusal {
            errno: Errno::INTR,
            explanation: "the set was resized during each of 10 readings".into(),
        })
    }

    fn ask_elements_once(&mut self, set: SetId) -> Result<Vec<Element>, Refusal> {
        let mut question = Message::new(libc::NFT_MSG_GETSETELEM, libc::NLM_F_DUMP);
        question.text(1, TABLE).text(2, &set.name());
        let mut found = Vec::new();
        let asked = self.socket.ask(&question, &mut |body| match body {
            Some(body) => found.extend(element::read(set, body)),
            None => found.clear(),
        });
        or_absent(asked)?;
        Ok(found)
    }
}

/// What is not there is no refusal.
fn or_absent(asked: Result<(), Refusal>) -> Result<(), Refusal> {
    match asked {
        Err(Refusal { errno: Errno::NOENT, .. }) => Ok(()),
        asked => asked,
    }
}
