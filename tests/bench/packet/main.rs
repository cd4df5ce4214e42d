//! Packet path: what a packet costs, banned and honest, here and with other tools in the same run; what bans cost to
//! put in and to hold; and what an honest client has left while a flood runs.
//!
//! It prints figures, ratios and which targets are met; it asserts only that what it measures does its work. All of it
//! runs in network namespaces and a mount namespace of its own, so nothing of the machine is touched.
//!
//! Arguments: names of sections, all when there are none, and `--quick` for fewer rounds.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use blocker::enforce::xdp;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use xtask::lab::missing;

#[path = "../../common/bpf.rs"]
mod bpf;
mod calls;
mod flood;
#[path = "../../common/frame.rs"]
#[expect(dead_code, reason = "the tests use the other kinds of frames")]
mod frame;
mod honest;
mod micro;
mod ours;
mod peers;
mod population;
mod report;
mod site;
mod spray;
mod syscalls;
mod updates;

use report::Report;
use spray::Spray;

/// What was asked for.
pub(crate) struct Asked {
    quick: bool,
    sections: Vec<String>,
}

const SECTIONS: [&str; 5] = ["calls", "micro", "bans", "flood", "honest"];

impl Asked {
    fn from_arguments() -> Result<Self> {
        // Cargo adds `--bench` by itself.
        let (flags, sections): (Vec<String>, Vec<String>) =
            std::env::args().skip(1).filter(|word| word != "--bench").partition(|word| word.starts_with('-'));
        if let Some(unknown) = flags.iter().find(|flag| *flag != "--quick") {
            bail!("{unknown}: there is only --quick");
        }
        if let Some(unknown) = sections.iter().find(|section| !SECTIONS.contains(&section.as_str())) {
            bail!("{unknown}: the sections are {}", SECTIONS.join(", "));
        }
        Ok(Self { quick: !flags.is_empty(), sections })
    }

    fn wants(&self, section: &str) -> bool {
        self.sections.is_empty() || self.sections.iter().any(|asked| asked == section)
    }

    pub(crate) fn is_quick(&self) -> bool {
        self.quick
    }

    pub(crate) fn rounds(&self) -> u64 {
        if self.quick { 3 } else { 9 }
    }

    pub(crate) fn repeat(&self) -> u32 {
        if self.quick { 200_000 } else { 500_000 }
    }

    pub(crate) fn flood_rounds(&self) -> u64 {
        if self.quick { 2 } else { 7 }
    }

    /// How long an honest client sends.
    pub(crate) fn transfer(&self) -> Duration {
        Duration::from_secs(if self.quick { 1 } else { 4 })
    }

    /// Frames of one flood.
    pub(crate) fn burst(&self) -> u32 {
        if self.quick { 40_000 } else { 200_000 }
    }
}

fn main() -> Result<()> {
    let asked = Asked::from_arguments()?;
    if let Some(reason) = missing() {
        println!("not measured: {reason}");
        return Ok(());
    }
    if !xdp::is_built_in() {
        println!("not measured: XDP was not built in");
        return Ok(());
    }
    own_mounts().context("take a mount namespace with a bpffs of its own")?;
    let mut report = Report::default();
    let mut spray = Spray::load()?;
    type Section = fn(&Asked, &mut Spray, &mut Report) -> Result<()>;
    let sections: [(&str, Section); SECTIONS.len()] = [
        ("calls", |_, _, report| calls::check(report)),
        ("micro", micro::measure),
        ("bans", |asked, _, report| updates::measure(asked, report)),
        ("flood", flood::measure),
        ("honest", honest::measure),
    ];
    for (name, section) in sections.into_iter().filter(|(name, _)| asked.wants(name)) {
        if let Err(error) = section(&asked, &mut spray, &mut report) {
            report.lacks(&format!("the section {name}"), &error);
        }
    }
    report.print();
    Ok(())
}

/// Other tools pin at fixed places of bpffs, so here is one that nobody else sees.
fn own_mounts() -> Result<()> {
    // SAFETY: there is one thread yet, so no other one loses what it shares with this one.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None)?;
    Ok(())
}
