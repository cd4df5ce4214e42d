//! Beside other XDP programs on one interface, in the dispatcher that libxdp keeps there: xdp-tools' own programs load,
//! unload and list, and whole frames say who drops what.
//!
//! libxdp pins below /sys/fs/bpf, so each test has one of its own, in a mount namespace of its own.

use std::{
    net::IpAddr,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use blocker::{
    enforce::{Enforcer as _, Health, Keep, xdp},
    engine::Change,
    ledger::{Ban, Origin},
    net::Scope,
    time::{Timestamp, Until},
};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::UnshareFlags,
};
use xtask::lab::{Netns, kernel, missing, skipped, wait_for, wire::Wire, witness};

#[path = "common/frame.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod frame;

/// Whom blocker bans.
const BANNED: &str = "203.0.113.9";
/// Whom xdp-filter does.
const FILTERED: &str = "203.0.113.77";
const HONEST: &str = "198.51.100.7";
const SOON: Duration = Duration::from_secs(10);
/// Where xdp-tools has its objects, as a program in a Debian package.
const FILTER: &str = "/usr/lib/x86_64-linux-gnu/bpf/xdpfilt_alw_eth.o";
const RESTARTS: u32 = 3;
/// Frames of the flood between two pauses, which an emulated machine needs to get on with anything else.
const BURST: u64 = 50;

struct Stage {
    host: Netns,
    wire: Wire,
    options: xdp::Options,
    xdp: Option<Box<xdp::Xdp>>,
}

/// Runs `work` on a host with one wire, below a bpffs of its own, with xdp-filter loaded through a dispatcher. Not, and
/// said, where that cannot be had.
fn beside_xdp_filter(test: &str, work: impl FnOnce(&mut Stage) + Send) {
    let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if let Some(reason) = missing() {
        return skipped(test, &reason);
    }
    if !xdp::is_built_in() {
        return skipped(test, "XDP was not built in (cargo xtask test builds it)");
    }
    if !has("xdp-filter") || !has("xdp-loader") {
        return skipped(test, "xdp-tools is missing (cargo xtask setup installs it)");
    }
    // Outside: their names are mounts, too.
    let (host, peer) = witness::hosts().unwrap();
    witness::watch(&host, -300, &["iifname eth0 ip protocol tcp counter"]).unwrap();
    let wire = Wire::new(&peer, "eth0").unwrap();
    let options = xdp::Options {
        interfaces: xdp::Interfaces::Named(vec!["eth0".to_owned()]),
        bans_max: 1_000,
        pin_dir: PathBuf::from("/sys/fs/bpf/blocker"),
        ..xdp::Options::default()
    };
    let mut stage = Stage { host, wire, options, xdp: None };
    let inside = thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: only the mounts of this thread, which is ours, become its own.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
            let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", all).unwrap();
            mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None).unwrap();
            // xdp-filter has one lock there for all of a host.
            mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
            stage.host.run("xdp-filter", &["load", "-m", "native", "eth0"]).unwrap();
            if !stage.list().contains("xdp_dispatcher") {
                return kernel::lacks(test, "programs that are part of others: it refuses them; `cargo xtask vm` has kernels that do not");
            }
            stage.host.run("xdp-filter", &["ip", "-m", "src", FILTERED]).unwrap();
            work(&mut stage);
            stage.xdp = None;
        });
        inside.join()
    });
    if let Err(panic) = inside {
        std::panic::resume_unwind(panic);
    }
}

impl Stage {
    fn try_open(&mut self) -> Result<(), String> {
        let options = &self.options;
        let opened = self.host.enter(|| xdp::Xdp::open(options)).map_err(|error| error.to_string())?;
        self.xdp = Some(Box::new(opened));
        let (until, origin, reason) = (Until::Forever, Origin::Operator, String::new());
        let prefix = BANNED.parse().unwrap();
        let (since, scope) = (now(), Scope::ALL);
        let ban = Ban { prefix, scope, origin, since, until, failures: 0, count: 0, reason };
        self.xdp().apply(&[Change::Ban(ban)], now()).map_err(|error| error.to_string())
    }

    /// Opens, and expects it to be where it ought to be.
    fn open(&mut self, attached: &str) {
        self.try_open().unwrap();
        assert_eq!(self.attached(), [attached], "{:?}", self.xdp().notes());
    }

    fn xdp(&mut self) -> &mut xdp::Xdp {
        self.xdp.as_mut().unwrap()
    }

    fn attached(&mut self) -> Vec<String> {
        self.xdp().describe().attachments
    }

    fn repair(&mut self) -> Health {
        let xdp = self.xdp.as_mut().unwrap();
        self.host.enter(|| xdp.repair()).unwrap()
    }

    fn dropped(&mut self) -> u64 {
        self.xdp().counters().unwrap().packets
    }

    fn passed(&self) -> u64 {
        witness::seen(&self.host).unwrap()[0]
    }

    /// What xdp-tools says of the interface.
    fn list(&self) -> String {
        self.host.run("xdp-loader", &["status", "eth0"]).unwrap()
    }

    fn loader(&self, args: &[&str]) {
        self.host.run("xdp-loader", args).unwrap();
    }

    /// Sends from each source, and expects exactly those who are let pass to pass, and exactly the banned to be counted.
    fn check(&mut self, what: &str, filtered: bool) {
        const EACH: u64 = 200;
        let (dropped, passed) = (self.dropped(), self.passed());
        for _ in 0..EACH {
            for source in [BANNED, FILTERED, HONEST] {
                self.send(source);
            }
        }
        let expected = if filtered { EACH } else { 2 * EACH };
        let all = wait_for(SOON, || (self.passed() >= passed + expected).then_some(()));
        let seen = (self.dropped() - dropped, self.passed() - passed);
        assert!(all.is_some() && seen == (EACH, expected), "{what}: {seen:?}\n{}", self.list());
        println!("{what}: {EACH} of each of three sent, {} counted, {} passed", seen.0, seen.1);
    }

    fn send(&self, source: &str) {
        self.wire.send_whole(&frame::tcp(source.parse::<IpAddr>().unwrap())).unwrap();
    }
}

fn now() -> Timestamp {
    Timestamp::EPOCH.saturating_add(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

/// The id that xdp-tools gives of a program whose name begins so.
fn id(list: &str, program: &str) -> String {
    let line =
        list.lines().find(|line| line.contains(program)).unwrap_or_else(|| panic!("{program}: {list}"));
    let mut rest = line.split(program).nth(1).unwrap().split_whitespace();
    rest.find(|field| field.bytes().all(|byte| byte.is_ascii_digit())).unwrap().to_owned()
}

#[test]
fn both_drop_what_they_should_and_each_stays_when_the_other_goes() {
    beside_xdp_filter("both_drop_what_they_should_and_each_stays_when_the_other_goes", |stage| {
        for layout in [xdp::Layout::Buckets, xdp::Layout::Hash] {
            stage.options.layout = layout;
            stage.open("eth0: dispatcher");
            let list = stage.list();
            println!("{list}");
            let [ours, theirs] = ["blocker", "xdpfilt_"].map(|name| list.find(name));
            assert!(ours.is_some() && ours < theirs, "the banned die first: {list}");
            assert_eq!(stage.repair(), Health::Sound);
            stage.check("both", true);
        }

        // The other goes: its owner builds the next dispatcher, and we are in it.
        stage.host.run("xdp-filter", &["unload", "eth0", "--keep-maps"]).unwrap();
        assert_eq!(stage.repair(), Health::Sound);
        assert!(!stage.list().contains("xdpfilt_") && stage.list().contains("blocker"), "{}", stage.list());
        stage.check("alone", false);

        // It comes back, and finds us.
        stage.host.run("xdp-filter", &["load", "-m", "native", "eth0"]).unwrap();
        stage.host.run("xdp-filter", &["ip", "-m", "src", FILTERED]).unwrap();
        assert_eq!((stage.repair(), stage.attached()), (Health::Sound, vec!["eth0: dispatcher".to_owned()]));
        stage.check("both again", true);

        // We go, with everything that is ours.
        let passed = stage.passed();
        let xdp = stage.xdp.take().unwrap();
        stage.host.enter(|| xdp.close(Keep::Nothing)).unwrap();
        assert!(stage.list().contains("xdpfilt_") && !stage.list().contains("blocker"), "{}", stage.list());
        for source in [BANNED, FILTERED, HONEST] {
            stage.send(source);
        }
        wait_for(SOON, || (stage.passed() >= passed + 2).then_some(()));
        assert_eq!(stage.passed() - passed, 2, "all but what the other drops");
        assert_eq!(std::fs::read_dir(&stage.options.pin_dir).unwrap().count(), 0);

        // The last who goes takes the dispatcher along.
        stage.open("eth0: dispatcher");
        stage.host.run("xdp-filter", &["unload", "eth0"]).unwrap();
        let xdp = stage.xdp.take().unwrap();
        stage.host.enter(|| xdp.close(Keep::Nothing)).unwrap();
        let shown = stage.host.run("ip", &["-d", "link", "show", "eth0"]).unwrap();
        assert!(!shown.contains("prog/xdp"), "{shown}");
        assert_eq!(std::fs::read_dir("/sys/fs/bpf/xdp").unwrap().count(), 0);
    });
}

#[test]
fn nothing_of_a_banned_source_passes_while_it_is_started_again() {
    beside_xdp_filter("nothing_of_a_banned_source_passes_while_it_is_started_again", |stage| {
        stage.open("eth0: dispatcher");
        let (dropped, passed) = (stage.dropped(), stage.passed());
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        let frame = frame::tcp(BANNED.parse().unwrap());
        thread::scope(|scope| {
            let wire = std::mem::replace(&mut stage.wire, Wire::new(&stage.host, "lo").unwrap());
            let (stop, sent, frame) = (&stop, &sent, &frame);
            let flood = scope.spawn(move || {
                let end = Instant::now() + Duration::from_secs(240);
                while !stop.load(Ordering::Relaxed) && Instant::now() < end {
                    for _ in 0..BURST {
                        wire.send_whole(frame).unwrap();
                    }
                    sent.fetch_add(BURST, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(1));
                }
                assert!(stop.load(Ordering::Relaxed), "the flood ended before the restarts did");
                wire
            });
            for restart in 0..RESTARTS {
                stage.xdp = None;
                // A table of another size is another program over other maps.
                stage.options.bans_max = if restart % 2 == 0 { 2_000 } else { 1_000 };
                stage.open("eth0: dispatcher");
            }
            stop.store(true, Ordering::Relaxed);
            stage.wire = flood.join().unwrap();
        });
        let sent = sent.into_inner();
        wait_for(SOON, || (stage.dropped() >= dropped + sent).then_some(()));
        println!("{RESTARTS} restarts, {sent} frames, {} passed", stage.passed() - passed);
        assert_eq!((stage.passed() - passed, stage.dropped() - dropped), (0, sent));
        let blockers = stage.list().matches("blocker").count();
        assert_eq!(blockers, 1, "{}", stage.list());
        stage.check("after restarts", true);
    });
}

#[test]
fn who_is_taken_out_goes_in_again_and_where_there_is_no_dispatcher_any_more_attaches_alone() {
    let test = "who_is_taken_out_goes_in_again_and_where_there_is_no_dispatcher_any_more_attaches_alone";
    beside_xdp_filter(test, |stage| {
        stage.open("eth0: dispatcher");
        stage.loader(&["unload", "eth0", "--id", &id(&stage.list(), "blocker")]);
        assert!(!stage.list().contains("blocker"));
        let xdp = stage.xdp.as_mut().unwrap();
        let troubles = stage.host.enter(move || xdp.troubles());
        assert!(troubles[0].contains("taken out of the dispatcher"), "{troubles:?}");
        assert_eq!(
            (stage.repair(), stage.attached()),
            (Health::Repaired, vec!["eth0: dispatcher".to_owned()])
        );
        stage.check("in it again", true);

        stage.loader(&["unload", "eth0", "--all"]);
        assert_eq!((stage.repair(), stage.attached()), (Health::Repaired, vec!["eth0: native".to_owned()]));
        stage.check("alone", false);
    });
}

#[test]
fn a_full_dispatcher_stays_as_it_is_and_it_is_said() {
    beside_xdp_filter("a_full_dispatcher_stays_as_it_is_and_it_is_said", |stage| {
        let nine = [FILTER; 9];
        stage.loader(&[["load", "-m", "native", "-s", "xdp", "eth0"].as_slice(), &nine].concat());
        let before = stage.list();
        let said = match stage.try_open() {
            Ok(()) => stage.xdp().notes().join("\n"),
            Err(refused) => refused,
        };
        println!("{said}");
        assert!(said.contains("no dispatcher, since all 10 places in it are taken"), "{said}");
        assert_eq!(stage.list(), before);
    });
}
