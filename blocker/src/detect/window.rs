//! The failures of one pair in a sliding window, in a fixed number of bytes.
//!
//! Up to [`FAILURES_EXACT_MAX`] failures are remembered one by one. Where a jail's `maxretry` needs more, those nearest
//! to each other share a place and count as old as the oldest of them: the sum is then at times too small, never too
//! large, so nobody is banned early.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::page::take;
use crate::time::Timestamp;

/// Up to this `maxretry` a window is exact; beyond, a failure may be forgotten before `findtime` is over.
pub const FAILURES_EXACT_MAX: u32 = OLDER as u32 + 2;

/// Instants remembered beside the latest.
const OLDER: usize = 7;

/// When failures were, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    latest: Timestamp,
    /// How long before `latest` the others were, in units of `2^shift` microseconds, rounded up, ascending.
    ages: [u32; OLDER],
    /// How many failures were at `latest` and at each age; 0 where a place is free.
    counts: [u16; OLDER + 1],
    /// The unit that lets every age below `findtime` fit: microseconds up to 71 minutes, and a 2^31th of it beyond.
    shift: u8,
}

impl Window {
    /// A window with one failure in it.
    pub(super) fn new(at: Timestamp, findtime: Duration) -> Self {
        let mut counts = [0; OLDER + 1];
        counts[0] = 1;
        Self { latest: at, ages: [0; OLDER], counts, shift: shift_for(micros(findtime)) }
    }

    /// When the latest failure was.
    pub(super) fn latest(&self) -> Timestamp {
        self.latest
    }

    /// Adds it to `bytes`, in 11 to 53 of them.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        let groups = self.counts.iter().take_while(|count| **count > 0).count();
        bytes.extend(self.latest.as_micros().to_le_bytes());
        bytes.extend([self.shift, u8::try_from(groups).unwrap_or(0)]);
        for count in &self.counts[..groups] {
            bytes.extend(count.to_le_bytes());
        }
        for age in &self.ages[..groups.saturating_sub(1)] {
            bytes.extend(age.to_le_bytes());
        }
    }

    /// Takes off what [`Self::write`] added; `None` where it cannot have been that.
    pub(super) fn read(rest: &mut &[u8]) -> Option<Self> {
        let latest = Timestamp::from_micros(i64::from_le_bytes(take(rest)?));
        let [shift, groups] = take(rest)?;
        let groups = usize::from(groups);
        if shift > SHIFT_MAX || !(1..=OLDER + 1).contains(&groups) {
            return None;
        }
        let (mut ages, mut counts) = ([0; OLDER], [0; OLDER + 1]);
        for count in &mut counts[..groups] {
            *count = u16::from_le_bytes(take(rest)?);
        }
        for age in &mut ages[..groups - 1] {
            *age = u32::from_le_bytes(take(rest)?);
        }
        let sound = counts[..groups].iter().all(|count| *count > 0) && ages[..groups - 1].is_sorted();
        sound.then_some(Self { latest, ages, counts, shift })
    }

    /// Something at each end of it, for who only wants it read.
    pub(super) fn newest(&self) -> u32 {
        self.ages[0] ^ u32::from(self.counts[OLDER]) ^ self.latest.as_micros() as u32
    }

    /// Adds a failure, forgets those `findtime` or more before the latest one, and says how many are left.
    pub(super) fn add(&mut self, at: Timestamp, findtime: Duration) -> u32 {
        let findtime = micros(findtime);
        self.add_next(at, findtime).unwrap_or_else(|| self.add_any(at, findtime))
    }

    /// As [`Self::add`].
    fn add_any(&mut self, at: Timestamp, findtime: u64) -> u32 {
        let mut groups = self.groups();
        // From here on in microseconds, so that a changed `findtime` needs no other care.
        let mut len = groups.iter().take_while(|(_, count)| *count > 0).count();
        if at >= self.latest {
            let passed = micros(at.saturating_since(self.latest));
            for group in &mut groups[..len] {
                group.0 = group.0.saturating_add(passed);
            }
            self.latest = at;
            len = insert(&mut groups, len, 0);
        } else {
            // Lines of several sources may arrive out of order.
            len = insert(&mut groups, len, micros(self.latest.saturating_since(at)));
        }
        // The latest failure itself is never over.
        while len > 1 && groups[len - 1].0 >= findtime {
            len -= 1;
        }
        if len > OLDER + 1 {
            merge_nearest(&mut groups);
            len -= 1;
        }
        self.store(&groups[..len], findtime);
        self.counts.iter().map(|count| u32::from(*count)).sum()
    }

    /// As [`Self::add`] in the usual case: the failure is later than all before, and the unit is a microsecond, so that
    /// ages only grow by the same. Without a branch for each of them. `None` in any other case.
    fn add_next(&mut self, at: Timestamp, findtime: u64) -> Option<u32> {
        let passed = at.as_micros().checked_sub(self.latest.as_micros()).filter(|passed| *passed > 0)?;
        let findtime = u32::try_from(findtime).ok().filter(|_| self.shift == 0)?;
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        let mut ages = [passed; OLDER + 1];
        for (age, before) in ages[1..].iter_mut().zip(self.ages) {
            *age = before.saturating_add(passed);
        }
        let mut counts = self.counts;
        for (count, age) in counts.iter_mut().zip(ages) {
            *count = if age < findtime { *count } else { 0 };
        }
        // Of nine, the two nearest to each other become one, as in `merge_nearest`; of fewer, the last place is free.
        let mut gone = OLDER;
        if counts[OLDER] > 0 {
            let mut least = u32::MAX;
            for (place, pair) in ages.windows(2).enumerate() {
                let gap = pair[1] - pair[0];
                (gone, least) = if gap < least { (place, gap) } else { (gone, least) };
            }
            counts[gone + 1] = counts[gone + 1].saturating_add(counts[gone]);
        }
        for place in 0..OLDER {
            let from = place + usize::from(place >= gone);
            self.ages[place] = ages[from];
            self.counts[place + 1] = counts[from];
        }
        (self.latest, self.counts[0]) = (at, 1);
        Some(self.counts.iter().map(|count| u32::from(*count)).sum())
    }

    /// Ages in microseconds with their counts, the latest first, and room for one more.
    fn groups(&self) -> [(u64, u16); OLDER + 2] {
        let mut groups = [(0, 0); OLDER + 2];
        groups[0].1 = self.counts[0];
        for (group, (age, count)) in groups[1..].iter_mut().zip(self.ages.iter().zip(&self.counts[1..])) {
            *group = (u64::from(*age) << self.shift, *count);
        }
        groups
    }

    fn store(&mut self, groups: &[(u64, u16)], findtime: u64) {
        self.shift = shift_for(findtime);
        self.counts = [0; OLDER + 1];
        for (place, (age, count)) in groups.iter().enumerate() {
            self.counts[place] = *count;
            if place > 0 {
                let units = age.div_ceil(1 << self.shift);
                self.ages[place - 1] = u32::try_from(units).unwrap_or(u32::MAX);
            }
        }
    }
}

/// Puts one failure of this age into its place, or counts it where one of the same age is, and returns the new length.
fn insert(groups: &mut [(u64, u16); OLDER + 2], len: usize, age: u64) -> usize {
    let place = groups[..len].partition_point(|group| group.0 < age);
    if place < len && groups[place].0 == age {
        groups[place].1 = groups[place].1.saturating_add(1);
        return len;
    }
    groups.copy_within(place..len, place + 1);
    groups[place] = (age, 1);
    len + 1
}

/// Frees the last place: of those behind the latest, the two nearest to each other become one, as old as the older.
fn merge_nearest(groups: &mut [(u64, u16); OLDER + 2]) {
    let gap = |place: &usize| groups[*place + 1].0 - groups[*place].0;
    let Some(place) = (1..=OLDER).min_by_key(gap) else { return };
    groups[place + 1].1 = groups[place + 1].1.saturating_add(groups[place].1);
    groups.copy_within(place + 1.., place);
}

/// The largest that [`shift_for`] gives.
const SHIFT_MAX: u8 = 32;

fn shift_for(findtime: u64) -> u8 {
    let bits = u64::BITS - findtime.leading_zeros();
    u8::try_from(bits.saturating_sub(u32::BITS)).unwrap_or(0)
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: every failure since `times` was emptied that is less than `findtime` before the latest.
    fn model(times: &[i64], findtime: i64) -> u32 {
        let latest = times.iter().max().copied().unwrap_or(0);
        u32::try_from(times.iter().filter(|time| latest - **time < findtime).count()).unwrap()
    }

    /// Steps of a clock that sometimes goes back, in microseconds.
    fn times(step: i64) -> impl Strategy<Value = Vec<i64>> {
        prop::collection::vec(prop_oneof![Just(0), -step..step, 0..step / 4], 1..60).prop_map(|steps| {
            steps
                .iter()
                .scan(1_000_000_000, |now, step| {
                    *now += step;
                    Some(*now)
                })
                .collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn up_to_its_exact_bound_it_counts_as_the_definition_does(
            times in times(4_000_000), findtime in 1_i64..20_000_000, maxretry in 2_u32..=FAILURES_EXACT_MAX,
        ) {
            let span = Duration::from_micros(findtime.unsigned_abs());
            let mut window: Option<Window> = None;
            let mut since = Vec::new();
            for time in times {
                since.push(time);
                let at = Timestamp::from_micros(time);
                let count = match &mut window {
                    Some(window) => window.add(at, span),
                    None => {
                        window = Some(Window::new(at, span));
                        1
                    }
                };
                prop_assert_eq!(count, model(&since, findtime));
                if count >= maxretry {
                    window = None;
                    since.clear();
                } else {
                    // What is out of the window never comes back into it.
                    let latest = since.iter().max().copied().unwrap();
                    since.retain(|time| latest - time < findtime);
                }
            }
        }

        #[test]
        fn beyond_it_never_counts_too_much_and_misses_no_steady_attacker(
            times in times(9_000_000_000), findtime in 1_i64..40_000_000_000, later in 1_i64..90_000_000_000,
        ) {
            let span = |findtime: i64| Duration::from_micros(findtime.unsigned_abs());
            let mut window = Window::new(Timestamp::from_micros(times[0]), span(findtime));
            for (index, time) in times.iter().enumerate().skip(1) {
                // A reload may change `findtime` in between.
                let findtime = if index > 30 { later } else { findtime };
                let count = window.add(Timestamp::from_micros(*time), span(findtime));
                prop_assert!(count >= 1 && count <= model(&times[..=index], findtime.max(later)));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn the_usual_case_comes_to_what_any_case_does(
            times in times(9_000_000), findtime in 1_i64..60_000_000, later in 1_i64..9_000_000_000,
        ) {
            let span = Duration::from_micros(findtime.unsigned_abs());
            let first = Window::new(Timestamp::from_micros(times[0]), span);
            let (mut window, mut other) = (first, first);
            for (index, time) in times.iter().enumerate().skip(1) {
                let findtime = (if index > 30 { later } else { findtime }).unsigned_abs();
                let at = Timestamp::from_micros(*time);
                let next = window.add_next(at, findtime);
                prop_assert_eq!(next.is_some(), at > other.latest && findtime <= u64::from(u32::MAX) && other.shift == 0);
                let count = next.unwrap_or_else(|| window.add_any(at, findtime));
                prop_assert_eq!(count, other.add_any(at, findtime));
                let places = |window: &Window| {
                    window.groups().iter().take_while(|(_, count)| *count > 0).copied().collect::<Vec<_>>()
                };
                prop_assert_eq!((window.latest, places(&window)), (other.latest, places(&other)));
            }
        }
    }

    #[test]
    fn a_steady_attacker_reaches_a_large_maxretry() {
        // 400 failures in findtime; the places blur at most a quarter of it.
        let span = Duration::from_secs(400);
        let mut window = Window::new(Timestamp::from_secs(0), span);
        let counts: Vec<u32> = (1..2_000).map(|secs| window.add(Timestamp::from_secs(secs), span)).collect();
        assert_eq!(counts[..390], (2..392).collect::<Vec<_>>());
        assert!(counts[400..].iter().all(|count| (300..=400).contains(count)), "{:?}", &counts[400..]);
        assert!(size_of::<Window>() <= 56);
    }
}
