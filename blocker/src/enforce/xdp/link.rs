//! The few bpf(2) calls that the library does not offer: whether a pinned link is still attached, and to
//! what, and one run of a program.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_TYPE_XDP: u32 = 6;

/// `union bpf_attr` for BPF_OBJ_GET (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Get {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `union bpf_attr` for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
#[derive(Default)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_link_info` as far as an XDP link fills it.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    padding: u32,
    /// 0 once the interface is gone or the link was detached.
    ifindex: u32,
    rest: [u32; 15],
}

/// The interface that the XDP link pinned at `path` is attached to; `None` when it is attached to none any more, or
/// there is no such link.
pub(super) fn attached_to(path: &Path) -> Option<u32> {
    let link = open(path).ok()?;
    let mut info = LinkInfo::default();
    let mut attr = GetInfo {
        bpf_fd: u32::try_from(link.as_raw_fd()).ok()?,
        info_len: u32::try_from(size_of::<LinkInfo>()).ok()?,
        info: &raw mut info as u64,
    };
    // SAFETY: `attr` has the kernel's layout, and `info` is `info_len` writable bytes that outlive the call.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut attr, size_of::<GetInfo>()) };
    (done == 0 && info.kind == BPF_LINK_TYPE_XDP && info.ifindex != 0).then_some(info.ifindex)
}

/// `union bpf_attr` for BPF_PROG_TEST_RUN, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Runs an XDP program once, on an empty frame.
pub(super) fn run_once(program: BorrowedFd<'_>) -> io::Result<()> {
    // An Ethernet header, which the kernel insists on.
    let frame = [0_u8; 14];
    let mut attr = TestRun {
        prog_fd: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        data_size_in: 14,
        data_in: frame.as_ptr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    // SAFETY: `attr` has the kernel's layout, and the frame is `data_size_in` bytes that outlive the call.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRun>()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Get { pathname: path.as_ptr() as u64, ..Get::default() };
    // SAFETY: `attr` has the kernel's layout, and the path is a C string that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attr, size_of::<Get>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The index of an interface in this network namespace (if_nametoindex(3)).
pub(super) fn interface_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name is a C string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => None,
        index => Some(index),
    }
}
