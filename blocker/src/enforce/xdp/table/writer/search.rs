//! Where a fingerprint lies, or may lie.
#![forbid(unsafe_code)]

use blocker_ebpf::table::{BUCKET_SLOTS, EMPTY, PROBES_MAX, TOMBSTONE, home};

use super::{
    super::memory::{At, Memory},
    Entry, Filling, Writer,
};

pub(super) enum Located {
    At(usize),
    /// It is nowhere, and may lie here.
    Free(usize),
    NoRoom,
}

impl Writer {
    /// As [`Self::locate`], and where there is no room, some is made: of a million bans in a table of theirs, a handful
    /// meets 32 slots that are taken.
    pub(super) fn room(&self, memory: &mut impl Memory, print: u64) -> Located {
        match self.locate(memory, print) {
            Located::NoRoom => self.displace(memory, print).map_or(Located::NoRoom, Located::Free),
            located => located,
        }
    }

    /// Moves a neighbour to where it can lie as well, and says which slot is free now. The neighbour is seen twice for a
    /// moment, never not at all.
    fn displace(&self, memory: &mut impl Memory, print: u64) -> Option<usize> {
        if print <= TOMBSTONE {
            return None;
        }
        let first = home(print, self.buckets);
        // From the last one on: what begins its search there has the most places left.
        let slots = first as usize * BUCKET_SLOTS..(first + PROBES_MAX) as usize * BUCKET_SLOTS;
        slots.rev().find_map(|slot| {
            let neighbour = memory.load(At::Slot(slot));
            let Located::Free(other) = self.locate_beyond(memory, neighbour, slot / BUCKET_SLOTS) else {
                return None;
            };
            let Entry { prefix, end, packets, is_dormant, .. } = self.entry(memory, slot)?;
            self.fill(memory, other, Filling { prefix, print: neighbour, is_dormant, end, packets });
            memory.store(At::Slot(slot), TOMBSTONE);
            let since = memory.load(At::Packets(slot)).saturating_sub(packets);
            if since > 0 {
                memory.count(other, since);
            }
            Some(slot)
        })
    }

    /// A free slot for what lies in this bucket, in one of those where it is looked for after it.
    fn locate_beyond(&self, memory: &mut impl Memory, print: u64, bucket: usize) -> Located {
        let end = (home(print, self.buckets) + PROBES_MAX) as usize;
        for bucket in bucket + 1..end {
            for slot in bucket * BUCKET_SLOTS..(bucket + 1) * BUCKET_SLOTS {
                if memory.load(At::Slot(slot)) <= TOMBSTONE {
                    return Located::Free(slot);
                }
            }
        }
        Located::NoRoom
    }

    pub(super) fn locate(&self, memory: &mut impl Memory, print: u64) -> Located {
        if print <= TOMBSTONE {
            return Located::NoRoom;
        }
        let first = home(print, self.buckets) as usize;
        let mut free = None;
        for bucket in first..first + PROBES_MAX as usize {
            let words = memory.bucket(bucket);
            let slot = |places: u32| bucket * BUCKET_SLOTS + places.trailing_zeros() as usize;
            let found = places(&words, |word| word == print);
            if found != 0 {
                return Located::At(slot(found));
            }
            let vacant = places(&words, |word| word <= TOMBSTONE);
            if vacant != 0 {
                free = free.or(Some(slot(vacant)));
            }
            // A fingerprint that went past this bucket would have met it full.
            if places(&words, |word| word == EMPTY) != 0 {
                break;
            }
        }
        free.map_or(Located::NoRoom, Located::Free)
    }
}

/// A bit for each word of a bucket of which this holds: without a branch for each, which nobody could foretell.
pub(super) fn places(words: &[u64; BUCKET_SLOTS], holds: impl Fn(u64) -> bool) -> u32 {
    words.iter().enumerate().fold(0, |places, (place, word)| places | u32::from(holds(*word)) << place)
}
