//! One conformance suite for every enforcer: the same changes, the same entries read back, and real packets.
//!
//! Each case is a script of steps. The in-memory enforcer is the oracle for what must be listed and dropped; the kernel
//! ones run in a network namespace of their own, and frames are put on the wire as bytes, so that VLAN tags,
//! fragments and options arrive as they were made.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant, SystemTime},
};

use blocker::{
    enforce::{
        EnforceError, Enforcer, Entry, Health, Keep,
        beside::Beside,
        memory::Memory,
        nft::{self, Nft},
        xdp,
    },
    engine::Change,
    ledger::{Ban, Origin},
    net::{Prefix, Scope},
    time::{Timestamp, Until},
};
use xtask::lab::{
    Netns, Scratch, agent::remove_pins, kernel, missing, skipped, wait_for, wire::Wire, witness,
};

#[path = "common/frame.rs"]
mod frame;
#[path = "enforcers/ports.rs"]
mod ports;

const BANS_MAX: usize = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Nftables,
    Xdp,
    XdpExact,
    XdpHash,
}

/// An enforcer in a namespace of its own, a wire to it, and the oracle beside it.
struct Stage {
    backend: Backend,
    bans_max: usize,
    enforcer: Option<Box<dyn Enforcer>>,
    oracle: Memory,
    host: Netns,
    peer: Netns,
    wire: Wire,
    /// How long the kernel took at most to write what it was told: where a processor is emulated, an end that is
    /// counted from then on is later by as much.
    writing: Duration,
    pins: PathBuf,
    _scratch: Scratch,
}

impl Stage {
    fn new(backend: Backend) -> Self {
        Self::of(backend, BANS_MAX)
    }

    fn of(backend: Backend, bans_max: usize) -> Self {
        // Frames come from anywhere and are addressed to the host by its MAC.
        let (host, peer) = witness::hosts().unwrap();
        for key in ["net/ipv4/conf/all/rp_filter", "net/ipv4/conf/eth0/rp_filter"] {
            host.sysctl(key, "0").unwrap();
        }
        let scratch = Scratch::new("enforcer").unwrap();
        let pins = PathBuf::from("/sys/fs/bpf").join(scratch.path().file_name().unwrap());
        let wire = Wire::new(&peer, "eth0").unwrap();
        let mut stage = Self {
            backend,
            bans_max,
            enforcer: None,
            oracle: Memory::default(),
            host,
            peer,
            wire,
            writing: Duration::ZERO,
            pins,
            _scratch: scratch,
        };
        stage.open();
        stage
    }

    fn open(&mut self) {
        let options = xdp::Options {
            interfaces: xdp::Interfaces::Named(vec!["eth0".to_owned()]),
            bans_max: self.bans_max,
            pin_dir: self.pins.clone(),
            layout: if self.backend == Backend::XdpHash { xdp::Layout::Hash } else { xdp::Layout::Buckets },
            exact: self.backend == Backend::XdpExact,
            ..xdp::Options::default()
        };
        let (backend, mut nft) = (self.backend, nft::Options::of(self.bans_max));
        nft.counters = true;
        let open = || -> Box<dyn Enforcer> {
            match backend {
                Backend::Nftables => Box::new(Nft::open_with(nft).unwrap()),
                Backend::Xdp | Backend::XdpExact | Backend::XdpHash => {
                    let xdp = xdp::Xdp::open(&options).unwrap();
                    assert_eq!(xdp.layout(), options.layout, "{}", xdp.describe().reason);
                    Box::new(Beside::new(Box::new(xdp), nft))
                }
            }
        };
        self.enforcer = Some(self.host.enter(open));
    }

    fn enforcer(&mut self) -> &mut dyn Enforcer {
        &mut **self.enforcer.as_mut().unwrap()
    }

    fn apply(&mut self, changes: &[Change]) {
        let now = now();
        self.oracle.apply(changes, now).unwrap();
        self.write(changes).unwrap();
        self.check();
    }

    /// In the host's namespace: the first ban on ports makes a table.
    fn write(&mut self, changes: &[Change]) -> Result<(), EnforceError> {
        let Self { host, enforcer, .. } = self;
        let began = Instant::now();
        let written = host.enter(|| enforcer.as_mut().unwrap().apply(changes, now()));
        self.writing = self.writing.max(began.elapsed());
        written
    }

    /// What is listed is what the oracle lists.
    fn check(&mut self) {
        let now = now();
        let expected = self.oracle.entries(now).unwrap();
        let began = Instant::now();
        let actual = self.enforcer().entries(now).unwrap();
        let near_enough = Duration::from_secs(1) + self.writing + began.elapsed();
        let named = |entries: &[Entry]| {
            entries.iter().map(|entry| format!("{} on {}", entry.prefix, entry.scope)).collect::<Vec<_>>()
        };
        assert_eq!(named(&actual), named(&expected), "{:?}", self.backend);
        for (actual, expected) in actual.iter().zip(&expected) {
            let near = match (actual.until, expected.until) {
                (Until::At(a), Until::At(b)) => a.max(b).saturating_since(a.min(b)) <= near_enough,
                (a, b) => a == b,
            };
            assert!(
                near,
                "{:?}: {} until {:?}, not {:?}",
                self.backend, actual.prefix, actual.until, expected.until
            );
        }
        let (allowed, expected) = (self.enforcer().allowed().unwrap(), self.oracle.allowed().unwrap());
        assert_eq!(allowed, expected, "{:?}", self.backend);
    }

    fn send(&self, frame: &[u8]) {
        self.wire.send_whole(frame).unwrap();
    }

    fn dropped(&mut self) -> u64 {
        self.enforcer().counters().unwrap().packets
    }

    /// Whether a frame is dropped, by the enforcer's own count.
    fn drops(&mut self, frame: &[u8]) -> bool {
        let before = self.dropped();
        self.send(frame);
        wait_for(Duration::from_millis(60), || (self.dropped() > before).then_some(())).is_some()
    }

    /// One TCP segment from each source: dropped where the oracle says so.
    fn check_sources(&mut self, sources: &[&str]) {
        for source in sources {
            let expected = self.oracle.drops(prefix(source), now());
            let frame = frame::tcp(source.parse().unwrap());
            assert_eq!(self.drops(&frame), expected, "{:?}: {source}", self.backend);
        }
    }

    fn packets(&mut self) -> BTreeMap<String, u64> {
        let entries = self.enforcer().entries(now()).unwrap();
        entries.iter().map(|entry| (entry.prefix.to_string(), entry.packets)).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.enforcer = None;
        remove_pins(&self.pins);
    }
}

fn now() -> Timestamp {
    Timestamp::EPOCH.saturating_add(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// A ban for so many milliseconds, or without end for 0.
fn ban(text: &str, millis: u64) -> Change {
    let until = if millis == 0 {
        Until::Forever
    } else {
        Until::At(now().saturating_add(Duration::from_millis(millis)))
    };
    let origin = Origin::Jail("sshd".into());
    Change::Ban(Ban {
        prefix: prefix(text),
        scope: Scope::ALL,
        origin,
        since: now(),
        until,
        failures: 1,
        count: 1,
        reason: String::new(),
    })
}

fn unban(text: &str) -> Change {
    Change::Unban { prefix: prefix(text), scope: Scope::ALL }
}

fn allow(text: &str) -> Change {
    Change::Allow { prefix: prefix(text) }
}

fn with_each(test: &str, case: impl Fn(&mut Stage)) {
    if let Some(reason) = missing() {
        return skipped(test, &reason);
    }
    case(&mut Stage::new(Backend::Nftables));
    // With room for so many, bans of one length are spread over several sets.
    if test != FULL {
        case(&mut Stage::of(Backend::Nftables, 1_000_000));
    }
    if xdp::is_built_in() {
        for backend in [Backend::Xdp, Backend::XdpExact, Backend::XdpHash] {
            case(&mut Stage::new(backend));
        }
    } else {
        skipped(test, "XDP was not built in (cargo xtask test builds it)");
    }
}

#[test]
fn bans_are_listed_as_asked_and_drop_what_they_cover() {
    with_each("bans_are_listed_as_asked_and_drop_what_they_cover", |stage| {
        stage.check();
        stage.apply(&[ban("203.0.113.9", 60_000), ban("2001:db8:66::/64", 0), ban("2001:db8:5::5", 60_000)]);
        let sources = [
            "203.0.113.9",
            "203.0.113.10",
            "2001:db8:66::1",
            "2001:db8:66::dead",
            "2001:db8:5::5",
            "2001:db8:5::6",
        ];
        stage.check_sources(&sources);
        // Again, longer, shorter, without end: the last word counts.
        stage.apply(&[ban("203.0.113.9", 120_000), ban("2001:db8:66::/64", 30_000), ban("2001:db8:5::5", 0)]);
        stage.apply(&[ban("203.0.113.9", 20_000), ban("203.0.113.9", 0), ban("203.0.113.9", 90_000)]);
        stage.apply(&[unban("2001:db8:5::5"), unban("203.0.113.77"), unban("10.0.0.0/8")]);
        stage.check_sources(&sources);
        stage.apply(&[Change::Flush, ban("203.0.113.10", 0)]);
        stage.check_sources(&sources);
        stage.apply(&[ban("203.0.113.9", 0), Change::Flush]);
        stage.check_sources(&sources);
    });
}

#[test]
fn prefixes_of_every_length_nest_and_the_allowlist_passes_inside() {
    with_each("prefixes_of_every_length_nest_and_the_allowlist_passes_inside", |stage| {
        let wide: Vec<Change> = [8, 9, 12, 15, 16, 20, 24, 27, 31]
            .iter()
            .map(|length| {
                ban(&Prefix::new(IpAddr::from([20, 85, 170, 85]), *length).unwrap().to_string(), 60_000)
            })
            .collect();
        stage.apply(&wide);
        stage.check_sources(&["20.0.0.1", "20.85.170.84", "20.127.0.1", "21.0.0.1", "19.255.255.255"]);
        let six: IpAddr = "2001:db8:aaaa:5555:aaaa:5555:aaaa:5555".parse().unwrap();
        let wide6: Vec<Change> = [16, 29, 32, 47, 48, 63, 64, 65, 96, 127]
            .iter()
            .map(|length| ban(&Prefix::new(six, *length).unwrap().to_string(), 60_000))
            .collect();
        stage.apply(&wide6);
        stage.check_sources(&[
            "2001:1::1",
            "2001:db8:aaaa:5555:aaaa:5555:aaaa:5554",
            "2002::1",
            "2000:ffff::1",
        ]);
        stage.apply(&[
            allow("20.85.0.0/16"),
            allow("20.1.2.3"),
            allow("2001:db8::/32"),
            allow("192.0.2.0/24"),
        ]);
        let sources = ["20.85.170.84", "20.1.2.3", "20.1.2.4", "2001:db8:aaaa:5555::1", "2001:db9::1"];
        stage.check_sources(&sources);
        stage.apply(&[
            Change::Disallow { prefix: prefix("20.85.0.0/16") },
            unban("20.0.0.0/8"),
            unban("2001::/16"),
        ]);
        stage.check_sources(&sources);
        stage.apply(&[Change::Flush]);
        stage.check_sources(&sources);
        assert_eq!(stage.oracle.allowed().unwrap().len(), 3, "a flush leaves the allowlist");
    });
}

#[test]
fn bans_end_by_themselves_and_a_wider_one_takes_over() {
    with_each("bans_end_by_themselves_and_a_wider_one_takes_over", |stage| {
        // None ends while the first look is under way.
        let short = kernel::patience(Duration::from_millis(900));
        let millis = u64::try_from(short.as_millis()).unwrap();
        stage.apply(&[
            ban("203.0.113.9", millis),
            ban("203.0.113.0/24", millis),
            ban("203.0.0.0/16", 60_000),
            ban("10.1.1.1", millis),
        ]);
        stage.check_sources(&["203.0.113.9", "203.0.113.10", "203.0.9.9", "10.1.1.1"]);
        // Prolonged, so it must not end with its first timeout.
        stage.apply(&[ban("10.1.1.1", 60_000), ban("10.1.1.2", 300)]);
        thread::sleep(short + kernel::patience(Duration::from_millis(400)));
        stage.check();
        stage.check_sources(&["203.0.113.9", "203.0.113.10", "203.0.9.9", "10.1.1.1", "10.1.1.2"]);
        // A ban that is over when it is applied is none.
        let over = ban("10.1.1.3", 1);
        thread::sleep(Duration::from_millis(5));
        stage.apply(&[over]);
        stage.check_sources(&["10.1.1.3"]);
    });
}

#[test]
fn every_kind_of_frame_is_dropped_by_its_source_alone() {
    with_each("every_kind_of_frame_is_dropped_by_its_source_alone", |stage| {
        let (v4, v6): (IpAddr, IpAddr) = ("203.0.113.9".parse().unwrap(), "2001:db8:66::9".parse().unwrap());
        for kind in frame::kinds(v4, v6) {
            assert!(!stage.drops(&kind.bytes), "{:?}: {} while nobody is banned", stage.backend, kind.name);
        }
        stage.apply(&[ban("203.0.113.9", 0), ban("2001:db8:66::/64", 0)]);
        for kind in frame::kinds(v4, v6) {
            // The stack strips a tag only where it has a VLAN interface for it; elsewhere the frame ends before
            // nftables sees it, and reaches nobody.
            if stage.backend == Backend::Nftables && kind.name.contains("tag") {
                continue;
            }
            // Malformed headers, and options that are none, end in the stack before nftables sees them.
            if stage.backend == Backend::Nftables && kind.name.contains("options") {
                continue;
            }
            assert_eq!(
                stage.drops(&kind.bytes),
                kind.dropped_when_banned,
                "{:?}: {}",
                stage.backend,
                kind.name
            );
        }
    });
}

#[test]
fn a_vlan_tag_does_not_hide_a_banned_source() {
    with_each("a_vlan_tag_does_not_hide_a_banned_source", |stage| {
        // A tag with VLAN 0 says a priority and nothing else (IEEE 802.1Q): the stack takes the frame for its own. One
        // of a VLAN that the host has no interface for ends in the stack, so only XDP is there to see it.
        let source = "203.0.113.9".parse().unwrap();
        let vlans: &[u16] = if stage.backend != Backend::Nftables { &[0, 5, 4094] } else { &[0] };
        for vlan in vlans {
            assert!(!stage.drops(&frame::tagged(*vlan, source)), "{:?}: VLAN {vlan}", stage.backend);
        }
        stage.apply(&[ban("203.0.113.9", 0)]);
        for vlan in vlans {
            assert!(stage.drops(&frame::tagged(*vlan, source)), "{:?}: VLAN {vlan}", stage.backend);
        }
    });
}

#[test]
fn counts_are_exact_and_kept_by_a_restart_without_a_gap() {
    with_each("counts_are_exact_and_kept_by_a_restart_without_a_gap", |stage| {
        stage.apply(&[ban("203.0.113.9", 0), ban("2001:db8:66::/64", 60_000), ban("20.0.0.0/8", 0)]);
        let sources =
            [("203.0.113.9", 1_000), ("2001:db8:66::1", 500), ("20.1.2.3", 250), ("198.51.100.7", 100)];
        for (source, times) in sources {
            let frame = frame::tcp(source.parse().unwrap());
            (0..times).for_each(|_| stage.send(&frame));
        }
        let all = wait_for(Duration::from_secs(5), || (stage.dropped() >= 1_750).then_some(()));
        let dropped = stage.dropped();
        assert!(all.is_some(), "{:?}: {dropped} of 1,750", stage.backend);
        let expected: BTreeMap<String, u64> =
            [("203.0.113.9", 1_000), ("2001:db8:66::/64", 500), ("20.0.0.0/8", 250)]
                .map(|(p, n)| (p.to_owned(), n))
                .into();
        assert_eq!((stage.packets(), stage.dropped()), (expected.clone(), 1_750), "{:?}", stage.backend);

        stage.enforcer.take().unwrap().close(Keep::InForce).unwrap();
        stage.send(&frame::tcp("203.0.113.9".parse().unwrap()));
        stage.open();
        stage.check();
        let counted = wait_for(Duration::from_secs(2), || (stage.dropped() == 1_751).then_some(()));
        let dropped = stage.dropped();
        assert!(counted.is_some(), "{:?}: dropped {dropped} with nobody there", stage.backend);
        assert_eq!(stage.packets().get("203.0.113.9"), Some(&1_001));

        stage.enforcer.take().unwrap().close(Keep::Nothing).unwrap();
        stage.oracle = Memory::default();
        stage.open();
        stage.check();
        stage.check_sources(&["203.0.113.9"]);
    });
}

#[test]
fn a_packet_counts_for_the_narrowest_ban_and_a_prolonged_ban_keeps_its_count() {
    with_each("a_packet_counts_for_the_narrowest_ban_and_a_prolonged_ban_keeps_its_count", |stage| {
        // Made in an order that is not that of their lengths.
        for banned in ["20.0.0.0/8", "20.1.2.3", "20.1.0.0/16", "2001:db8::/32", "2001:db8:66::/64"] {
            stage.apply(&[ban(banned, 60_000)]);
        }
        let sources = ["20.1.2.3", "20.1.2.4", "20.2.2.2", "2001:db8:66::1", "2001:db8:67::1"];
        for times in 1..=2 {
            for source in sources {
                assert!(stage.drops(&frame::tcp(source.parse().unwrap())), "{:?}: {source}", stage.backend);
            }
            let expected = ["20.1.2.3", "20.1.0.0/16", "20.0.0.0/8", "2001:db8:66::/64", "2001:db8::/32"]
                .map(|prefix| (prefix.to_owned(), times));
            assert_eq!(stage.packets(), expected.into(), "{:?}", stage.backend);
            stage.apply(&[ban("20.1.2.3", 120_000), ban("20.0.0.0/8", 0), ban("2001:db8:66::/64", 30_000)]);
        }
    });
}

#[test]
fn a_large_batch_is_in_force_whole() {
    with_each("a_large_batch_is_in_force_whole", |stage| {
        // 600 hosts, 150 of IPv6, 150 of its /64s and 60 wider ones.
        let name = |n: usize| match n {
            0..600 => format!("20.{}.{}.{}", n / 200, n % 200, 1 + n % 250),
            600..750 => format!("2001:db8:{n:x}::1"),
            750..900 => format!("2001:db8:{n:x}::/64"),
            900..930 => format!("21.{n}.0.0/24", n = n - 900),
            _ => format!("2001:db8:{n:x}::/48"),
        };
        let many = |range: std::ops::Range<usize>, step, change: &dyn Fn(&str) -> Change| -> Vec<Change> {
            range.step_by(step).map(|n| change(&name(n))).collect()
        };
        stage.apply(&many(0..900, 1, &|name| ban(name, 3_600_000)));
        stage.check_sources(&["20.0.0.1", "20.2.199.100", "20.3.0.1", "2001:db8:258::1", "2001:db8:2ee::9"]);
        // Some of these end otherwise from now on, some are new.
        stage.apply(&many(0..960, 3, &|name| ban(name, 7_200_000)));
        stage.check_sources(&["20.0.0.1", "21.6.0.77", "21.7.0.77", "2001:db8:3a2:9::9"]);
        // Some of these have never been.
        let gone = [many(0..900, 2, &unban), many(900..960, 1, &unban)].concat();
        stage.apply(&gone);
        stage.check_sources(&["20.0.0.1", "20.0.1.2", "21.6.0.77", "2001:db8:259::1", "2001:db8:3a2:9::9"]);
        stage.apply(&[many(0..900, 1, &unban), many(0..10, 1, &|name| ban(name, 0))].concat());
    });
}

const FULL: &str = "a_table_that_is_full_refuses_and_names_only_what_did_not_fit";

#[test]
fn a_table_that_is_full_refuses_and_names_only_what_did_not_fit() {
    with_each(FULL, |stage| {
        let bans: Vec<Change> =
            (0..2 * BANS_MAX).map(|n| ban(&format!("20.0.{}.{}", n / 250, 1 + n % 250), 0)).collect();
        let error = stage.enforcer().apply(&bans, now()).unwrap_err();
        assert!(error.prefix.is_some() && error.to_string().contains("max_bans"), "{error}");
        let held = stage.enforcer().entries(now()).unwrap().len();
        assert!(held >= BANS_MAX, "{:?}: only {held} of {BANS_MAX} fit", stage.backend);
    });
}

#[test]
fn what_another_program_removed_is_repaired() {
    with_each("what_another_program_removed_is_repaired", |stage| {
        stage.apply(&[ban("203.0.113.9", 0)]);
        let host = &stage.host;
        let enforcer = stage.enforcer.as_mut().unwrap();
        assert_eq!(host.enter(|| enforcer.repair()).unwrap(), Health::Sound);
        match stage.backend {
            Backend::Nftables => {
                // What a kernel does that lets the table be owned, and one that does not, is in `nftables.rs`.
                host.run("nft", &["flush", "ruleset"]).unwrap();
                enforcer.repair().unwrap();
                assert_eq!(enforcer.repair().unwrap(), Health::Sound);
            }
            _ => {
                host.ip("link del eth0").unwrap();
                host.link("eth0", &stage.peer, "eth0").unwrap();
                assert_eq!(host.enter(|| enforcer.repair()).unwrap(), Health::Repaired);
                stage.wire = Wire::new(&stage.peer, "eth0").unwrap();
            }
        }
        stage.apply(&[ban("203.0.113.9", 0)]);
        stage.check_sources(&["203.0.113.9"]);
    });
}

#[test]
fn nft_itself_lists_what_we_wrote() {
    let test = "nft_itself_lists_what_we_wrote";
    if let Some(reason) = missing() {
        return skipped(test, &reason);
    }
    let mut stage = Stage::new(Backend::Nftables);
    stage.apply(&[ban("203.0.113.9", 3_600_000), ban("2001:db8:66::/64", 0), allow("10.0.0.0/8")]);
    let listed = stage.host.run("nft", &["list", "ruleset"]).unwrap();
    let squeezed = listed.split_whitespace().collect::<Vec<_>>().join(" ");
    for says in [
        "table inet blocker {",
        "type filter hook prerouting priority -450; policy accept;",
        "203.0.113.9 counter packets 0 bytes 0 timeout",
        "elements = { 2001:db8:66:: counter packets 0 bytes 0 }",
        "ip saddr @ban4_32 goto dropped",
        "ip6 saddr & ffff:ffff:ffff:ffff:: == @ban6_64 goto dropped",
        "ip saddr & 255.0.0.0 == @allow4_8 accept",
        "counter packets 0 bytes 0 drop",
        "udp sport 68 udp dport 67 accept",
    ] {
        assert!(squeezed.contains(says), "{says:?} is not in\n{listed}");
    }
}
