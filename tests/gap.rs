//! No gap: while the enforcer ends and begins, with the same program, another size, another layout, or with the whole
//! agent killed, no packet of a banned source gets through.
//!
//! `cargo xtask bench gap` does the same thousands of times.

use std::{path::Path, time::Duration};

use blocker::enforce::xdp;
use xtask::lab::{agent::Backend, missing, skipped};

#[path = "common/flood.rs"]
mod flood;
#[path = "common/frame.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod frame;
#[path = "common/link.rs"]
mod link;

const LAYOUTS: [xdp::Layout; 2] = [xdp::Layout::Buckets, xdp::Layout::Hash];
const EXCHANGES: usize = 1_000;
const SWAPS: usize = 300;
const RESTARTS: usize = 20;
/// For each series: a slow machine does fewer.
const TIME_MAX: Duration = Duration::from_secs(4);

#[test]
fn no_packet_of_a_banned_source_passes_while_programs_and_tables_are_swapped() {
    let test = "no_packet_of_a_banned_source_passes_while_programs_and_tables_are_swapped";
    if let Some(reason) = missing() {
        return skipped(test, &reason);
    }
    if !xdp::is_built_in() {
        skipped(test, "XDP was not built in (cargo xtask test builds it)");
    }
    for layout in LAYOUTS.into_iter().filter(|_| xdp::is_built_in()) {
        let outcome = flood::exchange(layout, EXCHANGES, TIME_MAX);
        println!("XDP, {layout:?}, nothing but the program: {outcome}");
        outcome.check("nothing but the program");
    }
    for series in flood::series() {
        let outcome = flood::swap(&series, SWAPS, TIME_MAX);
        println!("{}: {outcome}", series.name);
        outcome.check(series.name);
    }
}

#[test]
fn no_packet_of_a_banned_source_passes_while_the_agent_is_killed_and_started() {
    let test = "no_packet_of_a_banned_source_passes_while_the_agent_is_killed_and_started";
    if let Some(reason) = missing() {
        return skipped(test, &reason);
    }
    for backend in [Backend::Nftables, Backend::Xdp] {
        if backend == Backend::Xdp && !xdp::is_built_in() {
            return skipped(test, "XDP was not built in (cargo xtask test builds it)");
        }
        let binary = Path::new(env!("CARGO_BIN_EXE_blocker"));
        let outcome = flood::restart(binary, backend, RESTARTS, TIME_MAX);
        println!("{backend}: {outcome}");
        outcome.check(&backend.to_string());
    }
}
