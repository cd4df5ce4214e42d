//! What a kernel lacks of the ledger and has too much.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, END_TOLERANCE};
use crate::{ledger::Ban, net::Prefix, time::Until};

/// The changes that make a kernel holding `actual` hold `desired`: what it lacks or ends at another time is banned,
/// what it has too much is unbanned.
pub fn diff(desired: &[Ban], actual: &[(Prefix, Until)]) -> Vec<Change> {
    let held: BTreeMap<Prefix, Until> = actual.iter().copied().collect();
    let wanted: BTreeSet<Prefix> = desired.iter().map(|ban| ban.prefix).collect();
    let too_much =
        held.keys().filter(|prefix| !wanted.contains(prefix)).map(|prefix| Change::Unban { prefix: *prefix });
    let lacking = desired
        .iter()
        .filter(|ban| !held.get(&ban.prefix).is_some_and(|until| same_end(ban.until, *until)))
        .map(|ban| Change::Ban(ban.clone()));
    too_much.chain(lacking).collect()
}

/// As [`diff`], for the allowlist.
pub fn diff_allowed(desired: &[Prefix], actual: &[Prefix]) -> Vec<Change> {
    let (wanted, held): (BTreeSet<_>, BTreeSet<_>) = (desired.iter().collect(), actual.iter().collect());
    let too_much = held.difference(&wanted).map(|prefix| Change::Disallow { prefix: **prefix });
    let lacking = wanted.difference(&held).map(|prefix| Change::Allow { prefix: **prefix });
    too_much.chain(lacking).collect()
}

fn same_end(a: Until, b: Until) -> bool {
    match (a, b) {
        (Until::Forever, Until::Forever) => true,
        (Until::At(a), Until::At(b)) => a.max(b).saturating_since(a.min(b)) <= END_TOLERANCE,
        _ => false,
    }
}
