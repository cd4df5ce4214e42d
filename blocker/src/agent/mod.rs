//! The agent: one event loop that feeds the engine and carries out what it says.
//!
//! It decides nothing about bans. Inputs (lines, requests, time) go to the engine with the time stamped on them; the
//! engine's commands are drained in groups: one durable transaction, one batch for the kernel, then the answers.
//! Whatever fails here degrades, is said in `status`, and is tried again; nothing but a signal ends the loop.
#![deny(unsafe_code)]

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher as _, RandomState},
    io,
    os::fd::AsFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::sleep_until,
};
use tracing::{error, info, warn};

use crate::{
    config::{self, Backend, Config, ConfigErrors, Interfaces},
    control::{
        protocol::{Call, CallError},
        server::{Asked, Pending, Reply, Server},
    },
    enforce::{EnforceError, Enforcer, Keep, xdp},
    engine::{Engine, Input, Kept, RequestId, SourceId},
    filter::date::{self, Clock},
    policy::SourceSpec,
    source::{SocketSource, StdinSource, file, journal},
    store::{Store, StoreError},
    time::Timestamp,
};

mod backend;
mod carry;
mod child;
mod closing;
mod environment;
mod inputs;
mod keep;
mod listing;
mod memory;
mod migration;
mod note;
mod protected;
mod reconcile;
mod report;
mod runner;
mod unlogged;

pub use unlogged::{Instead, read_journal_instead, unlogged};

use closing::Closing;
use inputs::{readable, socket_specs, stdin, watched};
use keep::Keeping;
use listing::Listing;
use note::shown;
use reconcile::Upkeep;
use runner::{Answer, Runner};

/// How often the kernel half is checked and repaired, and what failed is tried again.
const REPAIR_EVERY: Duration = Duration::from_secs(1);
/// So long after word of a change it is followed: what belongs together is then told.
const SETTLE: Duration = Duration::from_millis(20);
/// How often read positions are written down and protected addresses looked up again.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(10);
/// Requests waiting for the loop; the server makes further ones wait.
const CALLS_WAITING_MAX: usize = 32;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Overrides `[enforce] backend`.
    pub backend: Option<Backend>,
    /// Overrides `[enforce] interfaces` when not empty.
    pub interfaces: Vec<String>,
    /// Whether jails that say so read standard input.
    pub stdin: bool,
    /// Counts the lines of the agent's own log that nobody took in time.
    pub log_unwritten: tracing_appender::non_blocking::ErrorCounter,
}

/// Why the agent did not start.
#[derive(Debug)]
pub enum Error {
    /// The configuration is refused.
    Config(ConfigErrors),
    /// The ledger on disk cannot be opened.
    Store(StoreError),
    /// No enforcer can be had.
    Enforce(EnforceError),
    /// A socket, watch or signal could not be set up.
    Start(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(errors) => errors.fmt(f),
            Self::Store(error) => error.fmt(f),
            Self::Enforce(error) => error.fmt(f),
            Self::Start(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}

/// Runs until SIGTERM or SIGINT; the kernel keeps dropping afterwards.
///
/// # Errors
/// Only before the loop starts.
pub fn run(options: &Options) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Start(format!("start the event loop: {error}")))?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async { Agent::start(options)?.serve().await })
}

/// The configuration with the command line over it, /// with what the host makes of it; and what the operator is to know of that.
fn configure(options: &Options) -> Result<(Config, Vec<Instead>), ConfigErrors> {
    let mut config = config::load(&options.config)?;
    if let Some(backend) = options.backend {
        config.enforce.backend = backend;
    }
    if !options.interfaces.is_empty() {
        config.enforce.interfaces = Interfaces::Named(options.interfaces.clone());
    }
    let protected = protected::discover();
    config.policy.protected = protected.prefixes;
    config.policy.utc_offset_secs = utc_offset_secs();
    config.policy.zone = Some(jiff::tz::TimeZone::system());
    for warning in &protected.warnings {
        warn!("{warning}");
    }
    let instead = read_journal_instead(&mut config.policy);
    Ok((config, instead))
}

fn utc_offset_secs() -> i32 {
    jiff::tz::TimeZone::system().to_offset(jiff::Timestamp::now()).seconds()
}

/// The wall clock, read here and handed down.
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::EPOCH.saturating_add(since)
}

struct Agent {
    options: Options,
    config: Config,
    engine: Engine,
    enforcer: Box<dyn Enforcer>,
    why: String,
    store: Store,
    files: file::FileSource,
    journal: journal::JournalSource,
    sockets: SocketSource,
    stdin: Option<StdinSource>,
    waiting: HashMap<RequestId, oneshot::Sender<Result<Reply<Listing>, CallError>>>,
    /// As often held as long lists are being read, and once more.
    listings: Arc<()>,
    next_request: u64,
    started: Instant,
    /// What is not as it should be, by the part it concerns; shown by `status` until it is mended.
    degraded: Degraded,
    /// What was last logged of what is attached and what is not.
    told: (Vec<String>, Vec<String>),
    warnings: Vec<String>,
    /// Jails whose logs are waited for.
    instead: Vec<Instead>,
    keeping: Keeping,
    upkeep: Upkeep,
    /// Whether a sync runs on another thread, whether there is more to sync since, and where its outcome is sent.
    syncing: bool,
    sync_again: bool,
    synced: mpsc::UnboundedSender<Result<(), StoreError>>,
    sync_outcomes: Option<mpsc::UnboundedReceiver<Result<(), StoreError>>>,
    /// Runs commands, and where ignorecommands' answers come from.
    runner: Runner,
    answers: Option<mpsc::UnboundedReceiver<Answer>>,
    /// Closes connections, and where it says what came of it.
    closing: Closing,
    closed: Option<mpsc::UnboundedReceiver<closing::Done>>,
}

/// What is wrong right now.
#[derive(Default)]
struct Degraded {
    store: Option<String>,
    enforcer: Option<String>,
}

impl Agent {
    fn start(options: &Options) -> Result<Self, Error> {
        let (config, instead) = configure(options).map_err(Error::Config)?;
        let (mut store, mut stored) = Store::open(&config.state_dir).map_err(Error::Store)?;
        migration::take_over(&config, &mut store, &mut stored, now());
        let backend::Chosen { enforcer, why } = backend::choose(&config).map_err(Error::Enforce)?;
        let instant = now();
        let positions = keep::Positions::read(&mut stored.read);
        let files = file::FileSource::new(
            &file_specs(&config),
            positions.files,
            file::Options::default(),
            Some(&file::FirstStart {
                since: &|source| since(&config, source, instant),
                date_of: &|line| date_of(&config, line, instant),
            }),
        )
        .map_err(|error| Error::Start(format!("watch log files with inotify: {error}")))?;
        let journal = journal::JournalSource::new(&journal_specs(&config, instant), &positions.journals)
            .map_err(|error| Error::Start(format!("read the journal: {error}")))?;
        let mut sockets =
            SocketSource::new().map_err(|error| Error::Start(format!("listen on sockets: {error}")))?;
        sockets.set_sources(&socket_specs(&config), config.policy.limits.sockets);
        let stdin = options.stdin.then(|| stdin(&config)).transpose()?;
        let warnings = config.warnings.iter().map(ToString::to_string);
        let warnings = warnings
            .chain(instead.iter().map(|one| one.note.clone()))
            .chain(stored.notes)
            .chain(stored.read.refused)
            .collect();
        let mut policy = config.policy.clone();
        // The standard library's hash maps are seeded from the system's random numbers.
        policy.seed = RandomState::new().hash_one(0);
        let (since, after) = (recent_horizon(&config, instant), stored.read.history);
        let unread = |error| warn!("lines that are read again may be counted again: {error}");
        let recent = store.recent_bans(since, after).map_err(unread).unwrap_or_default();
        let served = store.served(since, after).map_err(unread).unwrap_or_default();
        let kept = Kept {
            bans: stored.bans,
            allow: stored.allow,
            offences: stored.offences,
            recent,
            served,
            counted: stored.read.counted,
        };
        let engine = Engine::new(instant, policy, kept);
        // As many answers at once as the engine has questions.
        let (answered, answers) = mpsc::unbounded_channel();
        // At most one outcome is under way.
        let (synced, sync_outcomes) = mpsc::unbounded_channel();
        let (closed, closed_outcomes) = mpsc::unbounded_channel();
        Ok(Self {
            syncing: false,
            sync_again: false,
            synced,
            sync_outcomes: Some(sync_outcomes),
            runner: Runner::new(answered),
            answers: Some(answers),
            closing: Closing::new(config.enforce.close_connections, closed),
            closed: Some(closed_outcomes),
            options: options.clone(),
            sockets,
            stdin,
            engine,
            enforcer,
            why,
            store,
            files,
            journal,
            waiting: HashMap::new(),
            listings: Arc::default(),
            next_request: 0,
            started: Instant::now(),
            degraded: Degraded::default(),
            told: Default::default(),
            warnings,
            instead,
            keeping: Keeping::default(),
            upkeep: Upkeep::default(),
            config,
        })
    }

    async fn serve(mut self) -> Result<(), Error> {
        let start = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| Error::Start(format!("{what}: {error}"))
        };
        let server = Server::bind(&self.config.socket).map_err(|error| Error::Start(error.to_string()))?;
        let (calls, mut called) = mpsc::channel::<Pending<Listing>>(CALLS_WAITING_MAX);
        tokio::task::spawn_local(server.run(calls));
        let mut terminate = signal(SignalKind::terminate()).map_err(start("watch for SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(start("watch for SIGINT"))?;
        let mut hangup = signal(SignalKind::hangup()).map_err(start("watch for SIGHUP"))?;
        let Some(mut sync_outcomes) = self.sync_outcomes.take() else { return Ok(()) };
        let Some(mut answers) = self.answers.take() else { return Ok(()) };
        let Some(mut closed) = self.closed.take() else { return Ok(()) };
        let files_ready = watched(self.files.as_fd()).map_err(start("watch log files"))?;
        let journal_ready = watched(self.journal.as_fd()).map_err(start("watch the journal"))?;
        let sockets_ready = watched(self.sockets.as_fd()).map_err(start("watch sockets"))?;
        let stdin_ready = self.stdin.as_ref().map(|stdin| watched(stdin.as_fd())).transpose();
        let stdin_ready = stdin_ready.map_err(start("watch standard input"))?;
        let kernel_changed = self.enforcer.changes().map(watched).transpose();
        let kernel_changed = kernel_changed.map_err(start("watch the interfaces"))?;

        self.announce();
        self.reconcile();
        self.drain();

        let (mut repair_at, mut keep_house_at) =
            (Instant::now() + REPAIR_EVERY, Instant::now() + HOUSEKEEPING_EVERY);
        let mut files_at = self.poll_files();
        self.drain();
        self.keep_if_read();
        memory::give_back();
        loop {
            let on_at = self.upkeep.is_running().then(Instant::now);
            let mine = [self.engine_at(), self.keep_at(), self.closing.at(), on_at];
            let wake_at = [Some(repair_at), Some(keep_house_at), files_at].into_iter().chain(mine);
            let wake_at = wake_at.flatten().min().unwrap_or(repair_at);
            tokio::select! {
                biased;
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = readable(Some(&files_ready)) => files_at = self.poll_files(),
                () = readable(Some(&journal_ready)) => self.poll_journal(),
                () = readable(Some(&sockets_ready)) => self.poll_sockets(),
                () = readable(stdin_ready.as_ref()) => self.poll_stdin(),
                () = readable(kernel_changed.as_ref()) => repair_at = repair_at.min(Instant::now() + SETTLE),
                Some(pending) = called.recv() => self.call(pending),
                Some(outcome) = sync_outcomes.recv() => self.sync_done(outcome),
                Some((id, ignore)) = answers.recv() => {
                    self.engine.handle(now(), Input::Answer { id, ignore });
                }
                Some(done) = closed.recv() => self.connections_closed(done),
                _ = hangup.recv() => {
                    let _said = self.reload();
                }
                () = sleep_until(wake_at.into()) => {
                    let instant = Instant::now();
                    if files_at.is_some_and(|at| at <= instant) {
                        files_at = self.poll_files();
                    }
                    if repair_at <= instant {
                        repair_at = instant + REPAIR_EVERY;
                        self.repair();
                    }
                    if keep_house_at <= instant {
                        keep_house_at = instant + HOUSEKEEPING_EVERY;
                        self.keep_house();
                    }
                    self.engine.handle(now(), Input::Tick);
                }
            }
            self.drain();
            self.close_connections();
            self.keep_in_time();
            self.reconcile_on();
        }
        self.engine.handle(now(), Input::Stop);
        self.drain();
        self.keep_if_read();
        let _said = self.sync();
        self.runner.finish();
        info!("stopping; the kernel keeps dropping {} bans (`blocker flush` lifts them)", self.engine.bans());
        self.enforcer.close(Keep::InForce).unwrap_or_else(|error| error!("let go of the kernel: {error}"));
        Ok(())
    }

    fn announce(&self) {
        let description = self.enforcer.describe();
        info!(
            "blocker {} enforcing with {} ({}): {}",
            env!("CARGO_PKG_VERSION"),
            description.backend,
            attached(&description.attachments),
            self.why
        );
        self.enforcer.notes().iter().for_each(|note| info!("{note}"));
        for jail in &self.config.policy.jails {
            info!(
                "[{}] maxretry {} in {}, ban {}{}",
                jail.name,
                jail.maxretry,
                crate::time::span_text(jail.findtime),
                jail.bantime,
                note::on(&jail.scope)
            );
        }
        for jail in &self.config.policy.jails {
            if let Some(warning) = unlogged(&self.config.policy, jail) {
                warn!("{warning}");
            }
        }
        if !xdp::is_built_in() {
            warn!("{}", backend::XDP_NOT_BUILT_IN);
        }
        if self.config.enforce.close_connections && !self.closing.kept.is_empty() {
            warn!("connections of banned sources stay open: {}", self.closing.kept);
        }
        for warning in &self.warnings {
            warn!("{warning}");
        }
        for trouble in self.sockets.troubles() {
            error!("{trouble}");
        }
    }

    fn engine_at(&self) -> Option<Instant> {
        let due = self.engine.next_timeout()?;
        Some(Instant::now() + due.saturating_since(now()))
    }

    fn call(&mut self, pending: Pending<Listing>) {
        let Pending { call, reply, peer } = pending;
        let call = match call {
            Asked::Call(call) => call,
            Asked::More(listing) => {
                let _gone = reply.send(self.more_bans(listing));
                return;
            }
        };
        let answer = match call {
            Call::Status => self.status().map(Reply::Whole),
            Call::Bans { prefix, limit } => self.bans(prefix, limit),
            Call::Reload => self.reload().map(Reply::Whole),
            Call::Engine(request) => {
                info!("uid {} (pid {}) asks: {}", peer.uid, peer.pid, shown(&request));
                let id = RequestId(self.next_request);
                self.next_request += 1;
                self.waiting.insert(id, reply);
                self.engine.handle(now(), Input::Operator { id, request });
                return;
            }
        };
        // Whoever asked may have gone meanwhile.
        let _gone = reply.send(answer);
    }

    /// Reads the configuration again. Any error in it leaves everything as it was.
    fn reload(&mut self) -> Result<Value, CallError> {
        let (config, instead) = configure(&self.options).map_err(|errors| {
            error!("reload refused, nothing changed:\n{errors}");
            CallError::refused(&format!("the configuration is refused and nothing changed:\n{errors}"))
        })?;
        let mut restart = Vec::new();
        if config.socket != self.config.socket {
            restart.push("socket");
        }
        if config.state_dir != self.config.state_dir {
            restart.push("state_dir");
        }
        if config.enforce != self.config.enforce
            || config.policy.limits.bans_max != self.config.policy.limits.bans_max
        {
            restart.push("[enforce]");
        }
        let notes = instead.iter().map(|one| one.note.clone());
        self.warnings = config.warnings.iter().map(ToString::to_string).chain(notes).collect();
        self.instead = instead;
        if let Some(path) = config.former_bans.as_ref().filter(|path| path.exists())
            && self.config.former_bans != config.former_bans
        {
            let at = path.display();
            self.warnings.push(format!("fail2ban's bans in {at} are taken over at the next start"));
        }
        if !restart.is_empty() {
            self.warnings.push(format!("{}: a change takes effect at the next start", restart.join(", ")));
        }
        self.config =
            Config { socket: self.config.socket.clone(), state_dir: self.config.state_dir.clone(), ..config };
        // What has arrived was sent to the jails as they were.
        self.poll_sockets();
        self.engine.set_policy(now(), self.config.policy.clone());
        let (config, instant) = (&self.config, now());
        let first = file::FirstStart {
            since: &|source| since(config, source, instant),
            date_of: &|line| date_of(config, line, instant),
        };
        self.files.set_files(&file_specs(config), Some(&first));
        self.arrange_journal();
        let limits = self.config.policy.limits.sockets;
        self.sockets.set_sources(&socket_specs(&self.config), limits);
        let troubles = self.sockets.troubles();
        troubles.iter().for_each(|trouble| error!("{trouble}"));
        self.drain();
        self.reconcile();
        memory::give_back();
        info!("reloaded {}: {} jails", self.config.path.display(), self.config.policy.jails.len());
        let warnings: Vec<&String> = self.warnings.iter().chain(&troubles).collect();
        Ok(serde_json::json!({ "jails": self.config.policy.jails.len(), "warnings": warnings }))
    }

    // Upkeep.

    fn keep_house(&mut self) {
        self.keep_if_read();
        self.sockets.open_missing();
        self.read_appeared_logs();
        let found = protected::discover().prefixes;
        if found != self.config.policy.protected {
            info!("protected addresses changed: {} now", found.len());
            self.config.policy.protected = found;
            self.engine.set_policy(now(), self.config.policy.clone());
            self.drain();
            self.reconcile();
        }
    }
}

/// What is attached where, as it is logged.
fn attached(attachments: &[String]) -> String {
    if attachments.is_empty() { "nothing attached yet".to_owned() } else { attachments.join(", ") }
}

/// From when on earlier bans matter to some jail.
fn recent_horizon(config: &Config, now: Timestamp) -> Timestamp {
    let longest = config.policy.jails.iter().map(|jail| jail.findtime).max().unwrap_or_default();
    now.saturating_sub(longest)
}

/// From when on lines of a source count in some jail: where it is begun if it was never read.
fn since(config: &Config, source: SourceId, now: Timestamp) -> Timestamp {
    let jails = config.policy.jails.iter().filter(|jail| jail.sources.contains(&source));
    now.saturating_sub(jails.map(|jail| jail.findtime).max().unwrap_or_default())
}

/// What a line's date says, where it is of a form that needs no filter's help.
fn date_of(config: &Config, line: &[u8], now: Timestamp) -> Option<Timestamp> {
    let clock = Clock { now, utc_offset_secs: config.policy.utc_offset_secs };
    date::find(&String::from_utf8_lossy(line))?.at(clock)
}

fn file_specs(config: &Config) -> Vec<(SourceId, file::LogFile)> {
    let specs = config.policy.sources.iter().enumerate();
    specs
        .filter_map(|(index, spec)| match spec {
            SourceSpec::File(path) => Some((SourceId(u16::try_from(index).ok()?), path.clone().into())),
            SourceSpec::Container(path, format) => Some((
                SourceId(u16::try_from(index).ok()?),
                file::LogFile { path: path.clone(), format: Some(*format) },
            )),
            _ => None,
        })
        .collect()
}

fn journal_specs(config: &Config, now: Timestamp) -> Vec<journal::JournalSpec> {
    let specs = config.policy.sources.iter().enumerate();
    specs
        .filter_map(|(index, spec)| match spec {
            SourceSpec::Journal { matches, namespace } => {
                let source = SourceId(u16::try_from(index).ok()?);
                // A jail's that reads its logs again is nobody's.
                config.policy.jails.iter().find(|jail| jail.sources.contains(&source))?;
                let since = since(config, source, now);
                Some(journal::JournalSpec {
                    source,
                    matches: matches.clone(),
                    namespace: namespace.clone(),
                    since,
                })
            }
            _ => None,
        })
        .collect()
}
