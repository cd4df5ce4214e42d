//! nf_tables netlink messages as bytes: what the library's safe half cannot build, and how answers are read.
//!
//! Attributes are type-length-value, nested, padded to four bytes, numbers big-endian (linux/netlink.h,
//! linux/netfilter/nf_tables.h).
#![forbid(unsafe_code)]

use nftnl::nftnl_sys::libc;

/// Subsystem of nf_tables in the high byte of a message's type (linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u16 = 10;
const HEADER_BYTES: usize = 16;
/// Family, version and resource id in front of the attributes (`struct nfgenmsg`).
const GENERIC_BYTES: usize = 4;
const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = !(3 << 14);

/// Attributes in the making.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(super) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn u64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// A whole message of nf_tables for the inet family.
pub(super) fn message(kind: i32, flags: i32, sequence: u32, attributes: &Attributes) -> Vec<u8> {
    let kind = SUBSYSTEM << 8 | u16::try_from(kind).unwrap_or(0);
    let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or(0);
    let length = HEADER_BYTES + GENERIC_BYTES + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([u8::try_from(libc::NFPROTO_INET).unwrap_or(0), 0, 0, 0]);
    bytes.extend(&attributes.0);
    bytes
}

/// A message that was received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    payload: &'a [u8],
}

impl<'a> Received<'a> {
    /// Splits one message; `None` for one that is cut.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        Some(Self {
            kind: u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?),
            flags: u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?),
            sequence: u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?),
            payload: bytes.get(HEADER_BYTES..)?,
        })
    }

    /// The errno of an error message; 0 for an acknowledgement.
    pub(super) fn errno(&self) -> Option<i32> {
        let is_error = i32::from(self.kind) == libc::NLMSG_ERROR;
        is_error.then_some(()).and_then(|()| Some(-i32::from_ne_bytes(*self.payload.first_chunk()?)))
    }

    pub(super) fn is_done(&self) -> bool {
        i32::from(self.kind) == libc::NLMSG_DONE
    }

    /// The message's attributes.
    pub(super) fn attributes(&self) -> Attrs<'a> {
        Attrs(self.payload.get(GENERIC_BYTES..).unwrap_or(&[]))
    }
}

/// Attributes that were received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attrs<'a>(&'a [u8]);

impl<'a> Attrs<'a> {
    /// The first attribute of this type.
    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The attributes nested in the first one of this type.
    pub(super) fn nested(self, kind: u16) -> Option<Self> {
        self.get(kind).map(Attrs)
    }

    /// Every attribute of this type, as nested ones.
    pub(super) fn all(self, kind: u16) -> impl Iterator<Item = Self> {
        self.filter(move |(found, _)| *found == kind).map(|(_, value)| Attrs(value))
    }

    pub(super) fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(*self.get(kind)?.first_chunk()?))
    }

    pub(super) fn text(self, kind: u16) -> Option<&'a str> {
        let bytes = self.get(kind)?;
        std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
    }

    fn find(mut self, mut wanted: impl FnMut(&(u16, &'a [u8])) -> bool) -> Option<(u16, &'a [u8])> {
        Iterator::find(&mut self, |attribute| wanted(attribute))
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?) & TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_read_back() {
        let inner = Attributes::default().u64(4, 7).text(9, "counter");
        let built = Attributes::default().text(1, "blocker").u32(2, 5).nested(3, &inner);
        let bytes = message(9, libc::NLM_F_CREATE, 3, &built);
        assert_eq!(bytes.len(), usize::try_from(u32::from_ne_bytes(bytes[..4].try_into().unwrap())).unwrap());
        let read = Received::parse(&bytes).unwrap();
        assert_eq!((read.kind, read.sequence, read.errno()), (10 << 8 | 9, 3, None));
        let attributes = read.attributes();
        assert_eq!(attributes.text(1), Some("blocker"));
        assert_eq!(attributes.nested(3).and_then(|inner| inner.u64(4)), Some(7));
        assert_eq!(attributes.nested(3).and_then(|inner| inner.text(9)), Some("counter"));
        assert_eq!(attributes.get(77), None);
    }

    #[test]
    fn cut_messages_are_no_attributes() {
        let bytes = message(9, 0, 3, &Attributes::default().text(1, "blocker").u64(2, 5));
        for length in 0..bytes.len() {
            if let Some(read) = Received::parse(&bytes[..length]) {
                let _any = (read.errno(), read.attributes().count(), read.attributes().u64(2));
            }
        }
    }
}
