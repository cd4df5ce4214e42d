//! Whatever arrives, three judges say the same: the pure parser, the XDP program and the nftables table.
//!
//! Thousands of frames made at random, deterministic by `BLOCKER_SEED`: pass or drop by the source address alone, never
//! because something could not be read, and never ARP, neighbour discovery or DHCP.

use std::{
    collections::BTreeMap,
    os::fd::AsRawFd as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use blocker::{
    enforce::{Enforcer, Keep, nft::Nft, xdp},
    net::Prefix,
};
use xtask::lab::{
    Netns, Scratch, agent::remove_pins, kernel, missing, skipped, wait_for, wire::Wire, witness,
};

#[path = "../common/bpf.rs"]
#[expect(dead_code, reason = "the benchmark uses the rest")]
mod bpf;
#[path = "../common/frame.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod frame;
mod generate;
mod parser;
mod stack;

use bpf::{XDP_DROP, XDP_PASS};
use generate::{ETHERNET_BYTES, FRAMES, Made, Truth, frames, shown};
use parser::{Parser, changes, now, with_two_tags};
use stack::Fate;

/// How long judging may take at most; so many frames at least must have been judged by then.
const TIME_MAX: Duration = Duration::from_secs(20);
const JUDGED_MIN: usize = 4_000;
#[test]
fn the_parser_says_of_each_frame_what_it_was_made_to_be() {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let parser = Parser::new();
    for made in frames() {
        let expected = match made.truth {
            Truth::Passes => None,
            Truth::BySource(source) => Some(source),
            Truth::Damaged => {
                *kinds.entry("damaged").or_default() += 1;
                // Whatever it says.
                parser.drops(&made.bytes);
                continue;
            }
        };
        assert_eq!(Parser::source(&made.bytes), expected, "{}", shown(&made));
        let drops = expected.is_some_and(|source| parser.drops_source(source));
        *kinds.entry(if drops { "dropped" } else { "passed" }).or_default() += 1;
        if expected.is_none() {
            *kinds.entry("without a source, or upkeep").or_default() += 1;
        }
    }
    // The dice are worth nothing where they show one side only.
    assert!(kinds.len() == 4 && kinds.values().all(|count| *count > FRAMES / 20), "{kinds:?}");
}

/// An interface with a program on it, and a peer to reach it by; removed at the end.
struct Stage {
    host: Netns,
    peer: Netns,
    pins: PathBuf,
    _scratch: Scratch,
}

impl Stage {
    fn new(test: &str) -> Option<Self> {
        if let Some(reason) = missing() {
            skipped(test, &reason);
            return None;
        }
        let (host, peer) = witness::hosts().unwrap();
        let scratch = Scratch::new("frames").unwrap();
        let pins = PathBuf::from("/sys/fs/bpf").join(scratch.path().file_name().unwrap());
        Some(Self { host, peer, pins, _scratch: scratch })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        remove_pins(&self.pins);
    }
}

#[test]
fn the_xdp_program_says_what_the_parser_says() {
    let test = "the_xdp_program_says_what_the_parser_says";
    let Some(stage) = Stage::new(test) else { return };
    if !xdp::is_built_in() {
        return skipped(test, "XDP was not built in (cargo xtask test builds it)");
    }
    let parser = Parser::new();
    for layout in [xdp::Layout::Buckets, xdp::Layout::Hash] {
        let options = xdp::Options {
            interfaces: xdp::Interfaces::Named(vec!["eth0".to_owned()]),
            bans_max: 100,
            pin_dir: stage.pins.clone(),
            layout,
            ..xdp::Options::default()
        };
        let mut xdp = stage.host.enter(|| xdp::Xdp::open(&options)).unwrap();
        assert_eq!(xdp.layout(), layout, "{}", xdp.describe().reason);
        xdp.apply(&changes(), now()).unwrap();
        let program = xdp.program_fd().unwrap();
        let (begun, mut judged) = (Instant::now(), 0);
        for made in frames().filter(|made| made.bytes.len() >= ETHERNET_BYTES) {
            let expected = if parser.drops(&made.bytes) { XDP_DROP } else { XDP_PASS };
            let (verdict, _) = bpf::test_run(program.as_raw_fd(), &made.bytes, 1);
            assert_eq!(verdict, expected, "{layout:?}: {}", shown(&made));
            judged += 1;
            if begun.elapsed() > TIME_MAX {
                break;
            }
        }
        assert!(judged > JUDGED_MIN, "{judged} in {:?}", begun.elapsed());
        Box::new(xdp).close(Keep::Nothing).unwrap();
    }
}

/// Frames of one fate and verdict that are sent together. The queue of a CPU holds 1,000 (`netdev_max_backlog`).
const BATCH: usize = 250;

/// An nftables table, and beside it a counter of the kernel's of what it hands to any table.
struct Judge<'a> {
    stage: &'a Stage,
    wire: Wire,
    nft: Nft,
    sentinels: u64,
}

/// What a batch came to.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    judged: u64,
    dropped: u64,
}

const SENTINEL: &str = "203.0.113.250";

impl<'a> Judge<'a> {
    fn new(stage: &'a Stage) -> Self {
        let mut nft = stage.host.enter(|| Nft::open(100)).unwrap();
        nft.apply(&changes(), now()).unwrap();
        witness::watch(&stage.host, -500, &["iifname eth0 counter"]).unwrap();
        Self { stage, wire: Wire::new(&stage.peer, "eth0").unwrap(), nft, sentinels: 0 }
    }

    fn totals(&mut self) -> Seen {
        let judged = witness::seen(&self.stage.host).unwrap()[0];
        Seen { judged, dropped: self.nft.counters().unwrap().packets }
    }

    /// Sends frames and says what became of them. Behind them goes one whose ban counts it: the queue is in order.
    fn send(&mut self, frames: &[&Made]) -> Seen {
        let before = self.totals();
        for made in frames {
            self.wire.send_whole(&made.bytes).unwrap_or_else(|error| panic!("{error}: {}", shown(made)));
        }
        self.sentinels += 1;
        self.wire.send_whole(&frame::tcp(SENTINEL.parse().unwrap())).unwrap();
        let sentinel: Prefix = SENTINEL.parse().unwrap();
        let arrived = wait_for(Duration::from_secs(5), || {
            let entries = self.nft.entries(now()).unwrap();
            let entry = entries.iter().find(|entry| entry.prefix == sentinel)?;
            (entry.packets == self.sentinels).then_some(())
        });
        assert!(arrived.is_some(), "what was sent did not arrive");
        let after = self.totals();
        Seen { judged: after.judged - before.judged - 1, dropped: after.dropped - before.dropped - 1 }
    }
}

#[test]
fn nftables_says_what_the_parser_says_of_all_that_the_stack_accepts() {
    let Some(stage) = Stage::new("nftables_says_what_the_parser_says_of_all_that_the_stack_accepts") else {
        return;
    };
    let parser = Parser::new();
    let mut judge = Judge::new(&stage);
    let made: Vec<Made> = frames().filter(|made| made.bytes.len() >= ETHERNET_BYTES).collect();
    let mut groups: BTreeMap<(Fate, bool), Vec<&Made>> = BTreeMap::new();
    for made in &made {
        // More than two tags: XDP looks no further, the stack does.
        let drops = parser.drops(&with_two_tags(&made.bytes));
        groups.entry((stack::fate(&made.bytes), drops)).or_default().push(made);
    }
    assert!(groups.len() == 6 && groups.values().all(|group| group.len() > 10), "too few of some");
    let (begun, mut judged) = (Instant::now(), 0);
    let longest = groups.values().map(Vec::len).max().unwrap_or(0);
    // A batch of each in turn, so that a slow machine has seen some of all.
    'time: for start in (0..longest).step_by(BATCH) {
        for ((fate, drops), group) in &groups {
            let Some(batch) = group.get(start..).map(|rest| &rest[..rest.len().min(BATCH)]) else { continue };
            if batch.is_empty() {
                continue;
            }
            let count = batch.len() as u64;
            let seen = judge.send(batch);
            let expected = match fate {
                Fate::Judged => Seen { judged: count, dropped: if *drops { count } else { 0 } },
                Fate::Elsewhere => Seen { judged: 0, dropped: 0 },
                // As many as the kernel accepted of them.
                Fate::Unsure => Seen { dropped: if *drops { seen.judged } else { 0 }, ..seen },
            };
            if seen != expected {
                let wrong: Vec<String> = batch
                    .iter()
                    .filter_map(|made| {
                        let seen = judge.send(&[made]);
                        let ok = match fate {
                            Fate::Judged => seen == Seen { judged: 1, dropped: u64::from(*drops) },
                            Fate::Elsewhere => seen == Seen { judged: 0, dropped: 0 },
                            Fate::Unsure => seen.dropped == if *drops { seen.judged } else { 0 },
                        };
                        (!ok).then(|| format!("{seen:?}: {}", shown(made)))
                    })
                    .take(10)
                    .collect();
                panic!("{fate:?}, dropped {drops}: {seen:?}, not {expected:?}\n{}", wrong.join("\n"));
            }
            judged += batch.len();
            let time_max = if judged > JUDGED_MIN { TIME_MAX } else { kernel::patience(TIME_MAX) };
            if begun.elapsed() > time_max {
                break 'time;
            }
        }
    }
    assert!(judged > JUDGED_MIN, "{judged} in {:?}", begun.elapsed());
}
