//! Log files, read as they grow, through rotation in every form.
//!
//! One inotify instance tells which open inodes grew and which names changed; [`FileSource::poll`] does the rest
//! without blocking, up to a budget, and hands out blocks of whole lines. The open inode is the unit: a renamed or
//! deleted file is read to its end before the file that took its name. The caller waits on the descriptor and keeps
//! the positions; what lines mean, nobody here knows.
#![forbid(unsafe_code)]

mod container;
mod expand;
mod first;
mod open;
mod place;
mod position;
mod slot;
mod tail;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{self, PathBuf},
    time::{Duration, Instant},
};

pub use first::FirstStart;
pub use place::FILES_MAX;
pub use position::{Mark, Position};
pub use tail::LINE_BYTES_MAX;

use crate::{
    engine::{Reading, SourceId},
    policy::ContainerFormat,
};
use place::Place;
use tail::BUFFER_BYTES;
use watch::{Event, Moved, PlaceId, Watch};

/// How often files that cannot be opened are tried again without being told.
const RETRY: Duration = Duration::from_secs(2);
/// How often files are looked at that inotify does not watch.
const UNWATCHED: Duration = Duration::from_millis(250);
/// How often everything is looked at, for what inotify cannot tell: network file systems, and the rename of a directory
/// further up, which loses nothing because the old file stays open.
const SWEEP: Duration = Duration::from_secs(10);
/// Looks at names that change while they are looked at, in one poll.
const LOOKS_MAX: usize = 8;
/// What a read costs at least of the budget, in bytes, so that reads that bring nothing end too.
const READ_COST_MIN: usize = 4096;
/// Renames whose second half did not arrive yet.
const COOKIES_MAX: usize = 64;

/// Whether anything is there now under this path or pattern.
pub fn is_there(path: &path::Path) -> bool {
    expand::Pattern::of(path).map_or_else(|| path.exists(), |pattern| !pattern.list().0.is_empty())
}

/// How much and how long to read.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes read in one poll, over all files, rounded up to a read of 256 KiB.
    pub budget: usize,
    /// How long a file is still watched after it lost its name, from the last line added to it.
    pub drain_time: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { budget: 4 * 1024 * 1024, drain_time: Duration::from_secs(30) }
    }
}

/// A path or pattern to be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogFile {
    /// Any component may be a pattern (`*`, `?`, `[a-z]`).
    pub path: PathBuf,
    /// What is taken off its lines, which a container runtime wrote.
    pub format: Option<ContainerFormat>,
}

impl From<PathBuf> for LogFile {
    fn from(path: PathBuf) -> Self {
        Self { path, format: None }
    }
}

/// What is known of one path.
#[derive(Clone, Debug)]
pub struct FileStatus {
    /// The path, or a pattern that matches nothing.
    pub path: PathBuf,
    /// In words; starts with "reading" only if a file is open.
    pub state: String,
    /// Bytes handed out.
    pub bytes: u64,
    /// `rotated` (replaced by another file), `truncated`, `skipped` (lines too long or cut by a truncation), `odd_bytes`
    /// (lines with NUL or what is no UTF-8, handed out all the same), `not_a_file` (a FIFO, device, directory or socket),
    /// `denied`, `read_errors`, `world_writable` (everybody may replace the file), `files_over_limit`; of a
    /// container's log `malformed` (records that are none) and `records_not_joined` (lines too long once joined).
    pub counters: Vec<(&'static str, u64)>,
}

/// Log files as a source of lines. Its descriptor is readable when [`FileSource::poll`] has something to do.
#[derive(Debug)]
pub struct FileSource {
    watch: Watch,
    options: Options,
    places: BTreeMap<PlaceId, Place>,
    next_place: PlaceId,
    /// Paths with something to read, in turn.
    queue: VecDeque<(PlaceId, PathBuf)>,
    cookies: VecDeque<(u32, PlaceId, PathBuf, PathBuf)>,
    events: Vec<Event>,
    buffer: Vec<u8>,
    retry_at: Option<Instant>,
    unwatched_at: Option<Instant>,
    sweep_at: Option<Instant>,
}

impl AsFd for FileSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

impl FileSource {
    /// Opens what is there. Any component of a path may be a pattern (`*`, `?`, `[a-z]`).
    ///
    /// A file with a position is read from there; one without from where `first` says, or from its end.
    ///
    /// # Errors
    /// Only if there is no inotify instance to be had; what is wrong with a file is in [`FileSource::status`].
    pub fn new<F: Clone + Into<LogFile>>(
        files: &[(SourceId, F)],
        positions: Vec<Position>,
        options: Options,
        first: Option<&FirstStart<'_>>,
    ) -> io::Result<Self> {
        let mut source = Self {
            watch: Watch::new()?,
            options,
            places: BTreeMap::new(),
            next_place: 0,
            queue: VecDeque::new(),
            cookies: VecDeque::new(),
            events: Vec::new(),
            buffer: vec![0; BUFFER_BYTES],
            retry_at: None,
            unwatched_at: None,
            sweep_at: None,
        };
        source.arrange(files, positions, first);
        Ok(source)
    }

    /// Reads these files from now on; those that stay are read on where they are, others as by [`FileSource::new`].
    pub fn set_files<F: Clone + Into<LogFile>>(
        &mut self,
        files: &[(SourceId, F)],
        first: Option<&FirstStart<'_>>,
    ) {
        self.arrange(files, Vec::new(), first);
    }

    fn arrange<F: Clone + Into<LogFile>>(
        &mut self,
        files: &[(SourceId, F)],
        positions: Vec<Position>,
        first: Option<&FirstStart<'_>>,
    ) {
        // Those of another version are not understood: their files are read as if new.
        let positions: Vec<Position> = positions.into_iter().filter(|position| position.v == 1).collect();
        let mut wanted: BTreeMap<LogFile, BTreeSet<SourceId>> = BTreeMap::new();
        for (source, file) in files {
            let mut file: LogFile = file.clone().into();
            file.path = path::absolute(&file.path).unwrap_or(file.path);
            wanted.entry(file).or_default().insert(*source);
        }
        let dropped: Vec<PlaceId> = self
            .places
            .iter()
            .filter(|(_, place)| !wanted.contains_key(&place.file()))
            .map(|(id, _)| *id)
            .collect();
        for id in dropped {
            self.watch.keep_directories(id, &BTreeSet::new());
            let mut watches = Vec::new();
            if let Some(mut place) = self.places.remove(&id) {
                watches.extend(place.tails_mut().filter_map(|tail| tail.wd));
            }
            self.forget(watches);
        }
        for (file, sources) in wanted {
            let sources = sources.into_iter().collect();
            if let Some(place) = self.places.values_mut().find(|place| place.file() == file) {
                place.sources = sources;
                continue;
            }
            let mut place = Place::new(self.next_place, file.path, Vec::new());
            let stored = positions.iter().filter(|position| place.covers(&position.path)).cloned().collect();
            place = Place::new(place.id, place.path, stored);
            (place.sources, place.format) = (sources, file.format);
            place.look(Instant::now(), self.options.drain_time, &mut self.watch, first);
            self.places.insert(place.id, place);
            self.next_place += 1;
        }
    }

    /// Takes what the kernel told, looks at the names that changed, reads what grew, and hands out whole lines.
    ///
    /// Returns after what time to call again even if the descriptor stays quiet: zero if there is more to be read now.
    pub fn poll(&mut self, now: Instant, sink: &mut dyn FnMut(SourceId, Reading, &[u8])) -> Option<Duration> {
        self.wake(now);
        let mut more = false;
        for _ in 0..LOOKS_MAX {
            more = self.watch.take(&mut self.events);
            let quiet = self.events.is_empty();
            self.sort_events();
            for place in self.places.values_mut() {
                if quiet {
                    place.settle();
                }
                if place.stale {
                    place.look(now, self.options.drain_time, &mut self.watch, None);
                }
            }
            if quiet {
                break;
            }
        }
        self.read(now, sink);
        self.finish(now, sink);
        let again = more || !self.queue.is_empty() || self.places.values().any(|place| place.stale);
        if again { Some(Duration::ZERO) } else { self.timeout(now) }
    }

    /// How far every file was read; to be kept, and given to [`FileSource::new`] after a restart.
    pub fn positions(&self) -> Vec<Position> {
        self.places.values().flat_map(Place::positions).collect()
    }

    /// Whether a file was opened since the last call. Where its name is changed before its position is kept, nobody finds
    /// it again after a restart.
    pub fn take_opened(&mut self) -> bool {
        self.places.values_mut().fold(false, |any, place| std::mem::take(&mut place.opened) | any)
    }

    /// What is read, and what is in the way.
    pub fn status(&self) -> Vec<FileStatus> {
        let mut all = Vec::new();
        for place in self.places.values() {
            if place.slots.is_empty() {
                let state = if place.trouble.is_empty() { "no file matches" } else { &place.trouble };
                all.push(FileStatus {
                    path: place.path.clone(),
                    state: state.to_owned(),
                    bytes: 0,
                    counters: Vec::new(),
                });
            }
            for (path, slot) in &place.slots {
                let counters = slot.counters();
                let unwrapped =
                    slot.container.as_ref().map(|container| container.counters).unwrap_or_default();
                let counts = vec![
                    ("rotated", slot.rotated),
                    ("truncated", counters.truncated),
                    ("skipped", counters.skipped),
                    ("odd_bytes", counters.odd_bytes),
                    ("not_a_file", slot.faults.not_a_file),
                    ("denied", slot.faults.denied),
                    ("read_errors", slot.faults.read_errors),
                    ("world_writable", u64::from(slot.open_to_all.is_some())),
                    ("files_over_limit", place.files_over_limit),
                    ("malformed", unwrapped.malformed),
                    ("records_not_joined", unwrapped.too_long),
                ];
                all.push(FileStatus {
                    path: path.clone(),
                    state: slot.state(),
                    bytes: counters.bytes,
                    counters: counts,
                });
            }
        }
        all
    }

    /// What is due by the clock.
    fn wake(&mut self, now: Instant) {
        let due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        let sweep = self.sweep_at.is_none() | due(&mut self.sweep_at);
        if sweep {
            self.sweep_at = Some(now + SWEEP);
        }
        let (retry, unwatched) = (due(&mut self.retry_at), due(&mut self.unwatched_at));
        for place in self.places.values_mut() {
            place.stale |= sweep || (retry && place.in_trouble()) || (unwatched && place.unwatched);
            for tail in place.tails_mut() {
                let over = tail.retire_at.is_some_and(|at| at <= now);
                tail.dirty |= sweep || over || (unwatched && tail.wd.is_none());
            }
        }
    }

    /// Turns events into what is to be looked at and read.
    fn sort_events(&mut self) {
        let mut grown = BTreeSet::new();
        let mut overflow = false;
        for event in self.events.drain(..) {
            match event {
                Event::Modified(wd) => {
                    grown.insert(wd);
                }
                Event::Gone(places) => {
                    for id in places {
                        if let Some(place) = self.places.get_mut(&id) {
                            place.lost_directory();
                        }
                    }
                }
                Event::Overflow => overflow = true,
                Event::Entry { path, moved, places } => {
                    for id in places {
                        let Some(place) = self.places.get_mut(&id) else { continue };
                        place.stale |= place.wants(&path);
                        if let Moved::From(cookie) = moved
                            && let Some(origin) = place.leaves(&path)
                        {
                            if self.cookies.len() >= COOKIES_MAX {
                                self.cookies.pop_front();
                            }
                            self.cookies.push_back((cookie, id, origin, path.clone()));
                        }
                    }
                    if let Moved::To(to) = moved {
                        self.cookies.retain(|(cookie, id, origin, from)| {
                            if *cookie == to
                                && let Some(place) = self.places.get_mut(id)
                            {
                                place.moved(origin.clone(), from, path.clone());
                            }
                            *cookie != to
                        });
                    }
                }
            }
        }
        for place in self.places.values_mut().filter(|_| overflow || !grown.is_empty()) {
            place.stale |= overflow;
            for tail in place.tails_mut() {
                tail.dirty |= overflow || tail.wd.is_some_and(|wd| grown.contains(&wd));
            }
        }
    }

    /// Reads from each file in turn until the budget is spent.
    fn read(&mut self, now: Instant, sink: &mut dyn FnMut(SourceId, Reading, &[u8])) {
        let waiting: BTreeSet<(PlaceId, PathBuf)> = self.queue.iter().cloned().collect();
        for (id, place) in &self.places {
            for (path, slot) in &place.slots {
                if slot.tails.iter().any(|tail| tail.dirty) {
                    let entry = (*id, path.clone());
                    if waiting.is_empty() || !waiting.contains(&entry) {
                        self.queue.push_back(entry);
                    }
                }
            }
        }
        let mut budget = self.options.budget;
        while budget > 0 {
            let Some((id, path)) = self.queue.pop_front() else { break };
            let Some(place) = self.places.get_mut(&id) else { continue };
            let mut bytes = 0;
            let sources = std::mem::take(&mut place.sources);
            let more =
                place.read(&path, now + self.options.drain_time, &mut self.buffer, &mut |reading, block| {
                    bytes += block.len();
                    sources.iter().for_each(|source| sink(*source, reading, block));
                });
            place.sources = sources;
            if more {
                self.queue.push_back((id, path));
            }
            budget = budget.saturating_sub(bytes.max(READ_COST_MIN));
        }
    }

    /// Lets go the files that had no name for long enough.
    fn finish(&mut self, now: Instant, sink: &mut dyn FnMut(SourceId, Reading, &[u8])) {
        let mut watches = Vec::new();
        for place in self.places.values_mut() {
            let sources = std::mem::take(&mut place.sources);
            watches.extend(place.finish(now, &mut self.buffer, &mut |reading, block| {
                sources.iter().for_each(|source| sink(*source, reading, block));
            }));
            place.sources = sources;
        }
        self.forget(watches);
    }

    /// Ends the watches that no file needs any more.
    fn forget(&mut self, watches: Vec<i32>) {
        for wd in watches {
            if !self.places.values_mut().any(|place| place.tails_mut().any(|tail| tail.wd == Some(wd))) {
                self.watch.forget_file(wd);
            }
        }
    }

    fn timeout(&mut self, now: Instant) -> Option<Duration> {
        let mut next = self.sweep_at;
        let mut by = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        let (mut trouble, mut unwatched) = (false, false);
        for place in self.places.values_mut() {
            trouble |= place.in_trouble();
            unwatched |= place.unwatched;
            for tail in place.tails_mut() {
                unwatched |= tail.wd.is_none();
                if let Some(at) = tail.retire_at {
                    by(at);
                }
            }
        }
        if trouble {
            by(*self.retry_at.get_or_insert(now + RETRY));
        }
        if unwatched {
            by(*self.unwatched_at.get_or_insert(now + UNWATCHED));
        }
        next.map(|at| at.saturating_duration_since(now))
    }
}
