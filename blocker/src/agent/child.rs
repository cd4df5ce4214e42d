//! One run of a command: a child process in a group of its own, with a deadline.
//!
//! Its environment holds what it is told and a search path, its input is empty, and its output is read to the end and
//! kept up to a bound.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, Read as _},
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use crate::{cli::clean, policy::CommandLine};

/// Bytes of a command's output that are kept.
const OUTPUT_BYTES_MAX: usize = 4 << 10;
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a run came to its end.
#[derive(Debug)]
pub(super) enum End {
    /// By itself.
    Exited { status: ExitStatus, output: String },
    /// It was killed.
    TimedOut { output: String },
    /// It could not begin, or could not be watched.
    NotRun(io::Error),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = match self {
            Self::Exited { status, output } => {
                write!(f, "{status}")?;
                output
            }
            Self::TimedOut { output } => {
                f.write_str("took too long and was killed")?;
                output
            }
            Self::NotRun(error) => return write!(f, "cannot be run: {error}"),
        };
        if output.is_empty() { Ok(()) } else { write!(f, ": {}", clean(output)) }
    }
}

/// Runs it until it exits or the time is over.
pub(super) fn run(
    command: &CommandLine,
    environment: &[(String, String)],
    deadline: Instant,
    children: &Children,
) -> End {
    try_run(command, environment, deadline, children).unwrap_or_else(End::NotRun)
}

fn try_run(
    command: &CommandLine,
    environment: &[(String, String)],
    deadline: Instant,
    children: &Children,
) -> io::Result<End> {
    let mut command = match command {
        CommandLine::Program(parts) => {
            let mut parts = parts.iter();
            let mut command = Command::new(parts.next().map_or("", String::as_str));
            command.args(parts);
            command
        }
        CommandLine::Shell(text) => {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", text]);
            command
        }
    };
    let (mut output, write_end) = io::pipe()?;
    command
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(write_end.try_clone()?)
        .stderr(write_end)
        .process_group(0);
    let mut child = children.spawn(&mut command)?;
    // Closes this process's write ends, so that the pipe ends with the child.
    drop(command);
    let pid = Pid::from_child(&child);
    let mut kept = Vec::new();
    let exited = wait(pid, &mut output, &mut kept, deadline);
    if !matches!(exited, Ok(true)) {
        // The group may be gone already.
        let _gone = kill_process_group(pid, Signal::KILL);
    }
    let status = children.reap(&mut child)?;
    let output = String::from_utf8_lossy(&kept).trim_end().to_owned();
    Ok(if exited? { End::Exited { status, output } } else { End::TimedOut { output } })
}

/// Reads what the child prints until it exits, which is true, or the time is over.
fn wait(pid: Pid, output: &mut io::PipeReader, kept: &mut Vec<u8>, deadline: Instant) -> io::Result<bool> {
    let child = pidfd_open(pid, PidfdFlags::empty())?;
    let mut open = true;
    let mut buffer = [0; 4_096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let (exited, readable) = {
            let mut fds = [
                PollFd::from_borrowed_fd(child.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN),
            ];
            let watched = if open { 2 } else { 1 };
            match poll(&mut fds[..watched], Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => continue,
                outcome => outcome?,
            };
            (!fds[0].revents().is_empty(), open && !fds[1].revents().is_empty())
        };
        if readable {
            match output.read(&mut buffer)? {
                0 => open = false,
                length => {
                    let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len()).min(length);
                    kept.extend_from_slice(&buffer[..room]);
                }
            }
        }
        // What it left running in the background may print for ever.
        if exited && (!readable || kept.len() >= OUTPUT_BYTES_MAX) {
            return Ok(true);
        }
    }
}

/// The process groups that run now; none any more once they were ended.
#[derive(Debug, Default)]
pub(super) struct Children(Mutex<(BTreeSet<i32>, bool)>);

impl Children {
    fn lock(&self) -> MutexGuard<'_, (BTreeSet<i32>, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the agent is ending.
    pub(super) fn ended(&self) -> bool {
        self.lock().1
    }

    /// Starts a child, unless the agent is ending.
    fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut running = self.lock();
        if running.1 {
            return Err(io::Error::other("the agent ends"));
        }
        let child = command.spawn()?;
        running.0.insert(Pid::from_child(&child).as_raw_nonzero().get());
        Ok(child)
    }

    /// Waits for one that has exited or was killed. Until then its number is its own, so nobody else is killed for it.
    fn reap(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let pid = Pid::from_child(child).as_raw_nonzero().get();
        let mut running = self.lock();
        running.0.remove(&pid);
        child.wait()
    }

    /// Kills all there are, and lets no more begin.
    pub(super) fn end(&self) {
        let mut running = self.lock();
        running.1 = true;
        for pid in running.0.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            let _gone = kill_process_group(pid, Signal::KILL);
        }
    }
}
