//! One journal, followed in a thread of its own: entries become lines, lines become batches.
//!
//! A journal that cannot be opened is tried again for as long as it takes; one that is broken is opened anew, at the
//! same place, then behind it, then at its end, each counted. Only what the agent took counts as read.
#![forbid(unsafe_code)]

use std::{
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::SyncSender,
    },
    time::{Duration, Instant, SystemTime},
};

use super::{
    Trouble,
    child::Journalctl,
    entry::{Entry, Share, fields},
    library::{Library, wait_for},
    position::JournalPosition,
};
use crate::{
    engine::{Reading, SourceId},
    policy::JournalGroup,
    time::Timestamp,
};

/// How long to wait before a journal that could not be read is tried again, and the longest wait for entries.
const RETRY: Duration = Duration::from_secs(2);
/// How often to look whether journald writes somewhere else by now.
const SWEEP: Duration = Duration::from_secs(10);
/// Text in one batch, about.
const BATCH_BYTES: usize = 256 * 1024;
/// Entries looked at for one batch.
const BATCH_ENTRIES: usize = 4_096;
/// Entries older than this when they are read were written while nobody read.
const LATE: Duration = Duration::from_secs(5);
/// Where journald keeps journals (systemd-journald.service(8)).
const FOLDERS: [&str; 2] = ["/run/log/journal", "/var/log/journal"];

/// Lines, whose they are, and up to where that was.
pub(super) struct Batch {
    pub(super) text: Vec<u8>,
    /// In order: whose, how their time is to be taken, and where in the text they end.
    pub(super) runs: Vec<(SourceId, Reading, usize)>,
    pub(super) position: JournalPosition,
}

impl Batch {
    fn new() -> Self {
        Self { text: Vec::new(), runs: Vec::new(), position: JournalPosition::default() }
    }

    /// The text beyond the last run is a line of this source.
    fn add(&mut self, source: SourceId, reading: Reading) {
        let end = self.text.len();
        match self.runs.last_mut() {
            Some((last, Reading::Live, until)) if *last == source && reading == Reading::Live => *until = end,
            _ => self.runs.push((source, reading, end)),
        }
    }
}

/// What `status` shows.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    pub(super) state: String,
    pub(super) counts: Counts,
}

/// What happened, counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Entries looked at.
    pub(super) entries: u64,
    /// Of those, entries that are nobody's whom a filter may believe.
    pub(super) untrusted: u64,
    /// Lines longer than a line may be.
    pub(super) skipped: u64,
    /// Entries that could not be read.
    pub(super) unreadable: u64,
    /// Times the journal was opened anew since it could not be read on.
    pub(super) reopened: u64,
    /// Times the place was lost: the entries behind it were deleted or broken.
    pub(super) lost_place: u64,
}

/// What the thread shares with whoever takes the lines.
pub(super) struct Link {
    pub(super) shown: Mutex<Shown>,
    pub(super) stop: AtomicBool,
    /// Readable when the thread is to look at `stop`.
    pub(super) stopped: OwnedFd,
    /// Readable when there are batches.
    pub(super) wake: OwnedFd,
}

impl Link {
    fn say(&self, state: &str) {
        self.with(|shown| {
            if shown.state != state {
                state.clone_into(&mut shown.state);
            }
        });
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Shown) -> T) -> T {
        look(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// Reads until it is told to stop.
pub(super) struct Follower {
    pub(super) shares: Vec<Share>,
    pub(super) position: JournalPosition,
    pub(super) batches: SyncSender<Batch>,
    pub(super) link: Arc<Link>,
}

/// A journal by whichever way this machine has.
enum Journal {
    Library(Library),
    Child(Journalctl),
}

impl Follower {
    /// The body of the thread.
    pub(super) fn run(mut self) {
        let mut in_a_row = 0;
        while !self.link.is_over() {
            let start = self.position.clone();
            let Err(trouble) = self.follow() else { continue };
            in_a_row = if self.position == start { in_a_row + 1 } else { 1 };
            match trouble {
                Trouble::Absent(why) => self.link.say(&format!("{why}; tried again")),
                Trouble::Broken(why) => {
                    self.link.say(&format!("{why}; opened again"));
                    self.link.with(|shown| shown.counts.reopened += 1);
                    self.pass_over(in_a_row);
                }
            }
            let never = &self.link.stopped;
            wait_for([never.as_fd(), never.as_fd()], RETRY);
        }
    }

    /// A journal that breaks at the same place again is read on behind it: by time, at last from now.
    fn pass_over(&mut self, in_a_row: u32) {
        match in_a_row {
            0 | 1 => return,
            2 => self.position.realtime += 1,
            _ => self.position.realtime = now_micros(),
        }
        self.position.cursor = None;
        self.link.with(|shown| shown.counts.lost_place += 1);
    }

    /// Opens the journal and reads until it is told to stop, or journald writes somewhere else.
    fn follow(&mut self) -> Result<(), Trouble> {
        let places = Places::look(self.position.namespace.as_deref());
        if places.0.is_empty() {
            return Err(Trouble::Absent("there is no journal; does systemd-journald run?".to_owned()));
        }
        let fields = fields(&self.shares);
        let mut groups: Vec<&JournalGroup> =
            self.shares.iter().flat_map(|share| share.matches.groups()).collect();
        groups.sort_unstable();
        groups.dedup();
        let mut journal = self.open(&groups, &fields)?;
        drop(groups);
        let mut entry = Entry::new(&fields);
        let mut sweep_at = Instant::now() + SWEEP;
        while !self.link.is_over() {
            let mut batch = Batch::new();
            let full = self.fill(&mut journal, &mut entry, &mut batch);
            if batch.position != JournalPosition::default() {
                self.position = batch.position.clone();
                if self.batches.send(batch).is_err() {
                    return Ok(());
                }
                signal(&self.link.wake);
            }
            if !full? {
                self.link.say(journal.state());
                journal.wait(&self.link.stopped)?;
                if Instant::now() >= sweep_at {
                    sweep_at = Instant::now() + SWEEP;
                    if Places::look(self.position.namespace.as_deref()) != places {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn open(&self, groups: &[&JournalGroup], fields: &[String]) -> Result<Journal, Trouble> {
        let namespace = self.position.namespace.as_deref();
        if !Library::is_there() {
            return Journalctl::start(namespace, groups, fields, &self.position).map(Journal::Child);
        }
        let mut library = Library::open(namespace, groups, fields)?;
        if library.usage() == 0 {
            let why =
                "the journal is empty, or not for this user: add the agent's to the group systemd-journal";
            return Err(Trouble::Absent(why.to_owned()));
        }
        if library.seek(&self.position)? {
            self.link.with(|shown| shown.counts.lost_place += 1);
        }
        Ok(Journal::Library(library))
    }

    /// Reads until the batch is full or there is nothing more; returns whether there may be more. What was read before
    /// an error is in the batch.
    fn fill(&mut self, journal: &mut Journal, entry: &mut Entry, batch: &mut Batch) -> Result<bool, Trouble> {
        let mut counts = Counts::default();
        let mut last = None;
        let outcome = loop {
            if batch.text.len() >= BATCH_BYTES || counts.entries >= BATCH_ENTRIES as u64 {
                break Ok(true);
            }
            match journal.next(entry) {
                Ok(true) => {
                    last = Some(entry.realtime);
                    self.take(entry, batch, &mut counts);
                }
                Ok(false) => break Ok(false),
                Err(trouble) => break Err(trouble),
            }
        };
        if let Some(realtime) = last {
            let namespace = self.position.namespace.clone();
            // A reader that broke stands nowhere.
            let cursor = if outcome.is_ok() { journal.cursor() } else { None };
            let realtime = realtime + u64::from(cursor.is_none());
            batch.position = JournalPosition { v: 1, namespace, cursor, realtime };
        }
        counts.unreadable = journal.take_unreadable();
        self.link.with(|shown| {
            shown.counts.entries += counts.entries;
            shown.counts.untrusted += counts.untrusted;
            shown.counts.skipped += counts.skipped;
            shown.counts.unreadable += counts.unreadable;
        });
        outcome
    }

    fn take(&self, entry: &Entry, batch: &mut Batch, counts: &mut Counts) {
        counts.entries += 1;
        let late = now_micros().saturating_sub(entry.realtime) > micros(LATE);
        let at = Timestamp::from_micros(i64::try_from(entry.realtime).unwrap_or(i64::MAX));
        let reading = if late { Reading::At(at) } else { Reading::Live };
        let mut believed = false;
        for share in &self.shares {
            let Some(sender) = entry.sender(&share.matches) else { continue };
            believed = true;
            if entry.write(&sender, &mut batch.text) {
                batch.add(share.source, reading);
            } else {
                counts.skipped += 1;
            }
        }
        counts.untrusted += u64::from(!believed);
    }
}

impl Journal {
    fn next(&mut self, entry: &mut Entry) -> Result<bool, Trouble> {
        match self {
            Self::Library(library) => library.next(entry),
            Self::Child(child) => child.next(entry),
        }
    }

    fn cursor(&self) -> Option<String> {
        match self {
            Self::Library(library) => library.cursor(),
            Self::Child(child) => child.cursor(),
        }
    }

    fn take_unreadable(&mut self) -> u64 {
        match self {
            Self::Library(library) => std::mem::take(&mut library.unreadable),
            Self::Child(_) => 0,
        }
    }

    fn state(&self) -> &'static str {
        match self {
            Self::Library(_) => "reading with libsystemd",
            Self::Child(_) => "reading with journalctl, since there is no libsystemd",
        }
    }

    fn wait(&mut self, stop: &OwnedFd) -> Result<(), Trouble> {
        match self {
            Self::Library(library) => library.wait(stop.as_fd(), RETRY),
            Self::Child(child) => {
                child.wait(stop.as_fd(), RETRY);
                Ok(())
            }
        }
    }
}

/// The folders that hold this journal. A reader sees none that came after it was opened: journald may have been started
/// since, or have moved from memory to the disk.
#[derive(PartialEq, Eq)]
struct Places(Vec<(u64, u64)>);

impl Places {
    fn look(namespace: Option<&str>) -> Self {
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let name = match namespace {
            Some(namespace) => format!("{}.{namespace}", machine.trim()),
            None => machine.trim().to_owned(),
        };
        let there = FOLDERS.iter().filter_map(|folder| fs::metadata(Path::new(folder).join(&name)).ok());
        Self(there.map(|metadata| (metadata.dev(), metadata.ino())).collect())
    }
}

/// Makes an event descriptor readable.
pub(super) fn signal(event: &OwnedFd) {
    // It is full when it was signalled without anybody reading it: then it is readable already.
    let _readable = rustix::io::write(event, &1_u64.to_ne_bytes());
}

/// The wall clock, in microseconds since the epoch.
pub(super) fn now_micros() -> u64 {
    micros(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
