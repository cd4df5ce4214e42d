//! The last matched lines of those whose failures are being counted, for actions that want them.
//!
//! Lines are an attacker's text: bounded one by one and together, kept as they came, and escaped by whoever shows
//! them.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{detect::JailKey, net::Prefix, time::Timestamp};

/// Bytes of one line that are kept.
pub const MATCH_BYTES_MAX: usize = 1_024;
/// Bytes of all lines that are kept; those of whoever was silent longest give way.
pub const MATCHES_BYTES_MAX: usize = 4 << 20;
/// What keeping a line costs beside its text.
const LINE_COST: usize = 64;

/// Lines by jail and prefix.
#[derive(Debug, Default)]
pub(super) struct Matches {
    kept: BTreeMap<(JailKey, Prefix), Kept>,
    by_latest: BTreeSet<(Timestamp, JailKey, Prefix)>,
    bytes: usize,
    gave_way: u64,
}

/// When the last of these lines counted, and the lines.
type Kept = (Timestamp, VecDeque<Box<str>>);

impl Matches {
    /// Keeps a line, and at most `lines_max` of this prefix.
    pub(super) fn push(
        &mut self,
        jail: JailKey,
        prefix: Prefix,
        at: Timestamp,
        line: &str,
        lines_max: usize,
    ) {
        if lines_max == 0 {
            return;
        }
        let (latest, mut lines) = self.remove(jail, prefix).unwrap_or((at, VecDeque::new()));
        while lines.len() >= lines_max {
            lines.pop_front();
        }
        lines.push_back(start_of(line).into());
        let latest = latest.max(at);
        self.bytes += cost(&lines);
        self.by_latest.insert((latest, jail, prefix));
        self.kept.insert((jail, prefix), (latest, lines));
        while self.bytes > MATCHES_BYTES_MAX
            && let Some((_, jail, prefix)) = self.by_latest.first().copied()
        {
            self.remove(jail, prefix);
            self.gave_way += 1;
        }
    }

    /// Takes the lines of a prefix out, the oldest first.
    pub(super) fn take(&mut self, jail: JailKey, prefix: Prefix) -> Vec<String> {
        let lines = self.remove(jail, prefix).map(|(_, lines)| lines).unwrap_or_default();
        lines.into_iter().map(String::from).collect()
    }

    /// Forgets lines older than any window.
    pub(super) fn expire(&mut self, horizon: Timestamp) {
        while let Some((latest, jail, prefix)) = self.by_latest.first().copied()
            && latest < horizon
        {
            self.remove(jail, prefix);
        }
    }

    /// Bytes kept now.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Prefixes whose lines gave way to the bound so far.
    pub(super) fn gave_way(&self) -> u64 {
        self.gave_way
    }

    fn remove(&mut self, jail: JailKey, prefix: Prefix) -> Option<Kept> {
        let (latest, lines) = self.kept.remove(&(jail, prefix))?;
        self.by_latest.remove(&(latest, jail, prefix));
        self.bytes -= cost(&lines);
        Some((latest, lines))
    }
}

fn cost(lines: &VecDeque<Box<str>>) -> usize {
    lines.iter().map(|line| line.len() + LINE_COST).sum()
}

fn start_of(line: &str) -> &str {
    let mut end = line.len().min(MATCH_BYTES_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.get(..end).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    const JAIL: JailKey = JailKey(0);

    fn prefix(number: u32) -> Prefix {
        Prefix::host(std::net::Ipv4Addr::from_bits(0x0b00_0000 + number).into())
    }

    #[test]
    fn the_last_lines_are_kept_and_long_ones_cut() {
        let mut matches = Matches::default();
        for line in ["a", "b", "c"] {
            matches.push(JAIL, prefix(1), Timestamp::EPOCH, line, 2);
        }
        matches.push(JAIL, prefix(2), Timestamp::EPOCH, &"é".repeat(MATCH_BYTES_MAX), 2);
        matches.push(JAIL, prefix(3), Timestamp::EPOCH, "x", 0);
        assert_eq!(matches.take(JAIL, prefix(1)), ["b", "c"]);
        assert_eq!(matches.take(JAIL, prefix(1)), [""; 0]);
        assert_eq!(matches.take(JAIL, prefix(2))[0].len(), MATCH_BYTES_MAX);
        assert_eq!((matches.take(JAIL, prefix(3)).len(), matches.bytes()), (0, 0));
    }

    #[test]
    fn all_lines_together_are_bounded_and_age() {
        let mut matches = Matches::default();
        let line = "x".repeat(MATCH_BYTES_MAX);
        for number in 0..10_000 {
            matches.push(JAIL, prefix(number), Timestamp::from_secs(number.into()), &line, 5);
        }
        assert!(matches.bytes() <= MATCHES_BYTES_MAX && matches.bytes() > MATCHES_BYTES_MAX / 2);
        assert!(matches.gave_way() > 5_000);
        assert_eq!(matches.take(JAIL, prefix(9_999)).len(), 1);
        assert_eq!(matches.take(JAIL, prefix(0)).len(), 0);
        matches.expire(Timestamp::from_secs(20_000));
        assert_eq!(matches.bytes(), 0);
    }
}
