//! Debian's logrotate on a log that is written at 10,000 lines a second: by rename nothing is lost; by copytruncate
//! what nobody had read when the file was emptied, mostly what came while it was copied; nothing is read twice.
#![cfg(target_os = "linux")]

#[path = "common/rotation.rs"]
mod rotation;

use rotation::{Outcome, Way, rotate};

const ROTATIONS: u32 = 12;

fn said(outcome: &Outcome) {
    println!(
        "{} written, {} in no file; {} lost, of those {} that stand in a file; {} twice",
        outcome.written, outcome.destroyed, outcome.lost, outcome.lost_and_there, outcome.twice
    );
}

#[test]
fn nothing_is_lost_by_rename() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = rotate(folder.path(), Way::Rename, ROTATIONS);
    said(&outcome);
    assert_eq!((outcome.destroyed, outcome.lost, outcome.twice), (0, 0, 0), "{outcome:?}");
    assert_eq!(outcome.counters.get("rotated"), Some(&u64::from(ROTATIONS)), "{outcome:?}");
}

#[test]
fn copytruncate_costs_what_came_while_it_copied_and_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = rotate(folder.path(), Way::CopyTruncate, ROTATIONS);
    said(&outcome);
    assert_eq!(outcome.twice, 0, "{outcome:?}");
    assert_eq!(outcome.counters.get("truncated"), Some(&u64::from(ROTATIONS)), "{outcome:?}");
    // Whatever was lost was lost at an emptying.
    assert!(outcome.gaps <= ROTATIONS as usize, "{outcome:?}");
}
