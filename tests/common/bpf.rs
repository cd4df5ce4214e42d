//! Raw bpf(2): running a program on a frame, and loading the program `return verdict;`.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
};

pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;

/// `union bpf_attr` for BPF_PROG_TEST_RUN (linux/bpf.h), as far as it is used.
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
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// The verdict, and the mean time of `repeat` runs in ns as the kernel took it.
pub(crate) fn test_run(program: RawFd, frame: &[u8], repeat: u32) -> (u32, u32) {
    let mut attr = TestRun { repeat, ..TestRun::of(program, frame) };
    attr.run().expect("BPF_PROG_TEST_RUN");
    (attr.retval, attr.duration)
}

/// Runs the program on `count` frames that are really sent where it says, in the caller's network namespace.
pub(crate) fn run_live(program: RawFd, frame: &[u8], count: u32) -> io::Result<()> {
    const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
    let flags = BPF_F_TEST_XDP_LIVE_FRAMES;
    // NAPI takes as many at a time.
    TestRun { repeat: count, flags, batch_size: 64, ..TestRun::of(program, frame) }.run()
}

impl TestRun {
    fn of(program: RawFd, frame: &[u8]) -> Self {
        Self {
            prog_fd: u32::try_from(program).expect("an open descriptor"),
            data_size_in: u32::try_from(frame.len()).expect("a short frame"),
            data_in: frame.as_ptr() as u64,
            ..Self::default()
        }
    }

    fn run(&mut self) -> io::Result<()> {
        const BPF_PROG_TEST_RUN: libc::c_int = 10;
        // SAFETY: the attribute is the kernel's layout and outlives the call; `data_in` points at `data_size_in` bytes
        // of a frame that does too.
        let done =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut *self, size_of::<Self>()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// `union bpf_attr` for BPF_PROG_LOAD (linux/bpf.h), as far as it is used.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The program `return verdict;`, with these load flags.
pub(crate) fn floor(verdict: u32, flags: u32) -> OwnedFd {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_XDP: u32 = 6;
    // As loaders of XDP objects say it: programs follow each other only where it is the same.
    const BPF_XDP: u32 = 37;
    // mov64 r0, verdict; exit (kernel doc, BPF instruction set).
    let insns: [u64; 2] = [0xb7 | u64::from(verdict) << 32, 0x95];
    let license = c"GPL";
    let attr = Load {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: 2,
        insns: insns.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_flags: flags,
        expected_attach_type: BPF_XDP,
        ..Load::default()
    };
    // SAFETY: `attr` is the kernel's layout; the instructions and the licence outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<Load>()) };
    assert!(fd >= 0, "BPF_PROG_LOAD: {}", io::Error::last_os_error());
    // SAFETY: the kernel just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).expect("a descriptor")) }
}
