//! The maps and programs of one table in the kernel, and the folders they are pinned in.
//!
//! A generation is complete once it says of which layout it is; what its maker did not get to the end of is removed.
#![forbid(unsafe_code)]

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{Ebpf, EbpfLoader, maps::MapData, programs::Xdp as Program};
use blocker_ebpf::{
    TOTALS,
    table::{
        BUCKET_SLOTS, CLOCK, HIGHS, KEYS, LAYOUT, LAYOUT_WORD, MAPS, META, PROGRAM, PROGRAM_ONE_BUFFER,
        PROGRAM_TCX, PROGRAM_TCX_BARE, SLOTS, STATE_WORDS, TABLE, elements,
    },
};

use super::{
    super::{
        EnforceError, attach, chain,
        programs::{Kind, Names, Programs},
        refused,
    },
    Shape,
    maps::{Maps, WORD},
    window::Windows,
};

static OBJECT: Option<&[u8]> = include!(concat!(env!("OUT_DIR"), "/xdp_table_object.rs"));

pub(super) const NAMES: Names =
    Names { xdp: PROGRAM, xdp_one_buffer: PROGRAM_ONE_BUFFER, tcx: PROGRAM_TCX, tcx_bare: PROGRAM_TCX_BARE };

pub(in super::super) fn is_built_in() -> bool {
    OBJECT.is_some()
}

/// Makes or opens the maps of a generation and loads both programs over them.
pub(super) fn instantiate(
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
pub(super) fn object(
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

pub(super) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, EnforceError> {
    let program = ebpf.program_mut(name).and_then(|program| program.try_into().ok());
    program.ok_or_else(|| {
        refused(format!("find the program {name}"), "the built-in object has none", "build blocker again")
    })
}

pub(super) fn folder(pins: &Path, generation: u32) -> PathBuf {
    pins.join(format!("g{generation}"))
}

/// In ascending order.
pub(super) fn generations(pins: &Path) -> Vec<u32> {
    let entries = fs::read_dir(pins).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix('g')?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Whether a generation was filled before its maker ended, and is of this layout.
pub(super) fn is_complete(at: &Path) -> Result<bool, EnforceError> {
    if MAPS.iter().any(|name| !at.join(name).exists()) {
        return Ok(false);
    }
    Ok(state_of(at)?.load(LAYOUT_WORD * WORD) == LAYOUT)
}

/// The version that the tables pinned there say they are of, where it is not the one that is known here.
pub(in super::super) fn foreign_version(pins: &Path) -> Result<Option<u64>, EnforceError> {
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

pub(super) fn state_of(at: &Path) -> Result<Windows, EnforceError> {
    let path = at.join(TABLE);
    let failed = |cause: String| refused(format!("open the map {}", path.display()), cause, "");
    let data = MapData::from_pin(&path).map_err(|error| failed(chain(&error)))?;
    Windows::new(data.fd().as_fd(), STATE_WORDS * WORD).map_err(|error| failed(error.to_string()))
}

pub(super) fn remove(at: &Path) -> Result<(), EnforceError> {
    let failed =
        |error: io::Error| refused(format!("remove the maps in {}", at.display()), error.to_string(), "");
    for entry in fs::read_dir(at).map_err(failed)? {
        fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
    }
    fs::remove_dir(at).map_err(failed)
}
