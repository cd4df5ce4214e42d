//! What other programs do to links: attach one of their own, detach ours, or put their program into ours. Raw bpf(2), so
//! that nothing of blocker is asked whether it works.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;
const BPF_XDP: u32 = 37;
/// Attach in the driver (linux/if_link.h).
pub(crate) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Attaches an XDP program by a link that lives as long as the descriptor.
pub(crate) fn attach(program: BorrowedFd<'_>, interface: &str, flags: u32) -> io::Result<OwnedFd> {
    let name = CString::new(interface)?;
    // SAFETY: the name is a C string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let attr = [number(program), index, BPF_XDP, flags];
    // SAFETY: the attribute is this command's: program, interface, kind, flags.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &attr) }?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Detaches a pinned link by force.
pub(crate) fn detach(pin: &Path) -> io::Result<()> {
    let link = open(pin)?;
    // SAFETY: the attribute is this command's: the link.
    unsafe { bpf(BPF_LINK_DETACH, &[u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?]) }.map(drop)
}

/// Puts a program into a pinned link.
pub(crate) fn replace(pin: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = open(pin)?;
    let attr = [u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?, number(program), 0, 0];
    // SAFETY: the attribute is this command's: link, new program, flags, old program.
    unsafe { bpf(BPF_LINK_UPDATE, &attr) }.map(drop)
}

fn open(pin: &Path) -> io::Result<OwnedFd> {
    let pin = CString::new(pin.as_os_str().as_bytes())?;
    let attr = [pin.as_ptr() as u64, 0];
    // SAFETY: the attribute is this command's: the path, which outlives the call, and two zeros.
    let fd = unsafe { bpf(BPF_OBJ_GET, &attr) }?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
