//! What is attached to an interface by XDP, and putting something else there, if it is still that: by rtnetlink, which
//! is how libxdp attaches.
#![forbid(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use rustix::{
    io::Errno,
    net::{
        RecvFlags, SendFlags, SocketFlags, recv, send,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use crate::enforce::xdp::rtnl::{
    IFLA_XDP, IFLA_XDP_PROG_ID, NLM_F_REQUEST, NLMSG_ERROR, PATIENCE, RTM_GETLINK, RTM_NEWLINK, attributes,
    messages, netlink, word,
};

// linux/netlink.h, linux/rtnetlink.h, linux/if_link.h
const NLM_F_ACK: u16 = 4;
const NLA_F_NESTED: u16 = 1 << 15;
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
/// An answer holds all that there is to say of one interface.
const BUFFER_BYTES: usize = 32 << 10;

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
    ask(RTM_GETLINK, 0, index, &[], &mut |kind, payload| {
        if kind == RTM_NEWLINK {
            found = payload.get(16..).and_then(read);
        }
    })?;
    Ok(found)
}

fn read(rest: &[u8]) -> Option<Attached> {
    let (_, nested) = attributes(rest).find(|(kind, _)| *kind == IFLA_XDP)?;
    let value = |wanted: u16| attributes(nested).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let mode = match *value(IFLA_XDP_ATTACHED)?.first()? {
        XDP_ATTACHED_DRV => Mode::Native,
        XDP_ATTACHED_SKB => Mode::Generic,
        _ => return None,
    };
    let program = word(value(IFLA_XDP_PROG_ID)?, 0).filter(|id| *id != 0)?;
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
    let nested = [
        attribute(IFLA_XDP_FD, program.to_ne_bytes()),
        attribute(IFLA_XDP_FLAGS, (flags | XDP_FLAGS_REPLACE).to_ne_bytes()),
        attribute(IFLA_XDP_EXPECTED_FD, expected.as_raw_fd().to_ne_bytes()),
    ]
    .concat();
    let length = u16::try_from(4 + nested.len()).map_err(io::Error::other)?;
    let mut rest = length.to_ne_bytes().to_vec();
    rest.extend((IFLA_XDP | NLA_F_NESTED).to_ne_bytes());
    rest.extend(nested);
    ask(RTM_SETLINK, NLM_F_ACK, index, &rest, &mut |_, _| {})
}

fn attribute(kind: u16, value: [u8; 4]) -> Vec<u8> {
    let mut bytes = 8_u16.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes
}

/// Sends one request about one interface, and takes its one answer.
fn ask(kind: u16, flags: u16, index: u32, rest: &[u8], take: &mut dyn FnMut(u16, &[u8])) -> io::Result<()> {
    let length = u32::try_from(32 + rest.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend([0; 8]);
    // `struct ifinfomsg`
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(rest);
    let socket = netlink(SocketFlags::empty())?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    send(&socket, &message, SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let length = loop {
        match recv(&socket, buffer.as_mut_slice(), RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            received => break received?.1,
        }
    };
    for (kind, _, payload) in messages(buffer.get(..length).unwrap_or_default()) {
        if kind == NLMSG_ERROR {
            let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
            if code != 0 {
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
        }
        take(kind, payload);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_program_in_the_driver_or_in_the_stack_is_found() {
        let xdp = |mode: u8, program: u32| {
            let nested =
                [vec![5, 0, 2, 0, mode, 0, 0, 0], attribute(IFLA_XDP_PROG_ID, program.to_ne_bytes())]
                    .concat();
            [vec![20, 0], (IFLA_XDP | NLA_F_NESTED).to_ne_bytes().to_vec(), nested].concat()
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
