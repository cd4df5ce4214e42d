//! Sockets that lines are sent to: applications' lines and JSON objects over unix datagrams and streams, syslog over
//! unix datagrams, UDP and TCP.
//!
//! A thread takes what comes (`receiver`), so that a sender never waits for us; [`SocketSource`] hands it to the loop.
//! Who may write is decided by what the kernel says of the sender: its user and group on unix sockets, its address on
//! the others, which on UDP anybody in the network can make up. A message is one line, whatever is in it. What lines
//! mean, nobody here knows. There is no thread and no buffer while no socket is configured.
//!
//! | module | story |
//! |---|---|
//! | `listener` | a socket: how it is made, what is counted |
//! | `receiver` | the thread: messages, connections, bounds |
//! | `sender` | who sent a message |
//! | `framing` | from a connection's bytes to messages |
//! | `syslog` | from a syslog message to a line |
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Sender, channel, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::event::{EventfdFlags, epoll, eventfd};

use super::intake::{Intake, Lines, Outlet, signal};
use crate::{
    engine::SourceId,
    policy::{SocketAddress, SocketLimits, SocketSpec},
};
use listener::Listener;
use receiver::{Receiving, Request, Shown};

pub mod framing;
mod listener;
mod receiver;
mod sender;
pub mod syslog;

/// How long the thread may take to say how it is.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What is known of one socket.
#[derive(Clone, Debug)]
pub struct SocketStatus {
    /// As the configuration has it.
    pub name: String,
    /// In words; starts with "listening" only if it is.
    pub state: String,
    /// Bytes of lines handed over.
    pub bytes: u64,
    /// `connections` are those of now; the others count since the socket was opened.
    pub counters: Vec<(&'static str, u64)>,
}

/// Sockets as a source of lines. Its descriptor is readable when [`SocketSource::poll`] has something to hand out.
#[derive(Debug)]
pub struct SocketSource {
    outlet: Outlet,
    intake: Arc<Intake>,
    sockets: Vec<Socket>,
    next_key: u32,
    limits: SocketLimits,
    thread: Option<Thread>,
}

/// A socket that is wanted.
#[derive(Debug)]
struct Socket {
    key: u32,
    source: SourceId,
    spec: SocketSpec,
    /// Why it is not listened on; tried again.
    trouble: Option<String>,
}

#[derive(Debug)]
struct Thread {
    requests: Sender<Request>,
    asked: OwnedFd,
    handle: JoinHandle<()>,
}

impl AsFd for SocketSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.outlet.as_fd()
    }
}

impl SocketSource {
    /// Listens on nothing yet.
    ///
    /// # Errors
    /// When the kernel gives no descriptor.
    pub fn new() -> io::Result<Self> {
        let intake = Intake::new()?;
        let outlet = Outlet::new(Arc::clone(&intake));
        let limits = SocketLimits::default();
        Ok(Self { outlet, intake, sockets: Vec::new(), next_key: 0, limits, thread: None })
    }

    /// Listens on these from now on; sockets that stay are never closed, and so lose nothing. What cannot be listened on
    /// is in [`SocketSource::troubles`].
    pub fn set_sources(&mut self, specs: &[(SourceId, SocketSpec)], limits: SocketLimits) {
        self.limits = limits;
        let mut before = std::mem::take(&mut self.sockets);
        for (source, spec) in specs {
            // The file's mode and owner are given when it is made.
            let same = |known: &Socket| {
                let file = |spec: &SocketSpec| {
                    let access = spec.access.clone().unwrap_or_default();
                    (access.mode, access.owner, access.group)
                };
                (&known.spec.address, known.spec.form, file(&known.spec))
                    == (&spec.address, spec.form, file(spec))
            };
            let kept = before.iter().position(same).map(|at| before.swap_remove(at));
            let (key, trouble) = match kept {
                Some(Socket { key, trouble, .. }) => (key, trouble),
                None => {
                    self.next_key = self.next_key.wrapping_add(1);
                    (self.next_key, Some("not opened yet".to_owned()))
                }
            };
            self.sockets.push(Socket { key, source: *source, spec: spec.clone(), trouble });
        }
        if self.sockets.is_empty() {
            return self.end();
        }
        if self.thread.is_some() {
            self.ask(Request::Limit(limits));
            self.keep();
        }
        self.open_missing();
    }

    /// Closes what is not wanted any more. A socket that goes has to be closed before another takes its name.
    fn keep(&self) {
        let access = |socket: &Socket| (socket.key, socket.spec.access.clone().unwrap_or_default());
        self.ask(Request::Keep(self.sockets.iter().map(access).collect()));
        let _closed = self.report();
    }

    /// Tries again to listen on what could not be listened on, and anew where somebody has removed a socket's file.
    pub fn open_missing(&mut self) {
        self.let_go_of_removed();
        for at in 0..self.sockets.len() {
            let Some(Socket { key, spec, .. }) =
                self.sockets.get(at).filter(|socket| socket.trouble.is_some())
            else {
                continue;
            };
            let key = *key;
            let opened = Listener::open(spec).and_then(|listener| {
                self.start()?;
                Ok(listener)
            });
            let trouble = match opened {
                Ok(listener) => {
                    self.ask(Request::Add(key, Box::new(listener)));
                    None
                }
                Err(error) => Some(error.to_string()),
            };
            if let Some(socket) = self.sockets.get_mut(at) {
                socket.trouble = trouble;
            }
        }
    }

    /// Nobody finds a socket without its file.
    fn let_go_of_removed(&mut self) {
        let mut removed = false;
        for socket in self.sockets.iter_mut().filter(|socket| socket.trouble.is_none()) {
            let (SocketAddress::Datagram(path) | SocketAddress::Stream(path)) = &socket.spec.address else {
                continue;
            };
            if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                self.next_key = self.next_key.wrapping_add(1);
                socket.key = self.next_key;
                socket.trouble = Some(format!("{} was removed", path.display()));
                removed = true;
            }
        }
        if removed {
            self.keep();
        }
    }

    /// Why some of what is wanted is not listened on.
    pub fn troubles(&self) -> Vec<String> {
        self.sockets.iter().filter_map(|socket| socket.trouble.clone()).collect()
    }

    /// Hands out the lines that have arrived, up to about a MiB. If there is more, the descriptor stays readable.
    pub fn poll(&mut self, sink: &mut dyn FnMut(SourceId, &[u8])) {
        let sockets = &self.sockets;
        self.outlet.poll(&mut |key, lines| {
            if let Some(socket) = sockets.iter().find(|socket| socket.key == key) {
                sink(socket.source, lines);
            }
        });
    }

    /// What is listened on, and what is in the way.
    pub fn status(&self) -> Vec<SocketStatus> {
        let mut reported = self.report().unwrap_or_default();
        let status = |socket: &Socket| {
            let name = socket.spec.to_string();
            let shown = reported.remove(&socket.key);
            match (&socket.trouble, shown) {
                (Some(trouble), _) => {
                    let state = format!("not listening: {trouble}");
                    SocketStatus { name, state, bytes: 0, counters: Vec::new() }
                }
                (None, None) => {
                    let state = "not listening: its thread has ended; start the agent again".to_owned();
                    SocketStatus { name, state, bytes: 0, counters: Vec::new() }
                }
                (None, Some(Shown { bytes, connections, mut counters, refused_last })) => {
                    let refused =
                        refused_last.map_or_else(String::new, |whom| format!(", refused last: {whom}"));
                    let state = format!("listening, for {}{refused}", socket.spec.writers());
                    counters.insert(0, ("connections", connections as u64));
                    SocketStatus { name, state, bytes, counters }
                }
            }
        };
        self.sockets.iter().map(status).collect()
    }

    fn report(&self) -> Option<BTreeMap<u32, Shown>> {
        let (to, reported) = sync_channel(1);
        self.ask(Request::Report(to));
        reported.recv_timeout(ANSWER_WITHIN).ok()
    }

    fn ask(&self, request: Request) {
        if let Some(thread) = &self.thread {
            // A thread that has ended answers nothing, which `status` says.
            let _ended = thread.requests.send(request);
            signal(&thread.asked);
        }
    }

    fn start(&mut self) -> io::Result<()> {
        if self.thread.is_some() {
            return Ok(());
        }
        let asked = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (sender, requests) = channel();
        let receiving = Receiving {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            asked: asked.try_clone()?,
            requests,
            intake: Arc::clone(&self.intake),
            limits: self.limits,
            own_user: rustix::process::geteuid().as_raw(),
            listeners: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: 0,
            lines: Lines::default(),
            buffer: Vec::new(),
            arrived: (0, String::new()),
        };
        let handle = thread::Builder::new().name("sockets".to_owned()).spawn(move || receiving.run())?;
        self.thread = Some(Thread { requests: sender, asked, handle });
        Ok(())
    }

    fn end(&mut self) {
        self.ask(Request::Stop);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.handle.join();
        }
    }
}

impl Drop for SocketSource {
    fn drop(&mut self) {
        self.end();
    }
}
