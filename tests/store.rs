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
    ledger::{Ban, Offence, OffenceChange, Origin},
    net::Prefix,
    store::{Store, Stored},
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

/// Opens a store that this process has just closed. Another test's child may hold the lock a moment longer, between
/// its fork and its exec.
fn reopen(folder: &Path) -> (Store, Stored) {
    let opened = xtask::lab::wait_for(Duration::from_secs(5), || Store::open(folder).ok());
    opened.unwrap_or_else(|| Store::open(folder).unwrap())
}

fn record(store: &mut Store, changes: &[Change]) {
    store.record(changes, &[], Timestamp::from_secs(1)).unwrap();
    store.sync().unwrap();
}

#[test]
fn what_was_recorded_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, stored) = reopen(folder.path());
    assert!(stored.bans.is_empty() && stored.notes.is_empty());
    let prefix: Prefix = "2001:db8::/64".parse().unwrap();
    record(&mut store, &[Change::Ban(ban(1)), Change::Ban(ban(2)), Change::Allow { prefix }]);
    record(&mut store, &[Change::Unban { prefix: ban(1).prefix }]);
    store.save_positions(&[("/var/log/a".to_owned(), "{}".to_owned())]).unwrap();
    drop(store);
    let (mut store, stored) = reopen(folder.path());
    assert_eq!((stored.bans, stored.allow), (vec![ban(2)], vec![prefix]));
    assert_eq!(stored.positions, [("/var/log/a".to_owned(), "{}".to_owned())]);
    assert_eq!(
        store.history(1).unwrap(),
        [(Timestamp::from_secs(1), Change::Unban { prefix: ban(1).prefix })]
    );
    record(&mut store, &[Change::Flush, Change::Disallow { prefix }]);
    store.rewrite(&[Change::Ban(ban(9))], Vec::new()).unwrap();
    drop(store);
    let (_, stored) = reopen(folder.path());
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
    let (mut store, stored) = reopen(folder.path());
    assert!(stored.notes[0].contains("blocker.db.corrupt-1"), "{:?}", stored.notes);
    assert!(folder.path().join("blocker.db.corrupt-1").exists());
    record(&mut store, &[Change::Ban(ban(1))]);
    drop(store);

    let connection = rusqlite::Connection::open(folder.path().join("blocker.db")).unwrap();
    connection.execute("UPDATE ban SET ban = '{\"prefix\": 5}'", []).unwrap();
    drop(connection);
    let (store, stored) = reopen(folder.path());
    assert!(stored.notes[0].contains("blocker.db.corrupt-2"), "{:?}", stored.notes);
    drop(store);

    let connection = rusqlite::Connection::open(folder.path().join("blocker.db")).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let refused = Store::open(folder.path()).unwrap_err().to_string();
    assert!(refused.contains("newer") && refused.contains("99"), "{refused}");
}

#[test]
fn offences_are_read_back_and_rewritten() {
    let folder = tempfile::tempdir().unwrap();
    let offence = |number, jail: &str, bans, until| Offence {
        prefix: ban(number).prefix,
        jail: jail.into(),
        bans,
        until,
    };
    let open = || reopen(folder.path());
    let end = Until::At(Timestamp::from_micros(1_795_000_000_000_001));
    let (a, b, c) = (offence(1, "a", 1, end), offence(1, "b", 7, Until::Forever), offence(2, "a", 2, end));
    let set = |offence: &Offence| OffenceChange::Set(offence.clone());
    let (mut store, _) = open();
    let again = Offence { bans: 9, ..a.clone() };
    store.record(&[], &[set(&a), set(&b), set(&c), set(&again)], Timestamp::EPOCH).unwrap();
    let forget = OffenceChange::Forget { prefix: b.prefix, jail: "b".into() };
    store.record(&[], &[forget], Timestamp::EPOCH).unwrap();
    drop(store);
    let (mut store, stored) = open();
    assert_eq!(stored.offences, [again, c.clone()]);
    store.rewrite(&[], vec![b.clone()]).unwrap();
    drop(store);
    let (mut store, stored) = open();
    assert_eq!(stored.offences, [b]);
    store.record(&[], &[OffenceChange::ForgetAll, set(&c)], Timestamp::EPOCH).unwrap();
    drop(store);
    assert_eq!(open().1.offences, [c]);
}

#[test]
fn an_older_ledger_tells_from_its_history_who_was_banned() {
    let folder = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(folder.path().join("blocker.db")).unwrap();
    let json = |number: u32| {
        // As layout 1 wrote it: no `count`.
        let mut json = serde_json::to_value(Change::Ban(ban(number))).unwrap();
        json["ban"].as_object_mut().unwrap().remove("count");
        json["ban"]["until"] = serde_json::json!({ "at": number * 10 });
        json.to_string()
    };
    connection
        .execute_batch(
            "CREATE TABLE ban(prefix TEXT PRIMARY KEY, ban TEXT NOT NULL) WITHOUT ROWID;
             CREATE TABLE allow(prefix TEXT PRIMARY KEY) WITHOUT ROWID;
             CREATE TABLE position(file TEXT PRIMARY KEY, position TEXT NOT NULL) WITHOUT ROWID;
             CREATE TABLE history(id INTEGER PRIMARY KEY, at INTEGER NOT NULL, change TEXT NOT NULL);
             PRAGMA user_version = 1;",
        )
        .unwrap();
    for change in [json(1), json(2), json(1), "\"flush\"".to_owned(), "no json".to_owned()] {
        connection.execute("INSERT INTO history(at, change) VALUES (5, ?1)", [change]).unwrap();
    }
    let live = serde_json::from_str::<serde_json::Value>(&json(1)).unwrap()["ban"].to_string();
    connection.execute("INSERT INTO ban VALUES ('203.0.113.1', ?1)", [live]).unwrap();
    drop(connection);
    for _twice in 0..2 {
        let (store, stored) = reopen(folder.path());
        assert_eq!((stored.bans.len(), stored.bans[0].count, stored.notes.len()), (1, 0, 0));
        let shown: Vec<_> =
            stored.offences.iter().map(|known| (known.prefix, known.bans, known.until)).collect();
        let until = |number: i64| Until::At(Timestamp::from_micros(number * 10));
        assert_eq!(shown, [(ban(1).prefix, 2, until(1)), (ban(2).prefix, 1, until(2))]);
        let recent = store.recent_bans(Timestamp::from_micros(4)).unwrap();
        let recent: Vec<Prefix> = recent.iter().map(|ban| ban.prefix).collect();
        assert_eq!(recent, [ban(1).prefix, ban(2).prefix, ban(1).prefix]);
        assert_eq!(store.recent_bans(Timestamp::from_micros(5)).unwrap(), []);
    }
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
        let (began, begun) = std::sync::mpsc::channel();
        let reading = std::thread::spawn(move || {
            let lines = stdout.lines().map_while(Result::ok);
            let numbers = lines.filter_map(|line| line.split_once("acknowledged ")?.1.parse::<u32>().ok());
            numbers
                .inspect(|_| {
                    // Only the first one is waited for.
                    let _gone = began.send(());
                })
                .last()
        });
        // A busy machine may take long to start it; the moment of the kill is what varies.
        begun.recv_timeout(Duration::from_secs(20)).unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(kill) % 17));
        writer.kill().unwrap();
        writer.wait().unwrap();
        if let Some(last) = reading.join().unwrap() {
            acknowledged = last + 1;
        }
        let (_, stored) = reopen(folder.path());
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
