//! Which of several sets holds an address, where one would be too large to list.
//!
//! The kernel continues a listing by walking the set from its start, so that listing one takes time by the square of
//! its size: 0.15 s for 50,000 elements, over a minute for a million. Many bans are therefore spread over sets of
//! about [`ELEMENTS`] each, by the hash that the rule `jhash .. mod .. seed ..` computes too. The seed is chosen by
//! chance for each table: nobody can aim all his addresses at one set and fill it.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher as _, RandomState};

use super::message::array;

/// Bans of one set when the table holds as many as it may.
const ELEMENTS: usize = 16_384;
/// Up to so many bans, one set is listed fast enough, and a packet is spared the hash.
const BANS_UNSHARDED: usize = 65_536;
/// Sets of one prefix length: 2,000,000 bans by [`ELEMENTS`]; more bans are more a set.
const COUNT_MAX: u32 = 128;
/// What begins our note in a map's user data: a type that `nft` has no use for, and how many bytes follow.
const NOTE: [u8; 2] = [200, 8];

/// Into how many sets the prefixes of one length go, and by which hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shards {
    /// A power of two; 1 where no hash is asked.
    pub(super) count: u32,
    /// Of the hash.
    pub(super) seed: u32,
}

impl Shards {
    /// All in one set.
    pub(super) const NONE: Self = Self { count: 1, seed: 0 };

    /// As `bans_max` bans want it, with a seed of its own.
    pub(super) fn of(bans_max: usize) -> Self {
        if bans_max <= BANS_UNSHARDED {
            return Self::NONE;
        }
        let wanted = bans_max.div_ceil(ELEMENTS).next_power_of_two();
        // The keys of `RandomState` are drawn from the system's entropy.
        let seed = RandomState::new().hash_one(bans_max).to_ne_bytes();
        Self {
            count: u32::try_from(wanted).unwrap_or(COUNT_MAX).min(COUNT_MAX),
            seed: array(&seed, 0).map_or(0, u32::from_ne_bytes),
        }
    }

    /// The place of a key, as the kernel finds it (`nft_jhash_eval`).
    pub(super) fn place(self, key: &[u8]) -> u32 {
        let scaled = (u64::from(hash(key, self.seed)) * u64::from(self.count)) >> 32;
        u32::try_from(scaled).unwrap_or(0)
    }

    /// What is noted in the map that leads to the sets, so that a later agent finds them.
    pub(super) fn note(self) -> Vec<u8> {
        [&NOTE[..], &self.count.to_be_bytes(), &self.seed.to_be_bytes()].concat()
    }

    /// Reads such a note from the end of user data.
    pub(super) fn from_note(data: &[u8]) -> Option<Self> {
        let note = data.get(data.len().checked_sub(10)?..)?.strip_prefix(&NOTE)?;
        Some(Self { count: u32::from_be_bytes(array(note, 0)?), seed: u32::from_be_bytes(array(note, 4)?) })
    }
}

/// Bob Jenkins' lookup3, as the kernel has it: whole words in host order, the rest bytewise.
fn hash(mut key: &[u8], seed: u32) -> u32 {
    let length = u32::try_from(key.len()).unwrap_or(u32::MAX);
    let start = 0xdead_beef_u32.wrapping_add(length).wrapping_add(seed);
    let mut words = [start; 3];
    while key.len() > 12 {
        for (word, at) in words.iter_mut().zip([0, 4, 8]) {
            *word = word.wrapping_add(array(key, at).map_or(0, u32::from_ne_bytes));
        }
        // Each round takes one word by another, and adds a third to that.
        for (round, bits) in [4, 6, 8, 16, 19, 4].into_iter().enumerate() {
            let (target, other, third) = (round % 3, (round + 2) % 3, (round + 1) % 3);
            words[target] = words[target].wrapping_sub(words[other]) ^ words[other].rotate_left(bits);
            words[other] = words[other].wrapping_add(words[third]);
        }
        key = &key[12..];
    }
    if key.is_empty() {
        return words[2];
    }
    let mut rest = [0; 12];
    rest[..key.len()].copy_from_slice(key);
    for (word, at) in words.iter_mut().zip([0, 4, 8]) {
        *word = word.wrapping_add(array(&rest, at).map_or(0, u32::from_le_bytes));
    }
    for (round, bits) in [14, 11, 25, 16, 4, 14, 24].into_iter().enumerate() {
        let (target, other) = ((round + 2) % 3, (round + 1) % 3);
        words[target] = (words[target] ^ words[other]).wrapping_sub(words[other].rotate_left(bits));
    }
    words[2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_bans_are_one_set_and_many_are_sets_of_a_size_that_lists() {
        for (bans_max, count) in
            [(1, 1), (65_536, 1), (65_537, 8), (200_000, 16), (1_000_000, 64), (5_000_000, 128)]
        {
            assert_eq!(Shards::of(bans_max).count, count, "{bans_max}");
        }
        assert_ne!(Shards::of(1_000_000).seed, Shards::of(1_000_000).seed, "by chance");
    }

    #[test]
    fn keys_are_spread_evenly_and_by_seed() {
        for seed in [0, 1, 0xffff_ffff] {
            let shards = Shards { count: 64, seed };
            for width in [4, 16] {
                let mut sizes = [0_u32; 64];
                for n in 0..64_000_u32 {
                    let mut key = vec![0; width];
                    key[width - 4..].copy_from_slice(&n.to_be_bytes());
                    sizes[shards.place(&key) as usize] += 1;
                }
                assert!(sizes.iter().all(|size| (850..1_150).contains(size)), "{sizes:?}");
            }
        }
        let keys: Vec<[u8; 4]> = (0..100_u32).map(u32::to_be_bytes).collect();
        let places = |seed| keys.iter().map(|key| Shards { count: 64, seed }.place(key)).collect::<Vec<_>>();
        assert_ne!(places(1), places(2));
    }

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let shards = Shards::of(1_000_000);
        assert_eq!(Shards::from_note(&shards.note()), Some(shards));
        for length in 0..shards.note().len() {
            assert_eq!(Shards::from_note(&shards.note()[..length]), None, "{length}");
        }
    }
}
