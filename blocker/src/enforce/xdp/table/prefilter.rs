//! The prefilter as the bans want it: which bits are set, and how readers are told to ask for them.
//!
//! | ban | bits | flag |
//! |---|---|---|
//! | IPv4 | of each /24 in it, or around it | |
//! | IPv6 of 48 bits and more | of its /48 | |
//! | of 32 to 47 | of its /32 | [`WIDE_V6`] |
//! | of 16 to 31 | of each /32 in it, for so many in all | [`WIDE_V6`], beyond them [`SKIP_V6`] |
//! | shorter | none | [`SKIP_V6`] |
//!
//! A bit is set and a flag is raised before the ban is seen, and a flag is lowered after it is gone. Bits are only ever
//! set one by one; stale ones cost time and are cleared by writing each word as it should be, once enough are stale. What
//! bits there should be follows from the bans, so nothing is kept for each of them.
#![forbid(unsafe_code)]

use std::{net::IpAddr, ops::RangeInclusive};

use blocker_ebpf::table::{
    FLAGS, PREFILTER_V6_MIN, PREFILTER_V6_NARROW, PREFILTER_WORDS, SKIP_V6, WIDE_V6, prefilter_v4,
    prefilter_v6, prefilter_v6_wide,
};

use super::memory::{At, Memory};
use crate::net::Prefix;

/// Stale bits before the prefilter is written anew, beside as many as there are bans.
const STALE_MIN: u64 = 4_096;
/// Bits set for the /32s inside wider bans: 32 in 1,000 of what there are, so that so many honest packets are looked up
/// for nothing at most.
const EXPANDED_MAX: u64 = 1 << 19;

/// What is known of the prefilter beside its words.
#[derive(Debug)]
pub(super) struct Prefilter {
    seed: u64,
    /// Bans marked by a /32, or by those in them.
    wide: u32,
    /// Bits of bans that are wider than a /32, whether they were set or not.
    expanded: u64,
    expanded_max: u64,
    /// Bans too wide for bits.
    boundless: u32,
    /// Whether there may be bans that have no bits because there were too many.
    is_short: bool,
    /// Bits set for bans that are gone since all were right.
    stale: u64,
    /// What must stay raised until every ban was counted.
    held: u64,
    published: u64,
}

impl Prefilter {
    /// Of a table whose flags are these and were set for bans that are not yet counted.
    pub(super) fn new(seed: u64, flags: u64) -> Self {
        Self {
            seed,
            wide: 0,
            expanded: 0,
            expanded_max: EXPANDED_MAX,
            boundless: 0,
            is_short: false,
            stale: 0,
            held: flags,
            published: flags,
        }
    }

    #[cfg(test)]
    pub(super) fn set_expanded_max(&mut self, bits: u64) {
        self.expanded_max = bits;
    }

    /// Every ban is counted: flags say what they want, and no more.
    pub(super) fn counted(&mut self, memory: &mut impl Memory) {
        self.held = 0;
        self.publish(memory);
    }

    /// A ban is about to be written.
    pub(super) fn add(&mut self, memory: &mut impl Memory, prefix: Prefix) {
        match marks(prefix, self.seed) {
            Marks::Range(bits) => set(memory, bits),
            Marks::Inside(networks) => {
                self.wide += 1;
                self.expanded += expanded(&networks);
                if self.expanded > self.expanded_max && expanded(&networks) > 0 {
                    self.is_short = true;
                } else {
                    for network in networks {
                        let bit = prefilter_v6_wide(network, self.seed);
                        set(memory, bit..=bit);
                    }
                }
                self.publish(memory);
            }
            Marks::None => {
                self.boundless += 1;
                self.publish(memory);
            }
        }
    }

    /// A ban was removed.
    pub(super) fn remove(&mut self, memory: &mut impl Memory, prefix: Prefix) {
        match marks(prefix, self.seed) {
            Marks::Range(bits) => self.spoil(u64::from(bits.end() - bits.start()) + 1),
            Marks::Inside(networks) => {
                self.wide = self.wide.saturating_sub(1);
                self.expanded = self.expanded.saturating_sub(expanded(&networks));
                self.spoil(u64::from(networks.end() - networks.start()) + 1);
                self.publish(memory);
            }
            Marks::None => {
                self.boundless = self.boundless.saturating_sub(1);
                self.publish(memory);
            }
        }
    }

    fn spoil(&mut self, bits: u64) {
        self.stale = self.stale.saturating_add(bits);
    }

    /// Something is wrong with the bits that are set.
    pub(super) fn doubt(&mut self) {
        self.stale = u64::MAX;
    }

    /// Whether it pays to write it anew, where there are so many bans.
    pub(super) fn is_due(&self, bans: usize) -> bool {
        let bans = u64::try_from(bans).unwrap_or(u64::MAX);
        self.stale > bans.max(STALE_MIN) || self.is_short && self.has_room()
    }

    fn has_room(&self) -> bool {
        self.expanded <= self.expanded_max
    }

    /// Writes each word as these bans, which are all there are, want it.
    pub(super) fn renew(&mut self, memory: &mut impl Memory, bans: impl Iterator<Item = Prefix>) {
        let mut words = vec![0_u64; 2 * PREFILTER_WORDS as usize];
        for prefix in bans {
            let mut set = |bits| {
                for (index, mask) in masks(bits) {
                    if let Some(word) = words.get_mut(index) {
                        *word |= mask;
                    }
                }
            };
            match marks(prefix, self.seed) {
                Marks::Range(bits) => set(bits),
                Marks::Inside(networks) if expanded(&networks) == 0 || self.has_room() => {
                    for network in networks {
                        let bit = prefilter_v6_wide(network, self.seed);
                        set(bit..=bit);
                    }
                }
                Marks::Inside(_) | Marks::None => {}
            }
        }
        // While bans go without bits, readers are told to ask nothing of IPv6; one that was not told yet still finds those
        // that are set.
        let right = if self.has_room() { words.len() } else { words.len() / 2 };
        for (index, word) in words.into_iter().enumerate().take(right) {
            if memory.load(At::Prefilter(index)) != word {
                memory.store(At::Prefilter(index), word);
            }
        }
        self.is_short &= !self.has_room();
        self.stale = 0;
        self.publish(memory);
    }

    /// Why every IPv6 packet is looked up, where it is so: for `status`.
    pub(super) fn note(&self) -> Option<String> {
        let why = if self.boundless > 0 {
            format!("{} IPv6 bans are shorter than /{PREFILTER_V6_MIN}", self.boundless)
        } else if self.is_short {
            let (most, there) = (self.expanded_max, self.expanded);
            format!("IPv6 bans shorter than /32 hold {there} networks of that size, and {most} can be marked")
        } else {
            return None;
        };
        Some(format!(
            "every IPv6 packet is looked up in the table, because {why}; longer prefixes cost honest packets nothing"
        ))
    }

    /// The first word that a ban sets, where it is the only one or others follow it.
    pub(super) fn first_word(&self, prefix: Prefix) -> Option<usize> {
        match marks(prefix, self.seed) {
            Marks::Range(bits) => Some(*bits.start() as usize / 64),
            Marks::Inside(_) | Marks::None => None,
        }
    }

    fn publish(&mut self, memory: &mut impl Memory) {
        let mut flags = self.held;
        if self.wide > 0 {
            flags |= WIDE_V6;
        }
        if self.boundless > 0 || self.is_short {
            flags |= SKIP_V6;
        }
        if flags != self.published {
            memory.store(At::State(FLAGS), flags);
            self.published = flags;
        }
    }
}

/// What stands for a ban.
enum Marks {
    /// These bits.
    Range(RangeInclusive<u32>),
    /// Those of the /32s with these first bits.
    Inside(RangeInclusive<u32>),
    None,
}

fn marks(prefix: Prefix, seed: u64) -> Marks {
    let length = prefix.length();
    match prefix.address() {
        IpAddr::V4(address) => {
            let first = prefilter_v4(address.to_bits());
            Marks::Range(first..=first + ((1 << 24_u8.saturating_sub(length)) - 1))
        }
        IpAddr::V6(_) if length < PREFILTER_V6_MIN => Marks::None,
        IpAddr::V6(address) if length < PREFILTER_V6_NARROW => {
            let first = (address.to_bits() >> 96) as u32;
            Marks::Inside(first..=first + ((1 << 32_u8.saturating_sub(length)) - 1))
        }
        IpAddr::V6(address) => {
            let bit = prefilter_v6((address.to_bits() >> 64) as u64, seed);
            Marks::Range(bit..=bit)
        }
    }
}

/// How many of these bits count towards [`EXPANDED_MAX`]: a single one is not more than any ban has.
fn expanded(networks: &RangeInclusive<u32>) -> u64 {
    match u64::from(networks.end() - networks.start()) {
        0 => 0,
        more => more + 1,
    }
}

/// The words that these bits are in, and which of theirs they are.
fn masks(bits: RangeInclusive<u32>) -> impl Iterator<Item = (usize, u64)> {
    let (begin, end) = bits.into_inner();
    (begin / 64..=end / 64).map(move |index| {
        let (first, last) = (begin.max(index * 64) % 64, end.min(index * 64 + 63) % 64);
        (index as usize, u64::MAX << first & u64::MAX >> (63 - last))
    })
}

fn set(memory: &mut impl Memory, bits: RangeInclusive<u32>) {
    for (index, mask) in masks(bits) {
        let at = At::Prefilter(index);
        let word = memory.load(at);
        if word & mask != mask {
            memory.store(at, word | mask);
        }
    }
}
