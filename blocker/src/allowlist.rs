//! A set of prefixes that can be asked what covers an address and what lies inside a prefix.
//!
//! It serves as the allowlist, the protected addresses and a jail's `ignoreip`; it knows nothing of why an entry is
//! in it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use crate::net::{Lengths, Prefix};

/// A set of prefixes, nested and overlapping ones included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixSet {
    prefixes: BTreeSet<Prefix>,
    lengths: Lengths,
}

impl PrefixSet {
    /// Adds a prefix; false when it was there.
    pub fn insert(&mut self, prefix: Prefix) -> bool {
        let new = self.prefixes.insert(prefix);
        if new {
            self.lengths.add(prefix);
        }
        new
    }

    /// Removes exactly this prefix; false when it was not there.
    pub fn remove(&mut self, prefix: Prefix) -> bool {
        let was = self.prefixes.remove(&prefix);
        if was {
            self.lengths.remove(prefix);
        }
        was
    }

    /// The widest entry that covers all of `prefix`.
    pub fn covering(&self, prefix: Prefix) -> Option<Prefix> {
        self.lengths.covering(prefix).find(|wider| self.prefixes.contains(wider))
    }

    /// The first entry that lies inside `prefix`, itself included.
    pub fn inside(&self, prefix: Prefix) -> Option<Prefix> {
        self.all_inside(prefix).next()
    }

    /// Every entry that lies inside `prefix`, itself included, in order.
    pub fn all_inside(&self, prefix: Prefix) -> impl Iterator<Item = Prefix> {
        // In order of address then length: what lies inside starts at the prefix's own address.
        let from_here = self.prefixes.range(prefix..).copied();
        from_here
            .take_while(move |entry| prefix.contains(entry.address()))
            .filter(move |entry| prefix.covers(*entry))
    }

    /// Some entry that shares an address with `prefix`.
    pub fn overlapping(&self, prefix: Prefix) -> Option<Prefix> {
        self.covering(prefix).or_else(|| self.inside(prefix))
    }

    /// Whether exactly this prefix is an entry.
    pub fn contains(&self, prefix: Prefix) -> bool {
        self.prefixes.contains(&prefix)
    }

    /// The entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = Prefix> {
        self.prefixes.iter().copied()
    }
}

impl FromIterator<Prefix> for PrefixSet {
    fn from_iter<T: IntoIterator<Item = Prefix>>(prefixes: T) -> Self {
        let mut set = Self::default();
        for prefix in prefixes {
            set.insert(prefix);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn the_set_is_asked_in_both_directions() {
        let set: PrefixSet = ["10.0.0.0/8", "10.1.2.3", "2001:db8::/32"].map(prefix).into_iter().collect();
        assert_eq!(set.covering(prefix("10.1.2.3")), Some(prefix("10.0.0.0/8")));
        assert_eq!(set.covering(prefix("11.0.0.1")), None);
        assert_eq!(set.inside(prefix("10.1.0.0/16")), Some(prefix("10.1.2.3")));
        assert_eq!(set.inside(prefix("10.2.0.0/16")), None);
        assert_eq!(set.overlapping(prefix("::/0")), Some(prefix("2001:db8::/32")));
    }

    fn any_prefix() -> impl Strategy<Value = Prefix> {
        // A small space, so that prefixes meet.
        (0_u8..4, 0_u8..4, 6_u8..=32)
            .prop_map(|(a, b, length)| Prefix::new([10, a, b, 0].into(), length).unwrap())
    }

    proptest! {
        #[test]
        fn it_answers_as_a_plain_list_does(list in prop::collection::vec(any_prefix(), 0..20), asked in any_prefix()) {
            let set: PrefixSet = list.iter().copied().collect();
            prop_assert_eq!(set.covering(asked).is_some(), list.iter().any(|p| p.covers(asked)));
            prop_assert_eq!(set.inside(asked).is_some(), list.iter().any(|p| asked.covers(*p)));
            let mut set = set;
            for prefix in &list {
                set.remove(*prefix);
            }
            prop_assert_eq!(set, PrefixSet::default());
        }
    }
}
