//! Who is banned has no connection left: real sockets between network namespaces, the built agent, and the kernel.

use std::{
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use blocker::{
    allowlist::PrefixSet,
    enforce::sockets::{self, Closed, Trouble},
    net::{Prefix, Scope},
};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use xtask::lab::{
    Netns, Scratch,
    agent::{Agent, Backend},
    kernel,
    lan::{HOST_V4, HOST_V6, Lan},
    missing, skipped, wait_for,
};

const PORT: u16 = 2222;
const SOON: Duration = Duration::from_secs(5);
/// How long a connection that should live is watched.
const WHILE: Duration = Duration::from_millis(300);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_blocker"))
}

/// A connection over TCP, both ends of it.
struct Connection {
    server: TcpStream,
    client: TcpStream,
}

impl Connection {
    fn new(listener: &TcpListener, client: &Netns, to: IpAddr) -> Self {
        let to = SocketAddr::new(to, listener.local_addr().unwrap().port());
        let client = client.enter(|| TcpStream::connect_timeout(&to, SOON)).unwrap();
        let (server, _) = listener.accept().unwrap();
        for end in [&server, &client] {
            end.set_read_timeout(Some(kernel::patience(SOON))).unwrap();
        }
        Self { server, client }
    }

    /// What a worker that waits for this client gets; and the client, who is told as well.
    fn ended(&mut self) -> (ErrorKind, ErrorKind) {
        (read(&mut self.server), read(&mut self.client))
    }

    fn lives(&mut self) -> bool {
        let mut answer = [0; 5];
        let back = self.server.write_all(b"hello").and_then(|()| self.client.read_exact(&mut answer));
        back.is_ok() && self.server.take_error().unwrap().is_none()
    }
}

fn read(stream: &mut TcpStream) -> ErrorKind {
    outcome(|| stream.read(&mut [0; 8]))
}

fn receive(socket: &UdpSocket) -> ErrorKind {
    outcome(|| socket.recv(&mut [0; 8]))
}

/// What came of waiting. A machine that was stopped for a moment interrupts a wait that has a time limit, also without
/// a signal handler (signal(7), "Interruption of system calls and library functions by stop signals").
fn outcome(mut wait: impl FnMut() -> io::Result<usize>) -> ErrorKind {
    for _ in 0..10 {
        match wait() {
            Ok(0) => return ErrorKind::UnexpectedEof,
            Ok(_) => return ErrorKind::Other,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return error.kind(),
        }
    }
    ErrorKind::Interrupted
}

const ABORTED: (ErrorKind, ErrorKind) = (ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset);

fn set(prefixes: &[&str]) -> PrefixSet {
    prefixes.iter().map(|prefix| prefix.parse::<Prefix>().unwrap()).collect()
}

struct Town {
    lan: Lan,
    scratch: Scratch,
}

const ATTACKER: usize = 0;
const NEIGHBOUR: usize = 1;

impl Town {
    fn new(test: &str) -> Option<Self> {
        if let Some(reason) = missing() {
            skipped(test, &reason);
            return None;
        }
        let mut lan = Lan::new().unwrap();
        lan.host.sysctl("net/ipv6/bindv6only", "0").unwrap();
        lan.add_client("attacker", 66).unwrap();
        lan.add_client("neighbour", 67).unwrap();
        Some(Self { lan, scratch: Scratch::new("connections").unwrap() })
    }

    fn listen(&self, address: &str) -> TcpListener {
        self.lan.host.enter(|| TcpListener::bind(address)).unwrap()
    }

    fn connect(&self, listener: &TcpListener, client: usize, to: &str) -> Connection {
        Connection::new(listener, &self.lan.clients[client].netns, to.parse().unwrap())
    }

    fn close(&self, banned: &[&str], spared: &[&str]) -> Closed {
        self.close_on(&[("all", banned)], spared)
    }

    fn close_on(&self, banned: &[(&str, &[&str])], spared: &[&str]) -> Closed {
        let banned = banned.iter().map(|(scope, prefixes)| (scope.parse().unwrap(), set(prefixes))).collect();
        self.lan.host.enter(|| sockets::close(&banned, &set(spared))).unwrap()
    }

    /// UDP sockets of the host's that are connected with a client of either family.
    fn udp(&self, client: usize) -> [UdpSocket; 2] {
        let client = &self.lan.clients[client];
        [(HOST_V4, client.v4), (HOST_V6, client.v6)].map(|(here, there)| {
            let socket =
                self.lan.host.enter(|| UdpSocket::bind((here.parse::<IpAddr>().unwrap(), 0))).unwrap();
            socket.connect((there, 9)).unwrap();
            socket.set_read_timeout(Some(WHILE)).unwrap();
            socket
        })
    }

    fn agent(&self, backend: Backend, settings: &str) -> (Agent<'_>, PathBuf) {
        let log = self.scratch.join("auth.log");
        fs::write(&log, "").unwrap();
        let mut agent = Agent::new(&self.scratch, &self.lan.host, backend);
        agent.enforce(settings);
        agent.jail("sshd", &log, "maxretry = 3");
        agent.start(binary()).unwrap();
        (agent, log)
    }
}

fn with_each_backend(test: &str, case: impl Fn(&Town, Backend)) {
    let Some(town) = Town::new(test) else { return };
    case(&town, Backend::Nftables);
    if !blocker::enforce::xdp::is_built_in() {
        return skipped(test, "XDP was not built in (cargo xtask test builds it)");
    }
    case(&Town::new(test).unwrap(), Backend::Xdp);
}

#[test]
fn connections_of_a_banned_source_end_and_no_others() {
    let Some(town) = Town::new("connections_of_a_banned_source_end_and_no_others") else { return };
    let (v4, v6, dual) =
        (town.listen(&format!("{HOST_V4}:0")), town.listen(&format!("[{HOST_V6}]:0")), town.listen("[::]:0"));
    let connections = |client| {
        [
            town.connect(&v4, client, HOST_V4),
            town.connect(&v6, client, HOST_V6),
            // An IPv4 connection of an IPv6 socket.
            town.connect(&dual, client, HOST_V4),
            town.connect(&dual, client, HOST_V6),
        ]
    };
    let (mut his, mut others) = (connections(ATTACKER), connections(NEIGHBOUR));
    let (his_udp, others_udp) = (town.udp(ATTACKER), town.udp(NEIGHBOUR));

    assert_eq!(town.close(&["203.0.113.0/24", "2001:db8:1::/64"], &[]), Closed::default(), "nobody's");
    assert!(his.iter_mut().all(Connection::lives));
    let closed = town.close(&["198.51.100.66", "2001:db8:66::/64"], &[]);
    assert_eq!(closed, Closed { closed: 6, left: 0, cut_short: false });
    for connection in &mut his {
        assert_eq!(connection.ended(), ABORTED);
    }
    for socket in &his_udp {
        assert_eq!(receive(socket), ErrorKind::ConnectionAborted);
    }
    assert!(others.iter_mut().all(Connection::lives));
    for socket in &others_udp {
        assert_eq!(receive(socket), ErrorKind::WouldBlock);
    }

    // A prefix around both, with an address in it that is never dropped.
    let mut his = connections(ATTACKER);
    let wide = ["198.51.100.64/26", "2001:db8::/32"];
    let closed = town.close(&wide, &["198.51.100.67", "2001:db8:67::/64", "2001:db8:1::/64"]);
    assert_eq!(closed.closed, 4);
    assert!(his.iter_mut().all(|connection| connection.ended() == ABORTED));
    assert!(others.iter_mut().all(Connection::lives));
    // Too many prefixes for the kernel to filter by; and listeners, which have no other end, stay.
    let mut many: Vec<String> = (0..200).map(|n| format!("203.0.113.{n}")).collect();
    many.extend(wide.map(str::to_owned));
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(town.close(&many, &[]).closed, 6);
    assert!(others.iter_mut().all(|connection| connection.ended() == ABORTED));
    assert!(town.connect(&dual, NEIGHBOUR, HOST_V4).lives());
}

#[test]
fn a_ban_on_some_ports_ends_what_comes_to_these_ports() {
    let Some(town) = Town::new("a_ban_on_some_ports_ends_what_comes_to_these_ports") else { return };
    let (ssh, web) = (town.listen("[::]:2222"), town.listen("[::]:8080"));
    let mut connections =
        [&ssh, &web].map(|listener| [HOST_V4, HOST_V6].map(|to| town.connect(listener, ATTACKER, to)));
    let udp = town.udp(ATTACKER);
    let wide: &[&str] = &["198.51.100.0/24", "2001:db8:66::/64"];
    assert_eq!(town.close_on(&[("22,2223-8079,2222/udp", wide)], &[]).closed, 0);
    let closed = town.close_on(&[("2000-3000", wide), ("80", wide)], &[]);
    assert_eq!(closed, Closed { closed: 2, left: 0, cut_short: false });
    let [his, others] = &mut connections;
    assert!(his.iter_mut().all(|connection| connection.ended() == ABORTED));
    assert!(others.iter_mut().all(Connection::lives));
    // Narrower bans on all ports beside wide ones on some.
    let closed =
        town.close_on(&[("8080", &wide[..1]), ("all", &wide[1..]), ("1-65535/udp", &wide[..1])], &[]);
    assert_eq!(closed.closed, 4);
    assert!(others.iter_mut().all(|connection| connection.ended() == ABORTED));
    for socket in &udp {
        assert_eq!(receive(socket), ErrorKind::ConnectionAborted);
    }
}

#[test]
fn who_is_connected_is_listed_once() {
    let Some(town) = Town::new("who_is_connected_is_listed_once") else { return };
    let dual = town.listen("[::]:0");
    let _open = [(ATTACKER, HOST_V4), (ATTACKER, HOST_V4), (ATTACKER, HOST_V6), (NEIGHBOUR, HOST_V4)]
        .map(|(client, to)| town.connect(&dual, client, to));
    let (remotes, all) = town.lan.host.enter(sockets::remotes).unwrap();
    let expected: Vec<IpAddr> =
        ["198.51.100.66", "198.51.100.67", "2001:db8:66::66"].map(|text| text.parse().unwrap()).into();
    assert_eq!((remotes, all), (expected, true));
}

#[test]
fn without_the_capability_it_says_which_is_missing() {
    let Some(town) = Town::new("without_the_capability_it_says_which_is_missing") else { return };
    let listener = town.listen(&format!("{HOST_V4}:0"));
    let mut his = town.connect(&listener, ATTACKER, HOST_V4);
    let outcome = town.lan.host.enter(|| {
        // Of this thread alone.
        let mut mine = capabilities(None).unwrap();
        mine.effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, mine).unwrap();
        sockets::close(&[(Scope::ALL, set(&["198.51.100.66"]))].into(), &set(&[]))
    });
    let Err(Trouble::Lacking(error)) = outcome else { panic!("{outcome:?}") };
    assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    assert!(his.lives());
}

#[test]
fn thousands_of_connections_are_closed_in_one_look() {
    let Some(town) = Town::new("thousands_of_connections_are_closed_in_one_look") else { return };
    let listener = town.listen(&format!("{HOST_V4}:0"));
    // As many as fit under the usual bound on open files, both ends of each.
    let mut his: Vec<Connection> = (0..400).map(|_| town.connect(&listener, ATTACKER, HOST_V4)).collect();
    let closed = town.close(&["198.51.100.66"], &[]);
    assert_eq!(closed, Closed { closed: 400, left: 0, cut_short: false });
    assert!(his.iter_mut().all(|connection| connection.ended() == ABORTED));
    // And those that nobody accepted yet, or that are half made, are no connections of his any more.
    let to = listener.local_addr().unwrap();
    let netns = &town.lan.clients[ATTACKER].netns;
    let mut waiting: Vec<TcpStream> =
        (0..20).map(|_| netns.enter(|| TcpStream::connect_timeout(&to, SOON)).unwrap()).collect();
    assert_eq!(town.close(&["198.51.100.66"], &[]).closed, 20);
    assert!(waiting.iter_mut().all(|stream| read(stream) == ErrorKind::ConnectionReset));
}

/// What `status` says of connections.
fn counts(agent: &Agent<'_>) -> (u64, u64, String) {
    let status = agent.json(binary(), &["status"]).unwrap();
    let number = |key: &str| status[key].as_u64().unwrap();
    let kept = status["connections_kept"].as_str().unwrap().to_owned();
    (number("connections_closed"), number("connections_left") + number("connections_cut_short"), kept)
}

#[test]
fn a_ban_frees_the_worker_that_waits_for_the_attacker() {
    with_each_backend("a_ban_frees_the_worker_that_waits_for_the_attacker", |town, backend| {
        let dual = town.listen(&format!("[::]:{PORT}"));
        let (agent, log) = town.agent(backend, "");
        assert_eq!(counts(&agent), (0, 0, String::new()));
        let mut his = [HOST_V4, HOST_V6].map(|to| town.connect(&dual, ATTACKER, to));
        let mut others = [HOST_V4, HOST_V6].map(|to| town.connect(&dual, NEIGHBOUR, to));
        // By the log, as attackers are.
        let attacker = &town.lan.clients[ATTACKER];
        let mut text = String::new();
        for address in [attacker.v4, attacker.v6] {
            for port in 0..3 {
                text.push_str(&format!(
                    "2026-11-24T10:00:00.000000+00:00 host sshd[4242]: Failed password for root from {address} port {} ssh2\n",
                    40_000 + port
                ));
            }
        }
        fs::write(&log, text).unwrap();
        for connection in &mut his {
            assert_eq!(connection.ended(), ABORTED, "{backend}: {}", agent.log());
        }
        assert!(others.iter_mut().all(Connection::lives));
        let told = wait_for(SOON, || (counts(&agent) == (2, 0, String::new())).then_some(()));
        assert!(told.is_some(), "{:?}", counts(&agent));

        // By an operator, a prefix around both; the neighbour is never dropped.
        agent.cli(binary(), &["allow", "198.51.100.67"]).unwrap();
        agent.cli(binary(), &["ban", "198.51.100.64/26"]).unwrap();
        agent.cli(binary(), &["ban", "2001:db8:67::/64"]).unwrap();
        let [v4, v6] = &mut others;
        assert_eq!(v6.ended(), ABORTED);
        thread::sleep(WHILE);
        assert!(v4.lives());
        assert_eq!(counts(&agent).0, 3);
        let shown = agent.cli(binary(), &["status"]).unwrap();
        assert!(shown.contains("closed     3 connections of banned sources\n"), "{shown}");
    });
}

#[test]
fn connections_made_while_the_kernel_had_no_bans_end_as_well() {
    with_each_backend("connections_made_while_the_kernel_had_no_bans_end_as_well", |town, backend| {
        let listener = town.listen(&format!("{HOST_V4}:{PORT}"));
        let (mut agent, _log) = town.agent(backend, "");
        agent.cli(binary(), &["ban", "198.51.100.66"]).unwrap();
        agent.cli(binary(), &["ban", "203.0.113.0/24"]).unwrap();
        agent.stop();
        // As a restart of the machine, or somebody who cleans up, would.
        agent.forget_kernel().unwrap();
        let mut his = town.connect(&listener, ATTACKER, HOST_V4);
        let mut others = town.connect(&listener, NEIGHBOUR, HOST_V4);
        agent.start(binary()).unwrap();
        assert_eq!(his.ended(), ABORTED, "{backend}: {}", agent.log());
        assert!(others.lives());
    });
}

#[test]
fn connections_stay_where_the_configuration_says_so() {
    with_each_backend("connections_stay_where_the_configuration_says_so", |town, backend| {
        let listener = town.listen(&format!("{HOST_V4}:{PORT}"));
        let (agent, _log) = town.agent(backend, "close_connections = false");
        let mut his = town.connect(&listener, ATTACKER, HOST_V4);
        agent.cli(binary(), &["ban", "198.51.100.66"]).unwrap();
        his.server.set_read_timeout(Some(WHILE)).unwrap();
        assert_eq!(read(&mut his.server), ErrorKind::WouldBlock, "{backend}");
        let (closed, _, kept) = counts(&agent);
        assert!(closed == 0 && kept.contains("close_connections"), "{kept}");
    });
}
