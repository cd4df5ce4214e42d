//! Which programs the kernel runs before one of ours, where several are attached at one place.
//!
//! It runs them in their order until one of them decides about the packet. We are put first; whoever comes later and puts
//! itself before us can let a packet pass that we would have dropped.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use super::syscall::{self, bpf};

const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_TCX_INGRESS: u32 = 46;
/// Programs that the kernel takes at one place at most (BPF_MPROG_MAX).
const PROGRAMS_MAX: usize = 64;

/// `union bpf_attr` for BPF_PROG_QUERY (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    /// In: ids that there is room for; out: programs that there are.
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// For BPF_PROG_GET_FD_BY_ID.
#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// `struct bpf_prog_info` as far as its name. What is zero before that asks for nothing more.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    before: [u64; 8],
    name: [u8; 16],
}

/// The ids of the programs that see what comes in by an interface before this one does, by TCX; none where it is not
/// attached there.
pub(super) fn before(program: u32, interface: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; PROGRAMS_MAX];
    let mut attr = Query {
        target_ifindex: interface,
        attach_type: BPF_TCX_INGRESS,
        prog_ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(ids.len()).map_err(io::Error::other)?,
        ..Query::default()
    };
    // SAFETY: the attribute is this command's; there is room for `count` ids, which outlive the call.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }?;
    let ids = ids.get(..attr.count as usize).unwrap_or(&ids);
    let place = ids.iter().position(|id| *id == program).unwrap_or(0);
    Ok(ids.get(..place).unwrap_or_default().to_vec())
}

/// What a program is called, as far as whoever made it said so and the kernel tells (CAP_SYS_ADMIN).
pub(super) fn name(program: u32) -> Option<String> {
    let mut attr = ById { id: program, ..ById::default() };
    // SAFETY: the attribute is this command's and holds no pointer.
    let program: OwnedFd = unsafe { syscall::open(BPF_PROG_GET_FD_BY_ID, &mut attr) }.ok()?;
    // SAFETY: it is laid out as `struct bpf_prog_info` begins, and consists of numbers.
    let info: ProgramInfo = unsafe { syscall::info(program.as_fd()) }.ok()?;
    let name: Vec<u8> = info.name.into_iter().take_while(|byte| *byte != 0).collect();
    // The kernel takes letters, digits, `_` and `.` only.
    String::from_utf8(name).ok().filter(|name| !name.is_empty())
}
