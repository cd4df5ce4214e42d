//! systemd's journal, followed by cursor.
//!
//! Each journal (the host's own, and each namespace) is read once, in a thread, for all jails on it; [`JournalSource`]
//! takes the lines from there without blocking. Matches are pushed down to the reader: libsystemd where it is, else
//! `journalctl` as a child. Which entries a jail may believe is decided here, by what journald knows of the sender and
//! not by what the sender says of itself (`entry`). The caller waits on the descriptor and keeps the positions; what
//! lines mean, nobody here knows.
//!
//! | module | story |
//! |---|---|
//! | `reader` | the thread: open, read, open again |
//! | `entry` | from an entry to a line, and whom to believe |
//! | `library` | libsystemd, and all `unsafe` |
//! | `child` | `journalctl` and its export format |
//! | `position` | what is kept |

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread::{self, JoinHandle},
};

use rustix::event::{EventfdFlags, eventfd};

use crate::{
    engine::{Reading, SourceId},
    policy::{JournalGroup, JournalMatches},
    time::Timestamp,
};
use entry::Share;
use library::Library;
use reader::{Batch, Follower, Link, Shown, signal};

mod child;
mod entry;
mod library;
mod position;
mod reader;

pub use position::JournalPosition;

/// Journals read at once: the host's own and namespaces. Further ones are not read, which `status` says.
pub const JOURNALS_MAX: usize = 16;
/// Batches that wait; a batch is about 256 KiB.
const BATCHES_MAX: usize = 4;

/// What a jail reads of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalSpec {
    /// Under what name the lines are handed out.
    pub source: SourceId,
    /// Which entries.
    pub matches: JournalMatches,
    /// Of which journal; `None` for the host's own.
    pub namespace: Option<String>,
    /// From when on entries count: where a journal without a position is begun.
    pub since: Timestamp,
}

/// What is known of one journal.
#[derive(Clone, Debug)]
pub struct JournalStatus {
    /// `journal`, or the namespace behind it.
    pub name: String,
    /// In words; starts with "reading" only if entries are followed.
    pub state: String,
    /// Bytes of lines handed out.
    pub bytes: u64,
    /// `entries`, `untrusted` (not from whom they should be), `skipped` (too long), `unreadable`, `reopened`, `lost_place`.
    pub counters: Vec<(&'static str, u64)>,
}

/// Why a journal is not read right now.
#[derive(Debug)]
enum Trouble {
    /// It is not there, or cannot be opened: to be tried again.
    Absent(String),
    /// It cannot be read at this place.
    Broken(String),
}

/// Whether there is an entry that these select, in the host's own journal and for this process to read.
pub fn has(matches: &JournalMatches) -> bool {
    let groups: Vec<&JournalGroup> = matches.groups().iter().collect();
    let found = if Library::is_there() {
        Library::open(None, &groups, &[]).and_then(|mut library| library.has_any())
    } else {
        child::has_any(&groups)
    };
    // A journal that cannot be read is none to fall back to.
    found.unwrap_or(false)
}

/// What the reader is to select for a group. One that asks for nothing that journald has from the kernel is narrowed to
/// root's entries.
fn terms(group: &JournalGroup) -> Vec<String> {
    let root = (!group.is_attributed()).then(|| "_UID=0".to_owned());
    group.terms().map(|(field, value)| format!("{field}={value}")).chain(root).collect()
}

/// Journals as a source of lines. Its descriptor is readable when [`JournalSource::poll`] has something to hand out.
pub struct JournalSource {
    wake: OwnedFd,
    journals: BTreeMap<Option<String>, Open>,
    over_limit: Vec<Option<String>>,
}

/// A journal that is followed.
struct Open {
    shares: Vec<Share>,
    position: JournalPosition,
    bytes: u64,
    link: Arc<Link>,
    /// `None` only while it ends.
    batches: Option<Receiver<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl AsFd for JournalSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl JournalSource {
    /// Follows what is there. A journal with a position is read from there; one without from the earliest time that
    /// its jails ask for.
    ///
    /// # Errors
    /// When the kernel gives no descriptor or thread; what is wrong with a journal is in [`JournalSource::status`].
    pub fn new(specs: &[JournalSpec], positions: &[JournalPosition]) -> io::Result<Self> {
        let wake = event()?;
        let mut source = Self { wake, journals: BTreeMap::new(), over_limit: Vec::new() };
        source.arrange(specs, positions)?;
        Ok(source)
    }

    /// Reads these from now on; journals that stay are read on where they are.
    ///
    /// # Errors
    /// As [`JournalSource::new`]; then the journals that are read may be fewer.
    pub fn set_sources(&mut self, specs: &[JournalSpec]) -> io::Result<()> {
        self.arrange(specs, &[])
    }

    fn arrange(&mut self, specs: &[JournalSpec], positions: &[JournalPosition]) -> io::Result<()> {
        let mut wanted: BTreeMap<Option<String>, (Timestamp, Vec<Share>)> = BTreeMap::new();
        for JournalSpec { source, matches, namespace, since } in specs {
            let share = Share { source: *source, matches: matches.clone() };
            let (first, shares) = wanted.entry(namespace.clone()).or_insert((*since, Vec::new()));
            *first = (*first).min(*since);
            shares.push(share);
        }
        self.over_limit.clear();
        let mut before = std::mem::take(&mut self.journals);
        for (namespace, (since, shares)) in wanted {
            if self.journals.len() >= JOURNALS_MAX {
                self.over_limit.push(namespace);
                continue;
            }
            let open = match before.remove(&namespace) {
                Some(open) if open.shares == shares => open,
                // What the old thread has read and nobody took is read again.
                Some(mut old) => {
                    old.end();
                    let counts = old.link.with(|shown| shown.counts);
                    let mut open = Open::start(shares, old.position.clone(), &self.wake)?;
                    open.bytes = old.bytes;
                    open.link.with(|shown| shown.counts = counts);
                    open
                }
                None => {
                    // Those of another version are not understood: their journals are read as if new.
                    let mut stored = positions.iter().filter(|position| position.v == 1);
                    let position = stored.find(|position| position.namespace == namespace).cloned();
                    let new = || JournalPosition {
                        v: 1,
                        namespace: namespace.clone(),
                        cursor: None,
                        realtime: u64::try_from(since.as_micros()).unwrap_or(0),
                    };
                    Open::start(shares, position.unwrap_or_else(new), &self.wake)?
                }
            };
            self.journals.insert(namespace, open);
        }
        Ok(())
    }

    /// Hands out the lines that have arrived, up to about a MiB for each journal. If there is more, the descriptor
    /// stays readable.
    pub fn poll(&mut self, sink: &mut dyn FnMut(SourceId, Reading, &[u8])) {
        let mut count = [0; 8];
        let _was_not_readable = rustix::io::read(&self.wake, &mut count);
        for open in self.journals.values_mut() {
            let Some(batches) = &open.batches else { continue };
            for taken in 0..=BATCHES_MAX {
                if taken == BATCHES_MAX {
                    signal(&self.wake);
                    break;
                }
                let Ok(batch) = batches.try_recv() else { break };
                let mut start = 0;
                for (source, reading, end) in batch.runs {
                    sink(source, reading, batch.text.get(start..end).unwrap_or_default());
                    start = end;
                }
                open.bytes += batch.text.len() as u64;
                open.position = batch.position;
            }
        }
    }

    /// How far every journal was read; to be kept, and given to [`JournalSource::new`] after a restart.
    pub fn positions(&self) -> Vec<JournalPosition> {
        self.journals.values().map(|open| open.position.clone()).collect()
    }

    /// What is read, and what is in the way.
    pub fn status(&self) -> Vec<JournalStatus> {
        let name = |namespace: &Option<String>| match namespace {
            Some(namespace) => format!("journal {namespace}"),
            None => "journal".to_owned(),
        };
        let mut all = Vec::new();
        for (namespace, open) in &self.journals {
            let Shown { state, counts } = open.link.with(|shown| shown.clone());
            let counters = vec![
                ("entries", counts.entries),
                ("untrusted", counts.untrusted),
                ("skipped", counts.skipped),
                ("unreadable", counts.unreadable),
                ("reopened", counts.reopened),
                ("lost_place", counts.lost_place),
            ];
            all.push(JournalStatus { name: name(namespace), state, bytes: open.bytes, counters });
        }
        for namespace in &self.over_limit {
            let state = format!("not read: more than {JOURNALS_MAX} journals");
            all.push(JournalStatus { name: name(namespace), state, bytes: 0, counters: Vec::new() });
        }
        all
    }
}

impl Open {
    fn start(shares: Vec<Share>, position: JournalPosition, wake: &OwnedFd) -> io::Result<Self> {
        let (sender, batches) = sync_channel(BATCHES_MAX);
        let shown = Shown { state: "opening".to_owned(), ..Shown::default() };
        let link = Arc::new(Link {
            shown: Mutex::new(shown),
            stop: AtomicBool::new(false),
            stopped: event()?,
            wake: wake.try_clone()?,
        });
        let follower = Follower {
            shares: shares.clone(),
            position: position.clone(),
            batches: sender,
            link: Arc::clone(&link),
        };
        let thread = thread::Builder::new().name("journal".to_owned()).spawn(move || follower.run())?;
        Ok(Self { shares, position, bytes: 0, link, batches: Some(batches), thread: Some(thread) })
    }

    fn end(&mut self) {
        self.link.stop.store(true, Ordering::Release);
        signal(&self.link.stopped);
        // The thread may wait for room in the channel.
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.end();
    }
}

fn event() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}
