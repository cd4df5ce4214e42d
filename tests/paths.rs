//! End to end on every path that a packet can take: the built agent with each enforcer, attached in each mode, and whole
//! frames on a wire to it.
//!
//! What it says it dropped is held against what was sent, and what came through against a counter of the kernel's
//! behind it, frame by frame in batches.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use blocker::{control::client, enforce::xdp, net::Prefix};
use serde_json::{Value, json};
use xtask::lab::{
    Netns, Scratch,
    agent::{Agent, Backend},
    kernel, missing, skipped, wait_for,
    wire::Wire,
    witness,
};

#[path = "common/frame.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod frame;
#[path = "frames/generate.rs"]
#[expect(dead_code, reason = "that test uses the rest")]
mod generate;
#[path = "frames/parser.rs"]
mod parser;
#[path = "frames/stack.rs"]
mod stack;

use generate::{ALLOWED, BANNED, ETHERNET_BYTES, Made};
use parser::{Parser, with_two_tags};
use stack::Fate;

/// A way from the wire to the host's stack, past one of the enforcers.
#[derive(Clone, Copy, Debug)]
struct Way {
    name: &'static str,
    backend: Backend,
    /// `[enforce]` beside backend and interface.
    enforce: &'static str,
    /// What `status` must say of the interface.
    attached: &'static str,
}

const fn xdp(name: &'static str, enforce: &'static str, attached: &'static str) -> Way {
    Way { name, backend: Backend::Xdp, enforce, attached }
}

const WAYS: [Way; 6] = [
    Way { name: "nftables", backend: Backend::Nftables, enforce: "counters = true", attached: "prerouting" },
    xdp("the bucket table, native", "", "eth0: native"),
    xdp("hash maps, native", "table = \"hash\"", "eth0: native"),
    xdp("the bucket table, TCX", "modes = [\"tcx\"]", "eth0: tcx"),
    xdp("hash maps, TCX", "modes = [\"tcx\"]\ntable = \"hash\"", "eth0: tcx"),
    xdp("the bucket table, generic", "modes = [\"generic\"]", "eth0: generic"),
];

/// Frames that are sent before what became of them is asked. The queue of a CPU holds 1,000 (`netdev_max_backlog`).
const BATCH: usize = 250;
const SOON: Duration = Duration::from_secs(5);
/// How long the frames of one way may take; so many at least must have been sent by then.
const TIME_MAX: Duration = Duration::from_secs(15);
const SENT_MIN: usize = 2_000;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_blocker"))
}

/// Two hosts of which one is guarded, and a counter behind its guard.
struct Town {
    host: Netns,
    scratch: Scratch,
    wire: Wire,
    _peer: Netns,
}

impl Town {
    fn new() -> Self {
        let (host, peer) = witness::hosts().unwrap();
        witness::watch(&host, 0, &["iifname eth0 counter"]).unwrap();
        let wire = Wire::new(&peer, "eth0").unwrap();
        Self { host, scratch: Scratch::new("paths").unwrap(), wire, _peer: peer }
    }

    fn passed(&self) -> u64 {
        witness::seen(&self.host).unwrap()[0]
    }
}

/// The agent on one way.
struct Guard<'a> {
    way: Way,
    town: &'a Town,
    agent: Agent<'a>,
}

/// What became of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    dropped: u64,
    passed: u64,
}

impl<'a> Guard<'a> {
    fn new(way: Way, town: &'a Town) -> Self {
        let mut agent = Agent::new(&town.scratch, &town.host, way.backend);
        agent.enforce(way.enforce);
        agent.start(binary()).unwrap_or_else(|error| panic!("{}: {error}", way.name));
        let this = Self { way, town, agent };
        let backend = &this.ask("status", Value::Null)["backend"];
        let attached = backend["attachments"].to_string();
        assert!(attached.contains(way.attached), "{}: {backend}", way.name);
        this
    }

    fn ask(&self, method: &str, params: Value) -> Value {
        client::call(&self.agent.socket(), method, params)
            .unwrap_or_else(|error| panic!("{}: {method}: {error}\n{}", self.way.name, self.agent.log()))
    }

    fn ban(&self, prefix: &str) {
        self.ask("ban", json!({ "prefix": prefix, "bantime": "1d" }));
    }

    fn seen(&self) -> Seen {
        let dropped = self.ask("status", Value::Null)["packets"].as_u64().unwrap();
        Seen { dropped, passed: self.town.passed() }
    }

    /// Sends frames; what became of them, at the latest when as many as expected are accounted for.
    fn send<'f>(&self, frames: impl IntoIterator<Item = &'f [u8]>, expected: Seen) -> Seen {
        let before = self.seen();
        for frame in frames {
            self.town.wire.send_whole(frame).unwrap();
        }
        let since = || {
            let now = self.seen();
            Seen { dropped: now.dropped - before.dropped, passed: now.passed - before.passed }
        };
        wait_for(SOON, || {
            let seen = since();
            (seen.dropped + seen.passed >= expected.dropped + expected.passed).then_some(seen)
        })
        .unwrap_or_else(since)
    }

    /// A TCP segment of each source, which are all dropped, or all passed.
    fn expect(&self, sources: &[IpAddr], dropped: bool) {
        let frames: Vec<Vec<u8>> = sources.iter().map(|source| frame::tcp(*source)).collect();
        for (batch, sources) in frames.chunks(BATCH).zip(sources.chunks(BATCH)) {
            let count = batch.len() as u64;
            let expected =
                if dropped { Seen { dropped: count, passed: 0 } } else { Seen { dropped: 0, passed: count } };
            let seen = self.send(batch.iter().map(Vec::as_slice), expected);
            if seen != expected {
                let one = |dropped: bool| Seen { dropped: u64::from(dropped), passed: u64::from(!dropped) };
                let wrong: Vec<_> = sources
                    .iter()
                    .filter(|source| {
                        self.send([frame::tcp(**source).as_slice()], one(dropped)) != one(dropped)
                    })
                    .collect();
                panic!("{}: {seen:?}, not {expected:?}: {wrong:?}", self.way.name);
            }
        }
    }

    /// Packets dropped by each ban.
    fn packets(&self) -> BTreeMap<String, u64> {
        let bans = self.ask("bans", Value::Null);
        let rows = bans.as_array().unwrap().iter();
        rows.map(|row| (row["prefix"].as_str().unwrap().to_owned(), row["packets"].as_u64().unwrap()))
            .collect()
    }
}

fn on_every_way(test: &str, case: impl Fn(&Guard<'_>)) {
    if let Some(reason) = missing() {
        return skipped(test, &reason);
    }
    for way in WAYS {
        if way.backend == Backend::Xdp && !xdp::is_built_in() {
            skipped(test, "XDP was not built in (cargo xtask test builds it)");
            continue;
        }
        if way.attached.ends_with("tcx") && !kernel::has(test, "TCX", (6, 6)) {
            continue;
        }
        let town = Town::new();
        let guard = Guard::new(way, &town);
        let reason = guard.ask("status", Value::Null)["backend"]["reason"].to_string();
        assert!(!reason.contains("refused"), "{}: {reason}", way.name);
        case(&guard);
    }
}

/// What becomes of a frame on this way; `None` where only the kernel knows.
fn expected(way: Way, parser: &Parser, frame: &[u8]) -> Option<Seen> {
    let one = |dropped: bool, passed: bool| Seen { dropped: dropped.into(), passed: passed.into() };
    let fate = stack::fate(frame);
    match way.backend {
        // It sees what the stack accepts, behind any number of tags.
        Backend::Nftables => {
            let drops = parser.drops(&with_two_tags(frame));
            match fate {
                Fate::Judged => Some(one(drops, !drops)),
                Fate::Elsewhere => Some(one(false, false)),
                Fate::Unsure => None,
            }
        }
        // It sees everything before the stack does.
        Backend::Xdp => match (parser.drops(frame), fate) {
            (true, _) => Some(one(true, false)),
            (false, Fate::Unsure) => None,
            (false, fate) => Some(one(false, fate == Fate::Judged)),
        },
    }
}

#[test]
fn every_kind_of_frame_is_dropped_or_passes_by_its_source_alone() {
    let parser = Parser::new();
    on_every_way("every_kind_of_frame_is_dropped_or_passes_by_its_source_alone", |guard| {
        BANNED.iter().for_each(|prefix| guard.ban(prefix));
        for prefix in ALLOWED {
            guard.ask("allow", json!({ "prefix": prefix }));
        }
        let made: Vec<Made> = generate::frames().filter(|made| made.bytes.len() >= ETHERNET_BYTES).collect();
        let mut groups: BTreeMap<(bool, bool), Vec<&Made>> = BTreeMap::new();
        for made in &made {
            if let Some(seen) = expected(guard.way, &parser, &made.bytes) {
                groups.entry((seen.dropped > 0, seen.passed > 0)).or_default().push(made);
            }
        }
        assert_eq!(groups.len(), 3, "dropped, passed, and neither");
        let (begun, mut sent) = (Instant::now(), 0);
        let longest = groups.values().map(Vec::len).max().unwrap_or(0);
        for start in (0..longest).step_by(BATCH) {
            let time_max = if sent > SENT_MIN { TIME_MAX } else { kernel::patience(TIME_MAX) };
            if begun.elapsed() > time_max {
                break;
            }
            for ((dropped, passed), group) in &groups {
                let batch = group.get(start..group.len().min(start + BATCH)).unwrap_or_default();
                let times = |happens: bool, count: usize| if happens { count as u64 } else { 0 };
                let all = |count| Seen { dropped: times(*dropped, count), passed: times(*passed, count) };
                let seen = guard.send(batch.iter().map(|made| made.bytes.as_slice()), all(batch.len()));
                if seen != all(batch.len()) {
                    let wrong = batch.iter().find_map(|made| {
                        let seen = guard.send([made.bytes.as_slice()], all(1));
                        (seen != all(1)).then(|| format!("{seen:?}: {}", generate::shown(made)))
                    });
                    panic!("{}: {seen:?}, not {:?}: {wrong:?}", guard.way.name, all(batch.len()));
                }
                sent += batch.len();
            }
        }
        assert!(sent > SENT_MIN, "{}: {sent} in {:?}", guard.way.name, begun.elapsed());
    });
}

/// The first and last address of a prefix, and those just outside.
fn edges(prefix: Prefix) -> ([IpAddr; 2], [IpAddr; 2]) {
    match prefix.address() {
        IpAddr::V4(first) => {
            let first = first.to_bits();
            let last = first | u32::MAX.checked_shr(prefix.length().into()).unwrap_or(0);
            let ip = |bits: u32| IpAddr::V4(bits.into());
            ([ip(first), ip(last)], [ip(first - 1), ip(last + 1)])
        }
        IpAddr::V6(first) => {
            let first = first.to_bits();
            let last = first | u128::MAX.checked_shr(prefix.length().into()).unwrap_or(0);
            let ip = |bits: u128| IpAddr::V6(bits.into());
            ([ip(first), ip(last)], [ip(first - 1), ip(last + 1)])
        }
    }
}

#[test]
fn prefixes_of_every_length_end_where_they_end() {
    on_every_way("prefixes_of_every_length_end_where_they_end", |guard| {
        // Each in an eighth, or a sixteenth, of its own, so that none covers what is just outside another.
        let v4 = (8..=31_u8).map(|length| Prefix::new([20 + length, 170, 85, 170].into(), length));
        let v6 = (16..=127_u8).map(|length| {
            let parts = [0x2400 + u16::from(length), 0xaaaa, 0x5555, 0xaaaa, 0x5555, 0xaaaa, 0x5555, 0xaaaa];
            Prefix::new(parts.into(), length)
        });
        let prefixes: Vec<Prefix> = v4.chain(v6).map(Option::unwrap).collect();
        prefixes.iter().for_each(|prefix| guard.ban(&prefix.to_string()));
        let (inside, outside): (Vec<_>, Vec<_>) = prefixes.iter().map(|prefix| edges(*prefix)).unzip();
        let (inside, outside) = (inside.concat(), outside.concat());
        guard.expect(&inside, true);
        guard.expect(&outside, false);
        let packets = guard.packets();
        assert_eq!(packets.len(), prefixes.len(), "{}", guard.way.name);
        for (prefix, packets) in packets {
            assert_eq!(packets, 2, "{}: {prefix}", guard.way.name);
        }
        // Who is allowlisted passes inside, at once, and no neighbour of his does.
        for prefix in prefixes.iter().filter(|prefix| prefix.length_max() - prefix.length() >= 2) {
            guard.ask("allow", json!({ "prefix": edges(*prefix).0[0].to_string() }));
        }
        let (allowed, others): (Vec<_>, Vec<_>) = prefixes
            .iter()
            .filter(|prefix| prefix.length_max() - prefix.length() >= 2)
            .map(|prefix| (edges(*prefix).0[0], edges(*prefix).0[1]))
            .unzip();
        guard.expect(&allowed, false);
        guard.expect(&others, true);
        for address in &allowed {
            guard.ask("disallow", json!({ "prefix": address.to_string() }));
        }
        guard.expect(&allowed, true);
        guard.ask("flush", Value::Null);
        guard.expect(&inside, false);
    });
}

#[test]
fn ten_thousand_sent_are_ten_thousand_counted() {
    on_every_way("ten_thousand_sent_are_ten_thousand_counted", |guard| {
        let plan = [
            ("203.0.113.9", "203.0.113.9", 4_000),
            ("20.0.0.0/8", "20.1.2.3", 2_500),
            ("2001:db8:66::/64", "2001:db8:66::9", 2_500),
            ("2001:db8:5::5", "2001:db8:5::5", 1_000),
        ];
        plan.iter().for_each(|(prefix, ..)| guard.ban(prefix));
        let before = guard.ask("status", Value::Null)["bytes"].as_u64().unwrap();
        let (mut bytes, mut sent) = (0, 0);
        for (_, source, count) in plan {
            let tcp = frame::tcp(source.parse().unwrap());
            for start in (0..count).step_by(BATCH) {
                let count = BATCH.min(count - start) as u64;
                let expected = Seen { dropped: count, passed: 0 };
                let seen = guard.send((0..count).map(|_| tcp.as_slice()), expected);
                assert_eq!(seen, expected, "{}: {source}", guard.way.name);
                // nftables never sees the Ethernet header.
                let header = if guard.way.backend == Backend::Nftables { ETHERNET_BYTES } else { 0 };
                bytes += count * (tcp.len() - header) as u64;
                sent += count;
            }
        }
        assert_eq!(sent, 10_000);
        let counted = guard.ask("status", Value::Null)["bytes"].as_u64().unwrap() - before;
        assert_eq!(counted, bytes, "{}", guard.way.name);
        let expected: BTreeMap<String, u64> =
            plan.iter().map(|(prefix, _, count)| ((*prefix).to_owned(), *count as u64)).collect();
        assert_eq!(guard.packets(), expected, "{}", guard.way.name);
    });
}
