//! The table of windows against its definition, its bounds, and a flood.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const JAIL: JailKey = JailKey(0);

fn prefix(last: u8) -> Prefix {
    Prefix::host([203, 0, 113, last].into())
}

fn numbered(n: u32) -> Prefix {
    Prefix::host(std::net::Ipv4Addr::from_bits(n).into())
}

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(secs)
}

#[test]
fn only_failures_within_findtime_add_up() {
    let mut windows = Windows::new(10, 0);
    let mut count = |secs| windows.count(JAIL, prefix(1), at(secs), 3, Duration::from_secs(10));
    assert_eq!(count(0), Count::Below(1));
    assert_eq!(count(5), Count::Below(2));
    assert_eq!(count(11), Count::Below(2));
    assert_eq!(count(12), Count::Reached(3));
    assert_eq!(count(13), Count::Below(1));
}

#[test]
fn lines_out_of_order_count_once_each() {
    let mut windows = Windows::new(10, 0);
    let mut count = |secs| windows.count(JAIL, prefix(1), at(secs), 3, Duration::from_secs(10));
    assert_eq!([count(100), count(95), count(99)], [Count::Below(1), Count::Below(2), Count::Reached(3)]);
}

#[test]
fn the_bound_holds_and_the_silent_pair_gives_way() {
    let findtime = Duration::from_secs(100);
    let mut windows = Windows::new(4, 7);
    for last in 1..=4 {
        windows.count(JAIL, prefix(last), at(last.into()), 3, findtime);
    }
    assert!(windows.is_under_pressure());
    // Noted only; then let in, and counted from there.
    assert_eq!(windows.count(JAIL, prefix(5), at(5), 3, findtime), Count::Below(1));
    assert_eq!((windows.tracked(), windows.turned_away(), windows.evicted()), (4, 1, 0));
    assert_eq!(windows.count(JAIL, prefix(5), at(6), 3, findtime), Count::Below(1));
    assert_eq!((windows.tracked(), windows.turned_away(), windows.evicted()), (4, 1, 1));
    assert_eq!(windows.count(JAIL, prefix(5), at(7), 3, findtime), Count::Below(2));
    assert_eq!(windows.count(JAIL, prefix(2), at(7), 3, findtime), Count::Below(2));
    // Whoever gave way is unknown again.
    assert_eq!(windows.count(JAIL, prefix(1), at(8), 3, findtime), Count::Below(1));
    assert_eq!(windows.turned_away(), 2);
    windows.expire(|_| at(7));
    assert_eq!(windows.tracked(), 2);
    assert!(!windows.is_under_pressure());
    assert_eq!(windows.count(JAIL, prefix(1), at(9), 3, findtime), Count::Below(1));
    assert_eq!(windows.count(JAIL, prefix(1), at(9), 3, findtime), Count::Below(2));
}

#[test]
fn a_smaller_bound_keeps_those_who_failed_last() {
    let findtime = Duration::from_secs(1_000);
    let mut windows = Windows::new(100, 7);
    for last in 0..50 {
        windows.count(JAIL, prefix(last), at(last.into()), 3, findtime);
    }
    windows.set_tracked_max(20);
    assert_eq!((windows.tracked(), windows.evicted()), (20, 30));
    windows.set_tracked_max(200);
    for last in 30..50 {
        assert_eq!(windows.count(JAIL, prefix(last), at(60), 3, findtime), Count::Below(2), "{last}");
    }
}

#[test]
fn no_pair_gives_way_before_the_pressure() {
    for seed in 0..20 {
        let mut windows = Windows::new(8_192, seed);
        for n in 0..6_144 {
            windows.count(JAIL, numbered(n * 256), at(0), 3, Duration::from_secs(9));
        }
        assert!(!windows.is_under_pressure());
        assert_eq!(
            (windows.tracked(), windows.evicted(), windows.turned_away()),
            (6_144, 0, 0),
            "seed {seed}"
        );
    }
}

#[test]
fn a_flood_of_sources_hides_no_slow_attacker_and_bans_no_stranger() {
    const ATTACKERS: u32 = 100;
    const FLOOD: u32 = 400_000;
    let findtime = Duration::from_secs(86_400);
    // An eightieth of the flood; each attacker fails ten times, spread over all of it.
    let mut windows = Windows::new(5_000, 3);
    let mut caught = std::collections::BTreeSet::new();
    for n in 0..FLOOD {
        let now = Timestamp::from_micros(i64::from(n) * 1_000);
        let reached = windows.count(JAIL, numbered(0x0b00_0000 + n), now, 5, findtime);
        assert_eq!(reached, Count::Below(1));
        if n % (FLOOD / ATTACKERS / 10) == 0 {
            let attacker = numbered(n / (FLOOD / ATTACKERS / 10) % ATTACKERS);
            if let Count::Reached(_) = windows.count(JAIL, attacker, now, 5, findtime) {
                caught.insert(attacker);
            }
        }
    }
    assert!(windows.tracked() <= 5_000);
    assert!(caught.len() >= 99, "{} of {ATTACKERS}", caught.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn without_pressure_it_counts_as_a_plain_list_of_times(
        steps in prop::collection::vec((0_u32..3, 0_u8..30, -3_i64..6), 0..300),
        seed in any::<u64>(),
        maxretry in 1_u32..=FAILURES_EXACT_MAX,
        findtime in 1_i64..60,
    ) {
        let mut windows = Windows::new(200, seed);
        let mut lists: HashMap<(u32, u8), Vec<i64>> = HashMap::new();
        let mut now = 1_000;
        for (jail, last, step) in steps {
            now += step;
            let times = lists.entry((jail, last)).or_default();
            times.push(now);
            let latest = times.iter().max().copied().unwrap();
            times.retain(|time| *time > latest - findtime);
            let count = u32::try_from(times.len()).unwrap();
            let wanted = if count >= maxretry { Count::Reached(count) } else { Count::Below(count) };
            if count >= maxretry {
                times.clear();
            }
            let span = Duration::from_secs(findtime.unsigned_abs());
            prop_assert_eq!(windows.count(JailKey(jail), prefix(last), at(now), maxretry, span), wanted);
            if step == 5 {
                // Whoever is out of every window may be forgotten at any time.
                windows.expire(|_| at(now - 200));
            }
        }
        prop_assert_eq!((windows.evicted(), windows.turned_away()), (0, 0));
    }

    #[test]
    fn under_pressure_nobody_is_banned_early_and_the_bound_holds(
        steps in prop::collection::vec((0_u8..60, 0_i64..3), 0..600),
        seed in any::<u64>(),
        tracked_max in 1_usize..40,
    ) {
        let mut windows = Windows::new(tracked_max, seed);
        let mut lists: HashMap<u8, Vec<i64>> = HashMap::new();
        let mut now = 1_000;
        for (index, (last, step)) in steps.into_iter().enumerate() {
            now += step;
            let times = lists.entry(last).or_default();
            times.push(now);
            if let Count::Reached(_) = windows.count(JAIL, prefix(last), at(now), 4, Duration::from_secs(50)) {
                prop_assert!(times.iter().filter(|time| **time > now - 50).count() >= 4);
                times.clear();
            }
            if index == 300 {
                windows.set_tracked_max(tracked_max / 2);
            }
            prop_assert!(windows.tracked() <= tracked_max);
        }
    }
}
