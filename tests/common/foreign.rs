//! What other programs do to links: attach one of their own, or detach ours. Raw bpf(2), so that nothing of blocker is
//! asked whether it works.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    path::Path,
};

use super::link::open_pin;

const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_DETACH: libc::c_int = 34;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
/// Attach in the driver (linux/if_link.h).
pub(crate) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Attaches an XDP program by a link that lives as long as the descriptor.
pub(crate) fn attach(program: BorrowedFd<'_>, interface: &str, flags: u32) -> io::Result<OwnedFd> {
    link(program, interface, BPF_XDP, flags)
}

/// The same for a classifier, by TCX: before all others, or behind them.
pub(crate) fn attach_tcx(program: BorrowedFd<'_>, interface: &str, place: Place) -> io::Result<OwnedFd> {
    link(program, interface, BPF_TCX_INGRESS, place as u32)
}

/// BPF_F_BEFORE and BPF_F_AFTER (linux/bpf.h).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    First = 1 << 3,
    Last = 1 << 4,
}

fn link(program: BorrowedFd<'_>, interface: &str, kind: u32, flags: u32) -> io::Result<OwnedFd> {
    let name = CString::new(interface)?;
    // SAFETY: the name is a C string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let attr = [number(program), index, kind, flags];
    // SAFETY: the attribute is this command's: program, interface, kind, flags.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &attr) }?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The classifier `return verdict;`, by this name.
pub(crate) fn classifier(verdict: i32, name: &str) -> OwnedFd {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_SCHED_CLS: u64 = 3;
    // mov64 r0, verdict; exit (kernel doc, BPF instruction set).
    let insns = [0xb7 | u64::from(verdict.cast_unsigned()) << 32, 0x95_u64];
    let license = c"GPL";
    let mut letters = name.bytes().chain(std::iter::repeat(0));
    let mut word = || u64::from_ne_bytes(std::array::from_fn(|_| letters.next().expect("endless")));
    let kind = BPF_PROG_TYPE_SCHED_CLS | (insns.len() as u64) << 32;
    let attr = [kind, insns.as_ptr() as u64, license.as_ptr() as u64, 0, 0, 0, word(), word()];
    // SAFETY: the attribute is this command's: type and number of instructions, where they are, the licence, nothing of
    // a log, no version and flags, and the name; what it points to outlives the call.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &attr) }.expect("BPF_PROG_LOAD");
    // SAFETY: the kernel just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Detaches a pinned link by force.
pub(crate) fn detach(pin: &Path) -> io::Result<()> {
    let link = open_pin(pin)?;
    // SAFETY: the attribute is this command's: the link.
    unsafe { bpf(BPF_LINK_DETACH, &[u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?]) }.map(drop)
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("an open descriptor")
}

/// # Safety
/// `attr` is laid out as the kernel's for `command`, and its pointers are good for the call.
unsafe fn bpf<T, const N: usize>(command: libc::c_int, attr: &[T; N]) -> io::Result<RawFd> {
    // SAFETY: by the caller.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(attr)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { RawFd::try_from(done).map_err(io::Error::other) }
}
