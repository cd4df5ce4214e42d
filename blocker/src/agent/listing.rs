//! `bans`: what the kernel holds with what the ledger knows of it, and what of the ledger the kernel lacks.
//!
//! The kernel is read back once. Of a long list a few thousand rows are made at a time, when the asker has taken those before
//! them: the loop is not held up, and nobody holds a million rows. A row says what is so when it is made.
#![forbid(unsafe_code)]

use std::{cmp::Ordering, sync::Arc};

use serde_json::value::to_raw_value;

use super::{Agent, memory, now, report};
use crate::{
    control::{
        protocol::{BanRow, CallError},
        server::Reply,
    },
    enforce::Entry,
    ledger::Ban,
    net::{Prefix, Scope},
    time::{Timestamp, Until},
};

/// Rows that are made at once.
const ROWS_AT_ONCE: usize = 2_048;
/// Bans that are looked at for them.
const LOOK_AT_ONCE: usize = 1 << 16;
/// Long lists that are read at the same time; further askers are told to come again.
const LISTINGS_MAX: usize = 4;
/// Entries beyond which a list is long.
const LONG: usize = 1 << 16;

/// What is left of a list.
#[derive(Debug)]
pub(super) struct Listing {
    entries: Vec<Entry>,
    /// How far it got, in the entries and in the ledger; both are in the order of scopes and prefixes.
    at: usize,
    last: Option<(Scope, Prefix)>,
    only: Option<Prefix>,
    left: usize,
    /// One of [`LISTINGS_MAX`].
    _place: Arc<()>,
}

impl Agent {
    /// The first part of the list.
    pub(super) fn bans(
        &mut self,
        only: Option<Prefix>,
        limit: Option<usize>,
    ) -> Result<Reply<Listing>, CallError> {
        let place = Arc::clone(&self.listings);
        if self.engine.bans() > LONG && Arc::strong_count(&place) > LISTINGS_MAX + 1 {
            return Err(CallError::refused(&format!(
                "{LISTINGS_MAX} lists of all bans are being read already; ask again"
            )));
        }
        let mut entries =
            self.enforcer.entries(now()).map_err(|error| CallError::failed(&error.to_string()))?;
        if let Some(only) = only {
            entries.retain(|entry| only.overlaps(entry.prefix));
        }
        let left = limit.unwrap_or(usize::MAX);
        self.more_bans(Listing { entries, at: 0, last: None, only, left, _place: place })
    }

    /// The next part of it.
    pub(super) fn more_bans(&mut self, mut listing: Listing) -> Result<Reply<Listing>, CallError> {
        let (mut rows, mut through) = (Vec::new(), false);
        let last = listing.last.clone();
        let last = last.as_ref().map(|(scope, prefix)| (scope, *prefix));
        let (mut bans, mut seen) = (self.engine.desired().iter_after(last).peekable(), None);
        for _ in 0..LOOK_AT_ONCE {
            if rows.len() >= ROWS_AT_ONCE.min(listing.left) {
                break;
            }
            let order = match (bans.peek(), listing.entries.get(listing.at)) {
                (Some(ban), Some(entry)) => (&ban.scope, ban.prefix).cmp(&(&entry.scope, entry.prefix)),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => {
                    through = true;
                    break;
                }
            };
            let ban = if order == Ordering::Greater { None } else { bans.next() };
            let entry = if order == Ordering::Less { None } else { listing.entries.get(listing.at) };
            seen = ban.or(seen);
            listing.at += usize::from(entry.is_some());
            let wanted = |prefix| listing.only.is_none_or(|only| only.overlaps(prefix));
            rows.extend(self.row(ban, entry).filter(|row| wanted(row.prefix)));
        }
        listing.last = seen.map(|ban| (ban.scope.clone(), ban.prefix)).or(listing.last);
        listing.left -= rows.len();
        let rows = to_raw_value(&rows).map_err(|error| CallError::failed(&error.to_string()))?;
        if !through && listing.left > 0 {
            return Ok(Reply::Part { rows, rest: Some(listing) });
        }
        if listing.entries.len() > LONG {
            drop(listing);
            memory::give_back();
        }
        Ok(Reply::Part { rows, rest: None })
    }

    /// What is known of one ban, from the ledger and from the kernel.
    fn row(&self, ban: Option<&Ban>, entry: Option<&Entry>) -> Option<BanRow> {
        let escalates = |ban: &Ban| {
            let mut jails = self.config.policy.jails.iter();
            ban.count > 1
                && jails.any(|jail| *jail.name == *report::origin(&ban.origin) && jail.escalation.is_some())
        };
        Some(BanRow {
            prefix: ban.map(|ban| ban.prefix).or(entry.map(|entry| entry.prefix))?,
            scope: ban.map(|ban| &ban.scope).or(entry.map(|entry| &entry.scope))?.clone(),
            jail: ban.map_or("-", |ban| report::origin(&ban.origin)).to_owned(),
            since: ban.map(|ban| ban.since),
            until: entry.map(|entry| entry.until).or(ban.map(|ban| ban.until)).and_then(end),
            failures: ban.map_or(0, |ban| ban.failures),
            count: ban.map_or(0, |ban| ban.count),
            bantime_secs: ban.and_then(|ban| Some(end(ban.until)?.saturating_since(ban.since).as_secs())),
            escalated: ban.is_some_and(escalates),
            packets: entry.map_or(0, |entry| entry.packets),
            reason: ban.map_or_else(String::new, |ban| ban.reason.clone()),
            in_kernel: entry.is_some(),
        })
    }
}

fn end(until: Until) -> Option<Timestamp> {
    match until {
        Until::At(end) => Some(end),
        Until::Forever => None,
    }
}
