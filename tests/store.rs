//! The ledger on disk: what was acknowledged survives SIGKILL, what cannot be read is said and moved aside.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use blocker::{
    engine::{Change, Engine, Input, Kept, Reading, SourceId},
    filter::{Filter, FilterSpec, Pattern, Place},
    ledger::{Ban, Offence, OffenceChange, Origin},
    net::{Prefix, Scope},
    policy::{Jail, Policy, SourceSpec},
    store::{Store, Stored},
    time::{Timestamp, Until},
};

const KILLS: u32 = 60;

fn ban(number: u32) -> Ban {
    Ban {
        prefix: Prefix::host(std::net::Ipv4Addr::from_bits(0xcb00_7100 + number).into()),
        scope: Scope::ALL,
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
    record(&mut store, &[Change::Unban { prefix: ban(1).prefix, scope: Scope::ALL }]);
    let engine = Engine::new(Timestamp::EPOCH, Policy::default(), Kept::default());
    let positions = [("/var/log/a".to_owned(), "{}".to_owned())];
    store.keep(&positions, &engine.counted()).unwrap();
    drop(store);
    let (mut store, stored) = reopen(folder.path());
    assert_eq!((stored.bans, stored.allow), (vec![ban(2)], vec![prefix]));
    assert_eq!(stored.read.positions, positions);
    assert_eq!(
        store.history(1).unwrap(),
        [(Timestamp::from_secs(1), Change::Unban { prefix: ban(1).prefix, scope: Scope::ALL })]
    );
    record(&mut store, &[Change::Flush, Change::Disallow { prefix }]);
    store.rewrite([Change::Ban(ban(9))], Vec::new(), &[], &engine.counted()).unwrap();
    drop(store);
    let (_, stored) = reopen(folder.path());
    assert_eq!((stored.bans, stored.allow), (vec![ban(9)], vec![]));
}

/// An engine that has counted some failures of `jail`.
fn counting(failures: u8) -> Engine {
    let pattern = Pattern { text: "^failed from <ADDR>$".to_owned(), at: Place::default() };
    let filter = Filter::compile(FilterSpec { failregex: vec![pattern], ..FilterSpec::default() }).unwrap();
    let (sources, filters) = (vec![SourceId(0)], vec![Arc::new(filter)]);
    let jail = Jail { name: "sshd".into(), sources, filters, maxretry: 5, ..Jail::default() };
    let sources = vec![SourceSpec::File("/log".into())];
    let policy = Policy { jails: vec![jail], sources, ..Policy::default() };
    let mut engine = Engine::new(Timestamp::EPOCH, policy, Kept::default());
    for last in 0..failures {
        let block = format!("failed from 203.0.113.{last}\n");
        let input = Input::Lines { source: SourceId(0), block: block.as_bytes(), reading: Reading::Live };
        engine.handle(Timestamp::EPOCH, input);
    }
    engine
}

fn positions() -> [(String, String); 2] {
    ["/var/log/a", "/var/log/b"].map(|name| (name.to_owned(), format!("{{\"v\":1,\"of\":\"{name}\"}}")))
}

#[test]
fn positions_and_what_was_counted_are_kept_together_and_only_changes_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = reopen(folder.path());
    let mut engine = counting(100);
    assert!(engine.has_news());
    store.keep(&positions(), &engine.counted()).unwrap();
    engine.kept();
    assert!(!engine.has_news());
    // Of 100 addresses one fails again: one page of 32 changes.
    let input =
        Input::Lines { source: SourceId(0), block: b"failed from 203.0.113.7\n", reading: Reading::Live };
    engine.handle(Timestamp::from_secs(1), input);
    assert_eq!(engine.counted().changed_pages().count(), 1);
    store.keep(&positions()[..1], &engine.counted()).unwrap();
    engine.kept();
    drop(store);
    let (_, stored) = reopen(folder.path());
    assert_eq!(stored.read.positions, positions()[..1]);
    let (head, pages) = stored.read.counted.unwrap();
    assert_eq!((head, pages), (engine.counted().head(), all_pages(&engine)));
}

fn all_pages(engine: &Engine) -> Vec<Vec<u8>> {
    let counted = engine.counted();
    counted.all_pages().filter_map(|page| counted.page(page)).collect()
}

/// With the right checksum.
const NEWER: &str = "UPDATE counted SET head = '{\"v\":2,\"new\":true}', sum = 6236708105955447323";

#[test]
fn what_is_not_intact_of_it_is_refused_as_a_whole_and_said() {
    // What somebody or something does to the tables, and what is said.
    let cases = [
        (
            "UPDATE position SET position = replace(position, '1', '2') WHERE file = '/var/log/a'",
            "1 of 2 read positions are damaged",
        ),
        ("UPDATE position SET position = x'ff00'", "a read position is no text"),
        ("UPDATE position SET sum = NULL", "2 of 2 read positions are damaged"),
        (
            "DELETE FROM position WHERE file = '/var/log/b'",
            "0 of 1 read positions are damaged, 2 were written",
        ),
        ("UPDATE page SET pairs = zeroblob(9) WHERE id = 1", "counted failures are damaged"),
        ("UPDATE page SET id = id + 1 WHERE id = 3", "counted failures are damaged"),
        ("DELETE FROM page WHERE id = 2", "counted failures are missing"),
        ("UPDATE counted SET head = replace(head, 'sshd', 'sshx')", "its head is damaged"),
        (NEWER, "has form 2, written by a newer blocker"),
    ];
    for (damage, said) in cases {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = reopen(folder.path());
        store.keep(&positions(), &counting(100).counted()).unwrap();
        record(&mut store, &[Change::Ban(ban(1))]);
        drop(store);
        let connection = rusqlite::Connection::open(folder.path().join("blocker.db")).unwrap();
        assert!(connection.execute(damage, []).unwrap() > 0, "{damage}");
        drop(connection);
        let (mut store, stored) = reopen(folder.path());
        let refused = stored.read.refused.unwrap_or_default();
        assert!(refused.contains(said) && refused.contains("first start"), "{damage}: {refused:?}");
        assert!(stored.read.positions.is_empty() && stored.read.counted.is_none(), "{damage}");
        // The bans are another matter.
        assert_eq!((stored.bans.len(), stored.notes.len()), (1, 0), "{damage}");
        // What is kept next replaces all of it.
        store.keep(&positions(), &counting(3).counted()).unwrap();
        drop(store);
        let (_, stored) = reopen(folder.path());
        assert_eq!((stored.read.refused, stored.read.positions), (None, positions().to_vec()), "{damage}");
    }
}

#[test]
fn a_commit_that_is_refused_leaves_the_last_one_whole_and_the_next_has_everything() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = reopen(folder.path());
    let mut engine = counting(40);
    store.keep(&positions()[..1], &engine.counted()).unwrap();
    engine.kept();
    let (head, pages) = (engine.counted().head(), all_pages(&engine));
    let connection = || rusqlite::Connection::open(folder.path().join("blocker.db")).unwrap();
    let refuse = "CREATE TRIGGER full BEFORE INSERT ON counted BEGIN SELECT RAISE(ABORT, 'disk full'); END";
    connection().execute(refuse, []).unwrap();
    let input =
        Input::Lines { source: SourceId(0), block: b"failed from 203.0.113.7\n", reading: Reading::Live };
    engine.handle(Timestamp::from_secs(1), input);
    for _again in 0..2 {
        let refused = store.keep(&positions(), &engine.counted()).unwrap_err().to_string();
        assert!(refused.contains("disk full"), "{refused}");
    }
    drop(store);
    let (mut store, stored) = reopen(folder.path());
    assert_eq!(stored.read.positions, positions()[..1]);
    assert_eq!(stored.read.counted, Some((head, pages)));
    assert!(store.keep(&positions(), &engine.counted()).is_err());
    connection().execute("DROP TRIGGER full", []).unwrap();
    store.keep(&positions(), &engine.counted()).unwrap();
    drop(store);
    let (_, stored) = reopen(folder.path());
    assert_eq!(stored.read.positions, positions());
    assert_eq!(stored.read.counted, Some((engine.counted().head(), all_pages(&engine))));
}

#[test]
fn positions_of_layout_3_are_taken_over_with_nothing_counted() {
    let folder = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(folder.path().join("blocker.db")).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE ban(prefix TEXT PRIMARY KEY, ban TEXT NOT NULL) WITHOUT ROWID;
             CREATE TABLE allow(prefix TEXT PRIMARY KEY) WITHOUT ROWID;
             CREATE TABLE position(file TEXT PRIMARY KEY, position TEXT NOT NULL) WITHOUT ROWID;
             CREATE TABLE history(id INTEGER PRIMARY KEY, at INTEGER NOT NULL, change TEXT NOT NULL);
             CREATE TABLE offence(prefix TEXT NOT NULL, jail TEXT NOT NULL, bans INTEGER NOT NULL, until INTEGER,
                 PRIMARY KEY(prefix, jail)) WITHOUT ROWID;
             CREATE TABLE imported(path TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
             INSERT INTO position VALUES ('/var/log/a', '{\"v\":1}');
             PRAGMA user_version = 3;",
        )
        .unwrap();
    drop(connection);
    let (mut store, stored) = reopen(folder.path());
    assert_eq!(stored.read.positions, [("/var/log/a".to_owned(), "{\"v\":1}".to_owned())]);
    assert_eq!((stored.read.counted, stored.read.history, stored.read.refused), (None, 0, None));
    store.keep(&positions(), &counting(3).counted()).unwrap();
    drop(store);
    assert_eq!(reopen(folder.path()).1.read.positions, positions());
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
    let engine = Engine::new(Timestamp::EPOCH, Policy::default(), Kept::default());
    store.rewrite([], vec![b.clone()], &[], &engine.counted()).unwrap();
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
        let recent = store.recent_bans(Timestamp::from_micros(4), 0).unwrap();
        let recent: Vec<Prefix> = recent.iter().map(|ban| ban.prefix).collect();
        assert_eq!(recent, [ban(1).prefix, ban(2).prefix, ban(1).prefix]);
        assert_eq!(store.recent_bans(Timestamp::from_micros(5), 0).unwrap(), []);
    }
}

#[test]
fn a_prefix_is_kept_with_all_its_scopes_and_an_older_ledger_is_read_as_on_all_ports() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = reopen(folder.path());
    drop(store);
    // Back to layout 4, as the version before wrote it.
    let connection = rusqlite::Connection::open(folder.path().join("blocker.db")).unwrap();
    connection
        .execute_batch(
            "DROP TABLE ban; CREATE TABLE ban(prefix TEXT PRIMARY KEY, ban TEXT NOT NULL) WITHOUT ROWID;
             PRAGMA user_version = 4;",
        )
        .unwrap();
    let json = serde_json::to_string(&ban(1)).unwrap();
    assert!(!json.contains("scope"), "{json}");
    connection.execute("INSERT INTO ban VALUES ('203.0.113.1', ?1)", [json]).unwrap();
    drop(connection);
    let (mut store, stored) = reopen(folder.path());
    assert_eq!((stored.bans, stored.notes), (vec![ban(1)], Vec::new()));
    let on = |ports: &str| Ban { scope: ports.parse().unwrap(), ..ban(1) };
    let unban = |ports: &str| Change::Unban { prefix: ban(1).prefix, scope: ports.parse().unwrap() };
    record(&mut store, &[Change::Ban(on("22")), Change::Ban(on("80,443")), Change::Ban(on("22"))]);
    drop(store);
    let (mut store, stored) = reopen(folder.path());
    assert_eq!(stored.bans, [on("22"), on("80,443"), ban(1)]);
    record(&mut store, &[unban("22"), unban("23"), unban("all")]);
    drop(store);
    let (store, stored) = reopen(folder.path());
    assert_eq!(stored.bans, [on("80,443")]);
    let served = store.served(Timestamp::EPOCH, 0).unwrap();
    let served: Vec<(Prefix, String)> =
        served.into_iter().map(|(prefix, scope, ..)| (prefix, scope.to_string())).collect();
    // The one on all ports began before this history.
    assert_eq!(served, [(ban(1).prefix, "22/tcp".to_owned())]);
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
