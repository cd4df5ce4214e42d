//! The sources of the packet benchmark: which address has which number. Shared by its BPF programs, which send from
//! them, and by the host, which bans them.
//!
//! Numbers and addresses are one to one, and neighbouring numbers are far apart, so whoever draws numbers evenly draws
//! from the whole population: each lookup touches memory that the last one did not.

/// How many IPv4 sources there are: every unicast network of 8 bits but 0/8 and 127/8.
pub(crate) const V4_COUNT: u64 = 222 << 24;

/// Coprime to the count, and near its golden section, which spreads neighbours best.
const V4_STEP: u64 = 2_301_868_393;
const V6_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The IPv4 source with this number, below [`V4_COUNT`].
#[inline(always)]
pub(crate) const fn v4(number: u64) -> u32 {
    let address = number * V4_STEP % V4_COUNT + (1 << 24);
    (if address < 127 << 24 { address } else { address + (1 << 24) }) as u32
}

/// The network part of the IPv6 source with this number, in 2000::/3; the rest of its address is 1.
#[inline(always)]
pub(crate) const fn v6(number: u64) -> u64 {
    0x2000_0000_0000_0000 | number.wrapping_mul(V6_STEP) >> 3
}
