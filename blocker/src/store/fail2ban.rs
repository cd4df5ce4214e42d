//! fail2ban's bans, taken over once from its own database, so that nobody is unbanned by changing to blocker.
//!
//! Its table `bans` has a row for each ban of each jail: `jail`, `ip`, `timeofban`, `bantime`, `bancount`, `data`, times in
//! seconds, -1 for no end; before its version 0.11 without `bantime` and `bancount`. Rows that a person lifted are gone
//! from it. The database is only read, and that it was is kept with what was taken, in one transaction.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, path::Path, sync::Arc};

use rusqlite::{Connection, OpenFlags, params, types::ValueRef};

use super::{Store, StoreError, apply, remember};
use crate::{
    engine::{BAN_LENGTH_MIN_V4, BAN_LENGTH_MIN_V6, Change},
    ledger::{Ban, Offence, OffenceChange, Origin},
    net::{Prefix, Scope},
    time::{BanTime, Timestamp, Until},
};

/// Rows read at most, the latest ones.
pub const FORMER_BANS_MAX: usize = 500_000;
/// Bytes of a jail's name at most, as everywhere.
const JAIL_BYTES_MAX: usize = 64;
/// How long a fail2ban that is just writing is waited for.
const BUSY: std::time::Duration = std::time::Duration::from_secs(2);

/// One row of the table `bans`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FormerBan {
    /// By which jail.
    pub jail: String,
    /// Who.
    pub ip: String,
    /// When, in seconds since the epoch.
    pub timeofban: i64,
    /// For how many seconds; negative without end, `None` for as long as the jail says.
    pub bantime: Option<i64>,
    /// Which ban of this address by this jail it is.
    pub bancount: u32,
    /// Failures that led to it.
    pub failures: u32,
}

/// What is left of fail2ban's bans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TakenOver {
    /// Those that are not over: of one address the one that ends last.
    pub bans: Vec<Ban>,
    /// Everybody who was banned, with how often.
    pub offences: Vec<Offence>,
    /// Rows that name nobody who can be banned.
    pub unusable: usize,
}

/// For how long, where a row does not say it, and on what a jail bans.
pub type FormerRules<'a> = dyn Fn(&str) -> (BanTime, Scope) + 'a;

/// What these bans come to at `now`.
pub fn taken_over(rows: &[FormerBan], now: Timestamp, rules: &FormerRules<'_>) -> TakenOver {
    let mut taken = TakenOver::default();
    let mut live: BTreeMap<(Prefix, Scope), Ban> = BTreeMap::new();
    let mut offences: BTreeMap<(Prefix, Arc<str>), (u32, u32, Until)> = BTreeMap::new();
    for row in rows {
        let Some(ban) = ban_of(row, rules) else {
            taken.unusable += 1;
            continue;
        };
        let Origin::Jail(jail) = &ban.origin else { continue };
        let offence = offences.entry((ban.prefix, Arc::clone(jail))).or_insert((0, 0, ban.until));
        *offence = (offence.0 + 1, offence.1.max(ban.count), offence.2.max(ban.until));
        if ban.until.is_over(now) {
            continue;
        }
        let identity = (ban.prefix, ban.scope.clone());
        match live.get(&identity) {
            Some(known) if known.until >= ban.until => {}
            _ => drop(live.insert(identity, ban)),
        }
    }
    // Without escalation fail2ban counts each ban as the first.
    let offence = |((prefix, jail), (rows, count, until)): ((Prefix, Arc<str>), (u32, u32, Until))| Offence {
        prefix,
        jail,
        bans: rows.max(count),
        until,
    };
    taken.offences = offences.into_iter().map(offence).collect();
    taken.bans = live.into_values().collect();
    taken
}

fn ban_of(row: &FormerBan, rules: &FormerRules<'_>) -> Option<Ban> {
    let prefix: Prefix = row.ip.parse().ok()?;
    let length_min = if prefix.address().is_ipv4() { BAN_LENGTH_MIN_V4 } else { BAN_LENGTH_MIN_V6 };
    if prefix.unbannable().is_some() || prefix.length() < length_min {
        return None;
    }
    if !(1..=JAIL_BYTES_MAX).contains(&row.jail.len()) {
        return None;
    }
    let since = Timestamp::from_secs(row.timeofban);
    let (bantime, scope) = rules(&row.jail);
    let until = match row.bantime {
        // -2 stands there where a newer fail2ban found rows of an older one.
        None | Some(-2) => bantime.from(since),
        Some(secs) => match u64::try_from(secs) {
            Ok(secs) => BanTime::For(std::time::Duration::from_secs(secs)).from(since),
            Err(_) => Until::Forever,
        },
    };
    Some(Ban {
        prefix,
        scope,
        origin: Origin::Jail(row.jail.as_str().into()),
        since,
        until,
        failures: row.failures,
        count: row.bancount.max(1),
        reason: "taken over from fail2ban".to_owned(),
    })
}

/// The rows of the database at `path`, the oldest first.
///
/// # Errors
/// When it cannot be read, or is no database of fail2ban's.
pub fn read(path: &Path) -> Result<Vec<FormerBan>, StoreError> {
    let failed = |cause: String| StoreError {
        what: format!("read fail2ban's bans in {}", path.display()),
        cause,
        hint: "they are tried again at the next start; `blocker ban` bans by hand".to_owned(),
    };
    // Asked before opening: opening a FIFO would wait for its writer.
    if !path.is_file() {
        return Err(failed("this is not a regular file".to_owned()));
    }
    rows(path).map_err(|error| failed(error.to_string()))
}

fn rows(path: &Path) -> Result<Vec<FormerBan>, rusqlite::Error> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(BUSY)?;
    let columns: Vec<String> = {
        let mut info = connection.prepare("SELECT name FROM pragma_table_info('bans')")?;
        info.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?
    };
    let column = |name: &str| {
        if columns.iter().any(|known| known == name) { name.to_owned() } else { "NULL".to_owned() }
    };
    let query = format!(
        "SELECT jail, ip, timeofban, {}, {}, {} FROM bans ORDER BY timeofban DESC LIMIT ?1",
        column("bantime"),
        column("bancount"),
        column("data"),
    );
    let mut query = connection.prepare(&query)?;
    let mut found = Vec::new();
    let mut rows = query.query(params![i64::try_from(FORMER_BANS_MAX).unwrap_or(i64::MAX)])?;
    while let Some(row) = rows.next()? {
        let small = |number: Option<i64>| u32::try_from(number.unwrap_or(0)).unwrap_or(0);
        found.push(FormerBan {
            jail: text(row.get_ref(0)?),
            ip: text(row.get_ref(1)?),
            timeofban: number(row.get_ref(2)?).unwrap_or(0),
            bantime: number(row.get_ref(3)?),
            bancount: small(number(row.get_ref(4)?)),
            failures: failures(row.get_ref(5)?),
        });
    }
    found.reverse();
    Ok(found)
}

fn text(value: ValueRef<'_>) -> String {
    value
        .as_bytes_or_null()
        .ok()
        .flatten()
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .unwrap_or_default()
}

#[expect(clippy::cast_possible_truncation, reason = "a time too large for 64 bits saturates")]
fn number(value: ValueRef<'_>) -> Option<i64> {
    match value {
        ValueRef::Integer(number) => Some(number),
        ValueRef::Real(number) => Some(number as i64),
        _ => None,
    }
}

/// `failures` of the JSON in `data`.
fn failures(value: ValueRef<'_>) -> u32 {
    let json = value.as_bytes_or_null().ok().flatten().and_then(|json| serde_json::from_slice(json).ok());
    let number = json.and_then(|json: serde_json::Value| json.get("failures")?.as_u64());
    number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
}

impl Store {
    /// Takes over the bans of fail2ban's database at `path`, unless that was done before; then `None`. Bans that are
    /// held already and end later stay as they are, and so do offences that are known to be more.
    ///
    /// # Errors
    /// When either database cannot be read or written; then nothing is taken, and the next call tries again.
    pub fn take_over(
        &mut self,
        path: &Path,
        held: &[Ban],
        known: &[Offence],
        now: Timestamp,
        rules: &FormerRules<'_>,
    ) -> Result<Option<TakenOver>, StoreError> {
        let name = path.display().to_string();
        let done =
            self.connection
                .query_row("SELECT count(*) FROM imported WHERE path = ?1", [&name], |row| row.get(0));
        let done: i64 = done.map_err(|error| self.failed("look for earlier imports in", &error))?;
        if done > 0 {
            return Ok(None);
        }
        let mut taken = taken_over(&read(path)?, now, rules);
        let held: BTreeMap<(Prefix, &Scope), Until> =
            held.iter().map(|ban| ((ban.prefix, &ban.scope), ban.until)).collect();
        taken.bans.retain(|ban| held.get(&(ban.prefix, &ban.scope)).is_none_or(|until| *until < ban.until));
        let known: BTreeMap<(Prefix, &str), u32> =
            known.iter().map(|offence| ((offence.prefix, &*offence.jail), offence.bans)).collect();
        taken.offences.retain(|offence| {
            known.get(&(offence.prefix, &*offence.jail)).is_none_or(|bans| *bans < offence.bans)
        });
        self.transaction("take fail2ban's bans over into", |transaction| {
            for ban in &taken.bans {
                apply(transaction, &Change::Ban(ban.clone()))?;
                let json = serde_json::to_string(&Change::Ban(ban.clone()))
                    .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
                // By when it was made, so that jails that count bans do not take it for one of today.
                transaction
                    .prepare_cached("INSERT INTO history(at, change) VALUES (?1, ?2)")?
                    .execute(params![ban.since.as_micros(), json])?;
            }
            for offence in &taken.offences {
                remember(transaction, &OffenceChange::Set(offence.clone()))?;
            }
            transaction
                .execute("INSERT INTO imported(path, at) VALUES (?1, ?2)", params![name, now.as_micros()])
                .map(drop)
        })?;
        Ok(Some(taken))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn row(jail: &str, ip: &str, timeofban: i64, bantime: Option<i64>, bancount: u32) -> FormerBan {
        FormerBan { jail: jail.to_owned(), ip: ip.to_owned(), timeofban, bantime, bancount, failures: 5 }
    }

    #[test]
    fn what_is_not_over_stays_banned_until_it_would_have_been() {
        let rows = [
            row("a", "203.0.113.1", 100, Some(600), 1),
            row("a", "203.0.113.1", 400, Some(1_200), 2),
            row("b", "203.0.113.1", 500, Some(600), 1),
            row("a", "203.0.113.2", 100, Some(600), 1),
            row("a", "203.0.113.2", 200, Some(600), 1),
            row("a", "203.0.113.3", 100, Some(-1), 1),
            row("old", "2001:db8::1", 900, None, 0),
            row("a", "198.51.100.0/24", 900, Some(600), 1),
            row("a", "somebody", 900, Some(600), 1),
            row("a", "127.0.0.1", 900, Some(600), 1),
            row("a", "0.0.0.0/0", 900, Some(600), 1),
            row("a", "010.1.2.3", 900, Some(600), 1),
            row("", "203.0.113.9", 900, Some(600), 1),
        ];
        let rules = |_: &str| (BanTime::For(Duration::from_secs(300)), Scope::ALL);
        let taken = taken_over(&rows, Timestamp::from_secs(1_000), &rules);
        let bans: Vec<(String, i64, u32)> = taken
            .bans
            .iter()
            .map(|ban| match ban.until {
                Until::At(end) => (ban.prefix.to_string(), end.as_secs(), ban.count),
                Until::Forever => (ban.prefix.to_string(), -1, ban.count),
            })
            .collect();
        let expected = [
            ("198.51.100.0/24", 1_500, 1),
            ("203.0.113.1", 1_600, 2),
            ("203.0.113.3", -1, 1),
            ("2001:db8::1", 1_200, 1),
        ];
        assert_eq!(bans.iter().map(|(p, end, n)| (p.as_str(), *end, *n)).collect::<Vec<_>>(), expected);
        let offences: Vec<(String, &str, u32)> =
            taken.offences.iter().map(|o| (o.prefix.to_string(), &*o.jail, o.bans)).collect();
        let offences: Vec<(&str, &str, u32)> =
            offences.iter().map(|(p, j, n)| (p.as_str(), *j, *n)).collect();
        assert_eq!(
            offences,
            [
                ("198.51.100.0/24", "a", 1),
                ("203.0.113.1", "a", 2),
                ("203.0.113.1", "b", 1),
                ("203.0.113.2", "a", 2),
                ("203.0.113.3", "a", 1),
                ("2001:db8::1", "old", 1),
            ]
        );
        assert_eq!(taken.unusable, 5);
    }
}
