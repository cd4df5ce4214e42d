//! Bans in maps that an XDP program reads for every packet, before the network stack sees it.
//!
//! Link and maps are pinned, so the kernel keeps dropping and expiring without an agent; a restart adopts what is
//! pinned and swaps the program atomically. It refuses to touch an XDP program that is not ours.
//!
//! Kernel deadlines run on the boot clock, which counts suspend; the wall clock is converted here and nowhere else.
#![deny(unsafe_code)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, lpm_trie::LpmTrie},
    programs::Xdp as Program,
};
use blocker_ebpf::{
    ALLOW_V4, ALLOW_V6, BAN_LENGTH, BAN_PACKETS, BAN_UNTIL, BANS_V4, BANS_V6, BANS_V6_64, BanValue,
    LAYOUT_VERSION, MAPS, PREFIXES_V4, PREFIXES_V6, PROGRAM, STATE, StateValue, TOTALS, Totals,
};
use rustix::time::{ClockId, clock_gettime};

use super::{Counters, Description, EnforceError, Enforcer, Entry, Health, Keep};
use crate::{
    engine::Change,
    net::{Prefix, Scope},
    time::{Timestamp, Until},
};

mod attach;
mod key;
#[expect(unsafe_code, reason = "bpf(2) calls that the library does not offer")]
mod link;

use attach::Attachment;
use key::{Key, Place};

/// The program as `cargo xtask build` made it, or nothing where there was no BPF toolchain.
static OBJECT: Option<&[u8]> = include!(concat!(env!("OUT_DIR"), "/xdp_object.rs"));

/// Where objects are pinned when nobody says.
pub const PIN_DIR: &str = "/sys/fs/bpf/blocker";

/// Whether this binary holds the XDP program.
pub fn is_built_in() -> bool {
    OBJECT.is_some()
}

/// What to attach, and where to keep it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Interfaces by name; at least one.
    pub interfaces: Vec<String>,
    /// Entries of each hash map.
    pub bans_max: usize,
    /// A folder on bpffs; made when it is missing.
    pub pin_dir: PathBuf,
}

/// The XDP enforcer.
#[derive(Debug)]
pub struct Xdp {
    ebpf: Ebpf,
    pins: PathBuf,
    attachments: Vec<Attachment>,
}

fn refused(what: impl Into<String>, cause: impl Into<String>, hint: impl Into<String>) -> EnforceError {
    EnforceError { what: what.into(), cause: cause.into(), hint: hint.into(), prefix: None }
}

impl Xdp {
    /// Loads the program with the maps that are pinned, or new ones, and attaches it to every interface.
    ///
    /// # Errors
    /// When a capability, bpffs or an interface is missing, or another program holds the interface. Nothing new stays
    /// attached then.
    pub fn open(options: &Options) -> Result<Self, EnforceError> {
        let Some(object) = OBJECT else {
            return Err(refused(
                "load the XDP program",
                "it was not built into this binary",
                "build with `cargo xtask build`",
            ));
        };
        let indices = attach::indices(&options.interfaces)?;
        let pins = options.pin_dir.join(format!("v{LAYOUT_VERSION}"));
        attach::make_pin_dir(&options.pin_dir, &pins)?;
        let bans_max = u32::try_from(options.bans_max.max(1)).unwrap_or(u32::MAX);
        let kept = outgrown(&pins, bans_max)?;
        let mut loader = EbpfLoader::new();
        for name in MAPS {
            loader.map_pin_path(name, pins.join(name));
        }
        for name in [BANS_V4, BANS_V6, BANS_V6_64] {
            loader.map_max_entries(name, bans_max);
        }
        let ebpf = loader
            .load(object)
            .map_err(|error| refused("load the XDP maps", chain(&error), attach::hint(&chain(&error))))?;
        let mut xdp = Self { ebpf, pins, attachments: Vec::new() };
        if let Some(kept) = kept {
            for (name, key, value) in kept {
                xdp.put(name, &key, value)?;
            }
        }
        xdp.mark_prefixes()?;
        let program = xdp.program()?;
        program
            .load()
            .map_err(|error| refused("load the XDP program", chain(&error), attach::hint(&chain(&error))))?;
        for (name, index) in indices {
            let attachment = attach::attach(xdp.program()?, &xdp_pins(&options.pin_dir), &name, index)?;
            xdp.attachments.push(attachment);
        }
        attach::drop_others(&xdp.pins, &xdp.attachments);
        Ok(xdp)
    }

    fn program(&mut self) -> Result<&mut Program, EnforceError> {
        let program = self.ebpf.program_mut(PROGRAM).and_then(|program| program.try_into().ok());
        program.ok_or_else(|| {
            refused("find the XDP program", "the built-in object has none", "build blocker again")
        })
    }

    /// The loaded program, for benchmarks and tests through BPF_PROG_TEST_RUN.
    pub fn program_fd(&mut self) -> Option<std::os::fd::OwnedFd> {
        use std::os::fd::AsFd as _;
        self.program().ok()?.fd().ok()?.as_fd().try_clone_to_owned().ok()
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
            let hint =
                if is_full(&error) { "it is full; raise `[enforce] max_bans` and restart" } else { "" };
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

    fn ban(&mut self, prefix: Prefix, until: Until, now: Timestamp) -> Result<(), EnforceError> {
        let (place, key) = key::of_ban(prefix);
        if until.is_over(now) {
            return self.remove(place.map, &key);
        }
        // A ban that is prolonged keeps its counts.
        let mut value = self.get(place, &key).unwrap_or_default();
        value[BAN_UNTIL] = to_boot(until, now);
        value[BAN_LENGTH] = prefix.length().into();
        self.put(place.map, &key, value)?;
        if place.is_trie { self.mark(place.map, true) } else { Ok(()) }
    }

    fn change(&mut self, change: &Change, now: Timestamp) -> Result<(), EnforceError> {
        match change {
            // Never widened: whoever bans on some ports wants the others open.
            Change::Ban(ban) if !ban.scope.is_all() => Err(refused(
                format!("ban {} on {}", ban.prefix, ban.scope),
                "XDP bans on all ports only".to_owned(),
                "set `[enforce] backend = \"nftables\"`, or ban on all ports",
            )),
            Change::Unban { scope, .. } if !scope.is_all() => Ok(()),
            Change::Ban(ban) => self.ban(ban.prefix, ban.until, now),
            Change::Unban { prefix, .. } => {
                let (place, key) = key::of_ban(*prefix);
                self.remove(place.map, &key)?;
                if place.is_trie { self.mark_prefixes() } else { Ok(()) }
            }
            Change::Allow { prefix } => {
                let (name, key) = key::of_allow(*prefix);
                self.put(name, &key, BanValue::default())
            }
            Change::Disallow { prefix } => {
                let (name, key) = key::of_allow(*prefix);
                self.remove(name, &key)
            }
            Change::Flush => {
                for (name, key, _) in self.held()? {
                    self.remove(name, &key)?;
                }
                self.mark_prefixes()
            }
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
    fn held(&mut self) -> Result<Vec<Held>, EnforceError> {
        let mut held = Vec::new();
        for name in [BANS_V4, BANS_V6, BANS_V6_64, PREFIXES_V4, PREFIXES_V6] {
            read_bans(name, self.map(name)?, &mut held)
                .map_err(|error| refused(format!("read the map {name}"), chain(&error), ""))?;
        }
        Ok(held)
    }
}

impl Enforcer for Xdp {
    fn apply(&mut self, batch: &[Change], now: Timestamp) -> Result<(), EnforceError> {
        let mut first = Ok(());
        for change in batch {
            let prefix = match change {
                Change::Ban(ban) => Some(ban.prefix),
                Change::Unban { prefix, .. } | Change::Allow { prefix } | Change::Disallow { prefix } => {
                    Some(*prefix)
                }
                Change::Flush => None,
            };
            if let Err(error) = self.change(change, now)
                && first.is_ok()
            {
                first = Err(EnforceError { prefix, ..error });
            }
        }
        first
    }

    fn entries(&mut self, now: Timestamp) -> Result<Vec<Entry>, EnforceError> {
        let boot = boot_ns();
        let held =
            self.held()?.into_iter().filter(|(_, _, value)| value[BAN_UNTIL] == 0 || value[BAN_UNTIL] > boot);
        let mut entries: Vec<Entry> = held
            .filter_map(|(_, key, value)| {
                let until = from_boot(value[BAN_UNTIL], boot, now);
                Some(Entry { prefix: key.prefix()?, scope: Scope::ALL, until, packets: value[BAN_PACKETS] })
            })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.prefix);
        Ok(entries)
    }

    fn allowed(&mut self) -> Result<Vec<Prefix>, EnforceError> {
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
        let mut allowed: Vec<Prefix> = v4.chain(v6).collect();
        allowed.sort_unstable();
        Ok(allowed)
    }

    fn counters(&mut self) -> Result<Counters, EnforceError> {
        let totals =
            PerCpuArray::<_, Totals>::try_from(self.map(TOTALS)?).and_then(|totals| totals.get(&0, 0));
        let totals = totals.map_err(|error| refused("read the totals", chain(&error), ""))?;
        let sum = |index: usize| totals.iter().map(|of_cpu| of_cpu[index]).sum();
        Ok(Counters { packets: sum(0), bytes: sum(1) })
    }

    fn repair(&mut self) -> Result<Health, EnforceError> {
        let mut health = Health::Sound;
        attach::make_pin_dir(self.pins.parent().unwrap_or(Path::new("/")), &self.pins)?;
        for name in MAPS {
            let path = self.pins.join(name);
            if !path.exists() {
                let data = self.map(name)?;
                data.pin(&path)
                    .map_err(|error| refused(format!("pin the map {name} again"), chain(&error), ""))?;
                health = Health::Repaired;
            }
        }
        let pins = self.pins.clone();
        for place in 0..self.attachments.len() {
            let Some(attachment) = self.attachments.get_mut(place) else { continue };
            if attachment.is_sound(&pins) {
                continue;
            }
            let name = attachment.interface.clone();
            if attachment.is_live() {
                attachment.pin_again(&pins)?;
            } else {
                let indices = attach::indices(std::slice::from_ref(&name))?;
                let index = indices.first().map_or(0, |(_, index)| *index);
                let fresh = attach::attach(self.program()?, &pins, &name, index)?;
                if let Some(old) = self.attachments.get_mut(place) {
                    *old = fresh;
                }
            }
            health = Health::Repaired;
        }
        Ok(health)
    }

    fn describe(&self) -> Description {
        let reasons: Vec<&str> = self
            .attachments
            .iter()
            .map(|attachment| attachment.reason.as_str())
            .filter(|reason| !reason.is_empty())
            .collect();
        Description {
            backend: "xdp",
            attachments: self
                .attachments
                .iter()
                .map(|attachment| format!("{}: {}", attachment.interface, attachment.mode))
                .collect(),
            reason: reasons.join("; "),
        }
    }

    fn close(self: Box<Self>, keep: Keep) -> Result<(), EnforceError> {
        if keep == Keep::Nothing {
            remove(self.pins.parent().unwrap_or(&self.pins))?;
        }
        Ok(())
    }
}

/// Detaches and removes everything pinned below `pin_dir`, of any layout; nothing when there is nothing.
///
/// # Errors
/// When something pinned cannot be removed.
pub fn remove(pin_dir: &Path) -> Result<(), EnforceError> {
    let failed = |error: std::io::Error| {
        refused(format!("remove what is pinned below {}", pin_dir.display()), error.to_string(), "")
    };
    for layout in fs::read_dir(pin_dir).into_iter().flatten().flatten() {
        let is_ours =
            layout.file_name().to_string_lossy().strip_prefix('v').is_some_and(|n| n.parse::<u32>().is_ok());
        if !is_ours {
            continue;
        }
        for pin in fs::read_dir(layout.path()).map_err(failed)? {
            fs::remove_file(pin.map_err(failed)?.path()).map_err(failed)?;
        }
        fs::remove_dir(layout.path()).map_err(failed)?;
    }
    Ok(())
}

/// Looks at pinned maps without being the agent: for benchmarks.
#[derive(Debug)]
pub struct Reader {
    v4: HashMap<MapData, [u8; 4], BanValue>,
    v6: HashMap<MapData, [u8; 8], BanValue>,
}

impl Reader {
    /// Opens the maps pinned below `pin_dir`.
    ///
    /// # Errors
    /// When there are none, or they are not ours.
    pub fn open(pin_dir: &Path) -> Result<Self, EnforceError> {
        let pinned = |name: &str| MapData::from_pin(xdp_pins(pin_dir).join(name));
        let open = || -> Result<Self, MapError> {
            let v4 = HashMap::try_from(Map::HashMap(pinned(BANS_V4)?))?;
            let v6 = HashMap::try_from(Map::HashMap(pinned(BANS_V6_64)?))?;
            Ok(Self { v4, v6 })
        };
        open()
            .map_err(|error| refused(format!("open the maps below {}", pin_dir.display()), chain(&error), ""))
    }

    /// Whether there is an entry for this address, or for the /64 around it.
    pub fn holds(&self, address: std::net::IpAddr) -> bool {
        match key::of_ban(Prefix::host(address)).1 {
            Key::V4(key) => self.v4.get(&key, 0).is_ok(),
            Key::V6(key) => key.first_chunk().is_some_and(|network| self.v6.get(network, 0).is_ok()),
            _ => false,
        }
    }
}

fn xdp_pins(pin_dir: &Path) -> PathBuf {
    pin_dir.join(format!("v{LAYOUT_VERSION}"))
}

/// A ban as it lies in a map.
type Held = (&'static str, Key, BanValue);

/// Reads bans out of pinned maps of another size and unpins those, so that new ones are made. The old program keeps
/// the old maps until the new one takes its place.
fn outgrown(pins: &Path, bans_max: u32) -> Result<Option<Vec<Held>>, EnforceError> {
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
        read_bans(name, &mut Map::HashMap(data), &mut held).map_err(failed)?;
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

/// Entries that go while they are read are left out.
fn read_bans(name: &'static str, map: &mut Map, held: &mut Vec<Held>) -> Result<(), MapError> {
    match name {
        BANS_V4 => {
            let map = HashMap::<_, [u8; 4], BanValue>::try_from(map)?;
            held.extend(map.iter().filter_map(Result::ok).map(|(key, value)| (name, Key::V4(key), value)));
        }
        BANS_V6 => {
            let map = HashMap::<_, [u8; 16], BanValue>::try_from(map)?;
            held.extend(map.iter().filter_map(Result::ok).map(|(key, value)| (name, Key::V6(key), value)));
        }
        BANS_V6_64 => {
            let map = HashMap::<_, [u8; 8], BanValue>::try_from(map)?;
            held.extend(
                map.iter().filter_map(Result::ok).map(|(key, value)| (name, Key::V6Half(key), value)),
            );
        }
        PREFIXES_V4 => {
            let map = trie4::<BanValue>(map)?;
            held.extend(
                map.iter()
                    .filter_map(Result::ok)
                    .map(|(key, value)| (name, Key::Trie4(key.prefix_len(), key.data()), value)),
            );
        }
        _ => {
            let map = trie6::<BanValue>(map)?;
            held.extend(
                map.iter()
                    .filter_map(Result::ok)
                    .map(|(key, value)| (name, Key::Trie6(key.prefix_len(), key.data()), value)),
            );
        }
    }
    Ok(())
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

/// An error with everything behind it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text.lines().next().unwrap_or_default().to_owned()
}

fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// A wall-clock end as a boot-clock one; 0 stands for none.
fn to_boot(until: Until, now: Timestamp) -> u64 {
    match until {
        Until::Forever => 0,
        Until::At(end) => {
            let left = u64::try_from(end.saturating_since(now).as_nanos()).unwrap_or(u64::MAX);
            boot_ns().saturating_add(left).max(1)
        }
    }
}

fn from_boot(until: u64, boot: u64, now: Timestamp) -> Until {
    match until {
        0 => Until::Forever,
        end => Until::At(now.saturating_add(Duration::from_nanos(end.saturating_sub(boot)))),
    }
}
