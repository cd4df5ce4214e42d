//! The bucket table in the kernel: its maps, the program over them, and bans in and out.
//!
//! The maps of one table are pinned in a folder of their own, a *generation*. A table of another size or with another
//! seed is a new generation: filled while the old one is in force, then put in its place by swapping the program.
//!
//! Ends are counted in the kernel's jiffies, which the program reads at no cost. They stand still while the machine
//! sleeps, so ends are brought forward afterwards.
#![deny(unsafe_code)]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{LpmTrie as Trie, Map, MapData, MapError, lpm_trie},
    programs::Xdp as Program,
};
use blocker_ebpf::{
    TOTALS,
    packet::Source,
    table::{
        self, BUCKET_META, BUCKET_SLOTS, CLOCK, FOREVER, HIGHS, JIFFIES, KEYS, LAYOUT, LAYOUT_WORD, MAPS,
        META, ONE_PACKET, PREFILTER, PREFILTER_WORDS, PROGRAM, PROGRAM_ONE_BUFFER, PROGRAM_TCX,
        PROGRAM_TCX_BARE, Params, SEED_WORD, SLEPT_WORD, SLOTS, STATE_WORDS, TABLE, UNIT_SHIFT, Words,
        elements,
    },
};
use rustix::{
    rand::{GetRandomFlags, getrandom},
    time::{ClockId, clock_getres, clock_gettime},
};

use super::{
    EnforceError, Held, attach, chain, link,
    programs::{Kind, Names, Programs},
    refused,
};
use crate::net::Prefix;

#[cfg(test)]
mod model;
mod prefilter;
#[expect(unsafe_code, reason = "mmap(2) of maps, which the library does not offer")]
mod window;
mod writer;

use window::Windows;
use writer::{At, Entry, Memory, Refusal, Writer};

static OBJECT: Option<&[u8]> = include!(concat!(env!("OUT_DIR"), "/xdp_table_object.rs"));

const NAMES: Names =
    Names { xdp: PROGRAM, xdp_one_buffer: PROGRAM_ONE_BUFFER, tcx: PROGRAM_TCX, tcx_bare: PROGRAM_TCX_BARE };

pub(super) fn is_built_in() -> bool {
    OBJECT.is_some()
}

/// Bans ahead of the one being made that are expected: enough to hide a look into memory, few enough that what was
/// fetched is still there.
pub(super) const AHEAD: usize = 16;
/// Slots for each ban that there may be.
const SLOTS_PER_BAN: usize = 2;
/// A table is never smaller, so that a few bans and an allowlist fit any.
const BUCKETS_MIN: usize = 128;
/// How often a table is made anew, each time larger, before a ban is refused.
const ANEW_MAX: u32 = 3;
/// A sweep looks at this part of the slots, and at no fewer than [`SWEEP_MIN`].
const SWEEP_PARTS: usize = 64;
const SWEEP_MIN: usize = 4_096;
/// Packets that a slot may have counted before they are moved out of it.
const PACKETS_MAX: u64 = 1 << 31;
/// Sleep that is corrected for.
const SLEPT_MIN_NS: u64 = 250_000_000;

/// The table's maps as memory.
#[derive(Debug)]
struct Maps {
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

const WORD: usize = size_of::<u64>();

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
    fn open(at: &Path, buckets: u32, is_exact: bool) -> Result<Self, EnforceError> {
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

    fn rest(&mut self) {
        self.all().for_each(Windows::rest);
    }

    /// Whether everything was read and kept since this was last asked.
    #[inline]
    fn check(&mut self) -> Result<(), EnforceError> {
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

/// What a table is made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) bans_max: usize,
    pub(super) exact: bool,
}

/// One generation, loaded.
#[derive(Debug)]
pub(super) struct Buckets {
    ebpf: Ebpf,
    maps: Maps,
    writer: Writer,
    shape: Shape,
    /// The folder of the layout, with the totals and the links.
    pins: PathBuf,
    generation: u32,
    sweep_from: usize,
    /// What had been counted when this table was copied from another.
    copied: Vec<(Prefix, u64)>,
    /// That other table, where it was in force when this one was loaded.
    former: Option<Box<Self>>,
    /// The kernel's jiffies when they were last asked for, which is once for every batch.
    jiffies: u64,
    /// What each of them lasts.
    tick_ns: u64,
    /// Whether this batch has cleared what is over.
    swept: bool,
    /// Packets moved out of slots before their count could turn over.
    carried: BTreeMap<Prefix, u64>,
}

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
    pub(super) fn load(pins: &Path, shape: Shape) -> Result<Self, EnforceError> {
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

    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    pub(super) fn programs(&mut self) -> Programs<'_> {
        let (pins, generation, shape) = (&self.pins, self.generation, self.shape);
        let (buckets, seed) = (self.writer.buckets(), self.writer.seed());
        let anew = Box::new(move |name: &str| object(pins, generation, buckets, seed, shape, Some(name)));
        Programs { ebpf: &mut self.ebpf, names: NAMES, anew }
    }

    /// The maps and where they are pinned.
    pub(super) fn pinned(&self) -> Vec<(&'static str, PathBuf)> {
        let at = folder(&self.pins, self.generation);
        let own = MAPS.into_iter().map(|name| (name, at.join(name)));
        own.chain([(TOTALS, self.pins.join(TOTALS))]).collect()
    }

    /// Removes every generation but this, once the program of this one is in force, and takes what the one before it
    /// counted until then.
    pub(super) fn retire_others(&mut self) -> Result<(), EnforceError> {
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

    /// To be called before each batch: asks for the time.
    pub(super) fn begin(&mut self) -> Result<(), EnforceError> {
        let clock = program(&mut self.ebpf, CLOCK)?;
        let fd = clock.fd().map_err(|error| refused("read the kernel's clock", chain(&error), ""))?;
        link::run_once(fd.as_fd())
            .map_err(|error| refused("read the kernel's clock", error.to_string(), ""))?;
        self.jiffies = self.maps.load(At::State(JIFFIES));
        self.swept = false;
        self.maps.check()
    }

    fn now(&self) -> u32 {
        (self.jiffies >> UNIT_SHIFT) as u32
    }

    /// A ban of this prefix comes soon.
    pub(super) fn expect(&mut self, prefix: Prefix) {
        self.writer.expect(&mut self.maps, prefix);
    }

    /// Bans for so long, or without end. Where there is no room, the answer is a table with more, which holds this
    /// ban too and has to take this one's place.
    pub(super) fn ban(&mut self, held: &Held) -> Result<Option<Box<Self>>, EnforceError> {
        let (end, now) = (end_of(held.left, self.jiffies, self.tick_ns), self.now());
        let mut outcome = self.writer.ban(&mut self.maps, held.prefix, end, now);
        if outcome.is_err() && !self.swept {
            // What is over may still lie there.
            self.swept = true;
            self.writer.sweep(&mut self.maps, 0..self.writer.slots(), now);
            outcome = self.writer.ban(&mut self.maps, held.prefix, end, now);
        }
        match outcome {
            Ok(slot) => {
                if held.packets > 0 {
                    self.maps.store(At::Packets(slot), held.packets);
                }
                self.maps.check().map(|()| None)
            }
            Err(Refusal::Full) => {
                let hint = "it is full; raise `[enforce] max_bans` and restart";
                Err(refused("add to the ban table", format!("it holds {} bans", self.writer.bans()), hint))
            }
            Err(Refusal::NoRoom) => {
                let mut anew = Box::new(self.anew(1)?);
                let nested = anew.ban(held)?;
                Ok(Some(nested.unwrap_or(anew)))
            }
        }
    }

    pub(super) fn unban(&mut self, prefix: Prefix) -> Result<(), EnforceError> {
        self.writer.unban(&mut self.maps, prefix);
        self.carried.remove(&prefix);
        self.maps.check()
    }

    /// As [`Self::ban`], a table that has to take this one's place.
    pub(super) fn allow(&mut self, prefixes: &[Prefix]) -> Result<Option<Box<Self>>, EnforceError> {
        if self.writer.allow(&mut self.maps, prefixes).is_err() {
            let mut anew = Box::new(self.anew(prefixes.len())?);
            let outcome = anew.writer.allow(&mut anew.maps, prefixes);
            return match outcome {
                Ok(()) => Ok(Some(anew)),
                Err(_) => {
                    Err(refused("add to the allowlist", "the table is crowded", "raise `[enforce] max_bans`"))
                }
            };
        }
        self.maps.check().map(|()| None)
    }

    pub(super) fn disallow(&mut self, prefix: Prefix) -> Result<Option<Box<Self>>, EnforceError> {
        if self.writer.disallow(&mut self.maps, prefix).is_err() {
            return self.anew(0).map(|anew| Some(Box::new(anew)));
        }
        self.maps.check().map(|()| None)
    }

    pub(super) fn flush(&mut self) -> Result<(), EnforceError> {
        self.writer.flush(&mut self.maps);
        self.carried.clear();
        self.maps.check()
    }

    /// Which bound makes honest packets slower, where one does.
    pub(super) fn note(&self) -> Option<String> {
        self.writer.note()
    }

    pub(super) fn allowed(&self) -> Vec<Prefix> {
        self.writer.allowed()
    }

    /// Every ban that is not over.
    pub(super) fn held(&mut self) -> Result<Vec<Held>, EnforceError> {
        self.begin()?;
        let (jiffies, tick_ns, now) = (self.jiffies, self.tick_ns, self.now());
        let (writer, carried) = (&self.writer, &self.carried);
        let mut held = Vec::with_capacity(writer.bans());
        writer.each(&mut self.maps, |entry| {
            if entry.is_ban() && entry.end > now {
                let carried =
                    if carried.is_empty() { 0 } else { carried.get(&entry.prefix).copied().unwrap_or(0) };
                held.push(Held {
                    prefix: entry.prefix,
                    left: left_of(entry.end, jiffies, tick_ns),
                    packets: entry.packets + carried,
                });
            }
        });
        self.maps.check()?;
        Ok(held)
    }

    /// Adds what the table that this one replaced counted since it was copied.
    pub(super) fn absorb(&mut self, old: &mut Self) -> Result<(), EnforceError> {
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

    /// What is to be done now and then: clears a part of the bans that are over, moves counts out before they turn
    /// over, corrects for sleep, and lets go of memory.
    pub(super) fn tick(&mut self) -> Result<(), EnforceError> {
        self.wake()?;
        self.begin()?;
        let now = self.now();
        let slots = self.writer.slots();
        let end = (self.sweep_from + (slots / SWEEP_PARTS).max(SWEEP_MIN)).min(slots);
        for slot in self.sweep_from..end {
            let packets = self.maps.load(At::Packets(slot));
            if packets >= PACKETS_MAX
                && let Some(entry) = self.writer.entry(&mut self.maps, slot)
            {
                // What is counted between the two is lost; it is one look in two thousand million.
                self.maps.store(At::Packets(slot), 0);
                *self.carried.entry(entry.prefix).or_default() += packets;
            }
        }
        self.writer.sweep(&mut self.maps, self.sweep_from..end, now);
        self.sweep_from = if end == slots { 0 } else { end };
        let done = self.maps.check();
        self.maps.rest();
        done
    }

    /// This table in new maps, with another seed, at least twice the size, and room for so many entries more.
    fn anew(&mut self, more: usize) -> Result<Self, EnforceError> {
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

    /// Corrects ends for time that the machine slept since this was last done.
    fn wake(&mut self) -> Result<(), EnforceError> {
        let (slept, known) = (slept_ns(), self.maps.load(At::State(SLEPT_WORD)));
        let more = slept.saturating_sub(known);
        if more >= SLEPT_MIN_NS {
            let units = (more / self.tick_ns) >> UNIT_SHIFT;
            self.writer.shift(&mut self.maps, u32::try_from(units).unwrap_or(u32::MAX));
            self.maps.store(At::State(SLEPT_WORD), slept);
        }
        self.maps.check()
    }
}

/// Looks into a pinned table with the program's own function.
#[derive(Debug)]
pub(super) struct Reader {
    maps: RefCell<Maps>,
    params: Params,
}

impl Reader {
    /// Opens the newest table of those pinned there.
    pub(super) fn open(pins: &Path) -> Result<Self, EnforceError> {
        let generation = generations(pins).pop().unwrap_or(0);
        let at = folder(pins, generation);
        let failed = |cause: String| refused(format!("open the maps in {}", at.display()), cause, "");
        let pinned = |name: &str| MapData::from_pin(at.join(name)).map_err(|error| failed(chain(&error)));
        let elements = pinned(SLOTS)?.info().map_err(|error| failed(chain(&error)))?.max_entries();
        let buckets = elements.saturating_sub(table::elements(0));
        let maps = Maps::open(&at, buckets, false)?;
        let maps = RefCell::new(maps);
        let seed = maps.borrow_mut().load(At::State(SEED_WORD));
        Ok(Self { maps, params: Params { seed, buckets, exact: false } })
    }

    pub(super) fn holds(&self, address: IpAddr) -> bool {
        let source = match address {
            IpAddr::V4(address) => Source::V4(address.octets()),
            IpAddr::V6(address) => Source::V6(address.octets()),
        };
        table::find(&self, self.params, source).is_some()
    }
}

/// Words of one element.
pub(super) struct Element<'a> {
    maps: &'a RefCell<Maps>,
    first: fn(usize) -> At,
    from: usize,
}

impl Words for Element<'_> {
    fn word(&self, index: usize) -> u64 {
        self.maps.borrow_mut().load((self.first)(self.from + index))
    }
}

impl<'a> table::Table for &'a Reader {
    type Words = Element<'a>;

    fn bucket(&self, index: u32) -> Option<Element<'a>> {
        Some(Element { maps: &self.maps, first: At::Slot, from: index as usize * BUCKET_SLOTS })
    }

    fn meta(&self, index: u32) -> Option<Element<'a>> {
        Some(Element { maps: &self.maps, first: At::End, from: index as usize * BUCKET_SLOTS })
    }

    fn keys(&self, index: u32) -> Option<Element<'a>> {
        let first = |word| At::Key(word / 2, word % 2);
        Some(Element { maps: &self.maps, first, from: index as usize * BUCKET_SLOTS * 2 })
    }

    fn prefilter(&self, index: u32) -> Option<u64> {
        Some(self.maps.borrow_mut().load(At::Prefilter(index as usize)))
    }

    fn state(&self) -> Option<Element<'a>> {
        Some(Element { maps: &self.maps, first: At::State, from: 0 })
    }

    /// As the agent last heard from the kernel.
    fn now(&self) -> u32 {
        (self.maps.borrow_mut().load(At::State(JIFFIES)) >> UNIT_SHIFT) as u32
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

/// Makes or opens the maps of a generation and loads both programs over them.
fn instantiate(
    pins: &Path,
    generation: u32,
    buckets: u32,
    seed: u64,
    shape: Shape,
) -> Result<(Ebpf, Maps), EnforceError> {
    let anew = |extension: Option<&str>| object(pins, generation, buckets, seed, shape, extension);
    let mut ebpf = anew(None)?;
    let clock = program(&mut ebpf, CLOCK)?;
    clock
        .load()
        .map_err(|error| refused("load the table's clock", chain(&error), attach::hint(&chain(&error))))?;
    let anew = Box::new(move |name: &str| anew(Some(name)));
    Programs { ebpf: &mut ebpf, names: NAMES, anew }.get(Kind::Xdp)?;
    let maps = Maps::open(&folder(pins, generation), buckets, shape.exact)?;
    Ok((ebpf, maps))
}

/// The object over the maps of a generation, with one of its programs as an extension of another's.
fn object(
    pins: &Path,
    generation: u32,
    buckets: u32,
    seed: u64,
    shape: Shape,
    extension: Option<&str>,
) -> Result<Ebpf, EnforceError> {
    let Some(object) = OBJECT else {
        return Err(refused(
            "load the XDP table",
            "it was not built into this binary",
            "build with `cargo xtask build`",
        ));
    };
    let at = folder(pins, generation);
    let exact = u32::from(shape.exact);
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, at.join(name));
    }
    loader.map_pin_path(TOTALS, pins.join(TOTALS));
    for name in [SLOTS, META] {
        loader.map_max_entries(name, elements(buckets));
    }
    loader.map_max_entries(KEYS, if shape.exact { elements(buckets) } else { 1 });
    loader.map_max_entries(HIGHS, elements(buckets).saturating_mul(BUCKET_SLOTS as u32));
    loader.override_global("SEED", &seed, true);
    loader.override_global("BUCKETS", &buckets, true);
    loader.override_global("EXACT", &exact, true);
    if let Some(name) = extension {
        loader.extension(name);
    }
    loader
        .load(object)
        .map_err(|error| refused("load the table's maps", chain(&error), attach::hint(&chain(&error))))
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, EnforceError> {
    let program = ebpf.program_mut(name).and_then(|program| program.try_into().ok());
    program.ok_or_else(|| {
        refused(format!("find the program {name}"), "the built-in object has none", "build blocker again")
    })
}

fn folder(pins: &Path, generation: u32) -> PathBuf {
    pins.join(format!("g{generation}"))
}

/// In ascending order.
fn generations(pins: &Path) -> Vec<u32> {
    let entries = fs::read_dir(pins).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix('g')?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Whether a generation was filled before its maker ended, and is of this layout.
fn is_complete(at: &Path) -> Result<bool, EnforceError> {
    if MAPS.iter().any(|name| !at.join(name).exists()) {
        return Ok(false);
    }
    Ok(state_of(at)?.load(LAYOUT_WORD * WORD) == LAYOUT)
}

/// The version that the tables pinned there say they are of, where it is not the one that is known here.
pub(super) fn foreign_version(pins: &Path) -> Result<Option<u64>, EnforceError> {
    for generation in generations(pins) {
        let at = folder(pins, generation);
        if !at.join(TABLE).exists() {
            continue;
        }
        let version = state_of(&at)?.load(LAYOUT_WORD * WORD);
        if version != 0 && version != LAYOUT {
            return Ok(Some(version));
        }
    }
    Ok(None)
}

fn state_of(at: &Path) -> Result<Windows, EnforceError> {
    let path = at.join(TABLE);
    let failed = |cause: String| refused(format!("open the map {}", path.display()), cause, "");
    let data = MapData::from_pin(&path).map_err(|error| failed(chain(&error)))?;
    Windows::new(data.fd().as_fd(), STATE_WORDS * WORD).map_err(|error| failed(error.to_string()))
}

fn remove(at: &Path) -> Result<(), EnforceError> {
    let failed =
        |error: io::Error| refused(format!("remove the maps in {}", at.display()), error.to_string(), "");
    for entry in fs::read_dir(at).map_err(failed)? {
        fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
    }
    fs::remove_dir(at).map_err(failed)
}

fn random() -> Result<u64, EnforceError> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|error| refused("get a random seed", error.to_string(), ""))?;
    Ok(u64::from_ne_bytes(bytes))
}

fn ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

fn slept_ns() -> u64 {
    ns(ClockId::Boottime).saturating_sub(ns(ClockId::Monotonic))
}

/// The coarse clock is set once a jiffy, so its resolution is a jiffy.
fn tick_ns() -> u64 {
    u64::try_from(clock_getres(ClockId::MonotonicCoarse).tv_nsec).unwrap_or(0).max(1)
}

/// The unit that a ban of this length ends with, to the nearest.
fn end_of(left: Option<Duration>, jiffies: u64, tick_ns: u64) -> u32 {
    let Some(left) = left else { return FOREVER };
    let ticks = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX) / tick_ns;
    let unit = 1 << UNIT_SHIFT;
    let end = jiffies.saturating_add(ticks).saturating_add(unit / 2) >> UNIT_SHIFT;
    u32::try_from(end.max((jiffies >> UNIT_SHIFT) + 1)).unwrap_or(FOREVER).min(FOREVER - 1)
}

fn left_of(end: u32, jiffies: u64, tick_ns: u64) -> Option<Duration> {
    let ticks = (u64::from(end) << UNIT_SHIFT).saturating_sub(jiffies);
    (end != FOREVER).then(|| Duration::from_nanos(ticks.saturating_mul(tick_ns)))
}
