//! The agent under test: its configuration, its process inside a host's namespace, and its CLI.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{ChildStderr, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Netns, Process, Scratch, journald::Journald, kernel, run, shown, wait_for};

/// How long an agent may take to start on a real machine, and one that is busy.
pub const START_TIME_MAX: Duration = Duration::from_secs(40);

/// How bans reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// The XDP program.
    Xdp,
    /// The nftables table.
    Nftables,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xdp => "xdp",
            Self::Nftables => "nftables",
        })
    }
}

/// An agent that guards `host`'s interface `eth0` where nothing else is said; what it pinned is removed on drop.
#[derive(Debug)]
pub struct Agent<'a> {
    host: &'a Netns,
    folder: PathBuf,
    pins: PathBuf,
    backend: Backend,
    top: String,
    interfaces: String,
    enforce: String,
    jails: String,
    journald: Option<&'a Journald>,
    process: Option<Process>,
}

impl<'a> Agent<'a> {
    /// Not started yet, no jail yet.
    pub fn new(scratch: &Scratch, host: &'a Netns, backend: Backend) -> Self {
        let folder = scratch.path().to_owned();
        // bpffs is one for the whole machine, so every agent under test pins in a folder of its own.
        let pins = Path::new("/sys/fs/bpf").join(folder.file_name().unwrap_or_default());
        Self {
            host,
            folder,
            pins,
            backend,
            top: String::new(),
            interfaces: "[\"eth0\"]".to_owned(),
            enforce: String::new(),
            jails: String::new(),
            journald: None,
            process: None,
        }
    }

    /// Adds a jail with the shipped filter of the same name, reading `log`.
    pub fn jail(&mut self, filter: &str, log: &Path, settings: &str) {
        self.jails.push_str(&format!(
            "[jail.{filter}]\nfilters = [\"{filter}\"]\nfiles = [\"{}\"]\n{settings}\n",
            log.display()
        ));
    }

    /// Lets it see this journal instead of the machine's.
    pub fn reads(&mut self, journald: &'a Journald) {
        self.journald = Some(journald);
    }

    /// Enforces with something else from the next start on.
    pub fn switch(&mut self, backend: Backend) {
        self.backend = backend;
    }

    /// Adds top-level settings, before every table.
    pub fn settings(&mut self, toml: &str) {
        self.top.push_str(toml);
        self.top.push('\n');
    }

    /// Lets it guard these, written as in its configuration.
    pub fn interfaces(&mut self, toml: &str) {
        toml.clone_into(&mut self.interfaces);
    }

    /// Adds settings to `[enforce]`.
    pub fn enforce(&mut self, toml: &str) {
        self.enforce.push_str(toml);
        self.enforce.push('\n');
    }

    /// Adds tables as they are.
    pub fn tables(&mut self, toml: &str) {
        self.jails.push_str(toml);
        self.jails.push('\n');
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("blocker.toml")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Where the kernel objects are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Writes the configuration file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_config(&self) -> Result<()> {
        let text = format!(
            "{}socket = \"{}\"\nstate_dir = \"{}\"\n[enforce]\nbackend = \"{}\"\ninterfaces = {}\npin_dir = \"{}\"\n{}{}",
            self.top,
            self.socket().display(),
            self.folder.join("state").display(),
            self.backend,
            self.interfaces,
            self.pins.display(),
            self.enforce,
            self.jails
        );
        fs::write(self.config(), text).context("write the agent's configuration")
    }

    /// Starts it and waits until it answers; its own log goes to `agent.log` in the scratch folder.
    ///
    /// # Errors
    /// With the agent's log, when it does not answer within [`START_TIME_MAX`].
    pub fn start(&mut self, binary: &Path) -> Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.folder.join("agent.log"))?;
        self.write_config()?;
        let mut command = self.command(binary);
        command.stdout(log.try_clone()?).stderr(log);
        self.process = Some(Process::spawn(&mut command)?);
        self.answers(binary)
    }

    /// Starts it with its stderr handed to `listen`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(&mut self, binary: &Path, listen: impl FnOnce(ChildStderr)) -> Result<()> {
        self.write_config()?;
        let mut command = self.command(binary);
        let mut process = Process::spawn(command.stderr(Stdio::piped()))?;
        if let Some(stderr) = process.child().stderr.take() {
            listen(stderr);
        }
        self.process = Some(process);
        self.answers(binary)
    }

    /// Starts it with `--stdin`, and returns what it reads from.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_fed(&mut self, binary: &Path) -> Result<ChildStdin> {
        let log = fs::File::options().create(true).append(true).open(self.folder.join("agent.log"))?;
        self.write_config()?;
        let mut command = self.command(binary);
        command.arg("--stdin").stdout(log.try_clone()?).stderr(log);
        let (process, stdin) = Process::spawn_fed(&mut command)?;
        self.process = Some(process);
        self.answers(binary)?;
        Ok(stdin)
    }

    fn command(&self, binary: &Path) -> Command {
        let mut command = self.host.command(binary);
        command.args(["run", "--config"]).arg(self.config());
        if let Some(journald) = self.journald {
            journald.adopt(&mut command);
        }
        command
    }

    fn answers(&mut self, binary: &Path) -> Result<()> {
        let answered = wait_for(kernel::patience(START_TIME_MAX), || {
            let running = self.process.as_mut().is_some_and(Process::is_running);
            if !running {
                return Some(false);
            }
            // Asking costs a process; not before there is somebody to ask.
            if !self.socket().exists() {
                return None;
            }
            self.json(binary, &["status"]).ok().map(|_| true)
        });
        if answered == Some(true) {
            return Ok(());
        }
        bail!("the agent did not start: {}", self.log());
    }

    /// What the agent logged, where [`Self::start`] started it.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("agent.log")).unwrap_or_default()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM, and wait for its end.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _status = process.stop(Duration::from_secs(5));
        }
    }

    /// Removes everything that an agent left in the kernel, as a restart of the machine does.
    ///
    /// # Errors
    /// When nft refuses.
    pub fn forget_kernel(&self) -> Result<()> {
        remove_pins(&self.pins);
        self.host.run("nft", &["flush", "ruleset"]).map(drop)
    }

    /// The process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Runs a subcommand against it and returns what it printed.
    ///
    /// # Errors
    /// With what it said, when it fails.
    pub fn cli(&self, binary: &Path, args: &[&str]) -> Result<String> {
        run(Command::new(binary).arg("--socket").arg(self.socket()).args(args))
    }

    /// Runs a subcommand with `--json`.
    ///
    /// # Errors
    /// As [`Self::cli`], or when it prints no JSON.
    pub fn json(&self, binary: &Path, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(binary);
        command.arg("--socket").arg(self.socket()).arg("--json").args(args);
        let text = run(&mut command)?;
        serde_json::from_str(&text).with_context(|| format!("{} printed {text:?}", shown(&command)))
    }

    /// The banned prefixes, as `blocker bans` lists them.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn banned(&self, binary: &Path) -> Result<Vec<String>> {
        let bans = self.json(binary, &["bans"])?;
        let rows = bans.as_array().context("bans are a list")?;
        Ok(rows.iter().filter_map(|row| row["prefix"].as_str().map(str::to_owned)).collect())
    }

    /// Packets dropped by each ban, in the order of [`Self::banned`].
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn dropped(&self, binary: &Path) -> Result<Vec<u64>> {
        let bans = self.json(binary, &["bans"])?;
        let rows = bans.as_array().context("bans are a list")?;
        Ok(rows.iter().filter_map(|row| row["packets"].as_u64()).collect())
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        self.kill();
        remove_pins(&self.pins);
    }
}

/// Unpins everything below `folder`; the links and maps end with their last pin.
pub fn remove_pins(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_pins(&entry.path());
        } else {
            let _gone = fs::remove_file(entry.path());
        }
    }
    let _gone = fs::remove_dir(folder);
}
