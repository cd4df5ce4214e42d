//! The bucket table in the kernel: its maps, the program over them, and bans in and out.
//!
//! The maps of one table are pinned in a folder of their own, a *generation*. A table of another size or with another
//! seed is a new generation: filled while the old one is in force, then put in its place by swapping the program.
//!
//! Ends are counted in the kernel's jiffies, which the program reads at no cost. They stand still while the machine
//! sleeps, so ends are brought forward afterwards.
#![deny(unsafe_code)]

use std::{collections::BTreeMap, os::fd::AsFd as _, path::PathBuf};

use aya::Ebpf;
use blocker_ebpf::{
    TOTALS,
    table::{CLOCK, JIFFIES, MAPS, SLEPT_WORD, UNIT_SHIFT},
};

use super::{EnforceError, Held, chain, link, programs::Programs, refused};
use crate::net::Prefix;

mod anew;
mod clock;
mod generation;
mod maps;
mod memory;
#[cfg(test)]
mod model;
mod prefilter;
mod reader;
#[expect(unsafe_code, reason = "mmap(2) of maps, which the library does not offer")]
mod window;
mod writer;

use clock::{end_of, left_of, slept_ns};
use generation::{NAMES, folder, object, program};
pub(super) use generation::{foreign_version, is_built_in};
use maps::Maps;
use memory::{At, Memory as _};
pub(super) use reader::Reader;
use writer::{Refusal, Writer};

/// Bans ahead of the one being made that are expected: enough to hide a look into memory, few enough that what was
/// fetched is still there.
pub(super) const AHEAD: usize = 16;
/// A sweep looks at this part of the slots, and at no fewer than [`SWEEP_MIN`].
const SWEEP_PARTS: usize = 64;
const SWEEP_MIN: usize = 4_096;
/// Packets that a slot may have counted before they are moved out of it.
const PACKETS_MAX: u64 = 1 << 31;
/// Sleep that is corrected for.
const SLEPT_MIN_NS: u64 = 250_000_000;

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

impl Buckets {
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
