//! A log that is written at a steady rate while Debian's logrotate rotates it, and what became of each of its lines.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use blocker::{
    engine::SourceId,
    source::{FileSource, Options},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Lines in each write, one write a millisecond: 10,000 lines a second.
const LINES_A_WRITE: u32 = 10;
const WRITE_EVERY: Duration = Duration::from_millis(1);
/// Between two rotations.
const ROTATE_EVERY: Duration = Duration::from_millis(100);
/// So long nothing may arrive before a reader is believed to be done.
const QUIET: Duration = Duration::from_millis(500);

/// How logrotate rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The log is renamed and made anew; its writer is told to open it again, as by `postrotate`.
    Rename,
    /// The log is copied, then emptied under its writer's hands.
    CopyTruncate,
}

/// What became of the lines.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Lines written.
    pub(crate) written: u32,
    /// Lines that logrotate left in no file: written between its copy and its emptying.
    pub(crate) destroyed: usize,
    /// Lines that were not read.
    pub(crate) lost: usize,
    /// Of those, lines that stand in some file.
    pub(crate) lost_and_there: usize,
    /// Runs of lost lines that follow each other.
    pub(crate) gaps: usize,
    /// Lines read more than once.
    pub(crate) twice: usize,
    /// What the source counted, by name.
    pub(crate) counters: BTreeMap<&'static str, u64>,
}

/// Line `number`, which names it by its address.
pub(crate) fn line(number: u32) -> String {
    let [_, a, b, c] = number.to_be_bytes();
    format!("Nov 24 10:00:00 host sshd[42]: Failed password for root from 10.{a}.{b}.{c} port 40000 ssh2\n")
}

/// The number of a line, or of any text with such an address behind the word `before`.
pub(crate) fn number_in(text: &str, before: &str) -> Option<u32> {
    let address = text.split_once(before)?.1.split(' ').next()?;
    let rest: Vec<u8> =
        address.strip_prefix("10.")?.split('.').filter_map(|part| part.parse().ok()).collect();
    let [a, b, c] = *rest.as_slice() else { return None };
    Some(u32::from_be_bytes([0, a, b, c]))
}

/// Writes to `auth.log` in `folder`, rotates it so often, and reads it meanwhile.
pub(crate) fn rotate(folder: &Path, way: Way, rotations: u32) -> Outcome {
    let log = folder.join("auth.log");
    let again = folder.join("open-again");
    fs::write(&log, "").expect("room on the disk");
    let mut source = FileSource::new(&[(SourceId(0), log.clone())], Vec::new(), Options::default(), None)
        .expect("inotify");
    let (over, written) = (AtomicBool::new(false), AtomicU32::new(0));
    let mut read = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| write(&log, &again, &over, &written));
        let rotating = scope.spawn(|| {
            let configuration = configure(folder, &log, &again, way, rotations);
            for _ in 0..rotations {
                thread::sleep(ROTATE_EVERY);
                logrotate(folder, &configuration);
            }
            thread::sleep(ROTATE_EVERY);
            over.store(true, SeqCst);
        });
        let mut last = Instant::now();
        while !rotating.is_finished() || last.elapsed() < QUIET {
            let mut count = |_, _, block: &[u8]| {
                last = Instant::now();
                let text = String::from_utf8_lossy(block);
                read.extend(text.lines().filter_map(|line| number_in(line, "from ")));
            };
            if source.poll(Instant::now(), &mut count) != Some(Duration::ZERO) {
                let mut fds = [PollFd::from_borrowed_fd(source.as_fd(), PollFlags::IN)];
                let pause = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
                let _or_later = poll(&mut fds, Some(&pause));
            }
        }
    });
    let counters = source.status().into_iter().flat_map(|file| file.counters).collect();
    Outcome { counters, ..compare(folder, written.load(SeqCst), &read) }
}

/// What was read, beside what was written and what is still in the log and its rotated files.
pub(crate) fn compare(folder: &Path, written: u32, read: &[u32]) -> Outcome {
    let mut times = vec![0_u32; written as usize];
    for number in read {
        if let Some(times) = times.get_mut(*number as usize) {
            *times += 1;
        }
    }
    let mut is_there = vec![false; written as usize];
    for entry in fs::read_dir(folder).expect("the folder").flatten() {
        if entry.file_name().to_string_lossy().starts_with("auth.log") {
            let text = fs::read_to_string(entry.path()).expect("a log");
            for number in text.lines().filter_map(|line| number_in(line, "from ")) {
                if let Some(is_there) = is_there.get_mut(number as usize) {
                    *is_there = true;
                }
            }
        }
    }
    let lost = |times: &&u32| **times == 0;
    Outcome {
        written,
        destroyed: is_there.iter().filter(|is_there| !**is_there).count(),
        lost: times.iter().filter(lost).count(),
        lost_and_there: times.iter().zip(&is_there).filter(|(times, there)| **times == 0 && **there).count(),
        gaps: times.chunk_by(|one, two| (*one == 0) == (*two == 0)).filter(|run| run[0] == 0).count(),
        twice: times.iter().filter(|times| **times > 1).count(),
        counters: BTreeMap::new(),
    }
}

/// A daemon: appends to the file it has open until it is told to open it again.
fn write(log: &Path, again: &Path, over: &AtomicBool, written: &AtomicU32) {
    let open = || fs::File::options().append(true).open(log).expect("the log");
    let mut file = open();
    let mut next = Instant::now();
    while !over.load(SeqCst) {
        if fs::remove_file(again).is_ok() {
            file = open();
        }
        let first = written.load(SeqCst);
        let text: String = (first..first + LINES_A_WRITE).map(line).collect();
        file.write_all(text.as_bytes()).expect("room on the disk");
        written.store(first + LINES_A_WRITE, SeqCst);
        next += WRITE_EVERY;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn configure(folder: &Path, log: &Path, again: &Path, way: Way, rotations: u32) -> PathBuf {
    let how = match way {
        Way::Rename => format!("create 0644\npostrotate\ntouch '{}'\nendscript", again.display()),
        Way::CopyTruncate => "copytruncate".to_owned(),
    };
    let path = folder.join("logrotate.conf");
    let text = format!("\"{}\" {{\nrotate {}\nnocompress\n{how}\n}}\n", log.display(), rotations + 1);
    fs::write(&path, text).expect("room on the disk");
    path
}

fn logrotate(folder: &Path, configuration: &Path) {
    let mut command = Command::new("logrotate");
    command.args(["--force", "--state"]).arg(folder.join("logrotate.state")).arg(configuration);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let output = command.output().expect("logrotate, which setup installs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
