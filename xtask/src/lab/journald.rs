//! A real systemd-journald with a `/run` of its own, and processes that write to it as units and users would.
//!
//! It lives in a mount namespace, so the journal of the machine is neither read nor written. Units are what journald
//! takes for them: control groups by that name.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Process, run, wait_for};

const DAEMON: &str = "/lib/systemd/systemd-journald";
const LIBRARY: &str = "libsystemd.so.0";
/// How long a daemon may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Mounts over what would be the machine's, lets journald take whatever comes, then stays until it is killed.
const HOLD: &str = "set -e; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/log; \
     mkdir -p /run/systemd/journal /run/systemd/journald.conf.d /run/log; \
     printf '[Journal]\\nRateLimitIntervalSec=0\\n' > /run/systemd/journald.conf.d/test.conf; \
     : > /run/ready; exec sleep 3600";
/// Takes lists of fields and values from its input, a line each, and sends each as one entry in journald's own protocol
/// (systemd.io/JOURNAL_NATIVE_PROTOCOL); says so when it is sent. Its process has the name of its argument.
const SPEAK: &str = r#"
import ctypes, json, socket, sys
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for line in sys.stdin:
    entry = b""
    for field, value in json.loads(line):
        value = value.encode()
        entry += field.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    journal.sendto(entry, "/run/systemd/journal/socket")
    print("sent", flush=True)
"#;

/// A mount namespace with a journal of its own, and journald while it runs; all gone when dropped.
#[derive(Debug)]
pub struct Journald {
    mounts: OwnedFd,
    holder: Process,
    daemon: Option<Process>,
    slice: Option<PathBuf>,
}

/// Why journald cannot be run here, or `None` when it can.
pub fn missing() -> Option<String> {
    let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    if !Path::new(DAEMON).exists() {
        Some("there is no systemd-journald (cargo xtask setup installs it)".to_owned())
    } else if id.trim().len() != 32 {
        Some("this machine has no id in /etc/machine-id, without which nobody reads a journal".to_owned())
    } else if hierarchy().is_none() {
        Some("control groups cannot be made here, and units are control groups".to_owned())
    } else {
        None
    }
}

/// Where journald looks for units: the unified hierarchy beside those of version 1, systemd's own among them, or the
/// only one.
fn hierarchy() -> Option<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let found = [root.join("unified"), root.join("systemd"), root.to_owned()]
        .into_iter()
        .find(|path| path.join("cgroup.procs").exists())?;
    let trial = found.join(format!("blk-{}-trial.slice", std::process::id()));
    // A test beside this one, in the same process, may be trying the same.
    match fs::create_dir(&trial) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return None,
        _ => {}
    }
    let _gone = fs::remove_dir(&trial);
    Some(found)
}

impl Journald {
    /// A namespace without a journal; [`Self::start`] starts journald in it.
    ///
    /// # Errors
    /// When not root, or mounts are not allowed.
    pub fn new() -> Result<Self> {
        let mut hold = Command::new("unshare");
        let mut holder =
            Process::spawn(hold.args(["--mount", "--propagation", "private", "sh", "-c", HOLD]))?;
        let process = Path::new("/proc").join(holder.id().to_string());
        let ready = process.join("root/run/ready");
        if wait_for(PATIENCE, || (ready.exists() || !holder.is_running()).then_some(())).is_none()
            || !holder.is_running()
        {
            bail!("a mount namespace with a /run of its own cannot be made");
        }
        let mounts = File::open(process.join("ns/mnt")).context("open a mount namespace")?.into();
        Ok(Self { mounts, holder, daemon: None, slice: None })
    }

    /// Starts journald and waits until it takes entries.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(&mut self) -> Result<()> {
        let mut daemon = Process::spawn(self.command(DAEMON).stderr(Stdio::null()))?;
        let socket = self.inside("/run/systemd/journal/socket");
        let up = wait_for(PATIENCE, || {
            if daemon.is_running() { socket.exists().then_some(true) } else { Some(false) }
        });
        self.daemon = Some(daemon);
        if up == Some(true) { Ok(()) } else { bail!("systemd-journald did not start") }
    }

    /// Stops journald; its journal stays.
    pub fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _status = daemon.stop(Duration::from_secs(5));
        }
        let _gone = fs::remove_file(self.inside("/run/systemd/journal/socket"));
    }

    /// A path of the namespace, as seen from here.
    fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.id()))
    }

    /// The files of the journal, the one that is written to left out.
    pub fn archived(&self) -> Vec<PathBuf> {
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let folder = self.inside(&format!("/run/log/journal/{}", machine.trim()));
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let is_archived = |path: &PathBuf| path.to_string_lossy().contains('@');
        entries.map(|entry| entry.path()).filter(is_archived).collect()
    }

    /// Makes libsystemd something that is no library for everybody inside.
    ///
    /// # Errors
    /// When it is not found, or mounts are not allowed.
    pub fn hide_library(&self) -> Result<()> {
        let known = run(Command::new("ldconfig").arg("-p").env("PATH", "/usr/sbin:/sbin"))?;
        let paths = known.lines().filter(|line| line.trim_start().starts_with(LIBRARY));
        for path in paths.filter_map(|line| line.split(" => ").nth(1)) {
            run(self.command("mount").args(["--bind", "/dev/null"]).arg(fs::canonicalize(path)?))?;
        }
        Ok(())
    }

    /// A command that will run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        self.adopt(&mut command);
        command
    }

    /// Makes a command built elsewhere run inside.
    pub fn adopt(&self, command: &mut Command) {
        let fd = self.mounts.as_raw_fd();
        // SAFETY: between fork and exec only one setns call is made, which is async-signal-safe; the descriptor is a
        // copy of ours that the child inherited at fork.
        unsafe {
            command.pre_exec(move || {
                let fd = BorrowedFd::borrow_raw(fd);
                move_into_link_name_space(fd, Some(LinkNameSpaceType::Mount)).map_err(io::Error::from)
            });
        }
    }

    /// Runs `journalctl` inside and returns what it printed.
    ///
    /// # Errors
    /// With what it said, when it fails.
    pub fn journalctl(&self, args: &[&str]) -> Result<String> {
        run(self.command("journalctl").arg("--no-pager").args(args))
    }

    /// A process named `name` of the user `uid` that writes entries; of a unit by that name, or of none.
    ///
    /// # Errors
    /// When it does not start, or the control group cannot be made.
    pub fn speaker(&mut self, unit: Option<&str>, uid: u32, name: &str) -> Result<Speaker> {
        let mut join = String::new();
        if let Some(unit) = unit {
            let root = hierarchy().context("control groups cannot be made here")?;
            let slice = root.join(format!("blk-{}-{}.slice", std::process::id(), self.holder.id()));
            let group = slice.join(unit);
            fs::create_dir_all(&group).with_context(|| format!("make {}", group.display()))?;
            join = format!("echo $$ > {}/cgroup.procs; ", group.display());
            self.slice = Some(slice);
        }
        let script =
            format!("set -e; {join}exec setpriv --reuid={uid} --clear-groups python3 -c \"$1\" \"$2\"");
        let mut command = self.command("sh");
        // The system's Python: one of root's own may be closed to other users.
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.args(["-c", &script, "sh", SPEAK, name]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process { child: command.spawn().context("start a process that writes entries")? };
        let (input, output) = (process.child().stdin.take(), process.child().stdout.take());
        let input = input.context("a pipe to it")?;
        Ok(Speaker { process, input, output: BufReader::new(output.context("a pipe from it")?) })
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        self.stop();
        self.holder.kill();
        if let Some(slice) = &self.slice {
            for group in
                fs::read_dir(slice).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir())
            {
                let _gone = fs::remove_dir(group.path());
            }
            let _gone = fs::remove_dir(slice);
        }
    }
}

/// A process that writes entries, and lives until it is dropped, so that journald can look at it.
#[derive(Debug)]
pub struct Speaker {
    process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Speaker {
    /// Sends an entry with these fields.
    ///
    /// # Errors
    /// When the process has ended, since journald did not take it.
    pub fn send(&mut self, fields: &[(&str, &str)]) -> Result<()> {
        let line = serde_json::to_string(fields)?;
        writeln!(self.input, "{line}").context("tell the process what to send")?;
        let mut said = String::new();
        self.output.read_line(&mut said)?;
        if said.trim() == "sent" { Ok(()) } else { bail!("the entry was not sent") }
    }

    /// Sends a message under a name.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn say(&mut self, identifier: &str, message: &str) -> Result<()> {
        self.send(&[("SYSLOG_IDENTIFIER", identifier), ("MESSAGE", message)])
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        self.process.kill();
    }
}
