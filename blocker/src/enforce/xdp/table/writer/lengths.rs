//! The lengths in use, as readers see them.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use blocker_ebpf::table::LENGTHS_PER_WORD;

use super::super::memory::{At, Memory};

/// How many entries of each length, and the list as readers see it.
#[derive(Debug)]
pub(super) struct Lengths {
    counts: Vec<u32>,
    /// What the list holds: all in use and perhaps some that were.
    pub(super) listed: BTreeSet<u8>,
    pub(super) at: usize,
    pub(super) words: usize,
}

impl Lengths {
    pub(super) fn new(length_max: usize, at: usize, words: usize) -> Self {
        Self { counts: vec![0; length_max + 1], listed: BTreeSet::new(), at, words }
    }

    fn is_used(&self, length: u8) -> bool {
        self.counts.get(usize::from(length)).is_some_and(|count| *count > 0)
    }

    fn packed(&self) -> Vec<u64> {
        let lengths: Vec<u8> = self.listed.iter().rev().copied().collect();
        let mut words: Vec<u64> = lengths
            .chunks(LENGTHS_PER_WORD)
            .map(|chunk| chunk.iter().rev().fold(0, |word, length| word << 8 | (u64::from(*length) + 1)))
            .collect();
        words.resize(self.words, 0);
        words
    }

    fn publish(&mut self, memory: &mut impl Memory) {
        for (index, word) in self.packed().into_iter().enumerate().rev() {
            let at = At::State(self.at + index);
            if memory.load(at) != word {
                memory.store(at, word);
            }
        }
    }

    pub(super) fn add(&mut self, memory: &mut impl Memory, length: u8) {
        let Some(count) = self.counts.get_mut(usize::from(length)) else { return };
        *count += 1;
        // What was in use is listed.
        if *count == 1 && self.listed.insert(length) {
            self.publish(memory);
        }
    }

    pub(super) fn remove(&mut self, memory: &mut impl Memory, length: u8) {
        if let Some(count) = self.counts.get_mut(usize::from(length)) {
            *count = count.saturating_sub(1);
        }
        if self.is_used(length) || self.listed.len() > LENGTHS_PER_WORD {
            return;
        }
        let unused: Vec<u8> = self.listed.iter().copied().filter(|length| !self.is_used(*length)).collect();
        for length in unused {
            self.listed.remove(&length);
        }
        self.publish(memory);
    }
}
