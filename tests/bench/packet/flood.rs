//! CPU time per packet of a flood over veth, the generator taken off: no filter, a bare `return XDP_DROP`, ours, and
//! the others, in turns.

use std::{any::Any, ops::Range, path::Path};

use anyhow::{Result, ensure};
use blocker::enforce::nft::Nft;

use crate::{
    Asked,
    ours::{self, KINDS, Pins},
    peers::{netfilter, xdp_filter::XdpFilter},
    report::{Bound, Report, Sample},
    site::Site,
    spray::{Family, Spray, Traffic},
};

/// Traffics of this part, in the order of the columns.
const TRAFFICS: [Traffic; 3] = [Traffic::BannedHot, Traffic::BannedRandom, Traffic::HonestRandom];
const NO_FILTER: &str = "no filter";
const DISCARD: &str = "return XDP_DROP";

/// One guarded host.
pub(crate) struct Guarded {
    pub(crate) name: String,
    pub(crate) bans: u64,
    pub(crate) judged: bool,
    pub(crate) site: Site,
    /// What guards it, as long as this is held.
    _guard: Box<dyn Any>,
}

/// What can guard a host.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Guard {
    Nothing,
    Discard,
    Xdp(&'static ours::Kind),
    Nftables,
    XdpFilter,
    NftSet,
    Ipset,
    Chain,
}

impl Guard {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Nothing => NO_FILTER.to_owned(),
            Self::Discard => DISCARD.to_owned(),
            Self::Xdp(kind) => format!("ours, XDP, {}", kind.name),
            Self::Nftables => "ours, nftables".to_owned(),
            Self::XdpFilter => "xdp-filter".to_owned(),
            Self::NftSet => "nftables timeout set".to_owned(),
            Self::Ipset => "ipset, raw table".to_owned(),
            Self::Chain => "iptables chain of fail2ban".to_owned(),
        }
    }

    /// Every guard that is asked for so many bans.
    fn all(bans: u64) -> Vec<Self> {
        let mut all = vec![Self::Nothing, Self::Discard];
        all.extend(KINDS.iter().map(Self::Xdp));
        all.extend([Self::Nftables, Self::XdpFilter, Self::NftSet, Self::Ipset]);
        if bans <= CHAIN_MAX {
            all.push(Self::Chain);
        }
        all
    }

    /// Sets it up with the first `bans` sources banned.
    pub(crate) fn set_up(self, spray: &mut Spray, bans: u64) -> Result<Guarded> {
        let site = Site::new()?;
        let now = ours::now();
        let pins = Pins(Path::new("/sys/fs/bpf").join(site.host.name()));
        let guard: Box<dyn Any> = match self {
            Self::Nothing => Box::new(()),
            Self::Discard => {
                site.host.enter(|| spray.attach_discard())?;
                Box::new(())
            }
            Self::Xdp(kind) => {
                let mut xdp = site.host.enter(|| ours::open_here(kind, bans, &pins))?;
                ours::fill(&mut xdp, &ours::bans(Family::V4, 0..bans, now))?;
                Box::new((xdp, pins))
            }
            Self::Nftables => {
                let mut nft = site.host.enter(|| Nft::open(usize::try_from(bans).unwrap_or(usize::MAX)))?;
                ours::fill(&mut nft, &ours::bans(Family::V4, 0..bans, now))?;
                Box::new(nft)
            }
            Self::XdpFilter => {
                let filter = XdpFilter::load(&site.host, bans)?;
                filter.ban(&site.host, Family::V4, 0..bans)?;
                Box::new(filter)
            }
            Self::NftSet => Box::new(netfilter::nft_set(&site.host, bans, 0..bans)?),
            Self::Ipset => Box::new(netfilter::ipset(&site.host, bans, 0..bans)?),
            Self::Chain => Box::new(netfilter::chain(&site.host, 0..bans)?),
        };
        let judged = matches!(self, Self::Xdp(kind) if kind.judged);
        Ok(Guarded { name: self.name(), bans, judged, site, _guard: guard })
    }
}

/// The longest chain that anybody would wait for.
const CHAIN_MAX: u64 = 10_000;
const SIZES: [u64; 4] = [100, 1_000, 10_000, 1_000_000];

pub(crate) fn measure(asked: &Asked, spray: &mut Spray, report: &mut Report) -> Result<()> {
    println!(
        "\n-- flood over veth: CPU ns per packet without the generator's, minimum / median of {} rounds",
        asked.flood_rounds()
    );
    for bans in SIZES {
        let guards = match bans {
            // Their cost depends on the number of bans; that of the others hardly.
            100 | 10_000 => vec![Guard::Chain],
            _ => Guard::all(bans),
        };
        stage(asked, spray, report, bans, &guards)?;
    }
    Ok(())
}

fn stage(asked: &Asked, spray: &mut Spray, report: &mut Report, bans: u64, guards: &[Guard]) -> Result<()> {
    let mut all = Vec::new();
    for guard in guards {
        let guarded = guard.set_up(spray, bans);
        all.extend(report.had(&format!("{}, {bans} bans, flood", guard.name()), guarded));
    }
    let mut making: [Vec<f64>; TRAFFICS.len()] = Default::default();
    let mut rounds: Vec<[Vec<f64>; TRAFFICS.len()]> = all.iter().map(|_| Default::default()).collect();
    for round in 0..asked.flood_rounds() {
        for (guarded, costs) in all.iter().zip(&mut rounds) {
            for (place, traffic) in TRAFFICS.into_iter().enumerate() {
                if traffic.is_banned() && guarded.name == NO_FILTER
                    || !traffic.is_banned() && guarded.name == DISCARD
                {
                    continue;
                }
                let (made, cost) = cost(spray, guarded, traffic, asked.burst(), round)?;
                making[place].push(made);
                costs[place].push(cost);
            }
        }
    }
    println!(
        "\n{:<32}{}",
        format!("{bans} bans"),
        TRAFFICS.map(|traffic| format!("{:>24}", traffic.name())).concat()
    );
    let makers = std::iter::once(("making frames, taken off", &making));
    for (name, costs) in makers.chain(all.iter().map(|guarded| guarded.name.as_str()).zip(&rounds)) {
        let mut line = format!("{name:<32}");
        for costs in costs {
            line += &match Sample::of(costs.clone()) {
                Some(sample) => format!("{:>14.0} /{:>8.0}", sample.min, sample.median),
                None => format!("{:>24}", "-"),
            };
        }
        println!("{line}");
    }
    let hot = |name: &dyn Fn(&Guarded) -> bool| {
        let place = all.iter().position(name)?;
        Sample::of(rounds[place][0].clone())
    };
    if let (Some(ours), Some(bare)) =
        (hot(&|guarded| guarded.judged), hot(&|guarded| guarded.name == DISCARD))
    {
        let name = format!("flood, {bans} bans, banned, one source: of a bare XDP_DROP");
        report.target(name, ours.ratio(bare), Bound::AtMost(1.10, "x"));
    }
    Ok(())
}

/// Nanoseconds that a packet of this traffic costs to make, and then the host.
fn cost(
    spray: &mut Spray,
    guarded: &Guarded,
    traffic: Traffic,
    count: u32,
    round: u64,
) -> Result<(f64, f64)> {
    let numbers: Range<u64> = traffic.numbers(guarded.bans);
    // A chain of thousands of rules takes long enough with fewer.
    let count = if guarded.name == Guard::Chain.name() { count / 8 } else { count };
    let making = guarded.site.generator(spray, &numbers, count, round)?;
    let burst = guarded.site.burst(spray, &numbers, count, round)?;
    ensure!(
        burst.received > u64::from(count) / 10,
        "{}: {} of {count} frames arrived",
        guarded.name,
        burst.received
    );
    let delivered = if traffic.is_banned() { 0 } else { burst.received };
    let near = burst.delivered.abs_diff(delivered) <= 64;
    ensure!(
        near,
        "{}, {}: {} of {} packets went on to TCP",
        guarded.name,
        traffic.name(),
        burst.delivered,
        burst.received
    );
    Ok((making, (burst.cpu_ns - making * f64::from(count)) / burst.received as f64))
}
