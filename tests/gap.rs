//! No gap: while the enforcer ends and begins, with the same program, another size, another layout, one that it cannot
//! read, or with the whole agent killed, no packet of a banned source gets through.
//!
//! `cargo xtask bench gap` does the same thousands of times.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use aya::maps::{Array, Map, MapData};
use blocker::enforce::{Enforcer as _, Keep, xdp};
use blocker_ebpf::table::{LAYOUT, LAYOUT_WORD, STATE_WORDS, TABLE};
use xtask::lab::{
    agent::{Agent, Backend},
    kernel, missing, skipped, wait_for,
};

#[path = "common/flood.rs"]
mod flood;
#[path = "common/frame.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod frame;
#[path = "common/link.rs"]
mod link;

const LAYOUTS: [xdp::Layout; 2] = [xdp::Layout::Buckets, xdp::Layout::Hash];
type Disguise = fn(&Path);

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

/// A version of the layout that is none of ours.
const FOREIGN: u64 = 9;

/// The pins become those of another version, which has maps that cannot be read.
fn rename_pins(pins: &Path) {
    fs::rename(pins.join(format!("v{LAYOUT}")), pins.join(format!("v{FOREIGN}"))).unwrap();
}

/// The maps say that they are of another version, where those of this one are looked for.
fn mark_maps(pins: &Path) {
    let tables = fs::read_dir(pins.join(format!("v{LAYOUT}"))).unwrap().flatten();
    let tables: Vec<PathBuf> =
        tables.map(|entry| entry.path().join(TABLE)).filter(|path| path.exists()).collect();
    assert_eq!(tables.len(), 1, "{tables:?}");
    let map = Map::Array(MapData::from_pin(&tables[0]).unwrap());
    let mut table = Array::<_, [u64; STATE_WORDS]>::try_from(map).unwrap();
    let mut state = table.get(&0, 0).unwrap();
    assert_eq!(state[LAYOUT_WORD], LAYOUT);
    state[LAYOUT_WORD] = FOREIGN;
    table.set(0, state, 0).unwrap();
}

#[test]
fn maps_of_another_version_are_not_adopted_and_their_program_drops_until_the_ledgers_bans_are_in_ours() {
    let test =
        "maps_of_another_version_are_not_adopted_and_their_program_drops_until_the_ledgers_bans_are_in_ours";
    if let Some(reason) = missing() {
        return skipped(test, &reason);
    }
    if !xdp::is_built_in() {
        return skipped(test, "XDP was not built in (cargo xtask test builds it)");
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_blocker"));
    let patience = kernel::patience(Duration::from_secs(10));
    let cases: [(&str, Disguise); 2] =
        [("a version unknown here", rename_pins), ("a version unknown here, in our folder", mark_maps)];
    for (what, make_foreign) in cases {
        let town = flood::Town::new();
        let (ours, foreign) = [LAYOUT, FOREIGN].map(|version| town.pins.join(format!("v{version}"))).into();
        let mut agent = Agent::new(&town.scratch, &town.host, Backend::Xdp);
        agent.start(binary).unwrap();
        for (prefix, _) in flood::BANNED {
            agent.cli(binary, &["ban", prefix, "--for", "1d"]).unwrap();
        }
        let flood = town.flood();
        let sent_since = |before: u64| wait_for(patience, || (flood.sent() > before + 1_000).then_some(()));
        sent_since(0).unwrap();
        agent.kill();
        make_foreign(&town.pins);
        let before = flood.sent();
        agent.start(binary).unwrap();
        let gone = wait_for(patience, || (!foreign.exists()).then_some(()));
        assert!(gone.is_some() && ours.exists(), "{what}: {}", agent.log());
        sent_since(flood.sent()).unwrap();
        let status = agent.json(binary, &["status"]).unwrap();
        assert_eq!(status["backend"]["attachments"][0], "eth0: native", "{what}: {status}");
        assert!(status["packets"].as_u64() > Some(0), "{what}: our program drops now: {status}");
        assert_eq!(agent.banned(binary).unwrap().len(), flood::BANNED.len(), "{what}");
        let (honest, through) = town.arrived();
        assert!(through == 0 && honest > 0, "{what}: {through} of {} through", flood.sent());
        println!("{what}: {} packets while it was migrated, {through} through", flood.sent() - before);
        // Nothing of the former program is left, which would drop for ever.
        agent.cli(binary, &["unban", flood::BANNED[0].0]).unwrap();
        let passes = wait_for(patience, || {
            thread::sleep(Duration::from_millis(20));
            (town.arrived().1 > 0).then_some(())
        });
        assert!(passes.is_some(), "{what}: who is not banned any more is let in");
    }
}

#[test]
fn no_count_of_a_ban_is_lost_when_a_table_of_another_size_takes_over_under_flood() {
    let test = "no_count_of_a_ban_is_lost_when_a_table_of_another_size_takes_over_under_flood";
    if let Some(reason) = missing() {
        return skipped(test, &reason);
    }
    if !xdp::is_built_in() {
        return skipped(test, "XDP was not built in (cargo xtask test builds it)");
    }
    let town = flood::Town::new();
    let open = |bans_max| {
        let options = flood::options(&town.pins, bans_max, xdp::Layout::Buckets);
        town.host.enter(|| xdp::Xdp::open(&options).unwrap())
    };
    let mut table = open(100);
    table.apply(&flood::bans(), flood::now()).unwrap();
    let mut flood = town.flood();
    for bans_max in [1_000, 100, 1_000, 100] {
        Box::new(table).close(Keep::InForce).unwrap();
        table = open(bans_max);
    }
    let dropped = flood::settled(|| table.counters().unwrap().packets, &mut flood);
    let counted: u64 = table.entries(flood::now()).unwrap().iter().map(|entry| entry.packets).sum();
    Box::new(table).close(Keep::Nothing).unwrap();
    assert!(dropped > 1_000, "only {dropped} packets");
    assert_eq!(counted, dropped);
}
