//! Standard input as a source of lines: `tail -F log | blocker run --stdin`.
//!
//! A thread reads it, and waits when the loop does not keep up, so that whoever writes waits, too, and no line is lost.
//! When the input ends, so does the thread; the agent goes on.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use super::{
    intake::{Intake, Lines, Outlet},
    line::{self, Outcome},
    socket::framing::{Cut, Framer, Framing},
};

/// Bytes of lines that wait for the loop; whoever writes further ones waits.
pub const STDIN_WAITING_BYTES_MAX: usize = 1 << 20;
/// What one read takes.
const READ_BYTES: usize = 64 * 1024;

/// What an input is doing.
#[derive(Debug, Default)]
struct Counts {
    bytes: AtomicU64,
    lines: AtomicU64,
    too_long: AtomicU64,
    unfinished: AtomicU64,
    /// 0 while it is read, 1 after its end, else 2 and the error's number.
    end: AtomicU64,
}

/// Standard input, or another reader. Its descriptor is readable when [`StdinSource::poll`] has something to hand out.
#[derive(Debug)]
pub struct StdinSource {
    outlet: Outlet,
    counts: Arc<Counts>,
}

impl AsFd for StdinSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.outlet.as_fd()
    }
}

impl StdinSource {
    /// Reads `input` to its end.
    ///
    /// # Errors
    /// When the kernel gives no descriptor or thread.
    pub fn new(input: impl Read + Send + 'static) -> io::Result<Self> {
        let intake = Intake::new()?;
        let outlet = Outlet::new(Arc::clone(&intake));
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        // Nobody waits for its end: it may be in a read that never returns.
        let _detached =
            thread::Builder::new().name("stdin".to_owned()).spawn(move || read(input, &intake, &counted))?;
        Ok(Self { outlet, counts })
    }

    /// Hands out the lines that have arrived, up to about a MiB. If there is more, the descriptor stays readable.
    pub fn poll(&mut self, sink: &mut dyn FnMut(&[u8])) {
        self.outlet.poll(&mut |_, lines| sink(lines));
    }

    /// In words; starts with "reading" only if it is read.
    pub fn state(&self) -> String {
        match self.counts.end.load(Ordering::Acquire) {
            0 => "reading".to_owned(),
            1 => "ended; what was banned stays banned, and other sources are read on".to_owned(),
            error => {
                let error = i32::try_from(error - 2).unwrap_or(0);
                format!("cannot be read: {}", io::Error::from_raw_os_error(error))
            }
        }
    }

    /// Bytes read.
    pub fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }

    /// `lines`, `too_long` (skipped), `unfinished` (the last one had no end, and was thrown away).
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let counts = &self.counts;
        [("lines", &counts.lines), ("too_long", &counts.too_long), ("unfinished", &counts.unfinished)]
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
            .to_vec()
    }
}

fn read(mut input: impl Read, intake: &Intake, counts: &Counts) {
    let mut buffer = vec![0; READ_BYTES];
    let mut framer = Framer::new(Some(Framing::Newline));
    let mut lines = Lines::default();
    let end = loop {
        let length = match input.read(&mut buffer) {
            Ok(0) => break 1,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => break 2 + u64::try_from(error.raw_os_error().unwrap_or(0)).unwrap_or(0),
        };
        counts.bytes.fetch_add(length as u64, Ordering::Relaxed);
        let _lines_are_always_in_frame = framer.take(buffer.get(..length).unwrap_or_default(), &mut |cut| {
            let outcome = match cut {
                Cut::Message(message) => line::write(message, &mut lines.text),
                Cut::TooLong => Outcome::TooLong,
            };
            let count = match outcome {
                Outcome::Line | Outcome::Odd => &counts.lines,
                Outcome::TooLong => &counts.too_long,
                Outcome::Empty => return,
            };
            count.fetch_add(1, Ordering::Relaxed);
        });
        lines.mark(0);
        for (key, lines) in lines.runs() {
            intake.deliver(key, lines, STDIN_WAITING_BYTES_MAX);
        }
        lines.clear();
    };
    counts.unfinished.fetch_add(u64::from(framer.is_unfinished()), Ordering::Relaxed);
    counts.end.store(end, Ordering::Release);
}
