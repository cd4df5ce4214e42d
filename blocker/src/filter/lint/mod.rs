//! Whether the text of a line can choose whom a filter blames: a proof, not a test.
//!
//! A pattern that can be laid on one line in two ways, with the address in two places, lets whoever wrote a part of
//! that line choose the address. [`proofs`] lays two copies of a pattern's automaton side by side and looks for such a
//! line among all there are; it ends with a witness (UNSAFE), with the knowledge that there is none (SAFE), or with
//! neither (UNPROVEN), because a bound was met or the pattern has parts that no automaton has. The same for two
//! patterns of one filter, of which the first to match decides.
//!
//! What the proof takes for granted: the text is any characters without a line break. Where a line break can be
//! written by whoever is logged, a whole line can; that is what `newline_safe` declares. It knows nothing of what a
//! daemon writes: a pattern that matches a line of another form is for [`mutate`] and the filter's samples to find.
//!
//! | module | story |
//! |---|---|
//! | `alphabet` | the characters that matter |
//! | `address` | what is an address, and a whole token |
//! | `shape` | a filter's patterns as expressions |
//! | `nfa` | an expression as an automaton |
//! | `product` | two automata on one text |
//! | `notes` | what is no matter of proof |
//! | `mutate` | samples with an attacker's text in them |
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, net::IpAddr, ops::Range};

use regex::Regex;

use super::{FilterSpec, Place, pattern::whole_address};

mod address;
mod alphabet;
pub mod mutate;
mod nfa;
mod notes;
#[cfg(test)]
mod oracle;
mod product;
mod shape;

use alphabet::Alphabet;
use nfa::Nfa;
pub use notes::{Note, notes};
use product::{Candidate, Outcome};
use shape::Shape;

/// States of one product that are looked at before it counts as unproven.
pub const PRODUCT_STATES_MAX: usize = 400_000;

/// What is known of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Safety {
    /// No line can be read in two ways.
    Safe,
    /// Not known.
    Unproven,
    /// A line can.
    Unsafe,
}

impl Safety {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safe => "SAFE",
            Self::Unproven => "UNPROVEN",
            Self::Unsafe => "UNSAFE",
        }
    }
}

/// What the proof found for one pattern, or for two.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The pattern's place.
    pub at: Place,
    /// The pattern as written.
    pub pattern: String,
    /// The place and text of a later pattern that it is held against; `None` when against itself.
    pub shadows: Option<(Place, String)>,
    /// What came of it.
    pub safety: Safety,
    /// Why it is unproven; empty otherwise.
    pub reason: String,
    /// A line with two readings, when it is unsafe.
    pub witness: Option<Witness>,
    /// How many states the search looked at.
    pub states: usize,
}

/// A line that can be read in two ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// The line, behind its date.
    pub line: String,
    /// The two addresses and where they stand; with two patterns, the first is the one that is blamed.
    pub hosts: [(Range<usize>, IpAddr); 2],
}

/// Proves or refutes every pattern of a filter, first each against itself and then each two against one another. Each
/// proof is made when it is asked for, and looks at `states_max` states at most.
pub fn proofs(spec: &FilterSpec, states_max: usize) -> impl Iterator<Item = Proof> {
    let readable = readable(spec);
    let count = spec.failregex.len();
    let selves = (0..count).map(|at| (at, at));
    let pairs = (0..count).flat_map(move |first| (first + 1..count).map(move |second| (first, second)));
    selves.chain(pairs).filter_map(move |(first, second)| {
        let (pattern, other) = (&spec.failregex[first], &spec.failregex[second]);
        let mut proof = Proof {
            at: pattern.at.clone(),
            pattern: pattern.text.clone(),
            shadows: (first != second).then(|| (other.at.clone(), other.text.clone())),
            safety: Safety::Unproven,
            reason: String::new(),
            witness: None,
            states: 0,
        };
        match (&readable.patterns[first], &readable.patterns[second]) {
            (Ok(a), Ok(b)) => {
                Pair { patterns: [a, b], alphabet: &readable.alphabet, is_self: first == second }
                    .prove(states_max, &mut proof);
            }
            (Err(why), _) if first == second => (*why).clone_into(&mut proof.reason),
            // Said where it is held against itself.
            _ => return None,
        }
        Some(proof)
    })
}

/// All of [`proofs`].
pub fn lint(spec: &FilterSpec, states_max: usize) -> Vec<Proof> {
    proofs(spec, states_max).collect()
}

/// The patterns of a filter, each with its automaton.
struct Readable {
    alphabet: Alphabet,
    patterns: Vec<Result<(Shape, Nfa), nfa::Refusal>>,
}

fn readable(spec: &FilterSpec) -> Readable {
    let shapes: Vec<_> = spec.failregex.iter().map(|pattern| shape::shape(spec, pattern)).collect();
    let hirs: Vec<_> = shapes
        .iter()
        .map(|shape| shape.as_ref().map(|shape| shape::for_automaton(&shape.hir)).map_err(|why| *why))
        .collect();
    let alphabet = Alphabet::new(&hirs.iter().flatten().collect::<Vec<_>>());
    let patterns = shapes.into_iter().zip(hirs).map(|(shape, hir)| {
        let alphabet = alphabet.as_ref().ok_or("the filter tells too many characters apart")?;
        Ok((shape?, Nfa::new(&hir?, alphabet, &shape::is_host)?))
    });
    Readable { patterns: patterns.collect(), alphabet: alphabet.unwrap_or_default() }
}

/// Two patterns, perhaps one twice, to be laid on one line.
struct Pair<'a> {
    patterns: [&'a (Shape, Nfa); 2],
    alphabet: &'a Alphabet,
    is_self: bool,
}

impl Pair<'_> {
    fn prove(&self, states_max: usize, proof: &mut Proof) {
        let [(first_shape, first), (second_shape, second)] = self.patterns;
        let mut engine = Engine { shapes: [first_shape, second_shape], compiled: BTreeMap::new() };
        // A pattern against itself is symmetric, two patterns are not: either's address may come first.
        let orders: &[bool] = if self.is_self { &[false] } else { &[false, true] };
        for swapped in orders {
            let (a, b) = if *swapped { (second, first) } else { (first, second) };
            let (outcome, states) = product::search(a, b, self.alphabet, states_max, |candidate| {
                proof.witness = engine.confirms(&turned(candidate, *swapped));
                proof.witness.is_some()
            });
            proof.states += states;
            proof.reason.clear();
            proof.safety = match outcome {
                Outcome::None => Safety::Safe,
                Outcome::Found(_) => Safety::Unsafe,
                Outcome::TooMany => {
                    proof.reason = format!("the search met its bound of {states_max} states");
                    Safety::Unproven
                }
                Outcome::Doubtful => {
                    "two readings were found that the engine does not confirm".clone_into(&mut proof.reason);
                    Safety::Unproven
                }
            };
            if (first_shape.is_wider || second_shape.is_wider) && proof.safety != Safety::Safe {
                // What was left out may well be what forbids the second reading.
                proof.safety = Safety::Unproven;
                proof.witness = None;
                "look-around or a back-reference decides, which no automaton has"
                    .clone_into(&mut proof.reason);
            }
            if proof.safety != Safety::Safe {
                break;
            }
        }
    }
}

fn turned(candidate: &Candidate, swapped: bool) -> Candidate {
    let mut candidate = candidate.clone();
    if swapped {
        candidate.hosts.reverse();
    }
    candidate
}

/// Addresses that people know for examples.
const EXAMPLES: [[&str; 2]; 3] =
    [["198.51.100.1", "203.0.113.9"], ["2001:db8::1", "2001:db8::9"], ["2001:db8:1::", "2001:db8:9::"]];

/// The engine itself, which has the last word on a witness.
struct Engine<'a> {
    shapes: [&'a Shape; 2],
    /// By pattern and marker.
    compiled: BTreeMap<(usize, String), Option<Regex>>,
}

impl Engine<'_> {
    /// The candidate as a witness, when it agrees with both readings.
    fn confirms(&mut self, candidate: &Candidate) -> Option<Witness> {
        let [a, b] = &candidate.hosts;
        let (first, last) = if a.start <= b.start { (a, b) } else { (b, a) };
        for examples in EXAMPLES.iter().filter(|_| first.end <= last.start) {
            let mut text = candidate.text.clone();
            // The colon that the engine takes off again may be one that the other reading needs.
            let like =
                |example: &str, span: &Range<usize>| match candidate.text[span.clone()].ends_with(":::") {
                    true if example.ends_with(':') => format!("{example}:"),
                    _ => example.to_owned(),
                };
            let (early, late) = (like(examples[0], first), like(examples[1], last));
            text.replace_range(last.clone(), &late);
            text.replace_range(first.clone(), &early);
            let moved = last.start + early.len() - first.len();
            let mut hosts = [first.start..first.start + early.len(), moved..moved + late.len()];
            if a.start > b.start {
                hosts.reverse();
            }
            let witness = self.reads(text, hosts);
            if witness.is_some() {
                return witness;
            }
        }
        self.reads(candidate.text.clone(), candidate.hosts.clone())
    }

    fn reads(&mut self, line: String, spans: [Range<usize>; 2]) -> Option<Witness> {
        let mut hosts = Vec::new();
        for (which, span) in spans.into_iter().enumerate() {
            let address = whole_address(&line, span.clone())?;
            let marker = shape::marker(&line[span.clone()]);
            let mut marked = line.clone();
            marked.replace_range(span.clone(), &marker);
            let shape = self.shapes[which];
            let compiled = self
                .compiled
                .entry((which, marker))
                .or_insert_with_key(|(_, marker)| Regex::new(&shape::for_marker(&shape.hir, marker)).ok());
            if !compiled.as_ref()?.is_match(&marked) {
                return None;
            }
            hosts.push((span, address));
        }
        let hosts: [_; 2] = hosts.try_into().ok()?;
        (hosts[0].1 != hosts[1].1).then_some(Witness { line, hosts })
    }
}
