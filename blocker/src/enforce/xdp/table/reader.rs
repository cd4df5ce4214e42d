//! The program's own function over the pinned maps, in this process: what it says of an address.
#![forbid(unsafe_code)]

use std::{cell::RefCell, net::IpAddr, path::Path};

use aya::maps::MapData;
use blocker_ebpf::{
    packet::Source,
    table::{self, BUCKET_SLOTS, JIFFIES, Params, SEED_WORD, SLOTS, UNIT_SHIFT, Words},
};

use super::{
    super::{EnforceError, chain, refused},
    generation::{folder, generations},
    maps::Maps,
    memory::{At, Memory as _},
};

/// Looks into a pinned table with the program's own function.
#[derive(Debug)]
pub(in super::super) struct Reader {
    maps: RefCell<Maps>,
    params: Params,
}

impl Reader {
    /// Opens the newest table of those pinned there.
    pub(in super::super) fn open(pins: &Path) -> Result<Self, EnforceError> {
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

    pub(in super::super) fn holds(&self, address: IpAddr) -> bool {
        let source = match address {
            IpAddr::V4(address) => Source::V4(address.octets()),
            IpAddr::V6(address) => Source::V6(address.octets()),
        };
        table::find(&self, self.params, source).is_some()
    }
}

/// Words of one element.
pub(in super::super) struct Element<'a> {
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
