//! The maps of a table as the memory that its writer writes.
#![forbid(unsafe_code)]

use std::{os::fd::AsFd as _, path::Path};

use aya::maps::{LpmTrie as Trie, Map, MapData, MapError, lpm_trie};
use blocker_ebpf::table::{
    BUCKET_META, BUCKET_SLOTS, HIGHS, KEYS, META, ONE_PACKET, PREFILTER, PREFILTER_WORDS, SLOTS, STATE_WORDS,
    TABLE, elements,
};

use super::{
    super::{EnforceError, chain, refused},
    memory::{At, Memory},
    window::Windows,
};

/// The table's maps as memory.
#[derive(Debug)]
pub(super) struct Maps {
    slots: Windows,
    meta: Windows,
    /// Only of an exact table, whose program looks at them.
    keys: Option<Windows>,
    highs: Trie<MapData, u64, u64>,
    /// Why one of those could not be kept.
    failed: Option<MapError>,
    prefilter: Windows,
    state: Windows,
}

pub(super) const WORD: usize = size_of::<u64>();

/// Where a slot's word of [`META`] is.
fn meta_at(slot: usize) -> usize {
    (slot / BUCKET_SLOTS * BUCKET_META + slot % BUCKET_SLOTS) * WORD
}

/// Where its code is.
fn code_at(slot: usize) -> usize {
    (slot / BUCKET_SLOTS * BUCKET_META + BUCKET_SLOTS) * WORD + slot % BUCKET_SLOTS * size_of::<u16>()
}

fn high_key(print: u64) -> lpm_trie::Key<u64> {
    lpm_trie::Key::new(u64::BITS, print)
}

impl Memory for Maps {
    fn load(&mut self, at: At) -> u64 {
        match at {
            At::Slot(slot) => self.slots.load(slot * WORD),
            At::End(slot) => self.meta.load_half(meta_at(slot)).into(),
            At::Packets(slot) => self.meta.load_half(meta_at(slot) + WORD / 2).into(),
            At::Code(slot) => self.meta.load_quarter(code_at(slot)).into(),
            At::Key(slot, half) => self.keys.as_mut().map_or(0, |keys| keys.load((slot * 2 + half) * WORD)),
            At::High(print) => self.highs.get(&high_key(print), 0).unwrap_or(0),
            At::Prefilter(index) => self.prefilter.load(index * WORD),
            At::State(index) => self.state.load(index * WORD),
        }
    }

    fn store(&mut self, at: At, value: u64) {
        match at {
            At::Slot(slot) => self.slots.store(slot * WORD, value),
            At::End(slot) => self.meta.store_half(meta_at(slot), value as u32),
            At::Packets(slot) => self.meta.store_half(meta_at(slot) + WORD / 2, value as u32),
            At::Code(slot) => self.meta.store_quarter(code_at(slot), value as u16),
            At::Key(slot, half) => {
                if let Some(keys) = &mut self.keys {
                    keys.store((slot * 2 + half) * WORD, value);
                }
            }
            // What is not there is 0.
            At::High(print) if value == 0 => {
                let _not_there = self.highs.remove(&high_key(print));
            }
            At::High(print) => {
                if let Err(error) = self.highs.insert(&high_key(print), value, 0) {
                    self.failed = Some(error);
                }
            }
            At::Prefilter(index) => self.prefilter.store(index * WORD, value),
            At::State(index) => self.state.store(index * WORD, value),
        }
    }

    fn count(&mut self, slot: usize, packets: u64) {
        self.meta.add(meta_at(slot), packets.saturating_mul(ONE_PACKET));
    }

    fn bucket(&mut self, bucket: usize) -> [u64; BUCKET_SLOTS] {
        self.slots.load_line(bucket * BUCKET_SLOTS * WORD)
    }

    fn expect(&mut self, at: At) {
        match at {
            At::Slot(slot) => self.slots.prefetch(slot * WORD),
            At::End(slot) | At::Packets(slot) => self.meta.prefetch(meta_at(slot)),
            At::Code(slot) => self.meta.prefetch(code_at(slot)),
            At::Prefilter(index) => self.prefilter.prefetch(index * WORD),
            At::Key(..) | At::High(_) | At::State(_) => {}
        }
    }
}

impl Maps {
    /// Opens the maps that are pinned in a folder.
    pub(super) fn open(at: &Path, buckets: u32, is_exact: bool) -> Result<Self, EnforceError> {
        let failed = |name: &str, cause: String| {
            refused(format!("open the map {}", at.join(name).display()), cause, "")
        };
        let pinned =
            |name: &str| MapData::from_pin(at.join(name)).map_err(|error| failed(name, chain(&error)));
        let windows = |name: &str, bytes| {
            Windows::new(pinned(name)?.fd().as_fd(), bytes).map_err(|error| failed(name, error.to_string()))
        };
        let (buckets, slots) = (elements(buckets) as usize, elements(buckets) as usize * BUCKET_SLOTS);
        Ok(Self {
            slots: windows(SLOTS, slots * WORD)?,
            meta: windows(META, buckets * BUCKET_META * WORD)?,
            keys: if is_exact { Some(windows(KEYS, slots * 2 * WORD)?) } else { None },
            highs: Trie::try_from(Map::LpmTrie(pinned(HIGHS)?))
                .map_err(|error| failed(HIGHS, chain(&error)))?,
            failed: None,
            prefilter: windows(PREFILTER, PREFILTER_WORDS as usize * 2 * WORD)?,
            state: windows(TABLE, STATE_WORDS * WORD)?,
        })
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Windows> {
        [&mut self.slots, &mut self.meta, &mut self.prefilter, &mut self.state]
            .into_iter()
            .chain(&mut self.keys)
    }

    pub(super) fn rest(&mut self) {
        self.all().for_each(Windows::rest);
    }

    /// Whether everything was read and kept since this was last asked.
    #[inline]
    pub(super) fn check(&mut self) -> Result<(), EnforceError> {
        let is_sound = self.failed.is_none()
            && self.slots.is_sound()
            && self.meta.is_sound()
            && self.prefilter.is_sound()
            && self.state.is_sound()
            && self.keys.as_ref().is_none_or(Windows::is_sound);
        if is_sound { Ok(()) } else { self.take_failure() }
    }

    #[cold]
    fn take_failure(&mut self) -> Result<(), EnforceError> {
        if let Some(error) = self.failed.take() {
            return Err(refused("keep an IPv6 prefix of more than 64 bits", chain(&error), ""));
        }
        match self.all().find_map(Windows::take_failure) {
            None => Ok(()),
            Some(error) => {
                Err(refused("map the ban table into memory", error.to_string(), "there is too little memory"))
            }
        }
    }
}
