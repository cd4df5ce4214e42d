//! The bpf(2) calls on links that the library does not offer as they are needed here, and one run of a program.
//!
//! A link is made as it is asked for or not at all: the library would go on with netlink, which takes the place of
//! whatever is attached.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use super::syscall::{self, bpf, number};

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;

const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// Of no other program in particular: before all of them.
const BPF_F_BEFORE: u32 = 1 << 3;

/// Where a program is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// By the driver, before there is a packet buffer.
    Native,
    /// By the stack, in XDP's place.
    Generic,
    /// By the stack, before everything else that may see the packet.
    Tcx,
}

/// A link, attached or not any more.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) id: u32,
    /// The id of its program.
    pub(super) program: u32,
    /// The interface it is attached to; `None` once that is gone or the link was detached.
    pub(super) interface: Option<u32>,
    pub(super) is_tcx: bool,
}

/// `union bpf_attr` for BPF_OBJ_PIN and BPF_OBJ_GET (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `struct bpf_link_info` as far as XDP and TCX links fill it.
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

/// For BPF_LINK_CREATE.
#[repr(C)]
#[derive(Default)]
struct Create {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    /// Of the other program that a TCX link is to stand before or after, and which state of them all is meant.
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

/// For BPF_LINK_UPDATE.
#[repr(C)]
#[derive(Default)]
struct Update {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// For BPF_PROG_TEST_RUN, as far as it is used.
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

impl Link {
    /// Attaches a program to an interface, by its index in this network namespace. Never takes anybody's place.
    pub(super) fn create(program: BorrowedFd<'_>, interface: u32, hook: Hook) -> io::Result<Self> {
        let (attach_type, flags) = match hook {
            Hook::Native => (BPF_XDP, XDP_FLAGS_DRV_MODE),
            Hook::Generic => (BPF_XDP, XDP_FLAGS_SKB_MODE),
            Hook::Tcx => (BPF_TCX_INGRESS, BPF_F_BEFORE),
        };
        let prog_fd = number(program)?;
        let mut attr = Create { prog_fd, target_ifindex: interface, attach_type, flags, ..Create::default() };
        // SAFETY: the attribute is this command's and holds no pointer.
        unsafe { syscall::open(BPF_LINK_CREATE, &mut attr) }.map(Self)
    }

    /// Opens a pinned one.
    pub(super) fn open(pin: &Path) -> io::Result<Self> {
        let pin = CString::new(pin.as_os_str().as_bytes())?;
        let mut attr = Object { pathname: pin.as_ptr() as u64, ..Object::default() };
        // SAFETY: the attribute is this command's, and the path is a C string that outlives the call.
        unsafe { syscall::open(BPF_OBJ_GET, &mut attr) }.map(Self)
    }

    /// Pins it, so that it outlives this process.
    pub(super) fn pin(&self, pin: &Path) -> io::Result<()> {
        let pin = CString::new(pin.as_os_str().as_bytes())?;
        let bpf_fd = number(self.0.as_fd())?;
        let mut attr = Object { pathname: pin.as_ptr() as u64, bpf_fd, ..Object::default() };
        // SAFETY: as for opening.
        unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
    }

    /// Puts a program in the place of the one it has, atomically.
    pub(super) fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attr =
            Update { link_fd: number(self.0.as_fd())?, new_prog_fd: number(program)?, ..Update::default() };
        // SAFETY: the attribute is this command's and holds no pointer.
        unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
    }

    /// What the kernel says of it; an error where it is neither an XDP nor a TCX link.
    pub(super) fn info(&self) -> io::Result<Info> {
        // SAFETY: it is laid out as `struct bpf_link_info` begins, and consists of numbers.
        let info: LinkInfo = unsafe { syscall::info(self.0.as_fd()) }?;
        if !matches!(info.kind, BPF_LINK_TYPE_XDP | BPF_LINK_TYPE_TCX) {
            return Err(io::Error::other("it is another kind of link"));
        }
        Ok(Info {
            id: info.id,
            program: info.prog_id,
            interface: (info.ifindex != 0).then_some(info.ifindex),
            is_tcx: info.kind == BPF_LINK_TYPE_TCX,
        })
    }
}

/// Runs an XDP program once, on an empty frame.
pub(super) fn run_once(program: BorrowedFd<'_>) -> io::Result<()> {
    // An Ethernet header, which the kernel insists on.
    let frame = [0_u8; 14];
    let mut attr = TestRun {
        prog_fd: number(program)?,
        data_size_in: 14,
        data_in: frame.as_ptr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    // SAFETY: the attribute is this command's, and the frame is `data_size_in` bytes that outlive the call.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }.map(drop)
}
