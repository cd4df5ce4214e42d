//! Ends of bans on the kernel's jiffies, and how long the machine slept, in which they stand still.
#![forbid(unsafe_code)]

use std::time::Duration;

use blocker_ebpf::table::{FOREVER, UNIT_SHIFT};
use rustix::time::{ClockId, clock_getres, clock_gettime};

fn ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

pub(super) fn slept_ns() -> u64 {
    ns(ClockId::Boottime).saturating_sub(ns(ClockId::Monotonic))
}

/// The coarse clock is set once a jiffy, so its resolution is a jiffy.
pub(super) fn tick_ns() -> u64 {
    u64::try_from(clock_getres(ClockId::MonotonicCoarse).tv_nsec).unwrap_or(0).max(1)
}

/// The unit that a ban of this length ends with, to the nearest.
pub(super) fn end_of(left: Option<Duration>, jiffies: u64, tick_ns: u64) -> u32 {
    let Some(left) = left else { return FOREVER };
    let ticks = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX) / tick_ns;
    let unit = 1 << UNIT_SHIFT;
    let end = jiffies.saturating_add(ticks).saturating_add(unit / 2) >> UNIT_SHIFT;
    u32::try_from(end.max((jiffies >> UNIT_SHIFT) + 1)).unwrap_or(FOREVER).min(FOREVER - 1)
}

pub(super) fn left_of(end: u32, jiffies: u64, tick_ns: u64) -> Option<Duration> {
    let ticks = (u64::from(end) << UNIT_SHIFT).saturating_sub(jiffies);
    (end != FOREVER).then(|| Duration::from_nanos(ticks.saturating_mul(tick_ns)))
}
