//! The lab: hosts that are network namespaces, wired by veth, entered by `setns`, and gone when dropped.
//!
//! Nothing here touches an interface of the machine itself. A namespace carries the pid of the process that made it
//! in its name, so that what a killed run left behind is swept by the next one.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub mod agent;
pub mod journald;
pub mod kernel;
pub mod lan;
pub mod probe;
pub mod site;
pub mod wire;
pub mod witness;

/// Where `ip netns` keeps its namespaces (ip-netns(8)).
const NETNS_DIR: &str = "/run/netns";
const NAME_START: &str = "blk";

/// A network namespace of our own, with its loopback up; deleted on drop with everything in it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    fd: OwnedFd,
}

impl Netns {
    /// Makes a namespace whose name holds `label`.
    ///
    /// # Errors
    /// When not root, or `ip` is missing.
    pub fn new(label: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{NAME_START}-{}-{number}-{label}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let path = Path::new(NETNS_DIR).join(&name);
        let fd = File::open(&path).with_context(|| format!("open {}", path.display()))?.into();
        let netns = Self { name, fd };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip -n NAME ARGS`, the arguments split at spaces.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn ip(&self, args: &str) -> Result<String> {
        run(Command::new("ip").args(["-n", &self.name]).args(args.split_ascii_whitespace()))
    }

    /// A command that will run inside; the mount namespace stays the caller's, so `/sys/fs/bpf` is the same one.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.adopt(&mut command);
        command
    }

    /// Makes a command built elsewhere run inside.
    pub fn adopt(&self, command: &mut Command) {
        let fd = self.fd.as_raw_fd();
        // SAFETY: between fork and exec only one setns call is made, which is async-signal-safe; the descriptor is
        // a copy of ours that the child inherited at fork.
        unsafe {
            command.pre_exec(move || {
                let fd = std::os::fd::BorrowedFd::borrow_raw(fd);
                move_into_link_name_space(fd, Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
            });
        }
    }

    /// Runs a command inside to its end.
    ///
    /// # Errors
    /// With what it printed, when it fails.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        run(self.command(program).args(args))
    }

    /// Runs `work` on a thread of its own inside, and waits for it. Sockets made there stay in the namespace.
    ///
    /// # Panics
    /// When `work` does, with its message.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("enter a namespace of our own");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Wires `self` and `other` with a veth pair, both ends up.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn link(&self, interface: &str, other: &Self, other_interface: &str) -> Result<()> {
        run(Command::new("ip").args([
            "link",
            "add",
            interface,
            "netns",
            &self.name,
            "type",
            "veth",
            "peer",
            "name",
            other_interface,
            "netns",
            &other.name,
        ]))?;
        for (netns, interface) in [(self, interface), (other, other_interface)] {
            // No router advertisements and no duplicate detection: addresses work at once.
            netns.sysctl(&format!("net/ipv6/conf/{interface}/accept_dad"), "0")?;
            netns.sysctl(&format!("net/ipv6/conf/{interface}/accept_ra"), "0")?;
            netns.ip(&format!("link set {interface} up"))?;
        }
        Ok(())
    }

    /// Writes a network sysctl inside, `key` as a path below `/proc/sys`.
    ///
    /// # Errors
    /// When the kernel has no such key.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| fs::write(&path, value)).with_context(|| format!("set {key} in {}", self.name))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["netns", "delete", &self.name]).stderr(Stdio::null()).status();
    }
}

/// Deletes namespaces whose maker is dead.
fn sweep() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        for entry in fs::read_dir(NETNS_DIR).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let mut parts = name.split('-');
            let dead = parts.next() == Some(NAME_START)
                && parts.next().is_some_and(|pid| {
                    pid.bytes().all(|b| b.is_ascii_digit()) && !Path::new("/proc").join(pid).exists()
                });
            if dead {
                let _gone =
                    Command::new("ip").args(["netns", "delete", &name]).stderr(Stdio::null()).status();
            }
        }
    });
}

/// A process of ours: killed and reaped on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts it.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let child =
            command.stdin(Stdio::null()).spawn().with_context(|| format!("start {}", shown(command)))?;
        Ok(Self { child })
    }

    /// Starts it with its standard input at hand.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn_fed(command: &mut Command) -> Result<(Self, ChildStdin)> {
        let mut child =
            command.stdin(Stdio::piped()).spawn().with_context(|| format!("start {}", shown(command)))?;
        let stdin = child.stdin.take().context("its standard input is piped")?;
        Ok((Self { child }, stdin))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// SIGKILL, and wait for the end.
    pub fn kill(&mut self) {
        let _already_dead = self.child.kill();
        let _reaped = self.child.wait();
    }

    /// SIGTERM, then SIGKILL when it is not gone within `patience`.
    pub fn stop(&mut self, patience: Duration) -> Option<ExitStatus> {
        self.signal(libc::SIGTERM);
        let status = wait_for(patience, || self.child.try_wait().ok().flatten());
        if status.is_none() {
            self.kill();
        }
        status
    }

    /// Sends a signal while it runs.
    pub fn signal(&mut self, signal: libc::c_int) {
        if self.is_running()
            && let Ok(pid) = libc::pid_t::try_from(self.child.id())
        {
            // SAFETY: kill(2) takes no pointers; the pid is a child that was not reaped yet.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Whether it runs still.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            // gunicorn and its like have workers: ask first, so that they take them along.
            let _status = self.stop(Duration::from_secs(3));
        }
    }
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// With the command and what it said, when it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command as one would type it.
pub fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// Asks `probe` until it answers, at most for `patience`, every two milliseconds.
pub fn wait_for<T>(patience: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(answer) = probe() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A scratch folder below the system's own, removed on drop; `label` is in its name.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(label: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("{NAME_START}-{}-{number}-{label}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path inside.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// In the reason of a skipped test: it is the kernel that has less to offer, so the test is not missing on a machine
/// that could run it.
pub const KERNEL_LACKS: &str = "this kernel lacks";

/// Says that a test was skipped and why: on stderr, and in the file named by `BLOCKER_SKIPS`, which
/// `cargo xtask test` counts.
pub fn skipped(test: &str, reason: &str) {
    use std::io::Write as _;
    let line = format!("SKIPPED: {test}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("BLOCKER_SKIPS") {
        let file = File::options().create(true).append(true).open(path);
        let _written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Why namespaces cannot be used here, or `None` when they can.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    match Command::new("ip").arg("-V").output() {
        Ok(_) => None,
        Err(_) => Some("the `ip` command is missing (cargo xtask setup installs it)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hosts_reach_each_other_and_are_gone_after_drop() {
        if let Some(reason) = missing() {
            return skipped("two_hosts_reach_each_other_and_are_gone_after_drop", &reason);
        }
        let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
        a.link("eth0", &b, "eth0").unwrap();
        a.ip("addr add 198.51.100.1/24 dev eth0").unwrap();
        b.ip("addr add 198.51.100.2/24 dev eth0").unwrap();
        let listener = a.enter(|| std::net::TcpListener::bind("198.51.100.1:80")).unwrap();
        let reached = b.enter(|| std::net::TcpStream::connect("198.51.100.1:80").map(drop));
        assert!(reached.is_ok(), "{reached:?}");
        let names = [a.name().to_owned(), b.name().to_owned()];
        drop((listener, a, b));
        for name in names {
            assert!(!Path::new(NETNS_DIR).join(&name).exists(), "{name}");
        }
    }
}
