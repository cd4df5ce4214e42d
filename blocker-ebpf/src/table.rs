//! The bucket table: its layout in the maps, its fingerprints, and the one function that reads it.
//!
//! [`find`] is the same code in the XDP program, which reads maps, and on the host, where a model checks it against
//! a writer word by word. It asks a [`Table`] for words and never writes.
//!
//! A bucket is a cache line of eight fingerprints; [`EMPTY`] in its last slot says that no fingerprint went past it.
//! One fingerprint stands for a prefix of either family, its length included. What a slot means is in the word of
//! the same place in the meta map: the end of the ban in its low half, the packets dropped in its high half. An end
//! of [`PASSES`] lets the source pass whatever shorter prefix is banned.

use crate::packet::Source;

/// The version of this layout. Pinned maps of another version are not adopted.
pub const LAYOUT: u64 = 3;

/// Fingerprints, a bucket to an element.
pub const SLOTS: &str = "SLOTS";
/// End and packets of each slot, a bucket to an element, and behind them the codes of all its slots, which tell the agent
/// what prefix a fingerprint stands for.
pub const META: &str = "META";
/// The prefix of each slot: two words, of the whole bucket in an element. It has one element only unless the table is
/// exact.
pub const KEYS: &str = "KEYS";
/// The first 64 bits of IPv6 prefixes longer than that, by their fingerprint: all else can be had from the fingerprint.
pub const HIGHS: &str = "HIGHS";
/// A bit for every IPv4 /24, then those of IPv6, by hashes: of the /48 around a ban, of the /32 around or inside a wider
/// one. Not set where no source is banned.
pub const PREFILTER: &str = "PREFILTER";
/// What the writer tells the program: [`StateWords`].
pub const TABLE: &str = "TABLE";

/// The maps of one table.
pub const MAPS: [&str; 6] = [SLOTS, META, KEYS, HIGHS, PREFILTER, TABLE];

/// The program's name in the object.
pub const PROGRAM: &str = "blocker_table";
/// The same for kernels whose XDP knows frames of one buffer only (before 5.18).
pub const PROGRAM_ONE_BUFFER: &str = "blocker_table_one";
/// The same as a classifier.
pub const PROGRAM_TCX: &str = "blocker_table_tcx";
/// The same as a classifier of packets that have no Ethernet header.
pub const PROGRAM_TCX_BARE: &str = "blocker_table_bare";
/// The program that writes the kernel's jiffies into [`JIFFIES`].
pub const CLOCK: &str = "blocker_clock";

/// Fingerprints in a bucket: 64 bytes, a cache line.
pub const BUCKET_SLOTS: usize = 8;
/// Words of a bucket in [`META`]: one for each slot, then 16 bits for each.
pub const BUCKET_META: usize = BUCKET_SLOTS + BUCKET_SLOTS / 4;
/// Words of a bucket in [`KEYS`].
pub const BUCKET_KEYS: usize = 2 * BUCKET_SLOTS;
/// Buckets that are looked at for one fingerprint. At half load 3 of a million find no room in them, until a neighbour is
/// moved; one more would cost the kernel's verifier a fifth more of what it allows a program.
pub const PROBES_MAX: u32 = 4;

/// A slot that never held a fingerprint.
pub const EMPTY: u64 = 0;
/// A slot whose fingerprint was removed.
pub const TOMBSTONE: u64 = 1;

/// The end of an entry that lets its sources pass.
pub const PASSES: u32 = 0;
/// The end of a ban that has none.
pub const FOREVER: u32 = u32::MAX;
/// Ends are counted in units of this many jiffies, as a power of two.
pub const UNIT_SHIFT: u32 = 6;
/// One packet, in a word of [`META`].
pub const ONE_PACKET: u64 = 1 << 32;

/// Words of [`PREFILTER`] for each family.
pub const PREFILTER_WORDS: u32 = 1 << 18;
/// IPv6 bans shorter than this are marked by their /32, or those inside them, and set [`WIDE_V6`].
pub const PREFILTER_V6_NARROW: u8 = 48;
/// IPv6 bans shorter than this set [`SKIP_V6`] instead of bits.
pub const PREFILTER_V6_MIN: u8 = 16;

/// Lengths in a word of a list of lengths.
pub const LENGTHS_PER_WORD: usize = 8;
/// Lengths that are asked for in line, without a call: most hosts have no more in use.
pub const LENGTHS_IN_LINE: usize = 3;
/// Words for the lengths 0 to 32.
pub const LENGTHS_V4_WORDS: usize = 5;
/// Words for the lengths 0 to 128.
pub const LENGTHS_V6_WORDS: usize = 17;

/// The one element of [`TABLE`].
pub const STATE_WORDS: usize = 32;
/// How the prefilter is to be asked.
pub const FLAGS: usize = 0;
/// Lengths in use, longest first: one more than the length in a byte, the first in the lowest; 0 ends the list.
pub const LENGTHS_V4: usize = 1;
/// As [`LENGTHS_V4`].
pub const LENGTHS_V6: usize = LENGTHS_V4 + LENGTHS_V4_WORDS;
/// Written by the program [`CLOCK`].
pub const JIFFIES: usize = LENGTHS_V6 + LENGTHS_V6_WORDS;
/// [`LAYOUT`], for whoever adopts the maps.
pub const LAYOUT_WORD: usize = JIFFIES + 1;
/// The seed of the fingerprints, for whoever adopts the maps.
pub const SEED_WORD: usize = JIFFIES + 2;
/// Nanoseconds that the machine had slept when ends were last corrected for it.
pub const SLEPT_WORD: usize = JIFFIES + 3;

/// In [`FLAGS`]: there are IPv6 bans that are marked by a /32.
pub const WIDE_V6: u64 = 1;
/// In [`FLAGS`]: an IPv6 ban is too wide for the prefilter.
pub const SKIP_V6: u64 = 2;

/// What the program was loaded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Known to nobody but root, so nobody can aim at a bucket.
    pub seed: u64,
    /// Buckets that a search begins at; see [`elements`].
    pub buckets: u32,
    /// Whether a match is compared with the whole prefix.
    pub exact: bool,
}

/// A prefix as the table holds it: host bits zero; an IPv4 address is the low half of `low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The first 64 bits of an IPv6 address; 0 for IPv4.
    pub high: u64,
    /// The rest.
    pub low: u64,
    /// [`code_v4`] or [`code_v6`].
    pub code: u64,
}

/// An IPv4 prefix of this length.
#[inline(always)]
pub const fn code_v4(length: u32) -> u64 {
    length as u64
}

/// An IPv6 prefix of this length.
#[inline(always)]
pub const fn code_v6(length: u32) -> u64 {
    0x100 | length as u64
}

/// An address as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4.
    V4(u32),
    /// IPv6, in halves.
    V6(u64, u64),
}

impl Address {
    /// The prefix of `length` around it.
    #[inline(always)]
    const fn network(self, length: u32) -> Key {
        match self {
            Self::V4(address) => Key::v4(address, length),
            Self::V6(high, low) => Key::v6(high, low, length),
        }
    }
}

impl Key {
    /// The IPv4 prefix of `length` around an address.
    #[inline(always)]
    pub const fn v4(address: u32, length: u32) -> Self {
        let mask = (u32::MAX as u64) << (32 - (length & 63)) & u32::MAX as u64;
        Self { high: 0, low: address as u64 & mask, code: code_v4(length) }
    }

    /// The IPv6 prefix of `length` around an address.
    #[inline(always)]
    pub const fn v6(high: u64, low: u64, length: u32) -> Self {
        // Without branches: the verifier would follow each of them for every length. `within` is right for the half
        // that the length ends in; the half before is whole, the one behind empty.
        let (half, within) = ((length >> 6) as u64, !(u64::MAX >> (length & 63)));
        let (second, whole) = ((half & 1).wrapping_neg(), (half >> 1).wrapping_neg());
        let (high_mask, low_mask) = (within | second | whole, within & second | whole);
        Self { high: high & high_mask, low: low & low_mask, code: code_v6(length) }
    }

    /// A bit of the code, so that the compiler knows the family wherever it knows which of the two made the key.
    #[inline(always)]
    const fn is_v4(self) -> bool {
        self.code & 0x100 == 0
    }

    /// As [`KEYS`] holds it. No IPv6 ban has the words of an IPv4 one: `::ffff:0:0/96` is read as IPv4.
    #[inline(always)]
    pub const fn stored(self) -> [u64; 2] {
        if self.is_v4() { [0, 0xffff << 32 | self.low] } else { [self.high, self.low] }
    }

    /// What stands for it in a slot. For IPv4 this is a bijection, so no other prefix has the same; neither have two
    /// IPv6 prefixes of one length with the same first half.
    #[inline(always)]
    pub const fn fingerprint(self, seed: u64) -> u64 {
        if self.is_v4() { mix(seed ^ self.low ^ self.code << 56) } else { mix(self.spread(seed) ^ self.low) }
    }

    /// What an IPv6 prefix's first half makes of its second. A factor that nobody knows keeps the lengths apart: an
    /// address cannot be chosen that is taken for the /64 around it.
    #[inline(always)]
    const fn spread(self, seed: u64) -> u64 {
        mix(self.high ^ seed).wrapping_mul(self.code << 1 | 1)
    }

    /// The key that a fingerprint stands for. This has its code, and of an IPv6 prefix the half that cannot be had from
    /// the fingerprint: the second of one of 64 bits at most, else the first.
    pub const fn complete(self, fingerprint: u64, seed: u64) -> Self {
        let mixed = unmix(fingerprint);
        if self.is_v4() {
            Self { low: mixed ^ seed ^ self.code << 56, ..self }
        } else if self.code & 0xff > 64 {
            Self { low: mixed ^ self.spread(seed), ..self }
        } else {
            let spread = mixed ^ self.low;
            Self { high: unmix(spread.wrapping_mul(inverse(self.code << 1 | 1))) ^ seed, ..self }
        }
    }
}

/// A bijection of 64 bits in which every bit depends on every other (the finaliser of MurmurHash3).
#[inline(always)]
pub const fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

/// Elements of [`SLOTS`], [`META`] and [`KEYS`]: those that a search begins at, and so many more that no search has to
/// go on at the first one.
#[inline(always)]
pub const fn elements(buckets: u32) -> u32 {
    buckets.saturating_add(PROBES_MAX - 1)
}

/// What [`mix`] made this of.
pub const fn unmix(mut x: u64) -> u64 {
    // A step `x ^= x >> 33` is its own inverse; that of a product is a product by the factor's inverse.
    x ^= x >> 33;
    x = x.wrapping_mul(inverse(0xc4ce_b9fe_1a85_ec53));
    x ^= x >> 33;
    x = x.wrapping_mul(inverse(0xff51_afd7_ed55_8ccd));
    x ^ x >> 33
}

/// The number whose product with this odd one is 1 (Newton's iteration, which doubles the right bits each time).
const fn inverse(odd: u64) -> u64 {
    let (mut inverse, mut bits) = (odd, 3);
    while bits < 64 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse)));
        bits *= 2;
    }
    inverse
}

/// Where the search for a fingerprint begins.
#[inline(always)]
pub const fn home(fingerprint: u64, buckets: u32) -> u32 {
    (((fingerprint >> 32) * buckets as u64) >> 32) as u32
}

/// The bit of the /24 around an IPv4 address.
#[inline(always)]
pub const fn prefilter_v4(address: u32) -> u32 {
    address >> 8
}

/// The bit of the /48 around an IPv6 address, among those of both families.
#[inline(always)]
pub const fn prefilter_v6(high: u64, seed: u64) -> u32 {
    (PREFILTER_WORDS * 64) + (mix((high >> 16) ^ !seed) >> 40) as u32
}

/// The bit of the /32 whose first 32 bits these are, among those of both families.
#[inline(always)]
pub const fn prefilter_v6_wide(network: u32, seed: u64) -> u32 {
    (PREFILTER_WORDS * 64) + (mix(network as u64 ^ seed.rotate_left(32)) >> 40) as u32
}

/// Some words, each read whole.
pub trait Words {
    /// The word at `index`, which must be one of them.
    fn word(&self, index: usize) -> u64;
}

/// Where the words are. `None` is an element that does not exist.
pub trait Table: Sized {
    /// An element of any of the maps.
    type Words: Words;
    /// [`BUCKET_SLOTS`] words of [`SLOTS`].
    fn bucket(&self, index: u32) -> Option<Self::Words>;
    /// [`BUCKET_META`] words of [`META`].
    fn meta(&self, index: u32) -> Option<Self::Words>;
    /// [`BUCKET_KEYS`] words of [`KEYS`].
    fn keys(&self, index: u32) -> Option<Self::Words>;
    /// One word of [`PREFILTER`].
    fn prefilter(&self, index: u32) -> Option<u64>;
    /// [`STATE_WORDS`] words of [`TABLE`].
    fn state(&self) -> Option<Self::Words>;
    /// The kernel's clock in units of an end.
    fn now(&self) -> u32;
    /// [`search`], which may be done elsewhere: in a function that the kernel's verifier follows once, not once for every
    /// word of lengths.
    #[inline(always)]
    fn search_apart(&self, params: Params, address: Address, lengths: u64) -> Said {
        search(self, params, address, lengths, LENGTHS_PER_WORD)
    }
}

/// The slot of a ban in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its bucket.
    pub bucket: u32,
    /// Its place in the bucket.
    pub slot: usize,
}

/// What some lengths say of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It is banned.
    Banned(Place),
    /// It passes, whatever shorter prefixes say.
    Passes,
    /// Ask the next length.
    Nothing,
}

/// The ban that is in force for a source.
#[inline(always)]
pub fn find<T: Table>(table: &T, params: Params, source: Source) -> Option<Place> {
    match source {
        Source::V4(address) => find_v4(table, params, u32::from_be_bytes(address)),
        Source::V6(address) => {
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
            let high = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            find_v6(table, params, high, u64::from_be_bytes([i, j, k, l, m, n, o, p]))
        }
    }
}

#[inline(always)]
fn find_v4<T: Table>(table: &T, params: Params, address: u32) -> Option<Place> {
    if !is_marked(table, prefilter_v4(address))? {
        return None;
    }
    let state = table.state()?;
    find_by::<T, LENGTHS_V4, LENGTHS_V4_WORDS>(table, params, Address::V4(address), &state)
}

#[inline(always)]
fn find_v6<T: Table>(table: &T, params: Params, high: u64, low: u64) -> Option<Place> {
    let state = table.state()?;
    if !may_be_banned_v6(table, state.word(FLAGS), params.seed, high)? {
        return None;
    }
    find_by::<T, LENGTHS_V6, LENGTHS_V6_WORDS>(table, params, Address::V6(high, low), &state)
}

/// By the lengths in the words from `FIRST` on.
#[inline(always)]
fn find_by<T: Table, const FIRST: usize, const WORDS: usize>(
    table: &T,
    params: Params,
    address: Address,
    state: &T::Words,
) -> Option<Place> {
    let lengths = state.word(FIRST);
    match search(table, params, address, lengths, LENGTHS_IN_LINE) {
        Said::Banned(place) => return Some(place),
        Said::Passes => return None,
        Said::Nothing => {}
    }
    let mut lengths = lengths >> (8 * LENGTHS_IN_LINE);
    for next in 1..=WORDS {
        if lengths == 0 {
            return None;
        }
        match table.search_apart(params, address, lengths) {
            Said::Banned(place) => return Some(place),
            Said::Passes => return None,
            Said::Nothing => {}
        }
        lengths = if next < WORDS { state.word(FIRST + next) } else { 0 };
    }
    None
}

/// What the first `most` lengths of a word say.
#[inline(always)]
pub fn search<T: Table>(table: &T, params: Params, address: Address, mut lengths: u64, most: usize) -> Said {
    for _ in 0..most {
        let Some(length) = (lengths as u32 & 0xff).checked_sub(1) else { return Said::Nothing };
        lengths >>= 8;
        let said = probe(table, params, address.network(length));
        if said != Said::Nothing {
            return said;
        }
    }
    Said::Nothing
}

/// Whether the prefilter says nothing against a ban of an address with this first half.
#[inline(always)]
pub fn may_be_banned_v6<T: Table>(table: &T, flags: u64, seed: u64, high: u64) -> Option<bool> {
    if flags & SKIP_V6 != 0 || is_marked(table, prefilter_v6(high, seed))? {
        return Some(true);
    }
    if flags & WIDE_V6 == 0 {
        return Some(false);
    }
    is_marked(table, prefilter_v6_wide((high >> 32) as u32, seed))
}

#[inline(always)]
fn is_marked<T: Table>(table: &T, bit: u32) -> Option<bool> {
    Some(table.prefilter(bit >> 6)? >> (bit & 63) & 1 == 1)
}

/// What the table says of one prefix.
#[inline(always)]
fn probe<T: Table>(table: &T, params: Params, key: Key) -> Said {
    let fingerprint = key.fingerprint(params.seed);
    if fingerprint <= TOMBSTONE {
        return Said::Nothing;
    }
    let home = home(fingerprint, params.buckets);
    for probe in 0..PROBES_MAX {
        let index = home.wrapping_add(probe);
        let Some(bucket) = table.bucket(index) else { return Said::Nothing };
        let mut last = EMPTY;
        for slot in 0..BUCKET_SLOTS {
            last = bucket.word(slot);
            if last == fingerprint {
                return said(table, params, key, fingerprint, &bucket, Place { bucket: index, slot });
            }
        }
        if last == EMPTY {
            return Said::Nothing;
        }
    }
    Said::Nothing
}

/// What the slot of a bucket that holds a fingerprint says.
#[inline(always)]
fn said<T: Table>(
    table: &T,
    params: Params,
    key: Key,
    fingerprint: u64,
    bucket: &T::Words,
    place: Place,
) -> Said {
    let Some(meta) = table.meta(place.bucket) else { return Said::Nothing };
    let end = meta.word(place.slot) as u32;
    if params.exact {
        let Some(keys) = table.keys(place.bucket) else { return Said::Nothing };
        let [first, second] = key.stored();
        if keys.word(place.slot * 2) != first || keys.word(place.slot * 2 + 1) != second {
            return Said::Nothing;
        }
    }
    // The slot may have been given to another ban between the looks; then the end was not this one's.
    if bucket.word(place.slot) != fingerprint {
        return Said::Nothing;
    }
    if end == PASSES {
        Said::Passes
    } else if end > table.now() {
        Said::Banned(place)
    } else {
        Said::Nothing
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn an_ipv4_prefix_can_be_told_from_its_fingerprint_so_no_two_share_one() {
        let mut random = 1_u64;
        for _ in 0..200_000 {
            random = mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
            let key = Key::v4(random as u32, (random >> 32) as u32 % 33);
            let seed = mix(!random);
            assert_eq!(Key { low: 0, ..key }.complete(key.fingerprint(seed), seed), key);
        }
    }

    #[test]
    fn an_ipv6_prefix_can_be_told_from_its_fingerprint_and_a_long_one_from_its_first_half_too() {
        let mut random = 1_u64;
        for _ in 0..200_000 {
            random = mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
            let (length, seed) = ((random >> 32) as u32 % 129, mix(!random));
            let key = Key::v6(random, mix(random), length);
            let half = if length > 64 { Key { low: 0, ..key } } else { Key { high: 0, ..key } };
            assert_eq!(half.complete(key.fingerprint(seed), seed), key);
        }
    }

    #[test]
    fn no_length_of_an_address_has_the_fingerprint_of_another() {
        for seed in [1, 3, 0x0123_4567_89ab_cdef, u64::MAX] {
            let mut seen = HashSet::new();
            // A length in the low byte would give 1.2.3.0/24 what 57.2.3.0/32 has.
            for address in [0, 0x0102_0300, 0x3902_0300, 0x0102_0309, u32::MAX] {
                for length in 0..=32 {
                    let key = Key::v4(address, length);
                    seen.insert((key.low, key.code, key.fingerprint(seed)));
                }
            }
            let prefixes: HashSet<_> = seen.iter().map(|(low, code, _)| (low, code)).collect();
            let fingerprints: HashSet<_> = seen.iter().map(|(_, _, fingerprint)| fingerprint).collect();
            assert_eq!(prefixes.len(), fingerprints.len(), "with seed {seed:x}");
            let half = 0x2001_0db8_0000_0000;
            let six: HashSet<_> =
                (0..=128).map(|length| Key::v6(half, 0, length).fingerprint(seed)).collect();
            assert_eq!(six.len(), 129, "with seed {seed:x}");
        }
    }

    #[test]
    fn masks_keep_the_network_and_nothing_else() {
        for (length, expected) in
            [(32, 0xffff_ffff_u64), (31, 0xffff_fffe), (24, 0xffff_ff00), (1, 1 << 31), (0, 0)]
        {
            assert_eq!(Key::v4(u32::MAX, length).low, expected, "/{length}");
        }
        for (length, high, low) in [
            (128, u64::MAX, u64::MAX),
            (127, u64::MAX, !1),
            (65, u64::MAX, 1 << 63),
            (64, u64::MAX, 0),
            (63, !1, 0),
            (1, 1 << 63, 0),
            (0, 0, 0),
        ] {
            let key = Key::v6(u64::MAX, u64::MAX, length);
            assert_eq!((key.high, key.low), (high, low), "/{length}");
        }
    }

    #[test]
    fn every_bucket_is_some_fingerprints_home() {
        for buckets in [1, 2, 7, 1 << 18] {
            assert_eq!((home(0, buckets), home(u64::MAX, buckets)), (0, buckets - 1));
        }
    }
}
