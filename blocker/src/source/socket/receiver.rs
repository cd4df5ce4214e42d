//! The thread that takes messages as they come, so that no application waits for a decision or a disk.
//!
//! It waits in one epoll for all sockets and connections. What the loop is too slow for is dropped and counted; senders
//! are never held up. It knows no jail, and asks nobody but the kernel who a sender is.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::epoll,
    io::Errno,
    net::{SocketFlags, acceptfrom_with},
};

use super::{
    framing::{Cut, Framer, Framing},
    listener::Listener,
    sender::{Received, Sender, receive},
    syslog,
};
use crate::{
    policy::{Access, Form, SocketAddress, SocketLimits},
    source::{
        file::LINE_BYTES_MAX,
        intake::{Intake, Lines},
        line::{self, Outcome},
    },
};

/// Messages taken from one socket before the next has its turn.
const MESSAGES_MAX: usize = 256;
/// Connections accepted from one socket before the next has its turn.
const ACCEPTS_MAX: usize = 64;
/// Bytes of lines taken from one socket before the next has its turn.
const TURN_BYTES_MAX: usize = 64 * 1024;
/// How long a socket is left alone for which the kernel had no descriptor or memory.
const PAUSE: Duration = Duration::from_secs(1);
/// When all connections are taken, one that has said nothing for so long gives way to a new one.
const SILENT: Duration = Duration::from_secs(10);

/// What the loop asks of the thread.
pub(super) enum Request {
    /// Listen on these, by key, and on no others.
    Keep(BTreeMap<u32, Access>),
    /// Listen on this as well.
    Add(u32, Box<Listener>),
    /// Hold to these bounds.
    Limit(SocketLimits),
    /// Say how things are, by key.
    Report(SyncSender<BTreeMap<u32, Shown>>),
    /// End.
    Stop,
}

/// How a socket is doing.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) bytes: u64,
    pub(super) connections: usize,
    pub(super) counters: Vec<(&'static str, u64)>,
    pub(super) refused_last: Option<String>,
}

/// The thread's state.
pub(super) struct Receiving {
    pub(super) epoll: OwnedFd,
    /// Readable when there are requests.
    pub(super) asked: OwnedFd,
    pub(super) requests: Receiver<Request>,
    pub(super) intake: Arc<Intake>,
    pub(super) limits: SocketLimits,
    pub(super) own_user: u32,
    pub(super) listeners: BTreeMap<u32, Listener>,
    pub(super) connections: BTreeMap<u32, Connection>,
    pub(super) next_connection: u32,
    pub(super) lines: Lines,
    pub(super) buffer: Vec<u8>,
    /// The second it is, for messages without a date.
    pub(super) arrived: (i64, String),
}

/// A sender that is connected.
pub(super) struct Connection {
    listener: u32,
    sender: Sender,
    socket: OwnedFd,
    framer: Framer,
    /// When it last completed a message.
    heard: Instant,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Asked,
    Listener(u32),
    Connection(u32),
}

impl From<Token> for epoll::EventData {
    fn from(token: Token) -> Self {
        let (kind, number) = match token {
            Token::Asked => (0, 0),
            Token::Listener(key) => (1, key),
            Token::Connection(key) => (2, key),
        };
        Self::new_u64(kind << 32 | u64::from(number))
    }
}

impl From<epoll::EventData> for Token {
    fn from(data: epoll::EventData) -> Self {
        let data = data.u64();
        let number = u32::try_from(data & u64::from(u32::MAX)).unwrap_or(0);
        match data >> 32 {
            1 => Self::Listener(number),
            2 => Self::Connection(number),
            _ => Self::Asked,
        }
    }
}

impl Receiving {
    /// Until it is told to stop, or cannot go on.
    pub(super) fn run(mut self) {
        if self.watch(&self.asked, Token::Asked).is_err() {
            return;
        }
        let mut events = Vec::with_capacity(64);
        loop {
            let wait = self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
            // A millisecond later, so that the deadline has passed when it wakes.
            let wait = wait.map(|wait| (wait + Duration::from_millis(1)).try_into().unwrap_or(ONE_SECOND));
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), wait.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            self.look_at_the_clock();
            for event in &events {
                match Token::from(event.data) {
                    Token::Asked if !self.answer() => return,
                    Token::Asked => {}
                    Token::Listener(key) => self.ready(key),
                    Token::Connection(key) => self.read(key),
                }
                self.hand_over();
            }
            self.keep_time();
        }
    }

    fn watch(&self, socket: &OwnedFd, token: Token) -> Result<(), Errno> {
        epoll::add(&self.epoll, socket, token.into(), epoll::EventFlags::IN)
    }

    /// Does what the loop asks; `false` when that is to end.
    fn answer(&mut self) -> bool {
        let mut count = [0; 8];
        let _was_not_readable = rustix::io::read(&self.asked, &mut count);
        while let Ok(request) = self.requests.try_recv() {
            match request {
                Request::Stop => return false,
                Request::Limit(limits) => self.limits = limits,
                Request::Keep(kept) => self.keep(kept),
                Request::Add(key, listener) => {
                    if self.watch(&listener.socket, Token::Listener(key)).is_ok() {
                        self.listeners.insert(key, *listener);
                    }
                }
                Request::Report(to) => {
                    // Whoever asked may have given up.
                    let _gone = to.send(self.report());
                }
            }
        }
        true
    }

    /// Closes the other sockets, and connections of those who may not write any more.
    fn keep(&mut self, mut kept: BTreeMap<u32, Access>) {
        self.connections.retain(|_, connection| {
            kept.get(&connection.listener)
                .is_some_and(|access| connection.sender.may_write(access, self.own_user))
        });
        self.listeners.retain(|key, listener| match kept.remove(key) {
            Some(access) => {
                listener.access = access;
                true
            }
            None => false,
        });
    }

    fn report(&self) -> BTreeMap<u32, Shown> {
        let connected =
            |key: u32| self.connections.values().filter(|connection| connection.listener == key).count();
        let shown = |(key, listener): (&u32, &Listener)| {
            let mut counters = listener.counters.named();
            counters.retain(|(name, _)| *name != "bytes");
            let (bytes, refused_last) = (listener.counters.bytes, listener.refused_last.clone());
            (*key, Shown { bytes, connections: connected(*key), counters, refused_last })
        };
        self.listeners.iter().map(shown).collect()
    }

    fn ready(&mut self, key: u32) {
        match self.listeners.get(&key).map(|listener| &listener.spec.address) {
            None => {}
            Some(SocketAddress::Datagram(_) | SocketAddress::Udp(_)) => self.messages(key),
            Some(SocketAddress::Stream(_) | SocketAddress::Tcp(_)) => self.accept(key),
        }
    }

    /// Takes datagrams.
    fn messages(&mut self, key: u32) {
        let Some(listener) = self.listeners.get_mut(&key) else { return };
        self.buffer.resize(LINE_BYTES_MAX, 0);
        for _ in 0..MESSAGES_MAX {
            let received = receive(&listener.spec.address, &listener.socket, &mut self.buffer);
            let Received { length, cut, sender, kernel_dropped } = match received {
                Ok(received) => received,
                Err(nix::Error::EAGAIN) => return,
                Err(nix::Error::EINTR) => continue,
                Err(_) => return pause(&self.epoll, key, listener),
            };
            if let Some(dropped) = kernel_dropped {
                listener.counters.kernel_dropped = u64::from(dropped);
            }
            if !sender.may_write(&listener.access, self.own_user) {
                listener.refuse(|| sender.to_string());
                continue;
            }
            if cut {
                listener.counters.too_long += 1;
                continue;
            }
            let message = self.buffer.get(..length).unwrap_or_default();
            take_message(listener, message, &self.arrived.1, &mut self.lines);
            self.lines.mark(key);
            if self.lines.text.len() >= TURN_BYTES_MAX {
                return;
            }
        }
    }

    /// Takes connections.
    fn accept(&mut self, key: u32) {
        for _ in 0..ACCEPTS_MAX {
            let is_full = self.connections.len() >= self.limits.connections_max;
            let Some(listener) = self.listeners.get_mut(&key) else { return };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (socket, address) = match acceptfrom_with(&listener.socket, flags) {
                Ok(accepted) => accepted,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(_) => return pause(&self.epoll, key, listener),
            };
            let sender = Sender::connected(&listener.spec.address, &socket, address);
            if !sender.may_write(&listener.access, self.own_user) {
                listener.refuse(|| sender.to_string());
                continue;
            }
            let framing = (listener.spec.form == Form::Line).then_some(Framing::Newline);
            if is_full && !self.one_gives_way() {
                if let Some(listener) = self.listeners.get_mut(&key) {
                    listener.counters.turned_away += 1;
                }
                continue;
            }
            let id = self.next_connection;
            self.next_connection = id.wrapping_add(1);
            if self.watch(&socket, Token::Connection(id)).is_ok() {
                let (framer, heard) = (Framer::new(framing), Instant::now());
                self.connections.insert(id, Connection { listener: key, sender, socket, framer, heard });
            }
        }
    }

    /// Closes the connection that has been silent for longest, if that is long enough.
    fn one_gives_way(&mut self) -> bool {
        let oldest = self.connections.iter().min_by_key(|(_, connection)| connection.heard);
        let Some((id, _)) = oldest.filter(|(_, connection)| connection.heard.elapsed() >= SILENT) else {
            return false;
        };
        self.close_idle(*id);
        true
    }

    fn close_idle(&mut self, id: u32) {
        if let Some(connection) = self.connections.remove(&id)
            && let Some(listener) = self.listeners.get_mut(&connection.listener)
        {
            listener.counters.idle_closed += 1;
        }
    }

    /// Takes what a connection has sent.
    fn read(&mut self, id: u32) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Some(listener) = self.listeners.get_mut(&connection.listener) else { return };
        self.buffer.resize(LINE_BYTES_MAX, 0);
        let length = match rustix::io::read(&connection.socket, &mut self.buffer) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok(length) => length,
            // Reset by its sender.
            Err(_) => 0,
        };
        if length == 0 {
            listener.counters.unfinished += u64::from(connection.framer.is_unfinished());
            self.connections.remove(&id);
            return;
        }
        let bytes = self.buffer.get(..length).unwrap_or_default();
        let (lines, arrived) = (&mut self.lines, &self.arrived.1);
        let mut heard = false;
        let outcome = connection.framer.take(bytes, &mut |cut| {
            heard = true;
            match cut {
                Cut::Message(message) => take_message(listener, message, arrived, lines),
                Cut::TooLong => listener.counters.too_long += 1,
            }
        });
        self.lines.mark(connection.listener);
        if heard {
            connection.heard = Instant::now();
        }
        if outcome.is_err() {
            listener.counters.out_of_frame += 1;
            self.connections.remove(&id);
        }
    }

    /// Leaves for the loop what was read.
    fn hand_over(&mut self) {
        for (key, lines) in self.lines.runs() {
            let Some(listener) = self.listeners.get_mut(&key) else { continue };
            let count = memchr::memchr_iter(b'\n', lines).count() as u64;
            if self.intake.offer(key, lines, self.limits.queue_bytes_max) {
                listener.counters.lines += count;
                listener.counters.bytes += lines.len() as u64;
            } else {
                listener.counters.dropped += count;
            }
        }
        self.lines.clear();
    }

    fn next_deadline(&self) -> Option<Instant> {
        let paused = self.listeners.values().filter_map(|listener| listener.paused_until);
        let idle = self.connections.values().map(|connection| connection.heard + self.limits.idle);
        paused.chain(idle).min()
    }

    /// Looks again at sockets that were left alone, and closes connections that said nothing.
    fn keep_time(&mut self) {
        let now = Instant::now();
        for (key, listener) in &mut self.listeners {
            if listener.paused_until.is_some_and(|until| until <= now) {
                listener.paused_until = None;
                let token = Token::Listener(*key);
                let _gone = epoll::modify(&self.epoll, &listener.socket, token.into(), epoll::EventFlags::IN);
            }
        }
        let idle = self.limits.idle;
        let silent: Vec<u32> = self
            .connections
            .iter()
            .filter(|(_, connection)| now.saturating_duration_since(connection.heard) >= idle)
            .map(|(id, _)| *id)
            .collect();
        silent.into_iter().for_each(|id| self.close_idle(id));
    }

    fn look_at_the_clock(&mut self) {
        let now = jiff::Timestamp::now();
        if self.arrived.0 != now.as_second() {
            self.arrived = (now.as_second(), now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        }
    }
}

const ONE_SECOND: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };

/// The kernel has no descriptor or memory: asking again at once would only burn time.
fn pause(epoll: &OwnedFd, key: u32, listener: &mut Listener) {
    listener.counters.failed += 1;
    listener.paused_until = Some(Instant::now() + PAUSE);
    let token = Token::Listener(key);
    let _gone = epoll::modify(epoll, &listener.socket, token.into(), epoll::EventFlags::empty());
}

/// Makes a line of a message, and counts what it was.
fn take_message(listener: &mut Listener, message: &[u8], arrived: &str, lines: &mut Lines) {
    let outcome = match listener.spec.form {
        Form::Line => line::write(message, &mut lines.text),
        Form::Syslog => syslog::write(message, arrived, &mut lines.text),
    };
    match outcome {
        Outcome::Line => {}
        Outcome::Odd => listener.counters.malformed += 1,
        Outcome::Empty => listener.counters.empty += 1,
        Outcome::TooLong => listener.counters.too_long += 1,
    }
}
