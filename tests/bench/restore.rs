//! A million bans: how long a start takes to have them in the kernel, what listing them costs, and what they weigh.
//!
//! A ledger is written through the store, and the built agent is started on it in a namespace, with each backend in turn.
//! `BLOCKER_BENCH_BANS` sets how many, `BLOCKER_BENCH_BACKEND` names one backend. Nothing here asserts a time.

use std::{
    fs,
    io::Read as _,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use blocker::{
    enforce::{Enforcer, nft::Nft, xdp},
    engine::{Change, Difference, Engine, Kept},
    ledger::{Ban, Ledger, Origin},
    net::{Prefix, Scope},
    policy::Policy,
    store::Store,
    time::{Timestamp, Until},
};
use xtask::lab::{
    Netns, Scratch,
    agent::{Agent, Backend, remove_pins},
    missing, wait_for,
};

const BANS: u32 = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(600);
/// Prefixes that a slice of the reconciliation looks at.
const LOOK: usize = 1 << 13;

/// A backend as the configuration names it.
struct Kind {
    name: &'static str,
    backend: Backend,
    enforce: &'static str,
}

const KINDS: [Kind; 3] = [
    Kind { name: "xdp, buckets", backend: Backend::Xdp, enforce: "" },
    Kind { name: "xdp, hash maps", backend: Backend::Xdp, enforce: "table = \"hash\"" },
    Kind { name: "nftables", backend: Backend::Nftables, enforce: "" },
];

fn main() {
    if let Some(reason) = missing() {
        println!("not measured: {reason}");
        return;
    }
    let bans = std::env::var("BLOCKER_BENCH_BANS").ok().and_then(|text| text.parse().ok()).unwrap_or(BANS);
    let asked = std::env::var("BLOCKER_BENCH_BACKEND").unwrap_or_default();
    let scratch = Scratch::new("restore").expect("a scratch folder");
    let state = scratch.join("state");
    let start = Instant::now();
    store(&state, bans);
    let size = fs::metadata(state.join("blocker.db")).map_or(0, |file| file.len());
    println!("{bans} bans; the ledger on disk: {} MiB, written in {:.1} s", size >> 20, secs(start));
    let kinds = || KINDS.iter().filter(|kind| kind.name.contains(&*asked));
    if std::env::args().any(|arg| arg == "--steps") {
        kinds().for_each(|kind| steps(&state, kind, bans));
        return;
    }
    println!(
        "\n| backend | start: answers | all in the kernel | restart | `bans --json` | rows | `bans` | `status` | its longest wait while restoring / listing | RSS MiB after the start | at most | of `bans` |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    kinds().for_each(|kind| agent(&state, kind, bans));
}

/// Mostly IPv4, some /64s, a few networks; of three jails and an operator; all over at different times, far away.
fn bans(count: u32) -> impl Iterator<Item = Ban> {
    let now = wall_clock();
    let jails: Vec<Origin> =
        ["sshd", "nginx-login", "postfix-sasl"].map(|name| Origin::Jail(name.into())).into();
    (0..count).map(move |n| {
        // An odd factor: every n has another product.
        let mixed = n.wrapping_mul(0x9e37_79b1);
        let prefix = match n % 8 {
            0 => {
                let network = 0x2001_0db8_u128 << 96 | u128::from(mixed) << 64;
                Prefix::new(Ipv6Addr::from_bits(network).into(), 64)
            }
            _ if n % 1_000 == 1 => Prefix::new(Ipv4Addr::from_bits(0x0b00_0000 + n / 1_000 * 256).into(), 24),
            // 16.0.0.0 to 111.255.255.255.
            _ => Prefix::new(Ipv4Addr::from_bits(0x1000_0000 + mixed % 0x6000_0000).into(), 32),
        };
        let origin = match n % 100 {
            0 => Origin::Operator,
            _ => jails[n as usize % jails.len()].clone(),
        };
        let end = now.saturating_add(Duration::from_secs(100_000 + u64::from(n % 86_400)));
        Ban {
            prefix: prefix.expect("a length of the family"),
            scope: Scope::ALL,
            origin,
            since: now,
            until: Until::At(end),
            failures: 5,
            count: 1,
            reason: String::new(),
        }
    })
}

fn store(folder: &Path, count: u32) {
    let (mut store, _) = Store::open(folder).expect("a ledger");
    let engine = Engine::new(wall_clock(), Policy::default(), Kept::default());
    store.rewrite(bans(count).map(Change::Ban), [], &[], &engine.counted()).expect("the disk takes it");
}

fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::EPOCH.saturating_add(since)
}

fn secs(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}

/// The agent's process, from outside.
fn agent(state: &Path, kind: &Kind, count: u32) {
    let binary = Path::new(env!("CARGO_BIN_EXE_blocker"));
    if kind.backend == Backend::Xdp && !xdp::is_built_in() {
        return println!("| {} | not measured: XDP was not built in |", kind.name);
    }
    let host = Netns::new("host").expect("a namespace");
    let peer = Netns::new("peer").expect("a namespace");
    host.link("eth0", &peer, "eth0").expect("a veth pair");
    let scratch = Scratch::new("million").expect("a scratch folder");
    fs::create_dir(scratch.join("state")).expect("a folder");
    fs::copy(state.join("blocker.db"), scratch.join("state/blocker.db")).expect("a copy");
    let log = scratch.join("auth.log");
    fs::write(&log, "").expect("a log");
    let mut agent = Agent::new(&scratch, &host, kind.backend);
    agent.tables(&format!("max_bans = {count}\n{}", kind.enforce));
    agent.jail("sshd", &log, "");

    let start = Instant::now();
    agent.start(binary).expect("the agent starts");
    let answers = secs(start);
    let mut longest = Duration::ZERO;
    let restored = wait_for(PATIENCE, || {
        let asked = Instant::now();
        let status = agent.json(binary, &["status"]).ok()?;
        longest = longest.max(asked.elapsed());
        (status["health"] == "ok").then_some(())
    });
    let in_kernel = secs(start);
    assert!(restored.is_some(), "{}", agent.log());
    let (rss, at_most) = (memory(agent.id(), "VmRSS:"), memory(agent.id(), "VmHWM:"));
    let mut status: Vec<Duration> = (0..20)
        .map(|_| {
            let asked = Instant::now();
            agent.json(binary, &["status"]).expect("an answer");
            asked.elapsed()
        })
        .collect();
    status.sort_unstable();

    let stop = Arc::new(AtomicBool::new(false));
    let (socket, stopped) = (agent.socket(), Arc::clone(&stop));
    let asking = thread::spawn(move || {
        let mut longest = Duration::ZERO;
        while !stopped.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let _answer = blocker::control::client::call(&socket, "status", serde_json::json!({}));
            longest = longest.max(asked.elapsed());
            thread::sleep(Duration::from_millis(5));
        }
        longest
    });
    let listed = list(&agent, binary, &["--json", "bans"]);
    let shown = list(&agent, binary, &["bans"]);
    stop.store(true, Ordering::Relaxed);
    let longest_listing = asking.join().expect("the other thread");
    let listed_at_most = memory(agent.id(), "VmHWM:").max(at_most);

    agent.stop();
    let start = Instant::now();
    agent.start(binary).expect("the agent starts again");
    let again = wait_for(PATIENCE, || {
        (agent.json(binary, &["status"]).ok()?["health"] == "ok").then_some(secs(start))
    });
    println!(
        "| {} | {answers:.2} s | {in_kernel:.2} s | {:.2} s | {:.2} s | {} | {:.2} s | {:.1} ms | {} / {} ms | {rss:.0} | {listed_at_most:.0} | {:.0} |",
        kind.name,
        again.unwrap_or(f64::NAN),
        listed.took,
        listed.rows,
        shown.took,
        status[10].as_secs_f64() * 1e3,
        longest.as_millis(),
        longest_listing.as_millis(),
        listed.at_most.max(shown.at_most),
    );
    println!("{}", agent.log().lines().filter(|line| line.contains("slices")).collect::<Vec<_>>().join("\n"));
}

struct Listed {
    took: f64,
    rows: usize,
    at_most: f64,
}

/// Runs `blocker bans` into a pipe that is read as fast as it comes.
fn list(agent: &Agent<'_>, binary: &Path, args: &[&str]) -> Listed {
    let start = Instant::now();
    let mut command = Command::new(binary);
    command.arg("--socket").arg(agent.socket()).args(args).stdout(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    let mut stdout = child.stdout.take().expect("a pipe");
    let (mut buffer, mut rows, mut at_most) = (vec![0; 1 << 16], 0, 0.0_f64);
    while let Ok(length @ 1..) = stdout.read(&mut buffer) {
        rows += buffer[..length].iter().filter(|byte| **byte == b'\n').count();
        at_most = at_most.max(memory(Some(child.id()), "VmHWM:"));
    }
    let status = child.wait().expect("it ends");
    assert!(status.success(), "{status}");
    Listed { took: secs(start), rows, at_most }
}

/// MiB, from proc(5).
fn memory(process: Option<u32>, key: &str) -> f64 {
    let process = process.map_or_else(|| "self".to_owned(), |id| id.to_string());
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("0");
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Time by the clock, and of this process. The second says more on a busy machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Took {
    wall: Duration,
    cpu: Duration,
}

impl Took {
    fn and(self, other: Self) -> Self {
        Self { wall: self.wall + other.wall, cpu: self.cpu + other.cpu }
    }
}

struct Start(Instant, Duration);

impl Start {
    fn now() -> Self {
        Self(Instant::now(), cpu())
    }

    fn took(&self) -> Took {
        Took { wall: self.0.elapsed(), cpu: cpu().saturating_sub(self.1) }
    }
}

fn cpu() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

/// The same in this process, step by step.
fn steps(state: &Path, kind: &Kind, count: u32) {
    println!("\n{}", kind.name);
    println!("{:<44} {:>10} {:>10} {:>10}", "step", "ms", "ms of CPU", "RSS MiB");
    let row = |what: &str, took: Took| {
        let ms = |took: Duration| took.as_secs_f64() * 1e3;
        println!(
            "{what:<44} {:>10.1} {:>10.1} {:>10.0}",
            ms(took.wall),
            ms(took.cpu),
            memory(None, "VmRSS:")
        );
    };
    let start = Start::now();
    let (store, stored) = Store::open(state).expect("the ledger");
    row("the store is opened and read", start.took());
    let start = Start::now();
    let (ledger, _) = Ledger::with(count as usize, stored.bans);
    row("the ledger is filled", start.took());
    drop(store);
    let host = Netns::new("host").expect("a namespace");
    let peer = Netns::new("peer").expect("a namespace");
    host.link("eth0", &peer, "eth0").expect("a veth pair");
    let scratch = Scratch::new("steps").expect("a scratch folder");
    let pins = Path::new("/sys/fs/bpf").join(scratch.path().file_name().unwrap_or_default());
    let _pins = Pins(&pins);
    host.enter(|| {
        let start = Start::now();
        let mut enforcer: Box<dyn Enforcer> = match kind.backend {
            Backend::Xdp => Box::new(
                xdp::Xdp::open(&xdp::Options {
                    interfaces: xdp::Interfaces::Named(vec!["eth0".to_owned()]),
                    bans_max: count as usize,
                    pin_dir: pins.clone(),
                    layout: if kind.enforce.is_empty() { xdp::Layout::Buckets } else { xdp::Layout::Hash },
                    ..xdp::Options::default()
                })
                .expect("XDP attaches"),
            ),
            Backend::Nftables => Box::new(Nft::open(count as usize).expect("a table")),
        };
        row("the enforcer is opened", start.took());
        for round in ["an empty kernel", "a full kernel"] {
            let start = Start::now();
            let entries = enforcer.entries(wall_clock()).expect("the kernel is read");
            row(&format!("{round} is read, {} bans", entries.len()), start.took());
            let actual =
                entries.iter().map(|entry| (entry.scope.clone(), entry.prefix, entry.until)).collect();
            drop(entries);
            let mut difference = Difference::new(actual);
            let (mut differing, mut applying, mut longest, mut changed) =
                (Took::default(), Took::default(), Took::default(), 0);
            loop {
                let start = Start::now();
                let Some(changes) = difference.step(&ledger, LOOK) else { break };
                differing = differing.and(start.took());
                let start = Start::now();
                enforcer.apply(&changes, wall_clock()).expect("the kernel takes them");
                applying = applying.and(start.took());
                longest = longest.max(start.took());
                changed += changes.len();
            }
            row(&format!("{round} is compared"), differing);
            row(&format!("{changed} changes are applied"), applying);
            row(&format!("the longest of them, of {LOOK}"), longest);
        }
        enforcer.close(blocker::enforce::Keep::Nothing).expect("all is removed");
    });
}

/// Removed also when a step fails.
struct Pins<'a>(&'a Path);

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        remove_pins(self.0);
    }
}
