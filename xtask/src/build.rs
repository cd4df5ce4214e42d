//! `cargo xtask build`: the XDP program from source, then the agent with it inside.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{lab::shown, setup, workspace};

include!("fingerprint.rs");

/// How the agent is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build.
    Debug,
    /// Quick to run.
    Release,
}

/// Builds both, and says where the agent is.
///
/// # Errors
/// When the agent cannot be built. A missing BPF toolchain is said, and the agent is built without XDP.
pub fn run(profile: Profile) -> Result<()> {
    setup::ensure(&[setup::Need::CLibraries])?;
    if let Err(error) = setup::ensure(&[setup::Need::Bpf]).and_then(|()| object()) {
        println!("the XDP program cannot be built here, bans will go to nftables: {error:#}");
    }
    println!("{}", agent(profile)?.display());
    Ok(())
}

/// The XDP programs: what cargo calls them, and what the agent's build looks for.
const OBJECTS: [(&str, &str); 2] = [("blocker-xdp", "blocker.o"), (TABLE, "table.o")];
/// Reads packets by words that need not be aligned. The other one keeps an address on its stack, where the kernel wants
/// words aligned.
const TABLE: &str = "blocker-xdp-table";

/// Builds the XDP programs, unless what is there was made from these sources.
///
/// # Errors
/// When there is no BPF toolchain, or the build fails.
pub fn object() -> Result<()> {
    let workspace = workspace();
    let sources = workspace.join("blocker-ebpf");
    let folder = workspace.join("target/bpf");
    let stamp = folder.join("blocker.stamp");
    let made_from = fingerprint(&sources, &workspace.join("xtask/src/build.rs"))?;
    let is_there = OBJECTS.iter().all(|(_, object)| folder.join(object).is_file());
    if is_there && fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == made_from) {
        return Ok(());
    }
    println!("building the XDP programs");
    for (name, object) in OBJECTS {
        let llvm = compile(name)?;
        strip(&built(name), &folder.join(object), llvm)?;
    }
    fs::write(&stamp, made_from)?;
    Ok(())
}

/// Builds what the packet benchmark runs in the kernel beside the agent's programs, and returns its path.
///
/// # Errors
/// When there is no BPF toolchain, or the build fails.
pub fn bench_object() -> Result<PathBuf> {
    compile(BENCH)?;
    Ok(built(BENCH))
}

const BENCH: &str = "blocker-bench";

/// Where cargo leaves a program for BPF.
fn built(name: &str) -> PathBuf {
    workspace().join("target/bpf/bpfel-unknown-none/release").join(name)
}

/// Builds a program for BPF, and returns the version of the LLVM that made it.
fn compile(name: &str) -> Result<u32> {
    let workspace = workspace();
    let toolchain =
        setup::find_toolchain().context("no Rust that can build for BPF; `cargo xtask setup` gets one")?;
    let linker = setup::linker(toolchain.llvm).with_context(|| {
        format!("no bpf-linker for LLVM {}; `cargo xtask setup` builds one", toolchain.llvm)
    })?;
    // The kernel refuses such words where the machine cannot read them (CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS).
    let unaligned = name == TABLE
        && toolchain.llvm >= READS_UNALIGNED
        && matches!(std::env::consts::ARCH, "x86_64" | "aarch64");
    let mut command = Command::new(&toolchain.cargo);
    command.args(&toolchain.cargo_args);
    command.args(["build", "--quiet", "--release", "--package", "blocker-ebpf", "--bin", name]);
    command.args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"]);
    command.arg("--target-dir").arg(workspace.join("target/bpf")).current_dir(&workspace);
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&workspace, &linker, unaligned).join("\x1f"));
    // Set by the cargo that runs us, for its own toolchain.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
    if let Some(rustc) = &toolchain.rustc {
        command.env("RUSTC", rustc);
    }
    let status = command.status().with_context(|| format!("start {}", shown(&command)))?;
    if !status.success() {
        bail!("{}: {status}", shown(&command));
    }
    Ok(toolchain.llvm)
}

/// The first LLVM that can read words of a packet which need not be aligned.
const READS_UNALIGNED: u32 = 22;

fn flags(workspace: &Path, linker: &Path, unaligned: bool) -> Vec<String> {
    let mut flags = vec![
        format!("-Clinker={}", linker.display()),
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Comparisons and arithmetic of 32 bits: kernel 5.1, and the oldest that is tried is 5.10.
        "-Ctarget-cpu=v3".to_owned(),
        format!("--remap-path-prefix={}=blocker", workspace.display()),
    ];
    if unaligned {
        flags.push("-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned());
    }
    // The same object whoever builds it, wherever.
    if let Some(home) = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
    {
        flags.push(format!("--remap-path-prefix={}=cargo", home.display()));
    }
    flags
}

/// Debug sections are ten times the program; what the kernel reads, BTF, stays.
fn strip(from: &Path, to: &Path, llvm: u32) -> Result<()> {
    let objcopy = PathBuf::from(format!("/usr/lib/llvm-{llvm}/bin/llvm-objcopy"));
    if objcopy.exists() {
        let mut command = Command::new(objcopy);
        let status = command.arg("--strip-debug").arg(from).arg(to).status().context("start llvm-objcopy")?;
        if status.success() {
            return Ok(());
        }
    }
    fs::copy(from, to).map(drop).with_context(|| format!("copy {}", from.display()))
}

/// Builds the agent with the XDP program that [`object`] left, and returns its path.
///
/// # Errors
/// When it does not compile.
pub fn agent(profile: Profile) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    command.args(["build", "--quiet", "--package", "blocker"]).current_dir(workspace());
    if profile == Profile::Release {
        command.arg("--release");
    }
    let status = command.status().context("start cargo")?;
    if !status.success() {
        bail!("{}: {status}", shown(&command));
    }
    let folder = if profile == Profile::Release { "release" } else { "debug" };
    Ok(target().join(folder).join("blocker"))
}

/// Where cargo puts what it builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_changes_with_names_content_and_the_way_of_building() {
        let scratch = crate::lab::Scratch::new("fingerprint").unwrap();
        fs::write(scratch.join("a"), "x").unwrap();
        let folder = crate::lab::Scratch::new("how").unwrap();
        let how = folder.join("build.rs");
        fs::write(&how, "1").unwrap();
        let made = || fingerprint(scratch.path(), &how).unwrap();
        let first = made();
        assert_eq!(first, made());
        fs::write(scratch.join("a"), "y").unwrap();
        let second = made();
        fs::rename(scratch.join("a"), scratch.join("b")).unwrap();
        let third = made();
        fs::write(&how, "2").unwrap();
        let fourth = made();
        assert!(first != second && second != third && third != fourth);
    }
}
