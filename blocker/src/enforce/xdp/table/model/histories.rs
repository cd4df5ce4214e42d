//! Long histories beside a plain set.

use blocker_ebpf::table::{self, BUCKET_SLOTS, Params, Place};

use super::{
    super::writer::{Refusal, Writer},
    Plain,
    flat::{Flat, Still},
    source_of,
};
use crate::net::Prefix;

/// Everything in another table.
fn anew(flat: &mut Flat, writer: &Writer, seed: u64, buckets: u32, bans_max: usize) -> (Flat, Writer) {
    let mut fresh = Flat::new(buckets);
    let mut larger = Writer::new(seed, buckets, bans_max);
    larger.allow(&mut fresh, &writer.allowed()).unwrap();
    for entry in writer.scan(flat).iter().filter(|entry| entry.is_ban()) {
        larger.restore(&mut fresh, entry.prefix, entry.end, entry.packets).unwrap();
    }
    (fresh, larger)
}

#[test]
fn a_million_operations_leave_what_a_plain_set_holds() {
    const BANS_MAX: usize = 600;
    let (mut buckets, mut seed) = (75, 1_u64);
    let mut flat = Flat::new(buckets);
    let mut writer = Writer::new(seed, buckets, BANS_MAX);
    let mut plain = Plain::default();
    let mut random = 42_u64;
    let mut next = || {
        random = table::mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
        random
    };
    let any_prefix = |bits: u64| -> Prefix {
        // Few enough that they meet, nest and cover each other.
        let length = [32, 32, 32, 30, 24, 23, 16, 7][(bits >> 8) as usize % 8];
        if bits & 1 == 0 {
            let address = 0x1400_0000 | (bits >> 16) as u32 & 0x0001_03ff;
            Prefix::new(std::net::Ipv4Addr::from(address).into(), length).unwrap()
        } else {
            let address = 0x2001_0db8_u128 << 96 | u128::from(bits >> 16 & 0x3ff) << 62;
            let address = address | u128::from(bits >> 32 & 3);
            let length = match bits >> 34 & 0xff {
                0 => 47,
                1 => 28,
                2 => 8,
                _ => [128, 128, 64, 64, 63, 48, 32, 65][usize::from(length) % 8],
            };
            Prefix::new(std::net::Ipv6Addr::from(address).into(), length).unwrap()
        }
    };
    let mut now = 1;
    for step in 0..1_000_000_u32 {
        let bits = next();
        let prefix = any_prefix(next());
        match bits % 100 {
            0..=54 => {
                let end = now + 1 + (bits >> 32) as u32 % 40;
                match writer.ban(&mut flat, prefix, end, now) {
                    Ok(_) => drop(plain.bans.insert(prefix, end)),
                    Err(Refusal::Full) => {
                        assert!(plain.bans.len() >= BANS_MAX && !plain.bans.contains_key(&prefix));
                        writer.sweep(&mut flat, 0..writer.slots(), now);
                        plain.bans.retain(|_, end| *end > now);
                    }
                    Err(Refusal::NoRoom) => {
                        (seed, buckets) = (next(), buckets + buckets / 2);
                        (flat, writer) = anew(&mut flat, &writer, seed, buckets, BANS_MAX);
                    }
                }
            }
            55..=84 => {
                assert_eq!(writer.unban(&mut flat, prefix), plain.bans.remove(&prefix).is_some());
            }
            85..=86 if plain.allowed.len() < 12 => {
                plain.allowed.insert(prefix);
                if writer.allow(&mut flat, &[prefix]).is_err() {
                    (seed, buckets) = (next(), buckets + buckets / 2);
                    (flat, writer) = anew(&mut flat, &writer, seed, buckets, BANS_MAX);
                    writer.allow(&mut flat, &[prefix]).unwrap();
                }
            }
            87..=88 => {
                let Some(prefix) = plain.allowed.first().copied() else { continue };
                plain.allowed.remove(&prefix);
                if writer.disallow(&mut flat, prefix).is_err() {
                    (seed, buckets) = (next(), buckets + buckets / 2);
                    (flat, writer) = anew(&mut flat, &writer, seed, buckets, BANS_MAX);
                }
            }
            89 if bits >> 60 == 0 => {
                writer.flush(&mut flat);
                plain.bans.clear();
            }
            90..=92 => now += 1,
            _ => {
                let source = any_prefix(bits >> 7);
                let source = Prefix::host(source.address());
                let params = Params { seed, buckets, exact: step % 2 == 0 };
                let found = table::find(&Still { flat: &flat, now }, params, source_of(&source.to_string()));
                assert_eq!(found.is_some(), plain.drops(source, now), "step {step}: {source}");
                if let Some(Place { bucket, slot }) = found {
                    let slot = bucket as usize * BUCKET_SLOTS + slot;
                    let entry = writer.entry(&mut flat, slot).expect("what was found is an entry");
                    assert!(entry.prefix.covers(source) && entry.end > now);
                }
            }
        }
        if step % 50_000 == 0 {
            let mut listed: Vec<(Prefix, u32)> = writer
                .scan(&mut flat)
                .into_iter()
                .filter(|entry| entry.is_ban())
                .map(|entry| (entry.prefix, entry.end))
                .collect();
            listed.sort_unstable();
            assert_eq!(listed, plain.bans.clone().into_iter().collect::<Vec<_>>(), "step {step}");
            writer = Writer::adopt(&mut flat, seed, buckets, BANS_MAX);
            assert_eq!((writer.bans(), writer.allowed().len()), (plain.bans.len(), plain.allowed.len()));
        }
    }
}
