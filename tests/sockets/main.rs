//! Sockets and standard input as sources: who may write, and what each bound costs (here), what a message becomes
//! (`messages`), and bans by what was sent (`kernel`).

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use blocker::{
    engine::SourceId,
    policy::{Access, Form, SocketAddress, SocketLimits, SocketSpec},
    source::{SocketSource, StdinSource, file::LINE_BYTES_MAX, socket::SocketStatus},
};
use xtask::lab::{skipped, wait_for};

mod kernel;
mod messages;

const SOON: Duration = Duration::from_secs(5);
/// Sockets under test, in a folder of their own.
struct Stage {
    folder: tempfile::TempDir,
    source: SocketSource,
    /// What came, by source.
    seen: BTreeMap<u16, Vec<u8>>,
}

impl Stage {
    fn new() -> Self {
        let source = SocketSource::new().unwrap();
        Self { folder: tempfile::tempdir().unwrap(), source, seen: BTreeMap::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Listens on these, and on nothing else.
    fn listen(&mut self, specs: &[SocketSpec], limits: SocketLimits) -> Vec<String> {
        let specs: Vec<_> = (0..).map(SourceId).zip(specs.iter().cloned()).collect();
        self.source.set_sources(&specs, limits);
        self.source.troubles()
    }

    fn on(specs: impl FnOnce(&Self) -> Vec<SocketSpec>) -> Self {
        let mut stage = Self::new();
        let specs = specs(&stage);
        let troubles = stage.listen(&specs, SocketLimits::default());
        assert_eq!(troubles, Vec::<String>::new());
        stage
    }

    fn poll(&mut self) {
        let seen = &mut self.seen;
        self.source.poll(&mut |source, lines| {
            assert!(lines.ends_with(b"\n"), "whole lines");
            seen.entry(source.0).or_default().extend_from_slice(lines);
        });
    }

    fn seen(&self, source: u16) -> String {
        String::from_utf8_lossy(self.seen.get(&source).map_or(&[], Vec::as_slice)).into_owned()
    }

    /// Polls until a source has said this, and nothing more.
    fn until_seen(&mut self, source: u16, expected: &str) {
        let _late = wait_for(SOON, || {
            self.poll();
            (self.seen(source).len() >= expected.len()).then_some(())
        });
        assert_eq!(self.seen(source), expected, "{:?}", self.source.status());
    }

    fn status(&self, source: usize) -> SocketStatus {
        self.source.status()[source].clone()
    }

    fn counter(&self, source: usize, name: &str) -> u64 {
        let counters = self.status(source).counters;
        counters
            .iter()
            .find(|(known, _)| *known == name)
            .unwrap_or_else(|| panic!("{name} of {counters:?}"))
            .1
    }

    fn until_counter(&mut self, source: usize, name: &str, count: u64) {
        let reached = wait_for(SOON, || {
            self.poll();
            (self.counter(source, name) == count).then_some(())
        });
        assert!(reached.is_some(), "{name} {count}: {:?}", self.status(source));
    }
}

fn of(address: SocketAddress, form: Form) -> SocketSpec {
    SocketSpec { address, form, access: None }
}

/// Addresses of this host that nobody listens on.
fn free(host: &str) -> SocketAddr {
    // The kernel hands out ports in turn, so nobody else gets this one soon.
    TcpListener::bind((host, 0)).unwrap().local_addr().unwrap()
}

fn udp_from(host: &str) -> UdpSocket {
    UdpSocket::bind((host, 0)).unwrap()
}

#[test]
fn a_datagram_is_one_line_and_a_too_large_one_is_counted() {
    let mut stage = Stage::on(|stage| vec![of(SocketAddress::Datagram(stage.path("lines")), Form::Line)]);
    let path = stage.path("lines");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    let sender = UnixDatagram::unbound().unwrap();
    let longest = "x".repeat(LINE_BYTES_MAX);
    let over = "x".repeat(LINE_BYTES_MAX + 1);
    let far_over = "x".repeat(150_000);
    for datagram in
        ["one", "two\nthree\n", "", "{\"msg\":\n\"x\"\n}\n", &longest, &over, &far_over, "\n", "last\n"]
    {
        sender.send_to(datagram.as_bytes(), &path).unwrap();
    }
    stage.until_seen(0, &format!("one\ntwo\\nthree\n{{\"msg\": \"x\" }}\n{longest}\nlast\n"));
    let counters = ["lines", "too_long", "empty"].map(|name| stage.counter(0, name));
    assert_eq!((counters, stage.status(0).bytes), ([5, 2, 2], stage.seen[&0].len() as u64));
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
    let mut stage = Stage::new();
    let path = stage.path("lines");
    drop(UnixDatagram::bind(&path).unwrap());
    for kind in [SocketAddress::Datagram, SocketAddress::Stream] {
        let spec = [of(kind(path.clone()), Form::Line)];
        assert_eq!(
            stage.listen(&spec, SocketLimits::default()),
            Vec::<String>::new(),
            "the dead one is replaced"
        );
        let mut other = Stage::new();
        for kind in [SocketAddress::Datagram, SocketAddress::Stream] {
            let troubles = other.listen(&[of(kind(path.clone()), Form::Line)], SocketLimits::default());
            assert!(troubles.len() == 1 && troubles[0].contains("another process listens"), "{troubles:?}");
            assert!(other.status(0).state.starts_with("not listening: "), "{:?}", other.status(0));
        }
        assert!(stage.status(0).state.starts_with("listening"), "{:?}", stage.status(0));
        // Tried again, it is there once the first is gone; and it is not taken away by the one that goes.
        assert_eq!(stage.listen(&[], SocketLimits::default()), Vec::<String>::new());
        assert!(!path.exists(), "its own file is removed");
        other.source.open_missing();
        assert_eq!(other.source.troubles(), Vec::<String>::new());
        drop(other);
        drop(UnixListener::bind(&path).unwrap());
    }
    fs::remove_file(&path).unwrap();
    let spec = [of(SocketAddress::Datagram(path.clone()), Form::Line)];
    stage.listen(&spec, SocketLimits::default());
    fs::remove_file(&path).unwrap();
    let other = UnixDatagram::bind(&path).unwrap();
    stage.listen(&[], SocketLimits::default());
    assert!(path.exists(), "the file of another is left alone");
    drop(other);

    let file = stage.path("file");
    fs::write(&file, "precious\n").unwrap();
    for (path, says) in [(&file, "is no socket"), (&stage.path("no/such"), "the directory must exist")] {
        let troubles =
            stage.listen(&[of(SocketAddress::Datagram(path.clone()), Form::Line)], SocketLimits::default());
        assert!(troubles.len() == 1 && troubles[0].contains(says), "{troubles:?}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious\n");
}

#[test]
fn the_file_has_the_mode_and_owner_that_were_asked_for() {
    if !rustix::process::geteuid().is_root() {
        return skipped(
            "the_file_has_the_mode_and_owner_that_were_asked_for",
            "giving files away needs root",
        );
    }
    use std::os::unix::fs::MetadataExt as _;
    let access = Access { mode: 0o620, owner: Some(65_534), group: Some(65_533), ..Access::default() };
    let stage = Stage::on(|stage| {
        let address = SocketAddress::Stream(stage.path("lines"));
        vec![SocketSpec { address, form: Form::Line, access: Some(access) }]
    });
    let metadata = fs::metadata(stage.path("lines")).unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.uid(), metadata.gid()), (0o620, 65_534, 65_533));
}

#[test]
fn a_stream_is_cut_into_lines_however_it_comes_and_half_a_line_is_none() {
    let mut stage = Stage::on(|stage| vec![of(SocketAddress::Stream(stage.path("lines")), Form::Line)]);
    let mut slow = UnixStream::connect(stage.path("lines")).unwrap();
    let mut fast = UnixStream::connect(stage.path("lines")).unwrap();
    for byte in b"by" {
        slow.write_all(&[*byte]).unwrap();
        stage.poll();
    }
    fast.write_all(b"one\r\n{\"two\": 2}\n\n12 three\n").unwrap();
    stage.until_seen(0, "one\n{\"two\": 2}\n12 three\n");
    slow.write_all(b"tes\n").unwrap();
    stage.until_seen(0, "one\n{\"two\": 2}\n12 three\nbytes\n");
    // Nothing is kept of a line that does not end.
    for _ in 0..200 {
        fast.write_all(&[b'x'; 65_536]).unwrap();
    }
    fast.write_all(b"\nshort\nfailed from 203.0.113.1").unwrap();
    stage.until_seen(0, "one\n{\"two\": 2}\n12 three\nbytes\nshort\n");
    drop(fast);
    stage.until_counter(0, "unfinished", 1);
    assert_eq!((stage.counter(0, "too_long"), stage.counter(0, "connections")), (1, 1));
    assert_eq!(stage.counter(0, "lines"), 5);
}

#[test]
fn a_thousand_connections_are_harmless_and_the_next_is_served() {
    let mut stage = Stage::on(|stage| {
        let stream = of(SocketAddress::Stream(stage.path("stream")), Form::Line);
        vec![stream, of(SocketAddress::Datagram(stage.path("lines")), Form::Line)]
    });
    let mut first = UnixStream::connect(stage.path("stream")).unwrap();
    first.write_all(b"first\n").unwrap();
    stage.until_seen(0, "first\n");
    let path = stage.path("stream");
    let crowd: Vec<UnixStream> = (0..1_000).map(|_| UnixStream::connect(&path).unwrap()).collect();
    stage.until_counter(0, "turned_away", 745);
    assert_eq!(stage.counter(0, "connections"), 256);
    first.write_all(b"still here\n").unwrap();
    UnixDatagram::unbound().unwrap().send_to(b"beside\n", stage.path("lines")).unwrap();
    stage.until_seen(0, "first\nstill here\n");
    stage.until_seen(1, "beside\n");
    drop(crowd);
    stage.until_counter(0, "connections", 1);
    UnixStream::connect(&path).unwrap().write_all(b"next\n").unwrap();
    stage.until_seen(0, "first\nstill here\nnext\n");
}

#[test]
fn a_connection_that_completes_nothing_is_closed() {
    let mut stage = Stage::new();
    let path = stage.path("stream");
    let limits = SocketLimits { idle: Duration::from_secs(2), ..SocketLimits::default() };
    stage.listen(&[of(SocketAddress::Stream(path.clone()), Form::Line)], limits);
    let mut talker = UnixStream::connect(&path).unwrap();
    let mut dribbler = UnixStream::connect(&path).unwrap();
    let begun = Instant::now();
    let closed = wait_for(2 * SOON, || {
        talker.write_all(b"x\n").unwrap();
        // One byte after the other, and never a line.
        let gone = dribbler.write_all(b"x").is_err();
        std::thread::sleep(Duration::from_millis(20));
        gone.then_some(begun.elapsed())
    });
    assert!(closed.is_some_and(|after| after >= Duration::from_secs(2)), "{closed:?}");
    stage.until_counter(0, "idle_closed", 1);
    assert_eq!(stage.counter(0, "connections"), 1);
}

/// Not a test of its own: what another user does.
#[test]
fn as_other_user() {
    let Some(folder) = std::env::var_os("BLOCKER_TEST_FOLDER") else { return };
    let folder = Path::new(&folder);
    let sender = UnixDatagram::unbound().unwrap();
    for name in ["datagram", "syslog"] {
        sender.send_to(b"<38>app: theirs\n", folder.join(name)).unwrap();
    }
    let mut stream = UnixStream::connect(folder.join("stream")).unwrap();
    // It may be closed by now.
    let _closed = stream.write_all(b"<38>app: theirs\n");
    stream.set_read_timeout(Some(SOON)).unwrap();
    if std::env::var_os("BLOCKER_TEST_STAYS").is_some() {
        println!("stays");
    } else {
        stream.shutdown(std::net::Shutdown::Write).unwrap_or_default();
    }
    // Until it is closed at the other end.
    let _end = stream.read(&mut [0; 1]);
    println!("sent");
}

#[test]
fn other_users_may_write_only_where_they_are_named() {
    let name = "other_users_may_write_only_where_they_are_named";
    if !rustix::process::geteuid().is_root() {
        return skipped(name, "changing the user needs root");
    }
    let mut stage = Stage::new();
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    open(stage.folder.path());
    // A copy, because the other user cannot reach the build folder.
    let copy = stage.path("test");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    open(&copy);
    let other = |stage: &Stage| {
        let mut other = Command::new("setpriv");
        other.args(["--reuid", "65534", "--regid", "65533", "--clear-groups"]).arg(&copy);
        other.args(["--exact", "as_other_user", "--nocapture"]).current_dir("/").stdin(Stdio::null());
        other.env("BLOCKER_TEST_FOLDER", stage.folder.path());
        other
    };
    let send = |stage: &Stage| {
        let output = other(stage).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("sent"), "{output:?}");
    };
    let specs = |stage: &Stage, access: Option<Access>| {
        let all = [
            (SocketAddress::Datagram(stage.path("datagram")), Form::Line),
            (SocketAddress::Datagram(stage.path("syslog")), Form::Syslog),
            (SocketAddress::Stream(stage.path("stream")), Form::Line),
        ];
        all.map(|(address, form)| SocketSpec { address, form, access: access.clone() })
    };
    let named = |users: &[u32], groups: &[u32]| {
        Some(Access { users: users.to_vec(), groups: groups.to_vec(), ..Access::default() })
    };
    let mut refused = 0;
    let mut taken = 0;
    // Who may write changes by a reload, and the sockets stay.
    for (access, admitted) in [
        (None, false),
        (named(&[65_534], &[]), true),
        (named(&[65_533], &[65_534]), false),
        (named(&[], &[65_533]), true),
        (named(&[], &[]), false),
    ] {
        let specs = specs(&stage, access.clone());
        assert_eq!(stage.listen(&specs, SocketLimits::default()), Vec::<String>::new());
        send(&stage);
        if admitted {
            taken += 1;
        } else {
            refused += 1;
        }
        for source in 0..3 {
            stage.until_counter(source, "lines", taken);
            stage.until_counter(source, "refused", refused);
        }
        if !admitted {
            let state = stage.status(2).state;
            assert!(state.contains("refused last: user 65534, group 65533, process "), "{state}");
        }
    }
    // Whoever is connected when he is taken off the list is so no more.
    let listen = |stage: &mut Stage, access: Option<Access>| {
        let specs = specs(stage, access);
        assert_eq!(stage.listen(&specs, SocketLimits::default()), Vec::<String>::new());
    };
    listen(&mut stage, named(&[65_534], &[]));
    let mut staying = other(&stage).env("BLOCKER_TEST_STAYS", "1").stdout(Stdio::null()).spawn().unwrap();
    stage.until_counter(2, "lines", taken + 1);
    assert_eq!(stage.counter(2, "connections"), 1);
    listen(&mut stage, None);
    assert_eq!(stage.counter(2, "connections"), 0);
    assert!(staying.wait().unwrap().success());
    // Root may always.
    stage.seen.clear();
    UnixDatagram::unbound().unwrap().send_to(b"ours", stage.path("datagram")).unwrap();
    stage.until_seen(0, "ours\n");
}

#[test]
fn syslog_is_taken_over_udp_and_tcp_in_both_families_from_those_allowed() {
    let hosts = ["127.0.0.1", "::1"];
    let places = hosts.map(free);
    let specs: Vec<SocketSpec> = places
        .iter()
        .flat_map(|place| [SocketAddress::Udp(*place), SocketAddress::Tcp(*place)])
        .map(|address| of(address, Form::Syslog))
        .collect();
    let mut stage = Stage::on(|_| specs.clone());
    for (host, place) in hosts.iter().zip(places) {
        udp_from(host).send_to(b"<38>Nov  4 02:47:40 web a[1]: udp\nb", place).unwrap();
        let mut lines = TcpStream::connect(place).unwrap();
        lines.write_all(b"<38>Nov  4 02:47:40 web a[1]: tcp\n<38>Nov  4 02:47:40 web a[1]: more\n").unwrap();
    }
    for at in 0..2_u16 {
        stage.until_seen(2 * at, "Nov  4 02:47:40 web a[1]: udp\\nb\n");
        stage.until_seen(2 * at + 1, "Nov  4 02:47:40 web a[1]: tcp\nNov  4 02:47:40 web a[1]: more\n");
    }
    let mut frames = TcpStream::connect(places[0]).unwrap();
    frames
        .write_all(b"35 <38>Nov  4 02:47:40 web a[1]: x\ny\nz33 <38>Nov  4 02:47:40 web b[1]: abc")
        .unwrap();
    stage.seen.clear();
    stage.until_seen(1, "Nov  4 02:47:40 web a[1]: x\\ny\\nz\nNov  4 02:47:40 web b[1]: abc\n");
    frames.write_all(b"<38>not a frame\n").unwrap();
    stage.until_counter(1, "out_of_frame", 1);

    // Elsewhere only: whoever is not named is refused, by a reload.
    let access = Some(Access { allow: vec!["192.0.2.0/24".parse().unwrap()], ..Access::default() });
    let narrowed: Vec<SocketSpec> =
        specs.iter().map(|spec| SocketSpec { access: access.clone(), ..spec.clone() }).collect();
    assert_eq!(stage.listen(&narrowed, SocketLimits::default()), Vec::<String>::new());
    for (at, (host, place)) in hosts.iter().zip(places).enumerate() {
        udp_from(host).send_to(b"<38>a: forged", place).unwrap();
        let mut stream = TcpStream::connect(place).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        assert!(!matches!(stream.read(&mut [0; 1]), Ok(1..)), "closed");
        stage.until_counter(2 * at, "refused", 1);
        stage.until_counter(2 * at + 1, "refused", 1);
        assert!(
            stage.status(2 * at).state.ends_with(&format!("refused last: {host}")),
            "{:?}",
            stage.status(2 * at)
        );
    }
}

#[test]
fn nobody_waits_and_everything_is_counted_when_the_engine_is_slow() {
    let place = free("127.0.0.1");
    let mut stage = Stage::new();
    let (datagram, stream) = (stage.path("lines"), stage.path("stream"));
    let specs = [
        of(SocketAddress::Datagram(datagram.clone()), Form::Line),
        of(SocketAddress::Stream(stream.clone()), Form::Line),
        of(SocketAddress::Udp(place), Form::Syslog),
    ];
    let limits = SocketLimits { queue_bytes_max: 65_536, ..SocketLimits::default() };
    assert_eq!(stage.listen(&specs, limits), Vec::<String>::new());
    // Nobody polls. Blocking sends: they must come back all the same.
    let begun = Instant::now();
    let line = [b"x".repeat(999), b"\n".to_vec()].concat();
    let (unix, udp) = (UnixDatagram::unbound().unwrap(), udp_from("127.0.0.1"));
    let mut connection = UnixStream::connect(&stream).unwrap();
    for _ in 0..2_000 {
        unix.send_to(&line, &datagram).unwrap();
        connection.write_all(&line).unwrap();
        udp.send_to(&line, place).unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let all = |stage: &Stage, source| {
        ["lines", "dropped", "kernel_dropped"].map(|name| stage.counter(source, name)).iter().sum::<u64>()
    };
    for source in 0..2 {
        let counted = wait_for(SOON, || (all(&stage, source) == 2_000).then_some(()));
        assert!(counted.is_some(), "{:?}", stage.status(source));
        assert!(stage.counter(source, "dropped") > 1_900, "{:?}", stage.status(source));
    }
    // What the kernel dropped is told with the next message.
    let mut sent = 2_000;
    let counted = wait_for(SOON, || {
        udp.send_to(&line, place).unwrap();
        sent += 1;
        std::thread::sleep(Duration::from_millis(5));
        (all(&stage, 2) == sent).then_some(())
    });
    assert!(counted.is_some(), "{sent} sent: {:?}", stage.status(2));
    // Once the engine is there again, lines come through.
    let _polled = wait_for(SOON, || {
        stage.poll();
        (stage.seen(0).len() > 60_000).then_some(())
    });
    stage.seen.clear();
    unix.send_to(b"at last\n", &datagram).unwrap();
    stage.until_seen(0, "at last\n");
}

#[test]
fn garbage_is_counted_and_stops_nothing() {
    let place = free("127.0.0.1");
    let mut stage = Stage::on(|stage| {
        vec![
            of(SocketAddress::Datagram(stage.path("lines")), Form::Line),
            of(SocketAddress::Stream(stage.path("stream")), Form::Line),
            of(SocketAddress::Udp(place), Form::Syslog),
            of(SocketAddress::Tcp(place), Form::Syslog),
        ]
    });
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut garbage = || -> Vec<u8> {
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        (0..next() % 2_000).map(|_| next().to_le_bytes()[3]).collect()
    };
    let (unix, udp) = (UnixDatagram::unbound().unwrap(), udp_from("127.0.0.1"));
    for _ in 0..300 {
        unix.send_to(&garbage(), stage.path("lines")).unwrap();
        udp.send_to(&garbage(), place).unwrap();
        // They may be closed for what they sent.
        let _closed = UnixStream::connect(stage.path("stream")).unwrap().write_all(&garbage());
        let _closed = TcpStream::connect(place).unwrap().write_all(&garbage());
        stage.poll();
    }
    stage.until_counter(1, "connections", 0);
    stage.until_counter(3, "connections", 0);
    stage.poll();
    assert!(stage.counter(0, "lines") <= 300 && stage.counter(2, "lines") <= 300);
    stage.seen.clear();
    unix.send_to(b"fine", stage.path("lines")).unwrap();
    stage.until_seen(0, "fine\n");
    TcpStream::connect(place).unwrap().write_all(b"<38>Nov  4 02:47:40 h a: fine\n").unwrap();
    stage.until_seen(3, "Nov  4 02:47:40 h a: fine\n");
}

#[test]
fn a_reload_takes_and_adds_sockets_and_the_others_lose_nothing() {
    let mut stage = Stage::new();
    let at = |stage: &Stage, name: &str| of(SocketAddress::Stream(stage.path(name)), Form::Line);
    let specs = [at(&stage, "a"), at(&stage, "b")];
    stage.listen(&specs, SocketLimits::default());
    let mut kept = UnixStream::connect(stage.path("b")).unwrap();
    let mut gone = UnixStream::connect(stage.path("a")).unwrap();
    for (stream, line) in [(&mut kept, &b"b1\nb"[..]), (&mut gone, b"a1\na")] {
        stream.write_all(line).unwrap();
    }
    stage.until_seen(0, "a1\n");
    stage.until_seen(1, "b1\n");
    stage.seen.clear();
    // Another place in the configuration, another number, the same socket and connection.
    let specs = [at(&stage, "b"), at(&stage, "c")];
    kept.write_all(b"2\n").unwrap();
    assert_eq!(stage.listen(&specs, SocketLimits::default()), Vec::<String>::new());
    kept.write_all(b"b3\n").unwrap();
    UnixStream::connect(stage.path("c")).unwrap().write_all(b"c1\n").unwrap();
    stage.until_seen(0, "b2\nb3\n");
    stage.until_seen(1, "c1\n");
    assert!(!stage.path("a").exists());
    gone.set_read_timeout(Some(SOON)).unwrap();
    assert!(!matches!(gone.read(&mut [0; 1]), Ok(1..)), "its connections are closed");
}

#[test]
fn a_socket_whose_file_was_removed_is_made_anew() {
    let mut stage = Stage::on(|stage| {
        let stream = of(SocketAddress::Stream(stage.path("b")), Form::Line);
        vec![of(SocketAddress::Datagram(stage.path("a")), Form::Line), stream]
    });
    let mut kept = UnixStream::connect(stage.path("b")).unwrap();
    fs::remove_file(stage.path("a")).unwrap();
    stage.source.open_missing();
    assert_eq!(stage.source.troubles(), Vec::<String>::new());
    UnixDatagram::unbound().unwrap().send_to(b"found", stage.path("a")).unwrap();
    stage.until_seen(0, "found\n");
    kept.write_all(b"the other is as it was\n").unwrap();
    stage.until_seen(1, "the other is as it was\n");
}

#[test]
fn standard_input_is_read_to_its_end_and_its_writer_waits() {
    let long = "x".repeat(LINE_BYTES_MAX + 1);
    for (input, lines, counters) in [
        ("", "", [0, 0, 0]),
        ("one\ntwo\r\n\n", "one\ntwo\n", [2, 0, 0]),
        ("one\nfailed from 203.0.113.1", "one\n", [1, 0, 1]),
        (&format!("{long}\none\n"), "one\n", [1, 1, 0]),
    ] {
        let mut source = StdinSource::new(std::io::Cursor::new(input.to_owned().into_bytes())).unwrap();
        let mut seen = Vec::new();
        let ended = wait_for(SOON, || {
            let ended = source.state().starts_with("ended");
            source.poll(&mut |lines| seen.extend_from_slice(lines));
            ended.then_some(())
        });
        assert!(ended.is_some());
        assert_eq!(String::from_utf8_lossy(&seen), lines);
        assert_eq!(source.counters().iter().map(|(_, count)| *count).collect::<Vec<_>>(), counters);
        assert_eq!(source.bytes(), input.len() as u64);
    }
    // Ten times what may wait.
    let line = "y".repeat(1_023) + "\n";
    let mut source = StdinSource::new(std::io::Cursor::new(line.repeat(10_240).into_bytes())).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(source.bytes() < 3 << 20 && source.state() == "reading", "{} {}", source.bytes(), source.state());
    let mut count = 0;
    let all = wait_for(SOON, || {
        source.poll(&mut |lines| count += lines.len());
        (count == 10_240 * 1_024).then_some(())
    });
    assert!(all.is_some(), "{count}");
}
