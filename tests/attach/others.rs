//! Programs of others: none is replaced or moved, and what they do to ours is said and mended.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
};

use blocker::enforce::{Health, xdp};
use xtask::lab::wait_for;

use crate::{
    bpf, foreign, frame, link,
    stage::{BANNED, SOON, Stage, foreign_program, has_tcx, has_xdp, modes, put},
};

#[test]
fn a_foreign_program_stays_and_the_next_way_is_taken_until_it_goes() {
    let test = "a_foreign_program_stays_and_the_next_way_is_taken_until_it_goes";
    if !has_tcx(test) {
        return;
    }
    let Some(mut stage) = Stage::new(test) else { return };
    let wire = stage.wire("eth0");
    stage.host.ip("addr add 198.51.100.1/24 dev eth0").unwrap();
    let foreign = foreign_program(&stage.host, "eth0");
    let shown = stage.host.ip("-d link show eth0").unwrap();
    stage.open();
    println!("{}", stage.notes());
    assert_eq!(stage.attached(), ["eth0: tcx"]);
    let notes = stage.notes();
    for part in [
        "eth0 is tcx: no native, since another program (id ",
        ") is attached by XDP and is not replaced; it would have to be detached; no dispatcher, since the program there is none of libxdp's",
    ] {
        assert!(notes.contains(part), "{notes}");
    }
    assert_eq!(stage.troubles(), Vec::<String>::new());
    assert_eq!(stage.host.ip("-d link show eth0").unwrap(), shown, "the foreign program is as it was");
    stage.check_counts("beside a foreign program", 1_000, |source| put(&wire, &frame::tcp(source)));

    // A restart goes on with the same link, and counts on.
    let before = stage.dropped();
    stage.xdp = None;
    assert!(stage.pin("eth0", "tcx").exists());
    put(&wire, &frame::tcp(BANNED.parse().unwrap()));
    stage.open();
    assert_eq!((stage.attached(), stage.dropped()), (vec!["eth0: tcx".to_owned()], before + 1));

    // Once it is gone, native is taken without being asked, and the other link is let go.
    let tcx = stage.pin("eth0", "tcx");
    drop(foreign);
    let native = wait_for(SOON, || {
        stage.repair();
        (stage.attached() == ["eth0: native"]).then_some(())
    });
    assert!(native.is_some(), "{:?}: {}", stage.attached(), stage.notes());
    assert!(!tcx.exists() && has_xdp(&stage.host, "eth0"));
    stage.check_counts("after it is gone", 1_000, |source| put(&wire, &frame::tcp(source)));
}

type Sabotage<'a> = &'a dyn Fn(&Path);

#[test]
fn what_others_do_to_a_link_is_said_and_mended() {
    let test = "what_others_do_to_a_link_is_said_and_mended";
    for mode in modes(test) {
        let Some(mut stage) = Stage::new(test) else { return };
        let wire = stage.wire("eth0");
        stage.named(&["eth0"]);
        stage.options.modes = vec![mode];
        stage.open();
        let pin = stage.pin("eth0", mode.name());
        let pass = if mode == xdp::Mode::Tcx { None } else { Some(bpf::floor(bpf::XDP_PASS, 0)) };
        let unpin = |pin: &Path| fs::remove_file(pin).unwrap();
        let detach = |pin: &Path| foreign::detach(pin).unwrap();
        let both = |pin: &Path| {
            foreign::detach(pin).unwrap();
            fs::remove_file(pin).unwrap();
        };
        let replace = |pin: &Path| {
            if let Some(pass) = &pass {
                link::update(&link::open_pin(pin).unwrap(), pass).unwrap();
            }
        };
        let saboteurs: [(&str, Sabotage<'_>, bool); 4] = [
            ("its pin is removed", &unpin, false),
            ("its link is detached", &detach, true),
            ("both", &both, true),
            ("another program is put into its link", &replace, pass.is_some()),
        ];
        for (what, sabotage, is_open) in saboteurs {
            sabotage(&pin);
            let troubles = stage.troubles();
            assert_eq!(!troubles.is_empty(), is_open, "{what}: {troubles:?}");
            let expected = if is_open || !pin.exists() { Health::Repaired } else { Health::Sound };
            assert_eq!(stage.repair(), expected, "{}: {what}", mode.name());
            assert!(pin.exists() && stage.troubles().is_empty(), "{}: {what}", mode.name());
            assert_eq!(stage.repair(), Health::Sound, "{}: {what}", mode.name());
            let what = format!("{}, after {what} ({})", mode.name(), troubles.join(""));
            stage.check_counts(&what, 100, |source| put(&wire, &frame::tcp(source)));
        }
    }
}

#[test]
fn a_program_put_before_ours_is_said_and_counted_and_stays_where_it_is() {
    const TCX_PASS: i32 = 0;
    let test = "a_program_put_before_ours_is_said_and_counted_and_stays_where_it_is";
    if !has_tcx(test) {
        return;
    }
    let Some(mut stage) = Stage::new(test) else { return };
    let wire = stage.wire("eth0");
    let banned = frame::tcp(BANNED.parse().unwrap());
    stage.named(&["eth0"]);
    stage.options.modes = vec![xdp::Mode::Tcx];
    let attach = |stage: &Stage, program: &OwnedFd, place| {
        stage.host.enter(|| foreign::attach_tcx(program.as_fd(), "eth0", place)).unwrap()
    };
    // Who was first until we came is behind us then.
    let [here, late, rude] = ["here_before", "late", "rude"].map(|name| foreign::classifier(TCX_PASS, name));
    let _here = attach(&stage, &here, foreign::Place::First);
    stage.open();
    let _late = attach(&stage, &late, foreign::Place::Last);
    assert_eq!(stage.repair(), Health::Sound);
    assert_eq!(stage.troubles(), Vec::<String>::new());
    assert_eq!(stage.notes(), "eth0 is tcx: no native, since `[enforce] modes` does not name it");
    stage.check_counts("before others", 100, |source| put(&wire, &frame::tcp(source)));

    let in_the_way = attach(&stage, &rude, foreign::Place::First);
    let said =
        format!("eth0 is guarded behind others only: program {} (rude) runs before", program_id(&rude));
    let count = |so_far: u64| format!("found before blocker's by TCX since it started: {so_far}");
    // Said at once, counted once, and nothing is done about it, not by a restart either.
    for restart in [false, false, true] {
        if restart {
            stage.xdp = None;
            stage.open();
        }
        let troubles = stage.troubles();
        assert!(troubles.len() == 1 && troubles[0].starts_with(&said), "{troubles:?}");
        assert_eq!(stage.repair(), Health::Sound);
        assert!(stage.notes().ends_with(&count(1)), "{}", stage.notes());
        assert!(!stage.drops(&wire, &banned), "it lets pass what is banned, so what is said is true");
    }
    println!("{}\n{}", stage.troubles().join("\n"), stage.notes());
    // What the operator is told to do helps.
    let pin = stage.pin("eth0", "tcx");
    assert!(stage.troubles()[0].contains(&format!("`bpftool link detach pinned {}`", pin.display())));
    foreign::detach(&pin).unwrap();
    assert_eq!(stage.repair(), Health::Repaired);
    assert_eq!(stage.troubles(), Vec::<String>::new());
    stage.check_counts("attached anew", 100, |source| put(&wire, &frame::tcp(source)));
    // Going away does, too; each time counts.
    drop(in_the_way);
    for so_far in 2..=3 {
        let in_the_way = attach(&stage, &rude, foreign::Place::First);
        stage.repair();
        assert_eq!((stage.troubles().len(), stage.notes().ends_with(&count(so_far))), (1, true));
        drop(in_the_way);
        stage.repair();
        assert_eq!(stage.troubles(), Vec::<String>::new());
    }
    stage.check_counts("before others again", 100, |source| put(&wire, &frame::tcp(source)));
}

/// The kernel's number for a program.
fn program_id(program: &OwnedFd) -> u32 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).unwrap();
    let id = info.lines().find_map(|line| line.strip_prefix("prog_id:"));
    id.unwrap().trim().parse().unwrap()
}
