//! The XDP program's verdicts on single frames, through BPF_PROG_TEST_RUN on the real kernel.

use std::{
    net::IpAddr,
    os::fd::AsRawFd as _,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use blocker::{
    enforce::{EnforceError, Enforcer as _, Health, Keep, memory::Memory, xdp},
    engine::Change,
    ledger::{Ban, Origin},
    net::{Prefix, Scope},
    time::{Timestamp, Until},
};
use xtask::lab::{Netns, Scratch, agent::remove_pins, missing, skipped};

#[path = "common/bpf.rs"]
#[expect(dead_code, reason = "the benchmark uses the rest")]
mod bpf;
#[path = "common/frame.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod frame;

use bpf::{XDP_DROP, XDP_PASS};

const LAYOUTS: [xdp::Layout; 2] = [xdp::Layout::Buckets, xdp::Layout::Hash];

/// An interface of our own with the program on it.
struct Stage {
    xdp: Option<Box<xdp::Xdp>>,
    options: xdp::Options,
    netns: Netns,
    peer: Netns,
    _scratch: Scratch,
}

impl Stage {
    /// `None`, and said, when it cannot be had here.
    fn new(test: &str, bans_max: usize, layout: xdp::Layout) -> Option<Self> {
        if let Some(reason) = missing() {
            skipped(test, &reason);
            return None;
        }
        if !xdp::is_built_in() {
            skipped(test, "XDP was not built in (cargo xtask test builds it)");
            return None;
        }
        let (netns, peer) = (Netns::new("xdp").unwrap(), Netns::new("peer").unwrap());
        netns.link("eth0", &peer, "eth0").unwrap();
        let scratch = Scratch::new("xdp").unwrap();
        let pin_dir = PathBuf::from("/sys/fs/bpf").join(scratch.path().file_name().unwrap());
        let options = xdp::Options {
            interfaces: xdp::Interfaces::Named(vec!["eth0".to_owned()]),
            bans_max,
            pin_dir,
            layout,
            ..xdp::Options::default()
        };
        let xdp = netns.enter(|| xdp::Xdp::open(&options)).unwrap();
        assert_eq!(xdp.layout(), layout, "{}", xdp.describe().reason);
        Some(Self { xdp: Some(Box::new(xdp)), options, netns, peer, _scratch: scratch })
    }

    fn xdp(&mut self) -> &mut xdp::Xdp {
        self.xdp.as_mut().unwrap()
    }

    fn apply(&mut self, changes: &[Change]) {
        self.xdp().apply(changes, now()).unwrap();
    }

    fn verdict(&mut self, frame: &[u8]) -> u32 {
        let program = self.xdp().program_fd().unwrap();
        bpf::test_run(program.as_raw_fd(), frame, 1).0
    }

    fn reopen(&mut self, keep: Keep) {
        self.xdp.take().unwrap().close(keep).unwrap();
        let xdp = self.netns.enter(|| xdp::Xdp::open(&self.options)).unwrap();
        assert_eq!(xdp.layout(), self.options.layout, "{}", xdp.describe().reason);
        self.xdp = Some(Box::new(xdp));
    }

    fn repair(&mut self) -> Result<Health, EnforceError> {
        let xdp = self.xdp.as_mut().unwrap();
        self.netns.enter(|| xdp.repair())
    }

    fn banned(&mut self) -> Vec<(String, u64)> {
        let entries = self.xdp().entries(now()).unwrap();
        entries.iter().map(|entry| (entry.prefix.to_string(), entry.packets)).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.xdp = None;
        remove_pins(&self.options.pin_dir);
    }
}

fn now() -> Timestamp {
    Timestamp::EPOCH.saturating_add(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ban(text: &str, span: Option<Duration>) -> Change {
    let until = span.map_or(Until::Forever, |span| Until::At(now().saturating_add(span)));
    let prefix = prefix(text);
    Change::Ban(Ban {
        prefix,
        scope: Scope::ALL,
        origin: Origin::Operator,
        since: now(),
        until,
        failures: 0,
        count: 0,
        reason: String::new(),
    })
}

#[test]
fn every_kind_of_frame_from_a_banned_source_is_dropped_and_link_upkeep_passes() {
    for layout in LAYOUTS {
        let Some(mut stage) = Stage::new(
            "every_kind_of_frame_from_a_banned_source_is_dropped_and_link_upkeep_passes",
            100,
            layout,
        ) else {
            return;
        };
        let kinds = frame::kinds(address("203.0.113.9"), address("2001:db8::9"));
        for kind in &kinds {
            assert_eq!(stage.verdict(&kind.bytes), XDP_PASS, "{} while nobody is banned", kind.name);
        }
        stage.apply(&[ban("203.0.113.9", None), ban("2001:db8::/64", None)]);
        for kind in &kinds {
            let expected = if kind.dropped_when_banned { XDP_DROP } else { XDP_PASS };
            assert_eq!(stage.verdict(&kind.bytes), expected, "{}", kind.name);
        }
        for kind in frame::kinds(address("203.0.113.10"), address("2001:db8:0:1::9")) {
            assert_eq!(stage.verdict(&kind.bytes), XDP_PASS, "{} from a neighbour", kind.name);
        }
        stage.apply(&[Change::Flush]);
        for kind in &kinds {
            assert_eq!(stage.verdict(&kind.bytes), XDP_PASS, "{} after flush", kind.name);
        }
    }
}

#[test]
fn prefixes_nest_and_the_allowlist_passes_inside_them() {
    for layout in LAYOUTS {
        let Some(mut stage) = Stage::new("prefixes_nest_and_the_allowlist_passes_inside_them", 100, layout)
        else {
            return;
        };
        stage.apply(&[
            ban("10.0.0.0/8", None),
            ban("10.1.0.0/16", Some(Duration::from_secs(1))),
            ban("2001:db8::/32", None),
            Change::Allow { prefix: prefix("10.1.2.0/24") },
            Change::Allow { prefix: prefix("2001:db8:7::7") },
        ]);
        let check = |stage: &mut Stage, cases: &[(&str, u32)]| {
            for (source, verdict) in cases {
                assert_eq!(stage.verdict(&frame::tcp(address(source))), *verdict, "{source}");
            }
        };
        let cases = [
            ("10.9.9.9", XDP_DROP),
            ("10.1.9.9", XDP_DROP),
            ("10.1.2.3", XDP_PASS),
            ("11.0.0.1", XDP_PASS),
            ("2001:db8:1::1", XDP_DROP),
            ("2001:db8:7::7", XDP_PASS),
            ("2001:db9::1", XDP_PASS),
        ];
        check(&mut stage, &cases);
        std::thread::sleep(Duration::from_millis(1_200));
        // The /16 is over; the /8 around it is not, and nobody swept.
        check(&mut stage, &cases);
        stage.apply(&[Change::Unban { prefix: prefix("10.0.0.0/8"), scope: Scope::ALL }]);
        check(&mut stage, &[("10.9.9.9", XDP_PASS), ("10.1.9.9", XDP_PASS)]);
        stage.apply(&[Change::Disallow { prefix: prefix("2001:db8:7::7") }]);
        check(&mut stage, &[("2001:db8:7::7", XDP_DROP)]);
    }
}

#[test]
fn a_ban_ends_in_the_kernel_and_a_prolonged_one_does_not_end_early() {
    for layout in LAYOUTS {
        let Some(mut stage) =
            Stage::new("a_ban_ends_in_the_kernel_and_a_prolonged_one_does_not_end_early", 100, layout)
        else {
            return;
        };
        let (short, long) = (frame::tcp(address("203.0.113.1")), frame::tcp(address("203.0.113.2")));
        stage.apply(&[
            ban("203.0.113.1", Some(Duration::from_millis(700))),
            ban("203.0.113.2", Some(Duration::from_millis(700))),
        ]);
        assert_eq!((stage.verdict(&short), stage.verdict(&long)), (XDP_DROP, XDP_DROP));
        stage.apply(&[ban("203.0.113.2", Some(Duration::from_secs(60)))]);
        std::thread::sleep(Duration::from_millis(900));
        assert_eq!((stage.verdict(&short), stage.verdict(&long)), (XDP_PASS, XDP_DROP));
        assert_eq!(stage.banned(), [("203.0.113.2".to_owned(), 2)], "prolonging keeps the count");
    }
}

#[test]
fn a_restart_adopts_the_maps_and_their_counts_and_another_size_keeps_them_too() {
    for layout in LAYOUTS {
        let Some(mut stage) = Stage::new(
            "a_restart_adopts_the_maps_and_their_counts_and_another_size_keeps_them_too",
            100,
            layout,
        ) else {
            return;
        };
        let frame = frame::tcp(address("203.0.113.9"));
        stage.apply(&[ban("203.0.113.9", None), ban("10.0.0.0/8", None)]);
        stage.verdict(&frame);
        for (bans_max, exact) in [(100, false), (1_000, false), (50, true), (50, false)] {
            (stage.options.bans_max, stage.options.exact) = (bans_max, exact);
            stage.reopen(Keep::InForce);
            assert_eq!(stage.verdict(&frame), XDP_DROP, "with {bans_max}, exact {exact}");
        }
        assert_eq!(stage.banned(), [("10.0.0.0/8".to_owned(), 0), ("203.0.113.9".to_owned(), 5)]);
        assert_eq!(stage.xdp().counters().unwrap().packets, 5);
        stage.reopen(Keep::Nothing);
        assert_eq!(stage.verdict(&frame), XDP_PASS);
        assert_eq!(stage.banned(), []);
    }
}

#[test]
fn a_full_map_is_said_and_the_rest_of_the_batch_is_in_force() {
    for layout in LAYOUTS {
        let Some(mut stage) =
            Stage::new("a_full_map_is_said_and_the_rest_of_the_batch_is_in_force", 2, layout)
        else {
            return;
        };
        let batch = [
            ban("203.0.113.1", None),
            ban("203.0.113.2", None),
            ban("203.0.113.3", None),
            ban("2001:db8::/64", None),
        ];
        let error = stage.xdp().apply(&batch, now()).unwrap_err();
        assert_eq!(error.prefix, Some(prefix("203.0.113.3")));
        assert!(error.to_string().contains("max_bans"), "{error}");
        // Hash maps are as large each as the bucket table is in all.
        assert_eq!(stage.banned().len(), if layout == xdp::Layout::Hash { 3 } else { 2 });
    }
}

#[test]
fn a_removed_pin_is_put_back_and_a_new_interface_is_attached_again() {
    for layout in LAYOUTS {
        let Some(mut stage) =
            Stage::new("a_removed_pin_is_put_back_and_a_new_interface_is_attached_again", 100, layout)
        else {
            return;
        };
        stage.apply(&[ban("203.0.113.9", None)]);
        assert_eq!(stage.repair().unwrap(), Health::Sound);
        remove_pins(&stage.options.pin_dir);
        assert_eq!(stage.repair().unwrap(), Health::Repaired);
        assert_eq!(stage.repair().unwrap(), Health::Sound);

        stage.netns.ip("link del eth0").unwrap();
        assert_eq!(stage.repair().unwrap(), Health::Sound);
        let gone = stage.xdp().troubles();
        assert!(gone.len() == 1 && gone[0].contains("eth0 is not guarded"), "{gone:?}");
        stage.netns.link("eth0", &stage.peer, "eth0").unwrap();
        assert_eq!(stage.repair().unwrap(), Health::Sound, "its bans were there all the while");
        assert!(stage.netns.ip("-d link show eth0").unwrap().contains("prog/xdp"));
        assert_eq!(stage.verdict(&frame::tcp(address("203.0.113.9"))), XDP_DROP);
    }
}

#[test]
fn another_layout_takes_over_bans_counts_and_the_allowlist_without_a_gap() {
    let test = "another_layout_takes_over_bans_counts_and_the_allowlist_without_a_gap";
    let Some(mut stage) = Stage::new(test, 100, xdp::Layout::Hash) else { return };
    stage.apply(&[
        ban("203.0.113.9", Some(Duration::from_secs(600))),
        ban("10.0.0.0/8", None),
        ban("2001:db8::/64", None),
        Change::Allow { prefix: prefix("10.1.2.0/24") },
    ]);
    let frame = frame::tcp(address("203.0.113.9"));
    for (count, layout) in (1..).zip([xdp::Layout::Buckets, xdp::Layout::Hash, xdp::Layout::Buckets]) {
        assert_eq!(stage.verdict(&frame), XDP_DROP);
        stage.options.layout = layout;
        stage.reopen(Keep::InForce);
        let listed = [
            ("10.0.0.0/8".to_owned(), 0),
            ("203.0.113.9".to_owned(), count),
            ("2001:db8::/64".to_owned(), 0),
        ];
        assert_eq!(stage.banned(), listed, "{layout:?}");
        assert_eq!(stage.xdp().counters().unwrap().packets, count, "{layout:?}");
        assert_eq!(stage.xdp().allowed().unwrap(), [prefix("10.1.2.0/24")], "{layout:?}");
        assert_eq!(stage.verdict(&frame::tcp(address("10.1.2.3"))), XDP_PASS, "{layout:?}");
        assert_eq!(stage.xdp().describe().reason, "", "{layout:?}");
        let folders = std::fs::read_dir(&stage.options.pin_dir).unwrap().count();
        assert_eq!(folders, 1, "{layout:?}: the former layout is gone");
    }
}

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33 ^ self.0 >> 11
    }
}

#[test]
fn after_every_batch_the_program_drops_what_a_plain_set_says() {
    for (layout, exact) in
        [(xdp::Layout::Buckets, false), (xdp::Layout::Buckets, true), (xdp::Layout::Hash, false)]
    {
        let test = "after_every_batch_the_program_drops_what_a_plain_set_says";
        let Some(mut stage) = Stage::new(test, 4_000, layout) else { return };
        stage.options.exact = exact;
        stage.reopen(Keep::InForce);
        let mut random = Random(1);
        let mut oracle = Memory::default();
        let lengths = [32, 32, 32, 31, 24, 22, 16, 9, 6];
        let lengths6 = [128, 128, 64, 64, 64, 56, 48, 47, 100];
        let any = |random: &mut Random| {
            let (bits, length) = (random.next(), random.next() as usize % 9);
            if bits.is_multiple_of(2) {
                let address = std::net::Ipv4Addr::from_bits(0x1400_0000 | (bits >> 8) as u32 & 0x03_0fff);
                Prefix::new(address.into(), lengths[length]).unwrap()
            } else {
                let address = 0x2001_0db8_u128 << 96 | u128::from(bits >> 8 & 0xfff) << 62 | 1;
                Prefix::new(std::net::Ipv6Addr::from_bits(address).into(), lengths6[length]).unwrap()
            }
        };
        for batch in 0..40 {
            let mut changes = Vec::new();
            for _ in 0..150 {
                let prefix = any(&mut random);
                changes.push(match random.next() % 20 {
                    0..=11 => ban(&prefix.to_string(), Some(Duration::from_secs(3_600))),
                    12..=17 => Change::Unban { prefix, scope: Scope::ALL },
                    18 => Change::Allow { prefix },
                    _ => Change::Disallow { prefix },
                });
            }
            if batch == 30 {
                changes.push(Change::Flush);
            }
            oracle.apply(&changes, now()).unwrap();
            stage.apply(&changes);
            let listed: Vec<String> = stage.banned().into_iter().map(|(prefix, _)| prefix).collect();
            let expected = oracle.entries(now()).unwrap();
            assert_eq!(listed, expected.iter().map(|entry| entry.prefix.to_string()).collect::<Vec<_>>());
            for _ in 0..300 {
                let source = any(&mut random).address();
                let expected = if oracle.drops(Prefix::host(source), now()) { XDP_DROP } else { XDP_PASS };
                let verdict = stage.verdict(&frame::tcp(source));
                assert_eq!(verdict, expected, "{layout:?}, exact {exact}, batch {batch}: {source}");
            }
        }
    }
}

#[test]
fn a_crowded_table_is_made_anew_larger_and_no_ban_or_count_is_lost() {
    let test = "a_crowded_table_is_made_anew_larger_and_no_ban_or_count_is_lost";
    // The smallest table has room for half as many as this.
    let Some(mut stage) = Stage::new(test, 100, xdp::Layout::Buckets) else { return };
    stage.apply(&[ban("203.0.113.9", None)]);
    let frame = frame::tcp(address("203.0.113.9"));
    assert_eq!(stage.verdict(&frame), XDP_DROP);
    let allowed: Vec<Change> = (0..3_000_u32)
        .map(|n| Change::Allow {
            prefix: Prefix::host(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into()),
        })
        .collect();
    for part in allowed.chunks(500) {
        stage.apply(part);
        assert_eq!(stage.verdict(&frame), XDP_DROP);
    }
    assert_eq!(stage.xdp().allowed().unwrap().len(), 3_000);
    assert_eq!(stage.banned(), [("203.0.113.9".to_owned(), 7)]);
    for bans_max in [100, 20_000, 100] {
        stage.options.bans_max = bans_max;
        stage.reopen(Keep::InForce);
        assert_eq!(stage.xdp().allowed().unwrap().len(), 3_000);
        assert_eq!(stage.banned(), [("203.0.113.9".to_owned(), 7)]);
    }
}

#[test]
fn a_million_and_five_million_bans_are_in_force_and_only_they() {
    for bans in [1_000_000_u32, 5_000_000] {
        let test = "a_million_and_five_million_bans_are_in_force_and_only_they";
        let Some(mut stage) = Stage::new(test, bans as usize, xdp::Layout::Buckets) else { return };
        // An odd factor: each number once, all over the address space.
        let source = |n: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(n.wrapping_mul(0x9e37_79b1)));
        let one = ban("203.0.113.9", None);
        let Change::Ban(one) = one else { panic!("a ban") };
        for part in 0..bans / 50_000 {
            let bans: Vec<Change> = (part * 50_000..(part + 1) * 50_000)
                .map(|n| Change::Ban(Ban { prefix: Prefix::host(source(n)), ..one.clone() }))
                .collect();
            stage.apply(&bans);
        }
        assert_eq!(stage.xdp().entries(now()).unwrap().len(), bans as usize);
        for n in (0..bans).step_by(bans as usize / 20_000) {
            assert_eq!(stage.verdict(&frame::tcp(source(n))), XDP_DROP, "{n}");
            assert_eq!(stage.verdict(&frame::tcp(source(bans + n))), XDP_PASS, "{n}");
        }
    }
}
