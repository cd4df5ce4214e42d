//! Netlink messages of nf_tables, written and read as bytes.
//!
//! `nftnl` has no set flags, timeouts, element counters or read-back. They are attributes like any other, so they are
//! encoded here in safe code instead of through its C library. This module knows what is nf_tables' own of the encoding
//! (`linux/netfilter/nf_tables.h`) and nothing of bans.
#![forbid(unsafe_code)]

pub(super) use super::super::netlink::{Attributes, Message, Reply, array, replies};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`.
pub(super) const FAMILY: u8 = 1;
/// The length field of a nested attribute is 16 bits wide, and so no message of ours is longer.
pub(super) const MESSAGE_BYTES_MAX: usize = 65_535;

/// Numbers are in network order.
impl Message {
    /// `kind` is one of `NFT_MSG_*`, `flags` of `NLM_F_*`.
    pub(super) fn new(kind: libc::c_int, flags: libc::c_int) -> Self {
        let kind = SUBSYSTEM << 8 | u16::try_from(kind).unwrap_or(0);
        // `struct nfgenmsg`
        Self::request(kind, flags, &[FAMILY, 0, 0, 0])
    }

    /// Appends a 32-bit number.
    pub(super) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends a 64-bit number.
    pub(super) fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }
}

/// The attributes of an nf_tables message, those of `struct nfgenmsg` left out.
pub(super) fn attributes_of(body: &[u8]) -> Attributes<'_> {
    Attributes(body.get(4..).unwrap_or_default())
}

impl Attributes<'_> {
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
