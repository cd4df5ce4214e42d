//! Log path: lines per CPU-second of the whole engine (read, match, address, window, ban decision), beside tools that
//! read the same files in the same run. It prints figures and ratios and asserts no time; what it asserts is that our
//! own filters count exactly the failures that were written.
//!
//! CPU time (user and system), since machines are shared; the best of a few rounds. Our part runs in a process of its
//! own, so that its memory is its own, and reports the CPU time of the loop alone, without compiling filters.
//! fail2ban-regex reads the beginning of each file, and its start is taken off; so does the filter of fail2ban's server,
//! driven by `fail2ban_core.py` without the socket, database and actions around it. Peers that are not installed are named
//! and left out.

use std::{
    collections::BTreeMap,
    env, fs,
    io::Read as _,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use blocker::{
    config::{BUILT_IN, read_fail2ban_filter, read_filter},
    engine::{Engine, Input, Reading, SourceId},
    filter::Filter,
    policy::{Jail, Policy, SourceSpec},
    time::{BanTime, Timestamp},
};

#[path = "generate.rs"]
mod generate;

use generate::{LOGS, Log};

const LINES: u64 = 1_000_000;
/// What fail2ban reads of them.
const LINES_OF_FAIL2BAN: u64 = 20_000;
const ROUNDS: usize = 3;
const PERCENTS: [u64; 3] = [1, 30, 90];
/// As the file source reads.
const BLOCK_BYTES: usize = 256 << 10;
const FAIL2BAN: &str = "/etc/fail2ban";
/// The Python that distributions install fail2ban for.
const PYTHON: &str = "/usr/bin/python3";
const FAIL2BAN_CORE: &str = include_str!("fail2ban_core.py");
const IMPORTED: [&str; 4] = ["sshd", "postfix", "dovecot", "nginx-http-auth"];

fn main() {
    let args: Vec<String> = env::args().collect();
    if let [_, flag, set, path] = args.as_slice()
        && flag == "--ours"
    {
        return ours(set, Path::new(path));
    }
    let folder = tempfile::tempdir().expect("a scratch folder");
    let peers = Peers::find();
    println!(
        "{LINES} lines; M lines per CPU-second, best of {ROUNDS}; fail2ban on the first {LINES_OF_FAIL2BAN} lines, its start taken off"
    );
    for (name, found) in [
        ("rg", &peers.ripgrep),
        ("fail2ban-regex", &peers.fail2ban),
        ("sshg-parser", &peers.sshguard),
        ("fail2ban-rs", &peers.fail2ban_rs),
    ] {
        if found.is_none() {
            println!("not installed, left out: {name} (`cargo xtask setup` installs it)");
        }
    }
    println!(
        "\n| log | failures | blocker | MB/s | RSS MB | `wc -l` | `rg -c` | `grep -cF` | sshguard | fail2ban-rs | fail2ban-regex | fail2ban-server's filter | to rg | to fail2ban-rs | to the server's |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for log in &LOGS {
        for percent in PERCENTS {
            let path = folder.path().join("log");
            let failures = generate::write(log, LINES, percent, &path).expect("room on the disk");
            own_row(log, percent, failures, &path, &peers);
        }
    }
    println!("\n| many filters on the sshd log | failures | M lines/s | RSS MB | failures counted |");
    println!("|---|---|---|---|---|");
    let mut sets = vec![("all", format!("all {} shipped filters, one jail each", BUILT_IN.len()))];
    if Path::new(FAIL2BAN).is_dir() {
        sets.push(("imported", format!("fail2ban's {}, imported", IMPORTED.join(", "))));
    }
    for (set, title) in sets {
        for percent in PERCENTS {
            let path = folder.path().join("log");
            generate::write(&LOGS[0], LINES, percent, &path).expect("room on the disk");
            let run = measured(set, &path);
            println!(
                "| {title} | {percent} % | {} | {:.0} | {} |",
                millions(LINES, run.cpu),
                run.rss_bytes as f64 / 1e6,
                run.failures
            );
        }
    }
    hostile();
}

fn own_row(log: &Log, percent: u64, failures: u64, path: &Path, peers: &Peers) {
    let run = measured(log.filter, path);
    assert_eq!(run.failures, failures, "{} {percent} %", log.name);
    let bytes = fs::metadata(path).map_or(0, |file| file.len());
    let tool = |command: &mut Command| best(|| spent(command).cpu);
    let ripgrep = peers.ripgrep.as_ref().map(|program| {
        let mut command = Command::new(program);
        command.args(["-c", "--no-config", "-a"]);
        for pattern in for_ripgrep(log) {
            command.arg("-e").arg(pattern);
        }
        command.arg(path);
        let output = command.output().expect("ripgrep runs");
        let count = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(0_u64);
        assert_eq!(count, failures, "ripgrep: {}", String::from_utf8_lossy(&output.stderr));
        tool(&mut command)
    });
    let wc = tool(Command::new("wc").arg("-l").arg(path));
    let grep = tool(Command::new("grep").env("LC_ALL", "C").args(["-c", "-F", log.needle]).arg(path));
    let sshguard = peers.sshguard.as_ref().filter(|_| log.filter == "sshd").map(|program| {
        best(|| {
            let file = fs::File::open(path).expect("the generated file");
            spent(Command::new(program).stdin(file)).cpu
        })
    });
    let fail2ban_rs =
        peers.fail2ban_rs.as_ref().and_then(|program| fail2ban_rs(program, log, failures, path));
    let fail2ban = peers.fail2ban.as_ref().map(|program| {
        let (part, empty) = (path.with_extension("part"), path.with_extension("empty"));
        generate::write(log, LINES_OF_FAIL2BAN, percent, &part).expect("room on the disk");
        fs::write(&empty, "").expect("room on the disk");
        let run = |file: &Path| spent(Command::new(program).arg(file).arg(log.fail2ban)).cpu;
        run(&part).saturating_sub(run(&empty))
    });
    let server = fail2ban.and_then(|_| fail2ban_core(log, percent, path));
    let shown = |cpu: Option<Duration>, lines| cpu.map_or("-".to_owned(), |cpu| millions(lines, cpu));
    let per_line = |cpu: Duration, lines: u64| cpu.as_secs_f64() / lines as f64;
    let ratio = |cpu: Option<Duration>, lines| {
        cpu.map_or("-".to_owned(), |cpu| format!("{:.2}x", per_line(cpu, lines) / per_line(run.cpu, LINES)))
    };
    println!(
        "| {} | {percent} % | {} | {:.0} | {:.0} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        log.name,
        millions(LINES, run.cpu),
        bytes as f64 / run.cpu.as_secs_f64() / 1e6,
        run.rss_bytes as f64 / 1e6,
        millions(LINES, wc),
        shown(ripgrep, LINES),
        millions(LINES, grep),
        shown(sshguard, LINES),
        shown(fail2ban_rs, LINES),
        shown(fail2ban, LINES_OF_FAIL2BAN),
        shown(server, LINES_OF_FAIL2BAN),
        ratio(ripgrep, LINES),
        ratio(fail2ban_rs, LINES),
        ratio(server, LINES_OF_FAIL2BAN),
    );
}

/// fail2ban-rs, trying the log with the filter that it has for this daemon; `None` where it has none, or where that counts
/// too few of the failures to be the same job.
fn fail2ban_rs(program: &Path, log: &Log, failures: u64, path: &Path) -> Option<Duration> {
    let template = match log.filter {
        "sshd" => "sshd",
        "nginx-http-auth" => "nginx-auth",
        _ => return None,
    };
    let configuration = path.with_extension("toml");
    let jail = spent(Command::new(program).args(["gen-config", template])).output;
    fs::write(&configuration, format!("[global]\n{jail}")).expect("room on the disk");
    let mut counted = 0;
    let cpu = best(|| {
        let run = spent(Command::new(program).args(["dry-run", "-c"]).arg(&configuration).arg(path));
        let said = run.output.lines().find_map(|line| line.trim().strip_prefix("Matches:"));
        counted = said.and_then(|count| count.trim().parse().ok()).unwrap_or(0_u64);
        run.cpu
    });
    (counted * 10 >= failures * 9).then_some(cpu)
}

/// What the filter of fail2ban's server takes; `None` where its modules are not those of [`PYTHON`].
fn fail2ban_core(log: &Log, percent: u64, path: &Path) -> Option<Duration> {
    let part = path.with_extension("part");
    let failures = generate::write(log, LINES_OF_FAIL2BAN, percent, &part).expect("room on the disk");
    let once = || {
        let mut command = Command::new(PYTHON);
        let printed = spent(command.args(["-c", FAIL2BAN_CORE, log.fail2ban]).arg(&part)).output;
        let (seconds, counted) = printed.trim().split_once(' ')?;
        let counted: u64 = counted.parse().ok()?;
        // Its filters count some lines that ours leave alone; far fewer would be another job.
        assert!(counted * 10 >= failures * 9, "fail2ban counted {counted} of {failures}");
        seconds.parse().ok().map(Duration::from_secs_f64)
    };
    (Path::new(PYTHON).is_file()).then(|| (0..ROUNDS).filter_map(|_| once()).min())?
}

fn millions(lines: u64, cpu: Duration) -> String {
    let rate = lines as f64 / cpu.as_secs_f64() / 1e6;
    if rate < 1.0 { format!("{rate:.3}") } else { format!("{rate:.1}") }
}

/// The filter's patterns as ripgrep can read them: with an address for the tag, and the date that we cut out.
fn for_ripgrep(log: &Log) -> Vec<String> {
    const ADDRESS: &str = r"(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f:]{2,39})";
    let filter = shipped(log.filter);
    let text = |pattern: &blocker::filter::Pattern| {
        let text = pattern.text.replace("<ADDR>", ADDRESS).replace("<HOST>", ADDRESS);
        text.strip_prefix('^').map_or(text.clone(), |rest| format!("{}{rest}", log.date))
    };
    filter.spec().failregex.iter().map(text).collect()
}

fn shipped(name: &str) -> Filter {
    let text = BUILT_IN.iter().find(|(known, _)| *known == name).expect("a shipped filter").1;
    let spec = read_filter(text, Path::new(name)).expect("shipped filters are read");
    Filter::compile(spec).expect("shipped filters compile")
}

fn filters(set: &str) -> Vec<Filter> {
    match set {
        "all" => BUILT_IN.iter().map(|(name, _)| shipped(name)).collect(),
        "imported" => IMPORTED
            .iter()
            .map(|name| {
                let (spec, _) = read_fail2ban_filter(Path::new(FAIL2BAN), name, &BTreeMap::new())
                    .expect("fail2ban's filters are read");
                Filter::compile(spec).expect("fail2ban's filters compile")
            })
            .collect(),
        name => vec![shipped(name)],
    }
}

fn engine(filters: Vec<Filter>, now: Timestamp) -> Engine {
    let jail = |filter: Filter| Jail {
        name: Arc::clone(&filter.name),
        sources: vec![SourceId(0)],
        filters: vec![filter.into()],
        // Never reached, so that every failure is counted and none is skipped as banned already.
        maxretry: 60_000,
        findtime: Duration::from_secs(600),
        bantime: BanTime::Permanent,
        ..Jail::default()
    };
    let policy = Policy {
        jails: filters.into_iter().map(jail).collect(),
        sources: vec![SourceSpec::File("log".into())],
        ..Policy::default()
    };
    Engine::new(now, policy, Default::default())
}

/// Our part, in a process of its own: prints nanoseconds of CPU, failures, and KiB of memory at most.
fn ours(set: &str, path: &Path) {
    let start = Timestamp::from_secs(1_795_000_000);
    let mut engine = engine(filters(set), start);
    let mut file = fs::File::open(path).expect("the generated file");
    let mut block = vec![0; BLOCK_BYTES];
    let (mut carried, mut blocks) = (0, 0);
    let begun = cpu_of_thread();
    loop {
        let read = file.read(&mut block[carried..]).expect("the generated file");
        let filled = carried + read;
        let end = memchr::memrchr(b'\n', &block[..filled]).map_or(0, |newline| newline + 1);
        if read == 0 || end == 0 {
            break;
        }
        blocks += 1;
        let now = start.saturating_add(Duration::from_millis(blocks));
        let lines = Input::Lines { source: SourceId(0), block: &block[..end], reading: Reading::Live };
        engine.handle(now, lines);
        while engine.next_command().is_some() {}
        block.copy_within(end..filled, 0);
        carried = filled - end;
    }
    let cpu = cpu_of_thread().saturating_sub(begun);
    let failures: u64 = engine.snapshot().jails.iter().map(|(_, counters)| counters.failures).sum();
    // `ru_maxrss` begins with the memory of the process that forked this one; proc(5)'s mark is this one's alone.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mark = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    let kib = mark.split_whitespace().next().unwrap_or("0");
    println!("{} {failures} {kib}", cpu.as_nanos());
}

fn cpu_of_thread() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

struct Run {
    cpu: Duration,
    rss_bytes: u64,
    failures: u64,
}

fn measured(set: &str, path: &Path) -> Run {
    let program = env::current_exe().expect("this program");
    let one = || {
        let mut command = Command::new(&program);
        command.args(["--ours", set]).arg(path);
        let spent = spent(&mut command);
        let mut numbers = spent.output.split_whitespace().filter_map(|number| number.parse::<u64>().ok());
        let (nanos, failures) = (numbers.next().expect("nanoseconds"), numbers.next().expect("failures"));
        let kib = numbers.next().expect("KiB");
        Run { cpu: Duration::from_nanos(nanos), rss_bytes: kib * 1_024, failures }
    };
    (0..ROUNDS).map(|_| one()).min_by_key(|run| run.cpu).expect("a round")
}

struct Spent {
    cpu: Duration,
    output: String,
}

/// Runs a command to its end: its CPU time and what it printed.
#[expect(clippy::zombie_processes, reason = "waited for by wait4, which says what was spent")]
fn spent(command: &mut Command) -> Spent {
    // Into a pipe: grep stops at the first match when nobody can see what it prints.
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a tool that was found");
    let mut output = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).expect("a pipe that can be read");
        output = String::from_utf8_lossy(&bytes).into_owned();
    }
    let mut status = 0;
    // SAFETY: all bytes zero is a valid `rusage`, which holds numbers only.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = libc::pid_t::try_from(child.id()).expect("a process number");
    // SAFETY: the pid is that of our child, which nobody has waited for, and both pointers are to live variables.
    let waited = unsafe { libc::wait4(pid, &mut status, 0, &mut usage) };
    assert_eq!(waited, pid);
    assert!(ExitStatus::from_raw(status).signal().is_none(), "{command:?} was killed");
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    Spent { cpu: time(usage.ru_utime) + time(usage.ru_stime), output }
}

/// What stands in a line of 64 KiB that is to cost as much as it can.
const HOSTILE: [&str; 7] = [
    "Failed password for invalid user ",
    " from 1.2.3.4 port 22 ssh2",
    ", client: 1.2.3.4, server: _, request: \"",
    "1.2.3.4 ",
    ":1.2.3.4:5",
    "\" 401 ",
    "aaaaaaaa",
];

/// The dearest line of 64 KiB for each shipped filter: each of its samples, filled up in the middle.
fn hostile() {
    let now = Timestamp::from_secs(1_795_000_000);
    let mut worst: Vec<(Duration, String, String)> = Vec::new();
    for (name, _) in BUILT_IN {
        let filter = shipped(name);
        let samples: Vec<String> = filter.samples.iter().map(|sample| sample.line.clone()).collect();
        let mut engine = engine(vec![filter], now);
        let mut dearest = (Duration::ZERO, String::new());
        for sample in &samples {
            let spaces = sample.match_indices(' ').map(|(at, _)| at).collect::<Vec<_>>();
            for (place, text) in spaces.iter().step_by(3).flat_map(|at| HOSTILE.map(|text| (*at, text))) {
                let room = (blocker::filter::LINE_BYTES_MAX - sample.len()) / text.len();
                let line = format!("{}{}{}\n", &sample[..place], text.repeat(room), &sample[place..]);
                let once = |engine: &mut Engine| {
                    let begun = cpu_of_thread();
                    let lines =
                        Input::Lines { source: SourceId(0), block: line.as_bytes(), reading: Reading::Live };
                    engine.handle(now, lines);
                    while engine.next_command().is_some() {}
                    cpu_of_thread().saturating_sub(begun)
                };
                // The first one may build what the next ones use.
                let cost = (0..2).map(|_| once(&mut engine)).min().unwrap_or_default();
                if cost > dearest.0 {
                    dearest = (cost, format!("{text:?} in {sample:?}"));
                }
            }
        }
        worst.push((dearest.0, (*name).to_owned(), dearest.1));
    }
    worst.sort_unstable_by(|a, b| b.cmp(a));
    println!("\nThe dearest lines of 64 KiB found, by filter:");
    for (cost, name, line) in worst.iter().take(8) {
        println!(
            "- {name}: {:.2} ms, {}",
            cost.as_secs_f64() * 1e3,
            line.chars().take(160).collect::<String>()
        );
    }
}

fn best(round: impl FnMut() -> Duration) -> Duration {
    std::iter::repeat_with(round).take(ROUNDS).min().unwrap_or_default()
}

/// What is installed to compare with.
struct Peers {
    ripgrep: Option<PathBuf>,
    fail2ban: Option<PathBuf>,
    sshguard: Option<PathBuf>,
    fail2ban_rs: Option<PathBuf>,
}

impl Peers {
    fn find() -> Self {
        let on_path = |name: &str| {
            let path = env::var_os("PATH").unwrap_or_default();
            env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
        };
        let mut parsers: Vec<PathBuf> = vec!["/usr/libexec/sshguard/sshg-parser".into()];
        let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        parsers.extend(folders.map(|folder| folder.path().join("sshguard/sshg-parser")));
        parsers.push("/usr/lib/sshguard/sshg-parser".into());
        Self {
            ripgrep: on_path("rg"),
            fail2ban: on_path("fail2ban-regex"),
            sshguard: parsers.into_iter().find(|program| program.is_file()),
            fail2ban_rs: Some(xtask::setup::fail2ban_rs()).filter(|program| program.is_file()),
        }
    }
}
