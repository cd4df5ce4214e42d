//! `cargo xtask vm`: the enforcers' conformance suites on kernels of distributions, each in an emulated machine.
//!
//! A guest holds the same test binaries that `cargo test` runs here, and ends with the agent saying how it enforces
//! on that kernel: the mode it got, and why not a better one. Guests have no network device.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    build,
    lab::{self, shown},
    setup,
    test::Counts,
    workspace,
};

mod cpio;
mod image;
mod machine;
mod packages;
mod transcript;

pub use packages::missing;
use transcript::{Outcome, Transcript};

/// The kernel of a Debian release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kernel {
    /// Debian 11's.
    #[value(name = "5.10")]
    Bullseye,
    /// Debian 12's.
    #[value(name = "6.1")]
    Bookworm,
    /// Debian 13's.
    #[value(name = "6.12")]
    Trixie,
}

/// Every kernel there is.
pub const KERNELS: [Kernel; 3] = [Kernel::Bullseye, Kernel::Bookworm, Kernel::Trixie];

impl Kernel {
    /// The code name of the release.
    fn release(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bullseye => "5.10",
            Self::Bookworm => "6.1",
            Self::Trixie => "6.12",
        })
    }
}

/// The test binaries that a guest runs.
const SUITES: [&str; 7] =
    ["attach", "enforcers", "xdp_program", "nftables", "frames", "connections", "dispatcher"];

/// Tests that take minutes where a processor is emulated and say nothing about its kernel.
const LEFT_OUT: [&str; 3] = [
    "many_bans_are_spread_over_sets_that_a_later_agent_finds",
    "a_million_and_five_million_bans_are_in_force_and_only_they",
    "after_every_batch_the_program_drops_what_a_plain_set_says",
];

/// One start of the agent in a guest, to see what it makes of the kernel.
struct Trial {
    name: &'static str,
    /// Arguments of `ip`, a line each.
    links: &'static str,
    /// Lines of `[enforce]`.
    enforce: &'static str,
}

const VETH: &str = "link add eth0 type veth peer name peer0\nlink set peer0 up\nlink set eth0 up\naddr add 198.51.100.1/24 dev eth0\n";

const TRIALS: [Trial; 4] = [
    Trial { name: "auto on a veth", links: VETH, enforce: "interfaces = [\"eth0\"]" },
    Trial {
        name: "auto on a veth of MTU 9000",
        links: "link add eth0 mtu 9000 type veth peer name peer0 mtu 9000\nlink set peer0 up\nlink set eth0 up\naddr add 198.51.100.1/24 dev eth0\n",
        enforce: "interfaces = [\"eth0\"]",
    },
    Trial {
        name: "auto on a device without native XDP",
        links: "link add eth0 type dummy\nlink set eth0 up\naddr add 198.51.100.1/24 dev eth0\n",
        enforce: "interfaces = [\"eth0\"]",
    },
    Trial { name: "nftables", links: VETH, enforce: "backend = \"nftables\"" },
];

impl Trial {
    fn config(&self) -> String {
        format!("[enforce]\n{}\n", self.enforce)
    }
}

/// Downloads what [`boot`] needs, unless it is there.
///
/// # Errors
/// When it cannot be had.
pub fn prepare(kernel: Kernel) -> Result<()> {
    packages::kernel(kernel, &packages::tools()?).map(drop)
}

/// Boots these kernels, or all, with these suites, or all, and says what came of each.
///
/// # Errors
/// When something failed on one of them, or a kernel could not be booted.
pub fn run(kernels: &[Kernel], suites: &[String]) -> Result<()> {
    if let Some(reason) = missing() {
        bail!(reason);
    }
    if let Some(unknown) = suites.iter().find(|suite| !SUITES.contains(&suite.as_str())) {
        bail!("there is no suite {unknown}; there are: {}", SUITES.join(", "));
    }
    let suites: Vec<&str> = suites.iter().map(String::as_str).collect();
    setup::ensure(&[setup::Need::CLibraries, setup::Need::Bpf, setup::Need::Lab])?;
    build::object()?;
    let mut failed = Vec::new();
    for kernel in if kernels.is_empty() { &KERNELS } else { kernels } {
        let good = match prepare(*kernel)
            .and_then(|()| boot(*kernel, if suites.is_empty() { &SUITES } else { &suites }))
        {
            Ok(counts) => counts.failed == 0,
            Err(error) => {
                println!("{kernel}: {error:#}");
                false
            }
        };
        if !good {
            failed.push(kernel.to_string());
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed on {}", failed.join(", ")) }
}

/// Boots one kernel, prints what came of it, and counts it.
///
/// # Errors
/// When it cannot be had or booted, or did not come to an end.
pub fn boot(kernel: Kernel, suites: &[&str]) -> Result<Counts> {
    let began = Instant::now();
    let tools = packages::tools()?;
    let files = packages::kernel(kernel, &tools)?;
    let tested = image::Tested { suites: binaries(suites)?, agent: build::agent(build::Profile::Debug)? };
    let (logs, scratch) = (workspace().join("target/vm"), lab::Scratch::new("vm")?);
    fs::create_dir_all(&logs)?;
    let archive = scratch.join("initramfs");
    image::write(&archive, &tested, &files, &tools)?;
    println!("\n== {kernel}: {}", files.version);
    println!("left out, since a processor is emulated here: {}", LEFT_OUT.join(", "));
    let (console, log) = (logs.join(format!("{kernel}.console")), logs.join(format!("{kernel}.log")));
    let transcript = machine::run(&files, &archive, &tools, &console, &log)?;
    let counts = print(&transcript, &log);
    println!(
        "{kernel}: {} passed, {} failed, {} skipped in {} s",
        counts.passed,
        counts.failed,
        counts.skipped,
        began.elapsed().as_secs()
    );
    Ok(counts)
}

/// Builds the test binaries and says where they are.
fn binaries(suites: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Artifact {
        #[serde(default)]
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(serde::Deserialize)]
    struct Target {
        name: String,
    }
    let mut command = Command::new("cargo");
    command.args(["test", "--quiet", "--package", "blocker", "--no-run", "--message-format", "json"]);
    command.args(suites.iter().flat_map(|suite| ["--test", suite]));
    command.current_dir(workspace()).stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("start {}", shown(&command)))?;
    if !output.status.success() {
        bail!("{}: {}", shown(&command), output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let artifacts = text.lines().filter_map(|line| serde_json::from_str::<Artifact>(line).ok());
    let found: BTreeMap<String, PathBuf> =
        artifacts.filter_map(|artifact| Some((artifact.target?.name, artifact.executable?))).collect();
    let wanted = |suite: &&str| Some(((*suite).to_owned(), found.get(*suite)?.clone()));
    let built: BTreeMap<String, PathBuf> = suites.iter().filter_map(wanted).collect();
    if built.len() < suites.len() {
        bail!("cargo built only {} of {}", built.len(), suites.join(", "));
    }
    Ok(built)
}

/// Says which tests passed and failed, and how the agent enforces there; the rest is in `log`.
fn print(transcript: &Transcript, log: &Path) -> Counts {
    let mut counts = Counts::default();
    for (name, suite) in &transcript.suites {
        counts.add(suite.counts);
        println!(
            "{name}: {} passed, {} failed, {} skipped",
            suite.counts.passed, suite.counts.failed, suite.counts.skipped
        );
        suite.passed.iter().for_each(|test| println!("  passed {test}"));
        suite.failed.iter().for_each(|test| println!("  FAILED {test}"));
        suite.lacking.iter().for_each(|test| println!("  degraded {test}"));
        suite.skipped.iter().for_each(|test| println!("  SKIPPED: {test}"));
        if !suite.is_good() {
            suite.output.iter().for_each(|line| println!("    {line}"));
            if suite.counts.failed == 0 {
                println!("  FAILED {name}: it ended with {:?} before its tests did", suite.status);
                counts.failed += 1;
            }
        }
    }
    for (name, outcome) in &transcript.trials {
        match outcome {
            Outcome::Runs(status) => {
                let backend = &status.backend;
                println!("{name}: {} on {}", backend.name, backend.attachments.join(", "));
                println!("  {}", backend.reason);
                for line in status.degraded.iter().chain(&status.warnings) {
                    println!("  {line}");
                }
                counts.passed += 1;
            }
            Outcome::Refused(printed) => {
                println!("{name}: FAILED, the agent does not run");
                printed.iter().for_each(|line| println!("    {line}"));
                counts.failed += 1;
            }
        }
    }
    if counts.failed > 0 {
        println!("everything that was said is in {}", log.display());
    }
    counts
}
