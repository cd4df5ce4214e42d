//! Lines on their way from a thread that reads to the loop that decides: bounded by source, woken by a descriptor.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use rustix::event::{EventfdFlags, eventfd};

/// Bytes handed out in one poll; more makes the descriptor readable again.
const POLL_BYTES_MAX: usize = 1 << 20;
/// What a buffer keeps when it is empty.
const IDLE_BYTES_MAX: usize = 64 * 1024;

/// Whole lines, each under the key of its source, in the order they came.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) text: Vec<u8>,
    /// Whose the text is, up to where.
    runs: Vec<(u32, usize)>,
}

impl Lines {
    /// What was added to `text` since the last call is of this source.
    pub(super) fn mark(&mut self, key: u32) {
        let end = self.text.len();
        match self.runs.last_mut() {
            Some((_, last)) if *last == end => {}
            Some((known, last)) if *known == key => *last = end,
            _ if end > 0 => self.runs.push((key, end)),
            _ => {}
        }
    }

    pub(super) fn clear(&mut self) {
        self.runs.clear();
        self.text.clear();
        if self.text.capacity() > IDLE_BYTES_MAX {
            self.text = Vec::new();
        }
    }

    /// The runs with their text.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let starts = std::iter::once(0).chain(self.runs.iter().map(|(_, end)| *end));
        starts
            .zip(&self.runs)
            .map(|(start, (key, end))| (*key, self.text.get(start..*end).unwrap_or_default()))
    }
}

/// What waits for the loop.
#[derive(Debug, Default)]
struct Waiting {
    lines: Lines,
    /// Bytes by source.
    bytes: BTreeMap<u32, usize>,
}

/// The side of the thread that reads.
#[derive(Debug)]
pub(super) struct Intake {
    waiting: Mutex<Waiting>,
    wake: OwnedFd,
    taken: Condvar,
}

impl Intake {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { waiting: Mutex::default(), wake, taken: Condvar::new() }))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the lines for the loop; `false` when there is no room for them.
    pub(super) fn offer(&self, key: u32, lines: &[u8], bytes_max: usize) -> bool {
        self.add(&mut self.waiting(), key, lines, bytes_max)
    }

    /// Leaves the lines for the loop, and waits until there is room.
    pub(super) fn deliver(&self, key: u32, lines: &[u8], bytes_max: usize) {
        let mut waiting = self.waiting();
        while !self.add(&mut waiting, key, lines, bytes_max) {
            waiting = self.taken.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn add(&self, waiting: &mut Waiting, key: u32, lines: &[u8], bytes_max: usize) -> bool {
        let bytes = waiting.bytes.entry(key).or_default();
        if *bytes > 0 && *bytes + lines.len() > bytes_max {
            return false;
        }
        *bytes += lines.len();
        waiting.lines.text.extend_from_slice(lines);
        waiting.lines.mark(key);
        signal(&self.wake);
        true
    }
}

/// The loop's side.
#[derive(Debug)]
pub(super) struct Outlet {
    intake: Arc<Intake>,
    taken: Lines,
    /// Of `taken`, how many runs were handed out.
    handed: usize,
}

impl AsFd for Outlet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.intake.wake.as_fd()
    }
}

impl Outlet {
    pub(super) fn new(intake: Arc<Intake>) -> Self {
        Self { intake, taken: Lines::default(), handed: 0 }
    }

    /// Hands out what has arrived, at most about a MiB.
    pub(super) fn poll(&mut self, sink: &mut dyn FnMut(u32, &[u8])) {
        let mut count = [0; 8];
        let _was_not_readable = rustix::io::read(&self.intake.wake, &mut count);
        if self.handed == self.taken.runs.len() {
            self.handed = 0;
            self.taken.clear();
            let mut waiting = self.intake.waiting();
            std::mem::swap(&mut waiting.lines, &mut self.taken);
            waiting.bytes.clear();
            drop(waiting);
            self.intake.taken.notify_one();
        }
        let mut bytes = 0;
        for (key, lines) in self.taken.runs().skip(self.handed) {
            if bytes > 0 && bytes + lines.len() > POLL_BYTES_MAX {
                signal(&self.intake.wake);
                return;
            }
            bytes += lines.len();
            self.handed += 1;
            sink(key, lines);
        }
        if self.handed > 0 {
            // What came meanwhile has signalled by itself.
            self.handed = 0;
            self.taken.clear();
        }
    }
}

/// Makes the descriptor readable.
pub(super) fn signal(event: &OwnedFd) {
    // It fails only when it is readable as it can be.
    let _full = rustix::io::write(event, &1_u64.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_as_they_went_in_and_no_source_takes_anothers_room() {
        let intake = Intake::new().unwrap();
        let mut outlet = Outlet::new(Arc::clone(&intake));
        for (key, lines, fits) in [
            (1, "a\n", true),
            (1, "b\n", true),
            (2, "c\n", true),
            (1, "ddd\n", false),
            (1, "d\n", true),
            (2, "e\n", true),
        ] {
            assert_eq!(intake.offer(key, lines.as_bytes(), 6), fits, "{lines}");
        }
        let mut seen = Vec::new();
        let mut take = |outlet: &mut Outlet| {
            outlet.poll(&mut |key, lines| seen.push((key, String::from_utf8_lossy(lines).into_owned())));
        };
        take(&mut outlet);
        assert!(
            intake.offer(1, b"long enough to be alone\n", 6),
            "what is too large for an empty place goes alone"
        );
        assert!(!intake.offer(1, b"f\n", 6));
        take(&mut outlet);
        take(&mut outlet);
        let expected = [(1, "a\nb\n"), (2, "c\n"), (1, "d\n"), (2, "e\n"), (1, "long enough to be alone\n")];
        assert_eq!(seen, expected.map(|(key, lines)| (key, lines.to_owned())));
    }

    #[test]
    fn a_long_queue_is_handed_out_in_pieces_and_leaves_no_memory_behind() {
        let intake = Intake::new().unwrap();
        let mut outlet = Outlet::new(Arc::clone(&intake));
        for key in 0..5 {
            assert!(intake.offer(key, &vec![b'\n'; POLL_BYTES_MAX / 2 + 1], usize::MAX));
        }
        let (mut polls, mut keys) = (0, Vec::new());
        while keys.len() < 5 {
            outlet.poll(&mut |key, _| keys.push(key));
            polls += 1;
            assert!(polls <= 5);
        }
        assert_eq!((polls, keys), (5, vec![0, 1, 2, 3, 4]));
        outlet.poll(&mut |_, _| panic!("nothing is left"));
        assert!(outlet.taken.text.capacity() <= IDLE_BYTES_MAX);
    }
}
