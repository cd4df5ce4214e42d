//! Matches and captures in a long text, at a cost that is linear in it and small per byte.
//!
//! The crate `regex` captures with a backtracker whose memory allows some kilobytes of text, and beyond with a
//! simulation that costs up to a microsecond a byte; where a pattern asks for ends of words, a letter that is not ASCII
//! throws it off its automaton. Here a walk along the text leaves a trail: at each place the step that was taken, one
//! of a few that are built once each. If a match is found, the way back along the trail is the way that the match
//! took, and what it captured. What it finds is what `regex` finds: the leftmost match, of the branches the first.
//!
//! | module | story |
//! |---|---|
//! | `letters` | what the automaton reads |
//! | `steps` | the steps, and how each is built |
//! | `ahead` | assertions about what follows |
#![forbid(unsafe_code)]

use std::{
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use regex_automata::{
    nfa::thompson::{NFA, State},
    util::look::Look,
};

mod ahead;
mod letters;
mod steps;

pub(super) use ahead::Cut;
use ahead::{Ahead, STAND_INS};

use letters::Letters;
use steps::{Automaton, DEAD, MATCHES, Steps, Way};

use super::regexp::Groups;

/// A pattern ready to be searched for.
#[derive(Debug)]
pub(super) struct Trail {
    nfa: NFA,
    letters: Letters,
    /// By state: whether a look follows it before the next letter.
    looks: Vec<bool>,
    /// What the pattern asserts of the text behind a place.
    ahead: Vec<Ahead>,
    /// What was built for earlier texts.
    steps: Mutex<Steps>,
    gave_up: AtomicU64,
}

/// A text that asks for more steps, or more memory for them, than it may.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GaveUp;

impl Trail {
    /// `None` when the pattern is one that only the crate can search for.
    pub(super) fn new(pattern: &str, compiled_bytes_max: usize) -> Option<Self> {
        Self::made(pattern, Vec::new(), compiled_bytes_max)
    }

    /// As [`Self::new`], of a pattern with assertions.
    pub(super) fn asserting(cut: &Cut, compiled_bytes_max: usize) -> Option<Self> {
        let ahead = cut.assertions.iter();
        let ahead = ahead.map(|(text, negative)| Ahead::new(text, *negative, compiled_bytes_max));
        Self::made(&cut.pattern, ahead.collect::<Option<_>>()?, compiled_bytes_max)
    }

    fn made(pattern: &str, ahead: Vec<Ahead>, compiled_bytes_max: usize) -> Option<Self> {
        let config = NFA::config().nfa_size_limit(Some(compiled_bytes_max));
        let nfa = NFA::compiler().configure(config).build(pattern).ok()?;
        let assertions: Vec<Look> = STAND_INS.iter().take(ahead.len()).map(|(_, look)| *look).collect();
        Some(Self {
            letters: Letters::new(&nfa, &assertions)?,
            ahead,
            looks: look_ahead(&nfa),
            steps: Mutex::default(),
            gave_up: AtomicU64::new(0),
            nfa,
        })
    }

    /// How many texts asked for more than they may.
    pub(super) fn gave_up(&self) -> u64 {
        self.gave_up.load(Ordering::Relaxed)
    }

    /// Whether there is a match that begins at `start` or behind.
    pub(super) fn is_match(&self, text: &str, start: usize) -> Result<bool, GaveUp> {
        match self.walk(text, start, Until::AnyMatch, |_, found| found)? {
            // The crate passes over an empty match inside a character.
            Some(end) if !text.is_char_boundary(start + end) => self.give_up(),
            found => Ok(found.is_some()),
        }
    }

    /// Where the leftmost match is that begins at `start` or behind.
    pub(super) fn find(&self, text: &str, start: usize) -> Result<Option<Range<usize>>, GaveUp> {
        let found = self.captures(text, start, &[0])?;
        Ok(found.and_then(|groups| groups.first().cloned().flatten()))
    }

    /// The groups of the leftmost match that begins at `start` or behind: those that are `wanted`, perhaps others; all
    /// if none are.
    pub(super) fn captures(
        &self,
        text: &str,
        start: usize,
        wanted: &[usize],
    ) -> Result<Option<Groups>, GaveUp> {
        let found = self.walk(text, start, Until::TheMatch, |trail, found| {
            let groups = self.back(trail.steps, trail.places, start, found?, wanted);
            Some(groups)
        })?;
        let Some(groups) = found else { return Ok(None) };
        // The crate passes over an empty match inside a character.
        match groups.first() {
            Some(Some(span)) if span.is_empty() && !text.is_char_boundary(span.start) => self.give_up(),
            _ => Ok(Some(groups)),
        }
    }

    fn give_up<T>(&self) -> Result<T, GaveUp> {
        self.gave_up.fetch_add(1, Ordering::Relaxed);
        Err(GaveUp)
    }

    /// Walks along `text` and lets `then` look at the trail, and at the end of the match counted from `start`.
    fn walk<T>(
        &self,
        text: &str,
        start: usize,
        until: Until,
        then: impl FnOnce(Walked<'_>, Option<usize>) -> T,
    ) -> Result<T, GaveUp> {
        // One that is in use elsewhere is not waited for.
        let mut kept = self.steps.try_lock();
        let mut own = Steps::default();
        let steps = kept.as_deref_mut().unwrap_or(&mut own);
        steps.begin();
        let rest = text.as_bytes().get(start..).unwrap_or_default();
        let mut places = Vec::with_capacity(rest.len() + 1);
        let before = self.letters.kind_before(text, start);
        let end = [self.letters.end()];
        let found = if !self.ahead.is_empty() {
            let mut sets = vec![0_u8; text.len() + 1];
            let noted = (self.ahead.iter().enumerate())
                .try_for_each(|(number, ahead)| ahead.note(text, 1 << number, &mut sets));
            let letters = self.letters.all(text.get(start..).unwrap_or_default());
            let letters = letters.into_iter().chain(end).zip(sets.iter().skip(start));
            let letters = letters.map(|(letter, set)| self.letters.asserting(letter, *set));
            noted.ok().and_then(|()| self.forth(steps, letters, before, until, &mut places))
        } else if self.letters.are_bytes(text) {
            let letters = rest.iter().map(|byte| self.letters.of(*byte)).chain(end);
            self.forth(steps, letters, before, until, &mut places)
        } else {
            let letters = self.letters.of_text(text.get(start..).unwrap_or_default()).chain(end);
            self.forth(steps, letters, before, until, &mut places)
        };
        match found {
            Some(found) => Ok(then(Walked { steps, places: &places }, found)),
            None => {
                *steps = Steps::default();
                self.give_up()
            }
        }
    }

    /// From the start to the end of the match, if there is one; `None` when that would take too much.
    fn forth(
        &self,
        steps: &mut Steps,
        letters: impl Iterator<Item = u16>,
        before: u8,
        until: Until,
        places: &mut Vec<u32>,
    ) -> Option<Option<usize>> {
        let automaton =
            Automaton { nfa: &self.nfa, letters: &self.letters, looks: &self.looks, every_match: false };
        let mut list = steps.first(&automaton, before)?;
        let mut end = None;
        for (at, letter) in letters.enumerate() {
            let place = list + u32::from(letter);
            places.push(place);
            let mut step = steps.at(place as usize);
            if Steps::is_special(step) {
                step = steps.built(&automaton, place as usize)?;
                if step & MATCHES != 0 {
                    end = Some(at);
                    step &= !MATCHES;
                }
                if step == DEAD || (end.is_some() && until == Until::AnyMatch) {
                    break;
                }
            }
            list = step;
        }
        Some(end)
    }

    /// From the end of a match back to its start.
    fn back(&self, steps: &Steps, places: &[u32], start: usize, end: usize, wanted: &[usize]) -> Groups {
        let mut slots: Vec<Option<usize>> = vec![None; self.nfa.group_info().slot_len()];
        let done = |slots: &[Option<usize>]| {
            let known = |group: &usize| [0, 1].iter().all(|side| slots.get(group * 2 + side) != Some(&None));
            slots[0].is_some() || (!wanted.is_empty() && wanted.iter().all(known))
        };
        let mut note = |way: Way, at: usize| {
            if way.captures == 0 {
                return false;
            }
            for slot in steps.captures(way.captures) {
                // What is captured last counts.
                slots[usize::from(*slot)].get_or_insert(start + at);
            }
            done(&slots)
        };
        let way = steps.way_to_match(places[end] as usize);
        let mut index = way.from;
        if !note(way, end) {
            for (at, place) in places[..end].iter().enumerate().rev() {
                let Some(way) = steps.way(*place as usize, index) else { continue };
                index = way.from;
                if note(way, at) {
                    break;
                }
            }
        }
        slots.chunks_exact(2).map(|pair| Some(pair[0]?..pair[1]?)).collect()
    }
}

/// How far to walk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    AnyMatch,
    TheMatch,
}

struct Walked<'a> {
    steps: &'a Steps,
    /// At each place, counted from the start: the step that was taken.
    places: &'a [u32],
}

/// By state: whether a look follows it before the next letter.
fn look_ahead(nfa: &NFA) -> Vec<bool> {
    let mut looks: Vec<bool> = nfa.states().iter().map(|state| matches!(state, State::Look { .. })).collect();
    loop {
        let mut grown = false;
        for (at, state) in nfa.states().iter().enumerate().rev() {
            let follows = match state {
                State::Union { alternates } => alternates.iter().any(|next| looks[next.as_usize()]),
                State::BinaryUnion { alt1, alt2 } => looks[alt1.as_usize()] || looks[alt2.as_usize()],
                State::Capture { next, .. } => looks[next.as_usize()],
                _ => false,
            };
            if follows && !looks[at] {
                looks[at] = true;
                grown = true;
            }
        }
        if !grown {
            return looks;
        }
    }
}

#[cfg(test)]
mod tests;
