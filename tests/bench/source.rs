//! The file source: how fast it catches up beside a plain reader, how soon it hands out a line, what many files cost, and
//! what logrotate does to it and to fail2ban. Nothing here asserts a time.

#[path = "../common/rotation.rs"]
mod rotation;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::{fd::AsFd as _, unix::net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use blocker::{
    engine::SourceId,
    policy::JournalMatches,
    source::{FileSource, JournalSource, Options, Position, journal::JournalSpec},
    time::Timestamp,
};
use rotation::{Outcome, Way, compare, line, number_in, rotate};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    time::{ClockId, clock_gettime},
};
use xtask::lab::{
    journald::{self, Journald},
    missing,
};

const LINES: u32 = 5_000_000;
const ROUNDS: usize = 5;
const BLOCK_BYTES: usize = 256 * 1024;
const TRIALS: usize = 2_000;
const LIVE_SPAN_MAX: Duration = Duration::from_secs(120);
const IDLE_FILES: u16 = 1_000;
const IDLE_SPAN: Duration = Duration::from_secs(10);
const BUSY_FILES: u16 = 100;
const BUSY_SPAN: Duration = Duration::from_secs(10);
const ENTRIES: u32 = 300_000;
const ROTATIONS: u32 = 100;
/// fail2ban is given so long for what it has not read yet.
const FAIL2BAN_SPAN_MAX: Duration = Duration::from_secs(120);

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("--write-journal") => return write_journal(),
        Some("--read-journal") => return read_journal(),
        _ => {}
    }
    let folder = tempfile::tempdir().expect("a scratch folder");
    catching_up(folder.path());
    live(folder.path());
    idle(folder.path());
    busy(folder.path());
    journal();
    for way in [Way::Rename, Way::CopyTruncate] {
        rotated(way);
    }
}

/// Least CPU of several rounds.
fn best(mut round: impl FnMut()) -> Duration {
    let one = |round: &mut dyn FnMut()| {
        let begun = cpu(ClockId::ThreadCPUTime);
        round();
        cpu(ClockId::ThreadCPUTime).saturating_sub(begun)
    };
    (0..ROUNDS).map(|_| one(&mut round)).min().unwrap_or_default()
}

fn cpu(clock: ClockId) -> Duration {
    let spent = clock_gettime(clock);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

fn open(paths: &[PathBuf], positions: Vec<Position>) -> FileSource {
    let specs: Vec<(SourceId, PathBuf)> = (0..).map(SourceId).zip(paths.iter().cloned()).collect();
    FileSource::new(&specs, positions, Options::default(), None).expect("inotify")
}

fn drain(source: &mut FileSource, sink: &mut dyn FnMut(&[u8])) {
    while source.poll(Instant::now(), &mut |_, _, block: &[u8]| sink(block)) == Some(Duration::ZERO) {}
}

fn wait(source: &FileSource, most: Duration) {
    let mut fds = [PollFd::from_borrowed_fd(source.as_fd(), PollFlags::IN)];
    let most = Timespec::try_from(most).ok();
    let _or_later = poll(&mut fds, most.as_ref());
}

fn catching_up(folder: &Path) {
    let path = folder.join("catch-up.log");
    fs::write(&path, "").expect("room on the disk");
    // From a position at its beginning, as after a restart.
    let positions = open(std::slice::from_ref(&path), Vec::new()).positions();
    let mut text = Vec::new();
    (0..LINES).for_each(|number| text.extend_from_slice(line(number).as_bytes()));
    fs::write(&path, &text).expect("room on the disk");
    let mib = text.len() as f64 / 1_048_576.0;
    drop(text);
    let mut block = vec![0; BLOCK_BYTES];
    let plain = best(|| {
        let (mut file, mut carried, mut lines) = (fs::File::open(&path).expect("the log"), 0, 0);
        loop {
            let got = file.read(&mut block[carried..]).expect("the log can be read");
            let filled = carried + got;
            let end = memchr::memrchr(b'\n', &block[..filled]).map_or(0, |newline| newline + 1);
            if got == 0 || end == 0 {
                break;
            }
            lines += memchr::memchr_iter(b'\n', &block[..end]).count();
            block.copy_within(end..filled, 0);
            carried = filled - end;
        }
        assert_eq!(lines, LINES as usize);
    });
    let ours = best(|| {
        let (mut source, mut lines) = (open(std::slice::from_ref(&path), positions.clone()), 0);
        drain(&mut source, &mut |block| lines += memchr::memchr_iter(b'\n', block).count());
        assert_eq!(lines, LINES as usize);
    });
    let rate = |time: Duration| mib / time.as_secs_f64();
    println!(
        "catching up on {LINES} lines, {mib:.0} MiB: {:.0} MiB/CPU-s; a plain block reader {:.0}; {:.2}x its time",
        rate(ours),
        rate(plain),
        ours.as_secs_f64() / plain.as_secs_f64()
    );
}

/// From the append to the line in hand, beside `tail -F`.
fn live(folder: &Path) {
    let path = folder.join("live.log");
    fs::write(&path, "").expect("room on the disk");
    let mut source = open(std::slice::from_ref(&path), Vec::new());
    drain(&mut source, &mut |_| {});
    let mut file = fs::File::options().append(true).open(&path).expect("the log");
    let (appended, seen) = (AtomicU64::new(0), AtomicU64::new(0));
    let begun = Instant::now();
    let micros = || u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    let mut times = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..TRIALS {
                appended.store(micros(), SeqCst);
                file.write_all(line(number as u32).as_bytes()).expect("room on the disk");
                let until = Instant::now() + Duration::from_secs(2);
                while seen.load(SeqCst) <= number as u64 && Instant::now() < until {
                    thread::yield_now();
                }
                thread::sleep(Duration::from_millis(2));
            }
        });
        // A line that was lost would be waited for.
        let until = Instant::now() + LIVE_SPAN_MAX;
        while times.len() < TRIALS && Instant::now() < until {
            wait(&source, Duration::from_secs(2));
            let mut got = 0;
            drain(&mut source, &mut |block| got += memchr::memchr_iter(b'\n', block).count());
            for _ in 0..got {
                times.push(micros().saturating_sub(appended.load(SeqCst)));
            }
            seen.store(times.len() as u64, SeqCst);
        }
    });
    report("append to line, us: blocker", &mut times);

    let tail = Command::new("tail").args(["-n0", "-F"]).arg(&path).stdout(Stdio::piped()).spawn();
    let Ok(mut tail) = tail else { return println!("`tail -F` is not there") };
    let mut output = BufReader::new(tail.stdout.take().expect("a pipe"));
    thread::sleep(Duration::from_millis(300));
    let mut file = fs::File::options().append(true).open(&path).expect("the log");
    let mut times = Vec::new();
    for number in 0..TRIALS / 10 {
        let appended = micros();
        file.write_all(line(number as u32).as_bytes()).expect("room on the disk");
        // A line that it lost would be waited for.
        let mut fds = [PollFd::from_borrowed_fd(output.get_ref().as_fd(), PollFlags::IN)];
        let most = Timespec { tv_sec: 2, tv_nsec: 0 };
        if !poll(&mut fds, Some(&most)).is_ok_and(|ready| ready > 0) {
            break;
        }
        let mut text = String::new();
        output.read_line(&mut text).expect("a line");
        times.push(micros().saturating_sub(appended));
        thread::sleep(Duration::from_millis(2));
    }
    report("append to line, us: tail -F", &mut times);
    end(&mut tail);
}

fn report(what: &str, times: &mut [u64]) {
    times.sort_unstable();
    let at = |part: f64| times.get(((times.len().max(1) - 1) as f64 * part) as usize).copied().unwrap_or(0);
    println!("{what}: median {}, p99 {}, most {} ({} lines)", at(0.5), at(0.99), at(1.0), times.len());
}

fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"));
    kib.and_then(|kib| kib.trim().parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn many(folder: &Path, name: &str, files: u16) -> Vec<PathBuf> {
    let folder = folder.join(name);
    fs::create_dir(&folder).expect("a folder");
    let paths: Vec<PathBuf> = (0..files).map(|file| folder.join(format!("{file}.log"))).collect();
    paths.iter().for_each(|path| fs::write(path, "").expect("room on the disk"));
    paths
}

fn idle(folder: &Path) {
    let paths = many(folder, "idle", IDLE_FILES);
    let before = resident();
    let mut source = open(&paths, Vec::new());
    drain(&mut source, &mut |_| {});
    let (spent, until) = (cpu(ClockId::ThreadCPUTime), Instant::now() + IDLE_SPAN);
    while Instant::now() < until {
        let next = source.poll(Instant::now(), &mut |_, _, _| {});
        wait(&source, next.unwrap_or(IDLE_SPAN).min(until.saturating_duration_since(Instant::now())));
    }
    let spent = cpu(ClockId::ThreadCPUTime).saturating_sub(spent);
    println!(
        "{IDLE_FILES} idle files: {:.2} % of a core, {:.1} MiB more",
        100.0 * spent.as_secs_f64() / IDLE_SPAN.as_secs_f64(),
        resident() - before
    );
}

fn busy(folder: &Path) {
    let paths = many(folder, "busy", BUSY_FILES);
    let mut source = open(&paths, Vec::new());
    drain(&mut source, &mut |_| {});
    let (over, mut read, spent) = (AtomicBool::new(false), 0_usize, cpu(ClockId::ThreadCPUTime));
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let open = |path: &PathBuf| fs::File::options().append(true).open(path).expect("the log");
            let mut files: Vec<fs::File> = paths.iter().map(open).collect();
            let (until, mut written) = (Instant::now() + BUSY_SPAN, 0_u32);
            let mut next = Instant::now();
            while Instant::now() < until {
                // Each file once in ten milliseconds: 10,000 lines a second.
                for file in &mut files {
                    file.write_all(line(written).as_bytes()).expect("room on the disk");
                    written += 1;
                }
                next += Duration::from_millis(10);
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            over.store(true, SeqCst);
            written
        });
        let mut last = Instant::now();
        while !over.load(SeqCst) || last.elapsed() < Duration::from_millis(500) {
            wait(&source, Duration::from_millis(20));
            drain(&mut source, &mut |block| {
                last = Instant::now();
                read += memchr::memchr_iter(b'\n', block).count();
            });
        }
        writer.join().expect("the writer")
    });
    let spent = cpu(ClockId::ThreadCPUTime).saturating_sub(spent);
    println!(
        "{BUSY_FILES} files, {:.0} lines/s: {written} written, {read} read; {:.1} % of a core",
        f64::from(written) / BUSY_SPAN.as_secs_f64(),
        100.0 * spent.as_secs_f64() / BUSY_SPAN.as_secs_f64()
    );
}

/// systemd's journal, written as fast as journald takes it and followed meanwhile.
fn journal() {
    if let Some(why) = missing().or_else(journald::missing) {
        return println!("the journal is not measured: {why}");
    }
    let program = std::env::current_exe().expect("this program");
    let program = program.to_str().expect("a plain path");
    let mut journald = Journald::new().expect("a journal");
    journald.start().expect("journald starts");
    let reader = journald.command(program).arg("--read-journal").stdout(Stdio::piped()).spawn();
    let mut reader = reader.expect("a reader");
    let mut said = BufReader::new(reader.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let state = said.next().unwrap_or_default();
    let begun = Instant::now();
    let wrote = journald.command(program).arg("--write-journal").status().expect("a writer");
    let took = begun.elapsed();
    println!(
        "the journal, {state}: {ENTRIES} entries written in {:.1} s ({:.0}/s{}); {}",
        took.as_secs_f64(),
        f64::from(ENTRIES) / took.as_secs_f64(),
        if wrote.success() { "" } else { ", not all" },
        said.next().unwrap_or_else(|| "not all read".to_owned())
    );
    end(&mut reader);
}

/// In the namespace of a journal: one entry after the other, as sd_journal_send(3) sends them.
fn write_journal() {
    let socket = UnixDatagram::unbound().expect("a socket");
    socket.connect("/run/systemd/journal/socket").expect("journald");
    for number in 0..ENTRIES {
        let message = line(number);
        let entry =
            format!("SYSLOG_IDENTIFIER=sshd\nPRIORITY=6\nMESSAGE={}\n", &message[28..message.len() - 1]);
        socket.send(entry.as_bytes()).expect("journald takes it");
    }
}

/// In the namespace of a journal: follows it until all entries are there.
fn read_journal() {
    let spec = JournalSpec {
        source: SourceId(0),
        matches: JournalMatches::parse(&["_UID=0 SYSLOG_IDENTIFIER=sshd"]).expect("matches"),
        namespace: None,
        since: Timestamp::EPOCH,
    };
    let mut source = JournalSource::new(&[spec], &[]).expect("a thread");
    let state =
        |source: &JournalSource| source.status().first().map_or_else(String::new, |one| one.state.clone());
    let until = Instant::now() + Duration::from_secs(90);
    let wait = |source: &JournalSource| {
        let mut fds = [PollFd::from_borrowed_fd(source.as_fd(), PollFlags::IN)];
        let most = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        let _or_later = poll(&mut fds, Some(&most));
    };
    while !state(&source).starts_with("reading") && Instant::now() < until {
        wait(&source);
    }
    println!("{}", state(&source));
    let (mut lines, mut first, mut last) = (0, None, Instant::now());
    while lines < ENTRIES as usize && Instant::now() < until {
        wait(&source);
        source.poll(&mut |_, _, block: &[u8]| {
            first.get_or_insert_with(Instant::now);
            last = Instant::now();
            lines += memchr::memchr_iter(b'\n', block).count();
        });
    }
    let took = first.map_or(Duration::ZERO, |first| last - first);
    println!(
        "{lines} read, {:.0}/s, with {:.2} s of CPU",
        lines as f64 / took.as_secs_f64().max(1e-9),
        cpu(ClockId::ProcessCPUTime).as_secs_f64()
    );
}

/// logrotate, with fail2ban's server reading the same log.
fn rotated(way: Way) {
    let folder = tempfile::tempdir().expect("a scratch folder");
    fs::write(folder.path().join("auth.log"), "").expect("room on the disk");
    let fail2ban = Fail2ban::start(folder.path());
    let outcome = rotate(folder.path(), way, ROTATIONS);
    println!(
        "\n{ROTATIONS} rotations by logrotate, {way:?}: {} lines written, {} of them in no file at the end",
        outcome.written, outcome.destroyed
    );
    print(
        &format!(
            "blocker (truncated {}, rotated {})",
            outcome.counters.get("truncated").unwrap_or(&0),
            outcome.counters.get("rotated").unwrap_or(&0)
        ),
        &outcome,
    );
    match fail2ban {
        Some(fail2ban) => {
            let outcome = compare(folder.path(), outcome.written, &fail2ban.read());
            print("fail2ban-server", &outcome);
        }
        None => println!("  fail2ban-server: not installed"),
    }
}

fn print(who: &str, outcome: &Outcome) {
    println!(
        "  {who}: {} lost in {} places, of those {} that stand in a file; {} read twice",
        outcome.lost, outcome.gaps, outcome.lost_and_there, outcome.twice
    );
}

/// fail2ban's server in the foreground, with a configuration of its own and no action.
struct Fail2ban {
    process: Child,
    log: PathBuf,
}

impl Fail2ban {
    fn start(folder: &Path) -> Option<Self> {
        let etc = folder.join("fail2ban");
        fs::create_dir_all(etc.join("filter.d")).expect("a folder");
        fs::create_dir_all(etc.join("action.d")).expect("a folder");
        let log = etc.join("server.log");
        let at = |name: &str| etc.join(name).display().to_string();
        let server = format!(
            "[Definition]\nloglevel = INFO\nlogtarget = {}\nsyslogsocket = auto\nsocket = {}\npidfile = {}\ndbfile = None\n\
             dbpurgeage = 1d\n[Thread]\nstacksize = 0\n",
            log.display(),
            at("socket"),
            at("pid")
        );
        let jail = format!(
            "[bench]\nenabled = true\nfilter = bench\nlogpath = {}\nbackend = auto\nmaxretry = 1000000\nfindtime = 10y\n\
             bantime = 1h\naction =\n",
            folder.join("auth.log").display()
        );
        let filter =
            "[Definition]\nfailregex = Failed password for root from <HOST> port\ndatepattern = {NONE}\n";
        for (name, text) in [
            ("fail2ban.conf", server.as_str()),
            ("jail.conf", jail.as_str()),
            ("filter.d/bench.conf", filter),
        ] {
            fs::write(etc.join(name), text).expect("room on the disk");
        }
        let mut command = Command::new("fail2ban-server");
        command.args(["-f", "-c"]).arg(&etc).args(["-s", &at("socket"), "-p", &at("pid"), "start"]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let until = Instant::now() + Duration::from_secs(10);
        let started = || fs::read_to_string(&log).unwrap_or_default().contains("Jail 'bench' started");
        while Instant::now() < until && !started() {
            thread::sleep(Duration::from_millis(50));
        }
        Some(Self { process, log })
    }

    /// The numbers of the lines that it says it found, once it finds no more.
    fn read(mut self) -> Vec<u32> {
        let until = Instant::now() + FAIL2BAN_SPAN_MAX;
        let size = || fs::metadata(&self.log).map_or(0, |metadata| metadata.len());
        let (mut last, mut since) = (size(), Instant::now());
        while Instant::now() < until && since.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(200));
            if size() != last {
                (last, since) = (size(), Instant::now());
            }
        }
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        end(&mut self.process);
        text.lines().filter_map(|line| number_in(line, "Found ")).collect()
    }
}

fn end(process: &mut Child) {
    let _already_dead = process.kill();
    let _reaped = process.wait();
}
