//! What a kernel lacks of the ledger and has too much.
#![forbid(unsafe_code)]

use std::{cmp::Ordering, collections::BTreeSet};

use super::{Change, END_TOLERANCE};
use crate::{
    ledger::Ledger,
    net::{Prefix, Scope},
    time::Until,
};

/// What a kernel holds: a scope and a prefix, and until when.
pub type Held = (Scope, Prefix, Until);

/// The changes that make a kernel holding `actual`, in the order of scopes and prefixes, hold the ledger's bans: what it
/// has too much is unbanned, what it lacks or ends at another time is banned.
pub fn diff(ledger: &Ledger, actual: Vec<Held>) -> Vec<Change> {
    let mut difference = Difference::new(actual);
    let mut changes = Vec::new();
    while let Some(more) = difference.step(ledger, usize::MAX) {
        changes.extend(more);
    }
    changes
}

/// [`diff`], taken piece by piece while the ledger lives on: what changes in it meanwhile is enforced by whoever changes
/// it, and it does no harm to do it once more.
#[derive(Debug)]
pub struct Difference {
    /// In order.
    actual: Vec<Held>,
    pass: Pass,
    /// How much of it this pass has seen, and of the ledger.
    at: usize,
    last: Option<(Scope, Prefix)>,
}

/// What is too much goes first: the kernel may have no room for what it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Lift,
    Ban,
    Over,
}

impl Difference {
    /// To a kernel that holds this, in the order of scopes and prefixes.
    pub fn new(actual: Vec<Held>) -> Self {
        let pass = if actual.is_empty() { Pass::Ban } else { Pass::Lift };
        Self { actual, pass, at: 0, last: None }
    }

    /// The next changes, perhaps none, after a look at so many bans; `None` when it is through.
    pub fn step(&mut self, ledger: &Ledger, look: usize) -> Option<Vec<Change>> {
        let mut changes = Vec::new();
        if self.pass == Pass::Over {
            return None;
        }
        let last = self.last.clone();
        let mut bans = ledger.iter_after(last.as_ref().map(|(scope, prefix)| (scope, *prefix))).peekable();
        let mut seen = None;
        for _ in 0..look {
            let order = match (bans.peek(), self.actual.get(self.at)) {
                (Some(ban), Some((scope, prefix, _))) => (&ban.scope, ban.prefix).cmp(&(scope, *prefix)),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => {
                    self.pass = if self.pass == Pass::Lift { Pass::Ban } else { Pass::Over };
                    (self.at, self.last) = (0, None);
                    return Some(changes);
                }
            };
            let ban = if order == Ordering::Greater { None } else { bans.next() };
            let held = if order == Ordering::Less { None } else { self.actual.get(self.at) };
            match (self.pass, ban, held) {
                (Pass::Lift, None, Some((scope, prefix, _))) => {
                    changes.push(Change::Unban { prefix: *prefix, scope: scope.clone() });
                }
                (Pass::Ban, Some(ban), held)
                    if !held.is_some_and(|(.., until)| same_end(ban.until, *until)) =>
                {
                    changes.push(Change::Ban(ban.clone()));
                }
                _ => {}
            }
            self.at += usize::from(held.is_some());
            seen = ban.or(seen);
        }
        if let Some(ban) = seen {
            self.last = Some((ban.scope.clone(), ban.prefix));
        }
        Some(changes)
    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        ledger::{Ban, Origin},
        time::Timestamp,
    };

    fn prefix(last: u8) -> Prefix {
        Prefix::host([203, 0, 113, last % 16].into())
    }

    /// In the order of the numbers.
    fn scope(last: u8) -> Scope {
        ["all", "22", "80"][usize::from(last / 16)].parse().unwrap()
    }

    fn until(end: u8) -> Until {
        if end == 0 { Until::Forever } else { Until::At(Timestamp::from_secs(i64::from(end) * 10)) }
    }

    fn ban(last: u8, end: u8) -> Ban {
        let (prefix, scope, until) = (prefix(last), scope(last), until(end));
        let (origin, since) = (Origin::Operator, Timestamp::EPOCH);
        Ban { prefix, scope, origin, since, until, failures: 0, count: 0, reason: String::new() }
    }

    fn apply(kernel: &mut BTreeMap<(Scope, Prefix), Until>, change: &Change) {
        match change {
            Change::Ban(ban) => drop(kernel.insert((ban.scope.clone(), ban.prefix), ban.until)),
            Change::Unban { prefix, scope } => drop(kernel.remove(&(scope.clone(), *prefix))),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        /// The ledger changes between any two steps, and who changes it enforces that.
        #[test]
        fn in_pieces_of_any_size_the_kernel_comes_to_hold_the_living_ledger(
            ledger in prop::collection::btree_map(0_u8..40, 0_u8..3, 0..30),
            held in prop::collection::btree_map(0_u8..40, 0_u8..3, 0..30),
            look in 1_usize..9,
            later in prop::collection::vec((0_u8..40, prop::option::of(0_u8..3)), 0..40),
        ) {
            let bans = ledger.iter().map(|(last, end)| ban(*last, *end)).collect();
            let (mut ledger, _) = Ledger::with(100, bans);
            let actual: Vec<_> = held.iter().map(|(last, end)| (scope(*last), prefix(*last), until(*end))).collect();
            let mut kernel: BTreeMap<(Scope, Prefix), Until> =
                actual.iter().cloned().map(|(scope, prefix, until)| ((scope, prefix), until)).collect();
            let mut at_once = kernel.clone();
            diff(&ledger, actual.clone()).iter().for_each(|change| apply(&mut at_once, change));
            let wanted = |ledger: &Ledger| {
                ledger.iter().map(|ban| ((ban.scope.clone(), ban.prefix), ban.until)).collect()
            };
            prop_assert_eq!(at_once, wanted(&ledger));
            let mut difference = Difference::new(actual);
            let mut later = later.into_iter();
            while let Some(changes) = difference.step(&ledger, look) {
                prop_assert!(changes.len() <= look);
                changes.iter().for_each(|change| apply(&mut kernel, change));
                match later.next() {
                    Some((last, Some(end))) => {
                        ledger.open(ban(last, end));
                        apply(&mut kernel, &Change::Ban(ban(last, end)));
                    }
                    Some((last, None)) => {
                        ledger.close(prefix(last), &scope(last));
                        apply(&mut kernel, &Change::Unban { prefix: prefix(last), scope: scope(last) });
                    }
                    None => {}
                }
            }
            prop_assert_eq!(kernel, wanted(&ledger));
        }
    }

    #[test]
    fn what_is_too_much_goes_before_what_is_lacking() {
        let (ledger, _) = Ledger::with(9, vec![ban(1, 1), ban(5, 1)]);
        let changes = diff(
            &ledger,
            [(3, 1), (5, 2), (9, 1), (17, 1)]
                .map(|(last, end)| (scope(last), prefix(last), until(end)))
                .to_vec(),
        );
        let unban = |last| Change::Unban { prefix: prefix(last), scope: scope(last) };
        assert_eq!(changes, [unban(3), unban(9), unban(17), Change::Ban(ban(1, 1)), Change::Ban(ban(5, 1))]);
    }
}
