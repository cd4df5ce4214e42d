//! The ledger on disk: what was acknowledged survives SIGKILL, what cannot be read is said and moved aside.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use blocker::{
    engine::Change,
    ledger::{Ban, Origin},
    net::Prefix,
    store::Store,
    time::{Timestamp, Until},
};

const KILLS: u32 = 60;

fn ban(number: u32) -> Ban {
    Ban {
        prefix: Prefix::host(std::net::Ipv4Addr::from_bits(0xcb00_7100 + number).into()),
        origin: Origin::Jail("sshd".into()),
        since: Timestamp::from_secs(number.into()),
        until: Until::Forever,
        failures: 5,
        count: 1,
        reason: "a 'quoted' reason".to_owned(),
    }
}

fn record(store: &mut Store, changes: &[Change]) {
    store.record(changes, &[], Timestamp::from_secs(1)).unwrap();
    store.sync().unwrap();
}

#[test]
fn what_was_recorded_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, stored) = Store::open(folder.path()).unwrap();
    assert!(stored.bans.is_empty() && stored.notes.is_empty());
    let prefix: Prefix = "2001:db8::/64".parse().unwrap();
    record(&mut store, &[Change::Ban(ban(1)), Change::Ban(ban(2)), Change::Allow { prefix }]);
    record(&mut store, &[Change::Unban { prefix: ban(1).prefix }]);
    store.save_positions(&[("/var/log/a".to_owned(), "{}".to_owned())]).unwrap();
    drop(store);
    let (mut store, stored) = Store::open(folder.path()).unwrap();
    assert_eq!((stored.bans, stored.allow), (vec![ban(2)], vec![prefix]));
    assert_eq!(stored.positions, [("/var/log/a".to_owned(), "{}".to_owned())]);
    assert_eq!(
        store.history(1).unwrap(),
        [(Timestamp::from_secs(1), Change::Unban { prefix: ban(1).prefix })]
    );
    record(&mut store, &[Change::Flush, Change::Disallow { prefix }]);
    store.rewrite(&[Change::Ban(ban(9))], Vec::new()).unwrap();
    drop(store);
    let (_, stored) = Store::open(folder.path()).unwrap();
    assert_eq!((stored.bans, stored.allow), (vec![ban(9)], vec![]));
}

#[test]
fn a_second_agent_is_told_who_holds_the_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let _held = Store::open(folder.path()).unwrap();
    let refused = Store::open(folder.path()).unwrap_err().to_string();
    assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
    assert!(refused.contains("state_dir"), "{refused}");
}

#[test]
fn a_damaged_ledger_is_moved_aside_and_a_newer_one_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("blocker.db"), "this is no database, whatever its name says\n".repeat(100))
        .unwrap();
    let (mut store, stored) = Store::open(folder.path()).unwrap();
    assert!(stored.notes[0].contains("blocker.db.corrupt-1"), "{:?}", stored.notes);
    assert!(folder.path().join("blocker.db.corrupt-1").exists());
    record(&mut store, &[Change::Ban(ban(1))]);
    drop(store);

    let connection = rusqlite::Connection::open(folder.path().join("blocker.db")).unwrap();
    connection.execute("UPDATE ban SET ban = '{\"prefix\": 5}'", []).unwrap();
    drop(connection);
    let (store, stored) = Store::open(folder.path()).unwrap();
    assert!(stored.notes[0].contains("blocker.db.corrupt-2"), "{:?}", stored.notes);
    drop(store);

    let connection = rusqlite::Connection::open(folder.path().join("blocker.db")).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let refused = Store::open(folder.path()).unwrap_err().to_string();
    assert!(refused.contains("newer") && refused.contains("99"), "{refused}");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let refused = Store::open(&folder.path().join("file/state")).unwrap_err().to_string();
    assert!(refused.contains("file/state") && refused.contains("state_dir"), "{refused}");
}

/// Not a test of its own: the process that the next one kills, run by name with this variable set.
#[test]
fn writer() {
    let Some(folder) = std::env::var_os("BLOCKER_TEST_WRITER") else { return };
    let (mut store, stored) = Store::open(Path::new(&folder)).unwrap();
    let first = stored.bans.len() as u32;
    for number in first..first + 10_000 {
        record(&mut store, &[Change::Ban(ban(number))]);
        println!("acknowledged {number}");
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_agent_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for kill in 0..KILLS {
        let mut writer = Command::new(std::env::current_exe().unwrap());
        writer.args(["--exact", "writer", "--nocapture"]).env("BLOCKER_TEST_WRITER", folder.path());
        let mut writer = writer.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = BufReader::new(writer.stdout.take().unwrap());
        let reading = std::thread::spawn(move || {
            let numbers = stdout.lines().map_while(Result::ok);
            numbers.filter_map(|line| line.split_once("acknowledged ")?.1.parse::<u32>().ok()).last()
        });
        std::thread::sleep(Duration::from_millis(20 + u64::from(kill) % 17));
        writer.kill().unwrap();
        writer.wait().unwrap();
        if let Some(last) = reading.join().unwrap() {
            acknowledged = last + 1;
        }
        let (_, stored) = Store::open(folder.path()).unwrap();
        let held = stored.bans.len() as u32;
        // One more may be on the disk than was acknowledged; none fewer.
        assert!(
            held == acknowledged || held == acknowledged + 1,
            "{held} held of {acknowledged} acknowledged"
        );
        assert!(stored.notes.is_empty(), "{:?}", stored.notes);
        acknowledged = held;
    }
    assert!(acknowledged > KILLS, "the writer hardly wrote: {acknowledged}");
}
