//! Runs operators' commands: jails' actions and ignorecommands, beside the event loop and never in it.
//!
//! A few threads, each with a bounded queue, one child process at a time. The runs of one action stay in order; one
//! that hangs delays only those that share its thread, until its timeout kills it with everything in its process group.
//! A full queue drops the run and counts it. What is banned, is banned before any of this.
//!
//! A command gets its values in its environment, which holds nothing else but a search path, and nothing on its input.
//! What it prints is kept up to a bound, escaped, and logged.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Read as _},
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, error, warn};

use crate::{
    cli::clean,
    control::protocol::ActionStatus,
    engine::{ASKED_MAX, Act, Ask, AskId, Occasion},
    ledger::Ban,
    policy::CommandLine,
    time::Until,
};

/// Threads for actions.
const ACTION_LANES: usize = 4;
/// Threads for ignorecommands, for which bans wait.
const ASK_LANES: usize = 2;
/// Runs of actions that wait for each thread; further ones are dropped and counted.
pub(super) const ACTIONS_WAITING_MAX: usize = 512;
/// Bytes of a command's output that are kept.
const OUTPUT_BYTES_MAX: usize = 4 << 10;
/// Bytes of matched lines that a command is given: the kernel takes 128 KiB in one variable (execve(2)).
const MATCHES_BYTES_MAX: usize = 64 << 10;
/// How long the agent's end waits for actions.
const STOP_GRACE: Duration = Duration::from_secs(3);
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What an ignorecommand said.
pub(super) type Answer = (AskId, Option<bool>);

/// The queues, and what came of what was put into them.
pub(super) struct Runner {
    action_lanes: Lanes,
    ask_lanes: Lanes,
    next_ask_lane: usize,
    answers: UnboundedSender<Answer>,
    /// Ends when the last thread has.
    ended: Receiver<()>,
    children: Arc<Children>,
    counts: BTreeMap<(Arc<str>, Arc<str>), Arc<Counts>>,
}

/// Of one jail's action, since the agent started.
#[derive(Debug, Default)]
struct Counts {
    waiting: AtomicU64,
    run: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
    dropped: AtomicU64,
}

struct Job {
    /// Whose it is, for the log.
    label: String,
    command: CommandLine,
    environment: Vec<(String, String)>,
    timeout: Duration,
    purpose: Purpose,
}

enum Purpose {
    Act(Arc<Counts>),
    Ask {
        id: AskId,
        answers: UnboundedSender<Answer>,
        /// The ban waits no longer than this.
        until: Instant,
    },
}

impl Runner {
    /// Nothing runs yet, and no thread does before there is something to run.
    pub(super) fn new(answers: UnboundedSender<Answer>) -> Self {
        let (alive, ended) = mpsc::channel();
        let children = Arc::default();
        Self {
            action_lanes: Lanes::new(ACTION_LANES, ACTIONS_WAITING_MAX, &alive, &children),
            ask_lanes: Lanes::new(ASK_LANES, ASKED_MAX, &alive, &children),
            next_ask_lane: 0,
            answers,
            ended,
            children,
            counts: BTreeMap::new(),
        }
    }

    /// Queues a run of an action.
    pub(super) fn act(&mut self, act: &Act) {
        let Act { jail, action, occasion } = act;
        let command = match occasion {
            Occasion::Start => &action.start,
            Occasion::Stop => &action.stop,
            Occasion::Ban { .. } => &action.ban,
            Occasion::Unban { .. } => &action.unban,
        };
        let Some(command) = command.clone() else { return };
        let counts = self.counts.entry((Arc::clone(jail), Arc::clone(&action.name))).or_default();
        let counts = Arc::clone(counts);
        let mut environment = action.environment.clone();
        environment.extend(of_occasion(jail, occasion));
        let label = format!("[{jail}] action {}", action.name);
        let place = lane_of(jail, &action.name);
        let purpose = Purpose::Act(Arc::clone(&counts));
        counts.waiting.fetch_add(1, Relaxed);
        let job = Job { label, command, environment, timeout: action.timeout, purpose };
        if !self.action_lanes.queue(place, job) {
            counts.waiting.fetch_sub(1, Relaxed);
            if counts.dropped.fetch_add(1, Relaxed) == 0 {
                let name = &action.name;
                error!(
                    "[{jail}] action {name}: {ACTIONS_WAITING_MAX} runs wait already; this one and further ones are dropped"
                );
            }
        }
    }

    /// Queues a question; its answer comes by the channel, also when it cannot be put.
    pub(super) fn ask(&mut self, ask: &Ask) {
        let Ask { id, jail, address, failures, command } = ask;
        let mut environment = vec![
            ("BLOCKER_ACTION".to_owned(), "ignore".to_owned()),
            ("BLOCKER_JAIL".to_owned(), jail.to_string()),
            ("BLOCKER_IP".to_owned(), address.to_string()),
            ("BLOCKER_FAILURES".to_owned(), failures.to_string()),
        ];
        environment.push(family(address.is_ipv4()));
        let purpose =
            Purpose::Ask { id: *id, answers: self.answers.clone(), until: Instant::now() + command.timeout };
        let label = format!("[{jail}] ignorecommand for {address}");
        let (command, timeout) = (command.command.clone(), command.timeout);
        self.next_ask_lane = (self.next_ask_lane + 1) % ASK_LANES;
        let job = Job { label, command, environment, timeout, purpose };
        if !self.ask_lanes.queue(self.next_ask_lane, job) {
            // The loop may be ending.
            let _gone = self.answers.send((*id, None));
        }
    }

    /// What came of a jail's actions so far.
    pub(super) fn status(&self, jail: &str) -> Vec<ActionStatus> {
        let of_jail = self.counts.iter().filter(|((of, _), _)| **of == *jail);
        of_jail
            .map(|((_, name), counts)| ActionStatus {
                name: name.to_string(),
                waiting: counts.waiting.load(Relaxed),
                run: counts.run.load(Relaxed),
                failed: counts.failed.load(Relaxed),
                timed_out: counts.timed_out.load(Relaxed),
                dropped: counts.dropped.load(Relaxed),
            })
            .collect()
    }

    /// Waits until the queues are empty, a few seconds at most, and kills what still runs: the agent ends.
    pub(super) fn finish(self) {
        drop((self.action_lanes, self.ask_lanes));
        if self.ended.recv_timeout(STOP_GRACE) == Err(RecvTimeoutError::Timeout) {
            let waiting: u64 = self.counts.values().map(|counts| counts.waiting.load(Relaxed)).sum();
            warn!("{waiting} runs of actions are given up: the agent ends");
            self.children.end();
        }
    }
}

/// The process groups that run now; none any more once they were ended.
#[derive(Debug, Default)]
struct Children(Mutex<(BTreeSet<i32>, bool)>);

impl Children {
    fn lock(&self) -> MutexGuard<'_, (BTreeSet<i32>, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn end(&self) {
        let mut running = self.lock();
        running.1 = true;
        for pid in running.0.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            let _gone = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Threads that take jobs, each started with its first one.
struct Lanes {
    senders: Vec<Option<SyncSender<Job>>>,
    waiting_max: usize,
    alive: mpsc::Sender<()>,
    children: Arc<Children>,
}

impl Lanes {
    fn new(lanes: usize, waiting_max: usize, alive: &mpsc::Sender<()>, children: &Arc<Children>) -> Self {
        let senders = (0..lanes).map(|_| None).collect();
        Self { senders, waiting_max, alive: alive.clone(), children: Arc::clone(children) }
    }

    /// Whether there was room for it.
    fn queue(&mut self, place: usize, job: Job) -> bool {
        let place = place % self.senders.len().max(1);
        let Some(lane) = self.senders.get_mut(place) else { return false };
        let sender = match lane {
            Some(sender) => sender,
            None => {
                let (sender, jobs) = sync_channel(self.waiting_max);
                let (alive, children) = (self.alive.clone(), Arc::clone(&self.children));
                let body = move || {
                    work(&jobs, &children);
                    drop(alive);
                };
                if let Err(error) = thread::Builder::new().name("commands".to_owned()).spawn(body) {
                    error!("start a thread for commands: {error}");
                    return false;
                }
                lane.insert(sender)
            }
        };
        sender.try_send(job).is_ok()
    }
}

/// The runs of one action are always in the same lane, so that a ban's comes before its end's.
fn lane_of(jail: &str, action: &str) -> usize {
    // FNV-1a.
    let hash = jail.bytes().chain([0]).chain(action.bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    usize::try_from(hash % 97).unwrap_or(0)
}

fn work(jobs: &Receiver<Job>, children: &Children) {
    while let Ok(job) = jobs.recv() {
        if children.lock().1 {
            return;
        }
        match &job.purpose {
            Purpose::Act(counts) => {
                let end = run(&job, Instant::now() + job.timeout, children);
                counts.run.fetch_add(1, Relaxed);
                match &end {
                    End::Exited { status, output } if status.success() => {
                        debug!("{}: done: {}", job.label, clean(output));
                    }
                    End::TimedOut { .. } => {
                        counts.timed_out.fetch_add(1, Relaxed);
                        warn!("{}: {end}", job.label);
                    }
                    _ => {
                        counts.failed.fetch_add(1, Relaxed);
                        warn!("{}: {end}", job.label);
                    }
                }
                counts.waiting.fetch_sub(1, Relaxed);
            }
            Purpose::Ask { id, answers, until } => {
                // The ban was made already, when it waited too long in the queue.
                if *until <= Instant::now() {
                    continue;
                }
                let end = run(&job, *until, children);
                let ignore = match &end {
                    End::Exited { status, .. } if status.code() == Some(0) => Some(true),
                    End::Exited { status, .. } if status.code() == Some(1) => Some(false),
                    _ => {
                        warn!("{}: {end}; it is banned", job.label);
                        None
                    }
                };
                let _gone = answers.send((*id, ignore));
            }
        }
    }
}

/// How a run came to its end.
#[derive(Debug)]
enum End {
    Exited { status: ExitStatus, output: String },
    TimedOut { output: String },
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
fn run(job: &Job, deadline: Instant, children: &Children) -> End {
    try_run(job, deadline, children).unwrap_or_else(End::NotRun)
}

fn try_run(job: &Job, deadline: Instant, children: &Children) -> io::Result<End> {
    let mut command = match &job.command {
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
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
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

fn family(v4: bool) -> (String, String) {
    ("BLOCKER_FAMILY".to_owned(), if v4 { "inet4" } else { "inet6" }.to_owned())
}

fn of_occasion(jail: &str, occasion: &Occasion) -> Vec<(String, String)> {
    let (verb, ban) = match occasion {
        Occasion::Start => ("start", None),
        Occasion::Stop => ("stop", None),
        Occasion::Ban { ban, .. } => ("ban", Some(ban)),
        Occasion::Unban { ban } => ("unban", Some(ban)),
    };
    let mut environment =
        vec![("BLOCKER_ACTION".to_owned(), verb.to_owned()), ("BLOCKER_JAIL".to_owned(), jail.to_owned())];
    environment.extend(ban.into_iter().flat_map(of_ban));
    if let Occasion::Ban { matches, restored, .. } = occasion {
        let restored = if *restored { "1" } else { "0" };
        environment.push(("BLOCKER_RESTORED".to_owned(), restored.to_owned()));
        environment.push(("BLOCKER_MATCHES".to_owned(), joined(matches)));
    }
    environment
}

fn of_ban(ban: &Ban) -> Vec<(String, String)> {
    let bantime = match ban.until {
        Until::At(end) => end.saturating_since(ban.since).as_secs().to_string(),
        Until::Forever => "-1".to_owned(),
    };
    let value = |name: &str, value: String| (name.to_owned(), value);
    vec![
        value("BLOCKER_IP", ban.prefix.to_string()),
        value("BLOCKER_FAILURES", ban.failures.to_string()),
        value("BLOCKER_BANTIME", bantime),
        value("BLOCKER_BANCOUNT", ban.count.to_string()),
        value("BLOCKER_TIME", ban.since.as_secs().to_string()),
        family(ban.prefix.address().is_ipv4()),
    ]
}

/// A line each, the latest ones when not all fit, and in none of them anything that steers a terminal.
fn joined(matches: &[String]) -> String {
    let mut lines = Vec::new();
    let mut bytes = 0;
    for line in matches.iter().rev() {
        let line = clean(line);
        bytes += line.len() + 1;
        if bytes > MATCHES_BYTES_MAX {
            break;
        }
        lines.push(line);
    }
    lines.reverse();
    lines.join("\n")
}
