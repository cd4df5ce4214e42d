//! The XDP program's verdicts on single frames, through BPF_PROG_TEST_RUN on the real kernel.

use std::{
    net::IpAddr,
    os::fd::AsRawFd as _,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use blocker::{
    enforce::{EnforceError, Enforcer as _, Health, Keep, xdp},
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
    fn new(test: &str, bans_max: usize) -> Option<Self> {
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
        let options = xdp::Options { interfaces: vec!["eth0".to_owned()], bans_max, pin_dir };
        let xdp = netns.enter(|| xdp::Xdp::open(&options)).unwrap();
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
    let Some(mut stage) =
        Stage::new("every_kind_of_frame_from_a_banned_source_is_dropped_and_link_upkeep_passes", 100)
    else {
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

#[test]
fn prefixes_nest_and_the_allowlist_passes_inside_them() {
    let Some(mut stage) = Stage::new("prefixes_nest_and_the_allowlist_passes_inside_them", 100) else {
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

#[test]
fn a_ban_ends_in_the_kernel_and_a_prolonged_one_does_not_end_early() {
    let Some(mut stage) = Stage::new("a_ban_ends_in_the_kernel_and_a_prolonged_one_does_not_end_early", 100)
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

#[test]
fn a_restart_adopts_the_maps_and_their_counts_and_another_size_keeps_them_too() {
    let Some(mut stage) =
        Stage::new("a_restart_adopts_the_maps_and_their_counts_and_another_size_keeps_them_too", 100)
    else {
        return;
    };
    let frame = frame::tcp(address("203.0.113.9"));
    stage.apply(&[ban("203.0.113.9", None), ban("10.0.0.0/8", None)]);
    stage.verdict(&frame);
    for bans_max in [100, 200, 50] {
        stage.options.bans_max = bans_max;
        stage.reopen(Keep::InForce);
        assert_eq!(stage.verdict(&frame), XDP_DROP, "with {bans_max}");
    }
    assert_eq!(stage.banned(), [("10.0.0.0/8".to_owned(), 0), ("203.0.113.9".to_owned(), 4)]);
    assert_eq!(stage.xdp().counters().unwrap().packets, 4);
    stage.reopen(Keep::Nothing);
    assert_eq!(stage.verdict(&frame), XDP_PASS);
    assert_eq!(stage.banned(), []);
}

#[test]
fn a_full_map_is_said_and_the_rest_of_the_batch_is_in_force() {
    let Some(mut stage) = Stage::new("a_full_map_is_said_and_the_rest_of_the_batch_is_in_force", 2) else {
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
    assert_eq!(stage.banned().len(), 3);
}

#[test]
fn a_removed_pin_is_put_back_and_a_new_interface_is_attached_again() {
    let Some(mut stage) = Stage::new("a_removed_pin_is_put_back_and_a_new_interface_is_attached_again", 100)
    else {
        return;
    };
    stage.apply(&[ban("203.0.113.9", None)]);
    assert_eq!(stage.repair().unwrap(), Health::Sound);
    remove_pins(&stage.options.pin_dir);
    assert_eq!(stage.repair().unwrap(), Health::Repaired);
    assert_eq!(stage.repair().unwrap(), Health::Sound);

    stage.netns.ip("link del eth0").unwrap();
    let gone = stage.repair().unwrap_err().to_string();
    assert!(gone.contains("eth0"), "{gone}");
    stage.netns.link("eth0", &stage.peer, "eth0").unwrap();
    let health = stage.repair().unwrap();
    assert_eq!(health, Health::Repaired);
    assert!(stage.netns.ip("-d link show eth0").unwrap().contains("prog/xdp"));
    assert_eq!(stage.verdict(&frame::tcp(address("203.0.113.9"))), XDP_DROP);
}
