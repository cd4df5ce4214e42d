//! Bans of every length against the prefilter.

use blocker_ebpf::{
    packet::Source,
    table::{self, Params},
};

use super::{
    super::writer::Writer,
    NOW, Plain,
    flat::{Flat, Still},
    prefix,
};
use crate::net::Prefix;

/// Whether the prefilter lets a look at the table happen.
fn may_be_banned(flat: &Flat, seed: u64, address: u128) -> bool {
    let still = Still { flat, now: 0 };
    table::may_be_banned_v6(&still, flat.state[table::FLAGS], seed, (address >> 64) as u64).unwrap()
}

#[test]
fn the_prefilter_passes_no_source_of_an_ipv6_ban_of_any_length_and_is_empty_when_all_are_gone() {
    const BUCKETS: u32 = 75;
    for seed in 1..=4 {
        let mut random = table::mix(seed);
        let mut next = || {
            random = table::mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
            random
        };
        let mut flat = Flat::new(BUCKETS);
        let mut writer = Writer::new(seed, BUCKETS, 600);
        // Two bans of 16 bits are too many, so that the bound is crossed to and fro.
        writer.set_expanded_max(100_000);
        let mut plain = Plain::default();
        let (mut passed, mut crossed, mut skipped) = (0, 0, false);
        for step in 0..600 {
            // Towards the end none are added, so that the last ones go one by one.
            let leaves = step >= 500 || plain.bans.len() > 12;
            let gone = plain.bans.keys().nth(next() as usize % plain.bans.len().max(1)).copied();
            if let Some(gone) = gone.filter(|_| leaves || next() % 3 == 0) {
                assert!(writer.unban(&mut flat, gone));
                plain.bans.remove(&gone);
            } else if step < 500 {
                // Half of them between the shortest that has bits and the longest that is marked by a /32.
                let length = [next() % 129, 14 + next() % 36][next() as usize % 2];
                let address = u128::from(next()) << 64 | u128::from(next());
                let address = std::net::Ipv6Addr::from(address | 1 << 127);
                let prefix = Prefix::new(address.into(), length as u8).unwrap();
                writer.ban(&mut flat, prefix, table::FOREVER, NOW).unwrap();
                plain.bans.insert(prefix, table::FOREVER);
            }
            if step % 40 == 39 {
                writer.sweep(&mut flat, 0..writer.slots(), NOW);
            }
            if step % 97 == 96 {
                writer = Writer::adopt(&mut flat, seed, BUCKETS, 600);
                writer.set_expanded_max(100_000);
            }
            let skips = flat.state[table::FLAGS] & table::SKIP_V6 != 0;
            crossed += u32::from(skips != skipped);
            skipped = skips;
            assert_eq!(writer.note().is_some(), skips, "step {step}: what honest packets pay for is said");
            for prefix in plain.bans.keys() {
                let std::net::IpAddr::V6(network) = prefix.address() else { continue };
                for _ in 0..8 {
                    let host = u128::from(next()) << 64 | u128::from(next());
                    let address = network.to_bits() | host.checked_shr(prefix.length().into()).unwrap_or(0);
                    assert!(may_be_banned(&flat, seed, address), "step {step}: {prefix}, {address:x}");
                    let source = Source::V6(address.to_be_bytes());
                    let params = Params { seed, buckets: BUCKETS, exact: false };
                    assert!(table::find(&Still { flat: &flat, now: NOW }, params, source).is_some());
                }
            }
            // The prefilter is of use: it keeps what nobody banned from a look.
            let stranger = u128::from(next() | 1 << 63) << 64;
            passed += u32::from(!may_be_banned(&flat, seed, stranger));
        }
        assert!(
            passed > 60 && crossed > 4,
            "{passed} strangers passed, {crossed} times over the bound or back"
        );
        assert_eq!(plain.bans.len(), 0, "all are gone");
        assert_eq!(flat.state[table::FLAGS], 0);
        // What is stale by now is a bit for each of thousands.
        writer.ban(&mut flat, prefix("2001::/17"), 1, 0).unwrap();
        writer.sweep(&mut flat, 0..writer.slots(), NOW);
        assert!(flat.prefilter.iter().all(|word| *word == 0), "every bit is clear again");
    }
}

#[test]
fn an_ipv4_ban_of_any_length_marks_its_networks_and_no_other() {
    for length in 0..=32 {
        let (mut flat, seed) = (Flat::new(1), 7);
        let mut writer = Writer::new(seed, 1, 8);
        let ban = Prefix::new([203, 0, 113, 9].into(), length).unwrap();
        writer.ban(&mut flat, ban, table::FOREVER, NOW).unwrap();
        let (v4, v6) = flat.prefilter.split_at(table::PREFILTER_WORDS as usize);
        let marked: u32 = v4.iter().map(|word| word.count_ones()).sum();
        assert_eq!(marked, 1 << 24_u8.saturating_sub(length), "/{length}");
        assert!(v6.iter().all(|word| *word == 0));
        let std::net::IpAddr::V4(first) = ban.address() else { panic!("{ban}") };
        let last = first.to_bits() | u32::MAX.checked_shr(length.into()).unwrap_or(0);
        for address in [first.to_bits(), last] {
            let params = Params { seed, buckets: 1, exact: false };
            let source = Source::V4(address.to_be_bytes());
            assert!(table::find(&Still { flat: &flat, now: NOW }, params, source).is_some(), "/{length}");
        }
        assert!(writer.unban(&mut flat, ban));
        writer.flush(&mut flat);
        assert!(flat.prefilter.iter().all(|word| *word == 0), "/{length}");
    }
}
