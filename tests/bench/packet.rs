//! Packet path: nanoseconds per packet through BPF_PROG_TEST_RUN, beside `return XDP_PASS` and `return XDP_DROP` in
//! the same run. It prints figures and ratios; it asserts only verdicts.

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, RawFd},
    time::Duration,
};

use blocker::{
    enforce::{Enforcer as _, Keep, xdp},
    engine::Change,
    ledger::{Ban, Origin},
    net::Prefix,
    time::{Timestamp, Until},
};
use xtask::lab::{Netns, Scratch, agent::remove_pins, missing};

#[path = "../common/bpf.rs"]
mod bpf;
#[path = "../common/frame.rs"]
#[expect(dead_code, reason = "the tests use the other kinds of frames")]
mod frame;

use bpf::{XDP_DROP, XDP_PASS};

const ROUNDS: usize = 15;
const REPEAT: u32 = 1_000_000;

fn main() {
    if let Some(reason) = missing() {
        println!("not measured: {reason}");
        return;
    }
    if !xdp::is_built_in() {
        println!("not measured: XDP was not built in");
        return;
    }
    let netns = Netns::new("bench").expect("a namespace");
    let peer = Netns::new("peer").expect("a namespace");
    netns.link("eth0", &peer, "eth0").expect("a veth pair");
    let scratch = Scratch::new("bench").expect("a scratch folder");
    let pins = std::path::Path::new("/sys/fs/bpf").join(scratch.path().file_name().unwrap_or_default());
    let options =
        xdp::Options { interfaces: vec!["eth0".to_owned()], bans_max: 200_000, pin_dir: pins.clone() };
    let _pins = Pins(pins);
    let mut enforcer = netns.enter(|| xdp::Xdp::open(&options).expect("XDP attaches"));
    let held = enforcer.program_fd().expect("a loaded program");
    let program = held.as_raw_fd();
    let (pass, drop) = (bpf::floor(XDP_PASS), bpf::floor(XDP_DROP));
    let honest = ["198.51.100.7", "2001:db8:7::7"].map(frame_of);
    let banned = ["203.0.113.9", "2001:db8:bad::9"].map(frame_of);

    println!("ns per packet, best of {ROUNDS} rounds of {REPEAT}; a single source, so caches are hot");
    println!("{:<44} {:>7} {:>12}", "program", "ns", "above floor");
    let floor_pass = measure(pass.as_raw_fd(), &honest[0], XDP_PASS);
    let floor_drop = measure(drop.as_raw_fd(), &honest[0], XDP_DROP);
    row("return XDP_PASS", floor_pass, floor_pass);
    row("return XDP_DROP", floor_drop, floor_drop);
    for bans in [0, 1_000, 100_000] {
        fill(&mut enforcer, bans);
        for (frame, family) in honest.iter().zip(["IPv4", "IPv6"]) {
            row(&format!("honest {family}, {bans} bans"), measure(program, frame, XDP_PASS), floor_pass);
        }
        if bans > 0 {
            for (frame, family) in banned.iter().zip(["IPv4", "IPv6 /64"]) {
                row(&format!("banned {family}, {bans} bans"), measure(program, frame, XDP_DROP), floor_drop);
            }
        }
    }
    Box::new(enforcer).close(Keep::Nothing).expect("everything is removed");
}

/// Removed also when a round fails.
struct Pins(std::path::PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        remove_pins(&self.0);
    }
}

fn row(name: &str, ns: f64, floor: f64) {
    println!("{name:<44} {ns:>7.1} {:>12.1}", ns - floor);
}

/// `bans` bans, the two measured sources among them.
fn fill(enforcer: &mut xdp::Xdp, bans: u32) {
    if bans == 0 {
        return;
    }
    let now = Timestamp::from_secs(
        i64::try_from(
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or(Duration::ZERO)
                .as_secs(),
        )
        .unwrap_or(0),
    );
    let others = (0..bans).map(|n| Prefix::host(Ipv4Addr::from_bits(0x1400_0000 + n).into()));
    let measured = ["203.0.113.9", "2001:db8:bad::/64"].map(|text| text.parse::<Prefix>().expect("a prefix"));
    let changes: Vec<Change> = others
        .chain(measured)
        .map(|prefix| {
            let until = Until::At(now.saturating_add(Duration::from_secs(3_600)));
            Change::Ban(Ban {
                prefix,
                origin: Origin::Operator,
                since: now,
                until,
                failures: 0,
                count: 0,
                reason: String::new(),
            })
        })
        .collect();
    enforcer.apply(&changes, now).expect("the bans fit");
}

fn frame_of(source: &str) -> Vec<u8> {
    frame::tcp(source.parse().expect("an address"))
}

fn measure(program: RawFd, frame: &[u8], verdict: u32) -> f64 {
    (0..ROUNDS)
        .map(|_| {
            let (returned, ns) = bpf::test_run(program, frame, REPEAT);
            assert_eq!(returned, verdict, "the program's verdict");
            f64::from(ns)
        })
        .fold(f64::INFINITY, f64::min)
}
