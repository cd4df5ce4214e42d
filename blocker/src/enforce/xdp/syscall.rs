//! bpf(2), as the modules that say what the library does not offer call it.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// `union bpf_attr` for BPF_OBJ_GET_INFO_BY_FD (linux/bpf.h).
#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Calls bpf(2).
///
/// # Safety
/// `attr` has the kernel's layout for `command`, as far as it goes, and its pointers are good for the call.
pub(super) unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<RawFd> {
    // SAFETY: by the caller; `attr` itself is as large as is said.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(done).map_err(io::Error::other)
}

/// The same for a command that answers with a descriptor.
///
/// # Safety
/// As for [`bpf`]; and `command` makes a descriptor.
pub(super) unsafe fn open<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: by the caller.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel says of an object.
///
/// # Safety
/// `T` is how the kernel lays out what it says of such an object, or its beginning, and any bytes are one.
pub(super) unsafe fn info<T: Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let info_len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let mut attr = GetInfo { bpf_fd: number(object)?, info_len, info: &raw mut info as u64 };
    // SAFETY: the attribute is this command's, and `info` is `info_len` writable bytes that outlive the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// A descriptor as attributes hold it.
pub(super) fn number(fd: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}
