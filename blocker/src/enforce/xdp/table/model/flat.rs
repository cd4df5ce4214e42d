//! A table that nobody reads while it is written.

use std::collections::BTreeMap;

use blocker_ebpf::table::{self, BUCKET_SLOTS, STATE_WORDS, Table, Words};

use super::super::memory::{At, Memory};

/// A table's maps in this process.
pub(super) struct Flat {
    pub(super) slots: Vec<u64>,
    pub(super) ends: Vec<u64>,
    pub(super) packets: Vec<u64>,
    pub(super) codes: Vec<u64>,
    pub(super) keys: Vec<u64>,
    pub(super) highs: BTreeMap<u64, u64>,
    pub(super) prefilter: Vec<u64>,
    pub(super) state: Vec<u64>,
}

impl Flat {
    pub(super) fn new(buckets: u32) -> Self {
        let slots = table::elements(buckets) as usize * BUCKET_SLOTS;
        let zeros = |length| vec![0; length];
        Self {
            slots: zeros(slots),
            ends: zeros(slots),
            packets: zeros(slots),
            codes: zeros(slots),
            keys: zeros(2 * slots),
            highs: BTreeMap::new(),
            prefilter: zeros(2 * table::PREFILTER_WORDS as usize),
            state: zeros(STATE_WORDS),
        }
    }

    fn place(&mut self, at: At) -> &mut u64 {
        match at {
            At::Slot(slot) => &mut self.slots[slot],
            At::End(slot) => &mut self.ends[slot],
            At::Packets(slot) => &mut self.packets[slot],
            At::Code(slot) => &mut self.codes[slot],
            At::Key(slot, half) => &mut self.keys[2 * slot + half],
            At::High(print) => self.highs.entry(print).or_default(),
            At::Prefilter(index) => &mut self.prefilter[index],
            At::State(index) => &mut self.state[index],
        }
    }
}

impl Memory for Flat {
    fn load(&mut self, at: At) -> u64 {
        *self.place(at)
    }

    fn store(&mut self, at: At, value: u64) {
        *self.place(at) = value;
    }
}

pub(super) struct Still<'a> {
    pub(super) flat: &'a Flat,
    pub(super) now: u32,
}

pub(super) struct StillWords<'a>(&'a [u64]);

impl Words for StillWords<'_> {
    fn word(&self, index: usize) -> u64 {
        self.0[index]
    }
}

pub(super) fn element(words: &[u64], index: u32, length: usize) -> Option<StillWords<'_>> {
    words.chunks_exact(length).nth(index as usize).map(StillWords)
}

impl<'a> Table for Still<'a> {
    type Words = StillWords<'a>;

    fn bucket(&self, index: u32) -> Option<StillWords<'a>> {
        element(&self.flat.slots, index, BUCKET_SLOTS)
    }

    fn meta(&self, index: u32) -> Option<StillWords<'a>> {
        element(&self.flat.ends, index, BUCKET_SLOTS)
    }

    fn keys(&self, index: u32) -> Option<StillWords<'a>> {
        element(&self.flat.keys, index, 2 * BUCKET_SLOTS)
    }

    fn prefilter(&self, index: u32) -> Option<u64> {
        self.flat.prefilter.get(index as usize).copied()
    }

    fn state(&self) -> Option<StillWords<'a>> {
        Some(StillWords(&self.flat.state))
    }

    fn now(&self) -> u32 {
        self.now
    }
}
