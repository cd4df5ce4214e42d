//! Every way in which one reader can meet the stores of a short history.

use std::{cell::RefCell, collections::BTreeMap};

use blocker_ebpf::table::{self, BUCKET_SLOTS, Params, Table, Words};

use super::{
    super::{
        memory::{At, Memory},
        writer::Writer,
    },
    NOW, Plain, prefix, source_of,
};
use crate::net::Prefix;

/// Every store there was, in order.
#[derive(Default)]
struct Log {
    words: BTreeMap<At, u64>,
    stores: Vec<(At, u64)>,
}

impl Memory for Log {
    fn load(&mut self, at: At) -> u64 {
        self.words.get(&at).copied().unwrap_or(0)
    }

    fn store(&mut self, at: At, value: u64) {
        self.words.insert(at, value);
        self.stores.push((at, value));
    }
}

/// What a reader may see of each word, and the choices that this run of it makes.
struct Schedule<'a> {
    /// By word: after how many stores it has which value, in order; before that, 0.
    versions: &'a BTreeMap<At, Vec<(usize, u64)>>,
    now: u32,
    run: RefCell<Run>,
}

struct Run {
    /// Stores that have certainly happened.
    seen: usize,
    /// Which of the possible versions each look took, and how many it could have taken.
    choices: Vec<(usize, usize)>,
    looks: usize,
}

impl Schedule<'_> {
    fn look(&self, at: At) -> u64 {
        let Some(versions) = self.versions.get(&at) else { return 0 };
        let run = &mut *self.run.borrow_mut();
        let current = versions.iter().rev().find(|(after, _)| *after <= run.seen).map_or(0, |(_, v)| *v);
        let later: Vec<(usize, u64)> =
            versions.iter().filter(|(after, _)| *after > run.seen).copied().collect();
        if later.is_empty() {
            return current;
        }
        let index = run.looks;
        run.looks += 1;
        if index == run.choices.len() {
            run.choices.push((0, later.len() + 1));
        }
        match run.choices[index].0.checked_sub(1) {
            None => current,
            Some(choice) => {
                let (after, value) = later[choice];
                run.seen = after;
                value
            }
        }
    }
}

struct Element<'a> {
    schedule: &'a Schedule<'a>,
    at: fn(usize) -> At,
    from: usize,
}

impl Words for Element<'_> {
    fn word(&self, index: usize) -> u64 {
        self.schedule.look((self.at)(self.from + index))
    }
}

impl<'a> Table for &'a Schedule<'a> {
    type Words = Element<'a>;

    fn bucket(&self, index: u32) -> Option<Element<'a>> {
        Some(Element { schedule: self, at: At::Slot, from: index as usize * BUCKET_SLOTS })
    }

    fn meta(&self, index: u32) -> Option<Element<'a>> {
        Some(Element { schedule: self, at: At::End, from: index as usize * BUCKET_SLOTS })
    }

    fn keys(&self, index: u32) -> Option<Element<'a>> {
        let at = |word| At::Key(word / 2, word % 2);
        Some(Element { schedule: self, at, from: index as usize * BUCKET_SLOTS * 2 })
    }

    fn prefilter(&self, index: u32) -> Option<u64> {
        Some(self.schedule_word(At::Prefilter(index as usize)))
    }

    fn state(&self) -> Option<Element<'a>> {
        Some(Element { schedule: self, at: At::State, from: 0 })
    }

    fn now(&self) -> u32 {
        self.now
    }
}

impl Schedule<'_> {
    fn schedule_word(&self, at: At) -> u64 {
        self.look(at)
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Ban(&'static str, u32),
    Unban(&'static str),
    Allow(&'static str),
    Disallow(&'static str),
    Sweep,
    Flush,
}

fn apply(op: Op, writer: &mut Writer, memory: &mut impl Memory, plain: &mut Plain) {
    match op {
        Op::Ban(text, end) => {
            writer.ban(memory, prefix(text), end, NOW).unwrap();
            plain.bans.insert(prefix(text), end);
        }
        Op::Unban(text) => {
            writer.unban(memory, prefix(text));
            plain.bans.remove(&prefix(text));
        }
        Op::Allow(text) => {
            writer.allow(memory, &[prefix(text)]).unwrap();
            plain.allowed.insert(prefix(text));
        }
        Op::Disallow(text) => {
            writer.disallow(memory, prefix(text)).unwrap();
            plain.allowed.remove(&prefix(text));
        }
        Op::Sweep => {
            writer.sweep(memory, 0..writer.slots(), NOW);
            plain.bans.retain(|_, end| *end > NOW);
        }
        Op::Flush => {
            writer.flush(memory);
            plain.bans.clear();
        }
    }
}

/// Whether a reader that ran while these were the states may drop the source, or pass it: it drops what is banned in one
/// of them, and passes what no ban holds in all of them.
fn may_answer(states: &[(usize, Plain)], source: Prefix, dropped: bool) -> bool {
    let drops = |(_, plain): &(usize, Plain)| plain.drops(source, NOW);
    let allows = |(_, plain): &(usize, Plain)| plain.allowed.iter().any(|prefix| prefix.covers(source));
    if dropped {
        return states.iter().any(drops);
    }
    let holds = |prefix: &Prefix| {
        states.iter().all(|(_, plain)| plain.bans.get(prefix).is_some_and(|end| *end > NOW))
    };
    let bans = states.first().into_iter().flat_map(|(_, plain)| plain.bans.keys());
    let is_held = bans.filter(|prefix| prefix.covers(source)).any(holds);
    !is_held || states.iter().any(allows)
}

/// Runs a reader in every way it can meet the stores of these operations; returns how many there were.
fn check(ops: &[Op], sources: &[&str], exact: bool) -> usize {
    const BUCKETS: u32 = 1;
    let (mut memory, mut plain) = (Log::default(), Plain::default());
    let mut writer = Writer::new(7, BUCKETS, 8);
    writer.set_expanded_max(16);
    // What holds after so many stores: the state of each operation from its last store to the end of the next one.
    let mut states = vec![(0, plain.clone())];
    for op in ops {
        apply(*op, &mut writer, &mut memory, &mut plain);
        states.push((memory.stores.len(), plain.clone()));
    }
    let mut versions: BTreeMap<At, Vec<(usize, u64)>> = BTreeMap::new();
    for (index, (at, value)) in memory.stores.iter().enumerate() {
        versions.entry(*at).or_default().push((index + 1, *value));
    }
    let params = Params { seed: 7, buckets: BUCKETS, exact };
    let mut runs = 0;
    for source in sources {
        for start in 0..=memory.stores.len() {
            let mut choices = Vec::new();
            loop {
                let run = RefCell::new(Run { seen: start, choices, looks: 0 });
                let schedule = Schedule { versions: &versions, now: NOW, run };
                let dropped = table::find(&&schedule, params, source_of(source)).is_some();
                let run = schedule.run.into_inner();
                runs += 1;
                // The last state that was complete at the start, and every one that was begun by the end.
                let first = states.iter().rposition(|(after, _)| *after <= start).unwrap();
                let last = states.iter().position(|(after, _)| *after >= run.seen).unwrap().max(first);
                assert!(
                    may_answer(&states[first..=last], prefix(source), dropped),
                    "{ops:?}: {source} dropped: {dropped}, from store {start} to {}, by {:?}\n{:#?}",
                    run.seen,
                    run.choices,
                    memory.stores
                );
                choices = run.choices;
                choices.truncate(run.looks);
                while choices.last().is_some_and(|(choice, of)| choice + 1 == *of) {
                    choices.pop();
                }
                match choices.last_mut() {
                    Some((choice, _)) => *choice += 1,
                    None => break,
                }
            }
        }
    }
    runs
}

#[test]
fn no_interleaving_shows_a_ban_that_is_not_there_or_misses_one_that_stands() {
    use Op::{Allow, Ban, Disallow, Flush, Sweep, Unban};
    // One bucket, so that every ban is every other's neighbour and heir.
    let alphabet = [
        Ban("203.0.113.9", 200),
        Ban("203.0.113.9", 300),
        Ban("203.0.113.9", 50),
        Ban("203.0.113.10", 200),
        Ban("203.0.113.0/24", 200),
        Ban("2001:db8::/64", 200),
        Unban("203.0.113.9"),
        Unban("203.0.113.0/24"),
        Allow("203.0.113.9"),
        Disallow("203.0.113.9"),
        Sweep,
        Flush,
    ];
    let sources = ["203.0.113.9", "203.0.113.10", "2001:db8::1"];
    let mut runs = 0;
    for a in alphabet {
        for b in alphabet {
            for c in alphabet {
                runs += check(&[a, b, c], &sources, false);
            }
        }
    }
    assert!(runs > 100_000, "only {runs} interleavings");
}

#[test]
fn no_interleaving_of_a_longer_history_goes_wrong_either() {
    use Op::{Allow, Ban, Disallow, Sweep, Unban};
    for ops in [
        // A slot goes from a ban that is over to another that is not.
        &[Ban("203.0.113.9", 50), Ban("203.0.113.10", 200), Sweep, Ban("203.0.113.11", 200)][..],
        &[Ban("203.0.113.9", 200), Unban("203.0.113.9"), Ban("203.0.113.10", 200), Ban("203.0.113.9", 200)],
        // A wide ban, and one beyond the prefilter, come and go around a narrow one.
        &[Ban("203.0.113.9", 200), Ban("202.0.0.0/7", 200), Unban("202.0.0.0/7"), Unban("203.0.113.9")],
        &[Ban("2001:db8::/64", 200), Ban("2000::/8", 200), Unban("2000::/8"), Unban("2001:db8::/64")],
        // Those inside two wide bans are more than there may be bits for; one goes, and the other is given its bits.
        &[
            Ban("2001:db0::/28", 200),
            Ban("2001:da0::/28", 200),
            Unban("2001:da0::/28"),
            Unban("2001:db0::/28"),
        ],
        &[Ban("2001:da0::/28", 200), Ban("2001:db0::/28", 200), Unban("2001:da0::/28"), Sweep],
        &[
            Ban("2001:db8::/64", 200),
            Ban("2001:db8::/32", 200),
            Unban("2001:db8::/64"),
            Unban("2001:db8::/32"),
        ],
        &[Ban("203.0.113.0/24", 200), Allow("203.0.113.9"), Ban("203.0.113.9", 200), Disallow("203.0.113.9")],
        &[Ban("203.0.113.9", 200), Allow("203.0.113.0/24"), Disallow("203.0.113.0/24"), Unban("203.0.113.9")],
    ] {
        for exact in [false, true] {
            check(
                ops,
                &["203.0.113.9", "203.0.113.10", "203.0.113.11", "2001:db8::1", "2001:db8:1::1"],
                exact,
            );
        }
    }
}
