//! How a table comes about: adopted from its pins, made, or made anew from another one, which it then replaces.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, fs, path::Path};

use aya::{
    Ebpf,
    maps::{MapData, MapError},
};
use blocker_ebpf::table::{BUCKET_SLOTS, KEYS, LAYOUT, LAYOUT_WORD, SEED_WORD, SLEPT_WORD, SLOTS, elements};
use rustix::rand::{GetRandomFlags, getrandom};

use super::{
    super::{EnforceError, chain, refused},
    AHEAD, Buckets, PACKETS_MAX, Shape,
    clock::{slept_ns, tick_ns},
    generation::{folder, generations, instantiate, is_complete, remove, state_of},
    maps::{Maps, WORD},
    memory::{At, Memory as _},
    writer::{Entry, Refusal, Writer},
};
use crate::net::Prefix;

/// Slots for each ban that there may be.
const SLOTS_PER_BAN: usize = 2;
/// A table is never smaller, so that a few bans and an allowlist fit any.
const BUCKETS_MIN: usize = 128;
/// How often a table is made anew, each time larger, before a ban is refused.
const ANEW_MAX: u32 = 3;

/// Bans and allowed prefixes that move from one table to another.
struct Content {
    bans: Vec<Entry>,
    allowed: Vec<Prefix>,
}

impl Content {
    /// Bans that have counted packets, and how many.
    fn counted(&self) -> Vec<(Prefix, u64)> {
        self.bans.iter().filter(|ban| ban.packets > 0).map(|ban| (ban.prefix, ban.packets)).collect()
    }
}

impl Buckets {
    /// Loads the program over the pinned table, or over a new one. What is pinned of another size is moved.
    pub(in super::super) fn load(pins: &Path, shape: Shape) -> Result<Self, EnforceError> {
        let buckets = buckets_for(shape.bans_max);
        let found = generations(pins);
        let mut adopted = None;
        for generation in found.iter().rev() {
            if adopted.is_none() && is_complete(&folder(pins, *generation))? {
                adopted = Some(*generation);
            } else {
                remove(&folder(pins, *generation))?;
            }
        }
        let Some(generation) = adopted else {
            return Self::make(pins, 1, buckets, shape, None);
        };
        let mut old = Self::adopt(pins, generation, shape)?;
        let is_same = old.writer.buckets() == buckets && old.shape.exact == shape.exact;
        if is_same && old.writer.bans() <= shape.bans_max {
            return Ok(old);
        }
        let content = old.content();
        old.maps.check()?;
        let buckets = buckets.max(buckets_for(content.bans.len() + content.allowed.len()));
        let mut new = Self::make(pins, generation + 1, buckets, shape, Some(&content))?;
        (new.copied, new.former) = (content.counted(), Some(Box::new(old)));
        Ok(new)
    }

    fn adopt(pins: &Path, generation: u32, shape: Shape) -> Result<Self, EnforceError> {
        let at = folder(pins, generation);
        let pinned = |name: &str| {
            MapData::from_pin(at.join(name)).map_err(|error| {
                refused(format!("open the map {}", at.join(name).display()), chain(&error), "")
            })
        };
        let info = |data: &MapData| {
            data.info().map(|info| info.max_entries()).map_err(|error: MapError| {
                refused(format!("look at the maps in {}", at.display()), chain(&error), "")
            })
        };
        let buckets = info(&pinned(SLOTS)?)?.saturating_sub(elements(0));
        let shape = Shape { exact: info(&pinned(KEYS)?)? > 1, ..shape };
        let mut state = state_of(&at)?;
        let seed = state.load(SEED_WORD * WORD);
        let (ebpf, mut maps) = instantiate(pins, generation, buckets, seed, shape)?;
        let writer = Writer::adopt(&mut maps, seed, buckets, shape.bans_max);
        let mut this = Self::around(ebpf, maps, writer, shape, pins, generation);
        this.wake()?;
        this.maps.check()?;
        this.maps.rest();
        Ok(this)
    }

    /// A new generation with this content.
    fn make(
        pins: &Path,
        generation: u32,
        buckets: u32,
        shape: Shape,
        content: Option<&Content>,
    ) -> Result<Self, EnforceError> {
        let mut buckets = buckets;
        for _ in 0..=ANEW_MAX {
            let seed = random()?;
            let at = folder(pins, generation);
            fs::create_dir_all(&at).map_err(|error| {
                refused(format!("make the folder {}", at.display()), error.to_string(), "")
            })?;
            let (ebpf, mut maps) = instantiate(pins, generation, buckets, seed, shape)?;
            let mut writer = Writer::new(seed, buckets, shape.bans_max);
            if fill(&mut writer, &mut maps, content).is_ok() {
                maps.store(At::State(SEED_WORD), seed);
                maps.store(At::State(SLEPT_WORD), slept_ns());
                maps.store(At::State(LAYOUT_WORD), LAYOUT);
                maps.check()?;
                maps.rest();
                return Ok(Self::around(ebpf, maps, writer, shape, pins, generation));
            }
            remove(&at)?;
            buckets = buckets.saturating_mul(2);
        }
        Err(refused(
            "make room in the ban table",
            "it is crowded at every size tried",
            "raise `[enforce] max_bans`",
        ))
    }

    fn around(ebpf: Ebpf, maps: Maps, writer: Writer, shape: Shape, pins: &Path, generation: u32) -> Self {
        let (pins, carried) = (pins.to_owned(), BTreeMap::new());
        Self {
            ebpf,
            maps,
            writer,
            shape,
            pins,
            generation,
            sweep_from: 0,
            copied: Vec::new(),
            former: None,
            jiffies: 0,
            tick_ns: tick_ns(),
            swept: false,
            carried,
        }
    }

    /// Removes every generation but this, once the program of this one is in force, and takes what the one before it
    /// counted until then.
    pub(in super::super) fn retire_others(&mut self) -> Result<(), EnforceError> {
        if let Some(mut former) = self.former.take() {
            self.absorb(&mut former)?;
        }
        for generation in generations(&self.pins) {
            if generation != self.generation {
                remove(&folder(&self.pins, generation))?;
            }
        }
        Ok(())
    }

    /// Adds what the table that this one replaced counted since it was copied.
    pub(in super::super) fn absorb(&mut self, old: &mut Self) -> Result<(), EnforceError> {
        let copied: BTreeMap<Prefix, u64> = std::mem::take(&mut self.copied).into_iter().collect();
        let (own, maps, carried) = (&self.writer, &mut self.maps, &mut self.carried);
        old.writer.each(&mut old.maps, |entry| {
            let since = entry.packets.saturating_sub(copied.get(&entry.prefix).copied().unwrap_or(0));
            if since == 0 || !entry.is_ban() {
                return;
            }
            match own.slot_of(maps, entry.prefix) {
                // Into its slot, where a restart finds it.
                Some(slot) if since < PACKETS_MAX => maps.count(slot, since),
                Some(_) => *carried.entry(entry.prefix).or_default() += since,
                None => {}
            }
        });
        self.maps.check()?;
        old.maps.check()
    }

    /// This table in new maps, with another seed, at least twice the size, and room for so many entries more.
    pub(super) fn anew(&mut self, more: usize) -> Result<Self, EnforceError> {
        let content = self.content();
        self.maps.check()?;
        let wanted = buckets_for(content.bans.len() + content.allowed.len() + more);
        let buckets = self.writer.buckets().saturating_mul(2).max(wanted);
        let copied = content.counted();
        let mut anew = Self::make(&self.pins, self.generation + 1, buckets, self.shape, Some(&content))?;
        anew.carried = std::mem::take(&mut self.carried);
        (anew.copied, anew.jiffies) = (copied, self.jiffies);
        Ok(anew)
    }

    fn content(&mut self) -> Content {
        let entries = self.writer.scan(&mut self.maps);
        let bans = entries.into_iter().filter(Entry::is_ban).collect();
        Content { bans, allowed: self.writer.allowed() }
    }
}

fn fill(writer: &mut Writer, maps: &mut Maps, content: Option<&Content>) -> Result<(), Refusal> {
    let Some(content) = content else { return Ok(()) };
    writer.allow(maps, &content.allowed)?;
    for (index, ban) in content.bans.iter().enumerate() {
        if let Some(ahead) = content.bans.get(index + AHEAD) {
            writer.expect(maps, ahead.prefix);
        }
        writer.restore(maps, ban.prefix, ban.end, ban.packets)?;
    }
    Ok(())
}

/// Half of the slots stay free, which is what keeps a search at one bucket.
fn buckets_for(bans: usize) -> u32 {
    let buckets = (bans.saturating_mul(SLOTS_PER_BAN)).div_ceil(BUCKET_SLOTS).max(BUCKETS_MIN);
    u32::try_from(buckets).unwrap_or(u32::MAX)
}

fn random() -> Result<u64, EnforceError> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|error| refused("get a random seed", error.to_string(), ""))?;
    Ok(u64::from_ne_bytes(bytes))
}
