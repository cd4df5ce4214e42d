//! Runs operators' commands: jails' actions and ignorecommands, beside the event loop and never in it.
//!
//! A few threads, each with a bounded queue, one child process at a time. The runs of one action stay in order; one
//! that hangs delays only those that share its thread, until its timeout kills it with everything in its process group.
//! A full queue drops the run and counts it. What is banned, is banned before any of this.
//!
//! What a command prints is logged, escaped.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, error, warn};

use super::{
    child::{Children, End, run},
    environment,
};
use crate::{
    cli::clean,
    control::protocol::ActionStatus,
    engine::{ASKED_MAX, Act, Ask, AskId, Occasion},
    policy::CommandLine,
};

/// Threads for actions.
const ACTION_LANES: usize = 4;
/// Threads for ignorecommands, for which bans wait.
const ASK_LANES: usize = 2;
/// Runs of actions that wait for each thread; further ones are dropped and counted.
pub(super) const ACTIONS_WAITING_MAX: usize = 512;
/// How long the agent's end waits for actions.
const STOP_GRACE: Duration = Duration::from_secs(3);

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
        environment.extend(environment::of_occasion(jail, occasion));
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
        let Ask { id, jail, address, command, .. } = ask;
        let environment = environment::of_ask(ask);
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
        if children.ended() {
            return;
        }
        match &job.purpose {
            Purpose::Act(counts) => {
                let end = run(&job.command, &job.environment, Instant::now() + job.timeout, children);
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
                let end = run(&job.command, &job.environment, *until, children);
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
