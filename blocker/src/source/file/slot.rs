//! One name of a log: the files it means and meant, and what is in the way of reading them.
//!
//! It says and counts; which file has the name, others find out.
#![forbid(unsafe_code)]

use std::{
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    container::Unwrapper,
    open::{Kind, Trouble},
    tail::{Counters, Identity, Tail},
};

/// What was in the way of reading a file, each time it came to be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// A FIFO, a device, a directory or a socket had its name.
    pub(crate) not_a_file: u64,
    /// It may not be read.
    pub(crate) denied: u64,
    /// The disk, or the file system, refused.
    pub(crate) read_errors: u64,
}

/// One path, and the files it means and meant.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// In the order they are to be read; at most one is not retired.
    pub(crate) tails: Vec<Tail>,
    /// Why there is nothing to read, or what is wrong; empty if nothing is.
    pub(crate) trouble: String,
    /// What the disk said at the last read of a file, until one of it succeeds.
    pub(super) read_error: Option<(Identity, String)>,
    /// A folder in which everybody may replace the file.
    pub(crate) open_to_all: Option<PathBuf>,
    pub(crate) faults: Faults,
    /// The same file is read under this name.
    pub(super) alias: Option<PathBuf>,
    /// A file that was there at the start but could not be opened, and its size then.
    pub(super) blocked: Option<(Identity, u64)>,
    /// Of tails let go.
    pub(super) closed: Counters,
    pub(crate) rotated: u64,
    /// Takes off what a container runtime wrote around the lines; one for all the files that had this name.
    pub(crate) container: Option<Box<Unwrapper>>,
}

impl Slot {
    pub(super) fn current(&self) -> Option<&Tail> {
        self.tails.iter().find(|tail| tail.retire_at.is_none())
    }

    /// Says what is in the way, and counts it when it was not before.
    pub(super) fn say(&mut self, trouble: Trouble) {
        if self.trouble == trouble.text {
            return;
        }
        self.trouble = trouble.text;
        match trouble.kind {
            Kind::NotAFile => self.faults.not_a_file += 1,
            Kind::Denied => self.faults.denied += 1,
            Kind::Absent | Kind::Other => {}
        }
    }

    /// The same of a read that failed, which is tried again.
    pub(super) fn say_failed(&mut self, id: Identity, error: &io::Error) {
        self.faults.read_errors += u64::from(self.read_error.is_none());
        self.read_error = Some((id, format!("cannot be read: {error}; tried again")));
    }

    /// Whether it is to be looked at again soon without being told.
    pub(super) fn in_trouble(&self) -> bool {
        !self.trouble.is_empty() || self.read_error.is_some()
    }

    pub(super) fn retire(&mut self, now: Instant, drain_time: Duration) {
        for tail in self.tails.iter_mut().filter(|tail| tail.retire_at.is_none()) {
            tail.retire(now, drain_time);
            self.rotated += 1;
        }
    }

    /// Counts over all its files.
    pub(crate) fn counters(&self) -> Counters {
        let mut counters = self.closed;
        for tail in &self.tails {
            counters.add(&tail.counters);
        }
        counters
    }

    /// In words: starts with "reading" only if a file is open.
    pub(crate) fn state(&self) -> String {
        match (self.current(), &self.alias) {
            (Some(tail), _) if tail.wd.is_none() => "reading, by polling: no inotify watch is left \
                 (raise the sysctl fs.inotify.max_user_watches)"
                .to_owned(),
            (Some(_), _) if self.in_trouble() => {
                let failed = self.read_error.iter().map(|(_, text)| text.as_str());
                let troubles: Vec<&str> =
                    failed.chain([self.trouble.as_str()]).filter(|text| !text.is_empty()).collect();
                format!("reading, with trouble: {}", troubles.join("; "))
            }
            (Some(_), _) => match &self.open_to_all {
                None => "reading".to_owned(),
                Some(folder) => format!(
                    "reading, but everybody may replace it: {} is world-writable (chmod o-w, or +t)",
                    folder.display()
                ),
            },
            (None, Some(alias)) => format!("reading as {}", alias.display()),
            (None, None) => self.trouble.clone(),
        }
    }
}
