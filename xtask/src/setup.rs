//! `cargo xtask setup`: finds what is missing and installs it, saying each step.
//!
//! Every verb asks for what it needs, so no reader has to know. What is there is left alone; root is asked for only
//! where the package manager needs it. Nothing is downloaded but from the distribution's and Rust's own registries.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::lab::shown;

/// What a verb can need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The C libraries the agent links.
    CLibraries,
    /// A compiler and a linker for the XDP program.
    Bpf,
    /// What demo, tests and benchmarks run beside the agent.
    Lab,
    /// fail2ban, to be compared with; its service is not started.
    Incumbent,
    /// cargo-fuzz, and the C++ compiler that its fuzzer is built with.
    Fuzzer,
    /// Other tools that read logs, to be compared with; none of their services is started.
    Peers,
    /// Other tools that drop by source address, to be compared with; they have no services.
    Filters,
}

/// Every need.
pub const ALL: [Need; 7] =
    [Need::CLibraries, Need::Bpf, Need::Lab, Need::Incumbent, Need::Fuzzer, Need::Peers, Need::Filters];

/// A compiler that can build `core` for BPF, and how to call it.
#[derive(Clone, Debug)]
pub struct BpfToolchain {
    /// The cargo to run.
    pub cargo: PathBuf,
    /// Arguments before the verb, as `+nightly`.
    pub cargo_args: Vec<String>,
    /// The rustc it must use, where that is not found by itself.
    pub rustc: Option<PathBuf>,
    /// The LLVM that `bpf-linker` must be built with.
    pub llvm: u32,
}

/// Installs what `needs` lack.
///
/// # Errors
/// When an installation fails, with what was tried.
pub fn ensure(needs: &[Need]) -> Result<()> {
    run(needs, false)
}

/// As [`ensure`]; with `print_only`, only says what it would do.
///
/// # Errors
/// When an installation fails, with what was tried.
pub fn run(needs: &[Need], print_only: bool) -> Result<()> {
    let installer = Installer { print_only };
    for need in needs {
        match need {
            Need::CLibraries => installer.packages(&missing_libraries()?)?,
            Need::Lab => installer.packages(&missing_tools())?,
            Need::Bpf => installer.bpf()?,
            Need::Incumbent => installer.incumbent()?,
            Need::Fuzzer => installer.fuzzer()?,
            Need::Peers => installer.peers()?,
            Need::Filters => installer.filters()?,
        }
    }
    Ok(())
}

/// Installs packages of the distribution by name.
///
/// # Errors
/// With what the package manager said.
pub fn install(packages: &[&str]) -> Result<()> {
    let packages: Vec<String> = packages.iter().map(|package| (*package).to_owned()).collect();
    Installer { print_only: false }.packages(&packages)
}

/// Fetches the package lists of the distribution.
///
/// # Errors
/// With what the package manager said.
pub fn update_lists() -> Result<()> {
    Installer { print_only: false }.step(as_root("apt-get").args(["update", "-qq"]))
}

struct Installer {
    print_only: bool,
}

impl Installer {
    /// Says a step, and takes it.
    fn step(&self, command: &mut Command) -> Result<()> {
        println!("setup: {}", shown(command));
        if self.print_only {
            return Ok(());
        }
        let status =
            command.stdin(Stdio::null()).status().with_context(|| format!("start {}", shown(command)))?;
        if !status.success() {
            bail!("{}: {status}", shown(command));
        }
        Ok(())
    }

    fn packages(&self, packages: &[String]) -> Result<()> {
        if packages.is_empty() {
            return Ok(());
        }
        if !has("apt-get") {
            bail!(
                "these are missing, and this is no Debian or Ubuntu where they could be installed by name: {}",
                packages.join(", ")
            );
        }
        self.step(as_root("apt-get").args(["update", "-qq"]))?;
        let mut install = as_root("apt-get");
        install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
        self.step(install.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()))
    }

    /// fail2ban's package, with a policy that keeps its service from starting while it is installed.
    fn incumbent(&self) -> Result<()> {
        if is_installed("fail2ban") {
            return Ok(());
        }
        if !has("apt-get") {
            println!("setup: fail2ban is compared with only where its Debian package can be installed");
            return Ok(());
        }
        let policy = if self.print_only { None } else { Policy::no_services()? };
        self.packages(&["fail2ban".to_owned()])?;
        drop(policy);
        Ok(())
    }

    /// Packages of log readers. sshguard's service would read this machine's logs, so it is kept from starting.
    fn peers(&self) -> Result<()> {
        if !fail2ban_rs().exists() {
            let mut install = Command::new("cargo");
            install.args(["install", "fail2ban-rs@1.5.4", "--locked", "--root"]);
            self.step(install.arg(crate::workspace().join(TOOLS)).current_dir("/"))?;
        }
        let peers = ["ripgrep", "sshguard"].into_iter().filter(|package| !is_installed(package));
        let missing: Vec<String> = peers.map(str::to_owned).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if !has("apt-get") {
            println!(
                "setup: {} are compared with only where their Debian packages can be installed",
                missing.join(", ")
            );
            return Ok(());
        }
        let policy = if self.print_only { None } else { Policy::no_services()? };
        self.packages(&missing)?;
        drop(policy);
        Ok(())
    }

    /// Packages that are compared with; a benchmark says which of them it goes without.
    fn filters(&self) -> Result<()> {
        let tools = [
            ("xdp-filter", "xdp-tools"),
            ("ipset", "ipset"),
            ("iptables", "iptables"),
            ("ethtool", "ethtool"),
        ];
        let missing: Vec<String> =
            tools.iter().filter(|(tool, _)| !has(tool)).map(|(_, package)| (*package).to_owned()).collect();
        if has("apt-get") {
            return self.packages(&missing);
        }
        if !missing.is_empty() {
            println!("setup: not installed, since this is no Debian or Ubuntu: {}", missing.join(", "));
        }
        Ok(())
    }

    /// A nightly Rust with its source where rustup can have one and the distribution has that nightly's LLVM, else the
    /// distribution's Rust with its source.
    fn bpf(&self) -> Result<()> {
        if find_toolchain().is_none() {
            let mut nightly = Command::new("rustup");
            nightly.args([
                "toolchain",
                "install",
                "nightly",
                "--profile",
                "minimal",
                "--component",
                "rust-src",
            ]);
            if !has("rustup")
                || self.step(&mut nightly).is_err()
                || (find_toolchain().is_none() && !self.print_only)
            {
                println!("setup: no nightly Rust can build for BPF here; taking the distribution's Rust");
                self.packages(&distribution_rust()?)?;
            }
        }
        if self.print_only && find_toolchain().is_none() {
            println!("setup: then bpf-linker, built against the LLVM of that Rust");
            return Ok(());
        }
        let toolchain = find_toolchain().context("no Rust that can build for BPF is to be had here")?;
        if linker(toolchain.llvm).is_some() {
            return Ok(());
        }
        let llvm = toolchain.llvm;
        let packages = [llvm_package(llvm), format!("libpolly-{llvm}-dev"), "libzstd-dev".to_owned()];
        let missing: Vec<String> = packages.into_iter().filter(|package| !is_installed(package)).collect();
        self.packages(&missing)?;
        let mut install = Command::new("cargo");
        install.args(["install", "bpf-linker", "--locked", "--force", "--no-default-features", "--features"]);
        install.arg(format!("llvm-{llvm}")).arg("--root").arg(linker_root(llvm));
        // The lint and wrapper settings of this workspace are not meant for another project.
        self.step(install.env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}")).current_dir("/"))
    }

    fn fuzzer(&self) -> Result<()> {
        if !has("c++") {
            self.packages(&["g++".to_owned()])?;
        }
        if cargo_fuzz().exists() {
            return Ok(());
        }
        let mut install = Command::new("cargo");
        install.args(["install", "cargo-fuzz", "--locked", "--root"]).arg(crate::workspace().join(TOOLS));
        self.step(install.current_dir("/"))
    }
}

/// Debian's word to packages that they may start no service (invoke-rc.d(8)); taken back on drop.
struct Policy;

const POLICY_FILE: &str = "/usr/sbin/policy-rc.d";

impl Policy {
    /// `None` where the host has a policy of its own.
    fn no_services() -> Result<Option<Self>> {
        if Path::new(POLICY_FILE).exists() {
            return Ok(None);
        }
        let policy = Self;
        let script = format!("printf '#!/bin/sh\\nexit 101\\n' > {POLICY_FILE} && chmod 755 {POLICY_FILE}");
        let status = as_root("sh").args(["-c", &script]).status()?;
        if !status.success() {
            bail!("write {POLICY_FILE}, which keeps a package's service from starting: {status}");
        }
        Ok(Some(policy))
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        let removed = as_root("rm").args(["-f", POLICY_FILE]).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("setup: remove {POLICY_FILE} by hand; it keeps services from starting");
        }
    }
}

/// The newest Rust of the distribution that comes with its source. Debian's stable releases have a second, newer one
/// beside their own, under the name it is kept for web browsers.
fn distribution_rust() -> Result<Vec<String>> {
    if !has("apt-get") {
        bail!(
            "no BPF toolchain: install a nightly Rust with its source (`rustup toolchain install nightly --component rust-src`)"
        );
    }
    let sets = [["rustc-web", "rust-web-src", "cargo-web"], ["rustc", "rust-src", "cargo"]];
    let known = |set: &&[&str; 3]| set.iter().all(|package| candidate(package).is_some());
    // Package lists may never have been fetched on a fresh machine.
    if !sets.iter().any(|set| known(&set)) {
        let _tried = as_root("apt-get").args(["update", "-qq"]).status();
    }
    let set = sets.iter().find(known).context("the distribution has no Rust with its source")?;
    Ok(set.iter().map(|package| (*package).to_owned()).collect())
}

fn candidate(package: &str) -> Option<String> {
    let output = Command::new("apt-cache").args(["policy", package]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?.trim().to_owned();
    (version != "(none)").then_some(version)
}

/// The toolchain that can build `core` for BPF, if there is one: one whose `bpf-linker` is built already, else one whose
/// LLVM can be had. A nightly is often ahead of every LLVM that the distribution has.
pub fn find_toolchain() -> Option<BpfToolchain> {
    let mut toolchains = toolchains();
    let at = toolchains.iter().position(|toolchain| linker(toolchain.llvm).is_some()).or_else(|| {
        toolchains.iter().position(|toolchain| {
            let package = llvm_package(toolchain.llvm);
            is_installed(&package) || candidate(&package).is_some()
        })
    })?;
    Some(toolchains.swap_remove(at))
}

fn llvm_package(llvm: u32) -> String {
    format!("llvm-{llvm}-dev")
}

/// Every Rust here that has the source of `core`.
fn toolchains() -> Vec<BpfToolchain> {
    let with_source = |rustc: &mut Command| {
        let sysroot = output_of(rustc.args(["--print", "sysroot"]))?;
        Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir().then_some(())
    };
    let nightly = || {
        with_source(Command::new("rustc").arg("+nightly"))?;
        let llvm = llvm_of(Command::new("rustc").arg("+nightly"))?;
        Some(BpfToolchain {
            cargo: "cargo".into(),
            cargo_args: vec!["+nightly".to_owned()],
            rustc: None,
            llvm,
        })
    };
    let distribution = || {
        let (cargo, rustc) = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"));
        with_source(&mut Command::new(&rustc))?;
        let llvm = llvm_of(&mut Command::new(&rustc))?;
        cargo.exists().then_some(BpfToolchain { cargo, cargo_args: Vec::new(), rustc: Some(rustc), llvm })
    };
    nightly().into_iter().chain(distribution()).collect()
}

fn llvm_of(rustc: &mut Command) -> Option<u32> {
    let version = output_of(rustc.arg("-vV"))?;
    version.lines().find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
}

/// The `bpf-linker` that goes with this LLVM.
pub fn linker(llvm: u32) -> Option<PathBuf> {
    let path = linker_root(llvm).join("bin/bpf-linker");
    path.exists().then_some(path)
}

/// Where tools are installed that are this workspace's alone.
const TOOLS: &str = "target/tools";

/// Where setup puts `cargo-fuzz`.
pub fn cargo_fuzz() -> PathBuf {
    crate::workspace().join(TOOLS).join("bin/cargo-fuzz")
}

/// Where setup puts `fail2ban-rs`.
pub fn fail2ban_rs() -> PathBuf {
    crate::workspace().join(TOOLS).join("bin/fail2ban-rs")
}

/// Kept apart by LLVM version: a linker of another one reads the compiler's output wrongly or not at all.
fn linker_root(llvm: u32) -> PathBuf {
    crate::workspace().join(TOOLS).join(format!("bpf-linker-llvm-{llvm}"))
}

fn missing_libraries() -> Result<Vec<String>> {
    if !has("cc") && !has("gcc") {
        return Ok(["gcc", "libc6-dev", "pkg-config", "libmnl-dev", "libnftnl-dev"]
            .map(str::to_owned)
            .to_vec());
    }
    let found = |library: &str| {
        Command::new("pkg-config").args(["--exists", library]).status().is_ok_and(|status| status.success())
    };
    let mut missing = Vec::new();
    if !has("pkg-config") {
        missing.push("pkg-config".to_owned());
    }
    for library in ["libmnl", "libnftnl"] {
        if !found(library) {
            missing.push(format!("{library}-dev"));
        }
    }
    Ok(missing)
}

/// Programs, and the packages they come in.
fn missing_tools() -> Vec<String> {
    let tools = [
        ("nft", "nftables"),
        ("ip", "iproute2"),
        ("ping", "iputils-ping"),
        ("python3", "python3"),
        ("setpriv", "util-linux"),
        ("logger", "bsdutils"),
        ("logrotate", "logrotate"),
        // The journal that tests read.
        ("journalctl", "systemd"),
    ];
    let mut missing: Vec<String> =
        tools.iter().filter(|(tool, _)| !has(tool)).map(|(_, package)| (*package).to_owned()).collect();
    let has_venv =
        Command::new("python3").args(["-c", "import venv, ensurepip"]).stderr(Stdio::null()).status();
    if !has_venv.is_ok_and(|status| status.success()) {
        missing.push("python3-venv".to_owned());
    }
    missing
}

fn is_installed(package: &str) -> bool {
    let status = output_of(Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]));
    status.is_some_and(|status| status.contains("install ok installed"))
}

/// Whether a program is on the path, system folders included.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.into_iter().any(|folder| folder.join(program).is_file())
}

fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
