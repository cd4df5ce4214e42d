//! Nobody is unbanned by changing from fail2ban to blocker: a database that fail2ban itself makes when the test runs.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use blocker::{
    config,
    ledger::Origin,
    net::Scope,
    store::{Store, read_former_bans},
    time::{BanTime, Timestamp, Until},
};
use xtask::lab::{Scratch, agent::Agent, agent::Backend, lan::Lan, missing, skipped, wait_for};

/// Bans as fail2ban records them, then prints what it would restore: `ip end count`, -1 without end.
const MAKE: &str = r#"
import sys, time
from fail2ban.server.database import Fail2BanDb
from fail2ban.server.ticket import BanTicket

class Jail:
    def __init__(self, name, bantime):
        self.name, self.bantime, self.actions = name, bantime, self
    def getBanTime(self): return self.bantime
    def getMaxBanTime(self): return -1

now = float(sys.argv[2])
db = Fail2BanDb(sys.argv[1])
jails = {name: Jail(name, bantime) for name, bantime in (("sshd", 600), ("recidive", 604800))}
for jail in jails.values(): db.addJail(jail)
for row in sys.argv[3:]:
    jail, ip, ago, bantime, count = row.split(",")
    ticket = BanTicket(ip, now - int(ago), ["a line"])
    ticket.setAttempt(7)
    ticket.setBanTime(int(bantime)); ticket.setBanCount(int(count))
    db.addBan(jails[jail], ticket)
db.delBan(jails["sshd"], "203.0.113.8")
for jail in jails.values():
    for ticket in db.getCurrentBans(jail, fromtime=now):
        bantime = ticket.getBanTime()
        end = -1 if bantime == -1 else int(ticket.getTime()) + bantime
        print(ticket.getID(), end, ticket.getBanCount())
"#;

const ROWS: [&str; 9] = [
    "sshd,203.0.113.1,100,600,1",
    "sshd,203.0.113.2,700,600,1",
    "sshd,203.0.113.3,5000,600,1",
    "sshd,203.0.113.3,50,1200,2",
    "recidive,203.0.113.4,3600,604800,1",
    "sshd,203.0.113.5,90000,-1,1",
    "sshd,2001:db8::5,10,600,4",
    "sshd,192.0.2.0/24,10,600,1",
    "sshd,203.0.113.8,10,600,1",
];

/// The database, and by prefix when fail2ban would lift each ban; `None` where there is no fail2ban.
fn make(folder: &Path, now: i64) -> Option<(PathBuf, BTreeMap<String, i64>)> {
    let path = folder.join("fail2ban.sqlite3");
    let mut command = Command::new(incumbents_python()?);
    command
        .arg("-c")
        .arg(MAKE)
        .arg(&path)
        .arg(now.to_string())
        .args(ROWS)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let output = command.output().ok()?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if stderr.contains("No module named 'fail2ban'") {
        return None;
    }
    assert!(output.status.success(), "{stderr}");
    let rows = stdout.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        (words[0].to_owned(), words[1].parse().unwrap())
    });
    Some((path, rows.collect()))
}

/// The Python that runs fail2ban, which need not be the first on the path; `None` where there is no fail2ban.
fn incumbents_python() -> Option<PathBuf> {
    let script = fs::read_to_string("/usr/bin/fail2ban-client").ok()?;
    Some(script.lines().next()?.strip_prefix("#!")?.split_whitespace().next()?.into())
}

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

#[test]
fn every_ban_that_fail2ban_would_restore_is_taken_over_once_with_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let instant = now();
    let Some((path, expected)) = make(folder.path(), instant) else {
        return skipped(
            "every_ban_that_fail2ban_would_restore_is_taken_over_once_with_its_end",
            "no fail2ban",
        );
    };
    assert_eq!(expected.len(), 6, "{expected:?}");
    let rows = read_former_bans(&path).unwrap();
    assert!(rows.len() == 8 && rows.iter().all(|row| row.failures == 7), "{rows:?}");
    let rules = |_: &str| (BanTime::For(Duration::from_secs(600)), Scope::ALL);
    let instant = Timestamp::from_secs(instant);
    let state = folder.path().join("state");
    let (mut store, stored) = Store::open(&state).unwrap();
    let taken = store.take_over(&path, &stored.bans, &stored.offences, instant, &rules).unwrap().unwrap();
    let found: BTreeMap<String, i64> = taken
        .bans
        .iter()
        .map(|ban| match ban.until {
            Until::At(end) => (ban.prefix.to_string(), end.as_secs()),
            Until::Forever => (ban.prefix.to_string(), -1),
        })
        .collect();
    assert_eq!(found, expected);
    let again = taken.offences.iter().find(|offence| offence.prefix.to_string() == "203.0.113.3");
    assert_eq!(again.map(|offence| offence.bans), Some(2));
    // On disk with the mark that it was done: the next agent neither loses them nor takes them again.
    drop(store);
    let (mut store, stored) = Store::open(&state).unwrap();
    assert_eq!(stored.bans.len(), expected.len());
    assert!(stored.bans.iter().all(|ban| matches!(&ban.origin, Origin::Jail(_))));
    assert_eq!(stored.offences.len(), 7);
    assert_eq!(store.take_over(&path, &[], &[], instant, &rules).unwrap(), None);
}

#[test]
fn what_is_no_database_of_fail2bans_takes_nothing_over_and_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(&folder.path().join("state")).unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::from(0o600), 0)
        .unwrap();
    let garbage = folder.path().join("garbage");
    fs::write(&garbage, vec![7; 10_000]).unwrap();
    let empty = folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    let other = folder.path().join("other");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE bans(x)").unwrap();
    let rules = |_: &str| (BanTime::Permanent, Scope::ALL);
    for path in [&fifo, &garbage, &empty, &other, &folder.path().join("absent")] {
        for _ in 0..2 {
            let refused = store.take_over(path, &[], &[], Timestamp::EPOCH, &rules).unwrap_err();
            assert!(refused.to_string().contains("read fail2ban's bans in"), "{refused}");
        }
    }
}

#[test]
fn the_agent_bans_from_its_start_whom_fail2ban_banned_and_lifts_them_for_good() {
    const NAME: &str = "the_agent_bans_from_its_start_whom_fail2ban_banned_and_lifts_them_for_good";
    if let Some(reason) = missing() {
        return skipped(NAME, &reason);
    }
    let scratch = Scratch::new("takeover").unwrap();
    let Some((path, expected)) = make(scratch.path(), now()) else { return skipped(NAME, "no fail2ban") };
    let dir = scratch.join("fail2ban");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("jail.conf"), "[sshd]\nenabled = false\n").unwrap();
    fs::write(dir.join("fail2ban.conf"), format!("[DEFAULT]\ndbfile = {}\n[Definition]\n", path.display()))
        .unwrap();
    let lan = Lan::new().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_blocker"));
    let mut agent = Agent::new(&scratch, &lan.host, Backend::Nftables);
    agent.jail("sshd", &scratch.join("auth.log"), "");
    agent.tables(&format!("[import]\nfail2ban = '{}'", dir.display()));
    fs::write(scratch.join("auth.log"), "").unwrap();
    agent.start(binary).unwrap();
    let banned = |agent: &Agent<'_>| {
        let mut banned = agent.banned(binary).unwrap();
        banned.sort();
        banned
    };
    let mut expected: Vec<String> = expected.into_keys().collect();
    expected.sort();
    assert_eq!(banned(&agent), expected, "{}", agent.log());
    agent.cli(binary, &["unban", "203.0.113.1"]).unwrap();
    expected.retain(|prefix| prefix != "203.0.113.1");
    agent.stop();
    agent.start(binary).unwrap();
    assert_eq!(banned(&agent), expected, "what a person lifted does not come back");
}

#[test]
fn where_the_bans_are_is_what_fail2ban_conf_says() {
    for (conf, local, expected) in [
        (None, None, Some("/var/lib/fail2ban/fail2ban.sqlite3")),
        (Some("[DEFAULT]\ndbfile = /a.db\n[Definition]\n"), None, Some("/a.db")),
        (
            Some("[Definition]\ndir = /x\ndbfile = %(dir)s/a.db\n"),
            Some("[Definition]\ndir = /y\n"),
            Some("/y/a.db"),
        ),
        (Some("[Definition]\ndbfile = None\n"), None, None),
        (Some("[Definition]\ndbfile = :memory:\n"), None, None),
        (Some("[Definition]\ndbfile = %(dbfile)s\n"), None, None),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("jail.conf"), "[sshd]\nenabled = false\n").unwrap();
        for (name, text) in [("fail2ban.conf", conf), ("fail2ban.local", local)] {
            if let Some(text) = text {
                fs::write(folder.path().join(name), text).unwrap();
            }
        }
        let main = folder.path().join("blocker.toml");
        fs::write(&main, "[import]\nfail2ban = '.'\n").unwrap();
        let config = config::load(&main).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.former_bans.as_deref(), expected.map(Path::new), "{conf:?}");
    }
}

/// fail2ban's files run live: a ban, the jail's own command beside it, and a reload in which one filter is broken.
#[test]
fn an_imported_jail_bans_runs_its_command_and_outlives_a_neighbours_broken_filter() {
    const NAME: &str = "an_imported_jail_bans_runs_its_command_and_outlives_a_neighbours_broken_filter";
    if let Some(reason) = missing() {
        return skipped(NAME, &reason);
    }
    let scratch = Scratch::new("import").unwrap();
    let at = |name: &str| scratch.join(name);
    let write = |name: &str, text: &str| {
        fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        fs::write(at(name), text).unwrap();
    };
    let told = at("told");
    write("fail2ban/jail.conf", "[DEFAULT]\nenabled = true\nmaxretry = 2\nbantime.increment = true\n");
    let jails = ["good", "bad"].map(|name| {
        let logs = at("logs").display().to_string();
        let own = if name == "good" { format!("\n  tell[to='{}']", told.display()) } else { String::new() };
        format!("[{name}]\nfilter = {name}\nlogpath = {logs}/*/{name}.log\naction = iptables-allports{own}\n")
    });
    write("fail2ban/jail.local", &jails.concat());
    for name in ["good", "bad"] {
        write(
            &format!("fail2ban/filter.d/{name}.conf"),
            "[Definition]\nfailregex = ^no login from <HOST>$\n",
        );
    }
    let action = "[Definition]\nactionban = printf '%%s %%s\\n' '<ip>' \"<failures>\" >> '<to>'\n";
    write("fail2ban/action.d/tell.conf", action);
    write("logs/first/good.log", "");
    let lan = Lan::new().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_blocker"));
    let mut agent = Agent::new(&scratch, &lan.host, Backend::Nftables);
    agent.tables(&format!("[import]\nfail2ban = '{}'", at("fail2ban").display()));
    agent.start(binary).unwrap();
    let fail = |log: &str, address: &str| {
        fs::create_dir_all(at(log).parent().unwrap()).unwrap();
        let mut file = fs::File::options().append(true).create(true).open(at(log)).unwrap();
        file.write_all(format!("no login from {address}\n").repeat(2).as_bytes()).unwrap();
    };
    let banned = |expected: &[&str]| {
        let found = wait_for(Duration::from_secs(5), || {
            let mut found = agent.banned(binary).ok()?;
            found.sort();
            (found == expected).then_some(())
        });
        assert!(found.is_some(), "{expected:?}: {:?}\n{}", agent.banned(binary), agent.log());
    };
    fail("logs/first/good.log", "203.0.113.1");
    fail("logs/second/bad.log", "203.0.113.2");
    banned(&["203.0.113.1", "203.0.113.2"]);
    let line = wait_for(Duration::from_secs(5), || {
        fs::read_to_string(&told).ok().filter(|text| text.ends_with('\n'))
    });
    assert_eq!(line.as_deref(), Some("203.0.113.1 2\n"), "{}", agent.log());

    write("fail2ban/filter.d/bad.conf", "[Definition]\nfailregex = ^no (login from <HOST>$\n");
    let said = agent.json(binary, &["reload"]).unwrap().to_string();
    assert!(said.contains("filter.d/bad.conf:2:13") && said.contains("the jail is not in force"), "{said}");
    fail("logs/first/good.log", "203.0.113.3");
    fail("logs/second/bad.log", "203.0.113.4");
    banned(&["203.0.113.1", "203.0.113.2", "203.0.113.3"]);

    write("fail2ban/filter.d/bad.conf", "[Definition]\nfailregex = ^no login from <HOST>$\n");
    agent.cli(binary, &["reload"]).unwrap();
    fail("logs/second/bad.log", "203.0.113.5");
    banned(&["203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.5"]);
}

/// Half of a failure, a reload that changes the filter's file and not the filter, the other half.
#[test]
fn a_failure_that_a_reload_cuts_in_two_bans() {
    const NAME: &str = "a_failure_that_a_reload_cuts_in_two_bans";
    if let Some(reason) = missing() {
        return skipped(NAME, &reason);
    }
    let scratch = Scratch::new("halves").unwrap();
    let at = |name: &str| scratch.join(name);
    let filter = "[Definition]\nprefregex = ^ d\\[<F-MLFID>\\d+</F-MLFID>\\]: <F-CONTENT>.+</F-CONTENT>$\n\
                  failregex = ^<F-NOFAIL>connect</F-NOFAIL> from <ADDR>$\n  ^wrong password$\n";
    fs::create_dir_all(at("fail2ban/filter.d")).unwrap();
    fs::write(at("fail2ban/filter.d/d.conf"), filter).unwrap();
    let jail = format!(
        "[d]\nenabled = true\nfilter = d\nmaxretry = 1\nlogpath = {}\naction = iptables-allports\n",
        at("d.log").display()
    );
    fs::write(at("fail2ban/jail.local"), &jail).unwrap();
    fs::write(at("d.log"), "").unwrap();
    let say = |text: &str| {
        let now =
            String::from_utf8(Command::new("date").arg("+%b %d %H:%M:%S").output().unwrap().stdout).unwrap();
        let mut log = fs::File::options().append(true).open(at("d.log")).unwrap();
        log.write_all(format!("{} d[1]: {text}\n", now.trim_end()).as_bytes()).unwrap();
    };
    let lan = Lan::new().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_blocker"));
    let mut agent = Agent::new(&scratch, &lan.host, Backend::Nftables);
    agent.tables(&format!("[import]\nfail2ban = '{}'", at("fail2ban").display()));
    agent.start(binary).unwrap();
    say("connect from 203.0.113.7");
    let read = || {
        let status = agent.json(binary, &["status"]).ok()?;
        (status["sources"][0]["bytes"].as_u64()? > 0).then_some(())
    };
    assert!(wait_for(Duration::from_secs(5), read).is_some(), "{}", agent.log());
    fs::write(at("fail2ban/filter.d/d.conf"), format!("# A remark.\n\n{filter}")).unwrap();
    fs::write(at("fail2ban/jail.local"), format!("{jail}bantime = 1h\n")).unwrap();
    agent.cli(binary, &["reload"]).unwrap();
    say("wrong password");
    let banned =
        wait_for(Duration::from_secs(5), || (agent.banned(binary).ok()? == ["203.0.113.7"]).then_some(()));
    assert!(banned.is_some(), "{:?}\n{}", agent.banned(binary), agent.log());
}
