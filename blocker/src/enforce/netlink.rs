//! Netlink messages as bytes (netlink(7)), whatever subsystem they are of: written, and read as they come.
#![forbid(unsafe_code)]

use rustix::io::Errno;

/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// Strips `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const KIND_MASK: u16 = 0x3fff;

/// A message under construction.
#[derive(Clone, Debug)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A request of a kind, `flags` being of `NLM_F_*`, with the header that its subsystem wants.
    pub(super) fn request(kind: u16, flags: libc::c_int, header: &[u8]) -> Self {
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or(0);
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(header);
        Self(bytes)
    }

    /// Attributes without a header, to be appended to a message.
    pub(super) fn part() -> Self {
        Self(Vec::new())
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Appends the attributes of a part.
    pub(super) fn append(&mut self, part: &Self) -> &mut Self {
        self.0.extend(&part.0);
        self
    }

    /// Appends one attribute.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a string, with the NUL that the kernel wants.
    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let length = u16::try_from(value.len() + 5).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value.as_bytes());
        self.0.push(0);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends an attribute that holds what `fill` appends.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.bytes(kind | NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// The finished message, with its length and sequence number.
    pub(super) fn finish(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = self.0.clone();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }
}

/// One message as it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply<'a> {
    /// `NLMSG_*`, or the subsystem's.
    pub(super) kind: u16,
    /// `NLM_F_*`.
    pub(super) flags: u16,
    /// Of the request it answers.
    pub(super) sequence: u32,
    /// What follows the netlink header.
    pub(super) body: &'a [u8],
}

impl Reply<'_> {
    /// What became of the request, where this says it: it was done, or refused.
    pub(super) fn outcome(&self) -> Option<Result<(), Errno>> {
        let kind = i32::from(self.kind);
        if kind != libc::NLMSG_ERROR && kind != libc::NLMSG_DONE {
            return None;
        }
        let code = array(self.body, 0).map_or(0, i32::from_ne_bytes);
        Some(if code < 0 { Err(Errno::from_raw_os_error(code.saturating_neg())) } else { Ok(()) })
    }
}

/// The messages of one datagram; what is cut short ends them.
pub(super) fn replies(mut bytes: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(array(bytes, 0)?)).ok()?;
        let body = bytes.get(HEADER_BYTES..length)?;
        let reply = Reply {
            kind: u16::from_ne_bytes(array(bytes, 4)?),
            flags: u16::from_ne_bytes(array(bytes, 6)?),
            sequence: u32::from_ne_bytes(array(bytes, 8)?),
            body,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(reply)
    })
}

/// Attributes one after another; what is cut short ends them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// All of them, kind and value.
    pub(super) fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut bytes = self.0;
        std::iter::from_fn(move || {
            let length = usize::from(u16::from_ne_bytes(array(bytes, 0)?));
            let kind = u16::from_ne_bytes(array(bytes, 2)?) & KIND_MASK;
            let value = bytes.get(4..length)?;
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    /// The first of this kind.
    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// The attributes inside the first of this kind.
    pub(super) fn nested(self, kind: u16) -> Option<Self> {
        self.get(kind).map(Attributes)
    }

    /// A string without its NUL.
    pub(super) fn text(self, kind: u16) -> Option<&'a str> {
        let value = self.get(kind)?;
        std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
    }
}

/// `N` bytes at `offset`, when they are there.
pub(super) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

/// A 32-bit number of this host's at `offset`.
pub(super) fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_ne_bytes)
}

/// A 16-bit number of this host's at `offset`.
pub(super) fn half(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_ne_bytes)
}
