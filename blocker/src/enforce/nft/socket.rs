//! The netlink socket: a batch in one datagram, a dump read to its end.
//!
//! nf_tables handles a batch within the send call, so every answer is there when that returns; nothing is waited for.

use std::{io, os::fd::AsRawFd as _};

use mnl::{Bus, Socket};
use nftnl::{Batch, MsgType, NlMsg, nftnl_sys::libc};

use super::wire::{Attributes, Received, message};

/// What the kernel may be handed at once: some 10,000 elements thrice.
const SEND_BUFFER_BYTES: libc::c_int = 16 << 20;
const RECEIVE_BUFFER_BYTES: libc::c_int = 8 << 20;
/// As libmnl recommends for dumps.
const READ_BYTES: usize = 64 << 10;
/// How often an interrupted dump is begun again.
const DUMPS_MAX: usize = 20;

/// A message of bytes, with room for its sequence number to be filled in.
pub(super) struct Raw(pub(super) Vec<u8>);

/// The longest raw message: the library gives each 64 KiB and a page.
pub(super) const RAW_BYTES_MAX: usize = 60 << 10;

// SAFETY: `write` stays within `nftnl::nft_nlmsg_maxsize` bytes of `buf`, since longer messages are not written, and
// what it writes begins with its own length as a netlink message must.
#[expect(unsafe_code, reason = "the library's trait for messages is unsafe")]
unsafe impl NlMsg for Raw {
    unsafe fn write(&self, buf: *mut std::ffi::c_void, seq: u32, _: MsgType) {
        assert!(self.0.len() <= RAW_BYTES_MAX, "messages are cut before they get this long");
        // SAFETY: the caller hands over at least 64 KiB (`nftnl::Batch`), and the source is another allocation.
        unsafe {
            buf.cast::<u8>().copy_from_nonoverlapping(self.0.as_ptr(), self.0.len());
            buf.cast::<u8>().add(8).copy_from_nonoverlapping(seq.to_ne_bytes().as_ptr(), 4);
        }
    }
}

/// A connection to nf_tables of the network namespace it was opened in.
pub(super) struct Netlink {
    socket: Socket,
    buffer: Vec<u64>,
    sequence: u32,
}

// SAFETY: the library's socket is a descriptor and its address, used by one thread at a time through `&mut`.
#[expect(unsafe_code, reason = "the library's socket holds a raw pointer")]
unsafe impl Send for Netlink {}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(Bus::Netfilter)?;
        let fd = socket.as_raw_fd();
        for (option, bytes) in
            [(libc::SO_SNDBUFFORCE, SEND_BUFFER_BYTES), (libc::SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)]
        {
            let value: *const libc::c_int = &raw const bytes;
            let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
            // SAFETY: the descriptor is open, and the value is an int that outlives the call.
            #[expect(unsafe_code, reason = "setsockopt(2)")]
            let done = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, value.cast(), length) };
            if done != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: the descriptor is open for as long as `socket` lives, which outlives this borrow.
        #[expect(unsafe_code, reason = "the library hands out a raw descriptor")]
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        rustix::io::ioctl_fionbio(borrowed, true)?;
        Ok(Self { socket, buffer: vec![0; READ_BYTES / 8], sequence: 0 })
    }

    /// Sends a batch as one datagram, and returns the first refusal. Nothing of a refused batch is in force.
    pub(super) fn send(&mut self, batch: Batch) -> io::Result<()> {
        let batch = batch.finalize();
        let bytes: Vec<u8> = batch.iter().collect::<Vec<_>>().concat();
        self.socket.send(&bytes)?;
        let mut first = Ok(());
        self.receive(|message| {
            if let Some(errno) = message.errno()
                && errno != 0
                && first.is_ok()
            {
                first = Err(io::Error::from_raw_os_error(errno));
            }
            true
        })?;
        first
    }

    /// Asks for a list and hands every message of it to `each`; begins again when the list changed meanwhile.
    pub(super) fn dump<T>(
        &mut self,
        kind: i32,
        attributes: &Attributes,
        mut each: impl FnMut(&Received<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..DUMPS_MAX {
            self.sequence = self.sequence.wrapping_add(1);
            let sequence = self.sequence;
            self.socket.send(&message(kind, libc::NLM_F_DUMP, sequence, attributes))?;
            let (mut found, mut interrupted, mut refused) = (Vec::new(), false, None);
            self.receive(|message| {
                if message.sequence != sequence {
                    return true;
                }
                interrupted |= i32::from(message.flags) & libc::NLM_F_DUMP_INTR != 0;
                match message.errno() {
                    Some(errno) => refused = (errno != 0).then_some(errno),
                    None if !message.is_done() => found.extend(each(message)),
                    None => {}
                }
                !message.is_done() && message.errno().is_none()
            })?;
            match refused {
                // No such table: an empty list.
                Some(libc::ENOENT) => return Ok(Vec::new()),
                Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                None if interrupted => {}
                None => return Ok(found),
            }
        }
        Err(io::Error::other("the list changed each time it was read"))
    }

    /// Reads messages until none is left, or `more` says that it was the last.
    fn receive(&mut self, mut more: impl FnMut(&Received<'_>) -> bool) -> io::Result<()> {
        loop {
            let buffer = as_bytes(&mut self.buffer);
            let messages = match self.socket.recv(buffer) {
                Ok(messages) => messages,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for message in messages {
                let message = message?;
                if let Some(message) = Received::parse(message)
                    && !more(&message)
                {
                    return Ok(());
                }
            }
        }
    }
}

/// Bytes aligned as netlink headers must be.
fn as_bytes(words: &mut [u64]) -> &mut [u8] {
    let length = size_of_val(words);
    // SAFETY: every byte of a u64 may be read and written as a u8, and the borrow is handed on.
    #[expect(unsafe_code, reason = "an aligned buffer")]
    unsafe {
        std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), length)
    }
}
