//! No gap, at length: thousands of swaps of programs and tables, and a thousand restarts of the agent, under flood.
//!
//! The same that `tests/gap.rs` does a few times. It fails where a single packet of a banned source gets through. Words
//! after `--` choose the lines that have one of them.

use std::{path::Path, time::Duration};

use blocker::enforce::xdp;
use xtask::lab::{agent::Backend, missing};

#[path = "../common/flood.rs"]
mod flood;
#[path = "../common/frame.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod frame;
#[path = "../common/link.rs"]
mod link;

const SWAPS: usize = 3_000;
const RESTARTS: usize = 1_000;
/// For each line; what the time was too short for is left out. `BLOCKER_BENCH_SECONDS` makes it another.
const SECONDS: u64 = 1_200;

fn main() {
    if let Some(reason) = missing() {
        println!("not measured: {reason}");
        return;
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let wanted = |line: &str| words.is_empty() || words.iter().any(|word| line.contains(word.as_str()));
    let asked = std::env::var("BLOCKER_BENCH_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let most = Duration::from_secs(asked.unwrap_or(SECONDS));
    for layout in [xdp::Layout::Buckets, xdp::Layout::Hash].into_iter().filter(|_| xdp::is_built_in()) {
        let line = format!("XDP, {layout:?}, nothing but the program");
        if wanted(&line) {
            let outcome = flood::exchange(layout, SWAPS, most);
            println!("{line}: {outcome}");
            outcome.check(&line);
        }
    }
    for series in flood::series() {
        let line = format!("{}, swaps", series.name);
        if wanted(&line) {
            let outcome = flood::swap(&series, SWAPS, most);
            println!("{line}: {outcome}");
            outcome.check(&line);
        }
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_blocker"));
    for backend in [Backend::Xdp, Backend::Nftables] {
        if backend == Backend::Xdp && !xdp::is_built_in() {
            println!("xdp: not measured, it was not built in");
            continue;
        }
        let line = format!("{backend}, restarts of the agent");
        if wanted(&line) {
            let outcome = flood::restart(binary, backend, RESTARTS, most);
            println!("{line}: {outcome}");
            outcome.check(&line);
        }
    }
}
