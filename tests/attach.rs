//! How the program gets on an interface, stays on it, and follows what becomes of it.
//!
//! Every case sends real frames and counts them exactly. What a kernel has no device for is said and skipped; each of
//! these devices is there in a distribution's kernel.

use std::{
    fs,
    io::Write as _,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use blocker::{
    enforce::{Enforcer as _, Health, xdp},
    engine::Change,
    ledger::{Ban, Origin},
    net::Scope,
    time::{Timestamp, Until},
};
use xtask::lab::{
    Netns, Scratch,
    agent::{Agent, Backend, remove_pins},
    kernel, missing, probe, skipped, wait_for,
    wire::Wire,
};

#[path = "common/bpf.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod bpf;
#[path = "common/foreign.rs"]
mod foreign;
#[path = "common/frame.rs"]
mod frame;

const BANNED: &str = "203.0.113.9";
const HONEST: &str = "198.51.100.7";
/// Those that are ours alone; tests/dispatcher.rs has the other.
const MODES: [xdp::Mode; 3] = [xdp::Mode::Native, xdp::Mode::Tcx, xdp::Mode::Generic];
const SOON: Duration = Duration::from_secs(5);

/// A host that is guarded, and one that sends to it.
struct Stage {
    host: Netns,
    peer: Netns,
    options: xdp::Options,
    xdp: Option<Box<xdp::Xdp>>,
    _scratch: Scratch,
}

impl Stage {
    /// Two hosts without a wire and without a guard; `None`, and said, where that cannot be had.
    fn new(test: &str) -> Option<Self> {
        if let Some(reason) = missing() {
            skipped(test, &reason);
            return None;
        }
        if !xdp::is_built_in() {
            skipped(test, "XDP was not built in (cargo xtask test builds it)");
            return None;
        }
        let (host, peer) = (Netns::new("host").unwrap(), Netns::new("peer").unwrap());
        let scratch = Scratch::new("attach").unwrap();
        let pin_dir = PathBuf::from("/sys/fs/bpf").join(scratch.path().file_name().unwrap());
        let options = xdp::Options { bans_max: 1_000, pin_dir, ..xdp::Options::default() };
        Some(Self { host, peer, options, xdp: None, _scratch: scratch })
    }

    /// The interface `name` of the host, wired to one of that name at the peer.
    fn wire(&self, name: &str) -> Wire {
        self.host.link(name, &self.peer, name).unwrap();
        self.host.ip(&format!("link set {name} address 02:00:00:00:00:01")).unwrap();
        Wire::new(&self.peer, name).unwrap()
    }

    fn named(&mut self, names: &[&str]) {
        self.options.interfaces = xdp::Interfaces::Named(names.iter().map(|&name| name.to_owned()).collect());
    }

    fn try_open(&mut self) -> Result<(), String> {
        let options = &self.options;
        let opened = self.host.enter(|| xdp::Xdp::open(options)).map_err(|error| error.to_string())?;
        self.xdp = Some(Box::new(opened));
        let until = Until::Forever;
        let origin = Origin::Operator;
        for prefix in [BANNED, "2001:db8:66::/64"].map(|text| text.parse().unwrap()) {
            let (since, origin, reason) = (now(), origin.clone(), String::new());
            let scope = Scope::ALL;
            let ban = Ban { prefix, scope, origin, since, until, failures: 0, count: 0, reason };
            self.xdp().apply(&[Change::Ban(ban)], now()).unwrap();
        }
        Ok(())
    }

    fn open(&mut self) {
        self.try_open().unwrap();
    }

    fn xdp(&mut self) -> &mut xdp::Xdp {
        self.xdp.as_mut().unwrap()
    }

    fn attached(&mut self) -> Vec<String> {
        self.xdp().describe().attachments
    }

    fn notes(&mut self) -> String {
        self.xdp().notes().join("\n")
    }

    fn troubles(&mut self) -> Vec<String> {
        let xdp = self.xdp.as_mut().unwrap();
        self.host.enter(move || xdp.troubles())
    }

    fn repair(&mut self) -> Health {
        let xdp = self.xdp.as_mut().unwrap();
        self.host.enter(|| xdp.repair()).unwrap()
    }

    fn dropped(&mut self) -> u64 {
        self.xdp().counters().unwrap().packets
    }

    /// Sends so many frames of the banned and of the honest source, and expects all of the former to be counted, and no
    /// more.
    fn check_counts(&mut self, what: &str, count: u64, send: impl Fn(IpAddr)) {
        let (before, bans_before) = (self.dropped(), self.of_bans());
        for _ in 0..count {
            send(BANNED.parse().unwrap());
            send(HONEST.parse().unwrap());
        }
        let all = wait_for(SOON, || (self.dropped() >= before + count).then_some(()));
        let counted = self.dropped() - before;
        assert!(all.is_some() && counted == count, "{what}: {count} sent, {counted} counted");
        assert_eq!(self.of_bans() - bans_before, count, "{what}: by ban");
        println!("{what}: {count} sent, {counted} counted");
    }

    fn of_bans(&mut self) -> u64 {
        self.xdp().entries(now()).unwrap().iter().map(|entry| entry.packets).sum()
    }

    /// Whether a frame is dropped, by our own count.
    fn drops(&mut self, wire: &Wire, frame: &[u8]) -> bool {
        let before = self.dropped();
        put(wire, frame);
        wait_for(Duration::from_millis(60), || (self.dropped() > before).then_some(())).is_some()
    }

    fn pin(&self, interface: &str, mode: &str) -> PathBuf {
        let folder = fs::read_dir(&self.options.pin_dir).unwrap().next().unwrap().unwrap().path();
        let index = self.host.ip(&format!("-o link show {interface}")).unwrap();
        folder.join(format!("link-{}-{mode}", index.split(':').next().unwrap()))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.xdp = None;
        remove_pins(&self.options.pin_dir);
    }
}

fn put(wire: &Wire, frame: &[u8]) {
    wire.send_whole(frame).unwrap();
}

fn now() -> Timestamp {
    Timestamp::EPOCH.saturating_add(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

/// Somebody else's program, attached natively as long as it is held.
fn foreign_program(host: &Netns, interface: &str) -> OwnedFd {
    let pass = bpf::floor(bpf::XDP_PASS, 0);
    host.enter(|| foreign::attach(pass.as_fd(), interface, foreign::XDP_FLAGS_DRV_MODE)).unwrap()
}

fn has_xdp(netns: &Netns, interface: &str) -> bool {
    netns.ip(&format!("-d link show {interface}")).unwrap().contains("prog/xdp")
}

/// Makes a device, or says that this kernel has none of its kind.
fn device(test: &str, netns: &Netns, args: &str) -> bool {
    match netns.ip(&format!("link add {args}")) {
        Ok(_) => true,
        Err(error) => {
            kernel::lacks(test, &format!("such a device: {error:#}"));
            false
        }
    }
}

fn has_tcx(test: &str) -> bool {
    kernel::has(test, "TCX", (6, 6))
}

/// The modes that this kernel has.
fn modes(test: &str) -> Vec<xdp::Mode> {
    let tcx = has_tcx(test);
    MODES.into_iter().filter(|mode| tcx || *mode != xdp::Mode::Tcx).collect()
}

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
    assert!(notes.contains("eth0 is tcx: no native, since another program (id "), "{notes}");
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
        why.contains("attach to eth0") && why.contains("no native") && why.contains("no generic"),
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
        assert!(stage.notes().contains("its driver (macvlan) has no native XDP"), "{}", stage.notes());
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
    assert!(stage.notes().contains("no Ethernet header"), "{}", stage.notes());
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
                foreign::replace(pin, pass.as_fd()).unwrap();
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
    assert_eq!((stage.troubles(), stage.notes()), (Vec::new(), String::new()));
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

/// A status of the agent, and its text where it is not well.
fn status(agent: &Agent<'_>) -> (Vec<String>, String) {
    let status = agent.json(Path::new(env!("CARGO_BIN_EXE_blocker")), &["status"]).unwrap();
    let texts = |list: &serde_json::Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    (texts(&status["backend"]["attachments"]), texts(&status["degraded"]).join("; "))
}

/// Detection and mending together.
const MENDED_WITHIN: Duration = Duration::from_secs(2);

#[test]
fn an_agent_mends_within_two_seconds_and_says_degraded_until_then() {
    let test = "an_agent_mends_within_two_seconds_and_says_degraded_until_then";
    let Some(stage) = Stage::new(test) else { return };
    let binary = Path::new(env!("CARGO_BIN_EXE_blocker"));
    let (host, peer) = (&stage.host, &stage.peer);
    let wire = || {
        host.link("eth0", peer, "eth0").unwrap();
        host.ip("addr add 198.51.100.1/24 dev eth0").unwrap();
        peer.ip("addr add 198.51.100.66/24 dev eth0").unwrap();
    };
    wire();
    let scratch = Scratch::new("mends").unwrap();
    let mut agent = Agent::new(&scratch, host, Backend::Xdp);
    agent.interfaces("\"auto\"");
    agent.enforce("modes = [\"native\", \"generic\"]");
    agent.jail("sshd", &scratch.join("auth.log"), "");
    agent.start(binary).unwrap();
    agent.cli(binary, &["ban", "198.51.100.66"]).unwrap();
    let reached = || probe::ping(peer, "198.51.100.1".parse().unwrap());
    assert!(!reached());
    let pin = |name: &str| {
        let folder = fs::read_dir(agent.pins()).unwrap().next().unwrap().unwrap().path();
        let index = host.ip(&format!("-o link show {name}")).unwrap();
        folder.join(format!("link-{}-native", index.split(':').next().unwrap()))
    };
    let is_well = |name: &str| {
        let (attached, degraded) = status(&agent);
        (attached == [format!("{name}: native")] && degraded.is_empty() && pin(name).exists()).then_some(())
    };
    let again = || {
        host.ip("link del eth0").unwrap();
        wire();
    };
    let rename = || {
        for command in ["link set eth0 down", "link set eth0 name wan0", "link set wan0 up"] {
            host.ip(command).unwrap();
        }
    };
    let away_and_back = || {
        host.ip(&format!("link set wan0 name away0 netns {}", peer.name())).unwrap();
        peer.ip(&format!("link set away0 name back0 netns {}", host.name())).unwrap();
        host.ip("addr add 198.51.100.1/24 dev back0").unwrap();
        host.ip("link set back0 up").unwrap();
    };
    let cases: [(&str, &str, &dyn Fn()); 5] = [
        ("its link is detached", "eth0", &|| foreign::detach(&pin("eth0")).unwrap()),
        ("its pin is removed", "eth0", &|| fs::remove_file(pin("eth0")).unwrap()),
        ("its interface is deleted and made again", "eth0", &again),
        ("its interface is renamed", "wan0", &rename),
        ("its interface goes to another namespace and comes back", "back0", &away_and_back),
    ];
    for (what, name, sabotage) in cases {
        sabotage();
        let begun = Instant::now();
        let mended = wait_for(kernel::patience(SOON), || is_well(name));
        let took = begun.elapsed();
        let (attached, degraded) = status(&agent);
        assert!(
            mended.is_some() && took < kernel::patience(MENDED_WITHIN),
            "{what}: {attached:?} {degraded} after {took:?}"
        );
        assert!(!reached(), "{what}");
        println!("{what}: mended after {} ms; {}", took.as_millis(), attached.join(", "));
    }
    // Somebody takes the place of what was detached: it is not driven out, and the agent says so until it goes.
    foreign::detach(&pin("back0")).unwrap();
    let taken = wait_for(SOON, || {
        let pass = bpf::floor(bpf::XDP_PASS, 0);
        let _busy = foreign::detach(&pin("back0"));
        host.enter(|| foreign::attach(pass.as_fd(), "back0", foreign::XDP_FLAGS_DRV_MODE)).ok()
    });
    let degraded =
        wait_for(SOON, || Some(status(&agent).1).filter(|degraded| degraded.contains("another program")));
    println!("a foreign program in its place: DEGRADED: {}", degraded.as_deref().unwrap_or("not said"));
    assert!(taken.is_some() && degraded.is_some() && reached());
    drop(taken);
    let begun = Instant::now();
    assert!(wait_for(SOON, || is_well("back0")).is_some(), "{:?}", status(&agent));
    println!("the foreign program is gone: mended after {} ms", begun.elapsed().as_millis());
    assert!(!reached());
    agent.cli(binary, &["unban", "198.51.100.66"]).unwrap();
    assert!(reached());
}
