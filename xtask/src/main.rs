//! `cargo xtask VERB`: sets up, builds, shows, tests and measures blocker.

use clap::{Parser, Subcommand};
use xtask::{build, setup};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Sets up, builds, shows, tests and measures blocker")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Finds what is missing and installs it.
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
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().verb {
        Verb::Setup { print } => setup::run(&setup::ALL, print),
        Verb::Build { release } => {
            build::run(if release { build::Profile::Release } else { build::Profile::Debug })
        }
    }
}
