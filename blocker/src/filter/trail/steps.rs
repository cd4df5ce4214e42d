//! The steps of the walk along a text, each built when a text first asks for it.
//!
//! A place in a text is known by the states that the pattern's automaton may be in there, the one that `regex` prefers
//! first. A step leads from one such list over a letter to the next, and says of each state of the next by way of
//! which of the former it is reached and what is captured on the way.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use regex_automata::{
    nfa::thompson::{NFA, State},
    util::primitives::StateID,
};

use super::letters::Letters;

/// Steps that one text may ask to be built, and bytes that they may take.
const BUILT_MAX: usize = 8_192;
const BYTES_MAX: usize = 8 << 20;
/// Bytes of steps that are kept for the next text.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// A step that is not built.
const UNBUILT: u32 = u32::MAX;
/// In a step: a match ends before the letter.
pub(super) const MATCHES: u32 = 1 << 31;
/// The list without states.
pub(super) const DEAD: u32 = 0;

/// How a state is reached.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Way {
    /// The place of the state before, in its list.
    pub(super) from: u16,
    /// The number of what is captured before the letter; 0 for nothing.
    pub(super) captures: u16,
}

/// Where the ways of a step are: the first is that of the match, the others those of the next list.
#[derive(Clone, Copy, Debug, Default)]
struct Ways {
    at: u32,
    /// Up to this place in the next list, all stay at their place and capture nothing.
    stay: u16,
}

/// The lists and steps known so far. A list is named by the place of its first step.
#[derive(Debug, Default)]
pub(super) struct Steps {
    lists: Vec<List>,
    known: HashMap<List, u32>,
    /// By list and letter: the next list, perhaps with [`MATCHES`].
    next: Vec<u32>,
    /// By list and letter: what leads to the next list.
    ways_of: Vec<Ways>,
    ways: Vec<Way>,
    captures: Vec<Box<[u16]>>,
    known_captures: HashMap<Box<[u16]>, u16>,
    bytes: usize,
    built: usize,
    scratch: Scratch,
}

/// States, and the kind of what stands before the place, if a look from there asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct List {
    states: Box<[u32]>,
    before: u8,
}

#[derive(Debug, Default)]
struct Scratch {
    round: u32,
    /// By state: the round in which it was seen, and in which it became part of the next list.
    seen: Vec<u32>,
    listed: Vec<u32>,
    open: Vec<(StateID, u32)>,
    /// What was captured, and before it.
    path: Vec<(u16, u32)>,
}

/// Nothing was captured.
const NO_PATH: u32 = u32::MAX;

/// What is built from.
pub(super) struct Automaton<'a> {
    pub(super) nfa: &'a NFA,
    pub(super) letters: &'a Letters,
    /// By state: whether a look follows it before the next letter.
    pub(super) looks: &'a [bool],
    /// Whether what `regex` prefers less than a match is pursued too.
    pub(super) every_match: bool,
}

impl Steps {
    /// Makes room for a text; what earlier ones left behind stays, if it is not too much.
    pub(super) fn begin(&mut self) {
        self.built = 0;
        if self.bytes > KEPT_BYTES_MAX {
            *self = Self::default();
        }
    }

    /// The list that a text begins with; `None` when it would take too much memory.
    pub(super) fn first(&mut self, automaton: &Automaton<'_>, before: u8) -> Option<u32> {
        let start = automaton.nfa.start_unanchored();
        if self.lists.is_empty() {
            let states = automaton.nfa.states().len();
            self.scratch.seen = vec![0; states];
            self.scratch.listed = vec![0; states];
            self.captures.push(Box::default());
            self.add(automaton, Vec::new(), 0)?;
        }
        self.add(automaton, vec![start.as_u32()], before)
    }

    /// The step at `place`, the sum of a list and a letter, if it is built.
    #[inline]
    pub(super) fn at(&self, place: usize) -> u32 {
        self.next[place]
    }

    /// Whether a step needs more than to go on to the next list.
    #[inline]
    pub(super) fn is_special(step: u32) -> bool {
        // The list without states is 0.
        step.wrapping_sub(1) >= MATCHES - 1
    }

    /// How the match is reached that ends before the letter of this step.
    pub(super) fn way_to_match(&self, place: usize) -> Way {
        self.ways[self.ways_of[place].at as usize]
    }

    /// How the state is reached that stands at `index` in the list that this step leads to; `None` if from the same
    /// place, and nothing is captured.
    #[inline]
    pub(super) fn way(&self, place: usize, index: u16) -> Option<Way> {
        let Ways { at, stay } = self.ways_of[place];
        if index < stay {
            return None;
        }
        self.ways.get(at as usize + 1 + usize::from(index)).copied()
    }

    /// The slots that are captured under this number.
    pub(super) fn captures(&self, number: u16) -> &[u16] {
        &self.captures[usize::from(number)]
    }

    /// As [`Self::at`], built if it is not; `None` when that would take too much.
    pub(super) fn built(&mut self, automaton: &Automaton<'_>, place: usize) -> Option<u32> {
        let step = self.next[place];
        if step != UNBUILT {
            return Some(step);
        }
        self.built += 1;
        if self.built > BUILT_MAX || self.bytes > BYTES_MAX {
            return None;
        }
        let stride = automaton.letters.len();
        let list = self.lists.get(place / stride)?.clone();
        let letter = automaton.letters.get(place % stride)?;
        let looks = automaton.letters.holds(list.before, letter.kind).union(letter.asserts);
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.round += 1;
        scratch.path.clear();
        let ways_at = u32::try_from(self.ways.len()).ok()?;
        self.ways.push(Way::default());
        let mut states = Vec::new();
        let mut found = None;
        'list: for (from, state) in (0_u16..).zip(&list.states) {
            scratch.open.clear();
            scratch.open.push((StateID::must(*state as usize), NO_PATH));
            while let Some((mut state, mut path)) = scratch.open.pop() {
                // Along a branch until it ends; its later siblings wait.
                let next = loop {
                    if std::mem::replace(&mut scratch.seen[state.as_usize()], scratch.round) == scratch.round
                    {
                        break None;
                    }
                    match automaton.nfa.state(state) {
                        State::ByteRange { trans } => {
                            break letter.byte.filter(|byte| trans.matches_byte(*byte)).map(|_| trans.next);
                        }
                        State::Sparse(sparse) => {
                            break letter.byte.and_then(|byte| sparse.matches_byte(byte));
                        }
                        State::Dense(dense) => break letter.byte.and_then(|byte| dense.matches_byte(byte)),
                        State::Look { look, next } if looks.contains(*look) => state = *next,
                        State::Look { .. } | State::Fail => break None,
                        State::Union { alternates } => {
                            scratch.open.extend(alternates.iter().rev().map(|next| (*next, path)));
                            break None;
                        }
                        State::BinaryUnion { alt1, alt2 } => {
                            scratch.open.push((*alt2, path));
                            state = *alt1;
                        }
                        State::Capture { next, slot, .. } => {
                            let slot = u16::try_from(slot.as_usize()).ok()?;
                            scratch.path.push((slot, path));
                            path = u32::try_from(scratch.path.len() - 1).ok()?;
                            state = *next;
                        }
                        State::Match { .. } => {
                            found = Some(Way { from, captures: self.captured(&scratch.path, path)? });
                            if automaton.every_match {
                                break None;
                            }
                            break 'list;
                        }
                    }
                };
                if let Some(next) = next
                    && std::mem::replace(&mut scratch.listed[next.as_usize()], scratch.round) != scratch.round
                {
                    states.push(next.as_u32());
                    let captures = self.captured(&scratch.path, path)?;
                    self.ways.push(Way { from, captures });
                }
            }
        }
        self.scratch = scratch;
        self.bytes += (states.len() + 1) * size_of::<Way>();
        let stay = self.ways[ways_at as usize + 1..].iter().enumerate();
        let stay = stay.take_while(|(at, way)| usize::from(way.from) == *at && way.captures == 0).count();
        self.ways_of[place] = Ways { at: ways_at, stay: u16::try_from(stay).ok()? };
        let looked_at = states.iter().any(|state| automaton.looks[*state as usize]);
        let mut step = self.add(automaton, states, if looked_at { letter.kind } else { 0 })?;
        if let Some(way) = found {
            self.ways[ways_at as usize] = way;
            step |= MATCHES;
        }
        self.next[place] = step;
        Some(step)
    }

    /// The number of what was captured along a path.
    fn captured(&mut self, path: &[(u16, u32)], mut at: u32) -> Option<u16> {
        if at == NO_PATH {
            return Some(0);
        }
        let mut slots = Vec::new();
        while at != NO_PATH {
            let (slot, before) = path[at as usize];
            slots.push(slot);
            at = before;
        }
        if let Some(known) = self.known_captures.get(slots.as_slice()) {
            return Some(*known);
        }
        let number = u16::try_from(self.captures.len()).ok()?;
        let slots: Box<[u16]> = slots.into();
        self.bytes += slots.len() * 4 + 64;
        self.captures.push(slots.clone());
        self.known_captures.insert(slots, number);
        Some(number)
    }

    fn add(&mut self, automaton: &Automaton<'_>, states: Vec<u32>, before: u8) -> Option<u32> {
        if states.len() >= usize::from(u16::MAX) {
            return None;
        }
        let list = List { states: states.into(), before };
        if let Some(known) = self.known.get(&list) {
            return Some(*known);
        }
        let stride = automaton.letters.len();
        let number = u32::try_from(self.next.len()).ok().filter(|number| *number < MATCHES)?;
        self.next.resize(self.next.len() + stride, UNBUILT);
        self.ways_of.resize(self.next.len(), Ways::default());
        self.bytes += stride * 12 + list.states.len() * 8 + 128;
        self.known.insert(list.clone(), number);
        self.lists.push(list);
        Some(number)
    }
}
