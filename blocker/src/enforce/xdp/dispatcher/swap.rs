//! What is attached to an interface by XDP, and putting something else there, if it is still that: by rtnetlink, which
//! is how libxdp attaches.
#![forbid(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use crate::enforce::{
    netlink::{Attributes, Message, word},
    xdp::rtnl::{IFLA_XDP, IFLA_XDP_PROG_ID, RTM_GETLINK, RTM_NEWLINK, ask},
};

// linux/rtnetlink.h, linux/if_link.h
const RTM_SETLINK: u16 = 19;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_FLAGS: u16 = 3;
const IFLA_XDP_EXPECTED_FD: u16 = 8;
const XDP_ATTACHED_DRV: u8 = 1;
const XDP_ATTACHED_SKB: u8 = 2;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const XDP_FLAGS_REPLACE: u32 = 1 << 4;

/// Where XDP runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Native,
    Generic,
}

/// A program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    /// Its id.
    pub(super) program: u32,
    pub(super) mode: Mode,
}

/// What is attached to an interface; `None` where nothing is, or more than one program, or one in the hardware.
pub(super) fn attached(index: u32) -> io::Result<Option<Attached>> {
    let mut found = None;
    ask(&Message::request(RTM_GETLINK, 0, &of(index)), |reply| {
        if reply.kind == RTM_NEWLINK {
            found = reply.body.get(16..).and_then(read);
            return Some(Ok(()));
        }
        reply.outcome()
    })?;
    Ok(found)
}

/// `struct ifinfomsg` of an interface.
fn of(index: u32) -> Vec<u8> {
    [&[0; 4], &index.to_ne_bytes()[..], &[0; 8]].concat()
}

fn read(rest: &[u8]) -> Option<Attached> {
    let xdp = Attributes(rest).nested(IFLA_XDP)?;
    let mode = match *xdp.get(IFLA_XDP_ATTACHED)?.first()? {
        XDP_ATTACHED_DRV => Mode::Native,
        XDP_ATTACHED_SKB => Mode::Generic,
        _ => return None,
    };
    let program = word(xdp.get(IFLA_XDP_PROG_ID)?, 0).filter(|id| *id != 0)?;
    Some(Attached { program, mode })
}

/// Puts a program, or none, in the place of the expected one. EEXIST where another is there, EBUSY where it is held by
/// a link.
pub(super) fn replace(
    index: u32,
    program: Option<BorrowedFd<'_>>,
    expected: BorrowedFd<'_>,
    mode: Mode,
) -> io::Result<()> {
    let flags = match mode {
        Mode::Native => XDP_FLAGS_DRV_MODE,
        Mode::Generic => XDP_FLAGS_SKB_MODE,
    };
    let program = program.map_or(-1, |program| program.as_raw_fd());
    let mut message = Message::request(RTM_SETLINK, libc::NLM_F_ACK, &of(index));
    message.nest(IFLA_XDP, |xdp| {
        xdp.bytes(IFLA_XDP_FD, &program.to_ne_bytes())
            .bytes(IFLA_XDP_FLAGS, &(flags | XDP_FLAGS_REPLACE).to_ne_bytes())
            .bytes(IFLA_XDP_EXPECTED_FD, &expected.as_raw_fd().to_ne_bytes());
    });
    ask(&message, |reply| reply.outcome())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_program_in_the_driver_or_in_the_stack_is_found() {
        let xdp = |mode: u8, program: u32| {
            let mut message = Message::request(RTM_NEWLINK, 0, &[]);
            message.nest(IFLA_XDP, |xdp| {
                xdp.bytes(IFLA_XDP_ATTACHED, &[mode]).bytes(IFLA_XDP_PROG_ID, &program.to_ne_bytes());
            });
            message.finish(0)[16..].to_vec()
        };
        let attached = |program, mode| Some(Attached { program, mode });
        let cases = [
            (xdp(1, 7), attached(7, Mode::Native)),
            (xdp(2, 8), attached(8, Mode::Generic)),
            (xdp(0, 0), None),
            (xdp(3, 9), None),
            (xdp(4, 9), None),
            (Vec::new(), None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(read(&bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn the_loopback_has_nothing_and_no_interface_is_an_error() {
        assert_eq!(attached(1).unwrap(), None);
        assert!(attached(u32::MAX >> 1).is_err());
    }
}
