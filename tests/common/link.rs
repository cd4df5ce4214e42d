//! Raw bpf(2): the exchange of a link's program, which is what an upgrade comes down to.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// `union bpf_attr` for BPF_OBJ_GET (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Get {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// What is pinned there.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    const BPF_OBJ_GET: libc::c_int = 7;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Get { pathname: path.as_ptr() as u64, ..Get::default() };
    // SAFETY: `attr` is the kernel's layout, and the path is a C string; both outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attr, size_of::<Get>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).map_err(io::Error::other)?) })
}

/// `union bpf_attr` for BPF_LINK_UPDATE (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Update {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Puts a program into the place of the one that a link runs.
pub(crate) fn update(link: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    const BPF_LINK_UPDATE: libc::c_int = 29;
    let number = |fd: &OwnedFd| u32::try_from(fd.as_raw_fd()).map_err(io::Error::other);
    let attr = Update { link_fd: number(link)?, new_prog_fd: number(program)?, ..Update::default() };
    // SAFETY: `attr` is the kernel's layout and outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_UPDATE, &raw const attr, size_of::<Update>()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
