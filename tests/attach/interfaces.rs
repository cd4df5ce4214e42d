//! Which interfaces are guarded, as they come, go, are renamed and stand on each other.

use blocker::enforce::{Enforcer as _, Health};

use crate::{
    frame,
    stage::{Stage, device, has_tcx, has_xdp, put},
};

#[test]
fn interfaces_are_followed_as_they_come_go_and_are_renamed() {
    let test = "interfaces_are_followed_as_they_come_go_and_are_renamed";
    let Some(mut stage) = Stage::new(test) else { return };
    stage.open();
    assert!(stage.attached().is_empty() && stage.troubles().is_empty());
    assert!(stage.notes().contains("no interface to guard yet"), "{}", stage.notes());
    // It appears, gets an address, and is guarded.
    let wire = stage.wire("eth0");
    stage.host.ip("addr add 198.51.100.1/24 dev eth0").unwrap();
    assert!(readable(&mut stage), "the kernel's word has come");
    assert_eq!(stage.repair(), Health::Sound, "nothing was lost");
    assert_eq!(stage.attached(), ["eth0: native"]);
    stage.check_counts("appeared", 100, |source| put(&wire, &frame::tcp(source)));
    // It is renamed, and guarded all the while.
    for command in ["link set eth0 down", "link set eth0 name wan0", "link set wan0 up"] {
        stage.host.ip(command).unwrap();
    }
    stage.repair();
    assert_eq!(stage.attached(), ["wan0: native"]);
    stage.check_counts("renamed", 100, |source| put(&wire, &frame::tcp(source)));
    // It vanishes.
    stage.host.ip("link del wan0").unwrap();
    assert!(readable(&mut stage));
    stage.repair();
    assert!(stage.attached().is_empty() && stage.troubles().is_empty(), "{:?}", stage.troubles());
    // Another one takes its name.
    let wire = stage.wire("wan0");
    stage.host.ip("addr add 198.51.100.1/24 dev wan0").unwrap();
    stage.repair();
    assert_eq!(stage.attached(), ["wan0: native"]);
    stage.check_counts("made again", 100, |source| put(&wire, &frame::tcp(source)));
    // It goes to another namespace, and comes back.
    let index = stage.pin("wan0", "native");
    stage.host.ip(&format!("link set wan0 name gone0 netns {}", stage.peer.name())).unwrap();
    stage.repair();
    assert!(stage.attached().is_empty());
    assert!(
        !index.exists() && !has_xdp(&stage.peer, "gone0"),
        "a host that it was given to is not ours to guard"
    );
    stage.peer.ip(&format!("link set gone0 netns {}", stage.host.name())).unwrap();
    stage.host.ip("addr add 198.51.100.1/24 dev gone0").unwrap();
    stage.host.ip("link set gone0 up").unwrap();
    stage.repair();
    assert_eq!(stage.attached(), ["gone0: native"]);
    stage.check_counts("back again", 100, |source| put(&wire, &frame::tcp(source)));
}

fn readable(stage: &mut Stage) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let changes = stage.xdp().changes().unwrap();
    let mut fds = [PollFd::from_borrowed_fd(changes, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 2, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn a_named_interface_is_waited_for_and_a_pattern_takes_what_there_is() {
    let test = "a_named_interface_is_waited_for_and_a_pattern_takes_what_there_is";
    let Some(mut stage) = Stage::new(test) else { return };
    let wire = stage.wire("eth0");
    stage.named(&["eth*", "wan0"]);
    stage.options.exclude = vec!["eth9".to_owned()];
    stage.open();
    assert_eq!(stage.attached(), ["eth0: native"]);
    let troubles = stage.troubles();
    println!("{troubles:?}");
    assert!(
        troubles.len() == 1 && troubles[0].contains("wan0 is not guarded: there is no such interface yet")
    );
    let (wan0, _eth9) = (stage.wire("wan0"), stage.wire("eth9"));
    stage.repair();
    assert_eq!(stage.attached(), ["eth0: native", "wan0: native"]);
    assert!(stage.troubles().is_empty());
    stage.check_counts("two interfaces", 100, |source| {
        let frame = frame::tcp(source);
        if source.is_ipv4() { put(&wire, &frame) } else { put(&wan0, &frame) }
    });
    // Renamed, it is not what is asked for; it stays guarded, and is not at the next start.
    for command in ["link set wan0 down", "link set wan0 name lan0", "link set lan0 up"] {
        stage.host.ip(command).unwrap();
    }
    stage.repair();
    assert_eq!(stage.attached(), ["eth0: native", "lan0: native"]);
    assert!(stage.notes().contains("lan0: ") && stage.troubles().len() == 1, "{}", stage.notes());
    stage.xdp = None;
    stage.open();
    assert_eq!(stage.attached(), ["eth0: native"]);
    assert!(!has_xdp(&stage.host, "lan0"));
}

#[test]
fn the_ports_of_a_bridge_are_guarded_and_the_ends_of_guests_are_not() {
    let test = "the_ports_of_a_bridge_are_guarded_and_the_ends_of_guests_are_not";
    let Some(mut stage) = Stage::new(test) else { return };
    // The way out leads over a bridge of two veths; another bridge has nothing but a guest on it.
    let wires = [stage.wire("one"), stage.wire("two")];
    let _guest = stage.wire("guest0");
    for (bridge, ports) in [("br0", &["one", "two"][..]), ("guests", &["guest0"])] {
        stage.host.ip(&format!("link add {bridge} type bridge mcast_snooping 0 forward_delay 0")).unwrap();
        stage.host.ip(&format!("link set {bridge} up")).unwrap();
        for port in ports {
            stage.host.ip(&format!("link set {port} master {bridge}")).unwrap();
        }
    }
    stage.host.ip("addr add 198.51.100.1/24 dev br0").unwrap();
    stage.host.ip("addr add 10.1.0.1/24 dev guests").unwrap();
    stage.host.ip("route add default via 198.51.100.254 dev br0").unwrap();
    stage.open();
    println!("{}", stage.notes());
    assert_eq!(stage.attached(), ["one: native", "two: native"]);
    let notes = stage.notes();
    for left in ["br0 is left alone: what comes in by it came by its ports: one, two", "guest0 is left alone"]
    {
        assert!(notes.contains(left), "{notes}");
    }
    stage.check_counts("by a port", 500, |source| put(&wires[0], &frame::tcp(source)));
    stage.check_counts("by another", 500, |source| put(&wires[1], &frame::tcp(source)));
    // A bridge that is named is guarded as such, after its ports let a frame in.
    stage.xdp = None;
    stage.named(&["guests"]);
    stage.open();
    assert_ne!(stage.attached(), ["guests: native"]);
    assert_eq!(stage.attached().len(), 1);
    assert!(!has_xdp(&stage.host, "one"), "what is not asked for any more is let go");
}

#[test]
fn a_bond_is_guarded_at_its_slaves_also_those_that_come_later() {
    let test = "a_bond_is_guarded_at_its_slaves_also_those_that_come_later";
    let Some(mut stage) = Stage::new(test) else { return };
    let wires = [stage.wire("one"), stage.wire("two")];
    if !device(test, &stage.host, "bond0 type bond mode balance-rr") {
        return;
    }
    stage.host.ip("link set bond0 up").unwrap();
    let enslave = |stage: &Stage, slave: &str| {
        stage.host.ip(&format!("link set {slave} down")).unwrap();
        stage.host.ip(&format!("link set {slave} master bond0")).unwrap();
    };
    enslave(&stage, "one");
    stage.host.ip("addr add 198.51.100.1/24 dev bond0").unwrap();
    for names in [&[][..], &["bond0"]] {
        if !names.is_empty() {
            stage.named(names);
        }
        stage.xdp = None;
        stage.open();
        println!("{}", stage.notes());
        assert!(stage.attached().contains(&"one: native".to_owned()), "{:?}", stage.attached());
        assert!(!stage.attached().iter().any(|attached| attached.starts_with("bond0")));
        stage.check_counts("by the first slave", 200, |source| put(&wires[0], &frame::tcp(source)));
    }
    enslave(&stage, "two");
    stage.repair();
    assert_eq!(stage.attached(), ["one: native", "two: native"]);
    stage.check_counts("by the second slave", 200, |source| put(&wires[1], &frame::tcp(source)));
}

#[test]
fn a_vlan_is_guarded_below_or_by_its_name() {
    let test = "a_vlan_is_guarded_below_or_by_its_name";
    let Some(mut stage) = Stage::new(test) else { return };
    let wire = stage.wire("eth0");
    if !device(test, &stage.host, "link eth0 name eth0.5 type vlan id 5") {
        return;
    }
    stage.host.ip("link set eth0.5 up").unwrap();
    stage.host.ip("addr add 198.51.100.1/24 dev eth0").unwrap();
    let by_name = if has_tcx(test) { "eth0.5: tcx" } else { "eth0.5: generic" };
    for (names, expected) in [(&[][..], "eth0: native"), (&["eth0.5"], by_name)] {
        if !names.is_empty() {
            stage.named(names);
        }
        stage.xdp = None;
        stage.open();
        assert_eq!(stage.attached(), [expected]);
        stage.check_counts(expected, 500, |source| put(&wire, &frame::tagged(5, source)));
    }
}
