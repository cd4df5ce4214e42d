//! A flood from banned sources over a veth pair, what becomes of it, and what is done to the enforcer meanwhile.
//!
//! The witness is a counter of the kernel's behind the enforcer: what it counts of a banned source got through. Honest
//! packets run along in the flood, so that nothing is proven by a wire that is dead.

use std::{
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use blocker::{
    enforce::{Enforcer, Keep, nft::Nft, xdp},
    engine::Change,
    ledger::{Ban, Origin},
    net::Scope,
    time::{Timestamp, Until},
};
use xtask::lab::{
    Netns, Scratch,
    agent::{Agent, Backend, remove_pins},
    wait_for,
    wire::Wire,
    witness,
};

use super::{frame, link};

/// What is banned, and a source in each that floods.
pub(crate) const BANNED: [(&str, &str); 3] =
    [("203.0.113.9", "203.0.113.9"), ("2001:db8:66::/64", "2001:db8:66::9"), ("20.0.0.0/8", "20.1.2.3")];
const HONEST: &str = "192.0.2.7";
/// Packets of each banned source between two honest ones.
const ROUNDS: usize = 4;

/// A host under flood.
pub(crate) struct Town {
    pub(crate) host: Netns,
    peer: Netns,
    pub(crate) scratch: Scratch,
    pub(crate) pins: PathBuf,
}

impl Town {
    pub(crate) fn new() -> Self {
        let (host, peer) = witness::hosts().unwrap();
        let rules = [
            "ip saddr 192.0.2.7 counter accept",
            "ip saddr { 203.0.113.9, 20.1.2.3 } counter",
            "ip6 saddr 2001:db8:66::9 counter",
        ];
        witness::watch(&host, 0, &rules).unwrap();
        let scratch = Scratch::new("flood").unwrap();
        // As the lab's agent has it.
        let pins = PathBuf::from("/sys/fs/bpf").join(scratch.path().file_name().unwrap());
        Self { host, peer, scratch, pins }
    }

    /// Honest packets that arrived, and those of banned sources.
    pub(crate) fn arrived(&self) -> (u64, u64) {
        let counts = witness::seen(&self.host).unwrap();
        let [honest, v4, v6] = counts[..] else { panic!("{counts:?}") };
        (honest, v4 + v6)
    }

    pub(crate) fn flood(&self) -> Flood {
        let wire = Wire::new(&self.peer, "eth0").unwrap();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let of = |source: &str| frame::tcp(source.parse::<IpAddr>().unwrap());
        let (banned, honest) = (BANNED.map(|(_, source)| of(source)), of(HONEST));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for frame in (0..ROUNDS).flat_map(|_| &banned) {
                    // A queue that is full loses it, as a network does.
                    let sent = u64::from(wire.send(frame).is_ok());
                    counted.fetch_add(sent, Ordering::Relaxed);
                }
                let _lost = wire.send(&honest);
            }
        });
        Flood { stop, sent, thread: Some(thread) }
    }
}

impl Drop for Town {
    fn drop(&mut self) {
        remove_pins(&self.pins);
    }
}

/// Packets as fast as one thread sends them, until dropped.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Packets of banned sources so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A way to enforce, opened in the namespace of the calling thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    open: fn(&Path, usize) -> Box<dyn Enforcer>,
    /// Sizes of the table, one after the other: a change of size is a change of maps.
    sizes: &'static [usize],
}

/// Ways of which each next one takes over what the one before left, and must not let go of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) ways: &'static [Way],
}

fn open_nft(_pins: &Path, bans_max: usize) -> Box<dyn Enforcer> {
    Box::new(Nft::open(bans_max).unwrap())
}

fn open_buckets(pins: &Path, bans_max: usize) -> Box<dyn Enforcer> {
    open_xdp(pins, bans_max, xdp::Layout::Buckets)
}

fn open_hash(pins: &Path, bans_max: usize) -> Box<dyn Enforcer> {
    open_xdp(pins, bans_max, xdp::Layout::Hash)
}

pub(crate) fn options(pins: &Path, bans_max: usize, layout: xdp::Layout) -> xdp::Options {
    xdp::Options {
        interfaces: xdp::Interfaces::Named(vec!["eth0".to_owned()]),
        bans_max,
        pin_dir: pins.to_owned(),
        layout,
        ..xdp::Options::default()
    }
}

fn open_xdp(pins: &Path, bans_max: usize, layout: xdp::Layout) -> Box<dyn Enforcer> {
    let xdp = xdp::Xdp::open(&options(pins, bans_max, layout)).unwrap();
    assert_eq!(xdp.layout(), layout, "{}", xdp.describe().reason);
    Box::new(xdp)
}

/// What is swapped for what.
pub(crate) fn series() -> Vec<Series> {
    let xdp = [
        Series { name: "XDP, the same program", ways: &[Way { open: open_buckets, sizes: &[100] }] },
        Series {
            name: "XDP, maps of another size each time",
            ways: &[Way { open: open_buckets, sizes: &[100, 2_000, 50] }],
        },
        Series {
            name: "XDP, another layout each time",
            ways: &[
                Way { open: open_buckets, sizes: &[100, 2_000] },
                Way { open: open_hash, sizes: &[100, 200, 50] },
            ],
        },
        Series { name: "XDP, the hash maps", ways: &[Way { open: open_hash, sizes: &[100, 200, 50] }] },
    ];
    let nft = [
        Series { name: "nftables, the same table", ways: &[Way { open: open_nft, sizes: &[100] }] },
        Series {
            name: "nftables, another size each time",
            ways: &[Way { open: open_nft, sizes: &[100, 200, 50] }],
        },
    ];
    if xdp::is_built_in() { xdp.into_iter().chain(nft).collect() } else { nft.into() }
}

/// What a series came to.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) done: usize,
    took: Duration,
    /// Packets of banned sources: sent, dropped by the enforcer's count, and through.
    pub(crate) sent: u64,
    pub(crate) dropped: u64,
    pub(crate) through: u64,
    /// Honest packets that arrived.
    pub(crate) honest: u64,
}

impl Outcome {
    /// What makes the rest worth something: the flood ran all the time, and both kinds of packets were seen.
    pub(crate) fn check(&self, what: &str) {
        assert_eq!(self.through, 0, "{what}: {self}");
        assert!(self.sent > 0 && self.dropped > 0 && self.honest > 0, "{what}: {self}");
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = self.took / u32::try_from(self.done.max(1)).unwrap_or(u32::MAX);
        write!(
            f,
            "{} in {:.1?} ({each:.1?} each) under {} packets of banned sources: {} dropped, {} through; {} honest ones arrived",
            self.done, self.took, self.sent, self.dropped, self.through, self.honest
        )
    }
}

pub(crate) fn now() -> Timestamp {
    Timestamp::EPOCH.saturating_add(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

pub(crate) fn bans() -> Vec<Change> {
    let ban = |(prefix, _): (&str, &str)| {
        Change::Ban(Ban {
            prefix: prefix.parse().unwrap(),
            scope: Scope::ALL,
            origin: Origin::Operator,
            since: now(),
            until: Until::Forever,
            failures: 0,
            count: 0,
            reason: String::new(),
        })
    };
    BANNED.map(ban).into()
}

/// Ends and opens the enforcer `times` over, or for as long as `most`, under flood.
pub(crate) fn swap(series: &Series, times: usize, most: Duration) -> Outcome {
    let town = Town::new();
    let steps: Vec<(&Way, usize)> =
        series.ways.iter().flat_map(|way| way.sizes.iter().map(move |size| (way, *size))).collect();
    let (way, size) = steps[0];
    let mut enforcer = town.host.enter(|| (way.open)(&town.pins, size));
    enforcer.apply(&bans(), now()).unwrap();
    let mut flood = town.flood();
    let begun = Instant::now();
    let (mut enforcer, done) = town.host.enter(|| {
        let mut done = 0;
        // Each step at least once, however slow the machine is.
        while done < times && (done < steps.len() || begun.elapsed() < most) {
            enforcer.close(Keep::InForce).unwrap();
            done += 1;
            let (way, size) = steps[done % steps.len()];
            enforcer = (way.open)(&town.pins, size);
        }
        (enforcer, done)
    });
    let took = begun.elapsed();
    // So long that what is under way has been judged.
    let dropped = settled(|| enforcer.counters().unwrap().packets, &mut flood);
    let (honest, through) = town.arrived();
    let held = enforcer.entries(now()).unwrap().len();
    assert_eq!(held, BANNED.len(), "{}: bans were lost", series.name);
    enforcer.close(Keep::Nothing).unwrap();
    Outcome { done, took, sent: flood.sent(), dropped, through, honest }
}

/// Puts each of two programs of this layout into the place of the other `times` over, by nothing but the kernel's atomic
/// exchange, under flood.
pub(crate) fn exchange(layout: xdp::Layout, times: usize, most: Duration) -> Outcome {
    let town = Town::new();
    let open = || xdp::Xdp::open(&options(&town.pins, 100, layout)).unwrap();
    let mut one = town.host.enter(open);
    one.apply(&bans(), now()).unwrap();
    // Over the same maps, and in the place of the first.
    let mut other = town.host.enter(open);
    let programs = [one.program_fd().unwrap(), other.program_fd().unwrap()];
    let pinned = link::open_pin(&link_pin(&town.pins).unwrap()).unwrap();
    let mut flood = town.flood();
    let (begun, mut done) = (Instant::now(), 0);
    while done < times && (done < programs.len() || begun.elapsed() < most) {
        link::update(&pinned, &programs[done % programs.len()]).unwrap();
        done += 1;
    }
    let took = begun.elapsed();
    let dropped = settled(|| other.counters().unwrap().packets, &mut flood);
    let (honest, through) = town.arrived();
    Box::new(other).close(Keep::Nothing).unwrap();
    Outcome { done, took, sent: flood.sent(), dropped, through, honest }
}

/// Where the link is pinned, in whichever folder of the layout.
fn link_pin(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let is_link = entry.file_name().to_string_lossy().starts_with("link-");
        if is_link { Some(entry.path()) } else { link_pin(&entry.path()) }
    })
}

/// Ends and starts the built agent `times` over, by turns with SIGKILL and SIGTERM, under flood.
pub(crate) fn restart(binary: &Path, backend: Backend, times: usize, most: Duration) -> Outcome {
    let town = Town::new();
    let mut agent = Agent::new(&town.scratch, &town.host, backend);
    agent.start(binary).unwrap();
    for (prefix, _) in BANNED {
        agent.cli(binary, &["ban", prefix, "--for", "1d"]).unwrap();
    }
    let mut flood = town.flood();
    let (begun, mut done) = (Instant::now(), 0);
    while done < times && (done < 2 || begun.elapsed() < most) {
        if done % 2 == 0 {
            agent.kill();
        } else {
            agent.stop();
        }
        agent.start(binary).unwrap();
        done += 1;
    }
    let took = begun.elapsed();
    let count = || agent.json(binary, &["status"]).unwrap()["packets"].as_u64().unwrap();
    let dropped = settled(count, &mut flood);
    let (honest, through) = town.arrived();
    assert_eq!(agent.banned(binary).unwrap().len(), BANNED.len(), "bans were lost");
    Outcome { done, took, sent: flood.sent(), dropped, through, honest }
}

/// A count once nothing is sent any more and it stands still.
pub(crate) fn settled(mut count: impl FnMut() -> u64, flood: &mut Flood) -> u64 {
    flood.stop();
    let mut last = count();
    wait_for(Duration::from_secs(5), || {
        thread::sleep(Duration::from_millis(50));
        let now = count();
        (std::mem::replace(&mut last, now) == now).then_some(now)
    })
    .unwrap_or(last)
}
