//! The one writer of the bucket table, against readers that take no lock.
//!
//! It knows where words are and not what they lie in ([`Memory`]), so the same code runs over the kernel's maps, over
//! a vector in the property test, and over a memory that remembers every store in the model test, where readers are
//! run between any two of them.
//!
//! **Publication order.** A store is seen before every later one.
//! * *Insert*: the length into the list, the prefilter bits, then code, key, end and count of a free slot, and its
//!   fingerprint last: whoever sees the fingerprint sees everything that belongs to it.
//! * *Extend, shorten*: one store, of the end.
//! * *Remove*: a tombstone over the fingerprint first, then the length out of the list. A reader that saw the old
//!   fingerprint and then a new tenant's end looks at the fingerprint again and finds another one.
//! * *Slots are filled without holes and never become empty again*: an empty last slot ends a reader's search, so a
//!   fingerprint that went past it must never see it empty.
//! * *A list of lengths* that fits one word changes by one store. A longer one only grows, last word first, so that a
//!   length that moves is seen twice rather than not at all; it shrinks when the table is made anew.
//! * *Displace*: as an insert in another slot of a neighbour's search, then a tombstone where it was.
//! * *Prefilter*: bits and flags of a ban are set before the fingerprint and are cleared after it ([`super::prefilter`]).
//! * *Rehash*: into other maps, which a program reads only once they are complete; its place is taken atomically.
//!
//! So a ban that stands throughout a reader's run is seen by it. A reader that begins before a wider ban is made and is
//! still running when a narrower one is lifted may see neither: it passes one packet that came in between.
//!
//! A ban inside an allowlisted prefix is kept under a second fingerprint that no reader asks for: it is listed, and
//! drops nothing until the allowlist lets go of it.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use blocker_ebpf::table::{
    BUCKET_SLOTS, FLAGS, FOREVER, Key, LENGTHS_V4, LENGTHS_V4_WORDS, LENGTHS_V6, LENGTHS_V6_WORDS, PASSES,
    TOMBSTONE, elements, home,
};

use super::{
    memory::{At, Memory},
    prefilter::Prefilter,
};
use crate::{allowlist::PrefixSet, net::Prefix};

mod allow;
mod lengths;
mod prints;
mod search;

use lengths::Lengths;
use prints::{DORMANT, code_of, fingerprint, is_long, is_v6, key_of, length_of, to_sleep};
use search::{Located, places};

/// Why a ban was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// As many bans as there may be are in force.
    Full,
    /// Every slot it could lie in is taken: the table must be made anew.
    NoRoom,
}

/// An entry as it lies in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) slot: usize,
    pub(super) prefix: Prefix,
    pub(super) end: u32,
    pub(super) packets: u64,
    /// Under the fingerprint that no reader asks for.
    is_dormant: bool,
}

impl Entry {
    pub(super) fn is_ban(&self) -> bool {
        self.end != PASSES
    }
}

/// What is known of a table beside its words; all of it can be had from them.
#[derive(Debug)]
pub(super) struct Writer {
    seed: u64,
    buckets: u32,
    bans_max: usize,
    bans: usize,
    allowed: PrefixSet,
    v4: Lengths,
    v6: Lengths,
    prefilter: Prefilter,
}

impl Writer {
    /// A writer of a table that is empty.
    pub(super) fn new(seed: u64, buckets: u32, bans_max: usize) -> Self {
        Self {
            seed,
            buckets,
            bans_max,
            bans: 0,
            allowed: PrefixSet::default(),
            v4: Lengths::new(32, LENGTHS_V4, LENGTHS_V4_WORDS),
            v6: Lengths::new(128, LENGTHS_V6, LENGTHS_V6_WORDS),
            prefilter: Prefilter::new(seed, 0),
        }
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// A writer of a table that another process wrote, and what that one was in the middle of is brought to an end.
    pub(super) fn adopt(memory: &mut impl Memory, seed: u64, buckets: u32, bans_max: usize) -> Self {
        let mut this = Self::new(seed, buckets, bans_max);
        this.prefilter = Prefilter::new(seed, memory.load(At::State(FLAGS)));
        for lengths in [&mut this.v4, &mut this.v6] {
            for index in 0..lengths.words {
                let word = memory.load(At::State(lengths.at + index)).to_le_bytes();
                lengths.listed.extend(word.into_iter().filter_map(|byte| byte.checked_sub(1)));
            }
        }
        for entry in this.scan(memory) {
            let print = fingerprint(entry.prefix, seed, entry.is_dormant);
            if !matches!(this.locate(memory, print), Located::At(slot) if slot == entry.slot) {
                // The other half of a neighbour's move that was cut short.
                memory.store(At::Slot(entry.slot), TOMBSTONE);
                continue;
            }
            this.count(memory, entry.prefix, entry.is_ban());
            if !entry.is_ban() {
                this.allowed.insert(entry.prefix);
            }
        }
        let allowed = this.allowed();
        if this.settle(memory, &allowed).is_err() {
            // There is always room for what lies there already, in the slot it frees.
            this.prefilter.doubt();
        }
        this.prefilter.counted(memory);
        this
    }

    pub(super) fn buckets(&self) -> u32 {
        self.buckets
    }

    pub(super) fn slots(&self) -> usize {
        elements(self.buckets) as usize * BUCKET_SLOTS
    }

    pub(super) fn bans(&self) -> usize {
        self.bans
    }

    pub(super) fn allowed(&self) -> Vec<Prefix> {
        self.allowed.iter().collect()
    }

    pub(super) fn note(&self) -> Option<String> {
        self.prefilter.note()
    }

    /// A ban of this prefix will be made soon.
    pub(super) fn expect(&self, memory: &mut impl Memory, prefix: Prefix) {
        let first = home(fingerprint(prefix, self.seed, false), self.buckets) as usize * BUCKET_SLOTS;
        memory.expect(At::Slot(first));
        // Two cache lines at most.
        memory.expect(At::End(first));
        memory.expect(At::Code(first + BUCKET_SLOTS - 1));
        if let Some(word) = self.prefilter.first_word(prefix) {
            memory.expect(At::Prefilter(word));
        }
    }

    /// Everything in the table.
    pub(super) fn scan(&self, memory: &mut impl Memory) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(self.bans + self.allowed.iter().count());
        self.each(memory, |entry| entries.push(entry));
        entries
    }

    /// Everything in the table, one by one.
    pub(super) fn each(&self, memory: &mut impl Memory, mut visit: impl FnMut(Entry)) {
        for bucket in 0..elements(self.buckets) as usize {
            let words = memory.bucket(bucket);
            let mut taken = places(&words, |word| word > TOMBSTONE);
            while taken != 0 {
                let slot = bucket * BUCKET_SLOTS + taken.trailing_zeros() as usize;
                if let Some(entry) = self.entry(memory, slot) {
                    visit(entry);
                }
                taken &= taken - 1;
            }
        }
    }

    /// What lies in a slot.
    pub(super) fn entry(&self, memory: &mut impl Memory, slot: usize) -> Option<Entry> {
        let found = memory.load(At::Slot(slot));
        if found <= TOMBSTONE {
            return None;
        }
        let code = memory.load(At::Code(slot));
        let (is_dormant, code) = (code & DORMANT != 0, code & !DORMANT);
        let high = if is_long(code) { memory.load(At::High(found)) } else { 0 };
        let half = Key { high, low: 0, code };
        let key = if is_dormant {
            let asleep = to_sleep(half);
            let key = asleep.complete(found, self.seed);
            Key { low: key.low ^ asleep.low, code, ..key }
        } else {
            half.complete(found, self.seed)
        };
        let address = if is_v6(code) {
            IpAddr::V6((u128::from(key.high) << 64 | u128::from(key.low)).into())
        } else {
            IpAddr::V4((key.low as u32).into())
        };
        let prefix = Prefix::new(address, length_of(code))?;
        // Of a slot that its writer did not get to the end of, nothing is believed.
        if fingerprint(prefix, self.seed, is_dormant) != found {
            return None;
        }
        let (end, packets) = (memory.load(At::End(slot)) as u32, memory.load(At::Packets(slot)));
        Some(Entry { slot, prefix, end, packets, is_dormant })
    }

    /// Bans until `end`, or sets the end of a ban; says in which slot.
    pub(super) fn ban(
        &mut self,
        memory: &mut impl Memory,
        prefix: Prefix,
        end: u32,
        now: u32,
    ) -> Result<usize, Refusal> {
        let is_dormant = self.is_allowed(prefix);
        let print = fingerprint(prefix, self.seed, is_dormant);
        let free = match self.room(memory, print) {
            Located::At(slot) => {
                if memory.load(At::End(slot)) as u32 <= now {
                    memory.store(At::Packets(slot), 0);
                }
                memory.store(At::End(slot), end.into());
                return Ok(slot);
            }
            Located::Free(slot) if self.bans < self.bans_max => slot,
            Located::Free(_) => return Err(Refusal::Full),
            Located::NoRoom if self.bans < self.bans_max => return Err(Refusal::NoRoom),
            Located::NoRoom => return Err(Refusal::Full),
        };
        self.count(memory, prefix, true);
        self.fill(memory, free, Filling { prefix, print, is_dormant, end, packets: 0 });
        Ok(free)
    }

    /// Puts a ban with its count where there is none of this prefix: for a table that is made anew.
    pub(super) fn restore(
        &mut self,
        memory: &mut impl Memory,
        prefix: Prefix,
        end: u32,
        packets: u64,
    ) -> Result<(), Refusal> {
        let is_dormant = self.is_allowed(prefix);
        let print = fingerprint(prefix, self.seed, is_dormant);
        let Located::Free(slot) = self.room(memory, print) else { return Err(Refusal::NoRoom) };
        self.count(memory, prefix, true);
        self.fill(memory, slot, Filling { prefix, print, is_dormant, end, packets });
        Ok(())
    }

    /// Ends a ban; says whether there was one.
    pub(super) fn unban(&mut self, memory: &mut impl Memory, prefix: Prefix) -> bool {
        let slot = self.slot_of(memory, prefix);
        if let Some(slot) = slot {
            bury(memory, slot, prefix);
            self.uncount(memory, prefix, true);
        }
        slot.is_some()
    }

    /// Where the ban of exactly this prefix lies.
    pub(super) fn slot_of(&self, memory: &mut impl Memory, prefix: Prefix) -> Option<usize> {
        [false, true].into_iter().find_map(|is_dormant| {
            let Located::At(slot) = self.locate(memory, fingerprint(prefix, self.seed, is_dormant)) else {
                return None;
            };
            (memory.load(At::End(slot)) != u64::from(PASSES)).then_some(slot)
        })
    }

    /// Ends every ban.
    pub(super) fn flush(&mut self, memory: &mut impl Memory) {
        for entry in self.scan(memory) {
            if entry.is_ban() {
                bury(memory, entry.slot, entry.prefix);
                self.uncount(memory, entry.prefix, true);
            }
        }
        self.mark_anew(memory);
    }

    /// Clears what is over in these slots, and writes the prefilter anew where that pays.
    pub(super) fn sweep(&mut self, memory: &mut impl Memory, slots: std::ops::Range<usize>, now: u32) {
        for slot in slots {
            let end = memory.load(At::End(slot)) as u32;
            if end > now || end == PASSES || memory.load(At::Slot(slot)) <= TOMBSTONE {
                continue;
            }
            if let Some(entry) = self.entry(memory, slot) {
                bury(memory, slot, entry.prefix);
                self.uncount(memory, entry.prefix, true);
            }
        }
        if self.prefilter.is_due(self.bans) {
            self.mark_anew(memory);
        }
    }

    /// Brings ends forward by time that the machine slept.
    pub(super) fn shift(&mut self, memory: &mut impl Memory, units: u32) {
        for slot in 0..self.slots() {
            let end = memory.load(At::End(slot)) as u32;
            if memory.load(At::Slot(slot)) > TOMBSTONE && end != PASSES && end != FOREVER {
                memory.store(At::End(slot), end.saturating_sub(units).max(1).into());
            }
        }
    }

    fn fill(&self, memory: &mut impl Memory, slot: usize, entry: Filling) {
        let Filling { prefix, print, is_dormant, end, packets } = entry;
        let key = key_of(prefix);
        let [first, second] = key.stored();
        memory.store(At::Code(slot), code_of(prefix, is_dormant));
        if is_long(key.code) {
            memory.store(At::High(print), key.high);
        }
        memory.store(At::Key(slot, 0), first);
        memory.store(At::Key(slot, 1), second);
        memory.store(At::End(slot), end.into());
        memory.store(At::Packets(slot), packets);
        memory.store(At::Slot(slot), print);
    }

    /// An entry is about to be written.
    fn count(&mut self, memory: &mut impl Memory, prefix: Prefix, is_ban: bool) {
        self.lengths(prefix).add(memory, prefix.length());
        if !is_ban {
            return;
        }
        self.bans += 1;
        self.prefilter.add(memory, prefix);
    }

    /// An entry was removed.
    fn uncount(&mut self, memory: &mut impl Memory, prefix: Prefix, is_ban: bool) {
        self.lengths(prefix).remove(memory, prefix.length());
        if !is_ban {
            return;
        }
        self.bans = self.bans.saturating_sub(1);
        self.prefilter.remove(memory, prefix);
    }

    fn lengths(&mut self, prefix: Prefix) -> &mut Lengths {
        if prefix.address().is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }

    /// Writes the prefilter as the bans there are want it.
    fn mark_anew(&mut self, memory: &mut impl Memory) {
        let entries = self.scan(memory);
        self.prefilter.renew(memory, entries.iter().filter(|entry| entry.is_ban()).map(|entry| entry.prefix));
    }

    #[cfg(test)]
    pub(super) fn set_expanded_max(&mut self, bits: u64) {
        self.prefilter.set_expanded_max(bits);
    }
}

/// What is to lie in a slot.
#[derive(Clone, Copy, Debug)]
struct Filling {
    prefix: Prefix,
    /// What it is found by.
    print: u64,
    is_dormant: bool,
    end: u32,
    packets: u64,
}

/// Removes what lies in a slot.
fn bury(memory: &mut impl Memory, slot: usize, prefix: Prefix) {
    let print = memory.load(At::Slot(slot));
    memory.store(At::Slot(slot), TOMBSTONE);
    if is_long(key_of(prefix).code) {
        memory.store(At::High(print), 0);
    }
}
