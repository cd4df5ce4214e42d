//! The tracked pairs as bytes, in pages that are written only when something on them changed.
//!
//! A page holds a few neighbouring places, so that what a flood adds is written in few pieces, and one failure changes
//! one piece. Whether the bytes are still what was written is for whoever keeps them to know; what cannot be a page is
//! refused all the same.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{JailKey, Windows, window::Window};
use crate::net::Prefix;

/// Places on a page.
const PLACES: usize = 32;
/// The form of a page's bytes.
const VERSION: u8 = 1;

/// Which pages changed since they were last kept.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pages: Vec<u64>,
    /// Places were given out anew: nothing that is kept is right.
    all: bool,
}

impl Changed {
    pub(super) fn mark(&mut self, place: usize) {
        let page = place / PLACES;
        if self.pages.len() <= page / 64 {
            self.pages.resize(page / 64 + 1, 0);
        }
        self.pages[page / 64] |= 1 << (page % 64);
    }

    pub(super) fn mark_all(&mut self) {
        self.all = true;
    }
}

impl Windows {
    /// Whether all that is kept is to be replaced, by [`Self::changed_pages`].
    pub fn all_changed(&self) -> bool {
        self.changed.all
    }

    /// All pages.
    pub fn all_pages(&self) -> impl Iterator<Item = u32> {
        0..u32::try_from(self.pairs.len().div_ceil(PLACES)).unwrap_or(u32::MAX)
    }

    /// The pages that are to be kept anew, in order.
    pub fn changed_pages(&self) -> impl Iterator<Item = u32> {
        let words = &self.changed.pages;
        let changed = |page: usize| words.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 == 1);
        self.all_pages().filter(move |page| self.changed.all || changed(*page as usize))
    }

    /// What is on a page; `None` where it is empty.
    pub fn page(&self, page: u32) -> Option<Vec<u8>> {
        let start = page as usize * PLACES;
        let places = self.pairs.get(start..)?;
        let mut bytes = vec![VERSION];
        for (jail, prefix, window) in places.iter().take(PLACES).flatten() {
            bytes.extend(jail.0.to_le_bytes());
            match prefix.address() {
                IpAddr::V4(v4) => {
                    bytes.push(4);
                    bytes.extend(v4.octets());
                }
                IpAddr::V6(v6) => {
                    bytes.push(6);
                    bytes.extend(v6.octets());
                }
            }
            bytes.push(prefix.length());
            window.write(&mut bytes);
        }
        (bytes.len() > 1).then_some(bytes)
    }

    /// Everything that changed is kept now.
    pub fn kept(&mut self) {
        self.changed.pages.fill(0);
        self.changed.all = false;
    }

    /// Tracks again what is on a page, those pairs that `wanted` gives a jail's number of now. `None` where it is no
    /// page; what came before that is tracked.
    pub fn restore(&mut self, page: &[u8], wanted: impl Fn(JailKey) -> Option<JailKey>) -> Option<()> {
        let (version, mut rest) = page.split_first()?;
        if *version != VERSION {
            return None;
        }
        self.changed.mark_all();
        while !rest.is_empty() {
            let jail = JailKey(u32::from_le_bytes(take(&mut rest)?));
            let [family] = take(&mut rest)?;
            let address: IpAddr = match family {
                4 => Ipv4Addr::from(take::<4>(&mut rest)?).into(),
                6 => Ipv6Addr::from(take::<16>(&mut rest)?).into(),
                _ => return None,
            };
            let [length] = take(&mut rest)?;
            let prefix = Prefix::new(address, length)?;
            let window = Window::read(&mut rest)?;
            let Some(jail) = wanted(jail) else { continue };
            let hash = self.hash(jail, prefix);
            if self.find(hash, jail, prefix).is_none() {
                self.track(hash, (jail, prefix, window));
            }
        }
        Some(())
    }
}

/// Takes the first `N` bytes off.
pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk::<N>()?;
    *rest = left;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::{detect::Count, time::Timestamp};

    fn prefix(number: u16) -> Prefix {
        let [high, low] = number.to_be_bytes();
        if number.is_multiple_of(3) {
            Prefix::new(Ipv6Addr::from([0x2001, 0xdb8, number, 0, 0, 0, 0, 0]).into(), 64).unwrap()
        } else {
            Prefix::host(Ipv4Addr::from([203, 0, high, low]).into())
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Whoever restores at any moment what was kept last, and counts again what came since, is where one who was
        /// never stopped is.
        #[test]
        fn what_is_kept_and_counted_again_is_what_was(
            steps in prop::collection::vec((0_u32..2, 0_u16..200, 0_i64..3, 0_u8..60), 1..400),
            seed in any::<u64>(),
            tracked_max in 150_usize..1_000,
        ) {
            let span = Duration::from_secs(300);
            let count = |windows: &mut Windows, (jail, number, _, _), at: i64| {
                windows.count(JailKey(jail), prefix(number), Timestamp::from_secs(at), 4, span)
            };
            let mut lasting = Windows::new(100_000, 1);
            let mut stopped = Windows::new(100_000, seed);
            let mut disk: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
            let (mut now, mut since) = (1_000, Vec::new());
            for step in steps {
                now += step.2;
                since.push((step, now));
                prop_assert_eq!(count(&mut stopped, step, now), count(&mut lasting, step, now));
                match step.3 {
                    0..20 => {
                        if stopped.all_changed() {
                            disk.clear();
                        }
                        for number in stopped.changed_pages().collect::<Vec<_>>() {
                            match stopped.page(number) {
                                Some(bytes) => disk.insert(number, bytes),
                                None => disk.remove(&number),
                            };
                        }
                        stopped.kept();
                        prop_assert_eq!(stopped.changed_pages().count(), 0);
                        since.clear();
                    }
                    20..30 => {
                        stopped = Windows::new(100_000, seed.wrapping_add(1));
                        for page in disk.values() {
                            // The numbers of jails may be others in another life; here they are not.
                            prop_assert!(stopped.restore(page, Some).is_some());
                        }
                        for (step, at) in &since {
                            count(&mut stopped, *step, *at);
                        }
                    }
                    30 => stopped.set_tracked_max(100_000 - tracked_max),
                    _ => {}
                }
            }
        }

        #[test]
        fn no_bytes_are_more_than_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut windows = Windows::new(100, 0);
            let _refused = windows.restore(&bytes, Some);
            let mut whole = vec![VERSION];
            whole.extend(bytes);
            let _refused = windows.restore(&whole, Some);
            // Whatever was taken counts without harm.
            let reached = windows.count(JailKey(0), prefix(1), Timestamp::from_secs(5), 3, Duration::from_secs(9));
            prop_assert!(matches!(reached, Count::Below(_) | Count::Reached(_)));
        }
    }
}
