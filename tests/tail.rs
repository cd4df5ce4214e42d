//! Lines in files, and lines out of the reader: none lost, none twice, none cut, whatever happens to the names.
#![forbid(unsafe_code)]

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use blocker::{
    engine::{Reading, SourceId},
    source::{FileSource, FirstStart, Options, Position},
    time::Timestamp,
};

#[path = "tail/model.rs"]
mod model;

const SOURCE: SourceId = SourceId(7);

/// A reader under test with a clock that the test moves.
struct Reader {
    source: FileSource,
    now: Instant,
    lines: Vec<(Reading, String)>,
}

impl Reader {
    fn new(paths: &[&Path], positions: Vec<Position>, now: Instant) -> Self {
        let files: Vec<_> = paths.iter().map(|path| (SOURCE, path.to_path_buf())).collect();
        let source = FileSource::new(&files, positions, Options::default(), None).expect("inotify");
        Self { source, now, lines: Vec::new() }
    }

    fn open(path: &Path) -> Self {
        Self::new(&[path], Vec::new(), Instant::now())
    }

    fn poll(&mut self) -> Option<Duration> {
        for _ in 0..10_000 {
            let lines = &mut self.lines;
            let next = self.source.poll(self.now, &mut |source, reading, block| {
                assert_eq!(source, SOURCE);
                assert_eq!(block.last(), Some(&b'\n'), "a block ends with a whole line");
                if reading == Reading::Context {
                    return;
                }
                for line in block.split_inclusive(|byte| *byte == b'\n') {
                    lines.push((reading, String::from_utf8_lossy(&line[..line.len() - 1]).into_owned()));
                }
            });
            if next != Some(Duration::ZERO) {
                return next;
            }
        }
        panic!("the reader never rests");
    }

    fn later(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.poll();
    }

    fn texts(&self) -> Vec<&str> {
        self.lines.iter().map(|(_, line)| line.as_str()).collect()
    }

    /// As the agent does it: through the store and back.
    fn positions(&self) -> Vec<Position> {
        read_back(&self.stored())
    }

    fn stored(&self) -> Vec<(String, String)> {
        let stored: Vec<(String, String)> = self
            .source
            .positions()
            .iter()
            .map(|position| (position.key(), serde_json::to_string(position).expect("a position is JSON")))
            .collect();
        let keys: std::collections::BTreeSet<_> = stored.iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), stored.len(), "keys are unique");
        stored
    }

    fn state(&self) -> String {
        self.source.status().into_iter().next().expect("a status").state
    }

    fn counter(&self, name: &str) -> u64 {
        let all = self.source.status().into_iter().flat_map(|status| status.counters);
        all.filter(|(known, _)| *known == name).map(|(_, count)| count).sum()
    }
}

fn read_back(stored: &[(String, String)]) -> Vec<Position> {
    stored.iter().map(|(_, json)| serde_json::from_str(json).expect("a position again")).collect()
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).expect("open to write");
    file.write_all(text.as_bytes()).expect("write");
}

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = directory.path().join("app.log");
    (directory, path)
}

#[test]
fn a_file_is_read_from_its_end_and_then_as_it_grows() {
    let (_directory, path) = scratch();
    append(&path, "old\nbegun ");
    let mut reader = Reader::open(&path);
    append(&path, "and ended\nnew\nunfin");
    reader.poll();
    assert_eq!(reader.texts(), ["begun and ended", "new"], "an unfinished line is not handed out");
    append(&path, "ished\n");
    reader.poll();
    assert_eq!(reader.texts(), ["begun and ended", "new", "unfinished"]);
    assert_eq!(reader.state(), "reading");
}

#[test]
fn a_file_that_was_never_read_is_read_from_the_time_that_counts() {
    let (directory, path) = scratch();
    let date_of = |line: &[u8]| {
        let text = std::str::from_utf8(line).ok()?;
        text.split(' ').next()?.parse().ok().map(Timestamp::from_secs)
    };
    let since = |_: SourceId| Timestamp::from_secs(90_000);
    let start = |path: &Path| {
        let first = FirstStart { since: &since, date_of: &date_of };
        let files = [(SOURCE, path.to_path_buf())];
        let source = FileSource::new(&files, Vec::new(), Options::default(), Some(&first)).expect("inotify");
        Reader { source, now: Instant::now(), lines: Vec::new() }
    };
    let log: String = (0..100_000).map(|second| format!("{second} something\n")).collect();
    fs::write(&path, &log).expect("write");
    fs::write(directory.path().join("undated.log"), "who knows when\n".repeat(100_000)).expect("write");

    let mut reader = start(&path);
    append(&path, "100000 new\n");
    for _ in 0..9 {
        reader.poll();
    }
    let numbers: Vec<i64> =
        reader.lines.iter().filter_map(|(_, line)| line.split(' ').next()?.parse().ok()).collect();
    assert_eq!(numbers, (90_000..=100_000).collect::<Vec<_>>());
    assert_eq!(reader.lines.first().map(|line| line.0), Some(Reading::CatchingUp));
    assert_eq!(reader.lines.last().map(|line| line.0), Some(Reading::Live));

    // Where no line says when it was written, what was there may be of any time.
    let mut undated = start(&directory.path().join("undated.log"));
    append(&directory.path().join("undated.log"), "new\n");
    undated.poll();
    assert_eq!(undated.texts(), ["new"]);
}

#[test]
fn lines_over_64_kib_are_skipped_and_counted_wherever_they_lie() {
    let (_directory, path) = scratch();
    append(&path, "");
    let mut reader = Reader::open(&path);
    let longest = "y".repeat(64 * 1024);
    let (over, huge) = ("z".repeat(64 * 1024 + 1), "w".repeat(700 * 1024));
    append(&path, &format!("a\n{longest}\nb\n{over}\nc\n{huge}\nd\n"));
    reader.poll();
    assert_eq!(reader.texts(), ["a", longest.as_str(), "b", "c", "d"]);
    append(&path, &huge);
    reader.poll();
    let mut again = Reader::new(&[&path], reader.positions(), reader.now);
    append(&path, "the end of it\ne\n");
    again.poll();
    assert_eq!(again.texts(), ["e"], "the rest of a long line is skipped after a restart too");
    assert_eq!(reader.counter("skipped"), 3);
}

#[test]
fn bytes_that_are_not_text_pass_unchanged() {
    let (_directory, path) = scratch();
    append(&path, "");
    let files = [(SOURCE, path.clone())];
    let mut source = FileSource::new(&files, Vec::new(), Options::default(), None).expect("inotify");
    let line = b"user \xff\xfe\0 \r\n";
    OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(line)).expect("write");
    let mut got = Vec::new();
    source.poll(Instant::now(), &mut |_, _, block| got.extend_from_slice(block));
    assert_eq!(got, line);
}

#[test]
fn the_second_half_of_a_truncated_line_is_not_a_line() {
    let (_directory, path) = scratch();
    append(&path, "");
    let mut reader = Reader::open(&path);
    append(&path, "whole\nfrom 203.0.");
    reader.poll();
    OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(0)).expect("truncate");
    append(&path, "113.7 port 22\nnext\n");
    reader.poll();
    assert_eq!(reader.texts(), ["whole", "next"]);
    assert_eq!((reader.counter("truncated"), reader.counter("skipped")), (1, 1));
}

#[test]
fn the_hole_a_writer_without_append_leaves_is_not_part_of_a_line() {
    let (_directory, path) = scratch();
    let mut writer = File::create(&path).expect("create");
    let mut reader = Reader::open(&path);
    writer.write_all("first line\n".repeat(30_000).as_bytes()).expect("write");
    reader.poll();
    writer.set_len(0).expect("truncate");
    writer.write_all(b"after\n").expect("write");
    reader.poll();
    assert_eq!(reader.texts().last(), Some(&"after"));
    assert_eq!((reader.lines.len(), reader.counter("truncated")), (30_001, 1));
}

#[test]
fn what_was_written_while_nobody_read_is_caught_up_up_to_a_line_end() {
    let (directory, path) = scratch();
    append(&path, "");
    let mut reader = Reader::open(&path);
    append(&path, "one\n");
    reader.poll();
    let positions = reader.positions();
    drop(reader);
    append(&path, "two\nthr");
    let mut reader = Reader::new(&[&path], positions, Instant::now());
    append(&path, "ee\nfour\n");
    reader.poll();
    use Reading::{CatchingUp, Live};
    let read: Vec<_> = reader.lines.iter().map(|(reading, line)| (*reading, line.as_str())).collect();
    assert_eq!(read, [(CatchingUp, "two"), (CatchingUp, "three"), (Live, "four")]);

    // Rotated while nobody read: the rest of the old file first, then all of the new one.
    let positions = reader.positions();
    drop(reader);
    append(&path, "five\n");
    fs::rename(&path, directory.path().join("app.log.1")).expect("rotate");
    append(&path, "six\n");
    let mut reader = Reader::new(&[&path], positions.clone(), Instant::now());
    append(&path, "seven\n");
    reader.poll();
    let read: Vec<_> = reader.lines.iter().map(|(reading, line)| (*reading, line.as_str())).collect();
    assert_eq!(read, [(CatchingUp, "five"), (CatchingUp, "six"), (Live, "seven")]);
    drop(reader);

    // The file of the position is gone: everything there is new.
    fs::remove_file(directory.path().join("app.log.1")).expect("delete");
    let mut reader = Reader::new(&[&path], positions, Instant::now());
    reader.poll();
    assert_eq!(reader.lines, [(CatchingUp, "six".to_owned()), (CatchingUp, "seven".to_owned())]);
}

#[test]
fn a_file_may_appear_late_in_a_directory_that_appears_late() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = directory.path().join("a/b/app.log");
    let mut reader = Reader::open(&path);
    reader.poll();
    assert!(reader.state().starts_with("missing"), "{}", reader.state());
    fs::create_dir(directory.path().join("a")).expect("mkdir");
    reader.poll();
    fs::create_dir(directory.path().join("a/b")).expect("mkdir");
    append(&path, "first\n");
    reader.poll();
    assert_eq!(reader.lines, [(Reading::Live, "first".to_owned())]);
    // The directory is put aside and made anew, as a deployment does it.
    fs::rename(directory.path().join("a/b"), directory.path().join("a/old")).expect("rename");
    fs::create_dir(directory.path().join("a/b")).expect("mkdir");
    append(&path, "second\n");
    reader.poll();
    assert_eq!(reader.texts(), ["first", "second"]);
    // One further up is not watched: seen by the regular look at everything, and nothing is lost till then.
    fs::rename(directory.path().join("a"), directory.path().join("old")).expect("rename");
    fs::create_dir_all(directory.path().join("a/b")).expect("mkdir");
    append(&path, "fourth\n");
    append(&directory.path().join("old/b/app.log"), "third\n");
    reader.poll();
    reader.later(10);
    assert_eq!(reader.texts(), ["first", "second", "third", "fourth"]);
}

#[test]
fn a_link_in_the_middle_of_the_path_may_be_pointed_elsewhere() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let at = |name: &str| directory.path().join(name);
    for release in ["one", "two"] {
        fs::create_dir(at(release)).expect("mkdir");
    }
    append(&at("one/app.log"), "");
    symlink("one", at("current")).expect("symlink");
    let mut reader = Reader::open(&at("current/app.log"));
    append(&at("one/app.log"), "from one\n");
    append(&at("two/app.log"), "from two\n");
    symlink("two", at("new")).expect("symlink");
    fs::rename(at("new"), at("current")).expect("switch");
    reader.poll();
    assert_eq!(reader.texts(), ["from one", "from two"], "the old file first");
}

#[test]
fn what_cannot_be_read_is_said_and_tried_again() {
    let (directory, path) = scratch();
    let at = |name: &str| directory.path().join(name);
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o644.into(), 0)
        .expect("mkfifo");
    let _listener = UnixListener::bind(at("socket")).expect("a socket");
    for (name, expected) in [
        ("fifo", "a FIFO"),
        ("socket", "a socket"),
        ("", "a directory"),
        ("missing", "missing"),
        ("missing/deeper", "missing"),
        ("nothing*", "no file matches"),
        ("../../dev/null", "a device"),
    ] {
        let wanted = if name.ends_with("null") { PathBuf::from("/dev/null") } else { at(name) };
        let mut reader = Reader::open(&wanted);
        let next = reader.poll();
        assert!(reader.state().starts_with(expected), "{name}: {}", reader.state());
        assert!(next.is_some_and(|next| next <= Duration::from_secs(2)), "{name}: tried again");
    }
    let mut reader = Reader::open(&at("fifo"));
    fs::remove_file(at("fifo")).expect("delete");
    append(&at("fifo"), "now a file\n");
    reader.poll();
    assert_eq!((reader.texts(), reader.state()), (vec!["now a file"], "reading".to_owned()));

    // As a user who may not read the file. The child is this test with a part to play.
    if std::env::var_os("TAIL_UNREADABLE").is_some() {
        let mut reader = Reader::open(Path::new(&std::env::var_os("TAIL_UNREADABLE").unwrap_or_default()));
        reader.poll();
        assert!(reader.state().starts_with("permission denied"), "{}", reader.state());
        assert_eq!(reader.counter("denied"), 1);
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: an unreadable file needs root to make another user of the child");
        return;
    }
    append(&path, "secret\n");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    // The program is copied to where the other user can reach it.
    let program = at("child");
    fs::copy(std::env::current_exe().expect("this test"), &program).expect("copy");
    let output = Command::new(&program)
        .args(["--exact", "what_cannot_be_read_is_said_and_tried_again"])
        .env("TAIL_UNREADABLE", &path)
        .env("TMPDIR", "/tmp")
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .expect("run");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

/// What somebody does to a log.
type Deed = fn(&Path);
/// A name, what is done, the counter and what it says then, how the state begins, and the lines.
type Case = (&'static str, Deed, &'static str, u64, &'static str, &'static [&'static str]);

#[test]
fn whatever_a_log_turns_into_has_a_counter_and_a_line_in_status() {
    let fifo: Deed = |path| {
        fs::remove_file(path).expect("delete");
        let mode = rustix::fs::Mode::from_raw_mode(0o644);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).expect("mkfifo");
    };
    let long: Deed = |path| {
        // A line of a GiB, nearly all of it a hole.
        let file = OpenOptions::new().append(true).open(path).expect("open");
        file.set_len(1 << 30).expect("a sparse file");
        append(path, "\nafter\n");
    };
    let cases: [Case; 12] = [
        ("a FIFO", fifo, "not_a_file", 1, "a FIFO: name", &["first"]),
        (
            "a device",
            |path| {
                fs::remove_file(path).expect("delete");
                symlink("/dev/zero", path).expect("link");
            },
            "not_a_file",
            1,
            "a device: name",
            &["first"],
        ),
        (
            "a directory",
            |path| {
                fs::remove_file(path).expect("delete");
                fs::create_dir(path).expect("mkdir");
            },
            "not_a_file",
            1,
            "a directory: name",
            &["first"],
        ),
        (
            "a world-writable folder",
            |path| {
                let folder = path.parent().expect("a folder");
                fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("chmod");
            },
            "world_writable",
            1,
            "reading, but everybody may replace it",
            &["first"],
        ),
        (
            "a disk that fails",
            |path| {
                fs::remove_file(path).expect("delete");
                // Nothing is mapped at its beginning: EIO, and no end.
                symlink("/proc/self/mem", path).expect("link");
            },
            "read_errors",
            1,
            "reading, with trouble: cannot be read: Input/output error",
            &["first"],
        ),
        ("a line of a GiB", long, "skipped", 1, "reading", &["first", "after"]),
        ("NUL", |path| append(path, "a\0b\n"), "odd_bytes", 1, "reading", &["first", "a\0b"]),
        ("CR", |path| append(path, "a\r\nb\rc\n"), "odd_bytes", 0, "reading", &["first", "a\r", "b\rc"]),
        (
            "what is no UTF-8",
            |path| {
                let mut file = OpenOptions::new().append(true).open(path).expect("open");
                file.write_all(b"fine\n\xff\xfe\nfine too\n").expect("write");
            },
            "odd_bytes",
            1,
            "reading",
            &["first", "fine", "\u{fffd}\u{fffd}", "fine too"],
        ),
        (
            "another file",
            |path| {
                fs::write(path.with_extension("new"), "other\n").expect("write");
                fs::rename(path.with_extension("new"), path).expect("replace");
            },
            "rotated",
            1,
            "reading",
            &["first", "other"],
        ),
        (
            "emptied",
            |path| fs::write(path, "again\n").expect("write"),
            "truncated",
            1,
            "reading",
            &["first", "again"],
        ),
        ("deleted", |path| fs::remove_file(path).expect("delete"), "rotated", 1, "missing: read", &["first"]),
    ];
    for (name, deed, counter, count, state, lines) in cases {
        let (_directory, path) = scratch();
        append(&path, "");
        let mut reader = Reader::open(&path);
        append(&path, "first\n");
        reader.poll();
        deed(&path);
        reader.poll();
        reader.later(11);
        assert_eq!((name, reader.counter(counter)), (name, count));
        assert!(reader.state().starts_with(state), "{name}: {}", reader.state());
        // Nothing of it is worse after a while, and nothing ends the reader.
        for _ in 0..3 {
            reader.later(11);
        }
        assert!(reader.state().starts_with(state), "{name}, later: {}", reader.state());
        assert_eq!(reader.texts(), lines, "{name}");
    }
}

#[test]
fn one_file_serves_several_sources_and_several_names() {
    let (directory, path) = scratch();
    append(&path, "");
    let hard = directory.path().join("same.log");
    fs::hard_link(&path, &hard).expect("link");
    let files = [(SourceId(1), path.clone()), (SourceId(2), path.clone()), (SourceId(3), hard.clone())];
    let mut source = FileSource::new(&files, Vec::new(), Options::default(), None).expect("inotify");
    let mut got = Vec::new();
    append(&path, "a\n");
    source.poll(Instant::now(), &mut |source, _, _| got.push(source.0));
    got.sort_unstable();
    assert_eq!(got, [1, 2, 3]);
    source.set_files(&files[2..], None);
    append(&path, "b\n");
    got.clear();
    source.poll(Instant::now(), &mut |source, _, _| got.push(source.0));
    assert_eq!(got, [3], "the watch outlives the names that were dropped");
}

#[test]
fn a_pattern_in_a_folders_name_finds_folders_that_appear_later() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("home/anne/logs")).expect("mkdir");
    append(&at("home/anne/logs/app.log"), "before\n");
    let mut reader = Reader::open(&at("home/*/logs/*.log"));
    reader.poll();
    append(&at("home/anne/logs/app.log"), "one\n");
    reader.poll();
    // A folder at once with what is in it, one that grows step by step, and one that another name had.
    fs::create_dir_all(at("new/logs")).expect("mkdir");
    append(&at("new/logs/app.log"), "two\n");
    fs::rename(at("new"), at("home/bert")).expect("rename");
    reader.poll();
    fs::create_dir(at("home/carl")).expect("mkdir");
    reader.poll();
    fs::create_dir(at("home/carl/logs")).expect("mkdir");
    reader.poll();
    append(&at("home/carl/logs/app.log"), "three\n");
    reader.poll();
    fs::rename(at("home/anne"), at("home/dora")).expect("rename");
    append(&at("home/dora/logs/app.log"), "four\n");
    reader.poll();
    reader.later(10);
    append(&at("home/dora/logs/app.log"), "five\n");
    reader.poll();
    append(&at("home/dora/logs/.hidden.log"), "no\n");
    append(&at("home/dora/logs/app.txt"), "no\n");
    reader.poll();
    assert_eq!(reader.texts(), ["one", "two", "three", "four", "five"]);
    // And through a restart, from where it was.
    let positions = reader.positions();
    append(&at("home/bert/logs/app.log"), "six\n");
    let mut again = Reader::new(&[&at("home/*/logs/*.log")], positions, reader.now);
    again.poll();
    assert_eq!(again.lines, [(Reading::CatchingUp, "six".to_owned())]);
}

#[test]
fn a_pattern_reads_1024_files_and_counts_the_rest() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    for number in 0..1030 {
        append(&directory.path().join(format!("{number:04}.log")), "");
    }
    let mut reader = Reader::open(&directory.path().join("*.log"));
    reader.poll();
    let status = reader.source.status();
    assert_eq!(status.iter().filter(|status| status.state == "reading").count(), 1024);
    assert!(status.iter().all(|status| status.counters.contains(&("files_over_limit", 6))));
}

#[test]
fn the_budget_bounds_a_poll_and_every_file_has_its_turn() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let paths: Vec<_> = ["a", "b", "c"].iter().map(|name| directory.path().join(name)).collect();
    paths.iter().for_each(|path| append(path, ""));
    let files: Vec<_> =
        paths.iter().enumerate().map(|(id, path)| (SourceId(id as u16), path.clone())).collect();
    let options = Options { budget: 768 * 1024, ..Options::default() };
    let mut source = FileSource::new(&files, Vec::new(), options, None).expect("inotify");
    paths.iter().for_each(|path| append(path, &"0123456789abcde\n".repeat(65_536)));
    let mut bytes = [0; 3];
    let next =
        source.poll(Instant::now(), &mut |source, _, block| bytes[usize::from(source.0)] += block.len());
    assert_eq!((bytes, next), ([256 * 1024; 3], Some(Duration::ZERO)));
}

/// Polls as the agent does, when the descriptor is readable, until the writer is done and all is quiet.
fn read_while(reader: &mut Reader, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut last = false;
    while Instant::now() < deadline && !last {
        last = done();
        let mut fds = [rustix::event::PollFd::new(&reader.source, rustix::event::PollFlags::IN)];
        let wait = rustix::time::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        rustix::event::poll(&mut fds, Some(&wait)).expect("poll");
        reader.now = Instant::now();
        reader.poll();
    }
}

#[test]
fn renames_under_load_lose_nothing() {
    let (directory, path) = scratch();
    append(&path, "");
    let mut reader = Reader::open(&path);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for rotation in 0..60 {
                let mut file = OpenOptions::new().append(true).create(true).open(&path).expect("open");
                for line in 0..500 {
                    writeln!(file, "{rotation} {line}").expect("write");
                    if line == 450 {
                        // The writer does not notice at once, as a daemon before its signal.
                        fs::rename(&path, directory.path().join(format!("app.log.{rotation}")))
                            .expect("rotate");
                        File::create(&path).expect("create");
                    }
                }
            }
            done.store(true, Ordering::Release);
        });
        read_while(&mut reader, || done.load(Ordering::Acquire));
    });
    let mut expected: Vec<String> =
        (0..60).flat_map(|rotation| (0..500).map(move |line| format!("{rotation} {line}"))).collect();
    let mut got: Vec<String> = reader.lines.into_iter().map(|(_, line)| line).collect();
    expected.sort();
    got.sort();
    assert!(expected == got, "{} written, {} read", expected.len(), got.len());
}

#[test]
fn a_python_rotating_file_handler_loses_nothing() {
    let (_directory, path) = scratch();
    let mut reader = Reader::open(&path);
    let script = "import logging, logging.handlers, sys, time\n\
        handler = logging.handlers.RotatingFileHandler(sys.argv[1], maxBytes=2000, backupCount=400)\n\
        handler.setFormatter(logging.Formatter('%(asctime)s %(message)s'))\n\
        log = logging.getLogger(); log.addHandler(handler)\n\
        for number in range(3000): log.warning('line %d from 203.0.113.7 end', number)\n";
    let mut child =
        Command::new("python3").args(["-c", script]).arg(&path).spawn().expect("python3 must be installed");
    let id = std::cell::RefCell::new(&mut child);
    let status = std::cell::Cell::new(None);
    read_while(&mut reader, || {
        status.set(id.borrow_mut().try_wait().expect("wait"));
        status.get().is_some()
    });
    if status.get().is_none() {
        child.kill().expect("end the writer");
    }
    assert!(child.wait().expect("wait").success());
    let rotated = reader.counter("rotated");
    let got: Vec<String> = reader.texts().iter().map(|line| line[24..].to_owned()).collect();
    let missing: Vec<_> = (0..3000)
        .map(|number| format!("line {number} from 203.0.113.7 end"))
        .filter(|line| !got.contains(line))
        .collect();
    assert!(
        missing.is_empty() && got.len() == 3000,
        "{} read, {rotated} rotations, missing {missing:?}",
        got.len()
    );
    println!("{rotated} rotations seen");
    assert!(rotated > 30, "{rotated}");
}

#[test]
fn a_line_is_handed_out_soon_after_it_is_written() {
    let (_directory, path) = scratch();
    append(&path, "");
    let mut reader = Reader::open(&path);
    reader.poll();
    let started = Instant::now();
    let mut delays = Vec::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut file = OpenOptions::new().append(true).open(&path).expect("open");
            for _ in 0..400 {
                std::thread::sleep(Duration::from_millis(2));
                writeln!(file, "{}", started.elapsed().as_nanos()).expect("write");
            }
        });
        while delays.len() < 400 && started.elapsed() < Duration::from_secs(30) {
            let mut fds = [rustix::event::PollFd::new(&reader.source, rustix::event::PollFlags::IN)];
            let wait = rustix::time::Timespec { tv_sec: 1, tv_nsec: 0 };
            rustix::event::poll(&mut fds, Some(&wait)).expect("poll");
            reader.poll();
            for (_, line) in reader.lines.drain(..) {
                delays.push(started.elapsed().as_nanos() - line.parse::<u128>().expect("a number"));
            }
        }
        writer.join().expect("the writer");
    });
    delays.sort_unstable();
    let (median, p99) = (delays[delays.len() / 2] / 1000, delays[delays.len() * 99 / 100] / 1000);
    println!("append to sink: median {median} us, p99 {p99} us");
    assert!(delays.len() == 400 && median < 20_000, "median {median} us");
}

#[test]
fn a_full_event_queue_loses_no_line() {
    let (directory, path) = scratch();
    let other = directory.path().join("other.log");
    append(&path, "");
    append(&other, "");
    let mut reader = Reader::new(&[&path, &other], Vec::new(), Instant::now());
    reader.poll();
    let queue: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(16_384);
    let mut files = [&path, &other].map(|path| OpenOptions::new().append(true).open(path).expect("open"));
    // Events of one file in a row are merged; of two in turn they are not.
    let writes = (queue / 2 + 10).min(200_000);
    for number in 0..writes {
        for file in &mut files {
            file.write_all(format!("{number}\n").as_bytes()).expect("write");
        }
    }
    // The queue has no room for this any more.
    fs::rename(&path, directory.path().join("app.log.1")).expect("rotate");
    append(&path, "after the rotation\n");
    reader.poll();
    assert_eq!(reader.lines.len(), 2 * writes + 1);
    assert!(reader.texts().contains(&"after the rotation"));
}
