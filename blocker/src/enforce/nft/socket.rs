//! The netlink socket: a transaction in one datagram, a question and its answers.
//!
//! The kernel works on a request while it is being sent, so every answer is there when the send returns and nothing
//! here waits. The only unsafe code of the nftables enforcer is in this file.

use std::{
    ffi::c_void,
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use nftnl::{Batch, MsgType, NlMsg};
use rustix::{
    io::{Errno, FdFlags, fcntl_setfd},
    net::{RecvFlags, recv, sockopt},
};

use super::message::{MESSAGE_BYTES_MAX, Message, Reply, attributes_of, replies};

/// Room for one transaction, above all for a table that is made anew: a million elements take about 90 MB. As much as
/// the kernel takes; reserved by no one until it is used.
const SEND_BYTES_MAX: usize = 1 << 30;
/// Room for the answers to one transaction.
const RECEIVE_BYTES_MAX: usize = 16 << 20;
/// The kernel fills at most 32 KiB a datagram of a dump (`netlink_dump`); twice that is never cut.
const BUFFER_BYTES: usize = 65_536;
/// How often a dump that a foreign transaction interrupted is begun again.
const DUMP_TRIES_MAX: usize = 10;
/// Single questions that are sent at once: their answers must find room, at about 4 KiB each.
const QUESTIONS_MAX: usize = 1_000;
/// Datagrams of one dump: bounds the loop, at about 100 elements each.
const DATAGRAMS_MAX: usize = 1 << 20;
/// `NLMSGERR_ATTR_MSG` and the flag that says that such attributes follow (netlink(7), extended ack).
const EXPLANATION: u16 = 1;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// The kernel said no.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// Why, as a number.
    pub(super) errno: Errno,
    /// Why, in the kernel's words, where it had any.
    pub(super) explanation: String,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, explanation: String::new() }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Errno::from_io_error(&error).unwrap_or(Errno::IO).into()
    }
}

/// Takes an answer, with the place of its question.
type ReadEach<'a> = dyn FnMut(usize, Result<&[u8], Refusal>) + 'a;

/// A netlink socket to nf_tables.
pub(super) struct Socket {
    socket: mnl::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

// SAFETY: libmnl's socket is a descriptor and an address on the heap, tied to no thread; it is used through `&mut` or
// `&` from one thread at a time, since `Socket` is not `Sync`.
unsafe impl Send for Socket {}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

// SAFETY: `write` writes at most `MESSAGE_BYTES_MAX` bytes, less than `nft_nlmsg_maxsize()` (64 KiB and a page), for
// which the batch has room. A longer message is cut, and the kernel refuses it.
unsafe impl NlMsg for Message {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _kind: MsgType) {
        let bytes = self.finish(sequence);
        let length = bytes.len().min(MESSAGE_BYTES_MAX);
        // SAFETY: the caller hands over a buffer of at least `nft_nlmsg_maxsize()` bytes that overlaps nothing.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.cast::<u8>(), length) };
    }
}

impl Socket {
    /// Opens it in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Self, Refusal> {
        let socket = mnl::Socket::new(mnl::Bus::Netfilter)?;
        let this = Self { socket, sequence: 0, buffer: vec![0; BUFFER_BYTES] };
        // No command that the agent runs gets it, or would keep the table owned when the agent is gone.
        fcntl_setfd(this.fd(), FdFlags::CLOEXEC)?;
        // Both need CAP_NET_ADMIN, as all that follows does.
        sockopt::set_socket_send_buffer_size_force(this.fd(), SEND_BYTES_MAX)?;
        sockopt::set_socket_recv_buffer_size_force(this.fd(), RECEIVE_BYTES_MAX)?;
        for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK] {
            let on: libc::c_int = 1;
            // SAFETY: the descriptor is open, and the value is a live c_int of the length given.
            let set = unsafe {
                libc::setsockopt(
                    this.socket.as_raw_fd(),
                    libc::SOL_NETLINK,
                    option,
                    (&raw const on).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
            if set != 0 {
                return Err(io::Error::last_os_error().into());
            }
        }
        Ok(this)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.socket`, which the borrow keeps open.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }

    /// Commits a batch: all of it, or nothing.
    pub(super) fn commit(&mut self, batch: Batch) -> Result<(), Refusal> {
        self.forget_old_answers()?;
        let batch = batch.finalize();
        // `send_all` would send each page on its own, and the kernel commits what comes in one datagram.
        let pages: Vec<&[u8]> = batch.iter().collect();
        let sent = self.socket.send(&pages.concat());
        let mut refusal = None;
        // A handful of answers when all is well, at most one a message when not.
        while let Some(length) = self.receive()? {
            for reply in replies(&self.buffer[..length]) {
                if let Some(found) = refused(reply)
                    && refusal.is_none()
                {
                    refusal = Some(found);
                }
            }
        }
        sent?;
        refusal.map_or(Ok(()), Err)
    }

    /// Asks for what `question` names; hands each answer's body to `read`. A dump that was disturbed is begun again,
    /// after `read` was given `None`.
    pub(super) fn ask(
        &mut self,
        question: &Message,
        read: &mut dyn FnMut(Option<&[u8]>),
    ) -> Result<(), Refusal> {
        for _ in 0..DUMP_TRIES_MAX {
            read(None);
            if self.ask_once(question, read)? {
                return Ok(());
            }
        }
        Err(Refusal {
            errno: Errno::INTR,
            explanation: "the rules changed during each of 10 readings".into(),
        })
    }

    fn ask_once(&mut self, question: &Message, read: &mut dyn FnMut(Option<&[u8]>)) -> Result<bool, Refusal> {
        self.forget_old_answers()?;
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.socket.send(&question.finish(self.sequence))?;
        let mut whole = true;
        for _ in 0..DATAGRAMS_MAX {
            let Some(length) = self.receive()? else { break };
            for reply in replies(&self.buffer[..length]).filter(|reply| reply.sequence == self.sequence) {
                if let Some(refusal) = refused(reply) {
                    return Err(refusal);
                }
                whole &= reply.flags & NLM_F_DUMP_INTR == 0;
                if i32::from(reply.kind) > libc::NLMSG_DONE {
                    read(Some(reply.body));
                }
            }
        }
        Ok(whole)
    }

    /// Asks questions that have one answer each; hands those to `read`, with the question's place.
    pub(super) fn ask_each(
        &mut self,
        questions: impl Iterator<Item = Message>,
        read: &mut ReadEach<'_>,
    ) -> Result<(), Refusal> {
        let (mut questions, mut asked) = (questions.peekable(), 0);
        while questions.peek().is_some() {
            self.forget_old_answers()?;
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            let mut count = 0;
            for question in questions.by_ref().take(QUESTIONS_MAX) {
                self.sequence = self.sequence.wrapping_add(1);
                bytes.extend(question.finish(self.sequence));
                count += 1;
            }
            self.socket.send(&bytes)?;
            while let Some(length) = self.receive()? {
                for reply in replies(&self.buffer[..length]) {
                    let place = usize::try_from(reply.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                    if place < count {
                        read(asked + place, refused(reply).map_or(Ok(reply.body), Err));
                    }
                }
            }
            asked += count;
        }
        Ok(())
    }

    /// The number by which the kernel knows this socket.
    pub(super) fn port(&self) -> u32 {
        self.socket.portid()
    }

    /// The next datagram into `self.buffer`, or `None` when there is none.
    fn receive(&mut self) -> Result<Option<usize>, Refusal> {
        // SAFETY: the descriptor belongs to `self.socket`, which outlives this call; `fd()` would borrow the buffer too.
        let fd = unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) };
        match recv(fd, &mut self.buffer[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok((length, whole)) if whole <= length => Ok(Some(length)),
            Ok(_) => Err(Errno::MSGSIZE.into()),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn forget_old_answers(&mut self) -> Result<(), Refusal> {
        for _ in 0..DATAGRAMS_MAX {
            match self.receive() {
                Ok(None) => break,
                Ok(Some(_)) | Err(Refusal { errno: Errno::NOBUFS | Errno::MSGSIZE, .. }) => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(())
    }
}

/// The refusal in an answer, when it is one.
fn refused(reply: Reply<'_>) -> Option<Refusal> {
    let Some(Err(errno)) = reply.outcome() else { return None };
    // With NETLINK_CAP_ACK the request's header follows the code, and then the attributes.
    let explained = i32::from(reply.kind) == libc::NLMSG_ERROR && reply.flags & NLM_F_ACK_TLVS != 0;
    let attributes = explained.then(|| attributes_of(reply.body.get(16..).unwrap_or_default()));
    let explanation = attributes.and_then(|a| a.text(EXPLANATION)).unwrap_or_default().to_owned();
    Some(Refusal { errno, explanation })
}
