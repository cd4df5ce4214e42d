//! `cargo xtask vm`: the enforcers' conformance suites on kernels of distributions, each in an emulated machine.
//!
//! A guest holds the same test binaries that `cargo test` runs here, and ends with the agent saying how it enforces
//! on that kernel: the mode it got, and why not a better one. What a kernel lacks is said with its reason, and is neither
//! passed nor failed. Guests have no network device.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, File},
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    build,
    lab::{self, run as run_command, shown},
    setup, workspace,
};

mod cpio;
mod image;
mod machine;
mod packages;
mod report;
mod transcript;

pub use packages::missing;
pub use report::Tally;
use transcript::{Transcript, last_part};

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
const SUITES: [&str; 11] = [
    "attach",
    "enforcers",
    "xdp_program",
    "nftables",
    "frames",
    "paths",
    "ports",
    "connections",
    "dispatcher",
    "takeover",
    "gap",
];

/// Tests that take minutes where a processor is emulated and say nothing about its kernel.
const LEFT_OUT: [&str; 3] = [
    "many_bans_are_spread_over_sets_that_a_later_agent_finds",
    "a_million_and_five_million_bans_are_in_force_and_only_they",
    "after_every_batch_the_program_drops_what_a_plain_set_says",
];

/// The kernel that `cargo xtask test` boots, and a suite that is run in it whole; beside that, the tests for which the
/// machine's own kernel has not what they need.
pub const OF_TESTS: Kernel = Kernel::Trixie;
const SUITE_OF_TESTS: &str = "frames";

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
    println!("left out, since the processor is emulated: {}", LEFT_OUT.join(", "));
    let (mut failed, mut summary) = (Vec::new(), Vec::new());
    for kernel in if kernels.is_empty() { &KERNELS } else { kernels } {
        let suites = if suites.is_empty() { SUITES.as_slice() } else { &suites };
        let booted = prepare(*kernel).and_then(|()| boot(*kernel, &built(suites)?));
        let (is_good, line) = match booted {
            Ok(tally) => (tally.counts.failed == 0, tally.shown()),
            Err(error) => (false, format!("{error:#}")),
        };
        if !is_good {
            failed.push(kernel.to_string());
        }
        summary.push(format!("{kernel}: {line}"));
    }
    println!();
    summary.iter().for_each(|line| println!("{line}"));
    if failed.is_empty() { Ok(()) } else { bail!("failed on {}", failed.join(", ")) }
}

/// Boots [`OF_TESTS`] with what `cargo xtask test` runs there: among it those tests that were left out on this kernel.
///
/// # Errors
/// When something cannot be built or started.
pub fn with_left_out(left_out: &BTreeSet<String>) -> Result<Tally> {
    let mut tested = built(&SUITES)?;
    for (name, binary) in &tested.suites {
        let list = run_command(Command::new(binary).args(["--list", "--format", "terse"]))?;
        let tests = list.lines().filter_map(|line| line.strip_suffix(": test"));
        let tests = tests.filter(|test| left_out.contains(last_part(test))).map(str::to_owned).collect();
        tested.only.insert(name.clone(), tests);
    }
    tested.only.remove(SUITE_OF_TESTS);
    tested.only.retain(|name, tests| {
        let is_wanted = !tests.is_empty();
        if !is_wanted {
            tested.suites.remove(name);
        }
        is_wanted
    });
    boot(OF_TESTS, &tested)
}

/// Boots one kernel, prints what came of it, and counts it.
fn boot(kernel: Kernel, tested: &image::Tested) -> Result<Tally> {
    let began = Instant::now();
    let tools = packages::tools()?;
    let files = packages::kernel(kernel, &tools)?;
    let (logs, scratch) = (workspace().join("target/vm"), lab::Scratch::new("vm")?);
    fs::create_dir_all(&logs)?;
    let archive = scratch.join("initramfs");
    image::write(&archive, tested, &files, &tools)?;
    let packed = began.elapsed();
    println!("\n{kernel}: {}", files.version);
    let (console, log) = (logs.join(format!("{kernel}.console")), logs.join(format!("{kernel}.log")));
    let (mut transcript, mut log_file) = (Transcript::default(), File::create(&log)?);
    let console_and_log = (console.as_path(), &mut log_file);
    let suites: Vec<&str> = tested.suites.keys().map(String::as_str).collect();
    let ended = machine::run(&files, &archive, &tools, &suites, &mut transcript, console_and_log);
    let mut tally = report::rest(&transcript, &log);
    if let Err(error) = ended {
        println!("  FAILED: {error:#}");
        // Where it ended in a suite, that one has failed.
        tally.counts.failed += usize::from(transcript.unfinished().is_none());
    }
    println!(
        "{kernel}: {} in {} s, of it {} packing and {} booting",
        tally.shown(),
        began.elapsed().as_secs(),
        packed.as_secs(),
        transcript.boot_seconds
    );
    Ok(tally)
}

/// Builds the test binaries and the agent, as `cargo xtask test` does, so that nothing is compiled twice; says where
/// they are.
fn built(suites: &[&str]) -> Result<image::Tested> {
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
    command.args(["test", "--quiet", "--workspace", "--no-run", "--message-format", "json"]);
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
    let wanted =
        |name: &str| found.get(name).cloned().with_context(|| format!("{} built no {name}", shown(&command)));
    let suites = suites.iter().map(|suite| Ok(((*suite).to_owned(), wanted(suite)?)));
    let (only, agent) = (BTreeMap::new(), wanted("blocker")?);
    Ok(image::Tested { suites: suites.collect::<Result<_>>()?, only, agent })
}
