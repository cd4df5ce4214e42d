//! Netlink messages of nf_tables, written and read as bytes.
//!
//! `nftnl` has no set flags, timeouts, element counters or read-back. They are attributes like any other, so they are
//! encoded here in safe code instead of through its C library. This module knows the encoding (netlink(7),
//! `linux/netfilter/nf_tables.h`) and nothing of bans.
#![forbid(unsafe_code)]

pub(super) use super::super::netlink::{Reply, array, replies};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`.
pub(super) const FAMILY: u8 = 1;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADERS_BYTES: usize = 20;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// Strips `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const KIND_MASK: u16 = 0x3fff;
/// The length field of a nested attribute is 16 bits wide, and so no message of ours is longer.
pub(super) const MESSAGE_BYTES_MAX: usize = 65_535;

/// A message under construction.
#[derive(Clone, Debug)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// `kind` is one of `NFT_MSG_*`, `flags` of `NLM_F_*`.
    pub(super) fn new(kind: libc::c_int, flags: libc::c_int) -> Self {
        let kind = SUBSYSTEM << 8 | u16::try_from(kind).unwrap_or(0);
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or(0);
        let mut bytes = vec![0; HEADERS_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[16] = FAMILY;
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

    /// Appends a 32-bit number; nf_tables has them in network order.
    pub(super) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends a 64-bit number.
    pub(super) fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
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

/// The attributes of an nf_tables message, those of `struct nfgenmsg` left out.
pub(super) fn attributes_of(body: &[u8]) -> Attributes<'_> {
    Attributes(body.get(4..).unwrap_or_default())
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

    /// A 32-bit number.
    pub(super) fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(array(self.get(kind)?, 0)?))
    }

    /// A 64-bit number.
    pub(super) fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(array(self.get(kind)?, 0)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut message = Message::new(libc::NFT_MSG_NEWSETELEM, libc::NLM_F_ACK);
        message.text(1, "blocker").nest(3, |m| {
            m.u64(4, 7).u32(5, 9).bytes(6, &[1, 2, 3]);
        });
        let bytes = message.finish(42);
        let read: Vec<_> = replies(&bytes).collect();
        assert_eq!((read.len(), read[0].sequence), (1, 42));
        let attributes = attributes_of(read[0].body);
        assert_eq!(attributes.text(1), Some("blocker"));
        let inner = attributes.nested(3).unwrap();
        assert_eq!((inner.u64(4), inner.u32(5), inner.get(6)), (Some(7), Some(9), Some(&[1, 2, 3][..])));
        assert_eq!(inner.u64(6), None, "three bytes are no number");
    }

    #[test]
    fn no_bytes_panic() {
        let mut message = Message::new(libc::NFT_MSG_NEWSETELEM, 0);
        message.nest(3, |m| {
            m.u64(4, 7).text(1, "x");
        });
        let whole = message.finish(1);
        for length in 0..=whole.len() {
            for turned in 0..length {
                let mut bytes = whole[..length].to_vec();
                bytes[turned] = !bytes[turned];
                for reply in replies(&bytes).take(100) {
                    let attributes = attributes_of(reply.body);
                    let _read = (
                        attributes.u64(4),
                        attributes.text(1),
                        attributes.nested(3).map(|a| a.iter().count()),
                    );
                }
            }
        }
    }
}
