//! What jails have run and whom they ask, on a real host: commands beside the kernel's bans, never before them.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use blocker::store::Store;
use serde_json::Value;
use xtask::lab::{
    Scratch,
    agent::{Agent, Backend},
    lan::{HOST_V4, Lan},
    missing, probe, skipped, wait_for,
};

/// How long anything that should happen at once may take on a busy machine.
const SOON: Duration = Duration::from_secs(10);
const ATTACKER: &str = "198.51.100.66";

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_blocker"))
}

/// A host, an attacker, and a log in the scratch folder.
struct Stage {
    scratch: Scratch,
    lan: Lan,
}

impl Stage {
    fn new(name: &str) -> Option<Self> {
        if let Some(reason) = missing() {
            skipped(name, &reason);
            return None;
        }
        let mut lan = Lan::new().unwrap();
        lan.add_client("attacker", 66).unwrap();
        let scratch = Scratch::new("actions").unwrap();
        fs::write(scratch.join("app.log"), "").unwrap();
        Some(Self { scratch, lan })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// An agent with these tables; `LOG` in them is the log, `DIR` the scratch folder.
    fn agent(&self, tables: &str) -> Agent<'_> {
        let mut agent = Agent::new(&self.scratch, &self.lan.host, Backend::Nftables);
        let dir = self.scratch.path().display().to_string();
        agent.tables(&tables.replace("LOG", &format!("{dir}/app.log")).replace("DIR", &dir));
        agent.start(binary()).unwrap();
        agent
    }

    fn fail(&self, address: &str, user: &str, times: usize) {
        let mut log = fs::File::options().append(true).open(self.path("app.log")).unwrap();
        log.write_all(format!("failed from {address} user=\"{user}\"\n").repeat(times).as_bytes()).unwrap();
    }

    fn script(&self, name: &str, text: &str) {
        fs::write(self.path(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn pinged(&self) -> bool {
        probe::ping(&self.lan.clients[0].netns, HOST_V4.parse().unwrap())
    }
}

const JAIL: &str = "[jail.app]\nfiles = ['LOG']\nfailregex = ['^failed from <ADDR> user=\"[^\"]*\"$']\n";

fn status(agent: &Agent<'_>) -> Value {
    agent.json(binary(), &["status"]).unwrap()
}

fn ban(agent: &Agent<'_>, prefix: &str) -> Option<Value> {
    let bans = agent.json(binary(), &["bans"]).ok()?;
    bans.as_array()?.iter().find(|row| row["prefix"] == prefix).cloned()
}

fn expect(agent: &Agent<'_>, what: &str, holds: impl Fn() -> bool) {
    let held = wait_for(SOON, || holds().then_some(()));
    assert!(held.is_some(), "{what}: {:#}\n{}", status(agent), agent.log());
}

#[test]
fn the_second_ban_is_longer_also_after_a_restart_and_the_third_is_for_long() {
    let name = "the_second_ban_is_longer_also_after_a_restart_and_the_third_is_for_long";
    let Some(stage) = Stage::new(name) else { return };
    let mut agent = stage.agent(&format!(
        "{JAIL}maxretry = 2\nbantime = 2\nescalation = {{ enabled = true }}\n\
         [jail.recidive]\nledger = true\nmaxretry = 3\nbantime = '1w'\n"
    ));
    let banned = |agent: &Agent<'_>, failures, jail: &str, count: u32, secs: u64| {
        stage.fail(ATTACKER, "x", failures);
        expect(agent, "banned", || ban(agent, ATTACKER).is_some());
        let row = ban(agent, ATTACKER).unwrap();
        let shown = (row["jail"].as_str(), row["count"].as_u64(), row["bantime_secs"].as_u64());
        assert_eq!(shown, (Some(jail), Some(count.into()), Some(secs)), "{row}");
        assert_eq!(row["escalated"], count > 1, "{row}");
        assert!(!stage.pinged(), "banned and not dropped");
    };
    let over = |agent: &Agent<'_>| {
        expect(agent, "over", || ban(agent, ATTACKER).is_none());
        assert!(stage.pinged());
    };
    banned(&agent, 2, "app", 1, 2);
    over(&agent);
    agent.stop();
    agent.start(binary()).unwrap();
    // One failure of a known offender counts as two.
    banned(&agent, 1, "app", 2, 4);
    over(&agent);
    agent.kill();
    agent.start(binary()).unwrap();
    banned(&agent, 1, "recidive", 1, 604_800);
    assert_eq!(status(&agent)["offenders"], 2);
    // Whom an operator lets go starts afresh.
    agent.cli(binary(), &["unban", ATTACKER]).unwrap();
    banned(&agent, 2, "app", 1, 2);
}

#[test]
fn a_hanging_failing_or_flooding_action_delays_no_ban() {
    let Some(stage) = Stage::new("a_hanging_failing_or_flooding_action_delays_no_ban") else { return };
    // Found again by a number that no other test's have.
    let sleep = 1_000_000 + std::process::id();
    let mut agent = stage.agent(&format!(
        "[action.hangs]\nban = 'sleep {sleep} & sleep {sleep}'\ntimeout = 2\n\
         [action.floods]\nban = ['/usr/bin/yes', 'no end']\ntimeout = 2\n\
         [action.fails]\nban = \"printf 'why: \\\\033[31m'; exit 3\"\n\
         [action.missing]\nban = ['/nonexistent/program']\n\
         {JAIL}maxretry = 1\nactions = ['hangs', 'floods', 'fails', 'missing']\n"
    ));
    let begun = Instant::now();
    stage.fail(ATTACKER, "x", 1);
    for third in 0..3 {
        for last in 1..=200 {
            stage.fail(&format!("203.0.{third}.{last}"), "x", 1);
        }
    }
    expect(&agent, "all are banned", || status(&agent)["bans"] == 601);
    let took = begun.elapsed();
    assert!(!stage.pinged(), "banned and not dropped");
    let counts = |name: &str, what: &str| {
        let status = status(&agent);
        let actions = status["jails"][0]["actions"].as_array().unwrap();
        actions
            .iter()
            .find(|action| action["name"] == name)
            .map_or(0, |action| action[what].as_u64().unwrap())
    };
    assert!(counts("hangs", "waiting") > 400, "601 runs of 2 s each cannot be over after {took:?}");
    expect(&agent, "what does not fit is dropped", || counts("hangs", "dropped") > 0);
    expect(&agent, "killed at the timeout", || counts("hangs", "timed_out") > 0);
    expect(&agent, "killed at the timeout", || counts("floods", "timed_out") > 0);
    // With everything it started; by then the next run of it is alive, two processes again.
    let sought = format!("sleep\0{sleep}\0").into_bytes();
    let alive = || {
        let commands = fs::read_dir("/proc").unwrap().flatten();
        commands
            .filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|text| text == sought))
            .count()
    };
    assert!(alive() <= 2, "{} children of killed actions live on", alive());
    let lane_mates = ["fails", "missing"].map(|name| counts(name, "failed"));
    assert!(lane_mates.iter().any(|failed| *failed > 100), "other threads go on: {lane_mates:?}");
    let stopping = Instant::now();
    agent.stop();
    assert!(stopping.elapsed() < Duration::from_secs(5), "the agent's end took {:?}", stopping.elapsed());
    assert_eq!(alive(), 0, "what still ran outlives the agent");
    let log = agent.log();
    assert!(log.contains(r"exit status: 3: why: \u{1b}[31m"), "a command's output is escaped: {log}");
}

#[test]
fn values_reach_a_command_by_its_environment_only() {
    let Some(stage) = Stage::new("values_reach_a_command_by_its_environment_only") else { return };
    stage.script(
        "tell",
        "env > DIR/$1.$BLOCKER_ACTION.new; mv DIR/$1.$BLOCKER_ACTION.new DIR/$1.$BLOCKER_ACTION",
    );
    let dir = stage.scratch.path().display().to_string();
    let text = fs::read_to_string(stage.path("tell")).unwrap().replace("DIR", &dir);
    fs::write(stage.path("tell"), text).unwrap();
    let mut agent = stage.agent(&format!(
        "[action.tell]\nstart = ['DIR/tell', 'a']\nban = ['DIR/tell', 'a']\nunban = 'DIR/tell a'\n\
         stop = ['DIR/tell', 'a']\nmatches = true\nenvironment = {{ WHERE = 'here' }}\n\
         [action.again]\nban = ['DIR/tell', 'again']\nrestored = true\n\
         {JAIL}maxretry = 2\nmaxmatches = 1\nactions = ['tell', 'again']\n"
    ));
    let told = |agent: &Agent<'_>, file: &str| {
        let path = stage.path(file);
        expect(agent, file, || path.exists());
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(path).unwrap();
        text
    };
    let started = told(&agent, "a.start");
    assert!(started.contains("BLOCKER_JAIL=app\n") && !started.contains("BLOCKER_IP"), "{started}");
    stage.fail(ATTACKER, "first", 1);
    let user = format!("$(touch {dir}/forged)`touch {dir}/forged`;touch {dir}/forged\u{1b}[31m\u{202e}");
    stage.fail(ATTACKER, &user, 1);
    let banned = told(&agent, "a.ban");
    for line in [
        "BLOCKER_IP=198.51.100.66",
        "BLOCKER_JAIL=app",
        "BLOCKER_FAILURES=2",
        "BLOCKER_BANTIME=3600",
        "BLOCKER_BANCOUNT=1",
        "BLOCKER_FAMILY=inet4",
        "BLOCKER_RESTORED=0",
        "WHERE=here",
    ] {
        assert!(banned.lines().any(|told| told == line), "{line} in {banned}");
    }
    assert!(banned.contains("BLOCKER_MATCHES=failed from 198.51.100.66 user=\"$(touch"), "{banned}");
    assert!(
        !banned.contains('\u{1b}') && !banned.contains('\u{202e}') && banned.contains("\\u{1b}"),
        "{banned}"
    );
    assert!(!banned.contains("first"), "one line was asked for: {banned}");
    // Neither the agent's environment nor its log line got in.
    assert!(!banned.contains("HOME=") && !stage.path("forged").exists());
    told(&agent, "again.ban");
    agent.stop();
    told_while_away(&stage, "a.stop");
    agent.start(binary()).unwrap();
    let again = told(&agent, "again.ban");
    assert!(again.contains("BLOCKER_RESTORED=1"), "{again}");
    agent.cli(binary(), &["unban", ATTACKER]).unwrap();
    let unbanned = told(&agent, "a.unban");
    assert!(unbanned.contains("BLOCKER_IP=198.51.100.66") && unbanned.contains("WHERE=here"), "{unbanned}");
    assert!(!stage.path("a.ban").exists(), "a restored ban ran an action that does not want it");
}

/// The agent waits for `stop` commands before it ends.
fn told_while_away(stage: &Stage, file: &str) {
    assert!(stage.path(file).exists(), "{file} was not written before the agent ended");
}

#[test]
fn an_ignorecommand_spares_whom_it_knows_and_no_one_by_being_slow() {
    let Some(stage) = Stage::new("an_ignorecommand_spares_whom_it_knows_and_no_one_by_being_slow") else {
        return;
    };
    stage.script(
        "known",
        "case $BLOCKER_IP in 198.51.100.66) exit 0;; 203.0.113.1) exit 1;; 203.0.113.2) exit 7;; *) sleep 60;; esac",
    );
    let agent = stage.agent(&format!(
        "{JAIL}maxretry = 2\n[jail.app.ignorecommand]\ncommand = ['DIR/known']\ntimeout = 3\n"
    ));
    let begun = Instant::now();
    for address in [ATTACKER, "203.0.113.1", "203.0.113.2", "203.0.113.3"] {
        stage.fail(address, "x", 2);
    }
    expect(&agent, "banned at once", || {
        ban(&agent, "203.0.113.1").is_some() && ban(&agent, "203.0.113.2").is_some()
    });
    expect(&agent, "banned in the end", || ban(&agent, "203.0.113.3").is_some());
    assert!(begun.elapsed() >= Duration::from_secs(3), "the slow one was waited for");
    let jail = status(&agent)["jails"][0].clone();
    assert_eq!((jail["ignored"].as_u64(), jail["unanswered"].as_u64()), (Some(1), Some(2)), "{jail}");
    assert!(ban(&agent, ATTACKER).is_none() && stage.pinged());
    // The answer is remembered: no further question, and no ban.
    fs::remove_file(stage.path("known")).unwrap();
    stage.fail(ATTACKER, "x", 2);
    expect(&agent, "spared again", || status(&agent)["jails"][0]["ignored"] == 2);
    assert!(stage.pinged());
}

#[test]
fn an_observing_jail_reports_and_lets_everybody_in() {
    let Some(stage) = Stage::new("an_observing_jail_reports_and_lets_everybody_in") else { return };
    let agent = stage.agent(&format!("{JAIL}maxretry = 2\nobserve = true\n"));
    stage.fail(ATTACKER, "x", 5);
    expect(&agent, "counted", || status(&agent)["jails"][0]["would_ban"] == 1);
    assert!(stage.pinged());
    assert_eq!(agent.banned(binary()).unwrap(), Vec::<String>::new());
    assert!(agent.log().contains("would ban 198.51.100.66"), "{}", agent.log());
}

#[test]
fn offences_are_on_disk_when_the_agent_has_ended() {
    let Some(stage) = Stage::new("offences_are_on_disk_when_the_agent_has_ended") else { return };
    let mut agent = stage.agent(&format!("{JAIL}maxretry = 1\n"));
    stage.fail(ATTACKER, "x", 1);
    expect(&agent, "banned", || ban(&agent, ATTACKER).is_some());
    agent.stop();
    let (_, stored) = Store::open(&stage.path("state")).unwrap();
    let shown: Vec<_> =
        stored.offences.iter().map(|known| (known.prefix.to_string(), &*known.jail, known.bans)).collect();
    assert_eq!(shown, [(ATTACKER.to_owned(), "app", 1)]);
}

#[test]
fn status_counts_what_gave_way_to_each_bound_of_a_jail() {
    let Some(stage) = Stage::new("status_counts_what_gave_way_to_each_bound_of_a_jail") else { return };
    let filter = "dialect = 'fail2ban'\nfailregex";
    let agent = stage.agent(&format!(
        "[limits]\nmax_connections = 2\nmax_joined_bytes = 65536\nmax_tracked = 100\nmax_offenders = 50\n\
         [jail.one]\nfiles = ['LOG']\n\
         [jail.one.filter]\n{filter} = ['^<F-MLFID>\\d+</F-MLFID> <F-NOFAIL>from</F-NOFAIL> <ADDR>$']\n\
         [jail.several]\nfiles = ['LOG']\n\
         [jail.several.filter]\n{filter} = ['^begin x+ <ADDR>$<SKIPLINES>^end$']\nmaxlines = 9\n\
         [jail.slow]\nfiles = ['LOG']\n\
         [jail.slow.filter]\n{filter} = ['^(?:(a+)\\1?)+c from <HOST>$']\n\
         [jail.watch]\nobserve = true\nmaxretry = 1\nfiles = ['LOG']\nfailregex = ['^(\\d+) from <ADDR>$']\n"
    ));
    let mut lines: String = (0..5).map(|id| format!("{id} from 192.0.2.{id}\n")).collect();
    lines += &format!("begin {} 192.0.2.9\n", "x".repeat(30_000)).repeat(3);
    lines += &format!("{}xc from 192.0.2.9\n", "a".repeat(60));
    fs::write(stage.path("app.log"), lines).unwrap();
    let lost = |agent: &Agent<'_>| -> Vec<Vec<u64>> {
        let jails = status(agent)["jails"].as_array().cloned().unwrap_or_default();
        let keys =
            ["connections_lost", "joined_lines_lost", "gave_up", "spared", "imagined_lost", "would_ban"];
        jails.iter().map(|jail| keys.iter().filter_map(|key| jail[*key].as_u64()).collect()).collect()
    };
    let wanted =
        [vec![3, 0, 0, 0, 0, 0], vec![0, 6, 0, 0, 0, 0], vec![0, 0, 1, 0, 0, 0], vec![0, 0, 0, 0, 0, 5]];
    expect(&agent, "counted", || lost(&agent) == wanted);
    // What was counted outlives the readers that counted it.
    agent.cli(binary(), &["reload"]).unwrap();
    assert_eq!(lost(&agent), wanted);
    let whole = status(&agent);
    assert_eq!((whole["tracked_max"].as_u64(), whole["offenders_max"].as_u64()), (Some(100), Some(50)));
    assert_eq!(whole["tracked_turned_away"], 0);
    let shown = agent.cli(binary(), &["status"]).unwrap();
    for part in [
        "of at most 100, 0 gave way, 0 first failures not counted",
        "of at most 50, 0 gave way",
        "one        3 connections forgotten before their time; raise `limits.max_connections`",
        "several    6 lines too many to be joined; raise `limits.max_joined_bytes`",
        "slow       1 lines on which a pattern gave up",
    ] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
}
