//! The journal on a real host: entries of a real systemd-journald on one side, the kernel's bans on the other.
#![cfg(target_os = "linux")]

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;
use xtask::lab::{
    Scratch,
    agent::{Agent, Backend},
    journald::{self, Journald, Speaker},
    lan::{HOST_V4, Lan},
    missing, probe, run, skipped, wait_for,
};

const TCP: u16 = 2222;
const UDP: u16 = 5353;
/// How long anything that should happen at once may take on a busy machine: journald tells of entries within a quarter
/// of a second, and a journal that is not there is tried again every two.
const SOON: Duration = Duration::from_secs(15);
const UNIT: &str = "ssh.service";
const JAIL: &str = "[jail.sshd]\nfilters = [\"sshd\"]\nmaxretry = 3\n\
     journal = [\"_SYSTEMD_UNIT=ssh.service _UID=0 + _COMM=sshd\", \"SYSLOG_IDENTIFIER=sshd\"]\n";
/// As on a host without a syslog daemon, and nothing said of the journal.
const FILE_JAIL: &str = "[jail.sshd]\nfilters = [\"sshd\"]\nmaxretry = 3\n";
const ATTACKER: &str = "198.51.100.66";
/// Somebody that others want banned.
const VICTIM: &str = "198.51.100.7";
const USER: u32 = 1000;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_blocker"))
}

/// Whether a case has to be skipped; says so.
fn is_skipped(name: &str) -> bool {
    let why = missing().or_else(journald::missing);
    if let Some(why) = &why {
        skipped(name, why);
    }
    why.is_some()
}

fn failure(address: &str) -> String {
    format!("Failed password for root from {address} port 40022 ssh2")
}

fn fail(speaker: &mut Speaker, address: &str, times: usize) {
    for _ in 0..times {
        speaker.say("sshd", &failure(address)).unwrap();
    }
}

fn failures(agent: &Agent<'_>) -> u64 {
    let status = agent.json(binary(), &["status"]).unwrap();
    status["jails"][0]["failures"].as_u64().unwrap()
}

/// What `status` says of the journal.
fn source(agent: &Agent<'_>) -> Value {
    agent.json(binary(), &["status"]).unwrap()["sources"][0].clone()
}

fn counter(source: &Value, name: &str) -> u64 {
    let counters = source["counters"].as_array().into_iter().flatten();
    counters.filter(|counter| counter[0] == name).filter_map(|counter| counter[1].as_u64()).sum()
}

fn until_failures(agent: &Agent<'_>, count: u64) {
    let counted = wait_for(SOON, || (failures(agent) >= count).then_some(()));
    assert!(counted.is_some(), "{} of {count}; {}\n{}", failures(agent), source(agent), agent.log());
}

fn until_banned(agent: &Agent<'_>, address: &str) {
    let banned = wait_for(SOON, || agent.banned(binary()).ok()?.contains(&address.to_owned()).then_some(()));
    assert!(banned.is_some(), "{:?} {}\n{}", agent.banned(binary()), source(agent), agent.log());
}

fn until_state(agent: &Agent<'_>, state: &str) {
    let said = wait_for(SOON, || source(agent)["state"].as_str()?.contains(state).then_some(()));
    assert!(said.is_some(), "{state:?}: {}\n{}", source(agent), agent.log());
}

fn start<'a>(scratch: &Scratch, lan: &'a Lan, journald: &'a Journald, backend: Backend) -> Agent<'a> {
    start_with(scratch, lan, journald, backend, JAIL)
}

fn start_with<'a>(
    scratch: &Scratch,
    lan: &'a Lan,
    journald: &'a Journald,
    backend: Backend,
    jail: &str,
) -> Agent<'a> {
    let mut agent = Agent::new(scratch, &lan.host, backend);
    agent.reads(journald);
    agent.tables(jail);
    agent.start(binary()).unwrap();
    agent
}

#[test]
fn failures_in_the_journal_ban_in_the_kernel_and_forged_ones_do_not() {
    let name = "failures_in_the_journal_ban_in_the_kernel_and_forged_ones_do_not";
    if is_skipped(name) {
        return;
    }
    let mut backends = vec![Backend::Nftables];
    if blocker::enforce::xdp::is_built_in() {
        backends.push(Backend::Xdp);
    } else {
        skipped(name, "XDP was not built in (cargo xtask test builds it)");
    }
    for backend in backends {
        let mut lan = Lan::new().unwrap();
        lan.add_client("attacker", 66).unwrap();
        lan.add_client("victim", 7).unwrap();
        let host: IpAddr = HOST_V4.parse().unwrap();
        let _echo = probe::Echo::start(&lan.host, host, TCP, UDP).unwrap();
        let mut journald = Journald::new().unwrap();
        journald.start().unwrap();
        let mut sshd = journald.speaker(Some(UNIT), 0, "sshd").unwrap();
        // A shell in the unit, a process that took the name, and one that only says it.
        let mut liars = [
            journald.speaker(Some(UNIT), USER, "sh").unwrap(),
            journald.speaker(None, USER, "sshd").unwrap(),
            journald.speaker(None, USER, "sh").unwrap(),
            journald.speaker(None, 0, "sh").unwrap(),
        ];
        let scratch = Scratch::new("journal").unwrap();
        let agent = start(&scratch, &lan, &journald, backend);
        until_state(&agent, "reading with libsystemd");

        for liar in &mut liars {
            fail(liar, VICTIM, 5);
            // What it says of its unit is no field that a sender can set.
            let message = failure(VICTIM);
            liar.send(&[
                ("_SYSTEMD_UNIT", UNIT),
                ("_UID", "0"),
                ("SYSLOG_IDENTIFIER", "sshd"),
                ("MESSAGE", &message),
            ])
            .unwrap();
        }
        for _ in 0..5 {
            let mut logger = journald.command("logger");
            run(logger.args(["-t", "sshd", "-u", "/run/systemd/journal/dev-log", &failure(VICTIM)])).unwrap();
            // A line break and a whole line behind it, by whoever chooses a user's name.
            sshd.say("sshd", &format!("Connection from somebody\nsshd[1]: {}", failure(VICTIM))).unwrap();
        }
        sshd.say("sshd", &format!("{}{}", "x".repeat(70_000), failure(VICTIM))).unwrap();
        fail(&mut sshd, ATTACKER, 3);
        until_banned(&agent, ATTACKER);
        assert_eq!(agent.banned(binary()).unwrap(), [ATTACKER], "{}", agent.log());
        assert_eq!(failures(&agent), 3, "{}", source(&agent));
        let source = source(&agent);
        assert_eq!(counter(&source, "skipped"), 1, "{source}");
        // They did arrive: 6 of each liar, 5 of logger.
        let all = journald.journalctl(&["-o", "cat", "SYSLOG_IDENTIFIER=sshd"]).unwrap();
        assert_eq!(all.lines().filter(|line| *line == failure(VICTIM)).count(), 29, "{all}");
        let reached: Vec<bool> =
            lan.clients.iter().map(|client| probe::tcp(&client.netns, host, TCP)).collect();
        assert_eq!(reached, [false, true], "attacker, victim");
    }
}

#[test]
fn every_entry_is_read_once_through_stops_rotation_and_vacuum() {
    if is_skipped("every_entry_is_read_once_through_stops_rotation_and_vacuum") {
        return;
    }
    for state in ["reading with libsystemd", "reading with journalctl"] {
        let lan = Lan::new().unwrap();
        let mut journald = Journald::new().unwrap();
        journald.start().unwrap();
        let mut sshd = journald.speaker(Some(UNIT), 0, "sshd").unwrap();
        if state.ends_with("journalctl") {
            journald.hide_library().unwrap();
        }
        // Written before anybody asked, and not so long ago that it counts no more.
        fail(&mut sshd, "198.51.100.91", 2);
        journald.journalctl(&["--sync"]).unwrap();
        let scratch = Scratch::new("journal").unwrap();
        let mut agent = start(&scratch, &lan, &journald, Backend::Nftables);
        until_state(&agent, state);
        until_failures(&agent, 2);
        fail(&mut sshd, "198.51.100.92", 2);
        until_failures(&agent, 4);

        journald.journalctl(&["--rotate"]).unwrap();
        fail(&mut sshd, "198.51.100.93", 2);
        until_failures(&agent, 6);
        journald.journalctl(&["--rotate", "--vacuum-files=1"]).unwrap();
        fail(&mut sshd, "198.51.100.94", 2);
        until_failures(&agent, 8);
        assert_eq!(failures(&agent), 8, "{}", source(&agent));

        agent.stop();
        fail(&mut sshd, "198.51.100.95", 2);
        journald.journalctl(&["--rotate"]).unwrap();
        fail(&mut sshd, ATTACKER, 3);
        agent.start(binary()).unwrap();
        until_banned(&agent, ATTACKER);
        fail(&mut sshd, "198.51.100.96", 1);
        until_failures(&agent, 6);
        assert_eq!(failures(&agent), 6, "{}", source(&agent));
        assert_eq!(agent.banned(binary()).unwrap(), [ATTACKER]);
        assert_eq!(counter(&source(&agent), "lost_place"), 0, "{}", source(&agent));
    }
}

#[test]
fn a_journal_that_was_vacuumed_or_is_corrupt_costs_what_it_held_and_no_more() {
    if is_skipped("a_journal_that_was_vacuumed_or_is_corrupt_costs_what_it_held_and_no_more") {
        return;
    }
    let lan = Lan::new().unwrap();
    let mut journald = Journald::new().unwrap();
    journald.start().unwrap();
    let mut sshd = journald.speaker(Some(UNIT), 0, "sshd").unwrap();
    let scratch = Scratch::new("journal").unwrap();
    let mut agent = start(&scratch, &lan, &journald, Backend::Nftables);
    until_state(&agent, "reading");
    fail(&mut sshd, "198.51.100.91", 1);
    until_failures(&agent, 1);
    agent.stop();
    fail(&mut sshd, "198.51.100.92", 2);
    journald.journalctl(&["--rotate"]).unwrap();
    journald.journalctl(&["--vacuum-files=1"]).unwrap();
    assert_eq!(journald.archived(), Vec::<PathBuf>::new());
    fail(&mut sshd, "198.51.100.93", 2);
    agent.start(binary()).unwrap();
    until_failures(&agent, 2);
    assert_eq!(failures(&agent), 2, "{}", source(&agent));
    assert_eq!(counter(&source(&agent), "lost_place"), 1, "{}", source(&agent));

    agent.stop();
    fail(&mut sshd, "198.51.100.94", 200);
    journald.journalctl(&["--rotate"]).unwrap();
    for path in journald.archived() {
        let file = fs::File::options().write(true).open(&path).unwrap();
        // The middle of what is in use: objects that point nowhere.
        let used = file.metadata().unwrap().len();
        let noise: Vec<u8> =
            (0..64 * 1024_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
        file.write_all_at(&noise, (used / 2).min(100 * 1024)).unwrap();
    }
    fail(&mut sshd, ATTACKER, 3);
    agent.start(binary()).unwrap();
    until_banned(&agent, ATTACKER);
    assert_eq!(source(&agent)["state"], "reading with libsystemd");
    fail(&mut sshd, "198.51.100.95", 3);
    until_banned(&agent, "198.51.100.95");
}

#[test]
fn a_journal_that_is_not_there_is_said_and_read_once_it_is() {
    if is_skipped("a_journal_that_is_not_there_is_said_and_read_once_it_is") {
        return;
    }
    let lan = Lan::new().unwrap();
    // Started while the agent runs, and so in a namespace that the agent is in already.
    let mut journald = Journald::new().unwrap();
    let scratch = Scratch::new("journal").unwrap();
    let config = {
        let mut agent = Agent::new(&scratch, &lan.host, Backend::Nftables);
        agent.tables(JAIL);
        agent.write_config().unwrap();
        agent.config()
    };
    let mut run_agent: Command = lan.host.command(binary());
    run_agent.args(["run", "--config"]).arg(config);
    journald.adopt(&mut run_agent);
    let _process = xtask::lab::Process::spawn(&mut run_agent).unwrap();
    let agent = Agent::new(&scratch, &lan.host, Backend::Nftables);
    assert!(wait_for(SOON, || agent.json(binary(), &["status"]).ok()).is_some());
    until_state(&agent, "there is no journal");
    journald.start().unwrap();
    let mut sshd = journald.speaker(Some(UNIT), 0, "sshd").unwrap();
    fail(&mut sshd, ATTACKER, 3);
    until_banned(&agent, ATTACKER);
    assert_eq!(failures(&agent), 3, "{}", source(&agent));
}

#[test]
fn where_a_log_is_not_there_the_journal_is_read_until_it_is() {
    if is_skipped("where_a_log_is_not_there_the_journal_is_read_until_it_is") {
        return;
    }
    let lan = Lan::new().unwrap();
    let mut journald = Journald::new().unwrap();
    journald.start().unwrap();
    let scratch = Scratch::new("instead").unwrap();
    let log = scratch.path().join("auth.log");
    let jail = format!("{FILE_JAIL}files = [{:?}]\n", log.display());
    let warned = |agent: &Agent<'_>| {
        agent.json(binary(), &["status"]).unwrap()["warnings"]
            .to_string()
            .contains("The journal is read until")
    };

    // A journal without the daemon's entries is nothing to read instead.
    let mut stranger = journald.speaker(Some("other.service"), 0, "sshd").unwrap();
    fail(&mut stranger, VICTIM, 5);
    let agent = start_with(&scratch, &lan, &journald, Backend::Nftables, &jail);
    assert!(!warned(&agent), "{}", agent.log());
    drop(agent);

    let mut sshd = journald.speaker(Some(UNIT), 0, "sshd").unwrap();
    sshd.say("sshd", "Server listening on 0.0.0.0 port 22.").unwrap();
    assert!(
        wait_for(SOON, || {
            let entries = journald.journalctl(&["-o", "cat", "_SYSTEMD_UNIT=ssh.service"]).ok()?;
            entries.contains("listening").then_some(())
        })
        .is_some()
    );
    let agent = start_with(&scratch, &lan, &journald, Backend::Nftables, &jail);
    assert!(warned(&agent), "{}", agent.log());
    fail(&mut stranger, VICTIM, 5);
    fail(&mut sshd, ATTACKER, 3);
    until_banned(&agent, ATTACKER);
    assert_eq!(agent.banned(binary()).unwrap(), [ATTACKER], "{}", agent.log());

    // A syslog daemon was installed: its file has what the journal has, and nothing counts twice.
    // Somebody is in the middle of an edit, which is nobody's business until a reload is asked for.
    fs::write(agent.config(), "[jail.").unwrap();
    fs::write(&log, "").unwrap();
    assert!(wait_for(SOON, || (!warned(&agent)).then_some(())).is_some(), "{}", agent.log());
    for count in 1..=4 {
        let line = failure("198.51.100.8");
        sshd.say("sshd", &line).unwrap();
        let stamped = format!("Nov 24 02:47:4{count} web sshd[1]: {line}\n");
        let mut file = fs::File::options().append(true).open(&log).unwrap();
        std::io::Write::write_all(&mut file, stamped.as_bytes()).unwrap();
        if count == 2 {
            until_failures(&agent, 5);
            assert!(!agent.banned(binary()).unwrap().contains(&"198.51.100.8".to_owned()), "{}", agent.log());
        }
    }
    until_banned(&agent, "198.51.100.8");
    let status = agent.json(binary(), &["status"]).unwrap();
    let paths: Vec<_> = status["sources"].as_array().unwrap().iter().map(|source| &source["path"]).collect();
    assert_eq!(paths, [log.to_str().unwrap()], "the journal is not followed for nobody: {status:#}");
}
