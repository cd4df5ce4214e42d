//! What a ban costs to put in and to hold: one by one, ten thousand, a million.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use blocker::enforce::{Enforcer, nft::Nft};
use xtask::lab::Netns;

use crate::{
    Asked,
    ours::{self, KINDS, Kind, Ours},
    peers::{netfilter, xdp_filter::XdpFilter},
    report::{Bound, Report, Sample},
    site::Site,
    spray::Family,
};

const BATCH: u64 = 10_000;
const MANY: u64 = 1_000_000;
/// The prefilter of the bucket table: as large whatever is banned.
const PREFILTER: &str = "PREFILTER";

/// One line of the table; what is not known is not printed.
#[derive(Debug, Default)]
struct Costs {
    one: Option<Sample>,
    batch: Option<Duration>,
    many: Option<Duration>,
    bytes: Option<f64>,
    /// Why there is no figure for a million.
    lacking: Option<anyhow::Error>,
}

impl Costs {
    fn print(&self, name: &str, report: &mut Report) {
        let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let per_second = |count: u64, took: Duration| count as f64 / took.as_secs_f64();
        println!(
            "{name:<34}{:>20}{:>12}{:>12}{:>12}{:>12}{:>12}{:>8}",
            known(self.one.map(|one| format!("{:.2} / {:.2}", one.min, one.median))),
            known(self.one.map(|one| format!("{:.0}", 1e6 / one.median))),
            known(self.batch.map(|took| format!("{:.2}", took.as_secs_f64() * 1e3))),
            known(self.batch.map(|took| format!("{:.0}", per_second(BATCH, took)))),
            known(self.many.map(|took| format!("{:.0}", took.as_secs_f64() * 1e3))),
            known(self.many.map(|took| format!("{:.0}", per_second(MANY, took)))),
            known(self.bytes.map(|bytes| format!("{bytes:.0}"))),
        );
        if let Some(error) = &self.lacking {
            report.lacks(&format!("{name}: {MANY} bans"), error);
        }
    }
}

pub(crate) fn measure(asked: &Asked, report: &mut Report) -> Result<()> {
    println!(
        "\n-- putting bans in: one, {BATCH} and {MANY} at once, each into an empty table; and what one weighs"
    );
    println!(
        "{:<34}{:>20}{:>12}{:>12}{:>12}{:>12}{:>12}{:>8}",
        "", "one, us", "bans/s", "10k, ms", "bans/s", "1M, ms", "bans/s", "bytes"
    );
    for kind in &KINDS {
        for family in Family::BOTH {
            let name = format!("ours, XDP, {}, {}", kind.name, family.name());
            let Some(costs) = report.had(&name, of_xdp(kind, family)) else { continue };
            costs.print(&name, report);
            if kind.judged {
                judge(report, &name, &costs, 0.150);
                if let Some(one) = costs.one {
                    report.target(format!("{name}: one ban"), one.median, Bound::AtMost(5.0, "us"));
                }
                if let Some(bytes) = costs.bytes {
                    report.target(format!("{name}: bytes of a ban"), bytes, Bound::AtMost(40.0, "bytes"));
                }
            }
        }
    }
    for family in Family::BOTH {
        let name = format!("ours, nftables, {}", family.name());
        let Some(costs) = report.had(&name, of_nft(family)) else { continue };
        costs.print(&name, report);
        judge(report, &name, &costs, 4.0);
    }
    let tries = if asked.is_quick() { 10 } else { 50 };
    type Peer = fn(usize) -> Result<Costs>;
    let peers: [(&str, Peer); 6] = [
        ("xdp-filter ip, a process each", of_xdp_filter),
        ("nft add element / nft -f", of_nft_set),
        ("ipset add / ipset restore", of_ipset),
        ("iptables -I, chain of 0", |tries| of_chain(tries, 0)),
        ("iptables -I, chain of 1,000", |tries| of_chain(tries, 1_000)),
        ("iptables -I, chain of 10,000", |tries| of_chain(tries, 10_000)),
    ];
    for (name, peer) in peers {
        if let Some(costs) = report.had(name, peer(tries)) {
            costs.print(name, report);
        }
    }
    Ok(())
}

fn judge(report: &mut Report, name: &str, costs: &Costs, seconds_max: f64) {
    if let Some(many) = costs.many {
        let name = format!("{name}: a million bans in the kernel");
        report.target(name, many.as_secs_f64(), Bound::AtMost(seconds_max, "s"));
    }
}

fn of_xdp(kind: &Kind, family: Family) -> Result<Costs> {
    let mut costs = of_enforcer(family, |run| run(Ours::open(kind, MANY)?.enforcer()))?;
    let mut ours = Ours::open(kind, MANY)?;
    let maps = ours.maps()?;
    let weight: u64 = maps.iter().filter(|map| map.name != PREFILTER).map(|map| map.bytes).sum();
    costs.bytes = Some(weight as f64 / MANY as f64);
    Ok(costs)
}

fn of_nft(family: Family) -> Result<Costs> {
    let before = slab_bytes();
    let mut grown = 0.0;
    let mut costs = of_enforcer(family, |run| {
        let netns = Netns::new("nft")?;
        let mut nft = netns.enter(|| Nft::open(usize::try_from(MANY)?).map_err(anyhow::Error::from))?;
        run(&mut nft)?;
        grown = slab_bytes() - before;
        Ok(())
    })?;
    costs.bytes = costs.many.map(|_| grown / MANY as f64);
    Ok(costs)
}

/// Runs each part on an enforcer of its own, the largest last.
fn of_enforcer(
    family: Family,
    mut with_new: impl FnMut(&mut dyn FnMut(&mut dyn Enforcer) -> Result<()>) -> Result<()>,
) -> Result<Costs> {
    let now = ours::now();
    let mut costs = Costs::default();
    with_new(&mut |enforcer| {
        let singles = ours::bans(family, 0..BATCH, now);
        let mut rounds = Vec::with_capacity(singles.len());
        for single in &singles {
            let began = Instant::now();
            ours::fill(enforcer, std::slice::from_ref(single))?;
            rounds.push(began.elapsed().as_nanos() as f64 / 1e3);
        }
        costs.one = Sample::of(rounds);
        Ok(())
    })?;
    let mut all_at_once = |count: u64| -> Result<Duration> {
        let changes = ours::bans(family, 0..count, now);
        let mut took = Duration::ZERO;
        with_new(&mut |enforcer| {
            let began = Instant::now();
            ours::fill(enforcer, &changes)?;
            took = began.elapsed();
            Ok(())
        })?;
        Ok(took)
    };
    costs.batch = Some(all_at_once(BATCH)?);
    match all_at_once(MANY) {
        Ok(took) => costs.many = Some(took),
        Err(error) => costs.lacking = Some(error),
    }
    Ok(costs)
}

fn of_xdp_filter(tries: usize) -> Result<Costs> {
    let site = Site::new()?;
    let filter = XdpFilter::load(&site.host, BATCH)?;
    one_by_one(tries, |number| filter.ban(&site.host, Family::V4, number..number + 1))
}

fn of_nft_set(tries: usize) -> Result<Costs> {
    let first = Netns::new("nft")?;
    netfilter::nft_set(&first, MANY, 0..0)?;
    let mut costs = one_by_one(tries, |number| netfilter::nft_add(&first, number..number + 1))?;
    let (second, third) = (Netns::new("nft")?, Netns::new("nft")?);
    for netns in [&second, &third] {
        netfilter::nft_set(netns, MANY, 0..0)?;
    }
    costs.batch = Some(timed(|| netfilter::nft_add(&second, 0..BATCH))?);
    let before = slab_bytes();
    costs.many = Some(timed(|| netfilter::nft_add(&third, 0..MANY))?);
    costs.bytes = Some((slab_bytes() - before) / MANY as f64);
    Ok(costs)
}

fn of_ipset(tries: usize) -> Result<Costs> {
    let first = Netns::new("ipset")?;
    netfilter::ipset(&first, MANY, 0..0)?;
    let mut costs = one_by_one(tries, |number| {
        let source = Family::V4.source(number).to_string();
        first.run("ipset", &["add", "banned", &source]).map(drop)
    })?;
    let (second, third) = (Netns::new("ipset")?, Netns::new("ipset")?);
    for netns in [&second, &third] {
        netfilter::ipset(netns, MANY, 0..0)?;
    }
    costs.batch = Some(timed(|| netfilter::ipset_add(&second, 0..BATCH))?);
    let before = slab_bytes();
    costs.many = Some(timed(|| netfilter::ipset_add(&third, 0..MANY))?);
    costs.bytes = Some((slab_bytes() - before) / MANY as f64);
    Ok(costs)
}

fn of_chain(tries: usize, rules: u64) -> Result<Costs> {
    let netns = Netns::new("chain")?;
    netfilter::chain(&netns, 0..rules)?;
    one_by_one(tries, |number| netfilter::chain_insert(&netns, rules + number))
}

fn one_by_one(tries: usize, mut ban: impl FnMut(u64) -> Result<()>) -> Result<Costs> {
    let mut rounds = Vec::with_capacity(tries);
    for number in 0..tries {
        let took = timed(|| ban(number as u64))?;
        rounds.push(took.as_nanos() as f64 / 1e3);
    }
    Ok(Costs { one: Sample::of(rounds), ..Costs::default() })
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}

/// Kernel memory that cannot be given back, where sets lie; it moves a little by itself (proc(5)).
fn slab_bytes() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1_024.0
}
