//! `cargo xtask VERB`: sets up, builds, shows, tests and measures blocker.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use xtask::{bench, build, check, conformance, demo, fuzz, lab::agent::Backend, run, setup, test, vm};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Sets up, builds, shows, tests and measures blocker")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Finds what is missing and installs it; every other verb does this for what it needs.
    Setup {
        /// Only say what would be done.
        #[arg(long)]
        print: bool,
    },
    /// Builds the XDP program and the agent with it inside.
    Build {
        /// Optimised.
        #[arg(long)]
        release: bool,
    },
    /// Shows the main job on a real Django site, in network namespaces.
    Demo {
        /// What enforces.
        #[arg(long, value_enum, default_value = "xdp")]
        backend: Backend,
    },
    /// Builds the agent and runs it on this host.
    Run {
        /// The agent's configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The interface to attach to instead of the configured ones; may be given several times.
        #[arg(long = "interface", value_name = "NAME")]
        interfaces: Vec<String>,
        /// What enforces, instead of what the configuration says.
        #[arg(long, value_enum)]
        backend: Option<Backend>,
    },
    /// Runs every test and counts them.
    Test {
        /// Passed on to `cargo test`: a name, or `--test enforcers`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        filter: Vec<String>,
    },
    /// Formatting, lints, the wall between the layers, the shipped configuration.
    Check,
    /// Holds our reading of fail2ban's filters and jails against fail2ban's own.
    Conformance {
        /// A source tree of fail2ban, instead of the installed package.
        #[arg(long, value_name = "DIR")]
        fail2ban: Option<PathBuf>,
        /// Print the reports as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Feeds bytes of any kind to what reads text, or mutants of their samples to all filters.
    Fuzz {
        /// Which.
        #[arg(value_enum, required_unless_present = "all")]
        target: Option<fuzz::Target>,
        /// Every target but the mutants.
        #[arg(long, conflicts_with = "target")]
        all: bool,
        /// How long each target runs.
        #[arg(long, value_name = "N", default_value_t = fuzz::SECONDS)]
        seconds: u64,
        /// How many mutants.
        #[arg(long, value_name = "N", default_value_t = fuzz::MUTANTS)]
        count: u64,
        /// What the mutants follow from.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
    },
    /// Boots kernels of distributions in an emulated machine, and runs the enforcers' tests in each.
    ///
    /// Kernels and emulator are Debian packages, unpacked below target/tools/vm and installed nowhere; without that
    /// folder the newest are downloaded again. What is printed for each kernel: the tests that passed and failed, the
    /// mode the agent got, and what the kernel lacks for a better one.
    Vm {
        /// Which; all when none is named.
        #[arg(value_enum)]
        kernels: Vec<vm::Kernel>,
        /// A test binary, as in `--suite nftables`; all of them when none is named.
        #[arg(long = "suite", value_name = "NAME")]
        suites: Vec<String>,
    },
    /// Prints figures as ratios within one run.
    Bench {
        /// Which; all when none is named.
        #[arg(value_enum)]
        which: Vec<bench::Bench>,
        /// After `--`, for the benchmark itself: `packet` takes `--quick` and names of sections.
        #[arg(last = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run_verb(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes is for the reader; a backtrace is not.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_verb(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Setup { print } => setup::run(&setup::ALL, print),
        Verb::Build { release } => {
            build::run(if release { build::Profile::Release } else { build::Profile::Debug })
        }
        Verb::Demo { backend } => demo::run(backend),
        Verb::Run { config, interfaces, backend } => run::run(&config, &interfaces, backend),
        Verb::Test { filter } => test::run(&filter),
        Verb::Check => check::run(),
        Verb::Conformance { fail2ban, json } => conformance::run(fail2ban.as_deref(), json),
        Verb::Fuzz { target: Some(fuzz::Target::Mutants), count, seed, .. } => fuzz::mutants(count, seed),
        Verb::Fuzz { target, seconds, .. } => fuzz::run(target, seconds),
        Verb::Vm { kernels, suites } => vm::run(&kernels, &suites),
        Verb::Bench { which, args } => bench::run(&which, &args),
    }
}
