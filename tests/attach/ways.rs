//! The ways to get on an interface: each drops and counts the same, and the next is taken where one is not to be had.

use std::{fs, io::Write as _, net::IpAddr, os::fd::AsRawFd as _};

use blocker::enforce::{Enforcer as _, xdp};
use xtask::lab::{kernel, skipped, wait_for};

use crate::{
    frame,
    stage::{BANNED, HONEST, SOON, Stage, foreign_program, has_tcx, has_xdp, modes, put},
};

#[test]
fn every_mode_drops_every_kind_of_frame_and_counts_exactly() {
    let test = "every_mode_drops_every_kind_of_frame_and_counts_exactly";
    for layout in [xdp::Layout::Buckets, xdp::Layout::Hash] {
        for mode in modes(test) {
            let Some(mut stage) = Stage::new(test) else { return };
            stage.options.modes = vec![mode];
            stage.options.layout = layout;
            let wire = stage.wire("eth0");
            stage.host.ip("addr add 198.51.100.1/24 dev eth0").unwrap();
            stage.open();
            let name = mode.name();
            assert_eq!(stage.attached(), [format!("eth0: {name}")]);
            let (v4, v6) = (BANNED.parse().unwrap(), "2001:db8:66::9".parse().unwrap());
            for kind in frame::kinds(v4, v6) {
                let drops = stage.drops(&wire, &kind.bytes);
                assert_eq!(drops, kind.dropped_when_banned, "{layout:?}, {name}: {}", kind.name);
            }
            stage.check_counts(&format!("{layout:?}, {name}"), 10_000, |source| {
                put(&wire, &frame::tcp(source));
            });
        }
    }
}

#[test]
fn several_modes_serve_one_table() {
    let test = "several_modes_serve_one_table";
    if !has_tcx(test) {
        return;
    }
    let Some(mut stage) = Stage::new(test) else { return };
    let wires = [stage.wire("eth0"), stage.wire("eth1"), stage.wire("eth2")];
    stage.host.ip("link add mac0 link eth2 address 02:00:00:00:00:0a type macvlan mode bridge").unwrap();
    stage.host.ip("link set mac0 up").unwrap();
    let _foreign = foreign_program(&stage.host, "eth1");
    stage.named(&["eth0", "eth1", "mac0"]);
    stage.open();
    println!("{}", stage.notes());
    assert_eq!(stage.attached(), ["eth0: native", "eth1: tcx", "mac0: tcx"]);
    let before = stage.dropped();
    let frame = frame::tcp(BANNED.parse().unwrap());
    let mut to_mac0 = frame.clone();
    to_mac0[5] = 0x0a;
    for _ in 0..1_000 {
        put(&wires[0], &frame);
        put(&wires[1], &frame);
        put(&wires[2], &to_mac0);
    }
    let all = wait_for(SOON, || (stage.dropped() >= before + 3_000).then_some(()));
    assert!(all.is_some() && stage.dropped() == before + 3_000, "{} of 3,000", stage.dropped() - before);
    println!("native, tcx and tcx: 3000 sent, 3000 counted");
}

#[test]
fn where_no_mode_is_to_be_had_nothing_is_attached_and_it_is_said_why() {
    let test = "where_no_mode_is_to_be_had_nothing_is_attached_and_it_is_said_why";
    let Some(mut stage) = Stage::new(test) else { return };
    let (_eth0, eth1) = (stage.wire("eth0"), stage.wire("eth1"));
    stage.named(&["eth0", "eth1"]);
    stage.options.modes = vec![xdp::Mode::Native, xdp::Mode::Generic];
    let foreign = foreign_program(&stage.host, "eth0");
    // All or nothing, as for `backend = "auto"`: then nftables guards the host.
    stage.options.all = true;
    let why = stage.try_open().unwrap_err();
    println!("{why}");
    assert!(
        why.starts_with("attach to eth0: no native and no generic, since another program (id ")
            && why.ends_with("; XDP is tried again at the next start"),
        "{why}"
    );
    assert!(!has_xdp(&stage.host, "eth1"), "what was attached before the refusal is let go");
    // Else as much as can be had.
    stage.options.all = false;
    stage.open();
    assert_eq!(stage.attached(), ["eth1: native"]);
    let troubles = stage.troubles();
    assert!(troubles.len() == 1 && troubles[0].starts_with("eth0 is not guarded: "), "{troubles:?}");
    stage.check_counts("the other one", 100, |source| put(&eth1, &frame::tcp(source)));
    drop(foreign);
    stage.repair();
    assert_eq!((stage.attached().len(), stage.troubles().len()), (2, 0), "{:?}", stage.troubles());
}

#[test]
fn devices_without_native_xdp_are_guarded_all_the_same() {
    let test = "devices_without_native_xdp_are_guarded_all_the_same";
    for mode in modes(test).into_iter().skip(1) {
        let Some(mut stage) = Stage::new(test) else { return };
        let wire = stage.wire("eth0");
        stage.host.ip("link add mac0 link eth0 address 02:00:00:00:00:0a type macvlan mode bridge").unwrap();
        stage.host.ip("link set mac0 up").unwrap();
        // By its name; by itself the interface below it would be taken.
        stage.named(&["mac0"]);
        stage.options.modes = vec![xdp::Mode::Native, mode];
        stage.open();
        println!("{}", stage.notes());
        assert_eq!(stage.attached(), [format!("mac0: {}", mode.name())]);
        let notes = stage.notes();
        let why = "its driver (macvlan) has no native XDP; that of the interface below it may have";
        assert!(notes.contains(why), "{notes}");
        let is_unasked =
            notes.starts_with("mac0 is generic: no tcx, since `[enforce] modes` does not name it; ");
        assert_eq!(is_unasked, mode == xdp::Mode::Generic, "{notes}");
        let to_it = |source| {
            let mut frame = frame::tcp(source);
            frame[5] = 0x0a;
            put(&wire, &frame);
        };
        stage.check_counts(&format!("macvlan, {}", mode.name()), 1_000, to_it);
    }
}

#[test]
fn packets_without_an_ethernet_header_are_dropped_by_their_source() {
    let test = "packets_without_an_ethernet_header_are_dropped_by_their_source";
    if !has_tcx(test) {
        return;
    }
    let Some(mut stage) = Stage::new(test) else { return };
    let tun = stage.host.enter(|| tun("tun0"));
    let mut tun = match tun {
        Ok(tun) => tun,
        Err(error) => return skipped(test, &format!("no tun device: {error}")),
    };
    stage.host.ip("link set tun0 up").unwrap();
    stage.open();
    println!("{}", stage.notes());
    assert_eq!(stage.attached(), ["tun0: tcx"]);
    assert!(
        stage
            .notes()
            .contains("no Ethernet header, which XDP counts on; for such an interface TCX is the best"),
        "{}",
        stage.notes()
    );
    let before = stage.dropped();
    for source in
        [BANNED, HONEST, "2001:db8:66::1", "2001:db8:67::1"].map(|text| text.parse::<IpAddr>().unwrap())
    {
        // What stands behind the Ethernet header.
        (0..500).for_each(|_| tun.write_all(&frame::tcp(source)[14..]).unwrap());
    }
    assert_eq!(stage.dropped() - before, 1_000);
    // Neither of these names a source.
    for bytes in [&[0x45; 10][..], &[0x60; 30], &[0x55; 60]] {
        let _refused = tun.write(bytes);
    }
    assert_eq!(stage.dropped() - before, 1_000);
    println!("tun, tcx: 1000 sent, 1000 counted");
}

/// A tun device: packets that are written to the file come in by it.
fn tun(name: &str) -> std::io::Result<fs::File> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const IFF_TUN: u8 = 1;
    const IFF_NO_PI: u8 = 0x10;
    let file = fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    // `struct ifreq`: the name, then the flags, of which the high byte is the second.
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&[IFF_TUN, IFF_NO_PI]);
    // SAFETY: the request is as large as the kernel's and outlives the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(file) }
}

#[test]
fn jumbo_frames_are_dropped_natively_with_all_their_bytes() {
    let test = "jumbo_frames_are_dropped_natively_with_all_their_bytes";
    if !kernel::has(test, "XDP over several buffers", (5, 18)) {
        return;
    }
    for mode in modes(test) {
        let Some(mut stage) = Stage::new(test) else { return };
        let wire = stage.wire("eth0");
        for netns in [&stage.host, &stage.peer] {
            netns.ip("link set eth0 mtu 9000").unwrap();
        }
        stage.named(&["eth0"]);
        stage.options.modes = vec![mode];
        stage.open();
        assert_eq!(stage.attached(), [format!("eth0: {}", mode.name())]);
        let before = stage.xdp().counters().unwrap();
        for source in [BANNED, HONEST] {
            let mut frame = frame::tcp(source.parse().unwrap());
            frame.resize(9_014, 0);
            (0..1_000).for_each(|_| put(&wire, &frame));
        }
        wait_for(SOON, || (stage.dropped() >= before.packets + 1_000).then_some(()));
        let after = stage.xdp().counters().unwrap();
        let counted = (after.packets - before.packets, after.bytes - before.bytes);
        assert_eq!(counted, (1_000, 9_014_000), "{}", mode.name());
        println!("MTU 9000, {}: 1000 sent, {} counted, {} bytes", mode.name(), counted.0, counted.1);
    }
}
