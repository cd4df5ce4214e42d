//! `cargo xtask bench`: figures as ratios within one run; nothing here asserts a time.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{build, setup, workspace};

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bench {
    /// What a packet and a ban cost, here and with other tools that drop by source address.
    Packet,
    /// Lines per second, beside other tools on the same files.
    Log,
    /// The dearest line of 64 KiB for each filter, shipped and imported.
    Longline,
    /// A million bans: a start, a listing, memory.
    Restore,
    /// Resident memory under a flood of addresses.
    Memory,
    /// The file source: catching up, live, many files, and logrotate.
    Source,
    /// From the log line to the kernel, and to the first packet dropped; and the idle agent's memory.
    Latency,
    /// Packets of banned sources that get through while programs, tables and the agent are swapped: none.
    Gap,
}

/// Runs the named benchmarks, or all, with these arguments.
///
/// # Errors
/// When one cannot be built or run.
pub fn run(which: &[Bench], args: &[String]) -> Result<()> {
    setup::ensure(&[setup::Need::CLibraries, setup::Need::Bpf, setup::Need::Lab])?;
    build::object()?;
    let all = [
        Bench::Packet,
        Bench::Log,
        Bench::Longline,
        Bench::Memory,
        Bench::Source,
        Bench::Latency,
        Bench::Gap,
        Bench::Restore,
    ];
    for bench in if which.is_empty() { &all } else { which } {
        let name = match bench {
            Bench::Packet => "packet",
            Bench::Log => "log",
            Bench::Longline => "longline",
            Bench::Memory => "memory",
            Bench::Restore => "restore",
            Bench::Source => "source",
            Bench::Latency => "latency",
            Bench::Gap => "gap",
        };
        // What it is compared with.
        match bench {
            Bench::Packet => setup::ensure(&[setup::Need::Filters])?,
            Bench::Gap | Bench::Restore => {}
            _ => setup::ensure(&[setup::Need::Incumbent, setup::Need::Peers])?,
        }
        println!("\n== {name}");
        let mut command = Command::new("cargo");
        command.args(["bench", "--quiet", "--package", "blocker", "--bench", name]).current_dir(workspace());
        command.arg("--").args(args);
        let status = command.status()?;
        if !status.success() {
            bail!("the {name} benchmark: {status}");
        }
    }
    Ok(())
}
