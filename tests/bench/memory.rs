//! Memory under a flood: ten million addresses that fail once each, and a thousand that fail slowly among them. Prints
//! the process' largest resident memory, how many of the slow were banned, and whether anybody was banned wrongly.
//! Through the whole engine, from lines.

use std::{collections::BTreeSet, fmt::Write as _, fs, net::Ipv4Addr, path::Path, time::Duration};

use blocker::{
    config::{BUILT_IN, read_filter},
    engine::{Change, Command, Engine, Input, Reading, SourceId},
    filter::Filter,
    policy::{Jail, Policy, SourceSpec},
    time::Timestamp,
};

const FLOOD: u32 = 10_000_000;
const ATTACKERS: u32 = 1_000;
/// Failures of each slow attacker, spread over the whole flood.
const FAILURES: [u32; 3] = [20, 10, 7];
const MAXRETRY: u32 = 5;
/// Lines handed over at once.
const LINES: u32 = 2_000;

fn main() {
    println!(
        "{FLOOD} addresses that fail once, {ATTACKERS} that fail now and then; maxretry {MAXRETRY}, one day"
    );
    println!(
        "\n| failures of each slow one | banned of them | strangers banned | tracked | turned away once | RSS MB before | at most |"
    );
    println!("|---|---|---|---|---|---|---|");
    // A process each, so that each has its own memory.
    let mut args = std::env::args();
    if let Some(failures) = args.by_ref().skip_while(|arg| arg != "--failures").nth(1) {
        return flood(failures.parse().expect("a number"));
    }
    for failures in FAILURES {
        let program = std::env::current_exe().expect("this program");
        let output = std::process::Command::new(program).arg("--failures").arg(failures.to_string()).output();
        let output = output.expect("this program runs");
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{}", text.lines().last().unwrap_or("it failed"));
    }
}

fn flood(failures: u32) {
    let (_, text) = BUILT_IN.iter().find(|(name, _)| *name == "sshd").expect("a shipped filter");
    let filter =
        Filter::compile(read_filter(text, Path::new("sshd")).expect("it is read")).expect("it compiles");
    let policy = Policy {
        jails: vec![Jail {
            name: "sshd".into(),
            sources: vec![SourceId(0)],
            filters: vec![filter.into()],
            maxretry: MAXRETRY,
            findtime: Duration::from_secs(86_400),
            ..Jail::default()
        }],
        sources: vec![SourceSpec::File("log".into())],
        seed: 1,
        ..Policy::default()
    };
    let start = Timestamp::from_secs(1_795_000_000);
    let mut engine = Engine::new(start, policy, Default::default());
    let before = status("VmRSS:");
    let every = FLOOD / (ATTACKERS * failures);
    let (mut caught, mut wrong) = (BTreeSet::new(), 0);
    let mut block = String::new();
    for n in 0..FLOOD {
        line(&mut block, Ipv4Addr::from_bits(0x0b00_0000 + n));
        if n % every == 0 {
            line(&mut block, Ipv4Addr::from_bits(0xcb00_0000 + n / every % ATTACKERS));
        }
        if n % LINES == LINES - 1 {
            let now = start.saturating_add(Duration::from_millis(u64::from(n)));
            let input = Input::Lines { source: SourceId(0), block: block.as_bytes(), reading: Reading::Live };
            engine.handle(now, input);
            engine.handle(now, Input::Tick);
            while let Some(command) = engine.next_command() {
                if let Command::Enforce(Change::Ban(ban)) = command {
                    let slow = ban.prefix.to_string().starts_with("203.0.");
                    wrong += u32::from(!slow);
                    caught.insert(ban.prefix);
                }
            }
            block.clear();
        }
    }
    let snapshot = engine.snapshot();
    println!(
        "| {failures} | {} of {ATTACKERS} | {wrong} | {} | {} | {:.1} | {:.1} |",
        caught.len(),
        snapshot.tracked,
        snapshot.turned_away,
        before,
        status("VmHWM:")
    );
}

fn line(block: &mut String, address: Ipv4Addr) {
    let _ = writeln!(
        block,
        "Nov 24 02:47:40 host sshd[7]: Failed password for root from {address} port 4242 ssh2"
    );
}

/// Megabytes, from proc(5).
fn status(key: &str) -> f64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("0");
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) * 1.024 / 1e3
}
