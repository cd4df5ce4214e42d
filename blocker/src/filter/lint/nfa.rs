//! A pattern as a Thompson automaton over letters, with the place of the address marked.
//!
//! Between two characters an automaton may pass through any number of states; those walks are laid out once as
//! [`Step`]s, each with the look-arounds it asks for and whether the address begins or ends on it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use regex_syntax::hir::{Hir, HirKind, Look, LookSet};

use super::alphabet::{Alphabet, Kind, Letters, holds};

/// States of one pattern at most.
pub(super) const STATES_MAX: usize = 20_000;
/// Walks between two characters at most, from one state.
const STEPS_MAX: usize = 4_096;

/// A pattern ready for the product.
#[derive(Debug)]
pub(super) struct Nfa {
    nodes: Vec<Node>,
    start: u32,
    /// What can come next behind each node that a character leads to; by node.
    steps: Vec<Vec<Step>>,
    /// A match begins only where the text begins.
    pub(super) is_anchored: bool,
    /// It asks for more than where the text begins and ends.
    pub(super) looks_at_words: bool,
    /// A colon of the text can stand directly before the address.
    pub(super) has_host_behind_colon: bool,
}

#[derive(Clone, Debug)]
enum Node {
    Letter { set: Letters, next: u32 },
    Split(Vec<u32>),
    Look { look: Look, next: u32 },
    HostBegin { next: u32 },
    HostEnd { next: u32 },
    Match,
}

/// One way on from a state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    looks: LookSet,
    pub(super) begins: bool,
    pub(super) ends: bool,
    pub(super) to: Goal,
}

/// Where a step leads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    /// Over one of these letters to that state.
    Over(Letters, u32),
    /// The pattern has matched.
    Match,
}

impl Step {
    /// Whether its look-arounds hold between these two.
    pub(super) fn fits(&self, before: Option<Kind>, after: Option<Kind>) -> bool {
        self.looks.is_empty() || self.looks.iter().all(|look| holds(look, before, after))
    }
}

/// Why a pattern cannot be laid out.
pub(super) type Refusal = &'static str;

impl Nfa {
    /// Lays out `hir`, whose address is what the groups named by `is_host` hold.
    pub(super) fn new(
        hir: &Hir,
        alphabet: &Alphabet,
        is_host: &dyn Fn(&str) -> bool,
    ) -> Result<Self, Refusal> {
        let mut nfa = Self {
            nodes: vec![Node::Match],
            start: 0,
            steps: Vec::new(),
            is_anchored: false,
            looks_at_words: false,
            has_host_behind_colon: false,
        };
        nfa.start = nfa.add(hir, 0, alphabet, is_host, false)?;
        let mut entered: BTreeSet<u32> = BTreeSet::from([nfa.start]);
        for node in &nfa.nodes {
            if let Node::Letter { next, .. } = node {
                entered.insert(*next);
            }
        }
        nfa.steps = vec![Vec::new(); nfa.nodes.len()];
        for node in entered {
            nfa.steps[node as usize] = nfa.walk(node)?;
        }
        let start = &nfa.steps[nfa.start as usize];
        nfa.is_anchored =
            start.iter().all(|step| step.looks.contains(Look::Start) || step.looks.contains(Look::StartLF));
        nfa.looks_at_words = nfa.nodes.iter().any(|node| match node {
            Node::Look { look, .. } => !matches!(look, Look::Start | Look::End | Look::StartLF | Look::EndLF),
            _ => false,
        });
        let begins = |state: u32| nfa.steps[state as usize].iter().any(|step| step.begins);
        let colon = alphabet.char(':');
        nfa.has_host_behind_colon = begins(nfa.start) && !nfa.is_anchored
            || nfa.nodes.iter().any(|node| match node {
                Node::Letter { set, next } => !set.and(&colon).is_empty() && begins(*next),
                _ => false,
            });
        Ok(nfa)
    }

    /// The state before the pattern.
    pub(super) fn start(&self) -> u32 {
        self.start
    }

    /// What can come next in this state.
    pub(super) fn steps(&self, state: u32) -> &[Step] {
        self.steps.get(state as usize).map_or(&[], Vec::as_slice)
    }

    fn node(&mut self, node: Node) -> Result<u32, Refusal> {
        if self.nodes.len() >= STATES_MAX {
            return Err("the pattern has too many states");
        }
        self.nodes.push(node);
        Ok(u32::try_from(self.nodes.len() - 1).unwrap_or(0))
    }

    /// Adds what matches `hir` and goes on at `next`.
    fn add(
        &mut self,
        hir: &Hir,
        next: u32,
        alphabet: &Alphabet,
        is_host: &dyn Fn(&str) -> bool,
        repeated: bool,
    ) -> Result<u32, Refusal> {
        match hir.kind() {
            HirKind::Empty => Ok(next),
            HirKind::Literal(literal) => {
                let text =
                    std::str::from_utf8(&literal.0).map_err(|_| "the pattern asks for broken UTF-8")?;
                let mut at = next;
                for c in text.chars().rev() {
                    at = self.node(Node::Letter { set: alphabet.char(c), next: at })?;
                }
                Ok(at)
            }
            HirKind::Class(class) => self.node(Node::Letter { set: alphabet.class(class), next }),
            HirKind::Look(look) => self.node(Node::Look { look: *look, next }),
            HirKind::Capture(capture) if capture.name.as_deref().is_some_and(is_host) => {
                if repeated {
                    return Err("the address stands in a part that may repeat, and the last one counts");
                }
                let end = self.node(Node::HostEnd { next })?;
                let inner = self.add(&capture.sub, end, alphabet, is_host, repeated)?;
                self.node(Node::HostBegin { next: inner })
            }
            HirKind::Capture(capture) => self.add(&capture.sub, next, alphabet, is_host, repeated),
            HirKind::Concat(parts) => {
                let mut at = next;
                for (index, part) in parts.iter().enumerate().rev() {
                    // An address that is a whole token begins no sooner than this asks.
                    let is_implied = matches!(part.kind(), HirKind::Look(Look::WordStartHalfAscii))
                        && matches!(parts.get(index + 1).map(Hir::kind), Some(HirKind::Capture(capture))
                            if capture.name.as_deref().is_some_and(is_host));
                    if !is_implied {
                        at = self.add(part, at, alphabet, is_host, repeated)?;
                    }
                }
                Ok(at)
            }
            HirKind::Alternation(branches) => {
                let starts = branches
                    .iter()
                    .map(|branch| self.add(branch, next, alphabet, is_host, repeated))
                    .collect::<Result<_, _>>()?;
                self.node(Node::Split(starts))
            }
            HirKind::Repetition(repetition) => {
                let repeated = repeated || repetition.max != Some(1);
                let sub = &repetition.sub;
                let mut at = next;
                match repetition.max {
                    None => {
                        let split = self.node(Node::Split(vec![next]))?;
                        let inner = self.add(sub, split, alphabet, is_host, repeated)?;
                        self.nodes[split as usize] = Node::Split(vec![next, inner]);
                        at = split;
                    }
                    Some(max) => {
                        for _ in repetition.min..max {
                            let inner = self.add(sub, at, alphabet, is_host, repeated)?;
                            at = self.node(Node::Split(vec![inner, next]))?;
                        }
                    }
                }
                for _ in 0..repetition.min {
                    at = self.add(sub, at, alphabet, is_host, repeated)?;
                }
                Ok(at)
            }
        }
    }

    /// Every walk from `from` to a letter or the match.
    fn walk(&self, from: u32) -> Result<Vec<Step>, Refusal> {
        let mut steps = Vec::new();
        let mut seen = BTreeSet::new();
        let mut open = vec![(from, LookSet::empty(), false, false)];
        while let Some((at, looks, begins, ends)) = open.pop() {
            if !seen.insert((at, looks.bits, begins, ends)) {
                continue;
            }
            if seen.len() > STEPS_MAX {
                return Err("the pattern has too many ways between two characters");
            }
            match &self.nodes[at as usize] {
                Node::Letter { set, next } => {
                    steps.push(Step { looks, begins, ends, to: Goal::Over(*set, *next) });
                }
                Node::Match => steps.push(Step { looks, begins, ends, to: Goal::Match }),
                Node::Split(ways) => open.extend(ways.iter().map(|way| (*way, looks, begins, ends))),
                Node::Look { look, next } => open.push((*next, looks.insert(*look), begins, ends)),
                // A second address is text like any other.
                Node::HostBegin { next } => open.push((*next, looks, begins || !ends, ends)),
                // An address has a character at least.
                Node::HostEnd { .. } if begins => {}
                Node::HostEnd { next } => open.push((*next, looks, begins, true)),
            }
        }
        Ok(steps)
    }
}
