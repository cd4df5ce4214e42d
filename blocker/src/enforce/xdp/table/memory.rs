//! The table's words, by what they mean: all that its writer knows of the memory it writes.
#![forbid(unsafe_code)]

use std::array;

use blocker_ebpf::table::BUCKET_SLOTS;

/// A word, or half of one, of the table's maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    Slot(usize),
    /// The low half of a word of the meta map.
    End(usize),
    /// The high half.
    Packets(usize),
    /// Of the slot's prefix, which no reader looks at: `writer::prints::code_of`.
    Code(usize),
    Key(usize, usize),
    /// The first half of the IPv6 prefix of more than 64 bits with this fingerprint; 0 where there is none.
    High(u64),
    Prefilter(usize),
    State(usize),
}

/// The table's maps. What is stored is seen in the order it was stored in.
pub(super) trait Memory {
    fn load(&mut self, at: At) -> u64;
    fn store(&mut self, at: At, value: u64);

    /// Adds packets to a slot's, which readers count meanwhile.
    fn count(&mut self, slot: usize, packets: u64) {
        let counted = self.load(At::Packets(slot));
        self.store(At::Packets(slot), counted + packets);
    }

    /// The slots of a bucket.
    fn bucket(&mut self, bucket: usize) -> [u64; BUCKET_SLOTS] {
        array::from_fn(|place| self.load(At::Slot(bucket * BUCKET_SLOTS + place)))
    }

    /// This will be looked at soon: what can be fetched meanwhile may be.
    fn expect(&mut self, _at: At) {}
}
