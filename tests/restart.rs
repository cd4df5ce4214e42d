//! The real agent against a writer that rotates its log, and SIGKILL at any instant: every failure is counted once.
//!
//! What was counted is seen by who is banned: of half of the attackers there are as many lines as ban, of the others one
//! fewer. A line lost spares one of the first, a line counted twice bans one of the second.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use xtask::lab::{
    Scratch,
    agent::{Agent, Backend},
    lan::Lan,
    missing, skipped, wait_for,
};

const KILLS: u64 = 20;
const MAXRETRY: usize = 5;
/// Of each kind.
const ATTACKERS: usize = 60;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_blocker"))
}

/// A small generator, so that a failing run can be had again from its seed, as far as the machine's timing goes.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

fn address(attacker: usize) -> String {
    format!("198.18.{}.{}", attacker / 200, attacker % 200 + 1)
}

fn line(attacker: usize) -> String {
    let stamp = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00");
    format!("{stamp} host sshd[4242]: Failed password for root from {} port 40000 ssh2\n", address(attacker))
}

/// A log that is written by one thread and rotated by another, neither in the middle of what the other does.
struct Log {
    path: PathBuf,
    rotated: Mutex<u32>,
}

impl Log {
    fn new(scratch: &Scratch) -> Self {
        let path = scratch.join("auth.log");
        fs::write(&path, "").unwrap();
        Self { path, rotated: Mutex::new(0) }
    }

    fn write(&self, text: &str) {
        let _whole = self.rotated.lock().unwrap();
        let mut file = fs::File::options().append(true).open(&self.path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn rotate(&self) {
        let mut rotated = self.rotated.lock().unwrap();
        *rotated += 1;
        fs::rename(&self.path, self.path.with_file_name(format!("auth.log.{rotated}"))).unwrap();
        fs::write(&self.path, "").unwrap();
    }
}

#[test]
fn sigkill_at_any_instant_loses_no_failure_and_counts_none_twice() {
    if let Some(reason) = missing() {
        return skipped("sigkill_at_any_instant_loses_no_failure_and_counts_none_twice", &reason);
    }
    let seed = u64::from(std::process::id());
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    // As many lines of each attacker as it has, in any order.
    let mut lines: Vec<usize> = (0..ATTACKERS).flat_map(|attacker| vec![attacker; MAXRETRY]).collect();
    lines.extend((ATTACKERS..2 * ATTACKERS).flat_map(|attacker| vec![attacker; MAXRETRY - 1]));
    for place in (1..lines.len()).rev() {
        lines.swap(place, random.below(place as u64 + 1) as usize);
    }
    let lan = Lan::new().unwrap();
    let scratch = Scratch::new("restart").unwrap();
    let log = Log::new(&scratch);
    let mut agent = Agent::new(&scratch, &lan.host, Backend::Nftables);
    agent.jail("sshd", &log.path, &format!("maxretry = {MAXRETRY}\nfindtime = \"1h\"\nbantime = \"1h\""));
    let over = AtomicBool::new(false);
    // Some failures are older than the first agent, and count.
    for attacker in lines.drain(..50) {
        log.write(&line(attacker));
    }
    agent.start(binary()).unwrap();
    thread::scope(|scope| {
        let (log, over, mut pace) = (&log, &over, Random(random.0));
        scope.spawn(move || {
            // In bursts that leave no agent's life without lines, and all that is left at the end.
            for attacker in lines {
                log.write(&line(attacker));
                if !over.load(Relaxed) {
                    thread::sleep(Duration::from_millis(pace.below(32)));
                }
            }
        });
        for _ in 0..KILLS {
            let nap = |random: &mut Random, most| thread::sleep(Duration::from_millis(random.below(most)));
            nap(&mut random, 400);
            let when = random.below(3);
            if when == 0 {
                log.rotate();
                nap(&mut random, 4);
            }
            agent.kill();
            if when == 1 {
                log.rotate();
            }
            agent.start(binary()).unwrap();
        }
        over.store(true, Relaxed);
    });
    let expected: BTreeSet<String> = (0..ATTACKERS).map(address).collect();
    let banned = |agent: &Agent<'_>| -> BTreeSet<String> {
        agent.banned(binary()).unwrap_or_default().into_iter().collect()
    };
    let _all = wait_for(Duration::from_secs(10), || (banned(&agent).len() >= ATTACKERS).then_some(()));
    // Whoever is banned wrongly is banned by a line that is read by now, or in the same moment.
    thread::sleep(Duration::from_millis(300));
    assert_eq!(banned(&agent), expected, "seed {seed}\n{}", agent.log());
    agent.stop();
    agent.start(binary()).unwrap();
    assert_eq!(banned(&agent), expected, "after a stop");
}

#[test]
fn a_log_that_is_renamed_at_once_after_three_failures_bans_ten_of_ten() {
    if let Some(reason) = missing() {
        return skipped("a_log_that_is_renamed_at_once_after_three_failures_bans_ten_of_ten", &reason);
    }
    let lan = Lan::new().unwrap();
    let scratch = Scratch::new("race").unwrap();
    let log = Log::new(&scratch);
    let mut agent = Agent::new(&scratch, &lan.host, Backend::Nftables);
    agent.jail("sshd", &log.path, "maxretry = 3");
    agent.start(binary()).unwrap();
    for attacker in 0..10 {
        log.write(&line(attacker).repeat(3));
        log.rotate();
        let banned = wait_for(Duration::from_secs(5), || {
            agent.banned(binary()).ok()?.contains(&address(attacker)).then_some(())
        });
        assert!(banned.is_some(), "{attacker} of 10: {:?}\n{}", agent.banned(binary()), agent.log());
    }
}
