//! Two readings of one text, side by side: the product of two automata, searched for a text on which they put the
//! address in different places.
//!
//! The search is over everything that such a text could be, so where it ends without one there is none. It is
//! breadth first: a witness is as short as any. The first reading is the one whose address begins first, which halves
//! the work for a pattern against itself.
#![forbid(unsafe_code)]

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    ops::Range,
};

use super::{
    address::{Address, Left, Owed},
    alphabet::{Alphabet, Kind, Letters},
    nfa::{Goal, Nfa},
};

/// What became of a search.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is no text with two readings.
    None,
    /// This one, to whose satisfaction `accept` was.
    Found(Candidate),
    /// So many states were not enough to know.
    TooMany,
    /// Texts with two readings were found, none of which the engine confirms.
    Doubtful,
}

/// A text and where the two readings put the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) text: String,
    pub(super) hosts: [Range<usize>; 2],
}

/// Candidates that the engine may refuse before the search gives up.
const CANDIDATES_MAX: usize = 64;

/// Where one reading is in its pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The match has not begun.
    Before,
    State(u32),
    /// The match is over.
    Behind,
}

/// How far the address of one reading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    Ahead,
    In(Address),
    Behind(Owed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    at: At,
    host: Host,
}

#[derive(Clone, Copy, Debug)]
struct State {
    readings: [Reading; 2],
    left: Left,
    /// Both addresses began at one place, or at the dotted part of a mapped one, and so are one until one ends.
    same: bool,
}

struct Node {
    state: State,
    parent: u32,
    letter: u8,
}

/// Searches for a text that `first` and `second` both match, with different addresses, that `accept` agrees to.
/// Returns how many states were looked at too.
pub(super) fn search(
    first: &Nfa,
    second: &Nfa,
    alphabet: &Alphabet,
    states_max: usize,
    mut accept: impl FnMut(&Candidate) -> bool,
) -> (Outcome, usize) {
    let mut search = Search {
        patterns: [first, second],
        alphabet,
        looks_at_words: first.looks_at_words || second.looks_at_words,
        minds_colons: first.has_host_behind_colon || second.has_host_behind_colon,
        nodes: Vec::new(),
        seen: HashMap::default(),
        addresses: HashMap::default(),
    };
    let reading = Reading { at: At::Before, host: Host::Ahead };
    search.visit(State { readings: [reading, reading], left: Left::START, same: false }, 0, 0);
    let mut next = 0;
    let mut refused = 0;
    while next < search.nodes.len() {
        if search.nodes.len() > states_max {
            return (Outcome::TooMany, search.nodes.len());
        }
        if search.may_end(search.nodes[next].state) {
            let candidate = search.candidate(next);
            if accept(&candidate) {
                return (Outcome::Found(candidate), search.nodes.len());
            }
            refused += 1;
            if refused >= CANDIDATES_MAX {
                return (Outcome::Doubtful, search.nodes.len());
            }
        }
        search.expand(next);
        next += 1;
    }
    (if refused > 0 { Outcome::Doubtful } else { Outcome::None }, search.nodes.len())
}

struct Search<'a> {
    patterns: [&'a Nfa; 2],
    alphabet: &'a Alphabet,
    looks_at_words: bool,
    minds_colons: bool,
    nodes: Vec<Node>,
    seen: HashMap<u128, (), BuildHasherDefault<KeyHasher>>,
    addresses: HashMap<Address, u16, BuildHasherDefault<KeyHasher>>,
}

/// One way on for one reading: what it consumes, and what it is then.
#[derive(Clone, Copy)]
struct Way {
    letters: Letters,
    begins: bool,
    ends: bool,
    then: Reading,
}

impl Search<'_> {
    /// The ways of one reading over a letter of this kind.
    fn ways(&self, which: usize, state: State, kind: Kind, letters: &Letters, out: &mut Vec<Way>) {
        out.clear();
        let nfa = self.patterns[which];
        let Reading { at, host } = state.readings[which];
        let stay = |at| {
            let then = match host {
                Host::Behind(owed) => Reading { at, host: Host::Behind(owed.step(kind)?) },
                host => Reading { at, host },
            };
            Some(Way { letters: *letters, begins: false, ends: false, then })
        };
        let from = match at {
            At::Behind => return out.extend(stay(At::Behind)),
            At::State(state) => state,
            At::Before => {
                if !nfa.is_anchored {
                    out.extend(stay(At::Before));
                }
                nfa.start()
            }
        };
        for step in nfa.steps(from) {
            let (letters, then_at) = match step.to {
                Goal::Over(set, state) => (set.and(letters), At::State(state)),
                Goal::Match => (*letters, At::Behind),
            };
            if letters.is_empty() || !step.fits(state.left.kind, Some(kind)) {
                continue;
            }
            let (begins, ends, host) = match host {
                Host::Ahead if step.begins => {
                    let begun = state.left.begin().and_then(|address| address.step(kind));
                    let Some(address) = begun else { continue };
                    (true, false, Host::In(address))
                }
                // A match without an address blames nobody.
                Host::Ahead if matches!(step.to, Goal::Match) => continue,
                Host::Ahead => (false, false, Host::Ahead),
                Host::In(address) if step.ends => {
                    let Some(owed) = address.owes().step(kind).filter(|_| address.is_whole()) else {
                        continue;
                    };
                    (false, true, Host::Behind(owed))
                }
                Host::In(address) => {
                    let Some(address) = address.step(kind) else { continue };
                    (false, false, Host::In(address))
                }
                Host::Behind(owed) => {
                    let Some(owed) = owed.step(kind) else { continue };
                    (false, false, Host::Behind(owed))
                }
            };
            out.push(Way { letters, begins, ends, then: Reading { at: then_at, host } });
        }
    }

    fn expand(&mut self, index: usize) {
        let state = self.nodes[index].state;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for (kind, letters) in self.alphabet.by_kind() {
            if letters.is_empty() {
                continue;
            }
            self.ways(0, state, kind, letters, &mut ours);
            if ours.is_empty() {
                continue;
            }
            self.ways(1, state, kind, letters, &mut theirs);
            for a in &ours {
                for b in &theirs {
                    let Some(letter) = a.letters.and(&b.letters).first() else { continue };
                    let Some(same) = sameness(state, a, b, kind) else { continue };
                    let next = State { readings: [a.then, b.then], left: state.left.step(kind), same };
                    self.visit(next, u32::try_from(index).unwrap_or(0), letter);
                }
            }
        }
    }

    fn visit(&mut self, mut state: State, parent: u32, letter: u8) {
        // What stands before matters until both addresses have begun, and then only whether it is a word.
        if !self.looks_at_words {
            let both_began = state.readings.iter().all(|reading| reading.host != Host::Ahead);
            state.left = if both_began { Left::START } else { state.left.simplified(self.minds_colons) };
        }
        let mut key = u128::from(state.left.code()) << 1 | u128::from(state.same);
        for reading in state.readings {
            let at = match reading.at {
                At::Before => 0,
                At::Behind => 1,
                At::State(state) => state + 2,
            };
            let host = match reading.host {
                Host::Ahead => 0,
                Host::Behind(owed) => 1 + u16::from(owed.code()),
                Host::In(address) => {
                    let known = u16::try_from(self.addresses.len()).unwrap_or(0);
                    64 + *self.addresses.entry(address).or_insert(known)
                }
            };
            key = (key << 32 | u128::from(at)) << 16 | u128::from(host);
        }
        if self.seen.insert(key, ()).is_none() {
            self.nodes.push(Node { state, parent, letter });
        }
    }

    /// Whether the text may end here, both patterns matching.
    fn may_end(&self, state: State) -> bool {
        let may = |which: usize| {
            let Reading { at, host } = state.readings[which];
            let nfa = self.patterns[which];
            let ended = matches!(host, Host::Behind(owed) if owed.may_end());
            let whole = matches!(host, Host::In(address) if address.is_whole());
            match at {
                At::Behind => ended,
                At::Before => false,
                At::State(at) => nfa.steps(at).iter().any(|step| {
                    matches!(step.to, Goal::Match)
                        && step.fits(state.left.kind, None)
                        && (ended || (whole && step.ends))
                }),
            }
        };
        !state.same && may(0) && may(1)
    }

    /// The text that leads to a state.
    fn candidate(&self, last: usize) -> Candidate {
        let mut path = vec![last];
        while let Some(at) = path.last().copied().filter(|at| *at != 0) {
            path.push(self.nodes[at].parent as usize);
        }
        path.reverse();
        let mut text = String::new();
        let mut begun = [None; 2];
        let mut ended = [None; 2];
        for at in path.into_iter().skip(1) {
            for (which, reading) in self.nodes[at].state.readings.iter().enumerate() {
                if reading.host != Host::Ahead {
                    begun[which].get_or_insert(text.len());
                }
                if matches!(reading.host, Host::Behind(_)) {
                    ended[which].get_or_insert(text.len());
                }
            }
            text.push(self.alphabet.shown(self.nodes[at].letter));
        }
        let hosts = [0, 1].map(|which| begun[which].unwrap_or(0)..ended[which].unwrap_or(text.len()));
        Candidate { text, hosts }
    }
}

/// Whether the two addresses are one after this step; `None` when this way leads nowhere: the second reading's address
/// began first, or both are the same for good.
fn sameness(state: State, a: &Way, b: &Way, kind: Kind) -> Option<bool> {
    let begun = |reading: Reading| reading.host != Host::Ahead;
    if b.begins {
        return match state.readings[0].host {
            Host::Ahead => a.begins.then_some(true),
            Host::In(address) => Some(address.is_before_mapped() && !a.ends),
            Host::Behind(_) => Some(false),
        };
    }
    if begun(b.then) && !begun(a.then) {
        return None;
    }
    if !state.same {
        return Some(false);
    }
    let over = |reading: Reading| matches!(reading.host, Host::In(address) if address.is_over());
    match (a.ends, b.ends) {
        (false, false) => Some(true),
        (true, true) => None,
        // `2001:db8::` and the same with a colon behind it.
        (true, false) => (kind != Kind::Colon || !over(b.then)).then_some(false),
        (false, true) => (kind != Kind::Colon || !over(a.then)).then_some(false),
    }
}

/// The keys are dense numbers: one multiplication mixes them.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    }

    fn write_u128(&mut self, n: u128) {
        self.write_u64(n as u64);
        self.write_u64((n >> 64) as u64);
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_isize(&mut self, n: isize) {
        self.write_u64(n as u64);
    }
}
