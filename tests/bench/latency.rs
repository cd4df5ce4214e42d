//! Reaction: from a log line to the kernel's map or set, and to the first packet dropped; and what the agent weighs.
//!
//! The demo's set-up: a host in a network namespace, one attacker behind a switch, the built agent in between. Each
//! trial is a source of its own whose single failure bans it. Nothing here asserts a time.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use blocker::enforce::{Enforcer as _, nft::Nft, xdp};
use xtask::lab::{
    Scratch,
    agent::{Agent, Backend},
    lan::{HOST_V4, Lan},
    missing, wait_for,
};

const TRIALS: u16 = 250;
const PORT: u16 = 5353;
/// Between packets of the stream that shows the first drop: the resolution of that figure.
const PACKET_EVERY: Duration = Duration::from_micros(20);
const PATIENCE: Duration = Duration::from_secs(5);

fn main() {
    if let Some(reason) = missing() {
        println!("not measured: {reason}");
        return;
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_blocker"));
    let asked = std::env::var("BLOCKER_BENCH_BACKEND").unwrap_or_default();
    let both = [Backend::Xdp, Backend::Nftables];
    println!("{TRIALS} trials each; from the append of the line, in microseconds");
    println!("{:<10} {:<28} {:>8} {:>8} {:>8} {:>8}", "backend", "until", "min", "median", "p99", "max");
    for backend in both.into_iter().filter(|backend| asked.is_empty() || backend.to_string() == asked) {
        if backend == Backend::Xdp && !xdp::is_built_in() {
            println!("xdp        not measured: XDP was not built in");
            continue;
        }
        measure(binary, backend);
    }
}

fn measure(binary: &Path, backend: Backend) {
    let mut lan = Lan::new().expect("namespaces");
    lan.add_client("attacker", 66).expect("a client");
    let attacker = &lan.clients[0].netns;
    // The attacker owns all of 10.99.0.0/16, and the host has no opinion on where packets come from.
    attacker.ip("route add local 10.99.0.0/16 dev lo").expect("a route");
    lan.host.ip("route add 10.99.0.0/16 dev eth0").expect("a route");
    let scratch = Scratch::new("latency").expect("a scratch folder");
    let log = scratch.join("auth.log");
    fs::write(&log, "").expect("a log");
    let mut agent = Agent::new(&scratch, &lan.host, backend);
    agent.jail("sshd", &log, "maxretry = 1\nbantime = \"1h\"");
    agent.start(binary).expect("the agent starts");
    println!("{:<10} {:<28} {:>8}", backend.to_string(), "idle RSS, MiB", rss_mib(&agent));

    let host: IpAddr = HOST_V4.parse().expect("an address");
    let receiver = lan.host.enter(|| UdpSocket::bind((host, PORT)).expect("a socket"));
    receiver.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    let last_seen = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let (seen, stopped) = (Arc::clone(&last_seen), Arc::clone(&stop));
    let listening = thread::spawn(move || {
        let mut packet = [0; 8];
        while !stopped.load(Ordering::Relaxed) {
            if receiver.recv(&mut packet).is_ok() {
                seen.store(u64::from_be_bytes(packet), Ordering::Relaxed);
            }
        }
    });

    let mut file = fs::File::options().append(true).open(&log).expect("the log");
    // The first ban may make a set or map that a reader opened before would not know of.
    fail(&mut file, Ipv4Addr::new(10, 99, 255, 1));
    let warm =
        wait_for(PATIENCE, || agent.banned(binary).is_ok_and(|banned| !banned.is_empty()).then_some(()));
    assert!(warm.is_some(), "the first ban: {}", agent.log());
    let mut held = Held::open(backend, &agent, &lan);
    let mut to_kernel = Vec::new();
    for trial in 0..TRIALS {
        let source = Ipv4Addr::new(10, 99, 1, 0).to_bits() + u32::from(trial);
        let source = Ipv4Addr::from_bits(source);
        let appended = fail(&mut file, source);
        let found = poll(|| held.holds(source));
        assert!(found.is_some(), "{source} is not banned: {}", agent.log());
        to_kernel.extend(found.map(|at| at - appended));
        thread::sleep(Duration::from_millis(5));
    }
    print(backend, "in the kernel", &mut to_kernel);

    let mut to_drop = Vec::new();
    for trial in 0..TRIALS {
        let source = Ipv4Addr::from_bits(Ipv4Addr::new(10, 99, 8, 0).to_bits() + u32::from(trial));
        let socket = attacker.enter(|| UdpSocket::bind((source, 0)).expect("any address of ours"));
        socket.connect((host, PORT)).expect("a route");
        last_seen.store(0, Ordering::Relaxed);
        let quiet = Arc::new(AtomicBool::new(false));
        let stream = {
            let quiet = Arc::clone(&quiet);
            thread::spawn(move || {
                let mut sent = vec![Instant::now()];
                while !quiet.load(Ordering::Relaxed) && sent.len() < 500_000 {
                    let number = sent.len() as u64;
                    sent.push(Instant::now());
                    let _refused = socket.send(&number.to_be_bytes());
                    thread::sleep(PACKET_EVERY);
                }
                sent
            })
        };
        let flowing = wait_for(PATIENCE, || (last_seen.load(Ordering::Relaxed) > 20).then_some(()));
        let appended = fail(&mut file, source);
        poll(|| held.holds(source));
        thread::sleep(Duration::from_millis(10));
        quiet.store(true, Ordering::Relaxed);
        let sent = stream.join().expect("the stream");
        thread::sleep(Duration::from_millis(5));
        let first_dropped = last_seen.load(Ordering::Relaxed) as usize + 1;
        if flowing.is_some()
            && let Some(at) = sent.get(first_dropped)
        {
            to_drop.push(at.saturating_duration_since(appended));
        }
    }
    print(backend, "first packet dropped", &mut to_drop);
    println!("{:<10} {:<28} {:>8}", backend.to_string(), "RSS after the trials, MiB", rss_mib(&agent));
    stop.store(true, Ordering::Relaxed);
    let _joined = listening.join();
}

/// Appends one failure and returns when that was done.
fn fail(file: &mut fs::File, source: Ipv4Addr) -> Instant {
    let line = format!(
        "2026-11-24T10:00:00+00:00 host sshd[42]: Failed password for root from {source} port 40000 ssh2\n"
    );
    let before = Instant::now();
    file.write_all(line.as_bytes()).expect("room on the disk");
    before
}

/// Spins until `held`, and says when.
fn poll(mut held: impl FnMut() -> bool) -> Option<Instant> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if held() {
            return Some(Instant::now());
        }
        // Two cores, one of them for the agent.
        thread::yield_now();
    }
    None
}

/// Looks into the kernel from outside the agent.
enum Held {
    Xdp(Box<xdp::Reader>),
    Nftables(Box<Nft>),
}

impl Held {
    fn open(backend: Backend, agent: &Agent<'_>, lan: &Lan) -> Self {
        match backend {
            Backend::Xdp => {
                Self::Xdp(Box::new(xdp::Reader::open(agent.pins()).expect("the agent's pinned maps")))
            }
            Backend::Nftables => {
                Self::Nftables(Box::new(lan.host.enter(|| Nft::look().expect("the agent's table"))))
            }
        }
    }

    fn holds(&mut self, source: Ipv4Addr) -> bool {
        match self {
            Self::Xdp(reader) => reader.holds(source.into()),
            Self::Nftables(nft) => {
                let now = blocker::time::Timestamp::EPOCH;
                nft.entries(now)
                    .is_ok_and(|entries| entries.iter().any(|entry| entry.prefix.contains(source.into())))
            }
        }
    }
}

fn rss_mib(agent: &Agent<'_>) -> String {
    let status =
        agent.id().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok()).unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kib.map_or_else(|| "?".to_owned(), |kib| format!("{:.1}", kib / 1024.0))
}

fn print(backend: Backend, until: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |part: f64| {
        let index = ((times.len() as f64 - 1.0) * part).round() as usize;
        times.get(index).map_or(0, Duration::as_micros)
    };
    println!(
        "{:<10} {:<28} {:>8} {:>8} {:>8} {:>8}   ({} of {TRIALS} seen)",
        backend.to_string(),
        until,
        at(0.0),
        at(0.5),
        at(0.99),
        at(1.0),
        times.len()
    );
}
