//! xdp-filter of xdp-tools: loaded by its own tool, its map filled directly.
//!
//! Without the dispatcher of libxdp, which would cost it more. As shipped its maps hold 10,000 addresses; for more, a
//! copy of its object says another number.

use std::{fs, ops::Range, os::fd::AsRawFd as _, path::Path};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Map, MapData, PerCpuHashMap, PerCpuValues};
use xtask::lab::{Netns, Scratch, agent::remove_pins};

use super::attached_program;
use crate::{
    population,
    spray::{self, Family, Program},
    syscalls,
};

/// Entries of its maps as it is shipped.
pub(crate) const SHIPPED_MAX: u32 = 10_000;
/// Where it pins its maps.
const PINS: &str = "/sys/fs/bpf/xdp-filter";

/// xdp-filter on `eth0` of a namespace, with which it ends; its pins are removed on drop. There is one at a time.
#[derive(Debug)]
pub(crate) struct XdpFilter {
    program: Program,
    _objects: Option<Scratch>,
}

impl XdpFilter {
    /// Loads it with room for `bans`.
    pub(crate) fn load(netns: &Netns, bans: u64) -> Result<Self> {
        ensure!(xtask::setup::has("xdp-filter"), "xdp-filter is not installed (Debian's xdp-tools)");
        let bans = u32::try_from(bans)?;
        let objects = if bans > SHIPPED_MAX { Some(enlarged(bans)?) } else { None };
        let mut command = netns.command("xdp-filter");
        command.args(["load", "--mode", "native", "--policy", "allow", "--features", "ipv4,ipv6", "eth0"]);
        command.env("LIBXDP_SKIP_DISPATCHER", "1");
        if let Some(objects) = &objects {
            command.env("LIBXDP_OBJECT_PATH", objects.path());
        }
        xtask::lab::run(&mut command)?;
        let id = attached_program(netns)?.context("xdp-filter attached nothing")?;
        let fd = syscalls::program_by_id(id).context("take its program")?;
        let this = Self { program: Program { fd, frags: false }, _objects: objects };
        let maps = syscalls::maps_of(this.program.fd.as_raw_fd())?;
        let room = maps.iter().find(|map| map.name == "filter_ipv4").map(|map| map.entries_max);
        ensure!(room >= Some(bans), "its map holds {room:?} addresses, not {bans}");
        Ok(this)
    }

    pub(crate) fn program(&self) -> &Program {
        &self.program
    }

    /// Bans the sources with these numbers.
    pub(crate) fn ban(&self, netns: &Netns, family: Family, numbers: Range<u64>) -> Result<()> {
        let Some(first) = numbers.clone().next() else { return Ok(()) };
        // The value says which field is compared, so the tool writes the first.
        netns.run("xdp-filter", &["ip", "--mode", "src", &family.source(first).to_string()])?;
        match family {
            Family::V4 => copy_first("filter_ipv4", numbers.map(|n| population::v4(n).to_be_bytes())),
            Family::V6 => copy_first("filter_ipv6", numbers.map(|n| spray::v6(n).to_be_bytes())),
        }
    }
}

impl Drop for XdpFilter {
    fn drop(&mut self) {
        remove_pins(Path::new(PINS));
    }
}

/// Gives every key the value that the first has.
fn copy_first<const N: usize>(name: &str, mut keys: impl Iterator<Item = [u8; N]>) -> Result<()>
where
    [u8; N]: aya::Pod,
{
    let path = Path::new(PINS).join(name);
    let map = MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
    let mut map: PerCpuHashMap<_, [u8; N], u64> = Map::PerCpuHashMap(map).try_into()?;
    let Some(first) = keys.next() else { return Ok(()) };
    let value = map.get(&first, 0)?;
    for key in keys {
        map.insert(key, PerCpuValues::try_from(value.to_vec())?, 0)?;
    }
    Ok(())
}

/// A folder with a copy of its objects whose maps hold `bans`.
fn enlarged(bans: u32) -> Result<Scratch> {
    let scratch = Scratch::new("xdp-filter")?;
    let folder = ["/usr/lib/x86_64-linux-gnu/bpf", "/usr/lib/aarch64-linux-gnu/bpf", "/usr/lib/bpf"]
        .into_iter()
        .find(|folder| Path::new(folder).is_dir())
        .context("find the objects of xdp-filter")?;
    let name = "xdpfilt_alw_ip.o";
    let mut object = fs::read(Path::new(folder).join(name))?;
    // BTF spells a map's size as the number of elements of an array type (kernel doc, BTF, BTF_KIND_ARRAY).
    let mut found = 0;
    for at in (0..object.len().saturating_sub(3)).step_by(4) {
        if object[at..at + 4] == SHIPPED_MAX.to_le_bytes() {
            object[at..at + 4].copy_from_slice(&bans.to_le_bytes());
            found += 1;
        }
    }
    if found == 0 {
        bail!("the size of its maps is not found in {name}");
    }
    fs::write(scratch.join(name), object)?;
    Ok(scratch)
}
