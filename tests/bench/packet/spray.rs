//! Running a program on many sources, and the floor that this costs by itself.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
    time::Duration,
};

use anyhow::{Context, Error, Result};
use aya::{
    Ebpf,
    maps::Array,
    programs::{Xdp, XdpMode},
};
use rustix::time::{ClockId, clock_gettime};
use xtask::lab::Netns;

use crate::{
    bpf::{self, XDP_DROP, XDP_PASS},
    frame, population, syscalls,
};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6 /64",
        }
    }

    /// The source with this number.
    pub(crate) fn source(self, number: u64) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from_bits(population::v4(number)).into(),
            Self::V6 => Ipv6Addr::from_bits(v6(number)).into(),
        }
    }
}

/// The whole address of the IPv6 source with this number.
pub(crate) fn v6(number: u64) -> u128 {
    u128::from(population::v6(number)) << 64 | 1
}

/// Who sends: banned sources have the lowest numbers, so every other is honest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    BannedHot,
    BannedRandom,
    HonestHot,
    HonestTenThousand,
    HonestRandom,
}

/// No ban of the bench has a number as high.
const HONEST_FIRST: u64 = 1 << 24;

impl Traffic {
    pub(crate) const ALL: [Self; 5] =
        [Self::BannedHot, Self::BannedRandom, Self::HonestHot, Self::HonestTenThousand, Self::HonestRandom];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BannedHot => "banned, one source",
            Self::BannedRandom => "banned, random",
            Self::HonestHot => "honest, one source",
            Self::HonestTenThousand => "honest, 10,000",
            Self::HonestRandom => "honest, random",
        }
    }

    pub(crate) fn is_banned(self) -> bool {
        matches!(self, Self::BannedHot | Self::BannedRandom)
    }

    /// The numbers of its sources, where the first `bans` are banned.
    pub(crate) fn numbers(self, bans: u64) -> Range<u64> {
        match self {
            Self::BannedHot => bans / 2..bans / 2 + 1,
            Self::BannedRandom => 0..bans,
            Self::HonestHot => HONEST_FIRST..HONEST_FIRST + 1,
            Self::HonestTenThousand => HONEST_FIRST..HONEST_FIRST + 10_000,
            Self::HonestRandom => HONEST_FIRST..population::V4_COUNT,
        }
    }

    fn is_hot(self) -> bool {
        matches!(self, Self::BannedHot | Self::HonestHot)
    }
}

/// A loaded XDP program, and whether it is of the kind that takes fragments.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) fd: OwnedFd,
    pub(crate) frags: bool,
}

impl Program {
    /// The program `return verdict;`.
    pub(crate) fn returning(verdict: u32) -> Self {
        Self { fd: bpf::floor(verdict, syscalls::BPF_F_XDP_HAS_FRAGS), frags: true }
    }
}

/// The programs of `kernel.rs`, loaded.
#[derive(Debug)]
pub(crate) struct Spray {
    ebpf: Ebpf,
    pass: Program,
    drop: Program,
    /// Where `flood` is attached and nothing comes: the kernel takes tens of milliseconds to run an XDP program that is
    /// attached nowhere.
    _parked: [Netns; 2],
}

impl Spray {
    /// Builds and loads them.
    pub(crate) fn load() -> Result<Self> {
        let object = xtask::build::bench_object()?;
        let mut ebpf = Ebpf::load_file(&object).with_context(|| format!("load {}", object.display()))?;
        for name in ["parse", "spray", "spray_frags", "flood", "flood_nowhere", "discard"] {
            xdp(&mut ebpf, name)?.load().with_context(|| format!("load the program {name}"))?;
        }
        let parked = [Netns::new("parked")?, Netns::new("peer")?];
        parked[0].link("eth0", &parked[1], "eth0")?;
        let attached =
            parked[0].enter(|| xdp(&mut ebpf, "flood")?.attach("eth0", XdpMode::Driver).map_err(Error::from));
        attached.context("attach a program natively to a veth")?;
        let (pass, drop) = (Program::returning(XDP_PASS), Program::returning(XDP_DROP));
        Ok(Self { ebpf, pass, drop, _parked: parked })
    }

    /// Attaches `discard` natively to `eth0` of the caller's network namespace.
    pub(crate) fn attach_discard(&mut self) -> Result<()> {
        xdp(&mut self.ebpf, "discard")?.attach("eth0", XdpMode::Driver)?;
        Ok(())
    }

    /// Where the flood goes: the interface, and the sums of its frame's headers.
    pub(crate) fn send_by(&mut self, way: [u64; 3]) -> Result<()> {
        Ok(Array::<_, [u64; 3]>::try_from(self.map("WAY")?)?.set(0, way, 0)?)
    }

    /// One of them.
    pub(crate) fn program(&mut self, name: &str) -> Result<Program> {
        let fd = xdp(&mut self.ebpf, name)?.fd()?.as_fd().try_clone_to_owned()?;
        Ok(Program { fd, frags: false })
    }

    /// From which sources frames come next.
    pub(crate) fn draw_from(&mut self, numbers: &Range<u64>, seed: u64) -> Result<()> {
        let mut draw = Array::<_, [u64; 3]>::try_from(self.map("DRAW")?)?;
        Ok(draw.set(0, [seed, numbers.start, numbers.end - numbers.start], 0)?)
    }

    fn map(&mut self, name: &str) -> Result<&mut aya::maps::Map> {
        self.ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))
    }

    /// Nanoseconds per packet, of CPU time: what a neighbour of the virtual machine takes is not in it.
    pub(crate) fn run(
        &mut self,
        program: &Program,
        family: Family,
        traffic: Traffic,
        bans: u64,
        repeat: u32,
        seed: u64,
    ) -> Result<f64> {
        let numbers = traffic.numbers(bans);
        let frame = frame::tcp(family.source(numbers.start));
        let program = if traffic.is_hot() {
            program.fd.as_raw_fd()
        } else {
            self.draw_from(&numbers, seed)?;
            self.before(program)?
        };
        let before = cpu_time();
        bpf::test_run(program, &frame, repeat);
        Ok((cpu_time() - before).as_nanos() as f64 / f64::from(repeat))
    }

    /// The program that gives every frame another source and goes on with this one.
    fn before(&mut self, program: &Program) -> Result<RawFd> {
        let (spray, array) = if program.frags { ("spray_frags", "NEXT_FRAGS") } else { ("spray", "NEXT") };
        let map = self.map(array)?;
        let aya::maps::Map::ProgramArray(data) = map else { anyhow::bail!("{array} is no program array") };
        syscalls::follow(data.fd().as_fd().as_raw_fd(), program.fd.as_raw_fd())
            .context("let a program be followed by the one to measure")?;
        Ok(xdp(&mut self.ebpf, spray)?.fd()?.as_fd().as_raw_fd())
    }

    /// What measuring costs by itself: the program that only returns the verdict of this traffic.
    pub(crate) fn floor(
        &mut self,
        family: Family,
        traffic: Traffic,
        bans: u64,
        repeat: u32,
        seed: u64,
    ) -> Result<f64> {
        let program = if traffic.is_banned() { &self.drop } else { &self.pass };
        let program = Program { fd: program.fd.try_clone()?, frags: true };
        self.run(&program, family, traffic, bans, repeat, seed)
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// CPU time of this thread.
pub(crate) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
