//! One configured path or pattern: which inodes it means now, which it meant a moment ago.
//!
//! Looking is declarative: the names that match are compared with the inodes being read. An inode that is read already
//! keeps its tail under whatever name it has now; one without a name is drained; a new one is opened. It knows no
//! events, only that it is to look again.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirEntryExt, MetadataExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    LogFile,
    container::{self, RECORD_BYTES_MAX, REJOIN_BYTES_MAX, Unwrapper},
    expand::Pattern,
    first::{self, FirstStart},
    open,
    position::{Position, path_text},
    slot::Slot,
    tail::{Identity, Tail},
    watch::{Name, PlaceId, Watch},
};
use crate::{
    engine::{Reading, SourceId},
    glob,
    policy::ContainerFormat,
};

/// The most files one pattern reads; the rest are counted.
pub const FILES_MAX: usize = 1024;
/// Files without a name that are still watched, for each path; the oldest is let go before its time.
const RETIRED_MAX: usize = 64;
/// Positions remembered of files no longer read, for each configured path.
const DEPARTED_MAX: usize = 64;
/// Files that were renamed before they were opened, remembered until found.
const MOVED_MAX: usize = 256;
/// Directory entries looked at for a file that was renamed while nobody read.
const ENTRIES_MAX: usize = 65_536;
/// Looks at directories that change while they are looked at.
const ROUTES_MAX: usize = 8;

/// A configured path or pattern.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) id: PlaceId,
    /// Absolute.
    pub(crate) path: PathBuf,
    /// The same, where it means any number of files.
    pattern: Option<Pattern>,
    pub(crate) sources: Vec<SourceId>,
    pub(crate) format: Option<ContainerFormat>,
    pub(crate) slots: BTreeMap<PathBuf, Slot>,
    /// Look again.
    pub(crate) stale: bool,
    /// Directories could not be watched: look again and again.
    pub(crate) unwatched: bool,
    /// Why the pattern's directory cannot be listed.
    pub(crate) trouble: String,
    pub(crate) files_over_limit: u64,
    /// A file was opened that was not read before.
    pub(crate) opened: bool,
    /// Taken at the first look.
    stored: Option<Vec<Position>>,
    resumed: bool,
    departed: VecDeque<Position>,
    /// Files that left our name before they were opened: the name they left, the name they have.
    moved: Vec<(PathBuf, PathBuf)>,
    wanted: BTreeSet<Name>,
}

impl Place {
    /// A place that was not looked at yet.
    pub(crate) fn new(id: PlaceId, path: PathBuf, stored: Vec<Position>) -> Self {
        Self {
            id,
            pattern: Pattern::of(&path),
            path,
            sources: Vec::new(),
            format: None,
            slots: BTreeMap::new(),
            stale: true,
            unwatched: false,
            trouble: String::new(),
            files_over_limit: 0,
            opened: false,
            resumed: !stored.is_empty(),
            stored: Some(stored),
            departed: VecDeque::new(),
            moved: Vec::new(),
            wanted: BTreeSet::new(),
        }
    }

    /// What it was asked for.
    pub(crate) fn file(&self) -> LogFile {
        LogFile { path: self.path.clone(), format: self.format }
    }

    /// Whether a path may be this place's.
    pub(crate) fn covers(&self, path: &str) -> bool {
        match &self.pattern {
            None => path == path_text(&self.path),
            Some(pattern) => pattern.covers(Path::new(path)),
        }
    }

    /// Whether it means any number of files.
    pub(crate) fn is_pattern(&self) -> bool {
        self.pattern.is_some()
    }

    /// Whether it is to be looked at again soon without being told.
    pub(crate) fn in_trouble(&self) -> bool {
        !self.trouble.is_empty() || self.slots.is_empty() || self.slots.values().any(Slot::in_trouble)
    }

    /// Every file being read.
    pub(crate) fn tails_mut(&mut self) -> impl Iterator<Item = &mut Tail> {
        self.slots.values_mut().flat_map(|slot| slot.tails.iter_mut())
    }

    /// How far its files were read, those let go included.
    pub(crate) fn positions(&self) -> Vec<Position> {
        let mut positions = BTreeMap::new();
        for position in &self.departed {
            positions.insert(position.key(), position.clone());
        }
        for (path, slot) in &self.slots {
            for tail in &slot.tails {
                let position = tail.position(path_text(path), false);
                positions.insert(position.key(), position);
            }
        }
        positions.into_values().collect()
    }

    /// Whether something that happened to this path can matter here.
    pub(crate) fn wants(&self, path: &Path) -> bool {
        let (Some(parent), name) = (path.parent(), name_of(path)) else { return false };
        self.wanted.iter().any(|(directory, wanted)| {
            directory == parent && (*wanted == name || glob::matches(wanted.as_bytes(), name.as_bytes()))
        })
    }

    /// Which of our names a file had that is renamed away from `path`.
    pub(crate) fn leaves(&self, path: &Path) -> Option<PathBuf> {
        let known = self.moved.iter().find(|(_, now)| now == path).map(|(origin, _)| origin.clone());
        known.or_else(|| {
            self.wants(path).then(|| if self.is_pattern() { path.to_owned() } else { self.path.clone() })
        })
    }

    /// A file that left our name `origin` went from `from` to `to`.
    pub(crate) fn moved(&mut self, origin: PathBuf, from: &Path, to: PathBuf) {
        self.stale = true;
        // Whoever had the new name lost it.
        self.moved.retain(|(_, now)| *now != to);
        if let Some((_, now)) = self.moved.iter_mut().find(|(_, now)| now == from) {
            *now = to;
        } else if self.moved.len() < MOVED_MAX {
            self.moved.push((origin, to));
        }
    }

    /// Nothing happened since the last look: what was to be found was found.
    pub(crate) fn settle(&mut self) {
        self.moved.clear();
    }

    /// Directories of this place went away: watch anew.
    pub(crate) fn lost_directory(&mut self) {
        self.stale = true;
        self.wanted.clear();
    }

    /// Brings what is read in line with what the names mean now.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        drain_time: Duration,
        watch: &mut Watch,
        start: Option<&FirstStart<'_>>,
    ) {
        self.stale = false;
        self.watch_directories(watch);
        let first = self.stored.is_some();
        for position in self.stored.take().unwrap_or_default() {
            match self.find(&position) {
                Found::File(file) if !position.departed => {
                    if let Ok(mut tail) = Tail::resume(file, &position) {
                        tail.retire_at = Some(now + drain_time);
                        self.slots.entry(PathBuf::from(&position.path)).or_default().tails.push(tail);
                        continue;
                    }
                    self.depart(position);
                }
                // It may be opened yet, under whatever name it has then.
                Found::Denied => self.remember(position),
                found => {
                    if matches!(found, Found::Rewritten) && !position.departed {
                        // What was added before it was emptied or rewritten is gone.
                        let path = PathBuf::from(&position.path);
                        self.slots.entry(path).or_default().closed.truncated += 1;
                    }
                    self.depart(position);
                }
            }
        }
        for (origin, path) in self.moved.clone() {
            self.open_moved(origin, &path, now, drain_time);
        }
        let mut paths = self.list();
        paths.extend(self.slots.keys().cloned());
        for path in paths {
            self.look_at(&path, first, start, now, drain_time);
        }
        if self.is_pattern() {
            self.slots.retain(|path, slot| !slot.tails.is_empty() || fs::symlink_metadata(path).is_ok());
        }
        for slot in self.slots.values_mut() {
            let over =
                slot.tails.iter().filter(|tail| tail.retire_at.is_some()).count().saturating_sub(RETIRED_MAX);
            for tail in slot.tails.iter_mut().filter(|tail| tail.retire_at.is_some()).take(over) {
                tail.retire_at = Some(now);
            }
            for tail in slot.tails.iter_mut().filter(|tail| tail.wd.is_none()) {
                tail.wd = watch.file(tail.file()).ok();
            }
        }
    }

    /// Watches every directory on which the meaning of the path depends, before it is looked up.
    fn watch_directories(&mut self, watch: &mut Watch) {
        for _ in 0..ROUTES_MAX {
            let mut wanted = self.pattern.as_ref().map_or_else(|| open::route(&self.path), Pattern::route);
            for path in self.slots.keys().filter(|_| self.is_pattern()) {
                if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
                    wanted.extend(open::route(path));
                }
            }
            if wanted == self.wanted && !self.unwatched {
                return;
            }
            self.unwatched = false;
            for directory in wanted.iter().map(|(directory, _)| directory).collect::<BTreeSet<_>>() {
                self.unwatched |= watch.directory(directory, self.id).is_err();
            }
            watch.keep_directories(self.id, &wanted);
            self.wanted = wanted;
        }
    }

    /// Finds the file of a stored position, under its own name or another in the same directories.
    fn find(&self, position: &Position) -> Found {
        let look = |path: &Path| {
            let (id, _) = open::identify(path).ok()?;
            if id != (position.dev, position.inode) {
                return None;
            }
            let Ok(file) = open::open(path) else { return Some(Found::Denied) };
            Some(if position.fits(&file).unwrap_or(false) { Found::File(file) } else { Found::Rewritten })
        };
        if let Some(found) = look(Path::new(&position.path)) {
            return found;
        }
        let directories: BTreeSet<&Path> =
            self.wanted.iter().map(|(directory, _)| directory.as_path()).collect();
        let elsewhere = directories.into_iter().find_map(|directory| {
            fs::read_dir(directory)
                .ok()?
                .take(ENTRIES_MAX)
                .flatten()
                .filter(|entry| entry.ino() == position.inode && position.may_be(&entry.file_name()))
                .find_map(|entry| look(&entry.path()))
        });
        match elsewhere {
            // Some other file that has the inode now.
            Some(Found::Rewritten) | None => Found::Nowhere,
            Some(found) => found,
        }
    }

    /// Opens a file that left our name before it was opened.
    fn open_moved(&mut self, origin: PathBuf, path: &Path, now: Instant, drain_time: Duration) {
        let Ok((id, _)) = open::identify(path) else { return };
        if self.tails_mut().any(|tail| tail.id == id) {
            return;
        }
        let Ok(file) = open::open(path) else { return };
        if let Ok(mut tail) = self.begin(file, Reading::Live)
            && !self.tails_mut().any(|known| known.id == tail.id)
        {
            tail.retire_at = Some(now + drain_time);
            let slot = self.slots.entry(origin).or_default();
            slot.retire(now, drain_time);
            slot.rotated += 1;
            slot.tails.push(tail);
            self.opened = true;
        }
    }

    /// A tail for a file that is not read yet, from where it was left if it was read before.
    fn begin(&mut self, file: File, reading: Reading) -> io::Result<Tail> {
        let metadata = file.metadata()?;
        let id = (metadata.dev(), metadata.ino());
        if let Some(index) = self.departed.iter().position(|position| (position.dev, position.inode) == id)
            && let Some(position) = self.departed.remove(index)
            && position.fits(&file)?
        {
            return Tail::resume(file, &position);
        }
        Tail::from_start(file, reading)
    }

    /// A tail for a file that was there before anybody read it.
    fn begin_unread(&self, file: File, start: Option<&FirstStart<'_>>) -> io::Result<Tail> {
        let size = file.metadata()?.len();
        let since = start.and_then(|start| self.sources.iter().map(|source| (start.since)(*source)).min());
        let (Some(start), Some(since)) = (start, since) else { return Tail::from_end(file, size) };
        let date_of = |line: &[u8]| match self.format {
            Some(format) => container::date_of(format, line),
            None => (start.date_of)(first::head(line)),
        };
        match first::find(&file, size, since, &date_of)? {
            Some(offset) => Tail::from_line(file, offset),
            None => Tail::from_end(file, size),
        }
    }

    /// The paths that the pattern matches now.
    fn list(&mut self) -> BTreeSet<PathBuf> {
        let Some(pattern) = &self.pattern else { return BTreeSet::from([self.path.clone()]) };
        let (mut paths, trouble) = pattern.list();
        self.trouble = trouble;
        self.files_over_limit = paths.len().saturating_sub(FILES_MAX) as u64;
        if let Some(beyond) = paths.iter().nth(FILES_MAX).cloned() {
            paths.split_off(&beyond);
        }
        paths
    }

    /// Compares what a path means with what is read under it.
    fn look_at(
        &mut self,
        path: &Path,
        first: bool,
        start: Option<&FirstStart<'_>>,
        now: Instant,
        drain_time: Duration,
    ) {
        let found = open::identify(path);
        let slot = self.slots.entry(path.to_owned()).or_default();
        slot.alias = None;
        let (id, size) = match found {
            Ok(found) => found,
            Err(trouble) => {
                slot.say(trouble);
                slot.retire(now, drain_time);
                return;
            }
        };
        slot.open_to_all = open::open_to_all(path).map(Path::to_owned);
        let tails = &slot.tails;
        slot.read_error.take_if(|(failed, _)| !tails.iter().any(|tail| tail.id == *failed));
        if slot.read_error.is_some() {
            slot.tails.iter_mut().for_each(|tail| tail.dirty = true);
        }
        if slot.current().is_some_and(|tail| tail.id == id) {
            slot.trouble.clear();
            return;
        }
        slot.retire(now, drain_time);
        match self.take_tail(path, id) {
            Taken::Tail(mut tail) => {
                tail.retire_at = None;
                self.install(path, *tail, None);
                return;
            }
            Taken::Alias(alias) => {
                let slot = self.slots.entry(path.to_owned()).or_default();
                slot.trouble.clear();
                slot.alias = Some(alias);
                return;
            }
            Taken::Nothing => {}
        }
        let blocked = self.slots.get_mut(path).and_then(|slot| slot.blocked.take());
        let tail = open::open(path).and_then(|file| {
            let seen = self.departed.iter().any(|position| (position.dev, position.inode) == id);
            let tail = match blocked {
                _ if seen || (first && self.resumed) => self.begin(file, Reading::CatchingUp),
                Some((blocked, size)) if blocked == id => Tail::from_end(file, size),
                _ if first => self.begin_unread(file, start),
                _ => Tail::from_start(file, Reading::Live),
            };
            tail.map_err(|error| open::trouble(&error))
        });
        match tail {
            Ok(tail) => {
                let before = self.slots.get(path).and_then(|slot| slot.tails.last()).map(|tail| tail.id);
                self.install(path, tail, before);
            }
            Err(trouble) => {
                let slot = self.slots.entry(path.to_owned()).or_default();
                slot.say(trouble);
                // Of a place that was read before, a file that nobody knows is new, and read whole.
                slot.blocked = if first && !self.resumed { Some((id, size)) } else { blocked };
            }
        }
    }

    fn install(&mut self, path: &Path, mut tail: Tail, after: Option<Identity>) {
        tail.after = after;
        self.opened = true;
        if let Ok((id, _)) = open::identify(path)
            && id != tail.id
        {
            // Renamed between looking and opening.
            self.stale = true;
        }
        let slot = self.slots.entry(path.to_owned()).or_default();
        slot.trouble.clear();
        slot.tails.push(tail);
    }

    /// Takes the tail of an inode from the name under which it is read, unless that name still means it.
    fn take_tail(&mut self, path: &Path, id: Identity) -> Taken {
        for (other, slot) in &mut self.slots {
            let Some(index) = slot.tails.iter().position(|tail| tail.id == id) else { continue };
            if other != path && open::identify(other).is_ok_and(|(now, _)| now == id) {
                return Taken::Alias(other.clone());
            }
            return Taken::Tail(Box::new(slot.tails.remove(index)));
        }
        Taken::Nothing
    }

    /// Reads once from the first file of a slot that has something; `true` if there may be more. Files whose name
    /// another took come first.
    pub(crate) fn read(
        &mut self,
        path: &Path,
        deadline: Instant,
        buffer: &mut [u8],
        deliver: super::tail::Deliver<'_>,
    ) -> bool {
        let next = self.slots.get(path).and_then(|slot| slot.tails.iter().find(|tail| tail.dirty));
        let Some((id, after)) = next.map(|tail| (tail.id, tail.after)) else { return false };
        if after
            .is_some_and(|after| after != id && self.tails_mut().any(|tail| tail.dirty && tail.id == after))
        {
            return true;
        }
        let Some(slot) = self.slots.get_mut(path) else { return false };
        let Some(tail) = slot.tails.iter_mut().find(|tail| tail.dirty) else { return false };
        tail.after = None;
        let outcome = match self.format {
            None => tail.read(buffer, &mut |reading, block| {
                if !block.is_empty() {
                    deliver(reading, block);
                }
            }),
            Some(format) => {
                let container = slot.container.get_or_insert_with(|| Box::new(Unwrapper::new(format)));
                read_records(tail, container, buffer, deliver)
            }
        };
        match outcome {
            Ok(grew) => {
                if grew {
                    tail.retire_at = tail.retire_at.map(|at| at.max(deadline));
                }
                slot.read_error.take_if(|(failed, _)| *failed == id);
            }
            Err(error) => {
                tail.dirty = false;
                slot.say_failed(id, &error);
            }
        }
        slot.tails.iter().any(|tail| tail.dirty)
    }

    /// Lets go the files whose time without a name is over; returns their watches.
    pub(crate) fn finish(
        &mut self,
        now: Instant,
        buffer: &mut [u8],
        deliver: super::tail::Deliver<'_>,
    ) -> Vec<i32> {
        let mut watches = Vec::new();
        let mut departed = Vec::new();
        for (path, slot) in &mut self.slots {
            let over = |tail: &mut Tail| tail.retire_at.is_some_and(|at| at <= now) && !tail.dirty;
            let mut failed = None;
            for mut tail in slot.tails.extract_if(.., over) {
                slot.read_error.take_if(|(failed, _)| *failed == tail.id);
                let finished = match &mut slot.container {
                    None => tail.finish(buffer, deliver),
                    Some(container) => {
                        tail.finish(buffer, &mut |reading, block| container.feed(reading, block, deliver))
                    }
                };
                failed = finished.err().map(|error| (tail.id, error)).or(failed);
                slot.closed.add(&tail.counters);
                watches.extend(tail.wd);
                departed.push(tail.position(path_text(path), true));
            }
            if let Some((id, error)) = failed {
                slot.say_failed(id, &error);
            }
        }
        departed.into_iter().for_each(|position| self.depart(position));
        watches
    }

    /// Remembers how far a file was read, should its name come back.
    fn depart(&mut self, mut position: Position) {
        position.departed = true;
        self.remember(position);
    }

    fn remember(&mut self, position: Position) {
        self.departed.retain(|known| known.key() != position.key());
        if self.departed.len() >= DEPARTED_MAX {
            self.departed.pop_front();
        }
        self.departed.push_back(position);
    }
}

/// What became of a stored position's file.
#[derive(Debug)]
enum Found {
    File(File),
    /// It is there and cannot be opened.
    Denied,
    /// It is there under its name, and does not hold what was read of it.
    Rewritten,
    Nowhere,
}

/// Reads once from a container's log.
fn read_records(
    tail: &mut Tail,
    container: &mut Unwrapper,
    buffer: &mut [u8],
    deliver: super::tail::Deliver<'_>,
) -> io::Result<bool> {
    if std::mem::take(&mut tail.unjoined) {
        let (before, are_all) = tail.before(REJOIN_BYTES_MAX)?;
        container.rejoin(&before, are_all);
        if tail.skipping {
            container.gap();
        }
    }
    tail.line_bytes_max = RECORD_BYTES_MAX;
    let truncated = tail.counters.truncated;
    let outcome = tail.read(buffer, &mut |reading, block| match block {
        [] => container.gap(),
        records if reading == Reading::Context => container.show(records, deliver),
        records => container.feed(reading, records, deliver),
    });
    if tail.counters.truncated > truncated {
        container.cut();
    }
    outcome
}

/// What became of an inode's tail.
enum Taken {
    Tail(Box<Tail>),
    Alias(PathBuf),
    Nothing,
}

/// The last component.
pub(crate) fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}
