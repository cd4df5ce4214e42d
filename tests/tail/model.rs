//! Ten thousand sequences of what writers, rotators and SIGKILL do to a log: nothing is lost, nothing comes twice.
//!
//! The reader is killed between any two steps: what it handed out since the last commit is gone with it, and it starts
//! from the positions of that commit. In one sequence of forty, commits go to the real store, with an engine that counts
//! every line as a failure of an address of its own: at the end each has been counted once.
//!
//! A line can be lost where the only copy of it is destroyed before it is both read and committed: by copytruncate, by
//! deletion, by compression. Those lines are known here one by one, and no other may be missing.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::Write as _,
    net::Ipv6Addr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use blocker::{
    engine::{Command, Engine, Event, Input, Kept, Reading, SourceId},
    filter::{Filter, FilterSpec, Pattern, Place},
    policy::{Jail, Policy, SourceSpec},
    source::Position,
    store::Store,
    time::Timestamp,
};

use super::{Reader, append, read_back, scratch};

/// Steps of one sequence.
const STEPS: usize = 24;
/// Of so many sequences one goes through the store.
const STORED: u64 = 40;
/// Nobody, so that a file without permissions cannot be read here as it cannot be by an agent.
const USER: u32 = 65_534;

/// A small generator, so that a failing sequence can be had again from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// Rotated to `app.log.1`, which moves to `app.log.2`: logrotate, Python.
    Chain,
    /// Rotated to ever new names.
    Dated,
    /// As `Chain`, read by a pattern that matches the rotated files too.
    Pattern,
    /// A symbolic link that is pointed elsewhere, and back.
    Link,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Write,
    Begin,
    Poll,
    Commit,
    Rotate,
    Switch,
    CopyTruncate,
    Delete,
    Compress,
    Forbid,
    Later,
    Stop,
    Kill,
}

/// How often each is chosen.
const CHOICES: [(Step, u64); 13] = [
    (Step::Write, 5),
    (Step::Begin, 1),
    (Step::Poll, 3),
    (Step::Commit, 2),
    (Step::Rotate, 3),
    (Step::Switch, 2),
    (Step::CopyTruncate, 1),
    (Step::Delete, 1),
    (Step::Compress, 1),
    (Step::Forbid, 1),
    (Step::Later, 1),
    (Step::Stop, 1),
    (Step::Kill, 2),
];

/// What a commit leaves.
enum Commits {
    /// As the store would give it back.
    Positions(Vec<(String, String)>),
    /// The store, and what counts.
    Store(Box<Counting>),
}

/// The real store in a folder that outlives it, and an engine.
struct Counting {
    folder: tempfile::TempDir,
    store: Option<Store>,
    engine: Engine,
}

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let pattern = Pattern { text: "^failed from <ADDR>$".to_owned(), at: Place::default() };
    let filter =
        Filter::compile(FilterSpec { failregex: vec![pattern], ..FilterSpec::default() }).expect("a filter");
    let jail = Jail {
        name: "app".into(),
        sources: vec![SourceId(0)],
        filters: vec![Arc::new(filter)],
        maxretry: 1_000,
        findtime: Duration::from_secs(3_600),
        ..Jail::default()
    };
    Policy { jails: vec![jail], sources: vec![SourceSpec::File("/log".into())], ..Policy::default() }
});

fn now() -> Timestamp {
    Timestamp::from_secs(1_795_000_000)
}

impl Counting {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, _) = Store::open(folder.path()).expect("a store");
        Self { folder, store: Some(store), engine: Engine::new(now(), POLICY.clone(), Kept::default()) }
    }

    /// How many failures of this line are counted, this one included.
    fn count(&mut self, line: &str) -> u32 {
        let mut hasher = DefaultHasher::new();
        line.hash(&mut hasher);
        let low = u128::from(hasher.finish());
        let address = Ipv6Addr::from(0x2001_0db8_u128 << 96 | (low >> 32) << 64 | 1);
        let block = format!("failed from {address}\n");
        let input = Input::Lines { source: SourceId(0), block: block.as_bytes(), reading: Reading::Live };
        self.engine.handle(now(), input);
        let mut counted = 0;
        while let Some(command) = self.engine.next_command() {
            if let Command::Note(Event::Failure { count, .. }) = command {
                counted = count;
            }
        }
        counted
    }

    fn kill(&mut self) -> Vec<(String, String)> {
        self.store = None;
        // Another test's child may hold the lock a moment longer, between its fork and its exec.
        let opened = xtask::lab::wait_for(Duration::from_secs(5), || Store::open(self.folder.path()).ok());
        let (store, stored) = opened.expect("the store again");
        assert_eq!((stored.notes, stored.read.refused), (Vec::new(), None));
        let kept = Kept { counted: stored.read.counted, ..Kept::default() };
        self.engine = Engine::new(now(), POLICY.clone(), kept);
        self.store = Some(store);
        stored.read.positions
    }
}

/// What a writer does to a log, and what of it must come out.
struct World {
    shape: Shape,
    directory: tempfile::TempDir,
    path: PathBuf,
    reader: Option<Reader>,
    kept: Commits,
    now: Instant,
    random: Random,
    serial: u64,
    names: u64,
    /// The line that was begun and not ended.
    begun: String,
    /// The reader has had a look since the file was made.
    opened: bool,
    expected: Vec<String>,
    /// Lines by the inode that holds the only copy of them.
    held: BTreeMap<u64, Vec<String>>,
    /// Inodes that the last commit knows.
    known: BTreeSet<u64>,
    /// Inodes that hold another file than the reader knows.
    renewed: BTreeSet<u64>,
    /// Lines that are in no file any more, and not committed yet.
    doomed: BTreeSet<String>,
    /// Lines that may have been lost.
    lost: BTreeSet<String>,
    got: Vec<String>,
    /// What was done, and how many lines there were before.
    story: Vec<(Step, u64)>,
}

impl World {
    fn new(shape: Shape, seed: u64) -> Self {
        let (directory, path) = scratch();
        let positions = Commits::Positions(Vec::new());
        let kept =
            if seed.is_multiple_of(STORED) { Commits::Store(Box::new(Counting::new())) } else { positions };
        let mut world = Self {
            shape,
            directory,
            path,
            reader: None,
            kept,
            now: Instant::now(),
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            serial: 0,
            names: 0,
            begun: String::new(),
            opened: true,
            expected: Vec::new(),
            held: BTreeMap::new(),
            known: BTreeSet::new(),
            renewed: BTreeSet::new(),
            doomed: BTreeSet::new(),
            lost: BTreeSet::new(),
            got: Vec::new(),
            story: Vec::new(),
        };
        world.create();
        world.start(Vec::new());
        world
    }

    fn watched(&self) -> PathBuf {
        match self.shape {
            Shape::Pattern => self.directory.path().join("app*"),
            _ => self.path.clone(),
        }
    }

    fn start(&mut self, stored: Vec<Position>) {
        self.reader = Some(Reader::new(&[&self.watched()], stored, self.now));
        self.poll();
        self.commit();
    }

    /// As the agent does: a file that was opened is committed at once.
    fn poll(&mut self) {
        let Some(reader) = &mut self.reader else { return };
        let before = reader.lines.len();
        reader.now = self.now;
        reader.poll();
        self.opened = true;
        self.renewed.clear();
        if let Commits::Store(counting) = &mut self.kept {
            for (_, line) in &reader.lines[before..] {
                counting.count(line);
            }
        }
        if reader.source.take_opened() {
            self.commit();
        }
    }

    fn commit(&mut self) {
        let Some(reader) = &mut self.reader else { return };
        let stored = reader.stored();
        let known = read_back(&stored).into_iter().map(|position| position.inode);
        self.known = known.filter(|inode| !self.renewed.contains(inode)).collect();
        for (_, line) in reader.lines.drain(..) {
            self.doomed.remove(&line);
            self.got.push(line);
        }
        match &mut self.kept {
            Commits::Positions(kept) => *kept = stored,
            Commits::Store(counting) => {
                let store = counting.store.as_mut().expect("open");
                store.keep(&stored, &counting.engine.counted()).expect("a commit");
                counting.engine.kept();
            }
        }
    }

    /// The end of the reader, with or without a commit.
    fn end_reader(&mut self) {
        self.reader = None;
        self.lost.append(&mut self.doomed);
    }

    fn start_again(&mut self) {
        // Files that came and went, or lost their name, before a commit knew them.
        let named = self.inode();
        for (inode, lines) in &self.held {
            let found = named == Some(*inode) || self.shape == Shape::Pattern;
            if !self.known.contains(inode) && !found {
                self.lost.extend(lines.iter().cloned());
            }
        }
        let stored = match &mut self.kept {
            Commits::Positions(stored) => stored.clone(),
            Commits::Store(counting) => counting.kill(),
        };
        self.start(read_back(&stored));
    }

    fn inode(&self) -> Option<u64> {
        fs::metadata(&self.path).ok().map(|metadata| metadata.ino())
    }

    /// The only copy of what this file holds goes away.
    fn destroy(&mut self, inode: u64) {
        let committed: BTreeSet<&String> = self.got.iter().collect();
        let lines = self.held.remove(&inode).unwrap_or_default();
        let lines: Vec<String> = lines.into_iter().filter(|line| !committed.contains(line)).collect();
        if self.reader.is_some() { self.doomed.extend(lines) } else { self.lost.extend(lines) }
    }

    fn create(&mut self) {
        self.names += 1;
        if self.shape == Shape::Link {
            let target = self.directory.path().join(format!("target{}", self.names));
            File::create(&target).expect("create");
            self.point_to(&target);
        } else {
            File::create(&self.path).expect("create");
        }
        self.opened = false;
        self.renew();
    }

    /// The file with this name is a new one, whatever its inode was before.
    fn renew(&mut self) {
        if let Some(inode) = self.inode() {
            self.known.remove(&inode);
            self.renewed.insert(inode);
        }
    }

    fn point_to(&self, target: &Path) {
        let link = self.directory.path().join("new-link");
        symlink(target, &link).expect("symlink");
        fs::rename(&link, &self.path).expect("switch");
    }

    fn wrote(&mut self, line: String) {
        let inode = self.inode().expect("the file is there");
        self.held.entry(inode).or_default().push(line.clone());
        self.expected.push(line);
    }

    fn lines(&mut self, lines: u64) -> String {
        let mut text = String::new();
        for _ in 0..lines {
            self.serial += 1;
            // A begun line is ended first; long ones make the file grow past any position quickly.
            let filler = "x".repeat(self.random.below(120) as usize);
            let end = format!("{} {filler} end", self.serial);
            text += &end;
            text.push('\n');
            let begun = std::mem::take(&mut self.begun);
            self.wrote(begun + &end);
        }
        text
    }

    fn write(&mut self, lines: u64) {
        let text = self.lines(lines);
        append(&self.path, &text);
    }

    fn write_some(&mut self, bound: u64) {
        let lines = self.random.below(bound);
        self.write(lines);
    }

    fn begin(&mut self) {
        self.serial += 1;
        let text = format!("begun {} ", self.serial);
        append(&self.path, &text);
        self.begun += &text;
    }

    fn end(&mut self) {
        if !self.begun.is_empty() {
            self.write(1);
        }
    }

    fn rotated(&self, number: u64) -> PathBuf {
        self.directory.path().join(format!("app.log.{number}"))
    }

    fn rotate(&mut self) {
        // A last line that is never ended comes out when the file is let go; one with a name that matches is kept, and
        // its last line with it.
        if self.random.below(2) == 0 {
            self.end();
        }
        let begun = std::mem::take(&mut self.begun);
        if !begun.is_empty() {
            if self.shape == Shape::Pattern {
                self.lost.insert(begun.clone());
            }
            self.wrote(begun);
        }
        if self.shape == Shape::Dated {
            fs::rename(&self.path, self.rotated(1_000 + self.names)).expect("rotate");
        } else {
            for number in (1..=self.names).rev().filter(|number| self.rotated(*number).exists()) {
                fs::rename(self.rotated(number), self.rotated(number + 1)).expect("shift");
            }
            fs::rename(&self.path, self.rotated(1)).expect("rotate");
        }
        self.create();
    }

    /// Nearly always what was written was read, and committed, before anybody destroys it.
    fn usually_commit(&mut self) {
        if self.random.below(4) > 0 {
            self.poll();
            self.commit();
        }
    }

    /// What logrotate's `compress` does some time after it renamed.
    fn compress(&mut self) {
        self.poll();
        self.usually_commit();
        let names = (1..=self.names).flat_map(|name| [name, 1_000 + name]);
        let there: Vec<PathBuf> =
            names.map(|number| self.rotated(number)).filter(|path| path.exists()).collect();
        if there.is_empty() {
            return;
        }
        let chosen = &there[self.random.below(there.len() as u64) as usize];
        let inode = fs::metadata(chosen).expect("it is there").ino();
        let packed = self.directory.path().join(format!("packed{}.gz", self.names));
        fs::write(packed, b"\x1f\x8b\x08 nobody reads this\n").expect("write");
        fs::remove_file(chosen).expect("delete");
        self.destroy(inode);
    }

    /// For a while nobody may open the file, whoever has it open may write.
    fn forbid(&mut self) {
        let mut writer = OpenOptions::new().append(true).open(&self.path).expect("open");
        let mode = |mode| {
            fs::set_permissions(&self.path, fs::Permissions::from_mode(mode)).expect("chmod");
        };
        mode(0);
        let lines = self.random.below(3);
        let text = self.lines(lines);
        writer.write_all(text.as_bytes()).expect("write");
        let known = self.inode().is_some_and(|inode| self.known.contains(&inode));
        match self.random.below(3) {
            0 => self.poll(),
            1 => {
                self.end_reader();
                self.start_again();
            }
            _ => {}
        }
        if !known {
            // Whoever could not open it knows it no better than before.
            self.renew();
        }
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o644)).expect("chmod");
        self.now += Duration::from_secs(3);
        self.opened = false;
    }

    fn choose(&mut self) -> Step {
        let mut left = self.random.below(CHOICES.iter().map(|(_, weight)| weight).sum());
        for (step, weight) in CHOICES {
            if left < weight {
                return step;
            }
            left -= weight;
        }
        Step::Write
    }

    fn step(&mut self) {
        let step = self.choose();
        self.story.push((step, self.serial));
        let link = self.shape == Shape::Link;
        match step {
            Step::Rotate if !link => self.rotate(),
            Step::Switch if link => {
                self.end();
                self.poll();
                if self.random.below(2) == 0 {
                    self.create();
                } else {
                    let back = 1 + self.random.below(self.names);
                    self.point_to(&self.directory.path().join(format!("target{back}")));
                }
            }
            Step::CopyTruncate => {
                // Emptied in place, and sometimes filled beyond where the reader was.
                self.end();
                self.poll();
                self.usually_commit();
                OpenOptions::new()
                    .write(true)
                    .open(&self.path)
                    .and_then(|file| file.set_len(0))
                    .expect("truncate");
                let inode = self.inode().expect("the file is there");
                self.destroy(inode);
                self.renew();
                self.write_some(12);
            }
            Step::Delete if !link => {
                self.end();
                if !self.opened {
                    self.poll();
                }
                self.usually_commit();
                let inode = self.inode().expect("the file is there");
                fs::remove_file(&self.path).expect("delete");
                self.destroy(inode);
                self.create();
                self.write_some(3);
            }
            Step::Compress if !link => self.compress(),
            Step::Forbid => self.forbid(),
            Step::Begin => self.begin(),
            Step::Poll => self.poll(),
            Step::Commit => self.commit(),
            Step::Later => {
                self.now += Duration::from_secs(31);
                self.poll();
            }
            Step::Stop | Step::Kill => {
                if step == Step::Stop {
                    self.poll();
                    self.commit();
                }
                self.end_reader();
                self.write_some(3);
                if !link && self.random.below(2) == 0 {
                    self.rotate();
                    self.write_some(3);
                }
                self.start_again();
            }
            _ => self.write_some(5),
        }
    }

    /// How many lines were written, and how many of them are gone.
    fn check(mut self, seed: u64) -> (usize, usize) {
        for _ in 0..STEPS {
            self.step();
        }
        self.end();
        for _ in 0..3 {
            self.poll();
            self.now += Duration::from_secs(31);
        }
        self.poll();
        self.commit();
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for line in &self.got {
            *times.entry(line).or_default() += 1;
        }
        let expected: BTreeSet<&str> = self.expected.iter().map(String::as_str).collect();
        let missing: Vec<&str> = expected.iter().copied().filter(|line| !times.contains_key(line)).collect();
        let lost: Vec<_> = missing.iter().filter(|line| !self.lost.contains(**line)).collect();
        let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
        let strange: Vec<_> = times.keys().filter(|line| !expected.contains(**line)).collect();
        let told = format!("{:?} seed {seed}, steps {:?}", self.shape, self.story);
        assert!(
            lost.is_empty() && twice.is_empty() && strange.is_empty(),
            "lost {lost:?}, twice {twice:?}, strange {strange:?}: {told}"
        );
        if let Commits::Store(counting) = &mut self.kept {
            counting.kill();
            for line in expected.iter().filter(|line| times.contains_key(*line)) {
                assert_eq!(counting.count(line), 2, "{line:?} was counted once, and now again: {told}");
            }
            for line in &missing {
                assert_eq!(counting.count(line), 1, "{line:?} was never read: {told}");
            }
        }
        (expected.len(), missing.len())
    }
}

#[test]
fn no_sequence_of_actions_loses_doubles_or_cuts_a_line() {
    // Mostly waiting: the kernel takes some milliseconds to take down an inotify instance.
    const WORKERS: u64 = 64;
    let seeds: u64 = std::env::var("TAIL_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_500);
    let (written, gone) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (written, gone) = (&written, &gone);
            scope.spawn(move || {
                if rustix::process::geteuid().is_root() {
                    let user = rustix::process::Uid::from_raw(USER);
                    rustix::thread::set_thread_res_uid(None, user, None).expect("another user");
                }
                for seed in (1..=seeds).filter(|seed| seed % WORKERS == worker) {
                    for shape in [Shape::Chain, Shape::Dated, Shape::Pattern, Shape::Link] {
                        let (lines, missing) = World::new(shape, seed).check(seed);
                        written.fetch_add(lines, Relaxed);
                        gone.fetch_add(missing, Relaxed);
                    }
                }
            });
        }
    });
    let (written, gone) = (written.into_inner(), gone.into_inner());
    println!("{} sequences, {written} lines, {gone} destroyed before they were committed", seeds * 4);
    assert!(gone * 20 < written, "{gone} of {written} lines are excused");
}
