//! What an honest client has left while banned sources flood the host: how long a ping takes, and what one TCP
//! connection to the guarded port carries. The host has one CPU, which receives and serves; whoever is outside has another.
//!
//! A veth end with XDP copies what a local stack sent before the program sees it, which no network card does: an honest
//! packet costs more with XDP here than it would on one.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    Asked,
    flood::Guard,
    ours::KINDS,
    peers::netfilter::PORT,
    report::{Bound, Report},
    site::{self, HOST, Site},
    spray::{Spray, Traffic},
};

/// Frames of the flood in a second: what one core of this kind can make beside other work.
const FLOOD: u32 = 400_000;
/// Who shares the machine shall not be what is measured; threads inherit it.
const NICE: i32 = -15;
const HOST_CPU: usize = site::CPU;
const OUTSIDE_CPU: usize = HOST_CPU + 1;
const MANY: u64 = 1_000_000;
const LONG_CHAIN: u64 = 10_000;
const PINGS: usize = 200;
/// How long a silent socket is waited for.
const SILENCE: Duration = Duration::from_millis(100);

/// What one client saw.
#[derive(Debug)]
struct Seen {
    /// Round trips in ms, in order.
    pings: Vec<f64>,
    /// Of one TCP connection.
    megabits: f64,
    /// Frames of the flood, made and taken, in a second.
    made: f64,
    taken: f64,
}

pub(crate) fn measure(asked: &Asked, spray: &mut Spray, report: &mut Report) -> Result<()> {
    println!(
        "\n-- an honest client beside a flood of {FLOOD} frames a second from random banned sources, both to port {PORT}"
    );
    println!(
        "{:<32}{:>10}{:>13}{:>13}{:>9}{:>12}{:>12}{:>13}",
        "", "bans", "made/s", "taken/s", "lost", "ping, ms", "p99, ms", "TCP, Mbit/s"
    );
    rustix::process::setpriority_process(None, NICE)?;
    let mut rows = vec![(Guard::Nothing, 0, false), (Guard::Nothing, MANY, true)];
    rows.extend(KINDS.iter().map(|kind| (Guard::Xdp(kind), MANY, true)));
    for guard in [Guard::Nftables, Guard::XdpFilter, Guard::NftSet, Guard::Ipset] {
        rows.push((guard, MANY, true));
    }
    rows.extend([(Guard::Chain, 1_000, true), (Guard::Chain, LONG_CHAIN, true)]);
    let (mut ours, mut chain) = (None, None);
    for (guard, bans, floods) in rows {
        let name = if floods { guard.name() } else { "no flood".to_owned() };
        let seen =
            guard.set_up(spray, bans).and_then(|guarded| visit(asked, spray, &guarded.site, bans, floods));
        let Some(seen) = report.had(&format!("{name}, {bans} bans, honest client"), seen) else { continue };
        println!(
            "{name:<32}{bans:>10}{:>13.0}{:>13.0}{:>8.0}%{:>12}{:>12}{:>13.0}",
            seen.made,
            seen.taken,
            100.0 * (1.0 - seen.pings.len() as f64 / PINGS as f64),
            at(&seen.pings, 0.5),
            at(&seen.pings, 0.99),
            seen.megabits
        );
        match guard {
            Guard::Xdp(kind) if kind.judged => ours = Some(seen.megabits),
            Guard::Chain if bans == LONG_CHAIN => chain = Some(seen.megabits),
            _ => {}
        }
    }
    if let (Some(ours), Some(chain)) = (ours, chain) {
        let name = format!("honest TCP beside a flood, of a chain of {LONG_CHAIN} rules");
        report.target(name, ours / chain.max(0.1), Bound::AtLeast(10.0, "x"));
    }
    Ok(())
}

fn at(sorted: &[f64], part: f64) -> String {
    let index = ((sorted.len().saturating_sub(1)) as f64 * part).round() as usize;
    sorted.get(index).map_or_else(|| "-".to_owned(), |ms| format!("{ms:.3}"))
}

fn visit(asked: &Asked, spray: &mut Spray, site: &Site, bans: u64, floods: bool) -> Result<Seen> {
    let program = site.aim(spray, "flood", &Traffic::BannedRandom.numbers(bans.max(1)), 1)?;
    site::receive_apart(site, NICE)?;
    let stop = AtomicBool::new(!floods);
    let (taken, began) = (site.received()?, Instant::now());
    let (mut pings, megabits, made) = thread::scope(|scope| -> Result<_> {
        let flood = scope.spawn(|| site::paced(site, OUTSIDE_CPU, &program, FLOOD, &stop));
        let pings = ping(site);
        let megabits = goodput(site, asked.transfer());
        stop.store(true, Ordering::Relaxed);
        let made = flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((pings?, megabits?, made))
    })?;
    pings.sort_unstable_by(f64::total_cmp);
    let took = began.elapsed().as_secs_f64();
    let taken = if floods { (site.received()? - taken) as f64 } else { 0.0 };
    Ok(Seen { pings, megabits, made: made as f64 / took, taken: taken / took })
}

/// Round trips in ms; a lost one is missing.
fn ping(site: &Site) -> Result<Vec<f64>> {
    let mut command = site.outside.command("ping");
    command.args(["-n", "-i", "0.01", "-W", "1", "-c", &PINGS.to_string(), "-w", "6", &HOST.to_string()]);
    // It fails when it loses one.
    let output = command.output().context("start ping")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let time = |line: &str| line.split_once("time=")?.1.split(' ').next()?.parse().ok();
    Ok(text.lines().filter_map(time).collect())
}

/// Megabits a second that one connection brings to the server.
fn goodput(site: &Site, span: Duration) -> Result<f64> {
    let address = SocketAddr::from((HOST, PORT));
    let listener = site.host.enter(|| TcpListener::bind(address))?;
    listener.set_nonblocking(true)?;
    let bytes = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let seconds = thread::scope(|scope| -> Result<f64> {
        scope.spawn(|| site.host.enter(|| serve(&listener, &bytes, &over)));
        let sent = site.outside.enter(|| send(address, span));
        over.store(true, Ordering::Relaxed);
        sent
    })?;
    Ok(bytes.load(Ordering::Relaxed) as f64 * 8.0 / 1e6 / seconds)
}

/// Reads what comes on one connection until it is over.
fn serve(listener: &TcpListener, bytes: &AtomicU64, over: &AtomicBool) -> Result<()> {
    site::pin(HOST_CPU)?;
    let mut buffer = vec![0; 256 << 10];
    let mut stream: Option<TcpStream> = None;
    while !over.load(Ordering::Relaxed) {
        match &mut stream {
            None => match listener.accept() {
                Ok((accepted, _)) => {
                    accepted.set_nonblocking(false)?;
                    accepted.set_read_timeout(Some(SILENCE))?;
                    stream = Some(accepted);
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            },
            Some(stream) => {
                let read = stream.read(&mut buffer).unwrap_or(0);
                bytes.fetch_add(read as u64, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// Sends as much as it can, and says for how long it did.
fn send(address: SocketAddr, span: Duration) -> Result<f64> {
    site::pin(OUTSIDE_CPU)?;
    let began = Instant::now();
    let connected = TcpStream::connect_timeout(&address, span);
    if let Ok(mut stream) = connected {
        stream.set_write_timeout(Some(SILENCE))?;
        let block = vec![0; 64 << 10];
        while began.elapsed() < span {
            let _late = stream.write(&block);
        }
    }
    Ok(began.elapsed().as_secs_f64())
}
