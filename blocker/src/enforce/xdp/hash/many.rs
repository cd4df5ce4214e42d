//! Thousands of bans in a few calls: sorted by the map that each belongs to, and those of a hash map put into it or taken
//! out of it together.
#![forbid(unsafe_code)]

use std::{cell::Cell, os::fd::AsFd as _};

use aya::maps::Map;
use blocker_ebpf::{BANS_V4, BANS_V6, BANS_V6_64, BanValue, PREFIXES_V4, PREFIXES_V6};

use super::{
    super::{
        EnforceError, Held,
        key::{self, Key},
        refused,
    },
    FULL, Hash,
    batch::Bulk,
    boot_ns, value,
};
use crate::net::Prefix;

impl Hash {
    /// As [`Self::ban`], for thousands in a few calls. Names the first that was refused; the rest were tried.
    pub(in super::super) fn ban_all(&mut self, bans: &[Held]) -> Result<(), EnforceError> {
        let sorted = Sorted::of(bans.iter().map(|held| (key::of_ban(held.prefix).1, held)));
        let mut outcome = self.ban_each(sorted.tries);
        outcome = outcome.and(self.ban_in(BANS_V4, sorted.v4));
        outcome = outcome.and(self.ban_in(BANS_V6, sorted.v6));
        outcome.and(self.ban_in(BANS_V6_64, sorted.v6_halves))
    }

    fn ban_each<K>(&mut self, bans: Vec<(K, &Held)>) -> Result<(), EnforceError> {
        let mut outcome = Ok(());
        for (_, held) in bans {
            let banned = self.ban(held).map_err(|error| EnforceError { prefix: Some(held.prefix), ..error });
            outcome = outcome.and(banned);
        }
        outcome
    }

    fn ban_in<const K: usize>(
        &mut self,
        name: &'static str,
        bans: Vec<([u8; K], &Held)>,
    ) -> Result<(), EnforceError> {
        if bans.is_empty() {
            return Ok(());
        }
        let bulk = bulk::<K>(name, self.ebpf.map(name), &self.batches)?;
        // What is banned already keeps its count. Each by itself, since what is dropped between its being read and
        // written is not counted.
        let anew = bulk.is_empty();
        let (old, new): (Vec<_>, Vec<_>) =
            bans.into_iter().partition(|(key, _)| !anew && bulk.get(key).is_some());
        let boot = boot_ns();
        let (keys, values): (Vec<_>, Vec<_>) =
            new.iter().map(|(key, held)| (*key, value(held, boot))).unzip();
        let outcome = put_all(name, &bulk, &keys, &values).map_err(|(at, error)| EnforceError {
            prefix: new.get(at).map(|(_, held)| held.prefix),
            ..error
        });
        outcome.and(self.ban_each(old))
    }

    /// As [`Self::unban`], for thousands in a few calls.
    pub(in super::super) fn unban_all(&mut self, prefixes: &[Prefix]) -> Result<(), EnforceError> {
        self.remove_all(prefixes.iter().map(|prefix| key::of_ban(*prefix).1))
    }

    pub(super) fn remove_all(&mut self, keys: impl Iterator<Item = Key>) -> Result<(), EnforceError> {
        let sorted = Sorted::of(keys.map(|key| (key, ())));
        let mut outcome = Ok(());
        for (key, ()) in &sorted.tries {
            let trie = if matches!(key, Key::Trie4(..)) { PREFIXES_V4 } else { PREFIXES_V6 };
            outcome = outcome.and(self.remove(trie, key));
        }
        if !sorted.tries.is_empty() {
            outcome = outcome.and(self.mark_prefixes());
        }
        outcome = outcome.and(self.remove_in(BANS_V4, &sorted.v4));
        outcome = outcome.and(self.remove_in(BANS_V6, &sorted.v6));
        outcome.and(self.remove_in(BANS_V6_64, &sorted.v6_halves))
    }

    fn remove_in<const K: usize>(
        &mut self,
        name: &'static str,
        keys: &[([u8; K], ())],
    ) -> Result<(), EnforceError> {
        if keys.is_empty() {
            return Ok(());
        }
        let keys: Vec<[u8; K]> = keys.iter().map(|(key, ())| *key).collect();
        let mut outcome = Ok(());
        bulk(name, self.ebpf.map(name), &self.batches)?.remove(&keys, |_, error| {
            if outcome.is_ok() {
                outcome = Err(refused(format!("remove from the map {name}"), error.to_string(), ""));
            }
        });
        outcome
    }

    /// Puts what lay in hash maps of another size into these, counts and all.
    pub(super) fn take_over(&mut self, kept: Vec<(Key, BanValue)>) -> Result<(), EnforceError> {
        let sorted = Sorted::of(kept.into_iter());
        self.put_in(BANS_V4, sorted.v4)?;
        self.put_in(BANS_V6, sorted.v6)?;
        self.put_in(BANS_V6_64, sorted.v6_halves)
    }

    fn put_in<const K: usize>(
        &self,
        name: &'static str,
        entries: Vec<([u8; K], BanValue)>,
    ) -> Result<(), EnforceError> {
        let (keys, values): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        let bulk = bulk(name, self.ebpf.map(name), &self.batches)?;
        put_all(name, &bulk, &keys, &values).map_err(|(_, error)| error)
    }

    /// Why bans are not put in by the thousand; nothing where they are, as far as is known.
    pub(in super::super) fn note(&self) -> Option<String> {
        (!self.batches.get()).then(|| {
            "hash maps: bans are put in and listed one by one, because this kernel has no commands for many at once \
             (Linux 5.6 and later have them)"
                .to_owned()
        })
    }
}

/// Every ban in a hash map, over or not.
pub(super) fn read_hash(
    name: &str,
    map: Option<&Map>,
    batches: &Cell<bool>,
    held: &mut Vec<(Key, BanValue)>,
) -> Result<(), EnforceError> {
    let read = match name {
        BANS_V4 => bulk(name, map, batches)?.read(|key, value| held.push((Key::V4(key), value))),
        BANS_V6 => bulk(name, map, batches)?.read(|key, value| held.push((Key::V6(key), value))),
        _ => bulk(name, map, batches)?.read(|key, value| held.push((Key::V6Half(key), value))),
    };
    read.map_err(|error| refused(format!("read the map {name}"), error.to_string(), ""))
}

/// Keys by the map that they belong to, each with what goes with it.
struct Sorted<T> {
    v4: Vec<([u8; 4], T)>,
    v6: Vec<([u8; 16], T)>,
    v6_halves: Vec<([u8; 8], T)>,
    tries: Vec<(Key, T)>,
}

impl<T> Sorted<T> {
    fn of(keys: impl Iterator<Item = (Key, T)>) -> Self {
        let mut sorted = Self { v4: Vec::new(), v6: Vec::new(), v6_halves: Vec::new(), tries: Vec::new() };
        for (key, with) in keys {
            match key {
                Key::V4(key) => sorted.v4.push((key, with)),
                Key::V6(key) => sorted.v6.push((key, with)),
                Key::V6Half(key) => sorted.v6_halves.push((key, with)),
                Key::Trie4(..) | Key::Trie6(..) => sorted.tries.push((key, with)),
            }
        }
        sorted
    }
}

/// Words in a [`BanValue`].
const WORDS: usize = size_of::<BanValue>() / size_of::<u64>();

/// A hash map, for many entries at once.
fn bulk<'a, const K: usize>(
    name: &str,
    map: Option<&'a Map>,
    batches: &'a Cell<bool>,
) -> Result<Bulk<'a, K, WORDS>, EnforceError> {
    let failed = |cause: String| refused(format!("use the map {name}"), cause, "build blocker again");
    let Some(Map::HashMap(data)) = map else {
        return Err(failed("it is no hash map in the built-in object".to_owned()));
    };
    Bulk::new(data.fd().as_fd(), batches).map_err(|error| failed(error.to_string()))
}

/// Puts all that go; says which was the first that did not.
fn put_all<const K: usize>(
    name: &str,
    bulk: &Bulk<'_, K, WORDS>,
    keys: &[[u8; K]],
    values: &[BanValue],
) -> Result<(), (usize, EnforceError)> {
    let mut outcome = Ok(());
    bulk.put(keys, values, |at, error| {
        if outcome.is_ok() {
            let hint = if error.raw_os_error() == Some(libc::E2BIG) { FULL } else { "" };
            outcome = Err((at, refused(format!("add to the map {name}"), error.to_string(), hint)));
        }
    });
    outcome
}
