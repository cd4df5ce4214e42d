//! Captures in a long text, at a cost that is linear in it and small per byte.
//!
//! The crate `regex` captures with a backtracker whose memory allows some kilobytes of text, and beyond with a
//! simulation that costs up to a microsecond a byte. Here two walks do it. The one from the end of the text notes for
//! each place from which states of the pattern's automaton a match can still be reached; the sets of such states are
//! built once each. The one from the start then takes, wherever it has a choice, the first branch that reaches a
//! match, so it never goes back. What it finds is what `regex` finds: the leftmost match, of the branches the first.
//!
//! Also finds matches where `regex` leaves its quick automaton: a word's end beside a letter that is not ASCII.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use regex_automata::{
    nfa::thompson::{NFA, State},
    util::look::Look,
};

use super::regexp::Groups;

/// Sets of states that one search may build; a text that needs more is left to the crate.
const SETS_MAX: usize = 2_048;
/// States in all those sets together.
const SET_STATES_MAX: usize = 1 << 19;
/// Kinds of assertions in one pattern; one with more is left to the crate.
const LOOKS_MAX: usize = 4;
/// Steps of the walk forwards that are remembered.
const STEPS: usize = 1_024;
/// No set yet.
const UNBUILT: u32 = u32::MAX;

/// A pattern ready to be searched for.
#[derive(Debug)]
pub(super) struct Guided {
    nfa: NFA,
    /// By state: what leads to it.
    sources: Vec<Vec<Source>>,
    matches: Vec<u32>,
    start: u32,
    looks: Vec<Look>,
    /// Which of them hold between two bytes, by the kinds of these.
    between: [u8; 16],
    /// Whether some of them need whole characters where those are not ASCII.
    unicode: bool,
    groups: usize,
}

/// A way into a state.
#[derive(Clone, Copy, Debug)]
enum Source {
    Bytes(u32, u8, u8),
    Empty(u32),
    /// If this one of the looks holds.
    Look(u32, u8),
}

/// The sets of states that were built for one text.
struct Sets {
    /// Sorted.
    members: Vec<Box<[u32]>>,
    known: HashMap<Box<[u32]>, u32>,
    /// By set, class of the byte and looks: the set before that byte.
    before: Vec<u32>,
    stride: usize,
    states: usize,
}

/// A step of the walk forwards that captured nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Step {
    from: u32,
    alive: u32,
    byte: u8,
    looks: u8,
}

enum Task {
    Visit(u32),
    Restore(usize, Option<usize>),
}

impl Guided {
    /// `None` when the pattern is one that only the crate can search for.
    pub(super) fn new(pattern: &str, compiled_bytes_max: usize) -> Option<Self> {
        let config = NFA::config().nfa_size_limit(Some(compiled_bytes_max));
        let nfa = NFA::compiler().configure(config).build(pattern).ok()?;
        let looks: Vec<Look> = nfa.look_set_any().iter().collect();
        if looks.len() > LOOKS_MAX {
            return None;
        }
        let mut sources = vec![Vec::new(); nfa.states().len()];
        let mut matches = Vec::new();
        for (from, state) in (0_u32..).zip(nfa.states()) {
            let mut add = |next: regex_automata::util::primitives::StateID, source: Source| {
                sources[next.as_usize()].push(source);
            };
            match state {
                State::ByteRange { trans } => add(trans.next, Source::Bytes(from, trans.start, trans.end)),
                State::Sparse(sparse) => (sparse.transitions.iter())
                    .for_each(|trans| add(trans.next, Source::Bytes(from, trans.start, trans.end))),
                State::Dense(dense) => (0..=255_u8).for_each(|byte| {
                    if let Some(next) = dense.matches_byte(byte) {
                        add(next, Source::Bytes(from, byte, byte));
                    }
                }),
                State::Look { look, next } => {
                    let number = looks.iter().position(|known| known == look)?;
                    add(*next, Source::Look(from, u8::try_from(number).ok()?));
                }
                State::Union { alternates } => {
                    alternates.iter().for_each(|next| add(*next, Source::Empty(from)));
                }
                State::BinaryUnion { alt1, alt2 } => {
                    [alt1, alt2].into_iter().for_each(|next| add(*next, Source::Empty(from)));
                }
                State::Capture { next, .. } => add(*next, Source::Empty(from)),
                State::Fail => {}
                State::Match { .. } => matches.push(from),
            }
        }
        let mut guided = Self {
            sources,
            matches,
            start: nfa.start_anchored().as_u32(),
            unicode: nfa.look_set_any().contains_word_unicode(),
            between: [0; 16],
            groups: nfa.group_info().all_group_len(),
            looks,
            nfa,
        };
        for (index, (left, right)) in
            KINDS.iter().flat_map(|left| KINDS.iter().map(move |right| (left, right))).enumerate()
        {
            guided.between[index] = guided.look(&[b'-', *left, *right, b'-'], 2);
        }
        Some(guided)
    }

    /// The leftmost match that begins at `start` or behind; `None` when the text needs more memory than it may take.
    pub(super) fn search(&self, text: &str, start: usize) -> Option<Option<Groups>> {
        let bytes = text.as_bytes();
        let mut sets = Sets {
            members: Vec::new(),
            known: HashMap::new(),
            before: Vec::new(),
            stride: self.nfa.byte_classes().alphabet_len() << self.looks.len(),
            states: 0,
        };
        let mut marks = vec![0_u32; self.nfa.states().len()];
        let mut round = 0;
        // By place, counted from `start`.
        let mut alive = vec![0_u32; bytes.len().checked_sub(start)? + 1];
        let end_looks = self.looks_at(bytes, bytes.len());
        round += 1;
        let mut set = sets.add(self.closed(self.matches.clone(), end_looks, &mut marks, round))?;
        let mut begin = None;
        let mut begins = vec![sets.holds(set, self.start)];
        let mut at = bytes.len();
        loop {
            alive[at - start] = set;
            if begins[set as usize] && text.is_char_boundary(at) {
                begin = Some(at);
            }
            if at == start {
                break;
            }
            at -= 1;
            let (byte, looks) = (bytes[at], self.looks_at(bytes, at));
            let class = usize::from(self.nfa.byte_classes().get(byte));
            let slot = set as usize * sets.stride + (class << self.looks.len() | usize::from(looks));
            let known = sets.before[slot];
            set = if known == UNBUILT {
                let mut seeds = self.matches.clone();
                for member in &sets.members[set as usize] {
                    seeds.extend(self.sources[*member as usize].iter().filter_map(|source| match source {
                        Source::Bytes(from, low, high) if (*low..=*high).contains(&byte) => Some(*from),
                        _ => None,
                    }));
                }
                round += 1;
                let built = sets.add(self.closed(seeds, looks, &mut marks, round))?;
                if begins.len() < sets.members.len() {
                    begins.push(sets.holds(built, self.start));
                }
                sets.before[slot] = built;
                built
            } else {
                known
            };
        }
        let Some(begin) = begin else { return Some(None) };
        Some(self.walk(bytes, begin, |at| alive[at - start], &sets))
    }

    /// All states from which `seeds` are reached without a byte, where these looks hold.
    fn closed(&self, seeds: Vec<u32>, looks: u8, marks: &mut [u32], round: u32) -> Box<[u32]> {
        let mut members = Vec::new();
        let mut open = seeds;
        while let Some(state) = open.pop() {
            if std::mem::replace(&mut marks[state as usize], round) == round {
                continue;
            }
            members.push(state);
            open.extend(self.sources[state as usize].iter().filter_map(|source| match source {
                Source::Empty(from) => Some(*from),
                Source::Look(from, look) if looks >> look & 1 == 1 => Some(*from),
                _ => None,
            }));
        }
        members.sort_unstable();
        members.into()
    }

    /// From the start of a match to its end.
    fn walk(&self, bytes: &[u8], begin: usize, alive: impl Fn(usize) -> u32, sets: &Sets) -> Option<Groups> {
        let mut slots: Vec<Option<usize>> = vec![None; self.groups * 2];
        let mut marks = vec![0_u32; self.nfa.states().len()];
        let mut steps = vec![(Step::default(), UNBUILT); STEPS];
        let mut tasks = Vec::new();
        let (mut state, mut at, mut round) = (self.start, begin, 0);
        'places: loop {
            let looks = self.looks_at(bytes, at);
            let next_alive = if at < bytes.len() { alive(at + 1) } else { 0 };
            let byte = bytes.get(at).copied();
            let step = Step { from: state, alive: next_alive, byte: byte.unwrap_or_default(), looks };
            let slot = (state as usize).wrapping_mul(31).wrapping_add(usize::from(step.byte) * 7)
                ^ (next_alive as usize) << 2;
            let remembered = &mut steps[slot % STEPS];
            if byte.is_some() && remembered.1 != UNBUILT && remembered.0 == step {
                state = remembered.1;
                at += 1;
                continue;
            }
            round += 1;
            let mut captured = false;
            tasks.clear();
            tasks.push(Task::Visit(state));
            while let Some(task) = tasks.pop() {
                let mut current = match task {
                    Task::Restore(slot, old) => {
                        slots[slot] = old;
                        continue;
                    }
                    Task::Visit(state) => state,
                };
                // Along a branch until it ends; its later siblings wait.
                loop {
                    if std::mem::replace(&mut marks[current as usize], round) == round {
                        break;
                    }
                    let next = match self.nfa.states().get(current as usize)? {
                        State::ByteRange { trans } => {
                            byte.filter(|byte| trans.matches_byte(*byte)).map(|_| trans.next)
                        }
                        State::Sparse(sparse) => byte.and_then(|byte| sparse.matches_byte(byte)),
                        State::Dense(dense) => byte.and_then(|byte| dense.matches_byte(byte)),
                        State::Look { look, next } => {
                            let number = self.looks.iter().position(|known| known == look)?;
                            if looks >> number & 1 == 0 {
                                break;
                            }
                            current = next.as_u32();
                            continue;
                        }
                        State::Union { alternates } => {
                            tasks.extend(alternates.iter().rev().map(|next| Task::Visit(next.as_u32())));
                            break;
                        }
                        State::BinaryUnion { alt1, alt2 } => {
                            tasks.push(Task::Visit(alt2.as_u32()));
                            current = alt1.as_u32();
                            continue;
                        }
                        State::Capture { next, slot, .. } => {
                            let slot = slot.as_usize();
                            tasks.push(Task::Restore(slot, slots[slot]));
                            slots[slot] = Some(at);
                            captured = true;
                            current = next.as_u32();
                            continue;
                        }
                        State::Fail => None,
                        State::Match { .. } => {
                            let spans = slots.chunks_exact(2);
                            return Some(spans.map(|pair| Some(pair[0]?..pair[1]?)).collect());
                        }
                    };
                    match next.map(|next| next.as_u32()).filter(|next| sets.holds(next_alive, *next)) {
                        Some(next) => {
                            if !captured {
                                *remembered = (step, next);
                            }
                            state = next;
                            at += 1;
                            continue 'places;
                        }
                        None => break,
                    }
                }
            }
            // The walk from the end said that there is a match.
            debug_assert!(false, "no way on");
            return None;
        }
    }

    fn looks_at(&self, bytes: &[u8], at: usize) -> u8 {
        if self.looks.is_empty() {
            return 0;
        }
        if at > 0
            && let Some(right) = bytes.get(at)
        {
            let left = bytes[at - 1];
            if !self.unicode || (left.is_ascii() && right.is_ascii()) {
                return self.between[kind(left) * KINDS.len() + kind(*right)];
            }
        }
        self.look(bytes, at)
    }

    fn look(&self, bytes: &[u8], at: usize) -> u8 {
        let matcher = self.nfa.look_matcher();
        (self.looks.iter().enumerate())
            .fold(0, |held, (number, look)| held | u8::from(matcher.matches(*look, bytes, at)) << number)
    }
}

/// A byte of each kind that a look can tell apart.
const KINDS: [u8; 4] = [b'a', b'-', b'\n', b'\r'];

fn kind(byte: u8) -> usize {
    match byte {
        b'\n' => 2,
        b'\r' => 3,
        b'_' => 0,
        byte => usize::from(!byte.is_ascii_alphanumeric()),
    }
}

impl Sets {
    fn add(&mut self, members: Box<[u32]>) -> Option<u32> {
        if let Some(known) = self.known.get(&members) {
            return Some(*known);
        }
        self.states += members.len();
        if self.members.len() >= SETS_MAX || self.states > SET_STATES_MAX {
            return None;
        }
        let number = u32::try_from(self.members.len()).ok()?;
        self.before.resize(self.before.len() + self.stride, UNBUILT);
        self.known.insert(members.clone(), number);
        self.members.push(members);
        Some(number)
    }

    fn holds(&self, set: u32, state: u32) -> bool {
        self.members.get(set as usize).is_some_and(|members| members.binary_search(&state).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    const PATTERNS: [&str; 20] = [
        r"^.* from (\S+) port (\d+)",
        r"from (?P<host>\S+)(?: port (\d+))?.*$",
        r"(a|ab)(c|bcd)(d*)",
        r"(?:(a+)|(b))*?c",
        r"(a*)*",
        r"(?:a*?)+?(b?)$",
        r"(?:(a)|(b)|())+c",
        r"\b(\w+)\b.*\b(\w+)$",
        r"(?:\b{start-half}|\b{end-half})(\d+)(?:\b{start-half}|\b{end-half})",
        r"(?-u:\b{start-half})([0-9a-f:]+)",
        r"^\s*(?:\[(\d+)\])?:? ?(.*?)(?: by (.+))?$",
        r"(?m)^(\S+)$",
        r"(?s)from.(.*)é",
        r"(?i)FROM (é|e)",
        r"",
        r"(|a)+",
        r"(?:a|(b))(?:c|(d))?",
        r"x*",
        r"(?R)(?m)^a(.*)$",
        r"(\W*)(?:é|\d)(.??)",
    ];

    static ENGINES: LazyLock<Vec<(Guided, regex::Regex)>> = LazyLock::new(|| {
        let both = |pattern: &&str| {
            (
                Guided::new(pattern, 1 << 20).expect("a pattern"),
                regex::Regex::new(pattern).expect("a pattern"),
            )
        };
        PATTERNS.iter().map(both).collect()
    });

    const FRAGMENTS: [&str; 22] = [
        "from ",
        " from ",
        "1.2.3.4",
        " port ",
        "22",
        "a",
        "b",
        "c",
        "d",
        "ab",
        "é",
        "[",
        "]",
        ":",
        "\n",
        "\r\n",
        "x",
        " by ",
        "2001:db8::1",
        "FROM e",
        "_",
        " ",
    ];

    fn spans(regex: &regex::Regex, text: &str, start: usize) -> Option<Groups> {
        let groups = regex.captures_at(text, start)?;
        Some(groups.iter().map(|group| group.map(|found| found.range())).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn it_finds_what_the_crate_finds(
            index in 0..PATTERNS.len(),
            parts in prop::collection::vec(prop::sample::select(&FRAGMENTS[..]), 0..14),
            start in 0_usize..6,
        ) {
            let text = parts.concat();
            let start = text.ceil_char_boundary(start.min(text.len()));
            let (guided, regex) = &ENGINES[index];
            prop_assert_eq!(
                guided.search(&text, start), Some(spans(regex, &text, start)),
                "{} in {:?} from {}", PATTERNS[index], text, start
            );
        }
    }

    #[test]
    fn a_text_that_needs_too_many_sets_is_left_to_the_crate() {
        // From the end, each set says which of the last fourteen bytes were an `a`.
        let guided = Guided::new(r"[ab]{14}a", 1 << 20).expect("a pattern");
        let mut seed = 1_u32;
        let random = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if seed >> 31 == 0 { 'a' } else { 'b' }
        });
        let text: String = random.take(60_000).collect();
        assert_eq!(guided.search(&text, 0), None);
        assert_eq!(guided.search(&text[..200], 0).map(|found| found.is_some()), Some(true));
    }
}
