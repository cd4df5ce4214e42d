//! Nanoseconds per packet through BPF_PROG_TEST_RUN: floors, ours, and xdp-filter, in turns so that all have the same
//! weather.

use anyhow::{Result, ensure};
use xtask::lab::Netns;

use crate::{
    Asked,
    ours::{self, KINDS, Kind, Ours},
    peers::xdp_filter::XdpFilter,
    report::{Bound, Report, Sample},
    spray::{Family, Program, Spray, Traffic},
};

const SIZES: [u64; 4] = [0, 1_000, 100_000, 1_000_000];
/// Of the packets of random honest sources, so many in a thousand may be inside a banned prefix.
const INSIDE_PREFIXES_MAX: u64 = 20;

/// One program among those that are measured in turns.
struct Contender {
    name: String,
    program: Program,
    /// Of ours.
    kind: Option<&'static Kind>,
    has_prefixes: bool,
    rounds: [Vec<f64>; Traffic::ALL.len()],
}

const XDP_FILTER: &str = "xdp-filter";

pub(crate) fn measure(asked: &Asked, spray: &mut Spray, report: &mut Report) -> Result<()> {
    println!(
        "\n-- ns per packet above the floor, minimum / median of {} rounds of {} packets; x xdp-filter's median",
        asked.rounds(),
        asked.repeat()
    );
    for family in Family::BOTH {
        for bans in SIZES {
            stage(asked, spray, report, family, bans)?;
        }
    }
    Ok(())
}

fn stage(asked: &Asked, spray: &mut Spray, report: &mut Report, family: Family, bans: u64) -> Result<()> {
    let now = ours::now();
    let changes = ours::bans(family, 0..bans, now);
    let prefixes = ours::prefixes(family, now);
    let mut contenders = vec![Contender::new("parse only", spray.program("parse")?)];
    let mut all_ours = Vec::new();
    for kind in &KINDS {
        let variants: &[bool] = if kind.judged { &[false, true] } else { &[false] };
        for &has_prefixes in variants {
            let mut ours = Ours::open(kind, bans + prefixes.len() as u64)?;
            ours::fill(ours.enforcer(), &changes)?;
            if has_prefixes {
                ours::fill(ours.enforcer(), &prefixes)?;
            }
            verify(spray, &mut ours, family, bans, has_prefixes)?;
            let with = if has_prefixes { ", prefixes too" } else { "" };
            let mut contender = Contender::new(format!("ours, {}{with}", kind.name), ours.program()?);
            (contender.kind, contender.has_prefixes) = (Some(kind), has_prefixes);
            contenders.push(contender);
            all_ours.push(ours);
        }
    }
    drop((changes, prefixes));
    let (netns, peer) = (Netns::new("filter")?, Netns::new("peer")?);
    netns.link("eth0", &peer, "eth0")?;
    let filter = XdpFilter::load(&netns, bans).and_then(|filter| {
        filter.ban(&netns, family, 0..bans)?;
        contenders
            .push(Contender::new(XDP_FILTER, Program { fd: filter.program().fd.try_clone()?, frags: false }));
        Ok(filter)
    });
    let filter = report.had(XDP_FILTER, filter);

    let mut floors: [Vec<f64>; Traffic::ALL.len()] = Default::default();
    for round in 0..asked.rounds() {
        for (place, traffic) in traffics(bans) {
            floors[place].push(spray.floor(family, traffic, bans, asked.repeat(), round)?);
            for contender in &mut contenders {
                let ns = spray.run(&contender.program, family, traffic, bans, asked.repeat(), round)?;
                contender.rounds[place].push(ns);
            }
        }
    }
    drop(filter);
    print(report, family, bans, &floors, &contenders);
    Ok(())
}

/// Those that there are with so many bans, and their places.
fn traffics(bans: u64) -> impl Iterator<Item = (usize, Traffic)> {
    Traffic::ALL.into_iter().enumerate().filter(move |(_, traffic)| bans > 0 || !traffic.is_banned())
}

/// A program that drops too little or too much is not worth measuring: its own count must be what was sent.
fn verify(spray: &mut Spray, ours: &mut Ours, family: Family, bans: u64, has_prefixes: bool) -> Result<()> {
    const PACKETS: u32 = 50_000;
    let program = ours.program()?;
    for (_, traffic) in traffics(bans) {
        let before = ours.dropped()?;
        spray.run(&program, family, traffic, bans, PACKETS, 1)?;
        let dropped = ours.dropped()? - before;
        let right = match (traffic.is_banned(), has_prefixes) {
            (true, _) => dropped == u64::from(PACKETS),
            (false, false) => dropped == 0,
            (false, true) => dropped <= u64::from(PACKETS) * INSIDE_PREFIXES_MAX / 1_000,
        };
        ensure!(
            right,
            "{} packets {}, {bans} bans: {dropped} of {PACKETS} dropped",
            family.name(),
            traffic.name()
        );
    }
    Ok(())
}

impl Contender {
    fn new(name: impl Into<String>, program: Program) -> Self {
        Self { name: name.into(), program, kind: None, has_prefixes: false, rounds: Default::default() }
    }

    fn above(&self, floors: &[Vec<f64>; Traffic::ALL.len()], place: usize) -> Option<Sample> {
        Some(Sample::of(self.rounds[place].clone())?.above(Sample::of(floors[place].clone())?))
    }
}

fn print(
    report: &mut Report,
    family: Family,
    bans: u64,
    floors: &[Vec<f64>; Traffic::ALL.len()],
    contenders: &[Contender],
) {
    let title = format!("{}, {bans} bans", family.name());
    println!("\n{title:<26}{}", Traffic::ALL.map(|traffic| format!("{:>22}", traffic.name())).concat());
    let floor = |place: usize| match Sample::of(floors[place].clone()) {
        Some(sample) => format!("{:>8.1} /{:>6.1}      ", sample.min, sample.median),
        None => format!("{:>22}", "-"),
    };
    println!("{:<26}{}", "return only (the floor)", (0..Traffic::ALL.len()).map(floor).collect::<String>());
    let reference = contenders.iter().find(|contender| contender.name == XDP_FILTER);
    for contender in contenders {
        let mut line = format!("{:<26}", contender.name);
        for (place, traffic) in Traffic::ALL.into_iter().enumerate() {
            let Some(sample) = contender.above(floors, place) else {
                line += &format!("{:>22}", "-");
                continue;
            };
            let ratio = reference.and_then(|filter| Some(sample.ratio(filter.above(floors, place)?)));
            let shown = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}x"));
            line += &format!("{:>8.1} /{:>6.1} {shown:>5}", sample.min, sample.median);
            if let (Some(kind), Some(ratio), Some(bound)) = (contender.kind, ratio, bound(traffic, bans))
                && kind.judged
                && !contender.has_prefixes
            {
                let name = format!("{}, {bans} bans, {}: of xdp-filter", family.name(), traffic.name());
                report.target(name, ratio, Bound::AtMost(bound, "x"));
            }
        }
        println!("{}", line.trim_end());
    }
}

/// The most that a packet may cost, as a part of what it costs xdp-filter.
fn bound(traffic: Traffic, bans: u64) -> Option<f64> {
    match (traffic, bans) {
        (Traffic::BannedHot, 1_000..) => Some(0.20),
        (Traffic::BannedRandom, 1_000) => Some(0.33),
        (Traffic::BannedRandom, 1_000_000) => Some(0.40),
        (Traffic::HonestTenThousand, 1_000 | 1_000_000) => Some(0.20),
        _ => None,
    }
}
