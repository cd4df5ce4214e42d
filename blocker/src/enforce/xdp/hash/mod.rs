//! The first layout: hash maps for addresses and /64s, prefix tries for the rest.
//!
//! Slower than the bucket table and much larger, and made of nothing but what every kernel since 5.9 has: the fallback,
//! and what the table is compared with.
#![deny(unsafe_code)]

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, lpm_trie::LpmTrie},
};
use blocker_ebpf::{
    ALLOW_V4, ALLOW_V6, BAN_LENGTH, BAN_PACKETS, BAN_UNTIL, BANS_V4, BANS_V6, BANS_V6_64, BanValue, MAPS,
    PREFIXES_V4, PREFIXES_V6, PROGRAM, PROGRAM_ONE_BUFFER, PROGRAM_TCX, PROGRAM_TCX_BARE, STATE, StateValue,
};
use rustix::time::{ClockId, clock_gettime};

use super::{
    EnforceError, Held, attach, chain,
    key::{self, Key, Place},
    programs::{Kind, Names, Programs},
    refused,
};
use crate::net::Prefix;

#[expect(unsafe_code, reason = "bpf(2) calls that the library does not offer")]
mod batch;
mod many;

use many::read_hash;

const FULL: &str = "it is full; raise `[enforce] max_bans` and restart";

/// The program as `cargo xtask build` made it, or nothing where there was no BPF toolchain.
static OBJECT: Option<&[u8]> = include!(concat!(env!("OUT_DIR"), "/xdp_object.rs"));

const NAMES: Names =
    Names { xdp: PROGRAM, xdp_one_buffer: PROGRAM_ONE_BUFFER, tcx: PROGRAM_TCX, tcx_bare: PROGRAM_TCX_BARE };

pub(super) fn is_built_in() -> bool {
    OBJECT.is_some()
}

/// The maps, loaded.
#[derive(Debug)]
pub(super) struct Hash {
    ebpf: Ebpf,
    pins: PathBuf,
    bans_max: u32,
    /// Whether the kernel takes many entries in one call, as far as is known.
    batches: Cell<bool>,
}

impl Hash {
    /// Loads the program over the pinned maps, or over new ones. What is pinned of another size is moved.
    pub(super) fn load(pins: &Path, bans_max: usize) -> Result<Self, EnforceError> {
        let bans_max = u32::try_from(bans_max.max(1)).unwrap_or(u32::MAX);
        let batches = Cell::new(true);
        let kept = outgrown(pins, bans_max, &batches)?;
        let ebpf = instantiate(pins, bans_max, None)?;
        let mut this = Self { ebpf, pins: pins.to_owned(), bans_max, batches };
        if let Some(kept) = kept {
            this.take_over(kept)?;
        }
        this.mark_prefixes()?;
        this.programs().get(Kind::Xdp)?;
        Ok(this)
    }

    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    pub(super) fn programs(&mut self) -> Programs<'_> {
        let (pins, bans_max) = (&self.pins, self.bans_max);
        let anew = Box::new(move |name: &str| instantiate(pins, bans_max, Some(name)));
        Programs { ebpf: &mut self.ebpf, names: NAMES, anew }
    }

    /// The maps and where they are pinned.
    pub(super) fn pinned(&self) -> Vec<(&'static str, PathBuf)> {
        MAPS.into_iter().map(|name| (name, self.pins.join(name))).collect()
    }

    /// Bans, or sets the end of a ban, which keeps its counts.
    pub(super) fn ban(&mut self, held: &Held) -> Result<(), EnforceError> {
        let (place, key) = key::of_ban(held.prefix);
        let counted = self.get(place, &key).map_or(0, |value| value[BAN_PACKETS]);
        let mut value = value(held, boot_ns());
        value[BAN_PACKETS] += counted;
        self.put(place.map, &key, value)?;
        if place.is_trie { self.mark(place.map, true) } else { Ok(()) }
    }

    pub(super) fn unban(&mut self, prefix: Prefix) -> Result<(), EnforceError> {
        let (place, key) = key::of_ban(prefix);
        self.remove(place.map, &key)?;
        if place.is_trie { self.mark_prefixes() } else { Ok(()) }
    }

    pub(super) fn allow(&mut self, prefix: Prefix) -> Result<(), EnforceError> {
        let (name, key) = key::of_allow(prefix);
        self.put(name, &key, BanValue::default())
    }

    pub(super) fn disallow(&mut self, prefix: Prefix) -> Result<(), EnforceError> {
        let (name, key) = key::of_allow(prefix);
        self.remove(name, &key)
    }

    pub(super) fn flush(&mut self) -> Result<(), EnforceError> {
        let held = self.read()?;
        self.remove_all(held.into_iter().map(|(key, _)| key))
    }

    /// Every ban that is not over.
    pub(super) fn held(&mut self) -> Result<Vec<Held>, EnforceError> {
        let boot = boot_ns();
        let live =
            self.read()?.into_iter().filter(|(_, value)| value[BAN_UNTIL] == 0 || value[BAN_UNTIL] > boot);
        Ok(live
            .filter_map(|(key, value)| {
                let left = (value[BAN_UNTIL] != 0)
                    .then(|| Duration::from_nanos(value[BAN_UNTIL].saturating_sub(boot)));
                Some(Held { prefix: key.prefix()?, left, packets: value[BAN_PACKETS] })
            })
            .collect())
    }

    pub(super) fn allowed(&mut self) -> Result<Vec<Prefix>, EnforceError> {
        let failed = |error: MapError| refused("read the allow maps", chain(&error), "");
        let v4: Result<Vec<_>, _> = trie4::<u32>(self.map(ALLOW_V4)?).map_err(failed)?.keys().collect();
        let v6: Result<Vec<_>, _> = trie6::<u32>(self.map(ALLOW_V6)?).map_err(failed)?.keys().collect();
        let v4 = v4
            .map_err(failed)?
            .into_iter()
            .filter_map(|key| Key::Trie4(key.prefix_len(), key.data()).prefix());
        let v6 = v6
            .map_err(failed)?
            .into_iter()
            .filter_map(|key| Key::Trie6(key.prefix_len(), key.data()).prefix());
        Ok(v4.chain(v6).collect())
    }

    fn map(&mut self, name: &'static str) -> Result<&mut Map, EnforceError> {
        self.ebpf.map_mut(name).ok_or_else(|| {
            refused(format!("find the map {name}"), "the built-in object has none", "build blocker again")
        })
    }

    fn get(&mut self, place: Place, key: &Key) -> Option<BanValue> {
        let map = self.map(place.map).ok()?;
        match key {
            Key::V4(key) => HashMap::<_, [u8; 4], BanValue>::try_from(map).ok()?.get(key, 0).ok(),
            Key::V6(key) => HashMap::<_, [u8; 16], BanValue>::try_from(map).ok()?.get(key, 0).ok(),
            Key::V6Half(key) => HashMap::<_, [u8; 8], BanValue>::try_from(map).ok()?.get(key, 0).ok(),
            Key::Trie4(length, data) => exact4(map, *length, *data),
            Key::Trie6(length, data) => exact6(map, *length, *data),
        }
    }

    fn put(&mut self, name: &'static str, key: &Key, value: BanValue) -> Result<(), EnforceError> {
        let what = || format!("add to the map {name}");
        let map = self.map(name)?;
        let outcome =
            match key {
                Key::V4(key) => HashMap::<_, [u8; 4], BanValue>::try_from(map)
                    .and_then(|mut map| map.insert(key, value, 0)),
                Key::V6(key) => HashMap::<_, [u8; 16], BanValue>::try_from(map)
                    .and_then(|mut map| map.insert(key, value, 0)),
                Key::V6Half(key) => HashMap::<_, [u8; 8], BanValue>::try_from(map)
                    .and_then(|mut map| map.insert(key, value, 0)),
                Key::Trie4(length, data) if is_allow(name) => {
                    trie4::<u32>(map).and_then(|mut map| map.insert(&key::trie(*length, *data), 1, 0))
                }
                Key::Trie6(length, data) if is_allow(name) => {
                    trie6::<u32>(map).and_then(|mut map| map.insert(&key::trie(*length, *data), 1, 0))
                }
                Key::Trie4(length, data) => trie4::<BanValue>(map)
                    .and_then(|mut map| map.insert(&key::trie(*length, *data), value, 0)),
                Key::Trie6(length, data) => trie6::<BanValue>(map)
                    .and_then(|mut map| map.insert(&key::trie(*length, *data), value, 0)),
            };
        outcome.map_err(|error| {
            let hint = if is_full(&error) { FULL } else { "" };
            refused(what(), chain(&error), hint)
        })
    }

    fn remove(&mut self, name: &'static str, key: &Key) -> Result<(), EnforceError> {
        let map = self.map(name)?;
        let outcome = match key {
            Key::V4(key) => {
                HashMap::<_, [u8; 4], BanValue>::try_from(map).and_then(|mut map| map.remove(key))
            }
            Key::V6(key) => {
                HashMap::<_, [u8; 16], BanValue>::try_from(map).and_then(|mut map| map.remove(key))
            }
            Key::V6Half(key) => {
                HashMap::<_, [u8; 8], BanValue>::try_from(map).and_then(|mut map| map.remove(key))
            }
            Key::Trie4(length, data) if is_allow(name) => {
                trie4::<u32>(map).and_then(|mut map| map.remove(&key::trie(*length, *data)))
            }
            Key::Trie6(length, data) if is_allow(name) => {
                trie6::<u32>(map).and_then(|mut map| map.remove(&key::trie(*length, *data)))
            }
            Key::Trie4(length, data) => {
                trie4::<BanValue>(map).and_then(|mut map| map.remove(&key::trie(*length, *data)))
            }
            Key::Trie6(length, data) => {
                trie6::<BanValue>(map).and_then(|mut map| map.remove(&key::trie(*length, *data)))
            }
        };
        match outcome {
            Err(error) if !is_absent(&error) => {
                Err(refused(format!("remove from the map {name}"), chain(&error), ""))
            }
            _ => Ok(()),
        }
    }

    /// Tells the program whether a prefix trie holds anything.
    fn mark(&mut self, trie: &str, any: bool) -> Result<(), EnforceError> {
        let state = Array::<_, StateValue>::try_from(self.map(STATE)?);
        let index = usize::from(trie == PREFIXES_V6);
        state
            .and_then(|mut state| {
                let mut value = state.get(&0, 0)?;
                value[index] = any.into();
                state.set(0, value, 0)
            })
            .map_err(|error| refused("tell the XDP program of prefixes", chain(&error), ""))
    }

    fn mark_prefixes(&mut self) -> Result<(), EnforceError> {
        let any4 = trie4::<BanValue>(self.map(PREFIXES_V4)?).is_ok_and(|map| map.keys().next().is_some());
        let any6 = trie6::<BanValue>(self.map(PREFIXES_V6)?).is_ok_and(|map| map.keys().next().is_some());
        self.mark(PREFIXES_V4, any4)?;
        self.mark(PREFIXES_V6, any6)
    }

    /// Every ban in the maps, over or not.
    fn read(&mut self) -> Result<Vec<(Key, BanValue)>, EnforceError> {
        let mut held = Vec::new();
        for name in [BANS_V4, BANS_V6, BANS_V6_64] {
            read_hash(name, self.ebpf.map(name), &self.batches, &mut held)?;
        }
        // Entries that go while they are read are left out.
        let failed = |error: MapError| refused("read the prefix maps", chain(&error), "");
        let v4 = trie4::<BanValue>(self.map(PREFIXES_V4)?).map_err(failed)?;
        let v4 = v4.iter().filter_map(Result::ok);
        held.extend(v4.map(|(key, value)| (Key::Trie4(key.prefix_len(), key.data()), value)));
        let v6 = trie6::<BanValue>(self.map(PREFIXES_V6)?).map_err(failed)?;
        let v6 = v6.iter().filter_map(Result::ok);
        held.extend(v6.map(|(key, value)| (Key::Trie6(key.prefix_len(), key.data()), value)));
        Ok(held)
    }
}

/// The object over the pinned maps, with one of its programs as an extension of another's.
fn instantiate(pins: &Path, bans_max: u32, extension: Option<&str>) -> Result<Ebpf, EnforceError> {
    let Some(object) = OBJECT else {
        return Err(refused(
            "load the XDP program",
            "it was not built into this binary",
            "build with `cargo xtask build`",
        ));
    };
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, pins.join(name));
    }
    for name in [BANS_V4, BANS_V6, BANS_V6_64] {
        loader.map_max_entries(name, bans_max);
    }
    if let Some(name) = extension {
        loader.extension(name);
    }
    loader
        .load(object)
        .map_err(|error| refused("load the XDP maps", chain(&error), attach::hint(&chain(&error))))
}

/// Reads bans out of pinned maps of another size and unpins those, so that new ones are made. The old program keeps
/// the old maps until the new one takes its place.
fn outgrown(
    pins: &Path,
    bans_max: u32,
    batches: &Cell<bool>,
) -> Result<Option<Vec<(Key, BanValue)>>, EnforceError> {
    let hashes = [BANS_V4, BANS_V6, BANS_V6_64];
    let failed =
        |error: MapError| refused(format!("read the maps below {}", pins.display()), chain(&error), "");
    let mut held = Vec::new();
    let mut other_size = false;
    for name in hashes {
        let path = pins.join(name);
        if !path.exists() {
            continue;
        }
        let data = MapData::from_pin(&path).map_err(failed)?;
        other_size |= data.info().is_ok_and(|info| info.max_entries() != bans_max);
        read_hash(name, Some(&Map::HashMap(data)), batches, &mut held)?;
    }
    if !other_size {
        return Ok(None);
    }
    for name in hashes {
        let path = pins.join(name);
        if path.exists() {
            fs::remove_file(&path)
                .map_err(|error| refused(format!("unpin {}", path.display()), error.to_string(), ""))?;
        }
    }
    Ok(Some(held))
}

/// A new entry, on a boot clock that shows `boot`.
fn value(held: &Held, boot: u64) -> BanValue {
    let mut value = BanValue::default();
    value[BAN_UNTIL] = on_boot(held.left, boot);
    value[BAN_LENGTH] = held.prefix.length().into();
    value[BAN_PACKETS] = held.packets;
    value
}

fn trie4<V: aya::Pod>(map: &mut Map) -> Result<LpmTrie<&mut MapData, [u8; 4], V>, MapError> {
    LpmTrie::try_from(map)
}

fn trie6<V: aya::Pod>(map: &mut Map) -> Result<LpmTrie<&mut MapData, [u8; 16], V>, MapError> {
    LpmTrie::try_from(map)
}

/// A trie answers with the longest match; only an entry of the asked length is the one asked for.
fn exact4(map: &mut Map, length: u32, data: [u8; 4]) -> Option<BanValue> {
    let value = trie4::<BanValue>(map).ok()?.get(&key::trie(length, data), 0).ok()?;
    (value[BAN_LENGTH] == u64::from(length)).then_some(value)
}

fn exact6(map: &mut Map, length: u32, data: [u8; 16]) -> Option<BanValue> {
    let value = trie6::<BanValue>(map).ok()?.get(&key::trie(length, data), 0).ok()?;
    (value[BAN_LENGTH] == u64::from(length)).then_some(value)
}

fn is_allow(name: &str) -> bool {
    name == ALLOW_V4 || name == ALLOW_V6
}

/// A full hash map answers E2BIG, a full trie ENOSPC.
fn is_full(error: &MapError) -> bool {
    matches!(errno(error), Some(libc::E2BIG | libc::ENOSPC))
}

fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound) || errno(error) == Some(libc::ENOENT)
}

fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// An end on the boot clock, where that shows `boot`; 0 stands for none.
fn on_boot(left: Option<Duration>, boot: u64) -> u64 {
    left.map_or(0, |left| boot.saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX)).max(1))
}
