//! Log path: lines per second of the whole engine on a generated file, beside `wc -l` and `grep -c` on the same file
//! in the same run. It prints ratios and asserts no time; what it asserts is that all count the same failures.

use std::{
    fs,
    hint::black_box,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use blocker::{
    config::{BUILT_IN, read_filter},
    engine::{self, Engine, Input, Kept, Reading, SourceId},
    filter::Filter,
    policy::{Jail, Limits, Policy, SourceSpec},
    time::{BanTime, Timestamp},
};

const LINES: u32 = 1_000_000;
const ROUNDS: usize = 5;
/// As the file source reads.
const BLOCK_BYTES: usize = 256 << 10;

/// A daemon's log: what its failures look like, and what it writes otherwise.
struct Log {
    name: &'static str,
    filter: &'static str,
    /// For grep: the same failures, as a fixed string that only they hold.
    needle: &'static str,
    failure: fn(u32) -> String,
    other: fn(u32) -> String,
}

const LOGS: [Log; 2] = [
    Log {
        name: "sshd",
        filter: "sshd",
        needle: "Failed password for",
        failure: sshd_failure,
        other: sshd_other,
    },
    Log {
        name: "django",
        filter: "django",
        needle: "django.auth login failed ip=",
        failure: django_failure,
        other: django_other,
    },
];

fn sshd_failure(n: u32) -> String {
    format!(
        "Nov 24 02:47:40 host sshd[{}]: Failed password for invalid user admin from {} port {} ssh2",
        n % 30_000,
        address(n),
        1_024 + n % 60_000
    )
}

fn sshd_other(n: u32) -> String {
    match n % 4 {
        0 => format!(
            "Nov 24 02:47:40 host sshd[{}]: Accepted publickey for deploy from 192.0.2.{} port {} ssh2: ED25519 SHA256:abcdefghijklmnop",
            n % 30_000,
            n % 250,
            1_024 + n % 60_000
        ),
        1 => format!(
            "Nov 24 02:47:40 host sshd[{}]: pam_unix(sshd:session): session opened for user deploy(uid=1000) by (uid=0)",
            n % 30_000
        ),
        2 => format!(
            "Nov 24 02:47:40 host CRON[{}]: pam_unix(cron:session): session closed for user root",
            n % 30_000
        ),
        _ => format!(
            "Nov 24 02:47:40 host systemd[1]: Started session {n}.scope - Session {n} of User deploy."
        ),
    }
}

fn django_failure(n: u32) -> String {
    format!(
        "2026-11-24 02:47:40,{:03} WARNING django.auth login failed ip={} user=\"user{n}\"",
        n % 1_000,
        address(n)
    )
}

fn django_other(n: u32) -> String {
    format!(
        "2026-11-24 02:47:40,{:03} INFO django.request GET /accounts/profile/{n}/ 200 in {} ms for user {}",
        n % 1_000,
        n % 90,
        n % 5_000
    )
}

/// Spread over many sources, so that counting does its work too.
fn address(n: u32) -> String {
    let n = n.wrapping_mul(2_654_435_761);
    format!("203.{}.{}.{}", n >> 24, n >> 16 & 255, n >> 8 & 255)
}

fn main() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    println!(
        "whole engine: match, address, date of failures, window, ban decision; {LINES} lines, best of {ROUNDS}"
    );
    println!(
        "{:<8} {:>8} {:>12} {:>9} {:>9} {:>9} {:>8} {:>8}",
        "log", "failures", "blocker", "wc -l", "grep -c", "MB/s", "vs wc", "vs grep"
    );
    for log in &LOGS {
        for percent in [1, 30, 90] {
            let path = folder.path().join("log");
            let failures = generate(log, percent, &path);
            let text = fs::read(&path).expect("the generated file");
            let ours = best(|| {
                let (elapsed, counted) = ours(log, &text);
                assert_eq!(counted, failures, "{} {percent} %", log.name);
                elapsed
            });
            let wc = best(|| process(Command::new("wc").arg("-l").arg(&path)).0);
            let grep = best(|| {
                let (elapsed, output) = process(
                    Command::new("grep").env("LC_ALL", "C").args(["-c", "-F", log.needle]).arg(&path),
                );
                assert_eq!(output.trim().parse(), Ok(failures));
                elapsed
            });
            let rate = |elapsed: Duration| f64::from(LINES) / elapsed.as_secs_f64() / 1e6;
            println!(
                "{:<8} {:>6} % {:>8.1} M/s {:>7.0} M {:>7.1} M {:>9.0} {:>7.2}x {:>7.2}x",
                log.name,
                percent,
                rate(ours),
                rate(wc),
                rate(grep),
                text.len() as f64 / ours.as_secs_f64() / 1e6,
                rate(ours) / rate(wc),
                rate(ours) / rate(grep)
            );
        }
    }
}

fn generate(log: &Log, percent: u32, path: &Path) -> u64 {
    let mut file = std::io::BufWriter::new(fs::File::create(path).expect("a file in the scratch folder"));
    let mut failures = 0;
    for n in 0..LINES {
        let fails = n % 100 < percent;
        failures += u64::from(fails);
        let line = if fails { (log.failure)(n) } else { (log.other)(n) };
        writeln!(file, "{line}").expect("room on the disk");
    }
    failures
}

fn ours(log: &Log, text: &[u8]) -> (Duration, u64) {
    let text_of = BUILT_IN.iter().find(|(name, _)| *name == log.filter).expect("a shipped filter").1;
    let spec = read_filter(text_of, Path::new(log.filter)).expect("shipped filters are read");
    let jail = Jail {
        name: log.name.into(),
        sources: vec![SourceId(0)],
        filters: vec![Filter::compile(spec).expect("shipped filters compile").into()],
        // Never reached: every failure is counted, none is skipped as banned already.
        maxretry: 1_000,
        findtime: Duration::from_secs(600),
        bantime: BanTime::Permanent,
        ..Jail::default()
    };
    let policy = Policy {
        jails: vec![jail],
        sources: vec![SourceSpec::File("log".into())],
        limits: Limits::default(),
        ..Policy::default()
    };
    let now = Timestamp::from_secs(1_795_000_000);
    let mut engine = Engine::new(now, policy, Kept::default());
    let begun = Instant::now();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.len().min(BLOCK_BYTES);
        let end = memchr::memrchr(b'\n', &rest[..end]).map_or(rest.len(), |newline| newline + 1);
        let (block, after) = rest.split_at(end);
        engine.handle(now, Input::Lines { source: SourceId(0), block, reading: Reading::Live });
        while let Some(command) = engine.next_command() {
            black_box::<engine::Command>(command);
        }
        rest = after;
    }
    (begun.elapsed(), engine.snapshot().jails[0].1.failures)
}

fn process(command: &mut Command) -> (Duration, String) {
    let begun = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("a standard tool");
    (begun.elapsed(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn best(mut round: impl FnMut() -> Duration) -> Duration {
    (0..ROUNDS).map(|_| round()).min().unwrap_or_default()
}
