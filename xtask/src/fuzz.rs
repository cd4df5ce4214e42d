//! `cargo xtask fuzz`: bytes of any kind for what reads text, and an attacker's text for every filter.
//!
//! The targets are a package of their own in `tests/fuzz`, built with coverage by `cargo-fuzz`, which setup installs
//! into `target/tools`. What they start from is kept in `tests/corpus/fuzz`; what they find goes to `target/fuzz`.

use std::{
    fs,
    num::NonZero,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{lab::shown, setup, workspace};

/// Seconds that a target runs when nobody says.
pub const SECONDS: u64 = 60;
/// Mutants that are tried when nobody says.
pub const MUTANTS: u64 = 10_000_000;
/// Bytes of one input.
const INPUT_BYTES_MAX: u32 = 4_096;
/// Seconds that one input may take; the slowest are patterns that compile to much.
const INPUT_SECONDS_MAX: u32 = 25;
/// Megabytes that a target may hold; a compiled pattern may have 64, and there are several.
const MEMORY_MIB_MAX: u32 = 2_048;

/// What to fuzz.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// The address that is blamed for a line.
    Host,
    /// Dates and datepatterns.
    Date,
    /// fail2ban's files.
    Ini,
    /// Patterns of both languages.
    Dialect,
    /// The proof that a pattern has one reading.
    Lint,
    /// blocker's own files.
    Config,
    /// Every shipped filter, against an attacker's text in its samples.
    Mutants,
}

impl Target {
    const FUZZED: [Self; 6] = [Self::Host, Self::Date, Self::Ini, Self::Dialect, Self::Lint, Self::Config];

    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Date => "date",
            Self::Ini => "ini",
            Self::Dialect => "dialect",
            Self::Lint => "lint",
            Self::Config => "config",
            Self::Mutants => "mutants",
        }
    }
}

/// Runs one target, or all of them, for so many seconds each.
///
/// # Errors
/// When the fuzzer cannot be built, or an input was found that breaks a target.
pub fn run(target: Option<Target>, seconds: u64) -> Result<()> {
    setup::ensure(&[setup::Need::CLibraries, setup::Need::Fuzzer])?;
    let targets = target.map_or(Target::FUZZED.to_vec(), |target| vec![target]);
    let began = Instant::now();
    let binaries = build(target)?;
    let built = began.elapsed();
    // Each runs on one core.
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let mut broken = Vec::new();
    for at_once in targets.chunks(cores) {
        let runs: Vec<Result<()>> = thread::scope(|scope| {
            let running: Vec<_> = at_once
                .iter()
                .map(|target| scope.spawn(|| fuzz(&binaries, target.name(), seconds)))
                .collect();
            let ended = running.into_iter().map(|run| run.join());
            ended.map(|run| run.unwrap_or_else(|_| Err(anyhow!("a run panicked")))).collect()
        });
        // One that breaks hides nothing of the others.
        broken.extend(runs.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")));
    }
    println!(
        "fuzz: {} targets, {} broken; built in {} s, ran {} s",
        targets.len(),
        broken.len(),
        built.as_secs(),
        (began.elapsed() - built).as_secs()
    );
    if !broken.is_empty() {
        bail!("{}", broken.join("\n"));
    }
    Ok(())
}

/// Builds one target or all; says where they are. They are started from there: `cargo fuzz run` would look at the
/// sources for each of them once more.
fn build(target: Option<Target>) -> Result<PathBuf> {
    let host = host()?;
    let mut command = Command::new(setup::cargo_fuzz());
    // A nightly compiler takes the flags for coverage, and a stable one that is told to.
    command.arg("build").current_dir(workspace()).env("RUSTC_BOOTSTRAP", "1");
    // Nearly all of it is safe Rust: a sanitizer would cost more than it finds.
    command.args(["--fuzz-dir", "tests/fuzz", "--sanitizer", "none", "--target-dir", "target/fuzz"]);
    command.args(["--target", &host]).args(target.map(Target::name));
    // What one source file compiles to for a fuzzer is of no use to the other builds.
    command.env_remove("CARGO_TARGET_DIR");
    let status = command.status().with_context(|| format!("start {}", shown(&command)))?;
    if !status.success() {
        bail!("{}: {status}", shown(&command));
    }
    Ok(workspace().join("target/fuzz").join(host).join("release"))
}

/// What the compiler builds for when nobody says.
fn host() -> Result<String> {
    let mut command = Command::new("rustc");
    command.args(["--print", "host-tuple"]).current_dir(workspace());
    let output = command.output().with_context(|| format!("start {}", shown(&command)))?;
    if !output.status.success() {
        bail!("{}: {}", shown(&command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn fuzz(binaries: &Path, name: &str, seconds: u64) -> Result<()> {
    println!("== {name}, {seconds} s");
    let found = workspace().join("target/fuzz").join(name);
    let kept = workspace().join("tests/corpus/fuzz").join(name);
    let broken = found.join("broken");
    let corpus = found.join("corpus");
    for folder in [&broken, &corpus] {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let mut command = Command::new(binaries.join(name));
    command.args([&corpus, &kept]).current_dir(workspace());
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={INPUT_BYTES_MAX}"));
    command.arg(format!("-timeout={INPUT_SECONDS_MAX}")).arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"));
    command.arg(format!("-artifact_prefix={}/", broken.display()));
    command.args(["-print_final_stats=1", "-verbosity=0", "-print_funcs=0"]);
    let status = command.status().with_context(|| format!("start {}", shown(&command)))?;
    if !status.success() {
        bail!("the target {name}: {status}; the input that broke it is in {}", broken.display());
    }
    Ok(())
}

/// Tries `count` mutants on all cores.
///
/// # Errors
/// When a planted address was blamed.
pub fn mutants(count: u64, seed: u64) -> Result<()> {
    setup::ensure(&[setup::Need::CLibraries])?;
    let mut command = Command::new("cargo");
    command.args(["bench", "--quiet", "--package", "blocker", "--bench", "mutants", "--"]);
    command.args([count.to_string(), seed.to_string()]).current_dir(workspace());
    let status = command.status().with_context(|| format!("start {}", shown(&command)))?;
    if !status.success() {
        bail!("the mutants: {status}");
    }
    Ok(())
}
