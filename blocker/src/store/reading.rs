//! How far sources were read, and what was counted up to there: one transaction writes both, so that they always belong
//! to the same instant.
//!
//! Only what changed is written. Every row has a checksum, and the whole a version; what is not intact is refused as a
//! whole, because half of it would count failures twice or never. The store does not know what a position means.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use serde::{Deserialize, Serialize};

use super::{HISTORY_MAX, Store, StoreError};
use crate::{
    engine::{Change, Counted, CountedHead},
    net::{Prefix, Scope},
    time::{Timestamp, Until},
};

/// What layout 4 adds. Positions of an older layout have no checksum, and nothing counted belongs to them.
pub(super) const TABLES: &str = "
    ALTER TABLE position ADD COLUMN sum INTEGER;
    CREATE TABLE counted(id INTEGER PRIMARY KEY CHECK(id = 1), head TEXT NOT NULL, sum INTEGER NOT NULL);
    CREATE TABLE page(id INTEGER PRIMARY KEY, pairs BLOB NOT NULL, sum INTEGER NOT NULL);";
/// The version of the form of all of it.
const VERSION: u32 = 1;

/// What is written over and over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    v: u32,
    /// The last change in the history that the failures were counted with.
    history: i64,
    /// Rows in `position` and `page`.
    positions: u64,
    pages: u64,
    counted: CountedHead,
}

/// Only its version, whatever else a newer one holds.
#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

/// What was read and counted, as it was kept.
#[derive(Debug, Default)]
pub struct Read {
    /// Read positions by name.
    pub positions: Vec<(String, String)>,
    /// What was counted up to there; `None` where that is not known.
    pub counted: Option<(CountedHead, Vec<Vec<u8>>)>,
    /// The last change in the history that it was counted with; 0 where that is not known.
    pub history: i64,
    /// Why what was there is not used.
    pub refused: Option<String>,
}

/// What is in the tables, so that only changes need be written.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Checksums of positions by those of their names.
    positions: BTreeMap<u64, u64>,
    pages: BTreeSet<u32>,
    /// Nothing is known of the tables: write all.
    unknown: bool,
}

impl Written {
    /// Before anything was written by this process.
    pub(super) fn unknown() -> Self {
        Self { unknown: true, ..Self::default() }
    }
}

impl Store {
    /// Keeps these positions, and what was counted up to them, in one transaction.
    ///
    /// # Errors
    /// When the disk refuses; what was kept before stays.
    pub fn keep(&mut self, positions: &[(String, String)], counted: &Counted<'_>) -> Result<(), StoreError> {
        let before = std::mem::replace(&mut self.written, Written::unknown());
        let mut written = Written::default();
        self.transaction("keep read positions in", |transaction| {
            written = keep(transaction, before, positions, counted)?;
            Ok(())
        })?;
        self.written = written;
        Ok(())
    }
}

/// From when until when a prefix was banned, as far as the scope went.
pub type Served = (Prefix, Scope, Timestamp, Timestamp);

impl Store {
    /// The bans that began after `since` and ended, by the history's rows after the row `after`.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn served(&self, since: Timestamp, after: i64) -> Result<Vec<Served>, StoreError> {
        let read = || -> Result<Vec<(i64, i64, String)>, rusqlite::Error> {
            // Nearly always none has ended since, and the rest of the history need not be read.
            let ended = "SELECT EXISTS(SELECT 1 FROM history WHERE id > ?1 AND change NOT LIKE '{\"ban\"%')";
            if !self.connection.query_row(ended, [after], |row| row.get::<_, bool>(0))? {
                return Ok(Vec::new());
            }
            let mut query = self
                .connection
                .prepare("SELECT id, at, change FROM history WHERE at > ?1 ORDER BY id DESC LIMIT ?2")?;
            let rows = query.query_map(params![since.as_micros(), HISTORY_MAX], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
            rows.collect()
        };
        let rows = read().map_err(|error| self.failed("read the history of", &error))?;
        let (mut live, mut served) = (BTreeMap::new(), Vec::new());
        for (id, at, json) in rows.iter().rev() {
            let mut end = |(prefix, scope), (since, until): (Timestamp, Until)| {
                let lifted = Timestamp::from_micros(*at);
                let end = match until {
                    Until::At(end) => end.min(lifted),
                    Until::Forever => lifted,
                };
                if *id > after {
                    served.push((prefix, scope, since, end));
                }
            };
            match serde_json::from_str(json) {
                Ok(Change::Ban(ban)) => {
                    live.insert((ban.prefix, ban.scope), (ban.since, ban.until));
                }
                Ok(Change::Unban { prefix, scope }) => {
                    let ended = (prefix, scope);
                    if let Some(ban) = live.remove(&ended) {
                        end(ended, ban);
                    }
                }
                Ok(Change::Flush) => {
                    std::mem::take(&mut live).into_iter().for_each(|(ended, ban)| end(ended, ban));
                }
                Ok(Change::Allow { .. } | Change::Disallow { .. }) | Err(_) => {}
            }
        }
        Ok(served)
    }
}

/// Writes what differs from `before`.
pub(super) fn keep(
    transaction: &Transaction<'_>,
    before: Written,
    positions: &[(String, String)],
    counted: &Counted<'_>,
) -> Result<Written, rusqlite::Error> {
    let all = before.unknown || counted.all_changed();
    let mut written = Written::default();
    if before.unknown {
        transaction.execute("DELETE FROM position", [])?;
    }
    let mut put = transaction
        .prepare_cached("INSERT OR REPLACE INTO position(file, position, sum) VALUES (?1, ?2, ?3)")?;
    for (name, position) in positions {
        let sum = sum_of_position(name, position);
        let key = fnv(name.as_bytes());
        if before.unknown || before.positions.get(&key) != Some(&sum) {
            put.execute(params![name, position, sum.cast_signed()])?;
        }
        written.positions.insert(key, sum);
    }
    if before.positions.keys().any(|key| !written.positions.contains_key(key)) {
        let mut names = transaction.prepare_cached("SELECT file FROM position")?;
        let names: Vec<String> = names.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for name in names.iter().filter(|name| !written.positions.contains_key(&fnv(name.as_bytes()))) {
            transaction.prepare_cached("DELETE FROM position WHERE file = ?1")?.execute([name])?;
        }
    }
    if all {
        transaction.execute("DELETE FROM page", [])?;
    } else {
        written.pages = before.pages;
    }
    let mut put =
        transaction.prepare_cached("INSERT OR REPLACE INTO page(id, pairs, sum) VALUES (?1, ?2, ?3)")?;
    let mut drop = transaction.prepare_cached("DELETE FROM page WHERE id = ?1")?;
    let changed: Box<dyn Iterator<Item = u32>> =
        if before.unknown { Box::new(counted.all_pages()) } else { Box::new(counted.changed_pages()) };
    for id in changed {
        if let Some(pairs) = counted.page(id) {
            put.execute(params![id, pairs, sum_of_page(id, &pairs).cast_signed()])?;
            written.pages.insert(id);
        } else if written.pages.remove(&id) {
            drop.execute([id])?;
        }
    }
    let history = transaction.query_row("SELECT coalesce(max(id), 0) FROM history", [], |row| row.get(0))?;
    let head = Head {
        v: VERSION,
        history,
        positions: written.positions.len() as u64,
        pages: written.pages.len() as u64,
        counted: counted.head(),
    };
    let head = serde_json::to_string(&head)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    transaction
        .prepare_cached("INSERT OR REPLACE INTO counted(id, head, sum) VALUES (1, ?1, ?2)")?
        .execute(params![head, fnv(head.as_bytes()).cast_signed()])?;
    Ok(written)
}

/// What is kept. Where any of it is not intact, nothing is used and `refused` says why.
pub(super) fn read(connection: &Connection) -> Result<Read, rusqlite::Error> {
    let head: Option<(String, i64)> = connection
        .query_row("SELECT head, sum FROM counted", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let mut query = connection.prepare("SELECT file, position, sum FROM position")?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let rows: Vec<(String, String, Option<i64>)> = match rows.collect() {
        Ok(rows) => rows,
        Err(rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::FromSqlConversionFailure(..)) => {
            return Ok(Read::refused("a read position is no text"));
        }
        Err(error) => return Err(error),
    };
    let Some((head, sum)) = head else {
        // As an older layout left it, or nothing at all.
        let positions = rows.into_iter().map(|(name, position, _)| (name, position)).collect();
        return Ok(Read { positions, ..Read::default() });
    };
    let head: Head = match serde_json::from_str::<Versioned>(&head) {
        _ if fnv(head.as_bytes()).cast_signed() != sum => return Ok(Read::refused("its head is damaged")),
        Ok(Versioned { v }) if v > VERSION => {
            return Ok(Read::refused(&format!("it has form {v}, written by a newer blocker")));
        }
        _ => match serde_json::from_str(&head) {
            Ok(head) => head,
            Err(error) => return Ok(Read::refused(&format!("its head is not understood: {error}"))),
        },
    };
    let damaged = rows
        .iter()
        .filter(|(name, position, sum)| *sum != Some(sum_of_position(name, position).cast_signed()));
    let damaged = damaged.count();
    if damaged > 0 || rows.len() as u64 != head.positions {
        let (held, rows) = (head.positions, rows.len());
        return Ok(Read::refused(&format!(
            "{damaged} of {rows} read positions are damaged, {held} were written"
        )));
    }
    let mut query = connection.prepare("SELECT id, pairs, sum FROM page ORDER BY id")?;
    let mut found = query.query([])?;
    let mut pages: Vec<Vec<u8>> = Vec::new();
    while let Some(row) = found.next()? {
        let id: u32 = row.get(0).unwrap_or(u32::MAX);
        let pairs: Vec<u8> = row.get(1).unwrap_or_default();
        if row.get(2) != Ok(sum_of_page(id, &pairs).cast_signed()) {
            return Ok(Read::refused("counted failures are damaged"));
        }
        pages.push(pairs);
    }
    if pages.len() as u64 != head.pages {
        return Ok(Read::refused("counted failures are missing"));
    }
    Ok(Read {
        positions: rows.into_iter().map(|(name, position, _)| (name, position)).collect(),
        counted: Some((head.counted, pages)),
        history: head.history,
        refused: None,
    })
}

impl Read {
    /// What is left of it where it is not to be used.
    pub fn refused(why: &str) -> Self {
        let refused = format!(
            "what was read and counted before is not used ({why}): every log is read as at a first start, from the longest findtime of its jails on"
        );
        Self { refused: Some(refused), ..Self::default() }
    }
}

fn sum_of_position(name: &str, position: &str) -> u64 {
    fnv(&[name.as_bytes(), position.as_bytes()].join(&0))
}

/// With its place, so that no two pages can change places.
fn sum_of_page(id: u32, pairs: &[u8]) -> u64 {
    fnv(&[&id.to_le_bytes(), pairs].concat())
}

/// FNV-1a, 64 bits: stable across releases of the standard library, unlike its hasher.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
