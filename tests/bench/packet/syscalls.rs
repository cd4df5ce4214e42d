//! Raw bpf(2), where the library offers nothing: what the kernel says of programs and maps.

use std::{
    ffi::CStr,
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

/// A program that takes packets in fragments (linux/bpf.h).
pub(crate) const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const MAP_GET_FD_BY_ID: libc::c_int = 14;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// bpf(2) with one of the attributes below.
fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: every attribute here is laid out as the kernel's, holds pointers to memory that outlives the call, and is
    // as large as is said.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

/// The descriptor that a successful call returned.
fn descriptor(returned: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(RawFd::try_from(returned).expect("a descriptor")) }
}

/// `union bpf_attr` for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct Update {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Puts a program at place 0 of a program array.
pub(crate) fn follow(array: RawFd, program: RawFd) -> io::Result<()> {
    let (key, value) = (0_u32, program.cast_unsigned());
    let mut attribute = Update {
        map_fd: array.cast_unsigned(),
        padding: 0,
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    bpf(MAP_UPDATE_ELEM, &mut attribute).map(drop)
}

/// `union bpf_attr` for BPF_*_GET_FD_BY_ID.
#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// The loaded program with this id.
pub(crate) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf(PROG_GET_FD_BY_ID, &mut ById { id, next_id: 0, open_flags: 0 }).map(descriptor)
}

fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf(MAP_GET_FD_BY_ID, &mut ById { id, next_id: 0, open_flags: 0 }).map(descriptor)
}

/// `union bpf_attr` for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

fn info<T>(fd: RawFd, info: &mut T) -> io::Result<()> {
    let length = u32::try_from(size_of::<T>()).expect("a short answer");
    let mut attribute = InfoByFd { fd: fd.cast_unsigned(), length, info: (&raw mut *info) as u64 };
    bpf(OBJ_GET_INFO_BY_FD, &mut attribute).map(drop)
}

/// The head of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    translated_len: u32,
    jited: u64,
    translated: u64,
    load_time: u64,
    created_by: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// A program's instructions as the verifier left them, calls inlined and all.
pub(crate) fn translated(program: RawFd) -> io::Result<Vec<u64>> {
    let mut first = ProgramInfo::default();
    info(program, &mut first)?;
    let mut instructions = vec![0_u64; first.translated_len as usize / size_of::<u64>()];
    let mut second = ProgramInfo {
        translated_len: first.translated_len,
        translated: instructions.as_mut_ptr() as u64,
        ..ProgramInfo::default()
    };
    info(program, &mut second)?;
    Ok(instructions)
}

/// A map, and what it weighs.
#[derive(Debug)]
pub(crate) struct MapFacts {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) entries_max: u32,
    /// What the kernel charges for it.
    pub(crate) bytes: u64,
}

/// The head of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    entries_max: u32,
    flags: u32,
    name: [u8; 16],
}

/// The maps that a program uses.
pub(crate) fn maps_of(program: RawFd) -> io::Result<Vec<MapFacts>> {
    let mut first = ProgramInfo::default();
    info(program, &mut first)?;
    let mut ids = vec![0_u32; first.map_count as usize];
    let mut second = ProgramInfo {
        map_count: first.map_count,
        map_ids: ids.as_mut_ptr() as u64,
        ..ProgramInfo::default()
    };
    info(program, &mut second)?;
    ids.into_iter().map(|id| map_facts(&map_by_id(id)?)).collect()
}

fn map_facts(map: &OwnedFd) -> io::Result<MapFacts> {
    let mut facts = MapInfo::default();
    info(map.as_raw_fd(), &mut facts)?;
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
    let name = CStr::from_bytes_until_nul(&facts.name).unwrap_or_default().to_string_lossy().into_owned();
    Ok(MapFacts { id: facts.id, name, entries_max: facts.entries_max, bytes: bytes.unwrap_or(0) })
}
