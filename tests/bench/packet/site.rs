//! A host behind one veth link, the network outside, and a flood from there.
//!
//! Frames are made by BPF_PROG_TEST_RUN and go straight into the host's receive ring, so the generator costs little and
//! the same for everybody; what it costs is taken off. Its own CPU also receives them.

use std::{
    fs,
    net::Ipv4Addr,
    ops::Range,
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};
use xtask::lab::{Netns, Scratch};

use crate::{
    bpf,
    peers::netfilter::PORT,
    spray::{Spray, cpu_time},
};

/// The host (RFC 5737).
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// An honest client, outside.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Where the flood is made and received.
pub(crate) const CPU: usize = 0;

/// The two ends.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) host: Netns,
    pub(crate) outside: Netns,
    /// The outer end's interface.
    index: u64,
}

/// What a burst came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Burst {
    /// CPU time of all who worked on it, in ns.
    pub(crate) cpu_ns: f64,
    /// Frames that the host took from its ring.
    pub(crate) received: u64,
    /// Packets that went on to the host's transport protocols.
    pub(crate) delivered: u64,
}

impl Site {
    pub(crate) fn new() -> Result<Self> {
        let (host, outside) = (Netns::new("host")?, Netns::new("outside")?);
        host.link("eth0", &outside, "eth0")?;
        for (netns, address, mac) in
            [(&host, HOST, "02:00:00:00:00:01"), (&outside, CLIENT, "02:00:00:00:00:02")]
        {
            netns.ip(&format!("link set eth0 address {mac}"))?;
            netns.ip(&format!("addr add {address}/24 dev eth0"))?;
            // Sources are anywhere, and the host has no way back to them.
            netns.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
            netns.sysctl("net/ipv4/conf/eth0/rp_filter", "0")?;
        }
        host.ip(&format!("neigh replace {CLIENT} lladdr 02:00:00:00:00:02 dev eth0"))?;
        outside.ip(&format!("neigh replace {HOST} lladdr 02:00:00:00:00:01 dev eth0"))?;
        // A veth end without XDP takes frames by NAPI only with this.
        host.run("ethtool", &["-K", "eth0", "gro", "on"]).context("Debian's ethtool is needed")?;
        // A real interface never gets a segment of 64 KiB, and one with XDP cannot: all have the same.
        outside.run("ethtool", &["-K", "eth0", "tso", "off", "gso", "off"])?;
        let links: serde_json::Value = serde_json::from_str(&outside.ip("-json link show dev eth0")?)?;
        let index = links[0]["ifindex"].as_u64().context("the index of the outer interface")?;
        Ok(Self { host, outside, index })
    }

    /// Sends `count` frames from the sources with these numbers and waits until the host has seen to them.
    pub(crate) fn burst(
        &self,
        spray: &mut Spray,
        numbers: &Range<u64>,
        count: u32,
        seed: u64,
    ) -> Result<Burst> {
        let before = (self.received()?, self.delivered()?);
        let cpu_ns = self.send(spray, "flood", numbers, count, seed, || self.settle())?;
        Ok(Burst { cpu_ns, received: self.received()? - before.0, delivered: self.delivered()? - before.1 })
    }

    /// CPU time per frame of making them and nothing else, in ns.
    pub(crate) fn generator(
        &self,
        spray: &mut Spray,
        numbers: &Range<u64>,
        count: u32,
        seed: u64,
    ) -> Result<f64> {
        Ok(self.send(spray, "flood_nowhere", numbers, count, seed, || {})? / f64::from(count))
    }

    fn send(
        &self,
        spray: &mut Spray,
        program: &str,
        numbers: &Range<u64>,
        count: u32,
        seed: u64,
        wait: impl Fn() + Sync,
    ) -> Result<f64> {
        let program = self.aim(spray, program, numbers, seed)?;
        self.outside.enter(|| {
            pin(CPU)?;
            let before = ksoftirqd_ns();
            let own = cpu_time();
            bpf::run_live(program.as_raw_fd(), &frame(), count)
                .context("send frames by BPF_PROG_TEST_RUN")?;
            let own = (cpu_time() - own).as_nanos() as f64;
            wait();
            Ok(own + ksoftirqd_ns() - before)
        })
    }

    /// The program that floods this host from these sources, ready to be run outside.
    pub(crate) fn aim(
        &self,
        spray: &mut Spray,
        program: &str,
        numbers: &Range<u64>,
        seed: u64,
    ) -> Result<OwnedFd> {
        let frame = frame();
        // RFC 791 3.1, RFC 9293 3.1: the pseudo header is the addresses, the protocol and the length.
        let pseudo = sum(&HOST.octets()) + 6 + 20;
        spray.send_by([self.index, sum(&frame[14..34]), sum(&frame[34..]) + pseudo])?;
        spray.draw_from(numbers, seed)?;
        Ok(spray.program(program)?.fd)
    }

    /// Until nothing more arrives.
    fn settle(&self) {
        let mut last = None;
        for _ in 0..200 {
            let now = self.received().ok();
            if now == last {
                return;
            }
            last = now;
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Frames that the host took, whatever became of them.
    pub(crate) fn received(&self) -> Result<u64> {
        let text = self.host.enter(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
        let packets = line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok());
        packets.context("the host's eth0 in /proc/net/dev")
    }

    fn delivered(&self) -> Result<u64> {
        let text = self.host.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"))?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let place = names.split(' ').position(|name| name == "InDelivers");
        let value = place.and_then(|place| values.split(' ').nth(place)?.parse().ok());
        value.context("InDelivers in /proc/net/snmp")
    }
}

/// Lets the host receive in a kernel thread of its own, on the CPU of the flood, as if the outside were another machine:
/// whoever sends then only fills the ring. The thread gets this niceness.
pub(crate) fn receive_apart(site: &Site, nice: i32) -> Result<()> {
    let before = napi_threads();
    let scratch = Scratch::new("sysfs")?;
    site.host
        .enter(|| -> Result<()> {
            // sysfs shows the network namespace of whoever mounted it.
            mount("sysfs", scratch.path(), "sysfs", MountFlags::empty(), None)?;
            let written = fs::write(scratch.join("class/net/eth0/threaded"), "1");
            unmount(scratch.path(), UnmountFlags::DETACH)?;
            Ok(written?)
        })
        .context("make the host receive in a thread of its own")?;
    let new: Vec<Pid> = napi_threads().into_iter().filter(|pid| !before.contains(pid)).collect();
    ensure!(!new.is_empty(), "the host has no thread that receives");
    for pid in new {
        sched_setaffinity(Some(pid), &only(CPU))?;
        rustix::process::setpriority_process(Some(pid), nice)?;
    }
    Ok(())
}

/// The kernel's threads that receive for interfaces called eth0, in whatever namespace.
fn napi_threads() -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let receives = |path: &PathBuf| {
        fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.starts_with("napi/eth0-"))
    };
    processes
        .filter(receives)
        .filter_map(|path| Pid::from_raw(path.file_name()?.to_str()?.parse().ok()?))
        .collect()
}

/// Keeps the calling thread on one CPU.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    Ok(sched_setaffinity(None, &only(cpu))?)
}

fn only(cpu: usize) -> CpuSet {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    cpus
}

/// A SYN for the port that fail2ban guards, its source and checksums left open.
pub(crate) fn frame() -> Vec<u8> {
    let [p1, p2] = PORT.to_be_bytes();
    let ip = [0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 0, 0, 0, 0];
    let tcp = [0x9c, 0x40, p1, p2, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
    [HOST_MAC.as_slice(), &CLIENT_MAC, &[8, 0], &ip, &HOST.octets(), &tcp].concat()
}

/// Of 16-bit words, carries kept.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
}

/// CPU time of the kernel thread that receives when the flood's own thread is not made to.
fn ksoftirqd_ns() -> f64 {
    use std::sync::OnceLock;
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let name = format!("ksoftirqd/{CPU}\n");
        let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
        let is_it = |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm == name);
        Some(processes.into_iter().find(is_it)?.join("schedstat"))
    });
    let text = path.as_ref().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0)
}

/// Small bursts, which the ring has room for: so many frames a second at most, until `stop`; returns what was sent.
pub(crate) fn paced(
    site: &Site,
    cpu: usize,
    program: &OwnedFd,
    per_second: u32,
    stop: &AtomicBool,
) -> Result<u64> {
    const EVERY: Duration = Duration::from_micros(200);
    site.outside.enter(|| {
        pin(cpu)?;
        let (frame, count) = (frame(), per_second / 5_000);
        let mut sent = 0;
        let mut next = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            bpf::run_live(program.as_raw_fd(), &frame, count)?;
            sent += u64::from(count);
            // Who is late does not catch up: a network does not either.
            next = (next + EVERY).max(Instant::now());
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(sent)
    })
}
