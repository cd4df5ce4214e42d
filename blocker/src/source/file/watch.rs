//! The one inotify instance: which inodes grew, which names in which directories changed.
//!
//! An inode is watched through its open descriptor (`/proc/self/fd/N`), so a rename between opening and watching
//! changes nothing. It knows no lines and no positions.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeSet, HashMap},
    ffi::{OsStr, OsString},
    fs::File,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};

/// Events taken at once; the rest stays in the kernel's queue (16,384 by default, inotify(7)).
const EVENTS_MAX: usize = 4096;

/// Names the place that wants to hear of a name.
pub(crate) type PlaceId = u32;

/// A name in a directory; the name may be a pattern.
pub(crate) type Name = (PathBuf, OsString);

/// What the kernel told.
#[derive(Debug)]
pub(crate) enum Event {
    /// The inode behind a watch grew, shrank or was written to.
    Modified(i32),
    /// Something happened to a name in a directory.
    Entry {
        /// The path.
        path: PathBuf,
        /// A rename's half, if it is one.
        moved: Moved,
        /// Who wants names of this directory; the name is still to be compared.
        places: BTreeSet<PlaceId>,
    },
    /// A directory is no longer where it was.
    Gone(BTreeSet<PlaceId>),
    /// Events were lost: anything may have happened.
    Overflow,
}

/// Which half of a rename, with the cookie that joins them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moved {
    /// Not a rename.
    No,
    /// The old name.
    From(u32),
    /// The new name.
    To(u32),
}

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    places: BTreeSet<PlaceId>,
}

/// The inotify instance and the directories it watches.
#[derive(Debug)]
pub(crate) struct Watch {
    fd: OwnedFd,
    directories: HashMap<i32, Directory>,
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Watch {
    /// # Errors
    /// The user has no inotify instance left (`fs.inotify.max_user_instances`).
    pub(crate) fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(|error| {
            let error = io::Error::from(error);
            io::Error::new(
                error.kind(),
                format!("no inotify instance: {error}; raise the sysctl fs.inotify.max_user_instances"),
            )
        })?;
        Ok(Self { fd, directories: HashMap::new() })
    }

    /// Watches an open file for growth.
    pub(crate) fn file(&self, file: &File) -> io::Result<i32> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(inotify::add_watch(&self.fd, path, WatchFlags::MODIFY)?)
    }

    /// Stops watching a file.
    pub(crate) fn forget_file(&self, wd: i32) {
        // Fails only if the kernel dropped the watch by itself, which is what is wanted.
        let _gone = inotify::remove_watch(&self.fd, wd);
    }

    /// Watches a directory for a place.
    pub(crate) fn directory(&mut self, path: &Path, place: PlaceId) -> io::Result<()> {
        let flags = WatchFlags::CREATE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let wd = inotify::add_watch(&self.fd, path, flags)?;
        let directory = self
            .directories
            .entry(wd)
            .or_insert_with(|| Directory { path: path.to_owned(), places: BTreeSet::new() });
        directory.places.insert(place);
        Ok(())
    }

    /// Ends a place's interest in every directory but these.
    pub(crate) fn keep_directories(&mut self, place: PlaceId, wanted: &BTreeSet<Name>) {
        let fd = &self.fd;
        self.directories.retain(|wd, directory| {
            if directory.places.contains(&place) && !wanted.iter().any(|(path, _)| *path == directory.path) {
                directory.places.remove(&place);
            }
            if directory.places.is_empty() {
                let _gone = inotify::remove_watch(fd, *wd);
            }
            !directory.places.is_empty()
        });
    }

    /// Takes what the kernel has to tell; `true` if there may be more.
    pub(crate) fn take(&mut self, events: &mut Vec<Event>) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        let mut more = true;
        for _ in 0..EVENTS_MAX {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    more = false;
                    break;
                }
                Err(_) => {
                    events.push(Event::Overflow);
                    more = false;
                    break;
                }
            };
            let (wd, flags) = (event.wd(), event.events());
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                events.push(Event::Overflow);
            } else if flags.contains(ReadFlags::MODIFY) {
                events.push(Event::Modified(wd));
            } else if flags.intersects(
                ReadFlags::IGNORED | ReadFlags::UNMOUNT | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF,
            ) {
                if let Some(directory) = self.directories.remove(&wd) {
                    let _gone = inotify::remove_watch(&self.fd, wd);
                    events.push(Event::Gone(directory.places));
                }
            } else if let (Some(directory), Some(name)) = (self.directories.get(&wd), event.file_name()) {
                let moved = if flags.contains(ReadFlags::MOVED_FROM) {
                    Moved::From(event.cookie())
                } else if flags.contains(ReadFlags::MOVED_TO) {
                    Moved::To(event.cookie())
                } else {
                    Moved::No
                };
                let path = directory.path.join(OsStr::from_bytes(name.to_bytes()));
                events.push(Event::Entry { path, moved, places: directory.places.clone() });
            }
        }
        more
    }
}
