//! `cargo xtask run`: builds the agent and runs it on this host, with the configuration and interface you name.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{build, lab::agent::Backend, setup};

/// Replaces this process by the agent; returns only when it could not be started.
///
/// # Errors
/// When it cannot be built or started.
pub fn run(config: &Path, interfaces: &[String], backend: Option<Backend>) -> Result<()> {
    setup::ensure(&[setup::Need::CLibraries, setup::Need::Bpf])?;
    if let Err(error) = build::object() {
        println!("the XDP program cannot be built here, bans go to nftables: {error:#}");
    }
    let binary = build::agent(build::Profile::Release)?;
    let mut command = as_root(binary);
    command.arg("run").arg("--config").arg(config);
    for interface in interfaces {
        command.args(["--interface", interface]);
    }
    if let Some(backend) = backend {
        command.args(["--backend", &backend.to_string()]);
    }
    println!("{}", crate::lab::shown(&command));
    Err(command.exec()).context("start the agent")
}

fn as_root(binary: PathBuf) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(binary);
    }
    let mut command = Command::new("sudo");
    command.arg(binary);
    command
}
