//! Remembers, in a few bits each, who failed lately: a Bloom filter of two generations.
//!
//! It stands before the table of windows while that is nearly full, so that a flood of addresses that fail once each
//! cannot push out those who come again. It can take a stranger for somebody seen; it never forgets one of its last
//! generation.
#![forbid(unsafe_code)]

/// Bits set for each address, all in one block of one cache line.
const PROBES: u32 = 5;
/// Bits a generation has for each address it takes: about one stranger in fifty is taken for somebody seen.
const BITS_PER_ADDRESS: usize = 10;
const BLOCK_BITS: usize = 512;

/// Who failed lately.
#[derive(Debug)]
pub(super) struct Doorkeeper {
    young: Vec<[u64; 8]>,
    old: Vec<[u64; 8]>,
    /// Addresses in the young generation.
    taken: usize,
    /// Addresses after which the young generation becomes the old one.
    taken_max: usize,
}

impl Doorkeeper {
    /// Remembers between `addresses` and twice as many.
    pub(super) fn new(addresses: usize) -> Self {
        let addresses = addresses.max(64);
        let blocks = (addresses.saturating_mul(BITS_PER_ADDRESS)).div_ceil(BLOCK_BITS);
        Self { young: vec![[0; 8]; blocks], old: vec![[0; 8]; blocks], taken: 0, taken_max: addresses }
    }

    /// Whether the address with this hash was here before; it was from now on.
    pub(super) fn seen(&mut self, hash: u64) -> bool {
        let block = ((u128::from(hash) * self.young.len() as u128) >> 64) as usize;
        let mut mask = [0_u64; 8];
        // The block took the high bits, so the probes take others.
        let mut probes = hash.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32);
        for _ in 0..PROBES {
            let bit = (probes & (BLOCK_BITS as u64 - 1)) as usize;
            mask[bit / 64] |= 1 << (bit % 64);
            probes >>= 9;
        }
        let holds = |bits: &[u64; 8]| bits.iter().zip(&mask).all(|(bits, mask)| bits & mask == *mask);
        if holds(&self.young[block]) {
            return true;
        }
        let seen = holds(&self.old[block]);
        if self.taken >= self.taken_max {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.fill([0; 8]);
            self.taken = 0;
        }
        self.taken += 1;
        self.young[block].iter_mut().zip(&mask).for_each(|(bits, mask)| *bits |= mask);
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u64) -> u64 {
        // SplitMix64's finaliser.
        let mut z = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    #[test]
    fn whoever_came_within_a_generation_is_known_and_few_strangers_are() {
        let mut door = Doorkeeper::new(10_000);
        let mistaken = (0..100_000).filter(|n| door.seen(hash(*n))).count();
        assert!(mistaken < 5_000, "{mistaken} strangers of 100,000");
        assert!((90_000..100_000).all(|n| door.seen(hash(n))));
        // Nobody stays for ever: those of ten generations ago are strangers again.
        let kept = (0..5_000).filter(|n| door.seen(hash(*n))).count();
        assert!(kept < 500, "{kept} of 5,000");
    }
}
