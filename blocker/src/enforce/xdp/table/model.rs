//! The table against what it stands for: every interleaving of one reader with short histories of the writer, and long
//! histories beside a plain set.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use blocker_ebpf::{
    packet::Source,
    table::{self, BUCKET_SLOTS, Params, Place, STATE_WORDS, Table, Words},
};

use super::writer::{At, Memory, Refusal, Writer};
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

/// What the table stands for.
#[derive(Clone, Debug, Default)]
struct Plain {
    bans: BTreeMap<Prefix, u32>,
    allowed: BTreeSet<Prefix>,
}

impl Plain {
    fn drops(&self, source: Prefix, now: u32) -> bool {
        let banned = self.bans.iter().any(|(prefix, end)| prefix.covers(source) && *end > now);
        banned && !self.allowed.iter().any(|prefix| prefix.covers(source))
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

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

const NOW: u32 = 100;

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

fn source_of(text: &str) -> Source {
    match prefix(text).address() {
        std::net::IpAddr::V4(address) => Source::V4(address.octets()),
        std::net::IpAddr::V6(address) => Source::V6(address.octets()),
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

/// A table's maps in this process.
struct Flat {
    slots: Vec<u64>,
    ends: Vec<u64>,
    packets: Vec<u64>,
    codes: Vec<u64>,
    keys: Vec<u64>,
    highs: BTreeMap<u64, u64>,
    prefilter: Vec<u64>,
    state: Vec<u64>,
}

impl Flat {
    fn new(buckets: u32) -> Self {
        let slots = table::elements(buckets) as usize * BUCKET_SLOTS;
        let zeros = |length| vec![0; length];
        Self {
            slots: zeros(slots),
            ends: zeros(slots),
            packets: zeros(slots),
            codes: zeros(slots),
            keys: zeros(2 * slots),
            highs: BTreeMap::new(),
            prefilter: zeros(2 * table::PREFILTER_WORDS as usize),
            state: zeros(STATE_WORDS),
        }
    }

    fn place(&mut self, at: At) -> &mut u64 {
        match at {
            At::Slot(slot) => &mut self.slots[slot],
            At::End(slot) => &mut self.ends[slot],
            At::Packets(slot) => &mut self.packets[slot],
            At::Code(slot) => &mut self.codes[slot],
            At::Key(slot, half) => &mut self.keys[2 * slot + half],
            At::High(print) => self.highs.entry(print).or_default(),
            At::Prefilter(index) => &mut self.prefilter[index],
            At::State(index) => &mut self.state[index],
        }
    }
}

impl Memory for Flat {
    fn load(&mut self, at: At) -> u64 {
        *self.place(at)
    }

    fn store(&mut self, at: At, value: u64) {
        *self.place(at) = value;
    }
}

struct Still<'a> {
    flat: &'a Flat,
    now: u32,
}

struct StillWords<'a>(&'a [u64]);

impl Words for StillWords<'_> {
    fn word(&self, index: usize) -> u64 {
        self.0[index]
    }
}

fn element(words: &[u64], index: u32, length: usize) -> Option<StillWords<'_>> {
    words.chunks_exact(length).nth(index as usize).map(StillWords)
}

impl<'a> Table for Still<'a> {
    type Words = StillWords<'a>;

    fn bucket(&self, index: u32) -> Option<StillWords<'a>> {
        element(&self.flat.slots, index, BUCKET_SLOTS)
    }

    fn meta(&self, index: u32) -> Option<StillWords<'a>> {
        element(&self.flat.ends, index, BUCKET_SLOTS)
    }

    fn keys(&self, index: u32) -> Option<StillWords<'a>> {
        element(&self.flat.keys, index, 2 * BUCKET_SLOTS)
    }

    fn prefilter(&self, index: u32) -> Option<u64> {
        self.flat.prefilter.get(index as usize).copied()
    }

    fn state(&self) -> Option<StillWords<'a>> {
        Some(StillWords(&self.flat.state))
    }

    fn now(&self) -> u32 {
        self.now
    }
}

/// Everything in another table.
fn anew(flat: &mut Flat, writer: &Writer, seed: u64, buckets: u32, bans_max: usize) -> (Flat, Writer) {
    let mut fresh = Flat::new(buckets);
    let mut larger = Writer::new(seed, buckets, bans_max);
    larger.allow(&mut fresh, &writer.allowed()).unwrap();
    for entry in writer.scan(flat).iter().filter(|entry| entry.is_ban()) {
        larger.restore(&mut fresh, entry.prefix, entry.end, entry.packets).unwrap();
    }
    (fresh, larger)
}

#[test]
fn a_million_operations_leave_what_a_plain_set_holds() {
    const BANS_MAX: usize = 600;
    let (mut buckets, mut seed) = (75, 1_u64);
    let mut flat = Flat::new(buckets);
    let mut writer = Writer::new(seed, buckets, BANS_MAX);
    let mut plain = Plain::default();
    let mut random = 42_u64;
    let mut next = || {
        random = table::mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
        random
    };
    let any_prefix = |bits: u64| -> Prefix {
        // Few enough that they meet, nest and cover each other.
        let length = [32, 32, 32, 30, 24, 23, 16, 7][(bits >> 8) as usize % 8];
        if bits & 1 == 0 {
            let address = 0x1400_0000 | (bits >> 16) as u32 & 0x0001_03ff;
            Prefix::new(std::net::Ipv4Addr::from(address).into(), length).unwrap()
        } else {
            let address = 0x2001_0db8_u128 << 96 | u128::from(bits >> 16 & 0x3ff) << 62;
            let address = address | u128::from(bits >> 32 & 3);
            let length = match bits >> 34 & 0xff {
                0 => 47,
                1 => 28,
                2 => 8,
                _ => [128, 128, 64, 64, 63, 48, 32, 65][usize::from(length) % 8],
            };
            Prefix::new(std::net::Ipv6Addr::from(address).into(), length).unwrap()
        }
    };
    let mut now = 1;
    for step in 0..1_000_000_u32 {
        let bits = next();
        let prefix = any_prefix(next());
        match bits % 100 {
            0..=54 => {
                let end = now + 1 + (bits >> 32) as u32 % 40;
                match writer.ban(&mut flat, prefix, end, now) {
                    Ok(_) => drop(plain.bans.insert(prefix, end)),
                    Err(Refusal::Full) => {
                        assert!(plain.bans.len() >= BANS_MAX && !plain.bans.contains_key(&prefix));
                        writer.sweep(&mut flat, 0..writer.slots(), now);
                        plain.bans.retain(|_, end| *end > now);
                    }
                    Err(Refusal::NoRoom) => {
                        (seed, buckets) = (next(), buckets + buckets / 2);
                        (flat, writer) = anew(&mut flat, &writer, seed, buckets, BANS_MAX);
                    }
                }
            }
            55..=84 => {
                assert_eq!(writer.unban(&mut flat, prefix), plain.bans.remove(&prefix).is_some());
            }
            85..=86 if plain.allowed.len() < 12 => {
                plain.allowed.insert(prefix);
                if writer.allow(&mut flat, &[prefix]).is_err() {
                    (seed, buckets) = (next(), buckets + buckets / 2);
                    (flat, writer) = anew(&mut flat, &writer, seed, buckets, BANS_MAX);
                    writer.allow(&mut flat, &[prefix]).unwrap();
                }
            }
            87..=88 => {
                let Some(prefix) = plain.allowed.first().copied() else { continue };
                plain.allowed.remove(&prefix);
                if writer.disallow(&mut flat, prefix).is_err() {
                    (seed, buckets) = (next(), buckets + buckets / 2);
                    (flat, writer) = anew(&mut flat, &writer, seed, buckets, BANS_MAX);
                }
            }
            89 if bits >> 60 == 0 => {
                writer.flush(&mut flat);
                plain.bans.clear();
            }
            90..=92 => now += 1,
            _ => {
                let source = any_prefix(bits >> 7);
                let source = Prefix::host(source.address());
                let params = Params { seed, buckets, exact: step % 2 == 0 };
                let found = table::find(&Still { flat: &flat, now }, params, source_of(&source.to_string()));
                assert_eq!(found.is_some(), plain.drops(source, now), "step {step}: {source}");
                if let Some(Place { bucket, slot }) = found {
                    let slot = bucket as usize * BUCKET_SLOTS + slot;
                    let entry = writer.entry(&mut flat, slot).expect("what was found is an entry");
                    assert!(entry.prefix.covers(source) && entry.end > now);
                }
            }
        }
        if step % 50_000 == 0 {
            let mut listed: Vec<(Prefix, u32)> = writer
                .scan(&mut flat)
                .into_iter()
                .filter(|entry| entry.is_ban())
                .map(|entry| (entry.prefix, entry.end))
                .collect();
            listed.sort_unstable();
            assert_eq!(listed, plain.bans.clone().into_iter().collect::<Vec<_>>(), "step {step}");
            writer = Writer::adopt(&mut flat, seed, buckets, BANS_MAX);
            assert_eq!((writer.bans(), writer.allowed().len()), (plain.bans.len(), plain.allowed.len()));
        }
    }
}

/// Whether the prefilter lets a look at the table happen.
fn may_be_banned(flat: &Flat, seed: u64, address: u128) -> bool {
    let still = Still { flat, now: 0 };
    table::may_be_banned_v6(&still, flat.state[table::FLAGS], seed, (address >> 64) as u64).unwrap()
}

#[test]
fn the_prefilter_passes_no_source_of_an_ipv6_ban_of_any_length_and_is_empty_when_all_are_gone() {
    const BUCKETS: u32 = 75;
    for seed in 1..=4 {
        let mut random = table::mix(seed);
        let mut next = || {
            random = table::mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
            random
        };
        let mut flat = Flat::new(BUCKETS);
        let mut writer = Writer::new(seed, BUCKETS, 600);
        // Two bans of 16 bits are too many, so that the bound is crossed to and fro.
        writer.set_expanded_max(100_000);
        let mut plain = Plain::default();
        let (mut passed, mut crossed, mut skipped) = (0, 0, false);
        for step in 0..600 {
            // Towards the end none are added, so that the last ones go one by one.
            let leaves = step >= 500 || plain.bans.len() > 12;
            let gone = plain.bans.keys().nth(next() as usize % plain.bans.len().max(1)).copied();
            if let Some(gone) = gone.filter(|_| leaves || next() % 3 == 0) {
                assert!(writer.unban(&mut flat, gone));
                plain.bans.remove(&gone);
            } else if step < 500 {
                // Half of them between the shortest that has bits and the longest that is marked by a /32.
                let length = [next() % 129, 14 + next() % 36][next() as usize % 2];
                let address = u128::from(next()) << 64 | u128::from(next());
                let address = std::net::Ipv6Addr::from(address | 1 << 127);
                let prefix = Prefix::new(address.into(), length as u8).unwrap();
                writer.ban(&mut flat, prefix, table::FOREVER, NOW).unwrap();
                plain.bans.insert(prefix, table::FOREVER);
            }
            if step % 40 == 39 {
                writer.sweep(&mut flat, 0..writer.slots(), NOW);
            }
            if step % 97 == 96 {
                writer = Writer::adopt(&mut flat, seed, BUCKETS, 600);
                writer.set_expanded_max(100_000);
            }
            let skips = flat.state[table::FLAGS] & table::SKIP_V6 != 0;
            crossed += u32::from(skips != skipped);
            skipped = skips;
            assert_eq!(writer.note().is_some(), skips, "step {step}: what honest packets pay for is said");
            for prefix in plain.bans.keys() {
                let std::net::IpAddr::V6(network) = prefix.address() else { continue };
                for _ in 0..8 {
                    let host = u128::from(next()) << 64 | u128::from(next());
                    let address = network.to_bits() | host.checked_shr(prefix.length().into()).unwrap_or(0);
                    assert!(may_be_banned(&flat, seed, address), "step {step}: {prefix}, {address:x}");
                    let source = Source::V6(address.to_be_bytes());
                    let params = Params { seed, buckets: BUCKETS, exact: false };
                    assert!(table::find(&Still { flat: &flat, now: NOW }, params, source).is_some());
                }
            }
            // The prefilter is of use: it keeps what nobody banned from a look.
            let stranger = u128::from(next() | 1 << 63) << 64;
            passed += u32::from(!may_be_banned(&flat, seed, stranger));
        }
        assert!(
            passed > 60 && crossed > 4,
            "{passed} strangers passed, {crossed} times over the bound or back"
        );
        assert_eq!(plain.bans.len(), 0, "all are gone");
        assert_eq!(flat.state[table::FLAGS], 0);
        // What is stale by now is a bit for each of thousands.
        writer.ban(&mut flat, prefix("2001::/17"), 1, 0).unwrap();
        writer.sweep(&mut flat, 0..writer.slots(), NOW);
        assert!(flat.prefilter.iter().all(|word| *word == 0), "every bit is clear again");
    }
}

#[test]
fn an_ipv4_ban_of_any_length_marks_its_networks_and_no_other() {
    for length in 0..=32 {
        let (mut flat, seed) = (Flat::new(1), 7);
        let mut writer = Writer::new(seed, 1, 8);
        let ban = Prefix::new([203, 0, 113, 9].into(), length).unwrap();
        writer.ban(&mut flat, ban, table::FOREVER, NOW).unwrap();
        let (v4, v6) = flat.prefilter.split_at(table::PREFILTER_WORDS as usize);
        let marked: u32 = v4.iter().map(|word| word.count_ones()).sum();
        assert_eq!(marked, 1 << 24_u8.saturating_sub(length), "/{length}");
        assert!(v6.iter().all(|word| *word == 0));
        let std::net::IpAddr::V4(first) = ban.address() else { panic!("{ban}") };
        let last = first.to_bits() | u32::MAX.checked_shr(length.into()).unwrap_or(0);
        for address in [first.to_bits(), last] {
            let params = Params { seed, buckets: 1, exact: false };
            let source = Source::V4(address.to_be_bytes());
            assert!(table::find(&Still { flat: &flat, now: NOW }, params, source).is_some(), "/{length}");
        }
        assert!(writer.unban(&mut flat, ban));
        writer.flush(&mut flat);
        assert!(flat.prefilter.iter().all(|word| *word == 0), "/{length}");
    }
}
