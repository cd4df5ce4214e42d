//! The ledger on disk: bans, the operators' allowlist, a bounded history, read positions and what was counted up to
//! them, in SQLite.
//!
//! One call to [`Store::record`] is one transaction, which outlives the process at once; [`Store::sync`] makes it
//! outlive the machine. Between the two the agent enforces, so that no packet waits for a disk. The store knows nothing
//! of why a change is made, nor of the kernel. `sqlite3 blocker.db` reads it.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, params};
use rustix::fs::{FlockOperation, flock};

use crate::{
    engine::{Change, Counted},
    ledger::{Ban, Offence, OffenceChange, Origin},
    net::Prefix,
    time::{Timestamp, Until},
};

mod fail2ban;
mod reading;

pub use fail2ban::{
    FORMER_BANS_MAX, FormerBan, FormerRules, TakenOver, read as read_former_bans, taken_over,
};

use reading::Written;
pub use reading::{Read, Served};

/// The version of the tables, in SQLite's `user_version`.
const SCHEMA_VERSION: i64 = 5;
/// Layout 1.
const TABLES: &str = "
    CREATE TABLE ban(prefix TEXT PRIMARY KEY, ban TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE allow(prefix TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE position(file TEXT PRIMARY KEY, position TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE history(id INTEGER PRIMARY KEY, at INTEGER NOT NULL, change TEXT NOT NULL);";
/// What layout 2 adds: who was banned before. `until` is in microseconds since the epoch, NULL without end. An older
/// ledger knows it from its history.
const OFFENCES: &str = "
    CREATE TABLE offence(prefix TEXT NOT NULL, jail TEXT NOT NULL, bans INTEGER NOT NULL, until INTEGER,
        PRIMARY KEY(prefix, jail)) WITHOUT ROWID;
    INSERT INTO offence
        SELECT change ->> '$.ban.prefix', change ->> '$.ban.origin.jail', count(*), max(change ->> '$.ban.until.at')
        FROM history WHERE json_valid(change) AND change ->> '$.ban.origin.jail' IS NOT NULL
        GROUP BY 1, 2;";
/// What layout 3 adds: the databases that bans were taken over from, once each.
const IMPORTED: &str = "
    CREATE TABLE imported(path TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;";
/// What layout 5 adds: a prefix may be banned in several scopes, each of them `all` or a list of ports.
const SCOPES: &str = "
    ALTER TABLE ban RENAME TO ban_on_all_ports;
    CREATE TABLE ban(prefix TEXT NOT NULL, scope TEXT NOT NULL, ban TEXT NOT NULL, PRIMARY KEY(prefix, scope))
        WITHOUT ROWID;
    INSERT INTO ban SELECT prefix, 'all', ban FROM ban_on_all_ports;
    DROP TABLE ban_on_all_ports;";
/// The steps from each layout to the next.
const STEPS: [&str; SCHEMA_VERSION as usize] = [TABLES, OFFENCES, IMPORTED, reading::TABLES, SCOPES];
/// Rows of history kept; the oldest go first.
pub const HISTORY_MAX: i64 = 100_000;
/// How many recorded changes pass between two prunings of the history.
const PRUNE_EVERY: u32 = 1_000;
/// Bans that [`Store::recent_bans`] returns at most.
pub const RECENT_MAX: i64 = 50_000;
const FILE: &str = "blocker.db";
const LOCK: &str = "blocker.lock";

/// Why the ledger on disk cannot be used.
#[derive(Debug)]
pub struct StoreError {
    /// What was tried, on which path.
    pub what: String,
    /// What came of it.
    pub cause: String,
    /// What the operator can do; may be empty.
    pub hint: String,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.cause)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

impl std::error::Error for StoreError {}

/// What a store held when it was opened.
#[derive(Debug, Default)]
pub struct Stored {
    /// Every live ban, those that are over by now included.
    pub bans: Vec<Ban>,
    /// What operators put on the allowlist.
    pub allow: Vec<Prefix>,
    /// Who was banned before.
    pub offences: Vec<Offence>,
    /// Read positions, and what was counted up to them.
    pub read: Read,
    /// What the operator should know of the opening.
    pub notes: Vec<String>,
}

/// The open ledger; one agent at a time holds it.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
    /// The write-ahead log; SQLite keeps the same file for as long as the connection is open.
    wal: Option<fs::File>,
    since_pruned: u32,
    written: Written,
    _lock: fs::File,
}

impl Store {
    /// Opens or makes the ledger in `folder`. A file that is no database, or a damaged one, is moved aside and said
    /// in the notes: an agent that does not start protects nobody.
    ///
    /// # Errors
    /// When the folder cannot be made or written, another agent holds it, or a newer version wrote it.
    pub fn open(folder: &Path) -> Result<(Self, Stored), StoreError> {
        let failed = |what: &str, hint: &str| {
            let (what, hint) = (format!("{what} {}", folder.display()), hint.to_owned());
            move |error: io::Error| StoreError { what, cause: error.to_string(), hint }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(
            "make the state folder",
            "run as root, or set `state_dir` to a folder of yours",
        ))?;
        let lock = lock(folder)?;
        let path = folder.join(FILE);
        let mut notes = Vec::new();
        let (connection, stored) = match Self::load(&path) {
            Ok(loaded) => loaded,
            Err(Unusable::Damaged(why)) => {
                let aside = move_aside(&path).map_err(failed(
                    "move a damaged ledger aside in",
                    "free the disk, or remove blocker.db",
                ))?;
                notes.push(format!(
                    "the ledger was damaged ({why}) and is now {}; starting with an empty one, bans still in the kernel are lifted",
                    aside.display()
                ));
                Self::load(&path).map_err(|unusable| unusable.into_error(&path))?
            }
            Err(unusable) => return Err(unusable.into_error(&path)),
        };
        let stored = Stored { notes, ..stored };
        let store = Self {
            connection,
            path,
            wal: None,
            since_pruned: PRUNE_EVERY,
            written: Written::unknown(),
            _lock: lock,
        };
        Ok((store, stored))
    }

    fn load(path: &Path) -> Result<(Connection, Stored), Unusable> {
        // SQLite makes the file with the umask's permissions; these are the ledger's own business.
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| Unusable::Refused(error.to_string()))?;
        let connection = Connection::open(path)?;
        // With a write-ahead log and normal synchronisation a commit is in the page cache when it returns, and never
        // torn; what `full` adds is an fsync of that log (sqlite.org/pragma.html#pragma_synchronous), which `sync` does
        // when the time is right.
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "normal")?;
        let version = connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))?;
        match usize::try_from(version).ok().and_then(|version| STEPS.get(version..)) {
            Some([]) => {}
            Some(steps) => migrate(&connection, steps)?,
            None => return Err(Unusable::Newer(version)),
        }
        let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Err(Unusable::Damaged(check));
        }
        let stored = Self::read(&connection)?;
        Ok((connection, stored))
    }

    fn read(connection: &Connection) -> Result<Stored, Unusable> {
        let mut stored = Stored::default();
        // Many bans of few jails.
        let mut jails = Jails::default();
        let count = connection.query_row("SELECT count(*) FROM ban", [], |row| row.get::<_, i64>(0))?;
        stored.bans.reserve_exact(usize::try_from(count).unwrap_or(0));
        let mut bans = connection.prepare("SELECT ban FROM ban ORDER BY prefix, scope")?;
        let mut rows = bans.query([])?;
        while let Some(row) = rows.next()? {
            let json = row.get_ref(0)?;
            let json =
                json.as_str().map_err(|error| Unusable::Damaged(format!("a ban is no text: {error}")))?;
            let mut ban: Ban = serde_json::from_str(json)
                .map_err(|error| Unusable::Damaged(format!("{error} in {json:?}")))?;
            if let Origin::Jail(name) = &mut ban.origin {
                *name = jails.one(name);
            }
            stored.bans.push(ban);
        }
        let mut allow = connection.prepare("SELECT prefix FROM allow ORDER BY prefix")?;
        for text in allow.query_map([], |row| row.get::<_, String>(0))? {
            stored.allow.push(text?.parse().map_err(Unusable::Damaged)?);
        }
        let mut offences = connection.prepare("SELECT prefix, jail, bans, until FROM offence")?;
        let rows = offences.query_map([], |row| {
            let prefix: String = row.get(0)?;
            Ok((prefix, row.get::<_, String>(1)?, row.get::<_, u32>(2)?, row.get::<_, Option<i64>>(3)?))
        })?;
        for row in rows {
            let (prefix, jail, bans, until) = row?;
            let prefix = prefix.parse().map_err(Unusable::Damaged)?;
            let jail = jails.one(&jail);
            let until = until.map_or(Until::Forever, |end| Until::At(Timestamp::from_micros(end)));
            stored.offences.push(Offence { prefix, jail, bans, until });
        }
        stored.read = reading::read(connection)?;
        Ok(stored)
    }

    /// Puts everything recorded so far on the disk, against power loss.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        self.syncer()?.sync()
    }

    /// What [`Self::sync`] does, for another thread to do: a disk may take long, and lines and packets do not wait.
    ///
    /// # Errors
    /// When the write-ahead log cannot be opened.
    pub fn syncer(&mut self) -> Result<Syncer, StoreError> {
        let path = self.path.with_file_name(format!("{FILE}-wal"));
        let open = || match &self.wal {
            Some(wal) => wal.try_clone(),
            None => fs::File::open(&path),
        };
        let wal = open().map_err(|error| not_on_disk(&path, &error))?;
        if self.wal.is_none() {
            self.wal = wal.try_clone().ok();
        }
        Ok(Syncer { wal, path })
    }

    /// Writes these changes, in order, in one transaction that a killed process has not lost; see [`Self::sync`].
    ///
    /// # Errors
    /// When the disk refuses; then none of them is written.
    pub fn record(
        &mut self,
        changes: &[Change],
        offences: &[OffenceChange],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.since_pruned =
            self.since_pruned.saturating_add(u32::try_from(changes.len()).unwrap_or(u32::MAX));
        let prune = self.since_pruned >= PRUNE_EVERY;
        self.transaction("record a change in", |transaction| {
            for change in changes {
                apply(transaction, change)?;
                let json = serde_json::to_string(change)
                    .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
                transaction
                    .prepare_cached("INSERT INTO history(at, change) VALUES (?1, ?2)")?
                    .execute(params![now.as_micros(), json])?;
            }
            offences.iter().try_for_each(|offence| remember(transaction, offence))?;
            if prune {
                transaction.execute(
                    "DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - ?1",
                    [HISTORY_MAX],
                )?;
            }
            Ok(())
        })?;
        if prune {
            self.since_pruned = 0;
        }
        Ok(())
    }

    /// Replaces bans, allowlist, offences, read positions and what was counted by these; for after a time when the disk
    /// refused.
    ///
    /// # Errors
    /// When the disk refuses still.
    pub fn rewrite(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
        offences: impl IntoIterator<Item = Offence>,
        positions: &[(String, String)],
        counted: &Counted<'_>,
    ) -> Result<(), StoreError> {
        self.written = Written::unknown();
        let mut written = Written::unknown();
        self.transaction("rewrite", |transaction| {
            transaction.execute_batch("DELETE FROM ban; DELETE FROM allow; DELETE FROM offence;")?;
            changes.into_iter().try_for_each(|change| apply(transaction, &change))?;
            for offence in offences {
                remember(transaction, &OffenceChange::Set(offence))?;
            }
            written = reading::keep(transaction, Written::unknown(), positions, counted)?;
            Ok(())
        })?;
        self.written = written;
        Ok(())
    }

    /// The latest changes, the newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn history(&self, limit: u32) -> Result<Vec<(Timestamp, Change)>, StoreError> {
        let read = || -> Result<Vec<_>, rusqlite::Error> {
            let mut query =
                self.connection.prepare_cached("SELECT at, change FROM history ORDER BY id DESC LIMIT ?1")?;
            let rows =
                query.query_map([limit], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
            rows.collect()
        };
        let rows = read().map_err(|error| self.failed("read the history of", &error))?;
        Ok(rows
            .into_iter()
            .filter_map(|(at, json)| Some((Timestamp::from_micros(at), serde_json::from_str(&json).ok()?)))
            .collect())
    }

    /// The bans by jails that were recorded after `since`, and in the history after the row `after`; the oldest first, of
    /// many the latest [`RECENT_MAX`].
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn recent_bans(&self, since: Timestamp, after: i64) -> Result<Vec<Ban>, StoreError> {
        let read = || -> Result<Vec<String>, rusqlite::Error> {
            let mut query = self.connection.prepare_cached(
                "SELECT change FROM history WHERE at > ?1 AND id > ?3 AND change LIKE '{\"ban\"%' ORDER BY id DESC LIMIT ?2",
            )?;
            let rows = query.query_map(params![since.as_micros(), RECENT_MAX, after], |row| row.get(0))?;
            rows.collect()
        };
        let rows = read().map_err(|error| self.failed("read the history of", &error))?;
        let bans = rows.iter().rev().filter_map(|json| match serde_json::from_str(json) {
            Ok(Change::Ban(ban)) if ban.origin != Origin::Operator => Some(ban),
            _ => None,
        });
        Ok(bans.collect())
    }

    fn transaction(
        &mut self,
        what: &str,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), rusqlite::Error>,
    ) -> Result<(), StoreError> {
        let outcome = self.connection.transaction().and_then(|transaction| {
            work(&transaction)?;
            transaction.commit()
        });
        outcome.map_err(|error| self.failed(what, &error))
    }

    fn failed(&self, what: &str, error: &rusqlite::Error) -> StoreError {
        StoreError {
            what: format!("{what} {}", self.path.display()),
            cause: error.to_string(),
            hint: "check the disk's space and health; bans stay in force meanwhile".to_owned(),
        }
    }
}

/// Names of jails, each held once.
#[derive(Default)]
struct Jails(BTreeSet<Arc<str>>);

impl Jails {
    fn one(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return Arc::clone(known);
        }
        let new: Arc<str> = name.into();
        self.0.insert(Arc::clone(&new));
        new
    }
}

/// The open write-ahead log.
#[derive(Debug)]
pub struct Syncer {
    wal: fs::File,
    path: PathBuf,
}

impl Syncer {
    /// Puts what was recorded before this call on the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.wal.sync_data().map_err(|error| not_on_disk(&self.path, &error))
    }
}

fn not_on_disk(path: &Path, error: &io::Error) -> StoreError {
    StoreError {
        what: format!("put {} on the disk", path.display()),
        cause: error.to_string(),
        hint: "check the disk's space and health; bans stay in force meanwhile".to_owned(),
    }
}

fn apply(transaction: &rusqlite::Transaction<'_>, change: &Change) -> Result<(), rusqlite::Error> {
    let run =
        |sql: &str, prefix: &Prefix| transaction.prepare_cached(sql)?.execute([prefix.to_string()]).map(drop);
    match change {
        Change::Ban(ban) => {
            let json = serde_json::to_string(ban)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
            transaction
                .prepare_cached("INSERT OR REPLACE INTO ban VALUES (?1, ?2, ?3)")?
                .execute(params![ban.prefix.to_string(), ban.scope.to_string(), json])
                .map(drop)
        }
        Change::Unban { prefix, scope } => transaction
            .prepare_cached("DELETE FROM ban WHERE prefix = ?1 AND scope = ?2")?
            .execute([prefix.to_string(), scope.to_string()])
            .map(drop),
        Change::Allow { prefix } => run("INSERT OR REPLACE INTO allow VALUES (?1)", prefix),
        Change::Disallow { prefix } => run("DELETE FROM allow WHERE prefix = ?1", prefix),
        Change::Flush => transaction.execute("DELETE FROM ban", []).map(drop),
    }
}

fn remember(transaction: &rusqlite::Transaction<'_>, change: &OffenceChange) -> Result<(), rusqlite::Error> {
    match change {
        OffenceChange::Set(Offence { prefix, jail, bans, until }) => {
            let until = match until {
                Until::At(end) => Some(end.as_micros()),
                Until::Forever => None,
            };
            transaction
                .prepare_cached("INSERT OR REPLACE INTO offence VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![prefix.to_string(), &**jail, bans, until])
        }
        OffenceChange::Forget { prefix, jail } => transaction
            .prepare_cached("DELETE FROM offence WHERE prefix = ?1 AND jail = ?2")?
            .execute(params![prefix.to_string(), &**jail]),
        OffenceChange::ForgetAll => transaction.execute("DELETE FROM offence", []),
    }
    .map(drop)
}

/// Runs these steps and marks the tables as of this version, all or nothing.
fn migrate(connection: &Connection, steps: &[&str]) -> Result<(), rusqlite::Error> {
    connection
        .execute_batch(&format!("BEGIN; {} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;", steps.concat()))
}

/// Why a database file was not taken.
enum Unusable {
    Damaged(String),
    Newer(i64),
    Refused(String),
}

impl Unusable {
    fn into_error(self, path: &Path) -> StoreError {
        let (cause, hint) = match self {
            Self::Damaged(why) => (format!("it is damaged: {why}"), "move it aside".to_owned()),
            Self::Newer(version) => (
                format!(
                    "it has layout {version}, written by a newer blocker; this one knows {SCHEMA_VERSION}"
                ),
                "run the newer blocker, or set `state_dir` to another folder".to_owned(),
            ),
            Self::Refused(why) => (why, "run as root, or set `state_dir` to a folder of yours".to_owned()),
        };
        StoreError { what: format!("open the ledger {}", path.display()), cause, hint }
    }
}

impl From<rusqlite::Error> for Unusable {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Self::Damaged(error.to_string()),
            // A table or column that is not what this version made.
            _ if matches!(error, rusqlite::Error::InvalidColumnType(..)) => Self::Damaged(error.to_string()),
            _ => Self::Refused(error.to_string()),
        }
    }
}

/// Takes the folder for this process; the kernel gives it back when the process ends, however it ends.
fn lock(folder: &Path) -> Result<fs::File, StoreError> {
    let path = folder.join(LOCK);
    let failed = |cause: String, hint: &str| StoreError {
        what: format!("lock {}", path.display()),
        cause,
        hint: hint.to_owned(),
    };
    let mut file = fs::OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| failed(error.to_string(), "run as root, or set `state_dir` to a folder of yours"))?;
    if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        let mut holder = String::new();
        let _unknown = file.read_to_string(&mut holder);
        let cause = match error {
            rustix::io::Errno::WOULDBLOCK => format!("another agent holds it (pid {})", holder.trim()),
            error => error.to_string(),
        };
        return Err(failed(cause, "stop it, or give this one a `state_dir` and `socket` of its own"));
    }
    let write =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    write.map_err(|error| failed(error.to_string(), "free the disk"))?;
    Ok(file)
}

fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = (1..)
        .map(|number| path.with_file_name(format!("{FILE}.corrupt-{number}")))
        .find(|aside| !aside.exists())
        .unwrap_or_else(|| path.with_file_name(format!("{FILE}.corrupt")));
    fs::rename(path, &aside)?;
    for suffix in ["-wal", "-shm"] {
        let _absent = fs::remove_file(path.with_file_name(format!("{FILE}{suffix}")));
    }
    Ok(aside)
}
