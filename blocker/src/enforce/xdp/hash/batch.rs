//! Thousands of entries of a hash map in one bpf(2) call, which the library does not offer.
//!
//! The kernel has it since 5.6 (BPF_MAP_UPDATE_BATCH and its like); on older ones the same is done one by one. A batch
//! stops at the first entry that is refused: that one is told, and the rest goes on behind it.

use std::{cell::Cell, io, os::fd::BorrowedFd};

use super::super::syscall::{self, bpf, number};

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_MAP_DELETE_BATCH: libc::c_int = 27;
const BPF_MAP_TYPE_HASH: u32 = 1;
/// What the kernel calls ENOTSUPP, which user space has no name for.
const ENOTSUPP: i32 = 524;

/// Entries in a call: beyond some thousands a call gets no cheaper by the entry, and others wait longer for the processor.
const AT_ONCE: usize = 8_192;
/// Entries in a call that reads, at most: a call must have room for a whole bucket of the map.
const AT_ONCE_MAX: usize = 1 << 20;

/// `union bpf_attr` for the commands on one entry (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct One {
    map_fd: u32,
    padding: u32,
    key: u64,
    /// The value, or where the next key goes.
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for the commands on many.
#[repr(C)]
#[derive(Default)]
struct Many {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    /// In: entries; out: those that were done.
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `struct bpf_map_info` as far as it is asked for.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// A hash map whose keys are `K` bytes long and whose values are `V` words.
#[derive(Debug)]
pub(super) struct Bulk<'a, const K: usize, const V: usize> {
    _map: BorrowedFd<'a>,
    /// The same, as attributes hold it.
    map_fd: u32,
    entries_max: usize,
    /// Whether the kernel takes many at once, as far as is known.
    batches: &'a Cell<bool>,
}

impl<'a, const K: usize, const V: usize> Bulk<'a, K, V> {
    /// Makes sure that the map's keys and values are of this size. Once the kernel turns out to have no batch commands,
    /// `batches` says so.
    ///
    /// # Errors
    /// When they are not, or it is no map.
    pub(super) fn new(map: BorrowedFd<'a>, batches: &'a Cell<bool>) -> io::Result<Self> {
        // SAFETY: it is laid out as `struct bpf_map_info` begins, and consists of numbers.
        let info: MapInfo = unsafe { syscall::info(map) }?;
        let sizes = (info.kind, info.key_size as usize, info.value_size as usize);
        if sizes != (BPF_MAP_TYPE_HASH, K, V * size_of::<u64>()) {
            return Err(io::Error::other(format!("it has another layout: (type, key, value) = {sizes:?}")));
        }
        Ok(Self { _map: map, map_fd: number(map)?, entries_max: info.max_entries as usize, batches })
    }

    /// Puts these entries, in place of what the keys stood for. Tells of each that the kernel refused, and why.
    pub(super) fn put(
        &self,
        keys: &[[u8; K]],
        values: &[[u64; V]],
        mut refused: impl FnMut(usize, io::Error),
    ) {
        let values = &values[..keys.len().min(values.len())];
        let keys = &keys[..values.len()];
        self.each_batch(BPF_MAP_UPDATE_BATCH, keys, Some(values), |at| {
            if let Err(error) = self.put_one(&keys[at], &values[at]) {
                refused(at, error);
            }
        });
    }

    /// Removes what these keys stand for; nothing is no error. Tells of each that the kernel refused, and why.
    pub(super) fn remove(&self, keys: &[[u8; K]], mut refused: impl FnMut(usize, io::Error)) {
        self.each_batch(BPF_MAP_DELETE_BATCH, keys, None, |at| match self.remove_one(&keys[at]) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => refused(at, error),
            _ => {}
        });
    }

    /// Every entry; those that come or go meanwhile are in it or not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn read(&self, mut each: impl FnMut([u8; K], [u64; V])) -> io::Result<()> {
        if !self.batches.get() {
            return self.read_one_by_one(each);
        }
        let (mut keys, mut values) = (vec![[0; K]; AT_ONCE], vec![[0; V]; AT_ONCE]);
        // Where the kernel goes on; a number of a bucket.
        let (mut from, mut to) = (None, 0_u32);
        // Each call gets further by a bucket at least, or has more room than the one before it.
        for _ in 0..self.entries_max.next_power_of_two().saturating_add(AT_ONCE_MAX / AT_ONCE) {
            let mut many = Many {
                in_batch: from.as_ref().map_or(0, |from: &u32| &raw const *from as u64),
                out_batch: &raw mut to as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(keys.len()).map_err(io::Error::other)?,
                map_fd: self.map_fd,
                ..Many::default()
            };
            // SAFETY: keys and values have room for `count` entries of the map's sizes, which `new` made sure of; they
            // and both cursors, which are as large as a hash map's, outlive the call.
            let outcome = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut many) };
            let errno = outcome.as_ref().map_err(io::Error::raw_os_error);
            match errno {
                Ok(_) | Err(Some(libc::ENOENT)) => {
                    let count = (many.count as usize).min(keys.len());
                    keys[..count].iter().zip(&values[..count]).for_each(|(key, value)| each(*key, *value));
                    if errno.is_err() {
                        return Ok(());
                    }
                    from = Some(to);
                }
                Err(Some(libc::ENOSPC)) if keys.len() < AT_ONCE_MAX => {
                    keys.resize(keys.len() * 2, [0; K]);
                    values.resize(values.len() * 2, [0; V]);
                }
                Err(Some(libc::EINVAL | ENOTSUPP)) if from.is_none() => {
                    self.batches.set(false);
                    return self.read_one_by_one(each);
                }
                Err(_) => return outcome.map(drop),
            }
        }
        Err(endless())
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self.next(None), Ok(None))
    }

    /// What this key stands for.
    pub(super) fn get(&self, key: &[u8; K]) -> Option<[u64; V]> {
        let mut value = [0; V];
        let mut one = One {
            map_fd: self.map_fd,
            key: key.as_ptr() as u64,
            value: value.as_mut_ptr() as u64,
            ..One::default()
        };
        // SAFETY: key and value are of the map's sizes, which `new` made sure of, and outlive the call.
        unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut one) }.ok().map(|_| value)
    }

    /// Runs a command on all, many at once, and hands over each entry that is left to be done by itself: all of them where
    /// the kernel knows no such command, and those at which it stopped, for what stopped it may concern no other.
    fn each_batch(
        &self,
        command: libc::c_int,
        keys: &[[u8; K]],
        values: Option<&[[u64; V]]>,
        mut single: impl FnMut(usize),
    ) {
        let mut done = 0;
        while done < keys.len() {
            if !self.batches.get() {
                (done..keys.len()).for_each(single);
                return;
            }
            let end = keys.len().min(done + AT_ONCE);
            let (keys, values) = (&keys[done..end], values.map(|values| &values[done..end]));
            let asked = u32::try_from(keys.len()).unwrap_or(0);
            let mut many = Many {
                keys: keys.as_ptr() as u64,
                values: values.map_or(0, |values| values.as_ptr() as u64),
                count: asked,
                map_fd: self.map_fd,
                ..Many::default()
            };
            // SAFETY: both slices hold `count` entries of the map's sizes, which `new` made sure of, and outlive the
            // call, which only reads them.
            match unsafe { bpf(command, &mut many) } {
                Ok(_) => done = end,
                // Who does not know it writes no count.
                Err(error) if many.count == asked && is_unknown(&error) => self.batches.set(false),
                Err(_) => {
                    // Nor does the kernel before 6.7 where it has no memory to begin with.
                    let before = if many.count < asked { many.count as usize } else { 0 };
                    single(done + before);
                    done += before + 1;
                }
            }
        }
    }

    fn put_one(&self, key: &[u8; K], value: &[u64; V]) -> io::Result<()> {
        let mut one = One {
            map_fd: self.map_fd,
            key: key.as_ptr() as u64,
            value: value.as_ptr() as u64,
            ..One::default()
        };
        // SAFETY: key and value are of the map's sizes, which `new` made sure of, and outlive the call.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut one) }.map(drop)
    }

    fn remove_one(&self, key: &[u8; K]) -> io::Result<()> {
        let mut one = One { map_fd: self.map_fd, key: key.as_ptr() as u64, ..One::default() };
        // SAFETY: the key is of the map's size, which `new` made sure of, and outlives the call.
        unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut one) }.map(drop)
    }

    /// The key behind this one, or the first.
    fn next(&self, last: Option<&[u8; K]>) -> io::Result<Option<[u8; K]>> {
        let mut next = [0; K];
        let mut one = One {
            map_fd: self.map_fd,
            key: last.map_or(0, |last| last.as_ptr() as u64),
            value: next.as_mut_ptr() as u64,
            ..One::default()
        };
        // SAFETY: both keys are of the map's size, which `new` made sure of, and outlive the call.
        match unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut one) } {
            Ok(_) => Ok(Some(next)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_one_by_one(&self, mut each: impl FnMut([u8; K], [u64; V])) -> io::Result<()> {
        let mut last = None;
        // The kernel begins anew behind a key that has gone; not for ever.
        for _ in 0..=self.entries_max.saturating_mul(2) {
            let Some(key) = self.next(last.as_ref())? else { return Ok(()) };
            if let Some(value) = self.get(&key) {
                each(key, value);
            }
            last = Some(key);
        }
        Err(endless())
    }
}

/// Whether the kernel does not know the command, or not for such maps.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP))
}

fn endless() -> io::Error {
    io::Error::other("it changes too fast to be read")
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        os::fd::{AsFd as _, OwnedFd},
    };

    use super::*;

    const BPF_MAP_CREATE: libc::c_int = 0;

    /// `union bpf_attr` for BPF_MAP_CREATE.
    #[repr(C)]
    struct Create {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
    }

    /// A hash map, or nothing where this process may make none.
    fn map(key_size: u32, max_entries: u32) -> Option<OwnedFd> {
        let mut attr = Create { map_type: 1, key_size, value_size: 32, max_entries, map_flags: 0 };
        // SAFETY: the attribute is this command's and holds no pointer.
        match unsafe { syscall::open(BPF_MAP_CREATE, &mut attr) } {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                eprintln!("not run: this process may not make BPF maps");
                None
            }
            made => Some(made.unwrap()),
        }
    }

    fn key(n: usize) -> [u8; 4] {
        u32::try_from(n).unwrap().to_be_bytes()
    }

    fn value(n: usize) -> [u64; 4] {
        [n as u64, 1, 2, 3]
    }

    fn held(bulk: &Bulk<'_, 4, 4>) -> BTreeMap<[u8; 4], [u64; 4]> {
        let mut held = BTreeMap::new();
        let batches = bulk.batches.replace(true);
        bulk.read(|key, value| assert_eq!(held.insert(key, value), None, "read twice")).unwrap();
        let mut singly = BTreeMap::new();
        bulk.read_one_by_one(|key, value| {
            singly.insert(key, value);
        })
        .unwrap();
        assert_eq!((&held, bulk.is_empty()), (&singly, held.is_empty()));
        bulk.batches.set(batches);
        held
    }

    /// Once with the kernel's batch commands, and once as on a kernel without them.
    fn both(bulk: &Bulk<'_, 4, 4>, check: impl Fn(&Bulk<'_, 4, 4>)) {
        for batches in [true, false] {
            bulk.batches.set(batches);
            check(bulk);
            assert_eq!(bulk.batches.get(), batches, "this kernel has the commands, and no batch was unknown");
            bulk.remove(&(0..100_000).map(key).collect::<Vec<_>>(), |at, error| panic!("{at}: {error}"));
            assert_eq!(held(bulk), BTreeMap::new());
        }
    }

    #[test]
    fn what_is_put_is_held_and_what_is_removed_is_not() {
        let Some(map) = map(4, 100_000) else { return };
        let batches = Cell::new(true);
        let bulk = Bulk::new(map.as_fd(), &batches).unwrap();
        both(&bulk, |bulk| {
            // More than one call, and not a multiple.
            let keys: Vec<_> = (0..3 * AT_ONCE + 7).map(key).collect();
            let mut values: Vec<_> = (0..keys.len()).map(value).collect();
            bulk.put(&keys, &values, |at, error| panic!("{at}: {error}"));
            assert_eq!(held(bulk), keys.iter().copied().zip(values.iter().copied()).collect());
            values.iter_mut().for_each(|value| value[0] += 5);
            bulk.put(&keys, &values, |at, error| panic!("{at}: {error}"));
            assert_eq!((bulk.get(&key(9)), bulk.get(&key(99_999))), (Some([14, 1, 2, 3]), None));
            // Every third is not there any more when all are removed.
            let thirds: Vec<_> = keys.iter().copied().step_by(3).collect();
            bulk.remove(&thirds, |at, error| panic!("{at}: {error}"));
            assert_eq!(held(bulk).len(), keys.len() - thirds.len());
            bulk.remove(&keys, |at, error| panic!("{at}: {error}"));
        });
    }

    #[test]
    fn a_full_map_says_of_each_entry_whether_it_was_refused() {
        let Some(map) = map(4, 1_000) else { return };
        let batches = Cell::new(true);
        let bulk = Bulk::new(map.as_fd(), &batches).unwrap();
        both(&bulk, |bulk| {
            let keys: Vec<_> = (0..990).map(key).collect();
            bulk.put(&keys, &vec![value(0); 990], |at, error| panic!("{at}: {error}"));
            // Known and unknown ones in turn: the known ones are always taken, of the others the first ten or so.
            let mixed: Vec<_> = (0..60).map(|n| if n % 2 == 0 { key(n) } else { key(5_000 + n) }).collect();
            let values: Vec<_> = (0..60).map(|n| value(100 + n)).collect();
            let mut refused = Vec::new();
            bulk.put(&mixed, &values, |at, error| {
                assert_eq!(error.raw_os_error(), Some(libc::E2BIG));
                refused.push(at);
            });
            assert!(refused.is_sorted() && refused.iter().all(|at| at % 2 == 1), "{refused:?}");
            for (at, key) in mixed.iter().enumerate() {
                let expected = (!refused.contains(&at)).then_some(value(100 + at));
                assert_eq!(bulk.get(key), expected, "{at}");
            }
            // The kernel may keep a few spare entries for each processor.
            let held = held(bulk).len();
            assert_eq!(held, 990 + 30 - refused.len());
            assert!((1_000..1_020).contains(&held), "{held}");
        });
    }

    #[test]
    fn a_map_of_another_layout_is_not_touched() {
        let Some(map) = map(8, 10) else { return };
        let batches = Cell::new(true);
        let error = Bulk::<4, 4>::new(map.as_fd(), &batches).unwrap_err().to_string();
        assert!(error.contains("another layout"), "{error}");
        assert!(Bulk::<8, 3>::new(map.as_fd(), &batches).is_err());
        assert!(Bulk::<8, 4>::new(map.as_fd(), &batches).is_ok());
    }

    #[test]
    fn where_the_kernel_has_no_batches_each_entry_is_done_by_itself_and_it_is_known_from_then_on() {
        let Some(map) = map(4, 10_000) else { return };
        let batches = Cell::new(true);
        let bulk = Bulk::<4, 4>::new(map.as_fd(), &batches).unwrap();
        // A command of no kernel is refused as the batch commands are by one that has none.
        let unknown = 9_999;
        let keys: Vec<_> = (0..AT_ONCE + 3).map(key).collect();
        let mut alone = Vec::new();
        bulk.each_batch(unknown, &keys, None, |at| alone.push(at));
        assert_eq!((alone, batches.get()), ((0..keys.len()).collect(), false));
    }
}
